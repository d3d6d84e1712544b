"""The interface of all models."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.weights import Weights
from youtu_llm.ops.api import Batch, CacheSpec, CacheStorage, Ops, Rope


@dataclass(frozen=True, slots=True)
class Extension:
    """How far, and how, a model's context may be extended beyond what it was trained for."""

    method: str  # "" (the flag only raises the limit), yarn or ntk
    max_factor: float
    warn: bool = False  # quality suffers: /health shows a warning


class Layer(Protocol):
    """One of a model's blocks, which all have the same form."""

    def forward(
        self, x: Tensor, delta: Tensor | None, batch: Batch, cache: CacheStorage
    ) -> tuple[Tensor, Tensor]:
        """The residual stream [T, hidden] is x + delta, before and after; x may change in place.

        A block returns its output as delta, so that the next block's norm adds it in the same pass.
        """


class Model(abc.ABC):
    """One architecture: built from config and weights, then called once a step."""

    extension: ClassVar[Extension] = Extension("", 1.0)
    ops: Ops

    @abc.abstractmethod
    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope) -> None:
        """Take every tensor from `weights`; a tensor left over is an error."""

    @classmethod
    @abc.abstractmethod
    def make_layer(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, index: int
    ) -> Layer:
        """A block from the weights under its prefix. `index` is its layer in the cache."""

    @classmethod
    @abc.abstractmethod
    def cache_spec(cls, config: ModelConfig) -> CacheSpec:
        """The shape of a token's cache entry."""

    @classmethod
    @abc.abstractmethod
    def rope_dim(cls, config: ModelConfig) -> int:
        """How many values of each head are rotated."""

    @classmethod
    def rope_interleaved(cls, config: ModelConfig) -> bool:
        return False

    @classmethod
    @abc.abstractmethod
    def activation_width(cls, config: ModelConfig) -> int:
        """Activation values of one token in the widest layer, for the memory plan."""

    @abc.abstractmethod
    def forward(self, batch: Batch, cache: CacheStorage) -> Tensor:
        """-> logits [R, vocab] float32 of the batch's logit rows."""
