"""Pages and scheduler under any sequence of events: nothing is lost, nobody is forgotten."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from youtu_llm.engine.page_pool import PagePool
from youtu_llm.engine.scheduler import Limits, Scheduler
from youtu_llm.engine.sequence import Sequence
from youtu_llm.protocol import PAGE_SIZE, SamplingParams, pages_for

NUM_PAGES = 12


class SchedulerMachine(RuleBasedStateMachine):
    """Admit, grow, cancel, preempt, window and share at random, checking the books after each."""

    @initialize(
        window_pages=st.sampled_from([0, 3, 5]),
        max_num_seqs=st.integers(1, 5),
        max_step_tokens=st.sampled_from([16, 100, 512, 3000]),
        pinned=st.sampled_from([0, 40, 300]),
    )
    def start(
        self, window_pages: int, max_num_seqs: int, max_step_tokens: int, pinned: int
    ) -> None:
        self.pool = PagePool(NUM_PAGES)
        spare = NUM_PAGES - pages_for(pinned) - 1
        self.limits = Limits(
            max_num_seqs, max_step_tokens, 2048 if window_pages else spare * PAGE_SIZE, window_pages
        )
        self.scheduler = Scheduler(self.pool, self.limits, frozenset({0}))
        self.live: dict[str, Sequence] = {}
        self.spoken: list[list[int]] = []  # the last ended sequences
        self.count = 0
        if pinned:
            self._pin(pinned)

    def _pin(self, length: int) -> None:
        seq = Sequence("pin", [7] * length, SamplingParams(max_new_tokens=0), arrival_s=0.0)
        self.scheduler.add(seq)
        while self.scheduler.has_work:
            plan = self.scheduler.plan()
            if plan.chunks[seq] == seq.num_uncomputed:
                self.scheduler.pin_when_done(seq)
            self.scheduler.commit(plan, {seq: 1})

    @rule(
        length=st.integers(1, 6 * PAGE_SIZE),
        family=st.integers(0, 2),
        max_new=st.sampled_from([0, 1, 30, 260]),
        priority=st.integers(-1, 1),
    )
    def admit(self, length: int, family: int, max_new: int, priority: int) -> None:
        """Prompts of one family share their beginning; family 2 begins with the pinned text."""
        ids = [7] * length if family == 2 else [family + 1] * length
        ids[-1] = 20 + self.count % 50
        self._add(ids, max_new, priority)

    def _add(self, ids: list[int], max_new: int, priority: int = 0) -> None:
        if not self.limits.window_pages:
            ids = ids[-self.limits.max_model_len + 1 :]
        params = SamplingParams(max_new_tokens=max_new)
        seq = Sequence(str(self.count), ids, params, arrival_s=0.0, priority=priority)
        self.count += 1
        self.scheduler.add(seq)
        self.live[seq.id] = seq

    @precondition(lambda self: self.spoken)
    @rule(data=st.data(), more=st.integers(1, PAGE_SIZE), max_new=st.sampled_from([1, 300]))
    def next_turn(self, data: st.DataObject, more: int, max_new: int) -> None:
        """A conversation goes on: its prompt is all that was said before, and more."""
        said = data.draw(st.sampled_from(self.spoken))
        self._add(said + [9] * more, max_new)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.live)))
        seq = self.scheduler.abort(id)
        assert seq is self.live.pop(id)
        assert seq.pages == []
        assert self.scheduler.abort(id) is None

    @precondition(lambda self: self.live)
    @rule(steps=st.integers(1, 40), eos=st.integers(0, 400))
    def step(self, steps: int, eos: int) -> None:
        for _ in range(steps):
            if not self.scheduler.has_work:
                break
            plan = self.scheduler.plan()
            assert plan.chunks, "there is work, so a step must do some"
            self._check_plan(plan.chunks)
            ready = [seq for seq, n in plan.chunks.items() if n == seq.num_uncomputed]
            token = 0 if eos == 0 else 30 + eos % 100
            for progress in self.scheduler.commit(plan, dict.fromkeys(ready, token)):
                if progress.finish_reason:
                    del self.live[progress.seq.id]
                    self.spoken = [*self.spoken[-3:], progress.seq.token_ids]
                    assert progress.seq.pages == []

    def _check_plan(self, chunks: dict[Sequence, int]) -> None:
        assert sum(chunks.values()) <= self.limits.max_step_tokens
        written: set[int] = set()
        for seq, length in chunks.items():
            assert 0 < length <= seq.num_uncomputed
            assert seq.num_computed + length <= self.limits.max_model_len
            if self.limits.window_pages:
                assert len(seq.pages) <= self.limits.window_pages
            start, end = seq.num_computed, seq.num_computed + length
            for position in {start, *range(pages_for(start) * PAGE_SIZE, end, PAGE_SIZE)}:
                page = seq.page_of(position)
                assert page not in written, "two sequences write one page"
                written.add(page)
                assert self.pool.references(page) == 1, "a shared page is written"

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        held: dict[int, int] = {}
        for seq in self.scheduler.running:
            copied = [seq.copy_from] if seq.copy_from is not None else []
            for page in [*seq.pages, *copied]:
                held[page] = held.get(page, 0) + 1
        for page in self.scheduler.pinned:
            held[page] = held.get(page, 0) + 1
        for page in range(NUM_PAGES):
            assert self.pool.references(page) == held.get(page, 0), f"page {page}"
        assert self.pool.num_used + self.pool.num_free == NUM_PAGES
        queued = [seq.id for seq in (*self.scheduler.running, *self.scheduler.waiting)]
        assert sorted(queued) == sorted(self.live)

    def teardown(self) -> None:
        """Everybody who is left finishes: no starvation, no leak."""
        if not hasattr(self, "pool"):
            return
        for _ in range(20_000):
            if not self.scheduler.has_work:
                break
            plan = self.scheduler.plan()
            ready = [seq for seq, n in plan.chunks.items() if n == seq.num_uncomputed]
            self.scheduler.commit(plan, dict.fromkeys(ready, 5))
        assert not self.scheduler.has_work
        assert self.pool.num_used == len(self.scheduler.pinned)


TestScheduler = SchedulerMachine.TestCase


def test_decodes_go_before_prompts() -> None:
    pool = PagePool(16)
    scheduler = Scheduler(pool, Limits(4, 64, 2048))
    scheduler.add(Sequence("a", [1] * 10, SamplingParams(), arrival_s=0.0))
    plan = scheduler.plan()
    scheduler.commit(plan, dict.fromkeys(plan.chunks, 5))
    scheduler.add(Sequence("b", [2] * 500, SamplingParams(), arrival_s=0.0))
    plan = scheduler.plan()
    assert [(seq.id, n) for seq, n in plan.chunks.items()] == [("a", 1), ("b", 63)]


def test_least_recently_used_prefix_goes_first() -> None:
    pool = PagePool(3, seed=b"seed")
    for number in range(3):
        page = pool.allocate()
        pool.describe(page, pool.root, [number] * PAGE_SIZE)
        pool.release(page)
    pool.share(pool.find([0] * (PAGE_SIZE + 1)).pages[0])  # used again, so newest
    pool.release(0)
    pool.allocate()
    found = [bool(pool.find([number] * (PAGE_SIZE + 1)).pages) for number in range(3)]
    assert found == [True, False, True]
