"""95 % intervals of what the evaluations count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


@dataclass(frozen=True, slots=True)
class Interval:
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """`0.0317 ± 0.0012`, as `percent`."""
        half = "" if math.isinf(self.high) else f" ± {self.high - self.value:.4f}"
        return f"{self.value:.4f}{half}"

    def percent(self, *, signed: bool = False) -> str:
        """`43.2 [38.1, 48.4]`; the value alone where nothing is known of the rest."""
        if math.isinf(self.high):
            return format(100 * self.value, "+.2f" if signed else ".2f")
        sign = "+" if signed else ""
        value, low, high = (
            format(100 * part, f"{sign}.2f") for part in (self.value, self.low, self.high)
        )
        return f"{value} [{low}, {high}]"


def share(hits: int, count: int) -> Interval:
    """A proportion, by the score interval (Wilson 1927)."""
    p, z2 = hits / count, Z * Z
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def paired_difference(gained: int, lost: int, count: int) -> Interval:
    """Difference of two proportions over the same `count` questions: `gained` only the first
    answered rightly, `lost` only the second.

    Adjusted Wald interval (Bonett and Price 2012): as if there had been one more of each kind,
    which keeps it honest where the two hardly differ. The value itself is not adjusted.
    """
    n = count + 2
    up, down = (gained + 1) / n, (lost + 1) / n
    half = Z * math.sqrt((up + down - (up - down) ** 2) / n)
    value = (gained - lost) / count
    return Interval(value, max(-1.0, up - down - half), min(1.0, up - down + half))


def mean(sums: Sequence[float], sizes: Sequence[int]) -> Interval:
    """Mean a token of what was summed a document: documents are the unit, since the tokens of
    one depend on each other. The ratio estimator with its linearised variance (Cochran 1977).
    """
    total, num = sum(sizes), len(sizes)
    value = sum(sums) / total
    if num < 2:
        return Interval(value, -math.inf, math.inf)
    squares = sum((s - value * size) ** 2 for s, size in zip(sums, sizes, strict=True))
    half = Z * math.sqrt(squares * num / (num - 1)) / total
    return Interval(value, value - half, value + half)
