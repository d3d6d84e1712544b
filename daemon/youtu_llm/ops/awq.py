"""AutoAWQ's GEMM checkpoint layout: INT4, asymmetric, in groups along the input channels.

For a linear W [out, in] and groups of g:

    qweight  int32 [in, out / 8]       eight output channels of one input channel in a word
    qzeros   int32 [in / g, out / 8]   zero points 0..15, in the same order, without bias
    scales   fp16  [in / g, out]

W[o, i] = (q[i, o] - z[i // g, o]) * s[i // g, o]. Bits 4n..4n+3 of word c hold output channel
8c + NIBBLE_CHANNEL[n]. Words are signed: mask after shifting.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP_SIZE = 128
NIBBLE_CHANNEL = (0, 2, 4, 6, 1, 3, 5, 7)
_CHANNEL_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)  # the inverse
_SHIFTS = torch.arange(0, 32, 4, dtype=torch.int32)


def pack(values: Tensor) -> Tensor:
    """Integers 0..15 [rows, out] -> int32 [rows, out / 8]. `out` must be a multiple of 8."""
    rows, out_features = values.shape
    if out_features % 8:
        raise ValueError(f"{out_features} output channels are not a multiple of 8")
    channels = values.to(torch.int32).view(rows, out_features // 8, 8)
    words = torch.zeros_like(channels[..., 0])
    for nibble, channel in enumerate(NIBBLE_CHANNEL):
        words |= channels[..., channel] << (4 * nibble)
    return words


def unpack(words: Tensor) -> Tensor:
    """int32 [rows, n] -> uint8 [rows, 8 n], channels in their natural order."""
    nibbles = ((words.unsqueeze(-1) >> _SHIFTS.to(words.device)) & 15).to(torch.uint8)
    return nibbles[:, :, _CHANNEL_NIBBLE].reshape(words.shape[0], -1)


def grid(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The integer grid of groups of weights [..., g] -> fp16 scales [...], zero points [...].

    Each group's range is widened to hold 0, so that the zero point is exact in 0..15 (AutoAWQ
    leaves it out, and gets a wrong grid for groups of one sign).
    """
    high, low = groups.amax(-1).clamp_min(0), groups.amin(-1).clamp_max(0)
    scales = ((high - low).clamp_min(1e-5) / 15).half()  # above 0 even for a group of zeros
    return scales, (-low / scales.float()).round().clamp(0, 15)


def quantize_rtn(weight: Tensor, group_size: int = GROUP_SIZE) -> tuple[Tensor, Tensor, Tensor]:
    """Round to nearest: W [out, in] -> (qweight, qzeros, scales)."""
    out_features, in_features = weight.shape
    if in_features % group_size:
        raise ValueError(f"{in_features} input channels do not divide into groups of {group_size}")
    groups = weight.float().view(out_features, in_features // group_size, group_size)
    scales, zeros = grid(groups)  # [out, in / g]
    q = ((groups / scales.float()[..., None]).round() + zeros[..., None]).clamp(0, 15)
    q = q.view(out_features, in_features)
    return pack(q.t().contiguous()), pack(zeros.t().contiguous()), scales.t().contiguous()


def dequantize(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """The weight as float32 [in, out]: the transpose of the linear's own."""
    in_features, (num_groups, out_features) = qweight.shape[0], scales.shape
    q = unpack(qweight).view(num_groups, in_features // num_groups, out_features)
    centred = q.float() - unpack(qzeros).float()[:, None]
    return (centred * scales.float()[:, None]).view(in_features, out_features)


def quantize_rows_int8(table: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric, one scale a row: [rows, n] -> int8 [rows, n], fp16 scales [rows]."""
    scales = (table.float().abs().amax(-1).clamp_min(1e-5) / 127).half()  # [rows]
    q = (table.float() / scales.float()[:, None]).round().clamp(-127, 127)
    return q.to(torch.int8), scales
