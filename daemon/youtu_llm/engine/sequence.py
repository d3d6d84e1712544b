"""One request inside the engine: its tokens, how far they are computed, its pages."""

from __future__ import annotations

from collections.abc import Iterable

from youtu_llm.protocol import PAGE_SIZE, SamplingParams, Usage


class Sequence:
    """The tokens of a request, and how many of them the cache holds.

    The first `num_computed` of `token_ids` have cache entries; the next steps compute the
    rest: a prompt, one sampled token or a recomputation after preemption.
    """

    def __init__(
        self,
        id: str,
        prompt_ids: Iterable[int],
        params: SamplingParams,
        *,
        arrival_s: float,
        priority: int = 0,
    ) -> None:
        self.id = id
        self.priority = priority
        self.params = params
        self.token_ids = list(prompt_ids)
        self.num_prompt = len(self.token_ids)
        self.num_generated = 0
        self.num_computed = 0
        self.num_cached = 0  # of the prompt, found in shared pages when it was first admitted
        self.pages: list[int] = []  # the visible ones, in order
        self.page_keys: list[bytes] = []  # names of all full pages so far, dropped ones too
        self.num_kept_pages = 1  # at the start: never dropped by the rolling window
        self.num_dropped_pages = 0  # after the kept ones: no longer visible
        self.num_rebased = 0  # tokens that a rebase took out of token_ids
        self.num_forgotten = 0  # tokens that fell out of the window, in all
        self.copy_from: int | None = None  # a shared page whose beginning its own last page copies
        self.arrival_s = arrival_s
        self.started_s: float | None = None

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_visible(self) -> int:
        """Computed tokens that are in the page table."""
        return self.num_computed - self.num_dropped_pages * PAGE_SIZE

    def page_of(self, position: int) -> int:
        """The page of a token in the visible tail."""
        return self.pages[position // PAGE_SIZE - self.num_dropped_pages]

    def usage(self) -> Usage:
        started = self.arrival_s if self.started_s is None else self.started_s
        return Usage(
            prompt_tokens=self.num_prompt,
            cached_tokens=self.num_cached,
            completion_tokens=self.num_generated,
            dropped_tokens=self.num_forgotten,
            queue_s=started - self.arrival_s,
        )
