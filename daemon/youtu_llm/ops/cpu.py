"""The operations through the native CPU kernels. Activations are float32."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from youtu_llm.errors import ModelError
from youtu_llm.ops import library
from youtu_llm.ops.api import Batch, CacheStorage, DenseWeight, Linear
from youtu_llm.ops.native_ops import DenseRows, Int8Rows, NativeOps, PackedInt4, row_stride

ISA_VARIABLE = "YOUTU_CPU_ISA"  # plain, avx2, avx512, amx, neon; unset: the best there is
_SLAB_BYTES = 64 << 20


class HugePages:
    """Weights in a few large mappings: huge pages spare the TLB, and small weights share them."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def empty(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes], aligned to 64 bytes."""
        wanted = -(-num_bytes // 64) * 64
        if wanted > self._free.numel():
            self._free = torch.frombuffer(_map(max(wanted, _SLAB_BYTES)), dtype=torch.uint8)
        taken, self._free = self._free[:num_bytes], self._free[wanted:]
        return taken


class Activations:
    """Outputs of many tokens, in buffers that are used again once their tensor is gone.

    The C library maps such sizes anew at every call, and the kernel zeroes them page by page:
    a quarter of a long prompt's time. There are never more buffers than tensors alive at once.
    """

    _SMALLEST = 1 << 20  # below, the C library's heap is as good

    def __init__(self) -> None:
        self._buffers: list[mmap.mmap] = []

    def empty(self, rows: int, columns: int) -> Tensor:
        """float32 [rows, columns]."""
        num_bytes = 4 * rows * columns
        if num_bytes < self._SMALLEST:
            return torch.empty(rows, columns)
        buffer = self._free_buffer(num_bytes)
        return torch.frombuffer(buffer, dtype=torch.float32, count=rows * columns).view(
            rows, columns
        )

    def _free_buffer(self, num_bytes: int) -> mmap.mmap:
        for i in range(len(self._buffers)):
            if _references(self._buffers, i) == _UNUSED:
                if len(self._buffers[i]) < num_bytes:
                    self._buffers[i] = _map(num_bytes)
                return self._buffers[i]
        self._buffers.append(_map(num_bytes))
        return self._buffers[-1]


def _references(items: Sequence[object], i: int) -> int:
    return sys.getrefcount(items[i])


_UNUSED = _references([object()], 0)  # of an item that nothing but its list holds


def _map(num_bytes: int) -> mmap.mmap:
    """Anonymous memory in whole huge pages."""
    size = -(-num_bytes // (2 << 20)) * (2 << 20)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class CpuOps(NativeOps):
    """One per process: the library has one thread pool and one workspace."""

    name = "cpu"
    device = torch.device("cpu")
    dtype = torch.float32
    groups = "32, 64 or 128"
    cache_dtypes: ClassVar = {torch.float32: library.FLOAT32, torch.float16: library.FLOAT16}

    def __init__(self, threads: int) -> None:
        """Start `threads` - 1 workers; the calling thread is the other one.

        Raises ResourceError if YOUTU_CPU_ISA names what this machine lacks, ModelError if the
        library is missing or its self-test fails.
        """
        self._lib = library.load("cpu")
        size = self._lib.youtu_workspace_bytes(threads)
        workspace = HugePages().empty(size)
        wanted = os.environ.get(ISA_VARIABLE, "")
        library.check(
            self._lib.youtu_init(threads, wanted.encode(), workspace.data_ptr(), size),
            f"starting the CPU kernels ({ISA_VARIABLE}={wanted!r}, {threads} threads)",
        )
        library.workspaces["cpu"] = workspace
        self.isa: str = self._lib.youtu_isa().decode()
        self._memory = HugePages()
        self._activations = Activations()

    def _empty(self, rows: int, columns: int) -> Tensor:
        return self._activations.empty(rows, columns)

    def _dense_rows(self, weight: DenseWeight, bias_address: int | None) -> DenseRows:
        in_features = weight.weight.shape[1]
        if in_features % 16:
            raise ModelError(f"rows of {in_features} values: the CPU kernels take multiples of 16")
        return super()._dense_rows(weight, bias_address)

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        data = w.data
        if isinstance(data, PackedInt4):
            return self._int4_linear(x, w, data)
        y = self._empty(x.shape[0], w.out_features)
        if isinstance(data, Int8Rows):
            return self._int8_linear(x, w, data, y)
        assert isinstance(data, DenseRows)
        self._lib.youtu_dense_linear(
            y.data_ptr(),
            x.data_ptr(),
            data.address,
            data.bias_address,
            x.shape[0],
            w.out_features,
            w.in_features,
            row_stride(x),
            None,
        )
        return y

    def logits(self, x: Tensor, head: Linear) -> Tensor:
        return self.linear(x, head)

    def gqa_attention(
        self, q: Tensor, batch: Batch, cache: CacheStorage, layer: int, scale: float
    ) -> Tensor:
        num_tokens, num_heads, head_dim = q.shape
        out = self._empty(num_tokens, num_heads * head_dim)
        self._lib.youtu_gqa_attention(
            out.data_ptr(),
            q.data_ptr(),
            q.stride(0),
            self._step_for(batch, cache),
            num_heads,
            cache.spec.width // (2 * head_dim),
            head_dim,
            layer,
            scale,
            None,
        )
        return out

    def mla_attention(
        self,
        q: Tensor,
        kv_b: Linear,
        batch: Batch,
        cache: CacheStorage,
        layer: int,
        v_dim: int,
        scale: float,
    ) -> Tensor:
        assert q.is_contiguous()
        if not isinstance(kv_b.data, PackedInt4 | DenseRows):
            raise ModelError("MLA on the CPU kernels takes an INT4 or unquantised kv_b, not INT8")
        num_tokens, num_heads, q_dim = q.shape
        nope = kv_b.out_features // num_heads - v_dim
        out = self._empty(num_tokens, num_heads * v_dim)
        arguments = library.MlaAttention(
            out.data_ptr(),
            q.data_ptr(),
            kv_b.data.address,
            kv_b.data.group_size,
            num_heads,
            nope,
            q_dim - nope,
            v_dim,
            kv_b.in_features,
            layer,
            scale,
        )
        self._lib.youtu_mla_attention(arguments, self._step_for(batch, cache), None)
        return out
