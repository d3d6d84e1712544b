"""Tensors in the form a backend computes with, read one by one: never two copies in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig, TensorInfo
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import DenseWeight, Int4Weight, Int8Weight, Linear, Ops, Weight

# Buffers that some checkpoints save although they follow from the config.
_DERIVED = ("rotary_emb.inv_freq",)


class TensorSource(Protocol):
    """What `Weights` takes tensors from: a model directory, or a block that is being quantised."""

    model_dir: Path
    config: ModelConfig

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> Tensor: ...


class Weights:
    """The tensors under a prefix, in the form the backend computes with.

    Every tensor is taken once, with its shape checked; `finish` refuses those not taken.
    """

    def __init__(
        self,
        checkpoint: TensorSource,
        ops: Ops,
        *,
        prefix: str = "",
        left: set[str] | None = None,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._checkpoint = checkpoint
        self._ops = ops
        self._prefix = prefix
        self._left = set(checkpoint.tensors) if left is None else left
        self._on_progress = on_progress

    def under(self, prefix: str) -> Weights:
        return type(self)(
            self._checkpoint,
            self._ops,
            prefix=f"{self._prefix}{prefix}.",
            left=self._left,
            on_progress=self._on_progress,
        )

    def tensor(self, name: str, *shape: int) -> Tensor:
        """A small tensor (norm, bias) in the activations' type."""
        return self._take(name, shape).to(self._ops.device, self._ops.dtype)

    def linear(
        self, name: str, in_features: int, out_features: int, *, bias: bool = False
    ) -> Linear:
        return self.fused_linear((name,), in_features, (out_features,), bias=bias)

    def fused_linear(
        self,
        names: tuple[str, ...],
        in_features: int,
        out_features: tuple[int, ...],
        *,
        bias: bool = False,
    ) -> Linear:
        """Linears that read the same input, as one: their outputs follow one another."""
        parts = [
            self._weight(name, in_features, out, bias=bias)
            for name, out in zip(names, out_features, strict=True)
        ]
        kinds = {type(part).__name__ for part in parts}
        if len(kinds) > 1:
            raise ModelError(
                f"{self._checkpoint.model_dir}: {self._prefix}{'|'.join(names)} must all "
                f"have the same format, but are {' and '.join(sorted(kinds))}"
            )
        return self._ops.prepare_linear(_concatenate(parts))

    def embedding(self, name: str, vocab: int, hidden: int, *, bias: bool = False) -> Linear:
        weight = self._weight(name, hidden, vocab, bias=bias)
        if isinstance(weight, Int4Weight):
            raise ModelError(f"{self._prefix}{name}: an INT4 embedding is not implemented")
        return self._ops.prepare_embedding(weight)

    def finish(self, *, tied_head: bool) -> None:
        """Raise ModelError for tensors that no layer took."""
        surplus = {name for name in self._left if not name.endswith(_DERIVED)}
        if tied_head:  # some checkpoints save the tied head twice
            surplus -= {"lm_head.weight", "lm_head.scales"}
        if surplus:
            shown = ", ".join(sorted(surplus)[:5])
            raise ModelError(
                f"{self._checkpoint.model_dir}: {len(surplus)} unexpected tensors for "
                f"{self._checkpoint.config.architecture}: {shown} ..."
            )

    def _weight(self, name: str, in_features: int, out_features: int, *, bias: bool) -> Weight:
        b = self._take(f"{name}.bias", (out_features,)) if bias else None
        if self.has(f"{name}.qweight"):
            group = self._group_size(in_features)
            groups, words = in_features // group, out_features // 8
            return Int4Weight(
                self._take(f"{name}.qweight", (in_features, words)),
                self._take(f"{name}.qzeros", (groups, words)),
                self._take(f"{name}.scales", (groups, out_features)),
                b,
            )
        weight = self._take(f"{name}.weight", (out_features, in_features))
        if weight.dtype == torch.int8:
            return Int8Weight(weight, self._take(f"{name}.scales", (out_features,)), b)
        if not weight.is_floating_point():
            raise ModelError(f"{self._prefix}{name}.weight: type {weight.dtype} is not supported")
        return DenseWeight(weight, b)

    def _group_size(self, in_features: int) -> int:
        quantization = self._checkpoint.config.values.get("quantization_config") or {}
        group = int(quantization.get("group_size", 128))
        group = in_features if group == -1 else group
        if in_features % group:
            raise ModelError(f"{self._prefix}: {in_features} inputs are no multiple of {group}")
        return group

    def has(self, name: str) -> bool:
        return self._prefix + name in self._checkpoint.tensors

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        full = self._prefix + name
        info = self._checkpoint.tensors.get(full)
        if info is None:
            raise ModelError(f"{self._checkpoint.model_dir}: tensor {full} is missing")
        if info.shape != shape:
            raise ModelError(f"{info.path}: {full} has shape {info.shape}, expected {shape}")
        self._left.discard(full)
        self._on_progress(1 - len(self._left) / len(self._checkpoint.tensors))
        return self._checkpoint.read(full)


def _concatenate(parts: list[Weight]) -> Weight:
    """Weights of one kind as one whose outputs follow one another."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    dim = 1 if isinstance(first, Int4Weight) else 0  # of the outputs

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        return torch.cat(values, dim=0 if name == "bias" else dim)

    fields: dict[str, Any] = {field.name: joined(field.name) for field in dataclasses.fields(first)}
    return dataclasses.replace(first, **fields)
