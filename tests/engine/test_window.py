"""The rolling window: what is forgotten, what is kept, and that positions stay consistent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.engine import tiny
from youtu_llm.errors import ResourceError
from youtu_llm.protocol import PAGE_SIZE

WINDOW_PAGES, KEPT_PAGES = 3, 1


@pytest.fixture(scope="module", params=["qwen2", "youtu"])
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, tiny.make(request.param, folder, attn_implementation="eager")


@torch.inference_mode()
def oracle_with_window(model: PreTrainedModel, ids: list[int], num_new: int) -> list[int]:
    """transformers with the same visible tokens: a mask, recomputed from scratch each step."""
    ids = list(ids)
    for _ in range(num_new):
        page = torch.arange(len(ids)) // PAGE_SIZE
        recent = page[None, :] > page[:, None] - (WINDOW_PAGES - KEPT_PAGES)
        visible = (recent | (page[None, :] < KEPT_PAGES)).tril()
        mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
        logits = model(torch.tensor([ids]), attention_mask=mask[None, None]).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[-num_new:]


@pytest.mark.parametrize("max_step_tokens", [512, 100])
def test_equals_recomputation_with_the_same_visible_tokens(
    case: tuple[Path, PreTrainedModel], max_step_tokens: int
) -> None:
    folder, oracle = case
    ids, num_new = tiny.prompt(1015), 16  # crosses into a page that drops another
    core = tiny.core(
        folder, window_tokens=WINDOW_PAGES * PAGE_SIZE, max_step_tokens=max_step_tokens
    )
    tokens, last = tiny.run_full(core, {"a": (ids, tiny.greedy(num_new))})["a"]
    assert tokens == oracle_with_window(oracle, ids, num_new)
    assert tokens != tiny.oracle_greedy(oracle, ids, num_new), "forgetting must show"
    assert last.usage is not None
    assert last.usage.dropped_tokens == 2 * PAGE_SIZE
    assert core.pool.num_used == 0


def test_long_conversation_keeps_a_constant_number_of_pages(
    case: tuple[Path, PreTrainedModel],
) -> None:
    """8k tokens under a 2k window, beyond the model's 4096 positions: rebased, and answering."""
    folder, _ = case
    core = tiny.core(folder, window_tokens=2048, prefix_cache=False)
    assert core.add("a", tiny.prompt(7900), tiny.greedy(300)) is None
    used, produced, dropped = [], 0, 0
    while core.has_work:
        for output in core.step():
            produced += len(output.token_ids)
            if output.usage:
                dropped = output.usage.dropped_tokens
        used.append(core.pool.num_used)
    assert produced == 300
    assert max(used) == 2048 // PAGE_SIZE
    assert dropped > 7900 + 300 - 2048 - PAGE_SIZE
    assert core.cache.num_bytes == 0


def test_the_next_turn_of_a_conversation_that_filled_the_pool(
    case: tuple[Path, PreTrainedModel],
) -> None:
    """Its cached pages fill the pool; only those in sight are taken again."""
    folder, oracle = case
    core = tiny.core(folder, window_tokens=WINDOW_PAGES * PAGE_SIZE, max_num_seqs=1)
    first = tiny.prompt(1100)
    answer = tiny.run(core, {"a": (first, tiny.greedy(8))})["a"]
    second = first + answer + tiny.prompt(40, seed=5)
    tokens, last = tiny.run_full(core, {"b": (second, tiny.greedy(8))})["b"]
    assert tokens == oracle_with_window(oracle, second, 8)
    assert last.usage is not None


def test_a_rebase_always_makes_room(case: tuple[Path, PreTrainedModel]) -> None:
    """Positions end soon behind a long system prompt: the answer goes on all the same."""
    folder, _ = case
    core = tiny.core(
        folder,
        window_tokens=4 * PAGE_SIZE,
        max_context_tokens=5 * PAGE_SIZE,
        pinned_prefix_ids=tuple(tiny.prompt(600, seed=9)),
    )
    ids = tiny.prompt(600, seed=9) + tiny.prompt(500)
    _, last = tiny.run_full(core, {"a": (ids, tiny.greedy(300))})["a"]
    assert last.usage is not None
    assert last.usage.completion_tokens == 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_context_tokens": 1024, "window_tokens": 1024}, "needs a context of 1280"),
        ({"max_context_tokens": 512}, "system prompt takes 600 tokens"),
        ({"kv_cache_max_page": 5}, "system prompt takes 600 tokens"),
    ],
    ids=str,
)
def test_a_system_prompt_that_leaves_no_room_is_refused(
    case: tuple[Path, PreTrainedModel], change: dict[str, int], message: str
) -> None:
    with pytest.raises(ResourceError, match=message):
        tiny.core(case[0], pinned_prefix_ids=tuple(tiny.prompt(600)), **change)


def test_pinned_prefix_stays(case: tuple[Path, PreTrainedModel]) -> None:
    folder, _ = case
    system = tiny.prompt(300, seed=9)  # two pages, the second begun
    core = tiny.core(folder, window_tokens=4 * PAGE_SIZE, pinned_prefix_ids=tuple(system))
    pinned = set(core.scheduler.pinned)
    assert core.pool.num_used == len(pinned) == 2
    assert core.add("a", system + tiny.prompt(1500), tiny.greedy(4)) is None
    seq = core.scheduler.waiting[0]
    assert seq.num_kept_pages == 2
    first_pages: list[int] = []
    while core.has_work:
        core.step()
        first_pages = seq.pages[:1] or first_pages
    assert first_pages[0] in pinned
    assert seq.num_cached == 300
    assert core.pool.num_used == 2


def test_preempted_under_a_window(case: tuple[Path, PreTrainedModel]) -> None:
    """What a token sees depends on its position alone, so a recomputation changes nothing."""
    folder, oracle = case
    prompts = {"a": tiny.prompt(1015, seed=1), "b": tiny.prompt(760, seed=2)}
    core = tiny.core(
        folder,
        window_tokens=WINDOW_PAGES * PAGE_SIZE,
        kv_cache_max_page=5,
        prefix_cache=False,
        max_step_tokens=1024,
    )
    got = tiny.run(core, {id: (ids, tiny.greedy(20)) for id, ids in prompts.items()})
    for id, ids in prompts.items():
        assert got[id] == oracle_with_window(oracle, ids, 20)
