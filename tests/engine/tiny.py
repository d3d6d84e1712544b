"""Tiny seeded models of each architecture: transformers' own as the oracle, ours beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from youtu_llm.engine.backend import Backend
from youtu_llm.engine.build import build
from youtu_llm.engine.core import Core
from youtu_llm.ops.api import Ops
from youtu_llm.ops.reference import ReferenceOps
from youtu_llm.protocol import EngineConfig, Output, SamplingParams

# Tiny tensors: two threads only wait for each other.
torch.set_num_threads(1)

VOCAB = 320
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def qwen2(**changes: Any) -> PreTrainedModel:
    values = {**_COMMON, "num_key_value_heads": 2, "tie_word_embeddings": True}
    values |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**(values | changes)))


def llama(**changes: Any) -> PreTrainedModel:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    values = {**_COMMON, "num_key_value_heads": 1, "rope_parameters": scaling}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**(values | changes)))


def phi(**changes: Any) -> PreTrainedModel:
    values = {**_COMMON, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5}
    values |= {"rope_parameters": {**_DEFAULT_ROPE, "partial_rotary_factor": 0.5}}
    return transformers.PhiForCausalLM(transformers.PhiConfig(**(values | changes)))


def youtu(**changes: Any) -> PreTrainedModel:
    values = {
        **_COMMON,
        "num_key_value_heads": 4,
        "q_lora_rank": 48,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 24,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1.6e6},
    }
    return transformers.YoutuForCausalLM(transformers.YoutuConfig(**(values | changes)))


ARCHITECTURES: dict[str, Callable[..., PreTrainedModel]] = {
    "qwen2": qwen2,
    "llama": llama,
    "phi": phi,
    "youtu": youtu,
}


def make(arch: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """Build a seeded model, save it to `folder`, and return the oracle."""
    torch.manual_seed(7)
    model = ARCHITECTURES[arch](**changes).eval()
    with torch.no_grad():  # weights large enough that positions and attention matter
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in name:
                parameter.mul_(5.0)
    model.save_pretrained(folder)
    return model


def engine_config(folder: Path, **changes: Any) -> EngineConfig:
    values: dict[str, Any] = {"max_step_tokens": 512, "max_num_seqs": 8, "dtype": "float32"}
    return EngineConfig(str(folder), **(values | changes))


def core(
    folder: Path,
    ops: Ops | None = None,
    cache_dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Core:
    """Our engine on a saved model."""
    ops = ops or ReferenceOps(torch.device("cpu"), torch.float32)
    backend = Backend(ops, cache_dtype)
    core, _ = build(engine_config(folder, **changes), backend=backend)
    return core


def prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (length,), generator=generator).tolist()


def run(core: Core, requests: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, list[int]]:
    """Serve all requests together; the tokens of each."""
    return {id: tokens for id, (tokens, _) in run_full(core, requests).items()}


def run_full(
    core: Core, requests: dict[str, tuple[list[int], SamplingParams]]
) -> dict[str, tuple[list[int], Output]]:
    """Serve all requests together; the tokens and the last output of each."""
    for id, (ids, params) in requests.items():
        refused = core.add(id, ids, params)
        assert refused is None, refused
    tokens: dict[str, list[int]] = {id: [] for id in requests}
    last: dict[str, Output] = {}
    while core.has_work:
        for output in core.step():
            tokens[output.id] += output.token_ids
            if output.finish_reason:
                last[output.id] = output
        core.pool.check()
    return {id: (tokens[id], last[id]) for id in requests}


def greedy(num_tokens: int, **changes: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=num_tokens, **changes)


@torch.inference_mode()
def oracle_greedy(model: PreTrainedModel, ids: list[int], num_tokens: int) -> list[int]:
    """transformers' own greedy continuation."""
    tokens = torch.tensor([ids])
    out = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()
