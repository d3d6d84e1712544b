"""The engine on a CUDA device, INT4 and INT8 weights and all, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from tests.engine import tiny
from tests.engine.test_parity import logits_of
from youtu_llm.engine.core import Core
from youtu_llm.ops import awq
from youtu_llm.ops.cuda import CudaOps
from youtu_llm.ops.reference import ReferenceOps

if not torch.cuda.is_available():
    pytest.skip("this machine has no CUDA device", allow_module_level=True)

DEVICE = torch.device("cuda")
PROMPT = tiny.prompt(300)
GROUP = 128
SHAPES: dict[str, dict[str, Any]] = {
    "youtu": {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 128,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
    "qwen2": {"hidden_size": 256, "intermediate_size": 384},
    "llama": {"hidden_size": 256, "intermediate_size": 384, "tie_word_embeddings": False},
}


def quantize(model: PreTrainedModel, folder: Path) -> None:
    """Round the oracle's weights to INT4 and INT8 rows, and save them as such beside it."""
    tensors = {}
    for name, weight in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if weight.dim() == 1:
            tensors[name] = weight.half()
            weight.copy_(weight.half())
        elif "embed" in name or "lm_head" in name:
            rows, scales = awq.quantize_rows_int8(weight)
            tensors |= {name: rows, f"{stem}.scales": scales}
            weight.copy_(rows.float() * scales.float()[:, None])
        else:
            parts = awq.quantize_rtn(weight, GROUP)
            tensors |= {f"{stem}.{kind}": part for kind, part in zip(
                ("qweight", "qzeros", "scales"), parts, strict=True)}  # fmt: skip
            weight.copy_(awq.dequantize(*parts).t())
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq_int8",
        "bits": 4,
        "group_size": GROUP,
        "version": "gemm",
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=[*(f"{arch}-int4" for arch in SHAPES), "phi", "qwen2"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel]:
    arch, _, quantised = request.param.partition("-")
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny.make(arch, folder, **(SHAPES[arch] if quantised else {}))
    if quantised:
        with torch.no_grad():
            quantize(model, folder)
    return folder, model.to(DEVICE)


def core(folder: Path, **changes: Any) -> Core:
    return tiny.core(folder, CudaOps(DEVICE), torch.float16, **changes)


@torch.inference_mode()
def oracle(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([ids], device=DEVICE)).logits[0]
    return logits


def error_of(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got - truth).pow(2).mean().sqrt() / truth.std())


@pytest.mark.parametrize("chunk", [512, 37, 8, 1])
def test_logits(case: tuple[Path, PreTrainedModel], chunk: int) -> None:
    """As near to transformers in float32 as plain torch in float16 is."""
    folder, model = case
    expected = oracle(model, PROMPT)
    got = logits_of(core(folder), PROMPT, chunk)
    plain = tiny.core(folder, ReferenceOps(DEVICE, torch.float16), torch.float16)
    bound = error_of(logits_of(plain, PROMPT, 512), expected)
    assert bound < 0.05, "the model must be able to tell right from wrong"
    assert error_of(got, expected) < 1.6 * bound


def test_captured_steps(case: tuple[Path, PreTrainedModel]) -> None:
    """Every greedy token is, for the oracle too, as good as the best there."""
    folder, model = case
    prompts = {str(n): tiny.prompt(n, seed=n) for n in (1, 5, 255, 256, 300)}
    requests = {id: (ids, tiny.greedy(24)) for id, ids in prompts.items()}
    together = tiny.run(core(folder), requests)
    for id, ids in prompts.items():
        logits = oracle(model, ids + together[id])[len(ids) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(together[id], device=DEVICE)[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 0.1 * logits.std(), f"prompt of {id}"
        alone = tiny.run(core(folder), {id: requests[id]})[id]
        assert len(alone) == len(together[id])


def test_a_seed_gives_the_same_answer_again(case: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = case
    params = tiny.greedy(16, temperature=0.8, top_k=20, top_p=0.9, seed=3, repetition_penalty=1.1)
    requests = {str(n): (tiny.prompt(40, seed=n), params) for n in range(3)}
    engine = core(folder, prefix_cache=False)
    assert tiny.run(engine, requests) == tiny.run(engine, requests)


def test_an_idle_engine_gives_its_memory_back(case: tuple[Path, PreTrainedModel]) -> None:
    """Of the pages, and what PyTorch's allocator would keep for later."""
    folder, _ = case
    engine = core(folder)
    tiny.run(engine, {"one": (PROMPT, tiny.greedy(4))})
    assert engine.pool.num_cached
    engine._last_work_s -= engine._cache_idle_s + 1
    engine.idle()
    assert engine.cache.num_bytes == 0
    reserved = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == reserved
