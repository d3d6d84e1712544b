"""The memory plan, computed before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from youtu_llm.engine.backend import Backend
from youtu_llm.engine.checkpoint import Checkpoint
from youtu_llm.engine.models.rope import RopePlan
from youtu_llm.engine.models.spec import Model
from youtu_llm.errors import ResourceError
from youtu_llm.protocol import PAGE_SIZE, EngineConfig, pages_for

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The engine's memory in bytes, and which bound limits its pages."""

    total: int  # what may be used
    total_by: str
    weights: int
    workspace: int
    page_bytes: int
    num_pages: int
    limit_by: str
    max_model_len: int
    window_pages: int
    pinned_pages: int  # kept for the profile's system prompt
    bounds: tuple[tuple[str, int], ...]  # (name, pages) of each bound

    def __str__(self) -> str:
        cache = self.num_pages * self.page_bytes
        rows = [
            ("may be used", self.total, self.total_by),
            ("weights", self.weights, ""),
            ("workspace", self.workspace, "activations of the largest step"),
            ("cache, at most", cache, f"{self.num_pages} pages of {PAGE_SIZE} tokens"),
            ("left", self.total - self.weights - self.workspace - cache, ""),
        ]
        lines = [f"{name:<16}{_gib(size):>10}  {note}".rstrip() for name, size, note in rows]
        bounds = ", ".join(f"{name} {pages}" for name, pages in self.bounds)
        lines.append(f"pages limited by {self.limit_by} (bounds: {bounds})")
        spare = f"{self.pinned_pages} for the system prompt, 1 to copy shared ones"
        lines.append(f"context {self.max_model_len} tokens (pages besides it: {spare})")
        return "\n".join(lines)


def plan(
    config: EngineConfig,
    checkpoint: Checkpoint,
    kind: type[Model],
    rope_plan: RopePlan,
    backend: Backend,
) -> EnginePlan:
    """Raises ResourceError, with the whole table, when no conversation fits."""
    model, ops = checkpoint.config, backend.ops
    total, total_by = _total(config, ops.device)
    weights = checkpoint.loaded_bytes(ops.dtype)
    logits = config.max_num_seqs * model.int("vocab_size") * 4
    rope_bytes = rope_plan.max_positions * kind.rope_dim(model) * 4
    step = config.max_step_tokens * kind.activation_width(model) * ops.dtype.itemsize
    workspace = step + logits + rope_bytes
    page_bytes = PAGE_SIZE * kind.cache_spec(model).token_bytes(backend.cache_dtype)

    longest = rope_plan.max_positions
    pinned = pages_for(len(config.pinned_prefix_ids))
    window_pages = 0
    if config.window_tokens:  # the system prompt is kept; two pages besides make it roll
        window_pages = max(pinned + 2, pages_for(min(config.window_tokens, longest)))
        longest = window_pages * PAGE_SIZE
    # One page more than the text needs: a shared page is copied before it is written.
    bounds = (
        ("kv_cache_max_page", config.kv_cache_max_page or 1 << 30),
        ("memory", max(0, total - weights - workspace) // page_bytes),
        ("context", config.max_num_seqs * (pages_for(longest) + 1) + pinned),
    )
    limit_by, num_pages = min(bounds, key=lambda bound: bound[1])
    spare = num_pages - pinned - 1  # the system prompt's pages may be shared, or not
    window_pages = min(window_pages, max(spare, 0))
    reach = rope_plan.max_positions if window_pages else max(spare, 0) * PAGE_SIZE
    result = EnginePlan(
        total=total,
        total_by=total_by,
        weights=weights,
        workspace=workspace,
        page_bytes=page_bytes,
        num_pages=num_pages,
        limit_by=limit_by,
        max_model_len=min(rope_plan.max_positions, reach),
        window_pages=window_pages,
        pinned_pages=pinned,
        bounds=tuple((name, pages) for name, pages in bounds if pages < 1 << 30),
    )
    _check(result, config, spare, pinned)
    return result


def _check(result: EnginePlan, config: EngineConfig, spare: int, pinned: int) -> None:
    """Raises ResourceError unless a conversation fits behind the system prompt."""
    num_pinned_tokens = len(config.pinned_prefix_ids)
    kept = max(1, pinned)  # by the rolling window; two more make it roll
    if spare < (kept + 2 if config.window_tokens else 1):
        share = "memory_limit_bytes" if config.memory_limit_bytes else "memory_fraction"
        remedy = {
            "memory": f"Free memory, raise engine.{share}, or choose a smaller model.",
            "kv_cache_max_page": "Raise model.kv_cache_max_page.",
            "context": "Raise context.window_tokens or context.max_tokens.",
        }[result.limit_by]
        raise ResourceError(f"the model does not fit. What it needs:\n{result}\n{remedy}")
    if num_pinned_tokens >= result.max_model_len:
        raise ResourceError(
            f"the profile's system prompt takes {num_pinned_tokens} tokens, but only "
            f"{result.max_model_len} fit:\n{result}\n"
            "Shorten text.system_prompt, or raise what limits the pages or context.max_tokens."
        )
    if config.window_tokens and result.max_model_len < (kept + 2) * PAGE_SIZE:
        raise ResourceError(
            f"a rolling window behind a system prompt of {num_pinned_tokens} tokens needs a "
            f"context of {(kept + 2) * PAGE_SIZE} tokens, but it is {result.max_model_len}: "
            "raise context.max_tokens or drop context.window_tokens."
        )


def _total(config: EngineConfig, device: torch.device) -> tuple[int, str]:
    if config.memory_limit_bytes:
        return config.memory_limit_bytes, "engine.memory_limit_bytes"
    if device.type == "cuda" and not torch.cuda.get_device_properties(device).is_integrated:
        free, size = torch.cuda.mem_get_info(device)
        share = int(size * config.memory_fraction)
        if free < share:
            return free, "free device memory"
        return share, f"{config.memory_fraction:.0%} of the device's {_gib(size)}"
    available = psutil.virtual_memory().available
    source = "available memory"
    cgroup = _cgroup_free()
    if cgroup is not None and cgroup < available:
        available, source = cgroup, "memory the cgroup leaves"
    return int(available * config.memory_fraction), f"{config.memory_fraction:.0%} of {source}"


def _cgroup_free() -> int | None:
    """Bytes that this process's cgroup (v2) and its parents still allow; None: no limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        line = next(line for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    folder, left = _CGROUP / line[3:].lstrip("/"), None
    while folder.is_relative_to(_CGROUP):
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text()) - _page_cache(folder)
        except (OSError, ValueError):
            limit, used = "max", 0
        if limit != "max":
            free = max(0, int(limit) - used)
            left = free if left is None else min(left, free)
        folder = folder.parent
    return left


def _page_cache(cgroup: Path) -> int:
    """Bytes of cached files, which the kernel drops when memory is short."""
    for line in (cgroup / "memory.stat").read_text().splitlines():
        name, _, size = line.partition(" ")
        if name == "inactive_file":
            return int(size)
    return 0


def _gib(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
