from __future__ import annotations

import math
import statistics

import pytest

from youtu_llm.tools.evals import intervals


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # the table of Newcombe 1998 (Statistics in Medicine 17, 857-872), method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_proportions_interval(hits: int, count: int, low: float, high: float) -> None:
    got = intervals.share(hits, count)
    assert got.value == hits / count
    assert (round(got.low, 4), round(got.high, 4)) == (low, high)


def test_paired_proportions() -> None:
    """21 children before and after a treatment: an example of Fagerland, Lydersen and Laake 2014
    (Statistics in Medicine 33, 2850-2875)."""
    got = intervals.paired_difference(1, 7, 21)
    assert got.value == -6 / 21
    assert (round(got.low, 3), round(got.high, 3)) == (-0.508, -0.013)
    same = intervals.paired_difference(0, 0, 20)
    assert same.value == 0
    assert same.low < 0 < same.high, "20 questions without a difference prove little"


def test_a_mean_over_documents() -> None:
    """With one token each it is the usual mean; tokens that repeat each other add nothing."""
    values = [0.1, 0.4, 0.2, 0.9, 0.3]
    plain = intervals.mean(values, [1] * 5)
    half = intervals.Z * statistics.stdev(values) / math.sqrt(5)
    assert plain.value == pytest.approx(statistics.mean(values))
    assert plain.high - plain.value == pytest.approx(half)
    assert intervals.mean([7 * value for value in values], [7] * 5).high == pytest.approx(
        plain.high
    )
    assert intervals.mean([1.0, 6.0], [1, 3]).value == 7 / 4
    alone = intervals.mean([1.0], [4])
    assert alone.high == math.inf
    assert (str(alone), alone.percent()) == ("0.2500", "25.00")
