"""Which operations run, on which device, in which types."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from youtu_llm.errors import ModelError, ResourceError
from youtu_llm.ops.api import Ops
from youtu_llm.ops.cpu import CpuOps
from youtu_llm.ops.cuda import CudaOps
from youtu_llm.ops.reference import ReferenceOps
from youtu_llm.protocol import EngineConfig


@dataclass(frozen=True, slots=True)
class Backend:
    ops: Ops
    cache_dtype: torch.dtype
    degraded: tuple[str, ...] = ()


def choose(config: EngineConfig) -> Backend:
    """From `device`, `dtype` and `kernels`; `degraded` lists the fallbacks that `auto` took."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("engine.device is cuda, but this torch sees no CUDA device")
    device = torch.device(name)
    threads = config.threads or len(os.sched_getaffinity(0))
    if name == "cpu" and config.kernels != "reference":
        return _native_cpu(config, threads)
    torch.set_num_threads(threads)
    if name == "cuda" and config.kernels != "reference":
        return _native_cuda(config, device)
    dtype = _dtype(config, torch.float16 if name == "cuda" else torch.float32)
    return Backend(ReferenceOps(device, dtype), dtype)


def _native_cuda(config: EngineConfig, device: torch.device) -> Backend:
    """Activations and cache are float16."""
    if config.dtype in ("auto", "float16"):
        try:
            return Backend(CudaOps(device), torch.float16)
        except (ModelError, ResourceError) as error:
            if config.kernels == "native":
                raise
            reason = str(error)
    else:
        reason = f"they compute in float16, not in {config.dtype}"
        if config.kernels == "native":
            raise ResourceError(f"engine.kernels is native, but on CUDA {reason}")
    dtype = _dtype(config, torch.float16)
    note = f"native CUDA kernels cannot run, plain torch does, slowly: {reason}"
    return Backend(ReferenceOps(device, dtype), dtype, (note,))


def _native_cpu(config: EngineConfig, threads: int) -> Backend:
    """Activations are float32; the cache is float16 unless float32 is asked for."""
    cache_dtype = torch.float32 if config.dtype == "float32" else torch.float16
    try:
        ops = CpuOps(threads)
    except ModelError as error:
        if config.kernels == "native":
            raise
        torch.set_num_threads(threads)
        reason = f"native CPU kernels cannot run, plain torch does, slowly: {error}"
        return Backend(ReferenceOps(torch.device("cpu"), torch.float32), cache_dtype, (reason,))
    torch.set_num_threads(1)  # the kernels have their own pool; two would compete
    return Backend(ops, cache_dtype)


def _dtype(config: EngineConfig, default: torch.dtype) -> torch.dtype:
    named = {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "auto": default,
    }
    return named[config.dtype]
