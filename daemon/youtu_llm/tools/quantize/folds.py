"""Where a scale of input channels can move into the tensor before, with no change of function.

If channel j of a linear's input is divided by s_j where it is made, and column j of the linear is
multiplied by s_j, the block computes what it did. Each architecture declares its places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.layers import head_shape
from youtu_llm.tools.quantize.block import Tensors


@dataclass(frozen=True, slots=True)
class Fold:
    """`rows(config)[j]` is the output channel of `source` that becomes input channel j of all
    `targets`; the others of its channels go elsewhere. None: one to one."""

    source: str  # a norm or a linear
    targets: tuple[str, ...]  # every linear that reads the source's channels
    rows: Callable[[ModelConfig], Tensor] | None = None

    def channels(self, config: ModelConfig, in_features: int) -> Tensor:
        return torch.arange(in_features) if self.rows is None else self.rows(config)


def apply(fold: Fold, tensors: Tensors, config: ModelConfig, scales: Tensor) -> None:
    """Fold `scales` [in] of the targets' inputs in place. Channels that come from one source
    channel must have one scale."""
    source = tensors[f"{fold.source}.weight"]
    divisor = torch.ones(len(source))
    divisor[fold.channels(config, len(scales))] = scales
    tensors[f"{fold.source}.weight"] = source / (divisor[:, None] if source.dim() == 2 else divisor)
    if f"{fold.source}.bias" in tensors:
        tensors[f"{fold.source}.bias"] = tensors[f"{fold.source}.bias"] / divisor
    for target in fold.targets:
        tensors[f"{target}.weight"] = tensors[f"{target}.weight"] * scales


def _values_of_groups(config: ModelConfig) -> Tensor:
    """Every group's value head goes to all of its query heads."""
    num_heads, num_kv_heads, head_dim = head_shape(config)
    heads = torch.arange(num_heads) * num_kv_heads // num_heads
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _values_of_latent(config: ModelConfig) -> Tensor:
    """Each head's rows of kv_b are its keys, then its values."""
    nope, v_dim = config.int("qk_nope_head_dim"), config.int("v_head_dim")
    heads = torch.arange(config.int("num_attention_heads"))
    return (heads[:, None] * (nope + v_dim) + nope + torch.arange(v_dim)).flatten()


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_MLP = (
    Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Fold("mlp.up_proj", ("mlp.down_proj",)),
)
_LLAMA = (
    Fold("input_layernorm", _QKV),
    Fold("self_attn.v_proj", ("self_attn.o_proj",), _values_of_groups),
    *_MLP,
)
FOLDS: dict[str, tuple[Fold, ...]] = {
    "LlamaForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "PhiForCausalLM": (  # nothing into fc2: a GELU lies before it
        Fold("input_layernorm", (*_QKV, "mlp.fc1")),
        Fold("self_attn.v_proj", ("self_attn.dense",), _values_of_groups),
    ),
    "YoutuForCausalLM": (
        Fold("input_layernorm", ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")),
        Fold("self_attn.q_a_layernorm", ("self_attn.q_b_proj",)),
        Fold("self_attn.kv_a_layernorm", ("self_attn.kv_b_proj",)),
        Fold("self_attn.kv_b_proj", ("self_attn.o_proj",), _values_of_latent),
        *_MLP,
    ),
}
