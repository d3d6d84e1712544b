"""compressed-tensors' pack-quantized INT4, which llm-compressor writes, in AutoAWQ's layout.

For a linear W [out, in] and groups of g input channels:

    weight_packed      int32 [out, in / 8]   input channel 8c + n in bits 4n..4n+3 of word c
    weight_scale             [out, in / g]
    weight_zero_point  int32 [out / 8, in / g]   output channel 8c + n likewise; none: symmetric
    weight_shape       int64 [out, in]

Values and zero points are -8..7 there and stored plus 8: that is AutoAWQ's 0..15, so only the
order changes and no weight is rounded again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from youtu_llm.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
PACKED = ".weight_packed"
PARTS = (PACKED, ".weight_scale", ".weight_zero_point", ".weight_shape")
_GROUP = 128
_WANTED = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": _GROUP}


def check(quantization: dict[str, Any], path: object) -> None:
    """Raises ModelError for a `quantization_config` whose weights AutoAWQ's layout can't hold."""
    schemes = list((quantization.get("config_groups") or {}).values())
    if quantization.get("format") != FORMAT or len(schemes) != 1:
        raise ModelError(
            f"{path}: compressed-tensors in format {quantization.get('format')!r} with"
            f" {len(schemes)} schemes is not supported, only {FORMAT!r} with one:"
            " take the unquantised model"
        )
    weights = schemes[0].get("weights") or {}
    for key, wanted in _WANTED.items():
        if weights.get(key) != wanted:
            raise ModelError(
                f"{path}: {FORMAT} weights with {key} {weights.get(key)!r} are not supported,"
                f" only {wanted!r}: take the unquantised model"
            )
    if weights.get("actorder") not in (None, False, "weight", "static"):
        raise ModelError(
            f"{path}: {FORMAT} weights in another order of their columns (actorder"
            f" {weights['actorder']!r}) are not supported: take the unquantised model"
        )
    if schemes[0].get("input_activations"):
        raise ModelError(f"{path}: quantised activations are not supported, only weights")


def to_awq(read: Callable[[str], Tensor | None], module: str) -> tuple[Tensor, Tensor, Tensor]:
    """(qweight, qzeros, scales) of ops/awq.py. `read` gives a tensor by name, None if absent."""
    import torch

    from youtu_llm.ops import awq

    packed, scale, shape = (
        read(module + part) for part in (PACKED, ".weight_scale", ".weight_shape")
    )
    if packed is None or scale is None or shape is None:
        raise ModelError(f"{module} lacks one of {', '.join(PARTS)}: the checkpoint is incomplete")
    out_features, in_features = shape.tolist()
    values = _unpack(packed)[:out_features, :in_features]
    zeros = torch.full(scale.shape, 8, dtype=torch.uint8)
    zero_point = read(module + ".weight_zero_point")
    if zero_point is not None:
        zeros = _unpack(zero_point.t()).t()[:out_features]
    groups = (out_features, in_features // _GROUP)
    found = {"values": values, "scales": scale, "zero points": zeros}
    for what, tensor in found.items():
        wanted = (out_features, in_features) if what == "values" else groups
        if tuple(tensor.shape) != wanted:
            raise ModelError(f"{module}: {what} of shape {tuple(tensor.shape)}, not {wanted}")
    scales = scale.half()
    if not scales.isfinite().all():
        raise ModelError(f"{module} holds scales too large for float16")
    return awq.pack(values.t()), awq.pack(zeros.t()), scales.t().contiguous()


def _unpack(words: Tensor) -> Tensor:
    """int32 [rows, n] -> uint8 [rows, 8 n], the lowest bits first."""
    import torch

    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words.unsqueeze(-1) >> shifts) & 15).to(torch.uint8).flatten(1)
