"""The operations in plain torch: slow, obvious, and the truth the others are tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from youtu_llm.ops import awq
from youtu_llm.ops.api import (
    PAGE_SIZE,
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
from youtu_llm.protocol import pages_for

# Expanding the cached latents costs as much as ~171 new tokens save by the cheaper
# expanded attention (DESIGN §6).
MLA_EXPAND_MIN_TOKENS = 171


class ReferenceOps(Ops):
    """Runs anywhere torch does. INT4 weights are expanded at every call."""

    name = "reference"

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype

    # --- weights

    def prepare_linear(self, weight: Weight) -> Linear:
        bias = None if weight.bias is None else weight.bias.to(self.device, self.dtype)
        data: Weight
        if isinstance(weight, DenseWeight):
            out_features, in_features = weight.weight.shape
            data = DenseWeight(weight.weight.to(self.device, self.dtype))
        elif isinstance(weight, Int8Weight):
            out_features, in_features = weight.weight.shape
            data = Int8Weight(weight.weight.to(self.device), weight.scales.to(self.device))
        else:
            in_features, out_features = weight.qweight.shape[0], weight.scales.shape[1]
            data = Int4Weight(
                weight.qweight.to(self.device),
                weight.qzeros.to(self.device),
                weight.scales.to(self.device),
            )
        return Linear(out_features, in_features, data, bias)

    def prepare_embedding(self, weight: DenseWeight | Int8Weight) -> Linear:
        return self.prepare_linear(weight)

    def dense(self, w: Linear) -> Tensor:
        """The weight as a [out, in] matrix of the activations' type."""
        data = w.data
        if isinstance(data, DenseWeight):
            return data.weight
        if isinstance(data, Int8Weight):
            return (data.weight.float() * data.scales.float()[:, None]).to(self.dtype)
        assert isinstance(data, Int4Weight)
        dense = awq.dequantize(data.qweight, data.qzeros, data.scales)  # [in, out]
        return dense.t().to(self.dtype)

    # --- token-wise

    def embed(self, token_ids: Tensor, table: Linear) -> Tensor:
        data = table.data
        if isinstance(data, Int8Weight):
            rows = data.weight[token_ids].float()  # [T, hidden]
            return (rows * data.scales[token_ids].float()[:, None]).to(self.dtype)
        assert isinstance(data, DenseWeight)
        return data.weight[token_ids]

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        return F.linear(x, self.dense(w), w.bias)

    def logits(self, x: Tensor, head: Linear) -> Tensor:
        return self.linear(x, head).float()

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (wide * weight.float()).to(self.dtype)

    def add_rms_norm(self, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        residual += x
        return self.rms_norm(residual, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        wide = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
        return wide.to(self.dtype)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

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
        heads = qkv.view(qkv.shape[0], -1, head_dim)  # [T, H + 2 G, D]
        num_kv_heads = cache.spec.width // (2 * head_dim)
        num_heads = heads.shape[1] - 2 * num_kv_heads
        q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        q = _rotate(q, rope, batch.positions)
        k = _rotate(k, rope, batch.positions)
        entry = torch.cat([k.flatten(1), v.flatten(1)], dim=1)  # [T, 2 * G * D]
        _write(entry, batch, cache, layer)
        return q

    def mla_rope_cache(
        self, q: Tensor, latent: Tensor, rope: Rope, batch: Batch, cache: CacheStorage, layer: int
    ) -> Tensor:
        rank = latent.shape[1] - rope.dim
        k_rope = _rotate(latent[:, None, rank:], rope, batch.positions)[:, 0]  # [T, rope]
        _write(torch.cat([latent[:, :rank], k_rope], dim=1), batch, cache, layer)
        nope = q.shape[2] - rope.dim
        return torch.cat([q[..., :nope], _rotate(q[..., nope:], rope, batch.positions)], dim=2)

    # --- attention

    def gqa_attention(
        self, q: Tensor, batch: Batch, cache: CacheStorage, layer: int, scale: float
    ) -> Tensor:
        num_heads, head_dim = q.shape[1:]
        out = torch.empty_like(q)
        q = q.float()  # scores of real models exceed float16
        for s, rows in enumerate(_rows(batch)):
            entries = _read(batch, s, cache, layer)  # [C, 2 * G * D]
            k, v = entries.view(len(entries), 2, -1, head_dim).unbind(1)  # [C, G, D]
            groups = num_heads // k.shape[1]
            k = k.repeat_interleave(groups, dim=1)
            v = v.repeat_interleave(groups, dim=1)
            scores = torch.einsum("thd,chd->htc", q[rows], k) * scale
            out[rows] = torch.einsum("htc,chd->thd", _causal_softmax(scores), v)
        return out.flatten(1)

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
        num_tokens, num_heads, _ = q.shape
        out = torch.empty(num_tokens, num_heads, v_dim, dtype=q.dtype, device=q.device)
        q = q.float()
        w = self.dense(kv_b).float().view(num_heads, -1, kv_b.in_features)  # [H, nope + v, R]
        w_k, w_v = w[:, :-v_dim], w[:, -v_dim:]
        for s, rows in enumerate(_rows(batch)):
            entries = _read(batch, s, cache, layer)  # [C, rank + rope]
            attend = _mla_expanded if batch.query_lens[s] > MLA_EXPAND_MIN_TOKENS else _mla_absorbed
            out[rows] = attend(q[rows], entries, w_k, w_v, scale)
        return out.flatten(1)


def _mla_absorbed(q: Tensor, entries: Tensor, w_k: Tensor, w_v: Tensor, scale: float) -> Tensor:
    """Attend in the latent space: the up-projections move to the query and to the sum."""
    rank = w_k.shape[2]
    q_latent = torch.einsum("thn,hnr->thr", q[..., : w_k.shape[1]], w_k)  # [t, H, rank]
    q_full = torch.cat([q_latent, q[..., w_k.shape[1] :]], dim=2)
    scores = torch.einsum("thr,cr->htc", q_full, entries) * scale
    mixed = torch.einsum("htc,cr->thr", _causal_softmax(scores), entries[:, :rank])
    return torch.einsum("thr,hvr->thv", mixed, w_v)  # [t, H, v]


def _mla_expanded(q: Tensor, entries: Tensor, w_k: Tensor, w_v: Tensor, scale: float) -> Tensor:
    """Attend with whole keys and values: fewer operations a score, once they are expanded."""
    latent, k_rope = entries.split([w_k.shape[2], entries.shape[1] - w_k.shape[2]], dim=1)
    k = torch.einsum("cr,hnr->chn", latent, w_k)
    k = torch.cat([k, k_rope[:, None].expand(-1, k.shape[1], -1)], dim=2)  # [C, H, nope + rope]
    v = torch.einsum("cr,hvr->chv", latent, w_v)
    scores = torch.einsum("thd,chd->htc", q, k) * scale
    return torch.einsum("htc,chv->thv", _causal_softmax(scores), v)


def _causal_softmax(scores: Tensor) -> Tensor:
    """[H, t, C] -> probabilities; row i of t sees the first C - t + i + 1 tokens."""
    t, c = scores.shape[1:]
    mask = torch.ones(t, c, dtype=torch.bool, device=scores.device).tril(c - t)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1)


def _rotate(x: Tensor, rope: Rope, positions: Tensor) -> Tensor:
    """Rotate the first `rope.dim` values of each head of x [T, heads, D]."""
    cos, sin = rope.cos[positions][:, None], rope.sin[positions][:, None]  # [T, 1, dim / 2]
    turned, rest = x[..., : rope.dim].float(), x[..., rope.dim :]
    if rope.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    else:
        a, b = turned.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


def _rows(batch: Batch) -> list[slice]:
    slices, start = [], 0
    for length in batch.query_lens:
        slices.append(slice(start, start + length))
        start += length
    return slices


def _write(entry: Tensor, batch: Batch, cache: CacheStorage, layer: int) -> None:
    entry = entry.to(cache.dtype)
    slots = batch.slots.tolist()
    start = 0
    while start < len(slots):  # runs within one page
        page, offset = divmod(slots[start], PAGE_SIZE)
        run = min(PAGE_SIZE - offset, len(slots) - start)
        while slots[start + run - 1] != slots[start] + run - 1:
            run -= 1
        storage = cache.pages[page]
        assert storage is not None, f"page {page} has no storage"
        storage[layer, offset : offset + run] = entry[start : start + run]
        start += run


def _read(batch: Batch, s: int, cache: CacheStorage, layer: int) -> Tensor:
    """The visible cache entries of sequence s, float32 [context, width]."""
    length = batch.context_lens[s]
    num_pages = pages_for(length)
    pages = [cache.pages[p] for p in batch.page_table[s, :num_pages].tolist()]
    return torch.cat([p[layer] for p in pages if p is not None])[:length].float()
