"""One block of a model by itself: run on its inputs, watched, its weights free to change.

The engine's own model definitions run here on the reference operations in fp32, so whatever the
engine can serve can be quantised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig, TensorInfo
from youtu_llm.engine.kv_cache import KVCache
from youtu_llm.engine.models import registry, rope
from youtu_llm.engine.weights import Weights
from youtu_llm.ops.api import (
    PAGE_SIZE,
    Batch,
    CacheSpec,
    CacheStorage,
    DenseWeight,
    Linear,
    Rope,
    Weight,
)
from youtu_llm.ops.reference import ReferenceOps
from youtu_llm.protocol import pages_for

BATCH_TOKENS = 2048
_GRAM_PANEL = 1024

Tensors = dict[str, Tensor]  # of one block, by their names within it
Listener = Callable[[tuple[str, ...], Tensor], None]


@dataclass(slots=True)
class InputStats:
    """Statistics of one input that several linears may share, summed over tokens."""

    gram: Tensor  # [in, in] float32: sum of x x^T
    abs_sum: Tensor  # [in] float32: sum of |x|
    count: int

    def scaled(self, divisor: Tensor) -> InputStats:
        """Of the input divided channel by channel."""
        gram = self.gram / divisor[:, None] / divisor
        return InputStats(gram, self.abs_sum / divisor, self.count)

    def __add__(self, other: InputStats) -> InputStats:
        return InputStats(
            self.gram + other.gram, self.abs_sum + other.abs_sum, self.count + other.count
        )


Stats = dict[tuple[str, ...], InputStats]  # by the linears that the engine fuses


class Collector:
    """A listener that sums up the inputs of every linear."""

    def __init__(self) -> None:
        self._stats: Stats = {}

    def __call__(self, names: tuple[str, ...], x: Tensor) -> None:
        width = x.shape[1]
        stats = self._stats.get(names)
        if stats is None:
            stats = InputStats(torch.zeros(width, width), torch.zeros(width), 0)
            self._stats[names] = stats
        for first in range(0, width, _GRAM_PANEL):  # the upper triangle: the rest mirrors it
            panel = slice(first, first + _GRAM_PANEL)
            stats.gram[panel, first:].addmm_(x[:, panel].t(), x[:, first:])
        stats.abs_sum += x.abs().sum(0)
        stats.count += len(x)

    def finish(self) -> Stats:
        for stats in self._stats.values():
            upper = stats.gram.triu_()
            upper += upper.triu(1).t()
        return self._stats


class BlockRunner:
    """Runs blocks on many sequences of one length, a few at a time."""

    def __init__(self, config: ModelConfig, *, sequence_len: int, group_size: int) -> None:
        values = {**config.values, "quantization_config": {"group_size": group_size}}
        self.config = ModelConfig(values, config.source)
        self._kind = registry.find(config)
        self._ops = _TappedOps()
        plan = rope.plan(config, self._kind.extension, long_context=False, max_tokens=sequence_len)
        self._rope = rope.build(plan, self._kind, config, self._ops.device)
        self._cache_width = self._kind.cache_spec(config).width

    def run(self, tensors: Tensors, stream: Tensor, listener: Listener | None = None) -> Tensor:
        """The residual stream [sequences, tokens, hidden] behind the block, as a new tensor.

        Raises ModelError for tensors that are missing, surplus or misshapen.
        """
        self._ops.listener = listener
        self._ops.names.clear()
        weights = _NamedWeights(_Memory(self.config, tensors), self._ops)
        layer = self._kind.make_layer(self.config, weights, self._ops, self._rope, 0)
        weights.finish(tied_head=False)
        _, length, hidden = stream.shape
        step = max(1, BATCH_TOKENS // length)
        parts = []
        for chunk in stream.split(step):
            batch, cache = self._batch(len(chunk), length)
            x, delta = layer.forward(chunk.reshape(-1, hidden).clone(), None, batch, cache)
            parts.append((x + delta).view(chunk.shape))
        return torch.cat(parts)

    def _batch(self, num_sequences: int, length: int) -> tuple[Batch, CacheStorage]:
        pages = pages_for(length)  # of a sequence
        spec = CacheSpec(1, self._cache_width)
        cache = KVCache(spec, torch.float32, self._ops.device, num_sequences * pages)
        cache.ensure(list(range(num_sequences * pages)))
        positions = torch.arange(length).repeat(num_sequences)
        starts = torch.arange(num_sequences).repeat_interleave(length) * pages * PAGE_SIZE
        batch = Batch(
            token_ids=torch.zeros(num_sequences * length, dtype=torch.int64),
            positions=positions,
            slots=starts + positions,
            query_start=torch.arange(num_sequences + 1, dtype=torch.int32) * length,
            context_len=torch.full((num_sequences,), length, dtype=torch.int32),
            page_table=torch.arange(num_sequences * pages, dtype=torch.int32).view(-1, pages),
            query_lens=(length,) * num_sequences,
            context_lens=(length,) * num_sequences,
        )
        return batch, cache


class _TappedOps(ReferenceOps):
    """Reference operations that pass the input of each linear to a listener."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), torch.float32)
        self.names: dict[int, tuple[Linear, tuple[str, ...]]] = {}  # by the linear's id
        self.listener: Listener | None = None
        self._latent = torch.empty(0)

    def prepare_linear(self, weight: Weight) -> Linear:
        """Dequantised once for all batches, not at every call."""
        linear = super().prepare_linear(weight)
        dense = DenseWeight(self.dense(linear))
        return Linear(linear.out_features, linear.in_features, dense, linear.bias)

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        self._report(w, x)
        return super().linear(x, w)

    def mla_rope_cache(
        self, q: Tensor, latent: Tensor, rope: Rope, batch: Batch, cache: CacheStorage, layer: int
    ) -> Tensor:
        self._latent = latent[:, : latent.shape[1] - rope.dim]
        return super().mla_rope_cache(q, latent, rope, batch, cache, layer)

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
        self._report(kv_b, self._latent)  # this step's latents are all there is in the cache
        return super().mla_attention(q, kv_b, batch, cache, layer, v_dim, scale)

    def _report(self, w: Linear, x: Tensor) -> None:
        if self.listener is not None:
            self.listener(self.names[id(w)][1], x)


class _NamedWeights(Weights):
    """Weights that register the name of each linear with the tapped operations."""

    def fused_linear(
        self,
        names: tuple[str, ...],
        in_features: int,
        out_features: tuple[int, ...],
        *,
        bias: bool = False,
    ) -> Linear:
        linear = super().fused_linear(names, in_features, out_features, bias=bias)
        assert isinstance(self._ops, _TappedOps)
        self._ops.names[id(linear)] = linear, tuple(self._prefix + name for name in names)
        return linear


class _Memory:
    """A block's tensors, as a source that `Weights` reads."""

    def __init__(self, config: ModelConfig, tensors: Tensors) -> None:
        self.config = config
        self.model_dir = Path(config.source)
        self._tensors = tensors
        self.tensors = {
            name: TensorInfo(self.model_dir, str(tensor.dtype), tuple(tensor.shape), tensor.nbytes)
            for name, tensor in tensors.items()
        }

    def read(self, name: str) -> Tensor:
        return self._tensors[name]
