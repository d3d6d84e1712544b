"""Sampling: exact where it is exact, and the right distribution where it is not."""

from __future__ import annotations

import pytest
import torch

from youtu_llm.engine.sampler import NOT_A_TOKEN, Sampler
from youtu_llm.engine.sequence import Sequence
from youtu_llm.protocol import SamplingParams

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])


def draws(count: int, **params: float | int) -> torch.Tensor:
    """How often each token is drawn, over positions of one seeded sequence."""
    seq = Sequence("a", [], SamplingParams(seed=11, **params), arrival_s=0.0)  # type: ignore[arg-type]
    sampler, counts = Sampler(), torch.zeros(len(LOGITS))
    for _ in range(count):
        counts[sampler.sample(LOGITS[None].clone(), [seq])[0]] += 1
        seq.num_generated += 1
    return counts / count


def test_greedy_takes_the_largest() -> None:
    assert draws(3).tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"temperature": 1.0}, [0, 1, 2, 3, 4]),
        ({"temperature": 0.7}, [0, 1, 2, 3, 4]),
        ({"temperature": 1.0, "top_k": 2}, [0, 1]),
        ({"temperature": 1.0, "top_p": 0.8}, [0, 1]),
        ({"temperature": 1.0, "top_p": 0.1}, [0]),
        ({"temperature": 1.0, "min_p": 0.1}, [0, 1, 2]),
        ({"temperature": 2.0, "top_k": 4, "top_p": 0.9}, [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_draws_follow_the_distribution(params: dict[str, float], kept: list[int]) -> None:
    expected = torch.zeros(len(LOGITS))
    expected[kept] = (LOGITS[kept] / params["temperature"]).softmax(-1)
    got = draws(4000, **params)
    assert got[expected == 0].sum() == 0
    # 4000 seeded draws: standard error below 0.008.
    assert (got - expected).abs().max() < 0.03


def say(seq: Sequence, token: int) -> None:
    seq.token_ids.append(token)
    seq.num_generated += 1


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    seq = Sequence("a", [0], SamplingParams(repetition_penalty=2.5), arrival_s=0.0)
    sampler = Sampler()
    assert sampler.sample(LOGITS[None].clone(), [seq]) == [1]  # 2.0 / 2.5 < 1.0
    say(seq, 1)
    assert sampler.sample(LOGITS[None].clone(), [seq]) == [0]  # 0.8 beats 0.4 and 0.0
    low = -LOGITS[None].clone()  # penalised negatives move away from zero
    say(seq, 4)
    assert sampler.sample(low, [seq]) == [3]


def test_the_least_temperature_is_greedy() -> None:
    assert draws(5, temperature=1e-38).tolist() == [1, 0, 0, 0, 0]


def test_what_is_no_number_is_no_token() -> None:
    rows = torch.stack([LOGITS, LOGITS * float("nan")])
    seqs = [Sequence(id, [], SamplingParams(), arrival_s=0.0) for id in "ab"]
    assert Sampler().sample(rows, seqs) == [0, NOT_A_TOKEN]


def test_a_seed_decides_alone() -> None:
    """The same in any batch, different between seeds and positions."""
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))

    def one(seed: int, position: int = 0) -> Sequence:
        seq = Sequence("a", [], SamplingParams(temperature=1.0, seed=seed), arrival_s=0.0)
        seq.num_generated = position
        return seq

    together = Sampler().sample(rows.clone(), [one(1), one(2), one(3)])
    alone = [Sampler().sample(rows[i : i + 1].clone(), [one(i + 1)])[0] for i in range(3)]
    assert together == alone
    by_position = {Sampler().sample(rows[:1].clone(), [one(1, p)])[0] for p in range(30)}
    assert len(by_position) > 5
