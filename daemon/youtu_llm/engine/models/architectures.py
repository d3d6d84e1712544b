"""Every architecture: the class that implements it, and the names in its files. No torch.

`registry` (the engine), `rope`, `youtu import` and `youtu quantize` read this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from youtu_llm.errors import ModelError


@dataclass(frozen=True, slots=True)
class Fold:
    """Where AWQ may move a scale of input channels into the tensor before (tools/quantize/folds).

    Names are those within a block. `rows` says which output channels of `source` become the
    input channels of `targets`; folds.py has a function of each name.
    """

    source: str  # a norm or a linear
    targets: tuple[str, ...]  # every linear that reads the source's channels
    rows: Literal["all", "values_of_groups", "values_of_latent"] = "all"


@dataclass(frozen=True, slots=True)
class Gguf:
    """An architecture's GGUF files in Hugging Face's terms."""

    name: str  # general.architecture, which is also the prefix of its keys
    model_type: str  # in config.json, as are `constants`
    config_keys: Mapping[str, str]  # config.json's key -> GGUF key without the prefix
    tensors: Mapping[str, str]  # GGUF module -> Hugging Face module
    layer_tensors: Mapping[str, str]  # the same, within blk.N and model.layers.N
    constants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Architecture:
    model: str  # "module:class" in engine/models
    folds: tuple[Fold, ...]  # for `youtu quantize`; with none of them AWQ changes nothing
    rope_theta: float | None = None  # by convention, for configs older than the key
    gguf: Gguf | None = None  # None: no GGUF file of it can be imported


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = (
    Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
)
_LLAMA_FOLDS = (
    Fold("input_layernorm", _QKV),
    Fold("self_attn.v_proj", ("self_attn.o_proj",), "values_of_groups"),
    *_MLP,
)

# By the first of config.json's `architectures`.
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(
        model="llama:Llama",
        rope_theta=10_000.0,
        folds=_LLAMA_FOLDS,
    ),
    "PhiForCausalLM": Architecture(
        model="phi:Phi",
        rope_theta=10_000.0,
        folds=(  # nothing into fc2: a GELU lies before it
            Fold("input_layernorm", (*_QKV, "mlp.fc1")),
            Fold("self_attn.v_proj", ("self_attn.dense",), "values_of_groups"),
        ),
    ),
    "Qwen2ForCausalLM": Architecture(
        model="qwen2:Qwen2",
        folds=_LLAMA_FOLDS,
        gguf=Gguf(
            name="qwen2",
            model_type="qwen2",
            config_keys={
                "hidden_size": "embedding_length",
                "intermediate_size": "feed_forward_length",
                "max_position_embeddings": "context_length",
                "num_attention_heads": "attention.head_count",
                "num_hidden_layers": "block_count",
                "num_key_value_heads": "attention.head_count_kv",
                "rms_norm_eps": "attention.layer_norm_rms_epsilon",
                "rope_theta": "rope.freq_base",
            },
            constants={"hidden_act": "silu", "use_sliding_window": False},
            tensors={
                "token_embd": "model.embed_tokens",
                "output_norm": "model.norm",
                "output": "lm_head",
            },
            layer_tensors={
                "attn_norm": "input_layernorm",
                "attn_q": "self_attn.q_proj",
                "attn_k": "self_attn.k_proj",
                "attn_v": "self_attn.v_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_gate": "mlp.gate_proj",
                "ffn_up": "mlp.up_proj",
                "ffn_down": "mlp.down_proj",
            },
        ),
    ),
    "YoutuForCausalLM": Architecture(
        model="youtu:Youtu",
        folds=(
            Fold("input_layernorm", ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")),
            Fold("self_attn.q_a_layernorm", ("self_attn.q_b_proj",)),
            Fold("self_attn.kv_a_layernorm", ("self_attn.kv_b_proj",)),
            Fold("self_attn.kv_b_proj", ("self_attn.o_proj",), "values_of_latent"),
            *_MLP,
        ),
    ),
}


def find(name: str, source: str) -> Architecture:
    """Raises ModelError, naming the `source` of the name, for an unknown architecture."""
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"{source}: architecture {name!r} is not implemented (implemented: {known})"
        )
    return ARCHITECTURES[name]
