"""The operations through the native CPU kernels. Activations are float32."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from youtu_llm.errors import ModelError
from youtu_llm.ops import native
from youtu_llm.ops.api import (
    Batch,
    CacheStorage,
    DenseWeight,
    Int8Weight,
    Linear,
    Ops,
    Rope,
    Weight,
)

ISA_VARIABLE = "YOUTU_CPU_ISA"  # plain, avx2, avx512, amx, neon; unset: the best there is
_SLAB_BYTES = 64 << 20
_CACHE_DTYPES = {torch.float32: native.FLOAT32, torch.float16: native.FLOAT16}


@dataclass(frozen=True, slots=True)
class PackedInt4:
    packed: Tensor  # uint8, tile order
    address: int
    bias_address: int | None
    group_size: int


@dataclass(frozen=True, slots=True)
class Int8Rows:
    weight: Tensor  # [out, in] int8
    scales: Tensor  # [out] float16
    address: int
    scales_address: int
    bias_address: int | None


@dataclass(frozen=True, slots=True)
class DenseRows:
    weight: Tensor  # [out, in] float32
    address: int
    bias_address: int | None
    group_size: int = 0  # as the kernels tell it from INT4


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

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        new = self.empty(tensor.numel() * dtype.itemsize).view(dtype)
        return new.view(tensor.shape).copy_(tensor)


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


class CpuOps(Ops):
    """One per process: the library has one thread pool and one workspace."""

    name = "cpu"
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, threads: int) -> None:
        """Start `threads` - 1 workers; the calling thread is the other one.

        Raises ResourceError if YOUTU_CPU_ISA names what this machine lacks, ModelError if the
        library is missing or its self-test fails.
        """
        self._lib = native.load("cpu")
        size = self._lib.youtu_workspace_bytes(threads)
        self._workspace = HugePages().empty(size)
        wanted = os.environ.get(ISA_VARIABLE, "")
        native.check(
            self._lib.youtu_init(threads, wanted.encode(), self._workspace.data_ptr(), size),
            f"starting the CPU kernels ({ISA_VARIABLE}={wanted!r}, {threads} threads)",
        )
        self.isa: str = self._lib.youtu_isa().decode()
        self._memory = HugePages()
        self._empty = Activations().empty
        self._step_of: tuple[Batch, CacheStorage] | None = None
        self._step = native.Step()

    # --- weights

    def prepare_linear(self, weight: Weight) -> Linear:
        bias = None if weight.bias is None else weight.bias.float().contiguous()
        bias_address = None if bias is None else bias.data_ptr()
        if isinstance(weight, DenseWeight):
            out_features, in_features = weight.weight.shape
            if in_features % 16:
                raise ModelError(
                    f"rows of {in_features} values: the CPU kernels take multiples of 16"
                )
            dense = self._memory.copy(weight.weight, torch.float32)
            rows = DenseRows(dense, dense.data_ptr(), bias_address)
            return Linear(out_features, in_features, rows, bias)
        if isinstance(weight, Int8Weight):
            out_features, in_features = weight.weight.shape
            if in_features % 32 or in_features > 16384:
                raise ModelError(
                    f"INT8 rows of {in_features} values: the CPU kernels take multiples of 32"
                    " up to 16384"
                )
            quantised = self._memory.copy(weight.weight, torch.int8)
            scales = weight.scales.half().contiguous()
            int8 = Int8Rows(
                quantised, scales, quantised.data_ptr(), scales.data_ptr(), bias_address
            )
            return Linear(out_features, in_features, int8, bias)
        in_features, out_features = weight.qweight.shape[0], weight.scales.shape[1]
        group = weight.group_size
        size = self._lib.youtu_int4_bytes(out_features, in_features, group)
        if size == 0:
            raise ModelError(
                f"INT4 weight [{out_features}, {in_features}] in groups of {group}: the CPU kernels"
                " take groups of 32, 64 or 128, whole groups and multiples of 8 outputs"
            )
        packed = self._memory.empty(size)
        qweight, qzeros = weight.qweight.contiguous(), weight.qzeros.contiguous()
        scales = weight.scales.half().contiguous()
        native.check(
            self._lib.youtu_int4_pack(
                packed.data_ptr(),
                qweight.data_ptr(),
                qzeros.data_ptr(),
                scales.data_ptr(),
                out_features,
                in_features,
                group,
                None,
            ),
            "int4_pack",
        )
        int4 = PackedInt4(packed, packed.data_ptr(), bias_address, group)
        return Linear(out_features, in_features, int4, bias)

    def prepare_embedding(self, weight: DenseWeight | Int8Weight) -> Linear:
        return self.prepare_linear(weight)

    # --- token-wise

    def embed(self, token_ids: Tensor, table: Linear) -> Tensor:
        data = table.data
        if isinstance(data, DenseRows):
            return data.weight[token_ids]
        assert isinstance(data, Int8Rows)
        num_tokens = token_ids.shape[0]
        y = self._empty(num_tokens, table.in_features)
        status = self._lib.youtu_int8_embed(
            y.data_ptr(),
            token_ids.data_ptr(),
            data.address,
            data.scales_address,
            num_tokens,
            table.in_features,
            table.out_features,
            None,
        )
        if status:
            native.check(status, f"embed: an id outside 0..{table.out_features - 1}, or")
        return y

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        data = w.data
        num_tokens = x.shape[0]
        y = self._empty(num_tokens, w.out_features)
        if isinstance(data, PackedInt4):
            status = self._lib.youtu_int4_linear(
                y.data_ptr(),
                x.data_ptr(),
                data.address,
                data.bias_address,
                num_tokens,
                w.out_features,
                w.in_features,
                data.group_size,
                _row_stride(x),
                None,
            )
        elif isinstance(data, Int8Rows):
            status = self._lib.youtu_int8_linear(
                y.data_ptr(),
                x.data_ptr(),
                data.address,
                data.scales_address,
                data.bias_address,
                num_tokens,
                w.out_features,
                w.in_features,
                _row_stride(x),
                None,
            )
        else:
            assert isinstance(data, DenseRows)
            status = self._lib.youtu_dense_linear(
                y.data_ptr(),
                x.data_ptr(),
                data.address,
                data.bias_address,
                num_tokens,
                w.out_features,
                w.in_features,
                _row_stride(x),
                None,
            )
        if status:
            native.check(status, "linear")
        return y

    def logits(self, x: Tensor, head: Linear) -> Tensor:
        return self.linear(x, head)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        num_tokens, n = x.shape
        y = self._empty(num_tokens, n)
        status = self._lib.youtu_rms_norm(
            y.data_ptr(),
            x.data_ptr(),
            _float(weight).data_ptr(),
            num_tokens,
            n,
            _row_stride(x),
            eps,
            None,
        )
        if status:
            native.check(status, "rms_norm")
        return y

    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        num_tokens, n = x.shape
        assert residual.is_contiguous()
        assert x.is_contiguous()
        y = self._empty(num_tokens, n)
        status = self._lib.youtu_add_rms_norm(
            y.data_ptr(),
            residual.data_ptr(),
            x.data_ptr(),
            _float(weight).data_ptr(),
            num_tokens,
            n,
            eps,
            None,
        )
        if status:
            native.check(status, "add_rms_norm")
        return y

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        num_tokens, n = x.shape
        y = self._empty(num_tokens, n)
        status = self._lib.youtu_layer_norm(
            y.data_ptr(),
            x.data_ptr(),
            _float(weight).data_ptr(),
            _float(bias).data_ptr(),
            num_tokens,
            n,
            eps,
            None,
        )
        if status:
            native.check(status, "layer_norm")
        return y

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        assert gate_up.is_contiguous()
        num_tokens, n = gate_up.shape[0], gate_up.shape[1] // 2
        y = self._empty(num_tokens, n)
        status = self._lib.youtu_silu_mul(y.data_ptr(), gate_up.data_ptr(), num_tokens, n, None)
        if status:
            native.check(status, "silu_mul")
        return y

    def gelu_tanh(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = self._empty(*x.shape)
        status = self._lib.youtu_gelu_tanh(y.data_ptr(), x.data_ptr(), x.numel(), None)
        if status:
            native.check(status, "gelu_tanh")
        return y

    # --- rotary, cache and attention

    def rope_cache(
        self,
        qkv: Tensor,
        head_dim: int,
        rope: Rope,
        batch: Batch,
        cache: CacheStorage,
        layer: int,
    ) -> Tensor:
        assert qkv.is_contiguous()
        heads = qkv.view(qkv.shape[0], -1, head_dim)  # [T, H + 2 G, D]
        num_kv_heads = cache.spec.width // (2 * head_dim)
        num_heads = heads.shape[1] - 2 * num_kv_heads
        status = self._lib.youtu_rope_cache(
            qkv.data_ptr(),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            rope.dim,
            rope.interleaved,
            self._step_for(batch, cache),
            num_heads,
            num_kv_heads,
            head_dim,
            layer,
            None,
        )
        if status:
            native.check(status, "rope_cache")
        return heads[:, :num_heads]

    def gqa_attention(
        self, q: Tensor, batch: Batch, cache: CacheStorage, layer: int, scale: float
    ) -> Tensor:
        num_tokens, num_heads, head_dim = q.shape
        out = self._empty(num_tokens, num_heads * head_dim)
        status = self._lib.youtu_gqa_attention(
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
        if status:
            native.check(status, f"gqa_attention of {num_heads} heads of {head_dim}")
        return out

    def mla_rope_cache(
        self, q: Tensor, latent: Tensor, rope: Rope, batch: Batch, cache: CacheStorage, layer: int
    ) -> Tensor:
        assert q.is_contiguous()
        status = self._lib.youtu_mla_rope_cache(
            q.data_ptr(),
            latent.data_ptr(),
            _row_stride(latent),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            rope.dim,
            rope.interleaved,
            self._step_for(batch, cache),
            q.shape[1],
            q.shape[2],
            layer,
            None,
        )
        if status:
            native.check(status, "mla_rope_cache")
        return q

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
        status = self._lib.youtu_mla_attention(
            out.data_ptr(),
            q.data_ptr(),
            kv_b.data.address,
            kv_b.data.group_size,
            self._step_for(batch, cache),
            num_heads,
            nope,
            q_dim - nope,
            v_dim,
            kv_b.in_features,
            layer,
            scale,
            None,
        )
        if status:
            native.check(status, f"mla_attention of {num_heads} heads of {nope} + {q_dim - nope}")
        return out

    def _step_for(self, batch: Batch, cache: CacheStorage) -> native.Step:
        """The step's structure, filled at its first layer and kept for the others."""
        seen = self._step_of
        if seen is None or seen[0] is not batch or seen[1] is not cache:
            dtype = _CACHE_DTYPES.get(cache.dtype)
            if dtype is None:
                raise ModelError(f"the CPU kernels keep the cache in float16, not {cache.dtype}")
            self._step = native.Step(
                batch.positions.data_ptr(),
                batch.slots.data_ptr(),
                batch.query_start.data_ptr(),
                batch.context_len.data_ptr(),
                batch.page_table.data_ptr(),
                cache.addresses.data_ptr(),
                batch.num_tokens,
                batch.num_seqs,
                batch.page_table.shape[1],
                max(batch.query_lens),
                max(batch.context_lens),
                cache.spec.width,
                dtype,
                0,
            )
            self._step_of = (batch, cache)
        return self._step


def _row_stride(x: Tensor) -> int:
    """Values from one row to the next; the values of a row must be adjacent."""
    assert x.stride(1) == 1
    return x.stride(0)


def _float(weight: Tensor) -> Tensor:
    assert weight.dtype == torch.float32
    assert weight.is_contiguous()
    return weight
