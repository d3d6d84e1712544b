"""Runs a plan: storage, batch, model, sampler."""

from __future__ import annotations

import torch

from youtu_llm.engine import batch
from youtu_llm.engine.kv_cache import KVCache
from youtu_llm.engine.models.spec import Model
from youtu_llm.engine.sampler import Sampler
from youtu_llm.engine.scheduler import Plan
from youtu_llm.engine.sequence import Sequence


class Runner:
    def __init__(self, model: Model, cache: KVCache) -> None:
        self.model = model
        self.cache = cache
        self.sampler = Sampler()

    @torch.inference_mode()
    def run(self, plan: Plan) -> dict[Sequence, int]:
        """One step. -> the next token of each sequence that caught up.

        May raise torch's out-of-memory error; nothing is booked then, so the step can be tried
        again with fewer sequences.
        """
        for seq in plan.chunks:
            self.cache.ensure(seq.pages)
        for source, target in plan.copies:
            self.cache.copy(source, target)
        logits = self.model.forward(batch.build(plan, self.cache.device), self.cache)
        ready = [
            seq for seq, length in plan.chunks.items() if length == seq.num_uncomputed
        ]  # in the order of the logit rows
        if not ready:
            return {}
        return dict(zip(ready, self.sampler.sample(logits, ready), strict=True))
