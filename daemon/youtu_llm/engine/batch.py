"""A step's plan as the tensors that operations read."""

from __future__ import annotations

import torch

from youtu_llm.engine.scheduler import Plan
from youtu_llm.ops.api import PAGE_SIZE, Batch


def build(plan: Plan, device: torch.device) -> Batch:
    """The chunks' tokens in the plan's order; a logit row for each sequence that catches up."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    query_start = [0]
    context_lens: list[int] = []
    logit_rows: list[int] = []
    tables: list[list[int]] = []
    for seq, length in plan.chunks.items():
        start, end = seq.num_computed, seq.num_computed + length
        token_ids += seq.token_ids[start:end]
        positions += range(start, end)
        for first in range(start - start % PAGE_SIZE, end, PAGE_SIZE):
            slot = (seq.page_of(first)) * PAGE_SIZE - first
            slots += range(slot + max(first, start), slot + min(first + PAGE_SIZE, end))
        query_start.append(len(token_ids))
        context_lens.append(seq.num_visible + length)
        tables.append(seq.pages)
        if end == len(seq.token_ids):
            logit_rows.append(len(token_ids) - 1)

    width = max(len(table) for table in tables)
    page_table = [table + [0] * (width - len(table)) for table in tables]
    return Batch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.tensor(slots, device=device),
        query_start=torch.tensor(query_start, dtype=torch.int32, device=device),
        context_len=torch.tensor(context_lens, dtype=torch.int32, device=device),
        page_table=torch.tensor(page_table, dtype=torch.int32, device=device),
        query_lens=tuple(plan.chunks.values()),
        context_lens=tuple(context_lens),
        logit_rows=torch.tensor(logit_rows, dtype=torch.int64, device=device),
    )
