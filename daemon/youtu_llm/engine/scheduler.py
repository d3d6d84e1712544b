"""What the next step computes. No torch.

There is no prefill mode and no decode mode: each sequence has tokens to compute, under one token
budget per step. Sequences with one token left (decodes) are first, then chunks of prompts in
order of arrival. When pages run out, the newest sequence is preempted: its pages are released and
it is recomputed later. Priority precedes arrival throughout, and a waiting sequence preempts a
running one of lower priority.

The rolling window forgets whole pages: a token in page `a` sees the kept pages at the start and
the newest ones up to `a`, `window_pages` together. What a token sees depends on its position
alone, never on chunking or preemption. Positions stay absolute. The first page is always kept
(attention sinks, Xiao et al. 2023), and so is the pinned system prompt. A sequence that reaches
the model's last position is rebased: its visible tokens move to the front and are recomputed.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from youtu_llm.engine.page_pool import OutOfPages, PagePool, Prefix, common_prefix_len
from youtu_llm.engine.sequence import Sequence
from youtu_llm.protocol import PAGE_SIZE, FinishReason, pages_for


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a step and of a sequence."""

    max_num_seqs: int
    max_step_tokens: int
    max_model_len: int
    window_pages: int = 0  # 0: no window
    prefix_cache: bool = True


@dataclass(slots=True)
class Plan:
    """One step: how many tokens of each sequence to compute."""

    chunks: dict[Sequence, int] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return sum(self.chunks.values())

    @property
    def prefilling(self) -> tuple[str, ...]:
        """Ids of the requests in their prompt."""
        return tuple(seq.id for seq in self.chunks if not seq.num_generated)

    @property
    def copies(self) -> list[tuple[int, int]]:
        """(from, to) pages to copy before the step."""
        return [
            (seq.copy_from, seq.page_of(seq.num_computed))
            for seq in self.chunks
            if seq.copy_from is not None
        ]


@dataclass(frozen=True, slots=True)
class Progress:
    """The result of a committed step for one sequence."""

    seq: Sequence
    token_id: int | None
    finish_reason: FinishReason | None


class Scheduler:
    def __init__(
        self, pool: PagePool, limits: Limits, eos_token_ids: frozenset[int] = frozenset()
    ) -> None:
        self.pool = pool
        self.limits = limits
        self.eos_token_ids = eos_token_ids
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self.pinned: list[int] = []  # pages
        self.pinned_ids: tuple[int, ...] = ()
        self.num_preempted = 0
        self._sequences: dict[str, Sequence] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def knows(self, id: str) -> bool:
        return id in self._sequences

    def add(self, seq: Sequence) -> None:
        if seq.id in self._sequences:
            raise ValueError(f"request id {seq.id!r} is in use")
        common = common_prefix_len(self.pinned_ids, tuple(seq.token_ids))
        seq.num_kept_pages = max(1, min(pages_for(common), self.limits.window_pages - 1))
        self._sequences[seq.id] = seq
        self._enqueue(seq, ahead_of_equals=False)

    def abort(self, id: str) -> Sequence | None:
        """End a sequence now; its pages are free when this returns."""
        seq = self._sequences.get(id)
        if seq is not None:
            self._finish(seq)
        return seq

    # --- plan

    def plan(self) -> Plan:
        plan = Plan()
        for seq in sorted(self.running, key=lambda s: (s.num_uncomputed > 1, -s.priority)):
            if plan.num_tokens >= self.limits.max_step_tokens:
                break
            if seq in self.running:  # an earlier one may have preempted it
                self._schedule(seq, plan)
        while self.waiting and plan.num_tokens < self.limits.max_step_tokens:
            first = self.waiting[0]
            if len(self.running) < self.limits.max_num_seqs and self._admit(first):
                self._schedule(first, plan)
                continue
            last = self._victim()
            if last is None or last.priority >= first.priority:
                break
            self._preempt(last, plan)  # queued behind `first`; its pages stay cached
        return plan

    def _victim(self) -> Sequence | None:
        """Preemption victim: newest of the lowest running priority."""
        return min(reversed(self.running), key=lambda s: s.priority, default=None)

    def _enqueue(self, seq: Sequence, *, ahead_of_equals: bool) -> None:
        """Insert into the queue, ordered by priority, then by arrival."""
        at = sum(
            other.priority > seq.priority
            or (other.priority == seq.priority and not ahead_of_equals)
            for other in self.waiting
        )
        self.waiting.insert(at, seq)

    def _schedule(self, seq: Sequence, plan: Plan) -> None:
        """Give `seq` its share of the step, preempting newer sequences for pages."""
        self._forget_old_pages(seq)
        length = min(seq.num_uncomputed, self.limits.max_step_tokens - plan.num_tokens)
        if self.limits.window_pages:
            # Rows of one chunk see the same pages: once pages drop, a chunk ends with its page.
            whole = self.limits.window_pages * PAGE_SIZE - seq.num_computed
            page_rest = PAGE_SIZE - seq.num_computed % PAGE_SIZE
            length = min(length, max(whole, page_rest))
            length = min(length, self.limits.max_model_len - seq.num_computed)
        needed = pages_for(seq.num_computed + length) - seq.num_dropped_pages
        while len(seq.pages) < needed:
            try:
                seq.pages.append(self.pool.allocate())
            except OutOfPages:
                last = self._victim()
                assert last is not None  # `seq` is running
                self._preempt(last, plan)
                if last is seq:
                    return
        plan.chunks[seq] = length

    def _forget_old_pages(self, seq: Sequence) -> None:
        window = self.limits.window_pages
        if not window:
            return
        if seq.num_computed >= self.limits.max_model_len:
            self._rebase(seq)
        while seq.num_dropped_pages < self._pages_to_drop(seq.num_computed):
            self.pool.release(seq.pages.pop(seq.num_kept_pages))
            seq.num_dropped_pages += 1
        forgotten = seq.num_rebased + seq.num_dropped_pages * PAGE_SIZE
        seq.num_forgotten = max(seq.num_forgotten, forgotten)

    def _pages_to_drop(self, position: int) -> int:
        """How many pages a token at `position` no longer sees."""
        window = self.limits.window_pages
        return max(0, position // PAGE_SIZE + 1 - window) if window else 0

    def _rebase(self, seq: Sequence) -> None:
        """Start again from the kept pages and the newest half of the window.

        The memory plan leaves at least two pages between the kept ones and the last position, so
        this always makes room.
        """
        kept = seq.num_kept_pages * PAGE_SIZE
        tail = max(1, (self.limits.window_pages - seq.num_kept_pages) // 2) * PAGE_SIZE
        cut = seq.num_computed - min(tail, (self.limits.max_model_len - kept) // 2)
        self._give_back_pages(seq)
        del seq.token_ids[kept:cut]
        seq.num_rebased += cut - kept

    def _admit(self, seq: Sequence) -> bool:
        prefix = self.pool.find(seq.token_ids) if self.limits.prefix_cache else Prefix()
        dropped = self._pages_to_drop(prefix.num_tokens)  # cached, but outside the window
        kept = seq.num_kept_pages
        visible = prefix.pages[:kept] + prefix.pages[kept + dropped :]
        taken = [*visible, *([prefix.partial[0]] if prefix.partial else [])]
        taken_free = sum(self.pool.references(page) == 0 for page in taken)
        total = pages_for(len(seq.token_ids))
        if self.limits.window_pages:
            total = min(total, self.limits.window_pages)
        fresh = total - len(visible)
        if fresh + taken_free > self.pool.num_free:
            return False
        self.waiting.popleft()
        self.running.append(seq)
        for page in taken:
            self.pool.share(page)
        seq.pages = visible
        seq.num_dropped_pages = dropped
        seq.page_keys = list(prefix.keys)
        seq.num_computed = len(prefix.pages) * PAGE_SIZE
        if prefix.partial:
            seq.copy_from, length = prefix.partial
            seq.pages.append(self.pool.allocate())
            seq.num_computed += length
        if seq.started_s is None:
            seq.started_s = time.monotonic()
            seq.num_cached = seq.num_computed
        return True

    def _preempt(self, seq: Sequence, plan: Plan) -> None:
        plan.chunks.pop(seq, None)
        self.running.remove(seq)
        self._give_back_pages(seq)
        self._enqueue(seq, ahead_of_equals=True)
        self.num_preempted += 1

    # --- commit

    def commit(self, plan: Plan, sampled: dict[Sequence, int]) -> list[Progress]:
        """Record a computed step. `sampled` has a token for each sequence that caught up."""
        progress = []
        for seq, length in plan.chunks.items():
            self._release_copy(seq)
            seq.num_computed += length
            self._name_full_pages(seq)
            if seq.num_uncomputed:
                continue
            progress.append(self._append(seq, sampled[seq]))
        return progress

    def _release_copy(self, seq: Sequence) -> bool:
        if seq.copy_from is None:
            return False
        self.pool.release(seq.copy_from)
        seq.copy_from = None
        return True

    def _append(self, seq: Sequence, token_id: int) -> Progress:
        params = seq.params
        reason: FinishReason | None = None
        emitted: int | None = token_id
        is_eos = token_id in self.eos_token_ids and not params.ignore_eos
        if params.max_new_tokens == 0:
            emitted, reason = None, "length"
        elif is_eos or token_id in params.stop_token_ids:
            emitted, reason = None, "stop"
        else:
            seq.token_ids.append(token_id)
            seq.num_generated += 1
            full = len(seq.token_ids) >= self.limits.max_model_len and not self.limits.window_pages
            if seq.num_generated >= params.max_new_tokens or full:
                reason = "length"
        if reason is not None:
            self._finish(seq)
        return Progress(seq, emitted, reason)

    def _name_full_pages(self, seq: Sequence) -> None:
        while (len(seq.page_keys) + 1) * PAGE_SIZE <= seq.num_computed:
            start = len(seq.page_keys) * PAGE_SIZE
            tokens = seq.token_ids[start : start + PAGE_SIZE]
            parent = seq.page_keys[-1] if seq.page_keys else self.pool.root
            seq.page_keys.append(self._describe(seq.page_of(start), parent, tokens))

    def _describe(self, page: int, parent: bytes, tokens: list[int]) -> bytes:
        if not self.limits.prefix_cache:
            return b""
        return self.pool.describe(page, parent, tokens) or b""

    def _finish(self, seq: Sequence) -> None:
        del self._sequences[seq.id]
        if seq in self.running:
            self.running.remove(seq)
        else:
            self.waiting.remove(seq)
        self._give_back_pages(seq)

    def _give_back_pages(self, seq: Sequence) -> None:
        """Release all pages, last first: prefixes outlive what follows them."""
        start = len(seq.page_keys) * PAGE_SIZE
        copy_is_pending = self._release_copy(seq)
        if start < seq.num_computed and not copy_is_pending:
            parent = seq.page_keys[-1] if seq.page_keys else self.pool.root
            tail = seq.token_ids[start : seq.num_computed]
            self._describe(seq.page_of(start), parent, tail)
        while seq.pages:
            self.pool.release(seq.pages.pop())
        seq.page_keys = []
        seq.num_computed = 0
        seq.num_dropped_pages = 0

    # --- pins

    def pin_when_done(self, seq: Sequence) -> None:
        """Pin the pages of a sequence that the current step completes."""
        self.pinned_ids = tuple(seq.token_ids)
        for page in seq.pages:
            self.pool.share(page)
            self.pinned.append(page)

    def unpin(self) -> None:
        for page in self.pinned:
            self.pool.release(page)
        self.pinned, self.pinned_ids = [], ()
