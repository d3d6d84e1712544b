"""Each method beats round to nearest where it should."""

from __future__ import annotations

import torch
from torch import Tensor

from youtu_llm.ops import awq
from youtu_llm.tools.quantize import awq as awq_scales
from youtu_llm.tools.quantize import gptq
from youtu_llm.tools.quantize.block import InputStats

GROUP = 32


def correlated_inputs(num_tokens: int, width: int, seed: int) -> Tensor:
    """Few causes behind many channels, as in a language model's activations."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(num_tokens, width // 8, generator=generator)
    mixing = torch.randn(width // 8, width, generator=torch.Generator().manual_seed(99))
    return causes @ mixing + 0.3 * torch.randn(num_tokens, width, generator=generator)


def stats_of(x: Tensor) -> InputStats:
    return InputStats(x.t() @ x, x.abs().sum(0), len(x))


def loss(parts: tuple[Tensor, Tensor, Tensor], weight: Tensor, x: Tensor) -> float:
    return float((x @ (awq.dequantize(*parts) - weight.t())).norm() / (x @ weight.t()).norm())


def test_gptq_beats_rounding_on_inputs_it_has_not_seen() -> None:
    torch.manual_seed(2)
    weight = torch.randn(96, 256)
    seen, unseen = correlated_inputs(2000, 256, 3), correlated_inputs(500, 256, 4)
    compensated = gptq.quantize(weight, stats_of(seen), GROUP)
    rounded = awq.quantize_rtn(weight, GROUP)
    assert loss(compensated, weight, unseen) < 0.6 * loss(rounded, weight, unseen)


def test_gptq_bears_channels_that_are_never_used() -> None:
    torch.manual_seed(2)
    weight, seen = torch.randn(16, 64), correlated_inputs(500, 64, 3)
    seen[:, 5:40] = 0.0
    parts = gptq.quantize(weight, stats_of(seen), GROUP)
    for_unused = awq.dequantize(*parts).t()[:, 5:40] - weight[:, 5:40]
    assert for_unused.abs().max() < 0.5  # of a step at most, so rounded and not thrown away


def test_awq_finds_scales_that_were_folded_in() -> None:
    torch.manual_seed(5)
    x, weight = torch.randn(500, 128), torch.randn(64, 128)
    hidden = torch.randn(128).exp()
    x, weight = x * hidden, weight / hidden  # the same products
    scales = awq_scales.search(weight, stats_of(x), torch.arange(128), GROUP)
    assert torch.corrcoef(torch.stack([scales.log(), hidden.log()]))[0, 1] > 0.95
    scaled = loss(awq.quantize_rtn(weight * scales, GROUP), weight * scales, x / scales)
    assert scaled < 0.7 * loss(awq.quantize_rtn(weight, GROUP), weight, x)
