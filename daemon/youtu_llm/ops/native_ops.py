"""What the native backends share: operations that are one call of the kernels' C ABI."""

from __future__ import annotations

import abc
import ctypes
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from youtu_llm.errors import ModelError
from youtu_llm.ops import library
from youtu_llm.ops.api import (
    Batch,
    CacheStorage,
    DenseWeight,
    Int4Weight,
    Int8Weight,
    Linear,
    Ops,
    Rope,
    Weight,
)

MAX_INT8_WIDTH = 16384


@dataclass(frozen=True, slots=True)
class PackedInt4:
    packed: Tensor  # uint8, in the library's own order
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
    weight: Tensor  # [out, in] in the activations' type
    address: int
    bias_address: int | None
    group_size: int = 0  # 0: not INT4


class Memory(Protocol):
    """Allocates weights."""

    def empty(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes], aligned to 64 bytes at least."""


class NativeOps(Ops):
    """A backend over a library. One per process: the library has one workspace."""

    groups: ClassVar[str]  # of INT4 weights that it takes, in words
    cache_dtypes: ClassVar[dict[torch.dtype, int]]
    _lib: ctypes.CDLL
    _memory: Memory
    _step_of: tuple[Batch, CacheStorage] | None = None
    _step: library.Step

    @abc.abstractmethod
    def _empty(self, rows: int, columns: int) -> Tensor:
        """An activation to write to."""

    def _stream(self) -> int | None:
        """The stream to work on."""
        return None

    # --- weights

    def prepare_linear(self, weight: Weight) -> Linear:
        bias = None if weight.bias is None else weight.bias.to(self.device, self.dtype).contiguous()
        bias_address = None if bias is None else bias.data_ptr()
        data: PackedInt4 | Int8Rows | DenseRows
        if isinstance(weight, Int4Weight):
            in_features, out_features = weight.qweight.shape[0], weight.scales.shape[1]
            data = self._pack(weight, bias_address)
        else:
            out_features, in_features = weight.weight.shape
            if isinstance(weight, Int8Weight):
                data = self._int8_rows(weight, bias_address)
            else:
                data = self._dense_rows(weight, bias_address)
        return Linear(out_features, in_features, data, bias)

    def prepare_embedding(self, weight: DenseWeight | Int8Weight) -> Linear:
        return self.prepare_linear(weight)

    def _pack(self, weight: Int4Weight, bias_address: int | None) -> PackedInt4:
        in_features, out_features = weight.qweight.shape[0], weight.scales.shape[1]
        group = weight.group_size
        size = self._lib.youtu_int4_bytes(out_features, in_features, group)
        if size == 0:
            raise ModelError(
                f"INT4 weight [{out_features}, {in_features}] in groups of {group}: the "
                f"{self.name.upper()} kernels need group size {self.groups}, inputs a "
                "multiple of it, outputs a multiple of 8"
            )
        packed = self._memory.empty(size)
        qweight = weight.qweight.to(self.device).contiguous()
        qzeros = weight.qzeros.to(self.device).contiguous()
        scales = weight.scales.to(self.device, torch.float16).contiguous()
        self._lib.youtu_int4_pack(
            packed.data_ptr(),
            qweight.data_ptr(),
            qzeros.data_ptr(),
            scales.data_ptr(),
            out_features,
            in_features,
            group,
            self._stream(),
        )
        return PackedInt4(packed, packed.data_ptr(), bias_address, group)

    def _int8_rows(self, weight: Int8Weight, bias_address: int | None) -> Int8Rows:
        in_features = weight.weight.shape[1]
        if in_features % 32 or in_features > MAX_INT8_WIDTH:
            raise ModelError(
                f"INT8 rows of {in_features} values: the {self.name.upper()} kernels take"
                f" multiples of 32 up to {MAX_INT8_WIDTH}"
            )
        rows = self._place(weight.weight, torch.int8)
        scales = weight.scales.to(self.device, torch.float16).contiguous()
        return Int8Rows(rows, scales, rows.data_ptr(), scales.data_ptr(), bias_address)

    def _dense_rows(self, weight: DenseWeight, bias_address: int | None) -> DenseRows:
        rows = self._place(weight.weight, self.dtype)
        return DenseRows(rows, rows.data_ptr(), bias_address)

    def _place(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        new = self._memory.empty(tensor.numel() * dtype.itemsize).view(dtype)
        return new.view(tensor.shape).copy_(tensor)

    # --- token-wise

    def embed(self, token_ids: Tensor, table: Linear) -> Tensor:
        data = table.data
        if isinstance(data, DenseRows):
            return data.weight[token_ids]
        assert isinstance(data, Int8Rows)
        num_tokens = token_ids.shape[0]
        y = self._empty(num_tokens, table.in_features)
        self._lib.youtu_int8_embed(
            y.data_ptr(),
            token_ids.data_ptr(),
            data.address,
            data.scales_address,
            num_tokens,
            table.in_features,
            table.out_features,
            self._stream(),
        )
        return y

    def _int4_linear(self, x: Tensor, w: Linear, data: PackedInt4) -> Tensor:
        num_tokens = x.shape[0]
        y = self._empty(num_tokens, w.out_features)
        self._lib.youtu_int4_linear(
            y.data_ptr(),
            x.data_ptr(),
            data.address,
            data.bias_address,
            num_tokens,
            w.out_features,
            w.in_features,
            data.group_size,
            row_stride(x),
            self._stream(),
        )
        return y

    def _int8_linear(self, x: Tensor, w: Linear, data: Int8Rows, y: Tensor) -> Tensor:
        """y [T, out] float32 is written and returned."""
        self._lib.youtu_int8_linear(
            y.data_ptr(),
            x.data_ptr(),
            data.address,
            data.scales_address,
            data.bias_address,
            x.shape[0],
            w.out_features,
            w.in_features,
            row_stride(x),
            self._stream(),
        )
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        num_tokens, n = x.shape
        y = self._empty(num_tokens, n)
        self._lib.youtu_rms_norm(
            y.data_ptr(),
            x.data_ptr(),
            self._gains(weight),
            num_tokens,
            n,
            row_stride(x),
            eps,
            self._stream(),
        )
        return y

    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        num_tokens, n = x.shape
        assert residual.is_contiguous()
        assert x.is_contiguous()
        y = self._empty(num_tokens, n)
        self._lib.youtu_add_rms_norm(
            y.data_ptr(),
            residual.data_ptr(),
            x.data_ptr(),
            self._gains(weight),
            num_tokens,
            n,
            eps,
            self._stream(),
        )
        return y

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        num_tokens, n = x.shape
        y = self._empty(num_tokens, n)
        self._lib.youtu_layer_norm(
            y.data_ptr(),
            x.data_ptr(),
            self._gains(weight),
            self._gains(bias),
            num_tokens,
            n,
            eps,
            self._stream(),
        )
        return y

    def _gains(self, weight: Tensor) -> int:
        assert weight.dtype == self.dtype
        assert weight.is_contiguous()
        return weight.data_ptr()

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        assert gate_up.is_contiguous()
        num_tokens, n = gate_up.shape[0], gate_up.shape[1] // 2
        y = self._empty(num_tokens, n)
        self._lib.youtu_silu_mul(y.data_ptr(), gate_up.data_ptr(), num_tokens, n, self._stream())
        return y

    def gelu_tanh(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = self._empty(x.shape[0], x.shape[1])
        self._lib.youtu_gelu_tanh(y.data_ptr(), x.data_ptr(), x.numel(), self._stream())
        return y

    # --- rotary and cache

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
        self._lib.youtu_rope_cache(
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
            self._stream(),
        )
        return heads[:, :num_heads]

    def mla_rope_cache(
        self, q: Tensor, latent: Tensor, rope: Rope, batch: Batch, cache: CacheStorage, layer: int
    ) -> Tensor:
        assert q.is_contiguous()
        self._lib.youtu_mla_rope_cache(
            q.data_ptr(),
            latent.data_ptr(),
            row_stride(latent),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            rope.dim,
            rope.interleaved,
            self._step_for(batch, cache),
            q.shape[1],
            q.shape[2],
            layer,
            self._stream(),
        )
        return q

    def _step_for(self, batch: Batch, cache: CacheStorage) -> library.Step:
        """The step's structure, filled at its first layer and kept for the others."""
        seen = self._step_of
        if seen is None or seen[0] is not batch or seen[1] is not cache:
            self._step = self._new_step(batch, cache)
            self._step_of = (batch, cache)
        return self._step

    def _new_step(self, batch: Batch, cache: CacheStorage) -> library.Step:
        dtype = self.cache_dtypes.get(cache.dtype)
        if dtype is None:
            raise ModelError(
                f"the {self.name.upper()} kernels keep the cache in float16, not {cache.dtype}"
            )
        return library.Step(
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


def row_stride(x: Tensor) -> int:
    """Values from one row to the next; the values of a row must be adjacent."""
    assert x.stride(1) == 1
    return x.stride(0)
