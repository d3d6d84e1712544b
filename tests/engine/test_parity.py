"""Every architecture equals transformers: whole, in chunks, shared, batched, preempted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.engine import tiny
from youtu_llm.engine import batch
from youtu_llm.engine.core import Core
from youtu_llm.engine.models.architectures import ARCHITECTURES
from youtu_llm.engine.sequence import Sequence

PROMPT = tiny.prompt(300)
NUM_NEW = 32


@pytest.fixture(scope="module", params=list(tiny.ARCHITECTURES))
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel, list[int]]:
    folder = tmp_path_factory.mktemp(request.param)
    oracle = tiny.make(request.param, folder)
    return folder, oracle, tiny.oracle_greedy(oracle, PROMPT, NUM_NEW)


def logits_of(core: Core, ids: list[int], chunk: int) -> torch.Tensor:
    """Logits of every position, computed `chunk` tokens at a time. -> [len(ids), vocab]"""
    core.scheduler.add(Sequence("logits", ids, tiny.greedy(0), arrival_s=0.0))
    rows = []
    with torch.inference_mode():
        while core.has_work:
            plan = core.scheduler.plan()
            seq = next(iter(plan.chunks))
            plan.chunks[seq] = min(chunk, plan.chunks[seq])
            core.cache.ensure(seq.pages)
            step = batch.build(plan, core.cache.device)
            everything = torch.arange(step.num_tokens)
            rows.append(core.runner.model.forward(_with_rows(step, everything), core.cache))
            core.scheduler.commit(plan, {seq: 0})
    return torch.cat(rows)


def _with_rows(step: Any, rows: torch.Tensor) -> Any:
    import dataclasses

    return dataclasses.replace(step, logit_rows=rows)


def test_every_architecture_is_compared() -> None:
    compared = {type(make()).__name__ for make in tiny.ARCHITECTURES.values()}
    assert compared == ARCHITECTURES.keys()


@pytest.mark.parametrize("chunk", [512, 37])
def test_logits(case: tuple[Path, PreTrainedModel, list[int]], chunk: int) -> None:
    folder, oracle, _ = case
    with torch.inference_mode():
        expected = oracle(torch.tensor([PROMPT])).logits[0]  # [300, vocab]
    got = logits_of(tiny.core(folder), PROMPT, chunk)
    assert expected.std() > 0.1, "the model must be able to tell right from wrong"
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("max_step_tokens", [512, 64])
def test_greedy_steps(case: tuple[Path, PreTrainedModel, list[int]], max_step_tokens: int) -> None:
    folder, _, expected = case
    core = tiny.core(folder, max_step_tokens=max_step_tokens)
    assert tiny.run(core, {"a": (PROMPT, tiny.greedy(NUM_NEW))})["a"] == expected


def test_shared_prefix(case: tuple[Path, PreTrainedModel, list[int]]) -> None:
    folder, oracle, expected = case
    core = tiny.core(folder)
    request = {"a": (PROMPT, tiny.greedy(NUM_NEW))}
    tiny.run(core, request)
    tokens, last = tiny.run_full(core, request)["a"]
    assert tokens == expected
    assert last.usage is not None
    assert last.usage.cached_tokens == len(PROMPT) - 1

    # Diverges inside the second page: one page is shared, the next begun as a copy.
    other = PROMPT[:280] + tiny.prompt(50, seed=3)
    tokens, last = tiny.run_full(core, {"b": (other, tiny.greedy(NUM_NEW))})["b"]
    assert tokens == tiny.oracle_greedy(oracle, other, NUM_NEW)
    assert last.usage is not None
    assert last.usage.cached_tokens == 280
    assert tiny.run(core, request)["a"] == expected


def test_batch(case: tuple[Path, PreTrainedModel, list[int]]) -> None:
    folder, oracle, _ = case
    prompts = {str(n): tiny.prompt(n, seed=n) for n in (1, 5, 255, 256, 257, 300)}
    together = tiny.run(
        tiny.core(folder, max_step_tokens=200),
        {id: (ids, tiny.greedy(NUM_NEW)) for id, ids in prompts.items()},
    )
    for id, ids in prompts.items():
        assert together[id] == tiny.oracle_greedy(oracle, ids, NUM_NEW), f"prompt of {id}"


def test_preempted(case: tuple[Path, PreTrainedModel, list[int]]) -> None:
    """Pages for one of the two: the newer one is preempted, and neither notices."""
    folder, oracle, _ = case
    prompts = {"a": tiny.prompt(250, seed=1), "b": tiny.prompt(240, seed=2)}
    core = tiny.core(folder, kv_cache_max_page=3, prefix_cache=False)
    got = tiny.run(core, {id: (ids, tiny.greedy(NUM_NEW)) for id, ids in prompts.items()})
    assert core.scheduler.num_preempted > 0
    assert core.pool.num_used == 0
    for id, ids in prompts.items():
        assert got[id] == tiny.oracle_greedy(oracle, ids, NUM_NEW)
