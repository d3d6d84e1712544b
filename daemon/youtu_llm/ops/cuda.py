"""The operations through the native CUDA kernels. Activations and cache are float16.

Steps of few rows are limited by the reading of weights, so norms and activations are fused with
the linears around them. Attention of few new tokens reads the pages where they are; that of many
gathers a sequence's entries for PyTorch's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from youtu_llm.errors import ModelError, ResourceError
from youtu_llm.ops import library
from youtu_llm.ops.api import Batch, CacheStorage, Linear, Rope
from youtu_llm.ops.cuda_memory import DeviceMemory
from youtu_llm.ops.cuda_parts import Part, divide
from youtu_llm.ops.native_ops import DenseRows, Int8Rows, NativeOps, PackedInt4, row_stride

IMAGE_VARIABLE = "YOUTU_CUDA_IMAGE"  # sm_87, compute_80 ...; unset: the device's own
MAX_NORM_WIDTH = 3072  # of eight rows in shared memory


class CudaOps(NativeOps):
    """One per process: the library has one workspace, for work on one stream at a time."""

    name = "cuda"
    dtype = torch.float16
    can_capture = True
    groups = "128"
    cache_dtypes: ClassVar = {torch.float16: library.FLOAT16}

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
        self._lib = library.load("cuda")
        size = self._lib.youtu_workspace_bytes(1)
        workspace = torch.zeros(size, dtype=torch.uint8, device=self.device)
        image = os.environ.get(IMAGE_VARIABLE, "")
        status = self._lib.youtu_init(1, image.encode(), workspace.data_ptr(), size)
        if status:
            major, minor = torch.cuda.get_device_capability(self.device)
            raise ResourceError(
                f"the CUDA kernels have no code for this device (compute capability {major}.{minor}"
                f", {IMAGE_VARIABLE}={image!r}, error {status})"
            )
        library.workspaces["cuda"] = workspace
        self.image: str = self._lib.youtu_isa().decode()
        self._memory: DeviceMemory = DeviceMemory(self.device)
        self._parts_of: tuple[Batch, CacheStorage, list[Part]] | None = None
        self._share_logits = False
        self._logits: Tensor | None = None
        # cuDNN's attention compiles a plan for every new length.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def expect_weights(self, num_bytes: int) -> None:
        self._memory.expected = num_bytes

    def _empty(self, rows: int, columns: int) -> Tensor:
        return torch.empty(rows, columns, dtype=self.dtype, device=self.device)

    def _stream(self) -> int:
        # What torch.cuda.current_stream is made of; that takes 15 times as long.
        stream: int = torch._C._cuda_getCurrentRawStream(self._index)
        return stream

    # --- token-wise

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        data = w.data
        if isinstance(data, PackedInt4):
            return self._int4_linear(x, w, data)
        if isinstance(data, DenseRows):
            return F.linear(x, data.weight, w.bias)
        return self.logits(x, w).to(self.dtype)

    def logits(self, x: Tensor, head: Linear) -> Tensor:
        data, shape = head.data, (x.shape[0], head.out_features)
        if not isinstance(data, Int8Rows):
            return self.linear(x, head).float()
        if not self._share_logits:
            y = torch.empty(shape, dtype=torch.float32, device=self.device)
        else:
            # PyTorch would give a captured graph a block of 20 MiB for them.
            if self._logits is None:
                self._logits = self._memory.empty(4 * shape[0] * shape[1]).view(torch.float32)
            y = self._logits[: shape[0] * shape[1]].view(shape)
        return self._int8_linear(x, head, data, y)

    @contextlib.contextmanager
    def shared_logits(self) -> Iterator[None]:
        self._share_logits, self._logits = True, None
        try:
            yield
        finally:
            self._share_logits = False

    def argmax(self, logits: Tensor) -> Tensor:
        ids = torch.empty(logits.shape[0], dtype=torch.int64, device=self.device)
        assert logits.is_contiguous()
        self._lib.youtu_argmax(ids.data_ptr(), logits.data_ptr(), *logits.shape, self._stream())
        return ids

    def advance(self, batch: Batch, token_ids: Tensor, found: Tensor, turn: Tensor) -> None:
        self._lib.youtu_advance(
            batch.token_ids.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.context_len.data_ptr(),
            token_ids.data_ptr(),
            found.data_ptr(),
            turn.data_ptr(),
            batch.num_tokens,
            self._stream(),
        )

    # --- fused

    def norm_linear(
        self, x: Tensor, delta: Tensor | None, norm: Tensor, eps: float, w: Linear
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(w.data, PackedInt4) or not _can_fuse(x, w):
            return super().norm_linear(x, delta, norm, eps, w)
        return self._norm_linear(x, delta, norm, eps, w, w.data, gated=False)

    def norm_gated(
        self, x: Tensor, delta: Tensor | None, norm: Tensor, eps: float, gate_up: Linear
    ) -> tuple[Tensor, Tensor]:
        data = gate_up.data
        if not isinstance(data, PackedInt4) or gate_up.out_features % 32:
            return super().norm_gated(x, delta, norm, eps, gate_up)
        if _can_fuse(x, gate_up):
            return self._norm_linear(x, delta, norm, eps, gate_up, data, gated=True)
        if x.shape[0] <= library.FEW_ROWS:
            return super().norm_gated(x, delta, norm, eps, gate_up)
        return x, self._gated(self._normed(x, delta, norm, eps), gate_up, data)

    def _gated(self, x: Tensor, w: Linear, data: PackedInt4) -> Tensor:
        y = self._empty(x.shape[0], w.out_features // 2)
        self._lib.youtu_int4_gated(
            y.data_ptr(),
            x.data_ptr(),
            data.address,
            data.bias_address,
            x.shape[0],
            w.out_features,
            w.in_features,
            data.group_size,
            row_stride(x),
            self._stream(),
        )
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
        total = x if delta is None else self._empty(x.shape[0], x.shape[1])
        y = self._empty(x.shape[0], w.out_features // 2 if gated else w.out_features)
        arguments = library.NormLinear(
            y.data_ptr(),
            total.data_ptr(),
            x.data_ptr(),
            None if delta is None else delta.data_ptr(),
            norm.data_ptr(),
            data.address,
            data.bias_address,
            row_stride(x),
            x.shape[0],
            w.out_features,
            w.in_features,
            data.group_size,
            gated,
            eps,
        )
        self._lib.youtu_int4_norm_linear(arguments, self._stream())
        return total, y

    # --- attention

    def gqa_attention(
        self, q: Tensor, batch: Batch, cache: CacheStorage, layer: int, scale: float
    ) -> Tensor:
        num_heads, head_dim = q.shape[1:]
        num_kv_heads = cache.spec.width // (2 * head_dim)
        outs = []
        for part in self._parts(batch, cache):
            rows = q[part.rows]
            if part.gathered:
                entries = self._gather(part, cache, layer)
                k, v = entries.view(len(entries), 2, num_kv_heads, head_dim).unbind(1)
                outs.append(_attention(rows, k, v, scale))
                continue
            outs.append(self._empty(len(rows), num_heads * head_dim))
            self._lib.youtu_gqa_attention(
                outs[-1].data_ptr(),
                rows.data_ptr(),
                q.stride(0),
                part.step,
                num_heads,
                num_kv_heads,
                head_dim,
                layer,
                scale,
                self._stream(),
            )
        return _joined(outs)

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
        assert q.is_contiguous()
        if len(parts) > 1 or parts[0].gathered:
            self._mla_norm_rope_cache(q, latent, norm, eps, rope, batch, cache, layer)
            return self.mla_attention(q, kv_b, batch, cache, layer, v_dim, scale)
        num_tokens, num_heads, _ = q.shape
        out = self._empty(num_tokens, num_heads * v_dim)
        arguments = library.MlaDecode(
            out.data_ptr(),
            q.data_ptr(),
            latent.data_ptr(),
            norm.data_ptr(),
            data.address,
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            row_stride(latent),
            rope.interleaved,
            data.group_size,
            num_heads,
            layer,
            scale,
            eps,
        )
        self._lib.youtu_mla_decode(arguments, parts[0].step, self._stream())
        return out

    def _mla_norm_rope_cache(
        self,
        q: Tensor,
        latent: Tensor,
        norm: Tensor,
        eps: float,
        rope: Rope,
        batch: Batch,
        cache: CacheStorage,
        layer: int,
    ) -> None:
        """`mla_rope_cache` of a latent that is to be normalised."""
        arguments = library.MlaNormRopeCache(
            q.data_ptr(),
            latent.data_ptr(),
            norm.data_ptr(),
            rope.cos.data_ptr(),
            rope.sin.data_ptr(),
            row_stride(latent),
            rope.dim,
            rope.interleaved,
            q.shape[1],
            q.shape[2],
            layer,
            eps,
        )
        step = self._step_for(batch, cache)
        self._lib.youtu_mla_norm_rope_cache(arguments, step, self._stream())

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
        num_heads, q_dim = q.shape[1:]
        nope, rank = kv_b.out_features // num_heads - v_dim, kv_b.in_features
        outs = []
        for part in self._parts(batch, cache):
            rows = q[part.rows]
            if part.gathered:
                entries = self._gather(part, cache, layer)  # [C, rank + rope]
                kv = self.linear(entries[:, :rank], kv_b)
                kv = kv.view(len(entries), num_heads, nope + v_dim)
                k_rope = entries[:, None, rank:].expand(-1, num_heads, -1)
                k = torch.cat([kv[..., :nope], k_rope], dim=2)
                outs.append(_attention(rows, k, kv[..., nope:], scale))
                del entries, kv, k_rope, k  # before the next takes memory
                continue
            outs.append(self._empty(len(rows), num_heads * v_dim))
            arguments = library.MlaAttention(
                outs[-1].data_ptr(),
                rows.data_ptr(),
                data.address,
                data.group_size,
                num_heads,
                nope,
                q_dim - nope,
                v_dim,
                rank,
                layer,
                scale,
            )
            self._lib.youtu_mla_attention(arguments, part.step, self._stream())
        return _joined(outs)

    def _gather(self, part: Part, cache: CacheStorage, layer: int) -> Tensor:
        """The visible cache entries of a part of one sequence, [context, width]."""
        entries = self._empty(part.batch.context_lens[0], cache.spec.width)
        self._lib.youtu_cache_gather(
            entries.data_ptr(), part.step, 0, len(entries), layer, self._stream()
        )
        return entries

    def _parts(self, batch: Batch, cache: CacheStorage) -> list[Part]:
        """How attention divides a step; worked out at its first layer and kept for the others."""
        seen = self._parts_of
        if seen is None or seen[0] is not batch or seen[1] is not cache:
            self._parts_of = seen = (batch, cache, divide(batch, cache, self._new_step))
        return seen[2]


def _can_fuse(x: Tensor, w: Linear) -> bool:
    return x.shape[0] <= library.FEW_ROWS and w.in_features <= MAX_NORM_WIDTH


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
