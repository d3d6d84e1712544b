"""The list of operations. A backend implements `Ops`; adding one is implementing this list.

Shapes: T tokens of a step over all its sequences, S sequences, H query heads, G key/value
heads, D values a head. Activations have the backend's `dtype`; norms, softmax and logits are
computed in float32 by every backend.
"""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from youtu_llm.protocol import PAGE_SIZE as PAGE_SIZE

# --- weights, as a checkpoint holds them -------------------------------------------------


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """y = x W^T + b."""

    weight: Tensor  # [out, in] floating point
    bias: Tensor | None = None  # [out]


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """AutoAWQ GEMM layout: W = (q - z) * s by groups along `in`; see ops/awq.py."""

    qweight: Tensor  # [in, out / 8] int32
    qzeros: Tensor  # [in / group, out / 8] int32
    scales: Tensor  # [in / group, out] float16
    bias: Tensor | None = None  # [out]

    @property
    def group_size(self) -> int:
        return self.qweight.shape[0] // self.scales.shape[0]


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """W = q * s, one scale a row."""

    weight: Tensor  # [out, in] int8
    scales: Tensor  # [out] float16
    bias: Tensor | None = None  # [out]


Weight = DenseWeight | Int4Weight | Int8Weight


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight in the form its backend computes with. `data` is that backend's own."""

    out_features: int
    in_features: int
    data: object
    bias: Tensor | None = None  # [out]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary tables, scaling included. The first `dim` values of a head are rotated."""

    cos: Tensor  # [positions, dim / 2] float32
    sin: Tensor  # [positions, dim / 2] float32
    interleaved: bool  # pairs are (0, 1), (2, 3) ...; else (0, dim/2), (1, dim/2 + 1) ...

    @property
    def dim(self) -> int:
        return 2 * self.cos.shape[1]


# --- one step's data ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one step. Rows of a sequence are consecutive and in order.

    The tokens a row may see are the first `context_len - (rows after it)` of its sequence's
    visible tokens, which are what the page table lists: pages dropped by the rolling window
    are not in it. `positions` are absolute: they count dropped tokens too.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int64: page * PAGE_SIZE + offset, where the row's cache entry goes
    query_start: Tensor  # [S + 1] int32: rows of sequence s are query_start[s] .. [s + 1]
    context_len: Tensor  # [S] int32: visible tokens of the sequence after this step
    page_table: Tensor  # [S, P] int32 page ids, P >= pages of the longest sequence
    query_lens: tuple[int, ...]  # the same lengths for Python: no device reads
    context_lens: tuple[int, ...]
    logit_rows: Tensor | None = None  # [R] int64 rows that need logits; None: all

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_seqs(self) -> int:
        return len(self.query_lens)


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What a model keeps: one vector per token per layer.

    GQA keeps keys then values, [2 * G * D]; MLA keeps the latent then the rotated key part.
    """

    num_layers: int
    width: int

    def token_bytes(self, dtype: torch.dtype) -> int:
        return self.num_layers * self.width * dtype.itemsize


@dataclass(slots=True)
class CacheStorage:
    """Where pages live. A page holds all layers of its tokens: [layers, PAGE_SIZE, width].

    `addresses[page]` is the page's base address, for kernels; `pages[page]` the same memory
    as a tensor. Both have an entry for every page up to the limit; unallocated ones are 0 and
    None.
    """

    spec: CacheSpec
    dtype: torch.dtype
    addresses: Tensor  # [limit] int64, on the device
    pages: list[Tensor | None] = field(default_factory=list)


# --- the operations ----------------------------------------------------------------------


class Ops(abc.ABC):
    """A backend. Every method returns a new tensor unless it says otherwise."""

    name: str
    device: torch.device
    dtype: torch.dtype  # of activations
    can_capture: bool = False  # a step of single rows needs nothing from the host

    def expect_weights(self, num_bytes: int) -> None:  # noqa: B027 - a hint
        """What `prepare_*` will be given in all, so that memory for it can be asked for at once."""

    @abc.abstractmethod
    def prepare_linear(self, weight: Weight) -> Linear:
        """Repack a checkpoint's weight once, at load; the original may be freed after."""

    @abc.abstractmethod
    def prepare_embedding(self, weight: DenseWeight | Int8Weight) -> Linear:
        """A [vocab, hidden] table that serves `embed` and, when tied, `logits`."""

    @abc.abstractmethod
    def embed(self, token_ids: Tensor, table: Linear) -> Tensor:
        """[T] ids -> [T, hidden]."""

    @abc.abstractmethod
    def linear(self, x: Tensor, w: Linear) -> Tensor:
        """[T, in] -> [T, out], bias included."""

    @abc.abstractmethod
    def logits(self, x: Tensor, head: Linear) -> Tensor:
        """[R, hidden] -> [R, vocab] float32."""

    @abc.abstractmethod
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[T, n] -> [T, n]; rows of `x` may be strided (a slice of a wider tensor)."""

    @abc.abstractmethod
    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """residual += x in place; returns rms_norm(residual)."""

    @abc.abstractmethod
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """[T, n] -> [T, n]."""

    @abc.abstractmethod
    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2 * n] (gate | up) -> silu(gate) * up, [T, n]."""

    @abc.abstractmethod
    def gelu_tanh(self, x: Tensor) -> Tensor:
        """GELU by its tanh approximation, [T, n] -> [T, n]."""

    @abc.abstractmethod
    def rope_cache(
        self,
        qkv: Tensor,
        head_dim: int,
        rope: Rope,
        batch: Batch,
        cache: CacheStorage,
        layer: int,
    ) -> Tensor:
        """Rotate queries and keys, write keys and values to the cache.

        qkv [T, (H + 2 G) * D], heads in the order q | k | v; the cache's width is 2 * G * D.
        Returns the rotated queries [T, H, D], which may be a view of `qkv` rotated in place.
        """

    @abc.abstractmethod
    def gqa_attention(
        self, q: Tensor, batch: Batch, cache: CacheStorage, layer: int, scale: float
    ) -> Tensor:
        """Causal attention of q [T, H, D] over the cache, this step's tokens included.

        -> [T, H * D]. Query head h reads key/value head h * G // H.
        """

    @abc.abstractmethod
    def mla_rope_cache(
        self, q: Tensor, latent: Tensor, rope: Rope, batch: Batch, cache: CacheStorage, layer: int
    ) -> Tensor:
        """MLA's rotary part and cache write.

        q [T, H, nope + rope.dim]: its last `rope.dim` values are rotated. latent
        [T, rank + rope.dim]: normalised latent | key part, of which the key part is rotated and
        both are written to the cache. Returns the queries, which may be `q` rotated in place.
        """

    @abc.abstractmethod
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
        """Multi-head latent attention (DeepSeek-V2, Liu et al. 2024) over the latent cache.

        q [T, H, nope + rope]; kv_b maps the latent to [H, nope + v_dim] -> [T, H * v_dim].
        A backend may use the absorbed or the expanded form, sequence by sequence.
        """

    # --- several of the above in one: what a backend may fuse

    def norm_linear(
        self, x: Tensor, delta: Tensor | None, norm: Tensor, eps: float, w: Linear
    ) -> tuple[Tensor, Tensor]:
        """-> (x + delta, linear(rms_norm(x + delta), w)); x may be changed in place."""
        return x, self.linear(self._normed(x, delta, norm, eps), w)

    def _normed(self, x: Tensor, delta: Tensor | None, norm: Tensor, eps: float) -> Tensor:
        """rms_norm(x + delta); x becomes the sum."""
        if delta is None:
            return self.rms_norm(x, norm, eps)
        return self.add_rms_norm(x, delta, norm, eps)

    def norm_gated(
        self, x: Tensor, delta: Tensor | None, norm: Tensor, eps: float, gate_up: Linear
    ) -> tuple[Tensor, Tensor]:
        """-> (x + delta, silu_mul of norm_linear's); x may be changed in place."""
        x, y = self.norm_linear(x, delta, norm, eps, gate_up)
        return x, self.silu_mul(y)

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
        """`mla_rope_cache` and `mla_attention`, with the latent's norm before them."""
        rank = latent.shape[1] - rope.dim
        normed = self.rms_norm(latent[:, :rank], norm, eps)
        latent = torch.cat([normed, latent[:, rank:]], dim=1)
        q = self.mla_rope_cache(q, latent, rope, batch, cache, layer)
        return self.mla_attention(q, kv_b, batch, cache, layer, v_dim, scale)

    def argmax(self, logits: Tensor) -> Tensor:
        """[R, vocab] -> [R] int64, the first of equals; -1 where the largest is not finite."""
        largest, ids = logits.max(-1)
        return torch.where(largest.isfinite(), ids, -1)

    def shared_logits(self) -> AbstractContextManager[None]:
        """While it lasts, all results of `logits` lie in one place: the next call overwrites them.

        Only for backends that can capture; the first call must be the largest.
        """
        raise NotImplementedError

    def advance(self, batch: Batch, token_ids: Tensor, found: Tensor, turn: Tensor) -> None:
        """Make a batch of single rows the next step's, in place: one token [T] further.

        Rows without a slot (-1) stay. The host finds the tokens in row `turn` % 2 of found
        [2, T] int64, in pinned memory; turn [1] int32 then is one more. Only for backends that can
        capture.
        """
        raise NotImplementedError
