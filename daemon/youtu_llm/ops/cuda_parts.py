"""How attention on CUDA divides a step: sequences of few new tokens together, the others alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from youtu_llm.ops import library
from youtu_llm.ops.api import Batch, CacheStorage

# Above this many new tokens the context is gathered for PyTorch's attention ...
MAX_SPLIT_ROWS = 16
# ... unless that would take too much memory: MLA expands the entries 14 times.
MAX_GATHERED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring sequences of a step that attention treats alike."""

    rows: slice
    batch: Batch
    step: library.Step
    gathered: bool


def divide(
    batch: Batch, cache: CacheStorage, step_of: Callable[[Batch, CacheStorage], library.Step]
) -> list[Part]:
    """The parts of a step, in order; gathered ones are of one sequence each."""
    entry_bytes = cache.spec.width * cache.dtype.itemsize

    def gathered(s: int) -> bool:
        few = batch.query_lens[s] <= MAX_SPLIT_ROWS
        return not few and batch.context_lens[s] * entry_bytes <= MAX_GATHERED_BYTES

    parts, first, row = [], 0, 0
    for s in range(batch.num_seqs):
        alone = gathered(s)
        if s + 1 < batch.num_seqs and not alone and not gathered(s + 1):
            continue
        num_rows = sum(batch.query_lens[first : s + 1])
        rows = slice(row, row + num_rows)
        part = batch if num_rows == batch.num_tokens else _sub_batch(batch, first, s + 1, rows)
        parts.append(Part(rows, part, step_of(part, cache), alone))
        first, row = s + 1, row + num_rows
    return parts


def _sub_batch(batch: Batch, first: int, last: int, rows: slice) -> Batch:
    return replace(
        batch,
        token_ids=batch.token_ids[rows],
        positions=batch.positions[rows],
        slots=batch.slots[rows],
        query_start=batch.query_start[first : last + 1] - rows.start,
        context_len=batch.context_len[first:last],
        page_table=batch.page_table[first:last],
        query_lens=batch.query_lens[first:last],
        context_lens=batch.context_lens[first:last],
        logit_rows=None,
    )
