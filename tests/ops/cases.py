"""One table of shapes for every backend, and the truth of each operation in float64.

Bounds are relative: root mean square of the error over that of the truth.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from youtu_llm.ops import awq
from youtu_llm.ops.api import (
    PAGE_SIZE,
    Batch,
    CacheSpec,
    CacheStorage,
    DenseWeight,
    Int4Weight,
    Int8Weight,
    Rope,
)
from youtu_llm.protocol import pages_for

# [out, in] of the models' linears, with the tile traps: N of 576, 2112 and 1000.
LINEARS = [
    (1152, 896),
    (896, 4864),
    (2112, 2048),
    (576, 2048),
    (3072, 1536),
    (1536, 8960),
    (2048, 6144),
    (4096, 512),
    (1000, 128),
]
TOKENS = [1, 2, 3, 5, 12, 13, 67]
# query heads, key/value heads, values a head
HEADS = [(14, 2, 64), (12, 2, 128), (16, 16, 128), (32, 4, 64), (32, 32, 80)]
# (new tokens, visible context) of each sequence: prefill, decode, chunks, odd page tails.
SEQUENCES = [
    [(1, 1)],
    [(1, 700)],
    [(5, 5), (1, 256), (1, 257), (3, 511)],
    [(70, 70), (1, 2000)],
    [(130, 390)],
]
MLA_SEQUENCES = [*SEQUENCES, [(180, 300), (1, 40)]]


def generator(*seed: int) -> torch.Generator:
    value = 17
    for s in seed:
        value = (value * 1_000_003 + s) % (1 << 31)
    return torch.Generator().manual_seed(value)


def relative_error(y: Tensor, truth: Tensor) -> float:
    assert y.shape == truth.shape
    difference = y.double().cpu() - truth
    return float(difference.pow(2).mean().sqrt() / truth.pow(2).mean().sqrt())


# --- weights


@functools.cache
def int4_weight(n: int, k: int, group: int = 128, *, bias: bool = False) -> Int4Weight:
    g = generator(n, k, group)
    qweight, qzeros, scales = awq.quantize_rtn(torch.randn(n, k, generator=g) * 0.05, group)
    return Int4Weight(qweight, qzeros, scales, torch.randn(n, generator=g) if bias else None)


@functools.cache
def int8_weight(n: int, k: int) -> Int8Weight:
    weight, scales = awq.quantize_rows_int8(torch.randn(n, k, generator=generator(n, k)))
    return Int8Weight(weight, scales)


def dense(w: DenseWeight | Int4Weight | Int8Weight) -> Tensor:
    """The weight as float64 [out, in]."""
    if isinstance(w, DenseWeight):
        return w.weight.double()
    if isinstance(w, Int8Weight):
        return w.weight.double() * w.scales.double()[:, None]
    return awq.dequantize(w.qweight, w.qzeros, w.scales).double().t()


def linear(x: Tensor, w: Int4Weight | Int8Weight) -> Tensor:
    y = x.double() @ dense(w).t()
    return y if w.bias is None else y + w.bias.double()


# --- steps


@dataclass
class Paged:
    """A cache with a shuffled page table, filled with random entries."""

    batch: Batch
    cache: CacheStorage
    memory: Tensor  # [pages, layers, PAGE_SIZE, width]

    def entries(self, s: int, layer: int) -> Tensor:
        """Visible entries of sequence s as float64 [context, width]."""
        length = self.batch.context_lens[s]
        pages = self.batch.page_table[s, : pages_for(length)].long()
        return self.memory[pages, layer].flatten(0, 1)[:length].double()


def paged(sequences: list[tuple[int, int]], width: int, dtype: torch.dtype) -> Paged:
    g = generator(width, *itertools.chain(*sequences))
    queries, contexts = zip(*sequences, strict=True)
    counts = [pages_for(c) for c in contexts]
    num_layers, num_pages = 2, sum(counts) + 1
    memory = torch.randn(num_pages, num_layers, PAGE_SIZE, width, generator=g).to(dtype)
    ids = torch.randperm(num_pages, generator=g).to(torch.int32)
    table = torch.full((len(sequences), max(counts) + 1), -1, dtype=torch.int32)
    start, positions, slots = 0, [], []
    for s, (query, context) in enumerate(sequences):
        table[s, : counts[s]] = ids[start : start + counts[s]]
        start += counts[s]
        where = torch.arange(context - query, context)
        positions.append(where + 3 * s)  # as if 3 s tokens had been dropped
        slots.append(table[s, where // PAGE_SIZE].long() * PAGE_SIZE + where % PAGE_SIZE)
    cache = CacheStorage(
        CacheSpec(num_layers, width),
        dtype,
        torch.tensor([page.data_ptr() for page in memory], dtype=torch.int64),
        list(memory),
    )
    batch = Batch(
        token_ids=torch.zeros(sum(queries), dtype=torch.int64),
        positions=torch.cat(positions),
        slots=torch.cat(slots),
        query_start=torch.tensor([0, *itertools.accumulate(queries)], dtype=torch.int32),
        context_len=torch.tensor(contexts, dtype=torch.int32),
        page_table=table,
        query_lens=tuple(queries),
        context_lens=tuple(contexts),
    )
    return Paged(batch, cache, memory)


def rope(dim: int, *, interleaved: bool) -> Rope:
    angles = torch.arange(2200)[:, None] / 1e4 ** (torch.arange(0, dim, 2) / dim)
    return Rope(angles.cos(), angles.sin(), interleaved)


def rotate(x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
    """Rotate the first rope.dim values of each head of x [T, heads, D], in float64."""
    x = x.double().clone()
    cos, sin = rope.cos[positions].double()[:, None], rope.sin[positions].double()[:, None]
    half = rope.dim // 2
    if rope.interleaved:
        first, second = slice(0, rope.dim, 2), slice(1, rope.dim, 2)
    else:
        first, second = slice(0, half), slice(half, rope.dim)
    a, b = x[..., first].clone(), x[..., second].clone()
    x[..., first], x[..., second] = a * cos - b * sin, b * cos + a * sin
    return x


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q [t, H, Dk], k [C, H, Dk], v [C, H, Dv] -> [t, H, Dv]; causal, in float64."""
    t, c = q.shape[0], k.shape[0]
    scores = torch.einsum("thd,chd->htc", q.double(), k.double()) * scale
    hidden = ~torch.ones(t, c, dtype=torch.bool).tril(c - t)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("htc,chd->thd", weights, v.double())


def gqa(q: Tensor, data: Paged, layer: int, scale: float) -> Tensor:
    num_heads, head_dim = q.shape[1:]
    out = []
    for s in range(data.batch.num_seqs):
        rows = slice(*data.batch.query_start[s : s + 2].tolist())
        entries = data.entries(s, layer)
        kv = entries.view(len(entries), 2, -1, head_dim)  # [C, 2, G, D]
        kv = kv.repeat_interleave(num_heads // kv.shape[2], dim=2)
        out.append(attention(q[rows], kv[:, 0], kv[:, 1], scale))
    return torch.cat(out).flatten(1)


def mla(
    q: Tensor, kv_b: DenseWeight | Int4Weight, data: Paged, layer: int, v_dim: int, scale: float
) -> Tensor:
    num_heads = q.shape[1]
    w = dense(kv_b).unflatten(0, (num_heads, -1))  # [H, nope + v, rank]
    out = []
    for s in range(data.batch.num_seqs):
        rows = slice(*data.batch.query_start[s : s + 2].tolist())
        entries = data.entries(s, layer)
        kv = torch.einsum("cr,hnr->chn", entries[:, : w.shape[2]], w)
        key_part = entries[:, None, w.shape[2] :].expand(-1, num_heads, -1)
        k = torch.cat([kv[..., :-v_dim], key_part], dim=2)
        out.append(attention(q[rows], k, kv[..., -v_dim:], scale))
    return torch.cat(out).flatten(1)
