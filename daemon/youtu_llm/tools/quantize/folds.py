"""Where a scale of input channels can move into the tensor before, with no change of function.

If channel j of a linear's input is divided by s_j where it is made, and column j of the linear is
multiplied by s_j, the block computes what it did. engine/models/architectures.py declares the
places of each architecture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.architectures import Fold
from youtu_llm.engine.models.layers import head_shape
from youtu_llm.tools.quantize.block import Tensors


def channels(fold: Fold, config: ModelConfig, in_features: int) -> Tensor:
    """[in_features]: the output channel of the source that each input of the targets reads."""
    return torch.arange(in_features) if fold.rows == "all" else _ROWS[fold.rows](config)


def apply(fold: Fold, tensors: Tensors, config: ModelConfig, scales: Tensor) -> None:
    """Fold `scales` [in] of the targets' inputs in place. Channels that come from one source
    channel must have one scale."""
    source = tensors[f"{fold.source}.weight"]
    divisor = torch.ones(len(source))
    divisor[channels(fold, config, len(scales))] = scales
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


_ROWS = {"values_of_groups": _values_of_groups, "values_of_latent": _values_of_latent}
