"""AWQ: activation-aware scales of the input channels (Lin et al. 2023).

Channels that carry large activations get a larger share of the INT4 grid: their weights are
multiplied by s before rounding and the channel is divided by s where it is made (`folds`). Two
families of scales are searched: the paper's s = |x|^a and, so that channels whose weights are
small already are not wasted, s = |x|^a / w^(1-a) with w a channel's mean weight as a share of
its group's largest. The one that changes the linears' outputs least is taken, or none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from youtu_llm.ops import awq
from youtu_llm.tools.quantize.block import InputStats

EXPONENTS = tuple(step / 10 for step in range(11))
_SAMPLE_ROWS = 256  # outputs the error is measured on


def search(weight: Tensor, stats: InputStats, channels: Tensor, group_size: int) -> Tensor:
    """Scales [in] for W [out, in] (the linears of one input, one under the other).

    Input channels with the same entry in `channels` [in] get the same scale.
    """
    x = _pooled(stats.abs_sum / stats.count, channels).clamp_min(1e-8)
    groups = weight.abs().view(len(weight), -1, group_size)
    share = groups / groups.amax(-1, keepdim=True).clamp_min(1e-8)
    w = _pooled(share.view_as(weight).mean(0), channels).clamp_min(1e-4)
    sample = weight[:: -(-len(weight) // _SAMPLE_ROWS)]
    best = torch.ones_like(x)
    least = _error(sample, best, stats.gram, group_size)
    for exponent in EXPONENTS:
        for scales in (x**exponent, x**exponent / w ** (1 - exponent)):
            scales = scales.clamp_min(1e-4)
            scales = scales / (scales.max() * scales.min()).sqrt()
            error = _error(sample, scales, stats.gram, group_size)
            if error < least:
                best, least = scales, error
    return best


def _pooled(values: Tensor, channels: Tensor) -> Tensor:
    """[in] -> [in], the mean over channels of one source."""
    size = int(channels.max()) + 1
    count = torch.zeros(size).index_add_(0, channels, torch.ones_like(values))
    total = torch.zeros(size).index_add_(0, channels, values)
    return (total / count.clamp_min(1))[channels]


def _error(weight: Tensor, scales: Tensor, gram: Tensor, group_size: int) -> float:
    """|X (W - Q(W s) / s)^T|^2"""
    groups = (weight * scales).view(len(weight), -1, group_size)
    step, zeros = (part.float()[..., None] for part in awq.grid(groups))
    q = ((groups / step).round() + zeros).clamp(0, 15)
    difference = ((q - zeros) * step).view_as(weight) / scales - weight
    return float(((difference @ gram) * difference).sum())
