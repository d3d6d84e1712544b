"""One block quantised by any method: INT4 linears, INT8 exceptions, the rest in fp16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.architectures import ARCHITECTURES
from youtu_llm.errors import ModelError
from youtu_llm.ops import awq
from youtu_llm.tools.quantize import awq as awq_scales
from youtu_llm.tools.quantize import folds, gptq
from youtu_llm.tools.quantize.block import InputStats, Stats, Tensors

_SAMPLE_ROWS = 256  # outputs a linear's reported error is measured on


@dataclass(frozen=True, slots=True)
class Block:
    """A block to quantise: its tensors in fp32, what its linears read, and scales folded in."""

    tensors: Tensors
    stats: Stats
    scales: dict[str, dict[str, float]] = field(default_factory=dict)  # of each fold


@dataclass(frozen=True, slots=True)
class Quantised:
    tensors: Tensors  # as the checkpoint stores them
    errors: dict[str, float]  # of each linear's output, relative
    scales: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The same for every block."""

    group_size: int = awq.GROUP_SIZE
    keep_int8: tuple[str, ...] = ()  # modules, or the beginnings of their names: kv_b, down_proj

    def keeps(self, names: Sequence[str]) -> bool:
        """Whether linears that the engine fuses stay INT8. Raises ModelError if only some do."""
        kept = [name for name in names if _leaf(name).startswith(self.keep_int8)]
        if not kept:
            return False
        if len(kept) < len(names):
            parts = ",".join(map(_leaf, names))
            raise ModelError(
                f"{', '.join(kept)} can be INT8 only together with the linears that the engine"
                f" computes in the same pass: --keep-int8 {parts}"
            )
        return True

    def check(self, stats: Stats) -> None:
        """Raises ModelError for a name in `keep_int8` that no linear has."""
        leaves = sorted({_leaf(name) for names in stats for name in names})
        for start in self.keep_int8:
            if not any(leaf.startswith(start) for leaf in leaves):
                raise ModelError(f"--keep-int8 {start}: the linears are {', '.join(leaves)}")


def scale(block: Block, config: ModelConfig, recipe: Recipe) -> Block:
    """AWQ's scales, searched and folded in: the same function in other numbers."""
    tensors, stats, scales = dict(block.tensors), dict(block.stats), {}
    for fold in ARCHITECTURES[config.architecture].folds:
        touched = [names for names in stats if set(names) & set(fold.targets)]
        if all(recipe.keeps(names) for names in touched):
            continue  # INT8 rows have no groups that would gain
        weight = torch.cat([tensors[f"{name}.weight"] for name in fold.targets])
        channels = folds.channels(fold, config, weight.shape[1])
        found = awq_scales.search(weight, stats[touched[0]], channels, recipe.group_size)
        folds.apply(fold, tensors, config, found)
        for names in touched:
            stats[names] = stats[names].scaled(found)
        scales[fold.source] = {
            "min": round(float(found.min()), 4),
            "max": round(float(found.max()), 4),
        }
    return Block(tensors, stats, scales)


def quantise(block: Block, recipe: Recipe, *, compensate: bool) -> Quantised:
    """Every linear onto its grid: to the nearest point, or by GPTQ if errors are compensated.

    Raises ModelError for shapes the layout can't hold and for impossible exceptions.
    """
    recipe.check(block.stats)
    linears = {f"{name}.weight" for names in block.stats for name in names}
    others = block.tensors.keys() - linears
    stored = {name: _half(name, block.tensors[name]) for name in others}
    errors: dict[str, float] = {}
    for names, stats in sorted(block.stats.items()):
        # Fused linears share an input, whose feedback is computed once.
        weight = torch.cat([block.tensors[f"{name}.weight"] for name in names])
        heights = [len(block.tensors[f"{name}.weight"]) for name in names]
        parts = _quantise_linear(names, weight, stats, recipe, compensate=compensate)
        for name, part in zip(names, _split(parts, heights), strict=True):
            stored |= {f"{name}.{key}": value for key, value in part.items()}
        errors |= _errors(names, weight, heights, parts, stats)
    return Quantised(stored, errors, block.scales)


def _quantise_linear(
    names: tuple[str, ...],
    weight: Tensor,
    stats: InputStats,
    recipe: Recipe,
    *,
    compensate: bool,
) -> Tensors:
    out_features, in_features = weight.shape
    if recipe.keeps(names):
        values, scales = awq.quantize_rows_int8(weight)
        return {"weight": values, "scales": scales}
    if in_features % recipe.group_size or out_features % 8:
        raise ModelError(
            f"{'|'.join(names)} is {in_features} x {out_features}: INT4 needs inputs in groups of"
            f" {recipe.group_size} (--group-size) and outputs a multiple of 8"
        )
    if compensate:
        parts = gptq.quantize(weight, stats, recipe.group_size)
    else:
        parts = awq.quantize_rtn(weight, recipe.group_size)
    return dict(zip(("qweight", "qzeros", "scales"), parts, strict=True))


def _split(parts: Tensors, heights: list[int]) -> list[Tensors]:
    """Split linears that were quantised as one, by their numbers of outputs."""
    if "qweight" not in parts:
        pieces = {key: value.split(heights) for key, value in parts.items()}
    else:
        words = [height // 8 for height in heights]
        pieces = {
            "qweight": parts["qweight"].split(words, dim=1),
            "qzeros": parts["qzeros"].split(words, dim=1),
            "scales": parts["scales"].split(heights, dim=1),
        }
    return [
        {key: piece[i].contiguous() for key, piece in pieces.items()} for i in range(len(heights))
    ]


def _errors(
    names: tuple[str, ...], weight: Tensor, heights: list[int], parts: Tensors, stats: InputStats
) -> dict[str, float]:
    """|X (W - Q)^T| / |X W^T| of each linear, over some of its outputs."""
    if "qweight" in parts:
        stored = awq.dequantize(parts["qweight"], parts["qzeros"], parts["scales"]).t()
    else:
        stored = parts["weight"].float() * parts["scales"].float()[:, None]
    found = {}
    for name, w, q in zip(names, weight.split(heights), stored.split(heights), strict=True):
        step = -(-len(w) // _SAMPLE_ROWS)
        w, wrong = w[::step], w[::step] - q[::step]
        lost = ((wrong @ stats.gram) * wrong).sum().clamp_min(0)
        found[name] = round(float((lost / ((w @ stats.gram) * w).sum()).sqrt()), 6)
    return found


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not half.isfinite().all():
        raise ModelError(f"{name} holds values too large for float16")
    return half
