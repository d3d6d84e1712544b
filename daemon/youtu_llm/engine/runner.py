"""Runs a plan: storage, batch, model, sampler."""

from __future__ import annotations

import torch

from youtu_llm.engine import batch
from youtu_llm.engine.graphs import DecodeGraphs
from youtu_llm.engine.kv_cache import KVCache
from youtu_llm.engine.models.spec import Model
from youtu_llm.engine.sampler import Sampler, is_greedy
from youtu_llm.engine.scheduler import Plan
from youtu_llm.engine.sequence import Sequence


class Runner:
    def __init__(self, model: Model, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self.sampler = Sampler()
        self._graphs: DecodeGraphs | None = None

    def capture(self, *, max_num_seqs: int, max_pages: int) -> None:
        """Capture the decode steps if the backend can; a sequence has up to `max_pages`."""
        if self.model.ops.can_capture:
            torch.cuda.empty_cache()  # blocks that loading no longer uses
            self._graphs = DecodeGraphs(
                self.model, self.cache, max_num_seqs=max_num_seqs, max_pages=max_pages
            )

    @torch.inference_mode()
    def run(self, plan: Plan) -> dict[Sequence, int]:
        """One step. -> the next token of each sequence that caught up.

        May raise torch's out-of-memory error; no sequence has changed then, so the step can be
        run again with fewer sequences.
        """
        for seq in plan.chunks:
            self.cache.ensure(seq.pages)
        for source, target in plan.copies:
            self.cache.copy(source, target)
        if self._graphs and _is_decode(plan) and len(plan.chunks) <= self._graphs.max_rows:
            sequences = list(plan.chunks)
            if all(is_greedy(seq.params) for seq in sequences):
                return dict(zip(sequences, self._graphs.run_greedy(sequences), strict=True))
            logits, best = self._graphs.run(sequences)
            return dict(zip(sequences, self.sampler.sample(logits, sequences, best), strict=True))
        logits = self.model.forward(batch.build(plan, self.cache.device), self.cache)
        ready = [
            seq for seq, length in plan.chunks.items() if length == seq.num_uncomputed
        ]  # in the order of the logit rows
        if not ready:
            return {}
        return dict(zip(ready, self.sampler.sample(logits, ready), strict=True))


def _is_decode(plan: Plan) -> bool:
    return all(length == 1 == seq.num_uncomputed for seq, length in plan.chunks.items())
