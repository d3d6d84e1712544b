"""What a model is before its weights: its config.json, and the interface of all models."""

from __future__ import annotations

import abc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from youtu_llm.errors import ModelError
from youtu_llm.ops.api import Batch, CacheSpec, CacheStorage, Ops, Rope

if TYPE_CHECKING:
    from youtu_llm.engine.loader import Weights

T = TypeVar("T", int, float, str, bool)


def read_json(path: Path) -> dict[str, Any]:
    """One of a model's JSON files. Raises ModelError naming it."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}. Get the model again.") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold a JSON object")
    return values


class ModelConfig:
    """A config.json with typed access; what is missing or odd is named in the error."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    @classmethod
    def load(cls, model_dir: Path) -> ModelConfig:
        path = model_dir / "config.json"
        if not path.exists():
            raise ModelError(
                f"{path.parent} is no model: it has no config.json. Get one with `youtu pull`, "
                "or make one with `youtu import`."
            )
        return cls(read_json(path), str(path))

    @property
    def architecture(self) -> str:
        names = self.values.get("architectures") or ["?"]
        return str(names[0])

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """transformers 5 calls it rope_parameters, older files rope_scaling + rope_theta."""
        block = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        theta = block.get("rope_theta") or self.values.get("rope_theta")
        return {**block, **({"rope_theta": float(theta)} if theta else {})}

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        value = self.values.get(key)
        if value is None:
            value = default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ModelError(f"{self.source}: {key} must be a {kind.__name__}, got {value!r}")
        return value

    def int(self, key: str, default: int | None = None) -> int:
        return self.get(key, int, default)

    def float(self, key: str, default: float | None = None) -> float:
        return self.get(key, float, default)

    def bool(self, key: str, default: bool | None = None) -> bool:
        return self.get(key, bool, default)

    def activation(self, *supported: str) -> None:
        """Refuse an activation the model file does not implement."""
        name = self.values.get("hidden_act", supported[0])
        if name not in supported:
            raise ModelError(f"{self.source}: hidden_act {name!r} is not implemented")


@dataclass(frozen=True, slots=True)
class Extension:
    """How far, and how, a model's context may be extended beyond what it was trained for."""

    method: str  # "" (the flag only raises the limit), yarn or ntk
    max_factor: float
    warn: bool = False  # its quality suffers; /health says so


class Layer(Protocol):
    """One of a model's blocks, which all have the same form."""

    def forward(
        self, x: Tensor, delta: Tensor | None, batch: Batch, cache: CacheStorage
    ) -> tuple[Tensor, Tensor]:
        """The residual stream [T, hidden] is x + delta, before and after; x may change in place.

        What a block adds stays apart, because the next block's norm can add it in the same pass.
        """


class Model(abc.ABC):
    """One architecture: built from config and weights, then called once a step."""

    extension: ClassVar[Extension] = Extension("", 1.0)
    ops: Ops

    @abc.abstractmethod
    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope) -> None:
        """Take every tensor from `weights`; the loader refuses what is left over."""

    @classmethod
    @abc.abstractmethod
    def make_layer(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, index: int
    ) -> Layer:
        """A block from the weights under its prefix. `index` is its layer in the cache."""

    @classmethod
    @abc.abstractmethod
    def cache_spec(cls, config: ModelConfig) -> CacheSpec:
        """What a token leaves in the cache."""

    @classmethod
    @abc.abstractmethod
    def rope_dim(cls, config: ModelConfig) -> int:
        """How many values of a head are rotated."""

    @classmethod
    def rope_interleaved(cls, config: ModelConfig) -> bool:
        return False

    @classmethod
    @abc.abstractmethod
    def activation_width(cls, config: ModelConfig) -> int:
        """Values a token needs in the widest layer, for the memory plan."""

    @abc.abstractmethod
    def forward(self, batch: Batch, cache: CacheStorage) -> Tensor:
        """-> logits [R, vocab] float32 of the batch's logit rows."""
