"""The engine without its process: add, abort, step."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence as Ids
from dataclasses import replace

import msgspec
import psutil
import torch

from youtu_llm.engine.kv_cache import KVCache
from youtu_llm.engine.memory import EnginePlan
from youtu_llm.engine.models.spec import Model
from youtu_llm.engine.page_pool import PagePool
from youtu_llm.engine.runner import Runner
from youtu_llm.engine.scheduler import Limits, Plan, Progress, Scheduler
from youtu_llm.engine.sequence import Sequence
from youtu_llm.protocol import (
    EngineConfig,
    Heartbeat,
    MemoryStats,
    Output,
    PageStats,
    Phase,
    SamplingParams,
    pages_for,
)

PIN_ID = ""  # no request has this id: those of clients are not empty


class Core:
    """Scheduler, pages and model together.

    Every request that `add` accepts gets outputs from `step` or `abort`; the last one has a
    finish_reason.
    """

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        config: EngineConfig,
        plan: EnginePlan,
        *,
        vocab_size: int,
        eos_token_ids: Ids[int] = (),
    ) -> None:
        self.plan = plan
        self.vocab_size = vocab_size
        limits = Limits(
            max_num_seqs=config.max_num_seqs,
            max_step_tokens=config.max_step_tokens,
            max_model_len=plan.max_model_len,
            window_pages=plan.window_pages,
            prefix_cache=config.prefix_cache,
        )
        self.pool = PagePool(plan.num_pages)
        self.scheduler = Scheduler(self.pool, limits, frozenset(eos_token_ids))
        self.cache = cache
        self.runner = Runner(model, cache)
        longest = min(plan.num_pages, pages_for(plan.max_model_len) + 1)
        self.runner.capture(max_num_seqs=config.max_num_seqs, max_pages=longest)
        self._cache_idle_s = config.cache_idle_s
        self._last_work_s = time.monotonic()

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(
        self, id: str, prompt_ids: Ids[int], params: SamplingParams, priority: int = 0
    ) -> Output | None:
        """Queue a request; returns a refusal if it cannot be served, else None."""
        if self.scheduler.knows(id):
            return _refusal(id, "invalid_request", f"the id {id!r} is in use")
        limit = self.plan.max_model_len
        if len(prompt_ids) >= limit and not self.plan.window_pages:
            return _refusal(
                id,
                "context_length_exceeded",
                f"the prompt has {len(prompt_ids)} tokens, at most {limit - 1} fit",
            )
        if not prompt_ids or not all(0 <= token < self.vocab_size for token in prompt_ids):
            return _refusal(id, "invalid_request", "the prompt is empty or holds unknown ids")
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(63))
        now = time.monotonic()
        self.scheduler.add(Sequence(id, prompt_ids, params, arrival_s=now, priority=priority))
        return None

    def abort(self, id: str) -> Output | None:
        """End a request; None if the id is unknown or has ended already."""
        seq = self.scheduler.abort(id)
        if seq is None:
            return None
        self.cache.trim(self.pool)
        return Output(id, finish_reason="abort", usage=seq.usage())

    def plan_step(self) -> Plan:
        return self.scheduler.plan()

    def run_step(self, plan: Plan) -> list[Output]:
        """Compute a plan. Running out of memory fails only the newest of its requests."""
        if not plan.chunks:
            raise RuntimeError(
                "sequences are waiting, but nothing can be scheduled: no free KV cache page"
            )
        self._last_work_s = time.monotonic()
        try:
            sampled = self.runner.run(plan)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return [self._fail_newest(plan, error)]
        for seq, length in plan.chunks.items():
            if seq.id == PIN_ID and length == seq.num_uncomputed:
                self.scheduler.pin_when_done(seq)
        failed = [self._fail_numerically(seq) for seq in list(sampled) if sampled[seq] < 0]
        for output in failed:
            plan.chunks = {seq: n for seq, n in plan.chunks.items() if seq.id != output.id}
        progress = self.scheduler.commit(plan, sampled)
        outputs = [*failed, *(_output(done) for done in progress)]
        if any(output.finish_reason for output in outputs):
            self.cache.trim(self.pool)
        return outputs

    def step(self) -> list[Output]:
        return self.run_step(self.plan_step())

    def pin(self, prompt_ids: Ids[int]) -> None:
        """Prefill a profile's system prompt in the next steps and pin its pages; the pages
        pinned before are released."""
        self.abort(PIN_ID)
        self.scheduler.unpin()
        pages = pages_for(len(prompt_ids))
        if not pages or not self.scheduler.limits.prefix_cache:
            return
        if pages > self.plan.pinned_pages:
            return  # not planned for: shared like any prefix, but evictable
        params = SamplingParams(max_new_tokens=0, seed=0)
        self.scheduler.add(Sequence(PIN_ID, prompt_ids, params, arrival_s=time.monotonic()))

    def idle(self) -> None:
        """Call about once a second while idle: frees cached prefixes after `cache_idle_s`."""
        if time.monotonic() - self._last_work_s > self._cache_idle_s and self.pool.num_cached:
            self.pool.evict_cached()
            self.cache.trim(self.pool)
            if self.cache.device.type == "cuda":
                torch.cuda.empty_cache()

    def page_stats(self) -> PageStats:
        pool = self.pool
        return PageStats(
            pool.num_used, pool.num_free, pool.num_pages, self.plan.limit_by, pool.num_cached
        )

    def memory_stats(self) -> MemoryStats:
        if self.cache.device.type == "cuda":
            used = torch.cuda.memory_reserved(self.cache.device)
        else:
            used = psutil.Process().memory_info().rss
        plan = self.plan
        return MemoryStats(plan.weights, self.cache.num_bytes, plan.workspace, used, plan.total)

    def heartbeat(self, phase: Phase, plan: Plan | None = None) -> Heartbeat:
        """The engine's state; `plan` is the step about to run."""
        prefilling = () if plan is None else plan.prefilling
        return Heartbeat(
            phase,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            step_tokens=0 if plan is None else plan.num_tokens,
            prefilling=prefilling,
            pages=self.page_stats(),
            memory=self.memory_stats(),
        )

    def _fail_numerically(self, seq: Sequence) -> Output:
        message = "the logits are not finite: the model's files may be damaged"
        return self._fail(seq, "engine_error", message)

    def _fail_newest(self, plan: Plan, error: BaseException) -> Output:
        seq = list(plan.chunks)[-1]
        output = self._fail(seq, "out_of_memory", f"out of memory for this request: {error}")
        self.pool.evict_cached()
        self.cache.trim(self.pool)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return output

    def _fail(self, seq: Sequence, code: str, message: str) -> Output:
        self.scheduler.abort(seq.id)
        return msgspec.structs.replace(_refusal(seq.id, code, message), usage=seq.usage())


def is_out_of_memory(error: BaseException) -> bool:
    """On Jetson, running out of memory can surface as an assertion about NVML."""
    text = str(error)
    return (
        isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        or "can't allocate memory" in text
        or "NVML_SUCCESS == r INTERNAL ASSERT FAILED" in text
    )


def _refusal(id: str, code: str, message: str) -> Output:
    return Output(id, finish_reason="error", error_code=code, error_message=message)


def _output(progress: Progress) -> Output:
    seq, token, reason = progress.seq, progress.token_id, progress.finish_reason
    token_ids = () if token is None else (token,)
    return Output(seq.id, token_ids, reason, usage=seq.usage() if reason else None)
