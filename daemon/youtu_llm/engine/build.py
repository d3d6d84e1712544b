"""From a configuration to a running engine: the only place that composes one."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from youtu_llm.engine import memory
from youtu_llm.engine.backend import Backend, choose
from youtu_llm.engine.checkpoint import Checkpoint
from youtu_llm.engine.core import Core
from youtu_llm.engine.kv_cache import KVCache
from youtu_llm.engine.models import registry, rope
from youtu_llm.engine.models.spec import Model
from youtu_llm.engine.weights import Weights
from youtu_llm.modelfiles import eos_token_ids
from youtu_llm.ops.api import Ops
from youtu_llm.protocol import PAGE_SIZE, EngineConfig, Heartbeat, Hello

log = logging.getLogger("youtu.engine")


def build(
    config: EngineConfig,
    *,
    backend: Backend | None = None,
    on_progress: Callable[[Heartbeat], None] = lambda heartbeat: None,
) -> tuple[Core, Hello]:
    """The engine, loaded and with its pinned prefix computed, and its Hello to the service.

    `backend` is chosen from `config` unless given. `on_progress` gets a heartbeat for each
    tensor and each step. `Hello.model_digest` is set by the worker, which checks the files. Raises
    ModelError for a directory that cannot be served, ResourceError where it does not fit.
    """
    started = time.monotonic()
    on_progress(Heartbeat("loading"))
    checkpoint = Checkpoint(Path(config.model_dir))
    kind = registry.find(checkpoint.config)
    plan_rope = functools.partial(
        rope.plan, checkpoint.config, kind.extension, long_context=config.long_context
    )
    rope_plan = plan_rope(max_tokens=config.max_context_tokens)
    backend = backend or choose(config)
    ops = backend.ops
    if ops.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(config.memory_fraction, ops.device)
    plan = memory.plan(config, checkpoint, kind, rope_plan, backend)
    if plan.max_model_len < rope_plan.max_positions:
        # The pages hold less than the model reaches: stretch no further than they do.
        rope_plan = plan_rope(max_tokens=plan.max_model_len)
    for line in str(plan).splitlines():
        log.info("plan: %s", line)
    degraded = (*rope_plan.warnings, *backend.degraded)
    for note in (*rope_plan.notes, *degraded):
        log.info("%s", note)
    model = load(
        checkpoint, ops, rope_plan, lambda share: on_progress(Heartbeat("loading", progress=share))
    )
    cache = KVCache(
        kind.cache_spec(checkpoint.config), backend.cache_dtype, ops.device, plan.num_pages
    )
    vocab_size, eos = checkpoint.config.int("vocab_size"), eos_token_ids(checkpoint.model_dir)
    core = Core(model, cache, config, plan, vocab_size=vocab_size, eos_token_ids=eos)
    core.pin(config.pinned_prefix_ids)
    while core.has_work:
        step = core.plan_step()
        on_progress(core.heartbeat("step", step))
        core.run_step(step)
    return core, Hello(
        architecture=checkpoint.config.architecture,
        backend=ops.name,
        device=str(ops.device),
        max_model_len=plan.max_model_len,
        window_tokens=plan.window_pages * PAGE_SIZE,
        vocab_size=vocab_size,
        eos_token_ids=eos,
        load_s=time.monotonic() - started,
        pages=core.page_stats(),
        memory=core.memory_stats(),
        degraded=degraded,
        plan=str(plan),
    )


def load(
    checkpoint: Checkpoint,
    ops: Ops,
    rope_plan: rope.RopePlan | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Model:
    """The model with its weights and rotary tables; `rope_plan` is the model's own if None.

    `on_progress` gets the share of tensors taken, 0 to 1. Raises ModelError naming what is
    missing, surplus or misshapen.
    """
    config = checkpoint.config
    kind = registry.find(config)
    plan = rope_plan or rope.plan(config, kind.extension, long_context=False, max_tokens=0)
    ops.expect_weights(checkpoint.loaded_bytes(ops.dtype))
    weights = Weights(checkpoint, ops, on_progress=on_progress)
    model = kind(config, weights, ops, rope.build(plan, kind, config, ops.device))
    weights.finish(tied_head=checkpoint.is_tied)
    return model
