"""The operations through the native CUDA kernels. Activations and cache are float16.

Steps of few rows are limited by the reading of weights, so norms and activations are fused with
the linears around them. Attention of few new tokens reads the pages where they are; that of many
gathers a sequence's entries for PyTorch's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from youtu_llm.errors import ModelError, ResourceError
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

IMAGE_VARIABLE = "YOUTU_CUDA_IMAGE"  # sm_87, compute_80 ...; unset: the device's own
MAX_NORM_WIDTH = 3072  # of eight rows in shared memory
# Above this many new tokens the context is gathered for PyTorch's attention ...
MAX_SPLIT_ROWS = 16
# ... unless that would take too much memory: MLA expands the entries 14 times.
MAX_GATHERED_BYTES = 4 << 20
_SLAB_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class PackedInt4:
    packed: Tensor  # uint8, tile order: kernels/cuda/args.h
    address: int
    bias_address: int | None
    group_size: int


@dataclass(frozen=True, slots=True)
class Int8Rows:
    weight: Tensor  # [out, in] int8
    scales: Tensor  # [out] float16
    bias_address: int | None


@dataclass(frozen=True, slots=True)
class _Part:
    """Neighbouring sequences of a step that attention treats alike."""

    rows: slice
    batch: Batch
    step: native.Step
    gathered: bool


class _Memory:
    """Weights in a few large allocations: the caching allocator would leave holes between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: list[Tensor] = []  # what is left of each

    def empty(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes], aligned to 256 bytes."""
        wanted = -(-num_bytes // 256) * 256
        if wanted > _SLAB_BYTES:
            return torch.empty(wanted, dtype=torch.uint8, device=self._device)[:num_bytes]
        if all(wanted > free.numel() for free in self._free):
            self._free.append(torch.empty(_SLAB_BYTES, dtype=torch.uint8, device=self._device))
        fits = [i for i, free in enumerate(self._free) if wanted <= free.numel()]
        best = min(fits, key=lambda i: self._free[i].numel())
        taken, self._free[best] = self._free[best][:num_bytes], self._free[best][wanted:]
        return taken


class CudaOps(Ops):
    """One per process: the library has one workspace, for work on one stream at a time."""

    name = "cuda"
    dtype = torch.float16
    can_capture = True

    def __init__(self, device: torch.device) -> None:
        """Load the device code.

        Raises ModelError if the library is missing, ResourceError if it has no code for this
        device or YOUTU_CUDA_IMAGE names none.
        """
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device, self._index = torch.device("cuda", index), index
        torch.cuda.set_device(self.device)
        # PyTorch would give cuBLAS 32 MiB on large devices. Read when cuBLAS is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8")
        self._lib = native.load("cuda")
        size = self._lib.youtu_workspace_bytes(1)
        self._workspace = torch.zeros(size, dtype=torch.uint8, device=self.device)
        image = os.environ.get(IMAGE_VARIABLE, "")
        status = self._lib.youtu_init(1, image.encode(), self._workspace.data_ptr(), size)
        if status:
            major, minor = torch.cuda.get_device_capability(self.device)
            raise ResourceError(
                f"the CUDA kernels have no code for this device (compute capability {major}.{minor}"
                f", {IMAGE_VARIABLE}={image!r}, error {status})"
            )
        self.image: str = self._lib.youtu_isa().decode()
        self._memory = _Memory(self.device)
        self._parts_of: tuple[Batch, CacheStorage, list[_Part]] | None = None
        # cuDNN's attention compiles a plan for every new length.
        torch.backends.cuda.enable_cudnn_sdp(False)

    # --- weights

    def prepare_linear(self, weight: Weight) -> Linear:
        bias = None if weight.bias is None else weight.bias.to(self.device, self.dtype)
        bias_address = None if bias is None else bias.data_ptr()
        if isinstance(weight, DenseWeight):
            out_features, in_features = weight.weight.shape
            dense = DenseWeight(weight.weight.to(self.device, self.dtype))
            return Linear(out_features, in_features, dense, bias)
        if isinstance(weight, Int8Weight):
            out_features, in_features = weight.weight.shape
            if in_features % 16:
                raise ModelError(f"INT8 rows of {in_features} values: not a multiple of 16")
            rows = self._memory.empty(weight.weight.numel()).view(torch.int8)
            rows = rows.view(weight.weight.shape).copy_(weight.weight)
            scales = weight.scales.to(self.device, torch.float16)
            return Linear(out_features, in_features, Int8Rows(rows, scales, bias_address), bias)
        in_features, out_features = weight.qweight.shape[0], weight.scales.shape[1]
        group = weight.group_size
        size = self._lib.youtu_int4_bytes(out_features, in_features, group)
        if size == 0:
            raise ModelError(
                f"INT4 weight [{out_features}, {in_features}] in groups of {group}: the CUDA "
                "kernels take whole groups of 128 and multiples of 8 outputs"
            )
        packed = self._memory.empty(size)
        qweight, qzeros = weight.qweight.to(self.device), weight.qzeros.to(self.device)
        scales = weight.scales.to(self.device, torch.float16)
        status = self._lib.youtu_int4_pack(
            packed.data_ptr(),
            qweight.data_ptr(),
            qzeros.data_ptr(),
            scales.data_ptr(),
            out_features,
            in_features,
            group,
            self._stream(),
        )
        native.check(status, "int4_pack")
        int4 = PackedInt4(packed, packed.data_ptr(), bias_address, group)
        return Linear(out_features, in_features, int4, bias)

    def prepare_embedding(self, weight: DenseWeight | Int8Weight) -> Linear:
        return self.prepare_linear(weight)

    # --- token-wise

    def embed(self, token_ids: Tensor, table: Linear) -> Tensor:
        data = table.data
        if isinstance(data, DenseWeight):
            return data.weight[token_ids]
        assert isinstance(data, Int8Rows)
        y = self._empty(token_ids.shape[0], table.in_features)
        status = self._lib.youtu_int8_embed(
            y.data_ptr(),
            token_ids.data_ptr(),
            data.weight.data_ptr(),
            data.scales.data_ptr(),
            y.shape[0],
            table.in_features,
            table.out_features,
            self._stream(),
        )
        native.check(status, "embed")
        return y

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        data = w.data
        if isinstance(data, DenseWeight):
            return F.linear(x, data.weight, w.bias)
        if isinstance(data, Int8Rows):
            return self._int8_linear(x, w, data).to(self.dtype)
        assert isinstance(data, PackedInt4)
        y = self._empty(x.shape[0], w.out_features)
        status = self._lib.youtu_int4_linear(
            y.data_ptr(),
            x.data_ptr(),
            data.address,
            data.bias_address,
            x.shape[0],
            w.out_features,
            w.in_features,
            data.group_size,
            _row_stride(x),
            self._stream(),
        )
        if status:
            native.check(status, f"linear of {tuple(x.shape)}, strides {x.stride()}")
        return y

    def _int8_linear(self, x: Tensor, w: Linear, data: Int8Rows) -> Tensor:
        y = torch.empty(x.shape[0], w.out_features, dtype=torch.float32, device=self.device)
        status = self._lib.youtu_int8_linear(
            y.data_ptr(),
            x.data_ptr(),
            data.weight.data_ptr(),
            data.scales.data_ptr(),
            data.bias_address,
            x.shape[0],
            w.out_features,
            w.in_features,
            _row_stride(x),
            self._stream(),
        )
        native.check(status, "int8_linear")
        return y

    def logits(self, x: Tensor, head: Linear) -> Tensor:
        if isinstance(head.data, Int8Rows):
            return self._int8_linear(x, head, head.data)
        return self.linear(x, head).float()

    def argmax(self, logits: Tensor) -> Tensor:
        ids = torch.empty(logits.shape[0], dtype=torch.int64, device=self.device)
        assert logits.is_contiguous()
        status = self._lib.youtu_argmax(
            ids.data_ptr(), logits.data_ptr(), *logits.shape, self._stream()
        )
        native.check(status, "argmax")
        return ids

    def advance(self, batch: Batch, token_ids: Tensor) -> None:
        status = self._lib.youtu_advance(
            batch.token_ids.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.context_len.data_ptr(),
            token_ids.data_ptr(),
            batch.num_tokens,
            self._stream(),
        )
        native.check(status, "advance")

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y = self._empty(*x.shape)
        status = self._lib.youtu_rms_norm(
            y.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            *x.shape,
            _row_stride(x),
            eps,
            self._stream(),
        )
        native.check(status, "rms_norm")
        return y

    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        assert residual.is_contiguous()
        assert x.is_contiguous()
        y = self._empty(*x.shape)
        status = self._lib.youtu_add_rms_norm(
            y.data_ptr(),
            residual.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            *x.shape,
            eps,
            self._stream(),
        )
        native.check(status, "add_rms_norm")
        return y

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y = self._empty(*x.shape)
        status = self._lib.youtu_layer_norm(
            y.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            *x.shape,
            eps,
            self._stream(),
        )
        native.check(status, "layer_norm")
        return y

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        assert gate_up.is_contiguous()
        y = self._empty(gate_up.shape[0], gate_up.shape[1] // 2)
        status = self._lib.youtu_silu_mul(
            y.data_ptr(), gate_up.data_ptr(), *y.shape, self._stream()
        )
        native.check(status, "silu_mul")
        return y

    def gelu_tanh(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = self._empty(*x.shape)
        status = self._lib.youtu_gelu_tanh(y.data_ptr(), x.data_ptr(), x.numel(), self._stream())
        native.check(status, "gelu_tanh")
        return y

    # --- fused

    def norm_linear(
        self, x: Tensor, delta: Tensor | None, norm: Tensor, eps: float, w: Linear
    ) -> tuple[Tensor, Tensor]:
        if not _can_fuse(x, w) or not isinstance(w.data, PackedInt4):
            return super().norm_linear(x, delta, norm, eps, w)
        return self._norm_linear(x, delta, norm, eps, w, w.data, gated=False)

    def norm_gated(
        self, x: Tensor, delta: Tensor | None, norm: Tensor, eps: float, gate_up: Linear
    ) -> tuple[Tensor, Tensor]:
        data = gate_up.data
        if (
            not _can_fuse(x, gate_up)
            or not isinstance(data, PackedInt4)
            or gate_up.out_features % 32
        ):
            return super().norm_gated(x, delta, norm, eps, gate_up)
        return self._norm_linear(x, delta, norm, eps, gate_up, data, gated=True)

    def _gated(self, x: Tensor, w: Linear, data: PackedInt4) -> Tensor:
        y = self._empty(x.shape[0], w.out_features // 2)
        status = self._lib.youtu_int4_gated(
            y.data_ptr(),
            x.data_ptr(),
            data.address,
            data.bias_address,
            x.shape[0],
            w.out_features,
            w.in_features,
            data.group_size,
            _row_stride(x),
            self._stream(),
        )
        native.check(status, "gated linear")
        return y

    def _norm_linear(
        self,
        x: Tensor,
        delta: Tensor | None,
        norm: Tensor,
        eps: float,
        w: Linear,
        data: PackedInt4,
        *,
        gated: bool,
    ) -> tuple[Tensor, Tensor]:
        assert delta is None or delta.is_contiguous()
        total = x if delta is None else self._empty(*x.shape)
        y = self._empty(x.shape[0], w.out_features // 2 if gated else w.out_features)
        status = self._lib.youtu_int4_norm_linear(
            y.data_ptr(),
            total.data_ptr(),
            x.data_ptr(),
            None if delta is None else delta.data_ptr(),
            norm.data_ptr(),
            data.address,
            data.bias_address,
            x.shape[0],
            w.out_features,
            w.in_features,
            data.group_size,
            gated,
            _row_stride(x),
            eps,
            self._stream(),
        )
        native.check(status, "norm_linear")
        return total, y

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
            _step(batch, cache),
            num_heads,
            num_kv_heads,
            head_dim,
            layer,
            self._stream(),
        )
        native.check(status, "rope_cache")
        return heads[:, :num_heads]

    def gqa_attention(
        self, q: Tensor, batch: Batch, cache: CacheStorage, layer: int, scale: float
    ) -> Tensor:
        num_tokens, num_heads, head_dim = q.shape
        num_kv_heads = cache.spec.width // (2 * head_dim)
        out = self._empty(num_tokens, num_heads * head_dim)
        for part in self._parts(batch, cache):
            rows = part.rows
            if part.gathered:
                entries = self._gather(part, cache, layer)
                k, v = entries.view(len(entries), 2, num_kv_heads, head_dim).unbind(1)
                out[rows] = _attention(q[rows], k, v, scale)
                continue
            status = self._lib.youtu_gqa_attention(
                out[rows].data_ptr(),
                q[rows].data_ptr(),
                q.stride(0),
                part.step,
                num_heads,
                num_kv_heads,
                head_dim,
                layer,
                scale,
                self._stream(),
            )
            native.check(status, f"gqa_attention of {num_heads} heads of {head_dim}")
        return out

    def mla_rope_cache(
        self, q: Tensor, latent: Tensor, rope: Rope, batch: Batch, cache: CacheStorage, layer: int
    ) -> Tensor:
        return self._mla_rope_cache(q, latent, None, 0.0, rope, batch, cache, layer)

    def _mla_rope_cache(
        self,
        q: Tensor,
        latent: Tensor,
        norm: Tensor | None,
        eps: float,
        rope: Rope,
        batch: Batch,
        cache: CacheStorage,
        layer: int,
    ) -> Tensor:
        assert q.is_contiguous()
        status = self._lib.youtu_mla_norm_rope_cache(
            q.data_ptr(),
            latent.data_ptr(),
            None if norm is None else norm.data_ptr(),
            _row_stride(latent),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            rope.dim,
            rope.interleaved,
            _step(batch, cache),
            q.shape[1],
            q.shape[2],
            layer,
            eps,
            self._stream(),
        )
        native.check(status, "mla_rope_cache")
        return q

    def mla(
        self,
        q: Tensor,
        latent: Tensor,
        norm: Tensor,
        eps: float,
        rope: Rope,
        kv_b: Linear,
        batch: Batch,
        cache: CacheStorage,
        layer: int,
        v_dim: int,
        scale: float,
    ) -> Tensor:
        parts, data = self._parts(batch, cache), _mla_weight(kv_b)
        num_tokens, num_heads, _ = q.shape
        if len(parts) > 1 or parts[0].gathered:
            q = self._mla_rope_cache(q, latent, norm, eps, rope, batch, cache, layer)
            return self.mla_attention(q, kv_b, batch, cache, layer, v_dim, scale)
        assert q.is_contiguous()
        out = self._empty(num_tokens, num_heads * v_dim)
        status = self._lib.youtu_mla_decode(
            out.data_ptr(),
            q.data_ptr(),
            latent.data_ptr(),
            norm.data_ptr(),
            data.address,
            _row_stride(latent),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            rope.interleaved,
            data.group_size,
            parts[0].step,
            num_heads,
            layer,
            scale,
            eps,
            self._stream(),
        )
        native.check(status, f"mla of {num_heads} heads, latent of {kv_b.in_features}")
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
        """As api.Ops; kv_b must be INT4, and the shape the one the kernels are made for."""
        data = _mla_weight(kv_b)
        num_tokens, num_heads, q_dim = q.shape
        nope, rank = kv_b.out_features // num_heads - v_dim, kv_b.in_features
        out = self._empty(num_tokens, num_heads * v_dim)
        for part in self._parts(batch, cache):
            rows = part.rows
            if part.gathered:
                entries = self._gather(part, cache, layer)  # [C, rank + rope]
                kv = self.linear(entries[:, :rank], kv_b)
                kv = kv.view(len(entries), num_heads, nope + v_dim)
                k_rope = entries[:, None, rank:].expand(-1, num_heads, -1)
                k = torch.cat([kv[..., :nope], k_rope], dim=2)
                out[rows] = _attention(q[rows], k, kv[..., nope:], scale)
                continue
            status = self._lib.youtu_mla_attention(
                out[rows].data_ptr(),
                q[rows].data_ptr(),
                data.address,
                data.group_size,
                part.step,
                num_heads,
                nope,
                q_dim - nope,
                v_dim,
                rank,
                layer,
                scale,
                self._stream(),
            )
            native.check(status, f"mla_attention of {num_heads} heads of {nope} + {q_dim - nope}")
        return out

    def _gather(self, part: _Part, cache: CacheStorage, layer: int) -> Tensor:
        """The visible cache entries of a part of one sequence, [context, width]."""
        entries = self._empty(part.batch.context_lens[0], cache.spec.width)
        status = self._lib.youtu_cache_gather(
            entries.data_ptr(), part.step, 0, len(entries), layer, self._stream()
        )
        native.check(status, "cache_gather")
        return entries

    def _parts(self, batch: Batch, cache: CacheStorage) -> list[_Part]:
        """How attention divides a step; worked out at its first layer and kept for the others."""
        seen = self._parts_of
        if seen is None or seen[0] is not batch or seen[1] is not cache:
            self._parts_of = seen = (batch, cache, _divide(batch, cache))
        return seen[2]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _stream(self) -> int:
        # What torch.cuda.current_stream is made of; that takes 15 times as long.
        stream: int = torch._C._cuda_getCurrentRawStream(self._index)
        return stream


def _can_fuse(x: Tensor, w: Linear) -> bool:
    return x.shape[0] <= native.FEW_ROWS and w.in_features <= MAX_NORM_WIDTH


def _divide(batch: Batch, cache: CacheStorage) -> list[_Part]:
    entry_bytes = cache.spec.width * 2

    def gathered(s: int) -> bool:
        few = batch.query_lens[s] <= MAX_SPLIT_ROWS
        return not few and batch.context_lens[s] * entry_bytes <= MAX_GATHERED_BYTES

    parts, first, row = [], 0, 0
    for s in range(batch.num_seqs):
        alone = gathered(s)
        if s + 1 < batch.num_seqs and not alone and not gathered(s + 1):
            continue
        num_rows = sum(batch.query_lens[first : s + 1])
        rows = slice(row, row + num_rows)
        part = batch if num_rows == batch.num_tokens else _sub_batch(batch, first, s + 1, rows)
        parts.append(_Part(rows, part, _step(part, cache), alone))
        first, row = s + 1, row + num_rows
    return parts


def _sub_batch(batch: Batch, first: int, last: int, rows: slice) -> Batch:
    return replace(
        batch,
        token_ids=batch.token_ids[rows],
        positions=batch.positions[rows],
        slots=batch.slots[rows],
        query_start=batch.query_start[first : last + 1] - rows.start,
        context_len=batch.context_len[first:last],
        page_table=batch.page_table[first:last],
        query_lens=batch.query_lens[first:last],
        context_lens=batch.context_lens[first:last],
        logit_rows=None,
    )


def _step(batch: Batch, cache: CacheStorage) -> native.Step:
    if cache.dtype != torch.float16:
        raise ModelError(f"the CUDA kernels keep the cache in float16, not {cache.dtype}")
    return native.Step(
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
        native.FLOAT16,
        0,
    )


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q [t, H, Dk], k [C, G, Dk], v [C, G, Dv] -> [t, H * Dv]; the last t of C are q's own."""
    num_new, context = q.shape[0], k.shape[0]
    mask = None
    if num_new != context:
        mask = torch.ones(num_new, context, dtype=torch.bool, device=q.device)
        mask = mask.tril(context - num_new)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # [1, H, t, Dv]
    return out[0].transpose(0, 1).flatten(1)


def _mla_weight(kv_b: Linear) -> PackedInt4:
    if not isinstance(kv_b.data, PackedInt4):
        raise ModelError(
            "MLA on the native CUDA kernels needs an INT4 kv_b; set engine.kernels: reference"
        )
    return kv_b.data


def _row_stride(x: Tensor) -> int:
    """Values from one row to the next; the values of a row must be adjacent."""
    assert x.stride(1) == 1
    return x.stride(0)
