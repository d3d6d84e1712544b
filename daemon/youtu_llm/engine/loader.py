"""From safetensors on disk to a model, tensor by tensor: never two copies of a model in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from youtu_llm.engine.models import registry, rope
from youtu_llm.engine.models.spec import Model, ModelConfig, read_json
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import DenseWeight, Int4Weight, Int8Weight, Linear, Ops, Weight

# Buffers that some checkpoints save although they follow from the config.
_DERIVED = ("rotary_emb.inv_freq",)
_QUANT_METHODS = ("awq", "awq_int8")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    path: Path
    dtype: str  # safetensors' name: F32, F16, BF16, I32, I8 ...
    shape: tuple[int, ...]
    num_bytes: int


class TensorSource(Protocol):
    """What `Weights` takes tensors from: a model directory, or a block that is being quantised."""

    model_dir: Path
    config: ModelConfig

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> Tensor: ...


class Checkpoint:
    """The tensors of a model directory, read one at a time."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self.config = ModelConfig.load(model_dir)
        _check_quantization(self.config)
        self.tensors: dict[str, TensorInfo] = {}
        for path in _shards(model_dir):
            self.tensors.update(_header(path))

    @property
    def num_bytes(self) -> int:
        return sum(info.num_bytes for info in self.tensors.values())

    def loaded_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the weights in memory, where floating-point ones are of `dtype`; quantised
        weights and their scales stay as they are."""
        return sum(
            info.num_bytes
            if name.endswith(".scales") or info.dtype not in ("F64", "F32", "F16", "BF16")
            else math.prod(info.shape) * dtype.itemsize
            for name, info in self.tensors.items()
            if not (self.is_tied and name.startswith("lm_head."))
        )

    @property
    def is_tied(self) -> bool:
        """Whether the embedding is the head too; some checkpoints save it twice all the same."""
        return bool(self.config.values.get("tie_word_embeddings"))

    def read(self, name: str) -> Tensor:
        """One tensor. The file is mapped for its time only, so its pages don't stay resident."""
        path = self.tensors[name].path
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name).clone()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}. Get the model again.") from None

    def eos_token_ids(self) -> tuple[int, ...]:
        """From generation_config.json, else config.json."""
        path = self.model_dir / "generation_config.json"
        generation = read_json(path) if path.exists() else {}
        for values in (generation, self.config.values):
            ids = values.get("eos_token_id")
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (int(ids),)
        return ()


class Weights:
    """The tensors under a prefix, in the form the backend computes with.

    Every tensor is taken once, with its shape checked; `finish` refuses what nobody took.
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
                f"{self._checkpoint.model_dir}: {self._prefix}{'|'.join(names)} must be stored "
                f"alike, but are {' and '.join(sorted(kinds))}"
            )
        return self._ops.prepare_linear(_concatenate(parts))

    def embedding(self, name: str, vocab: int, hidden: int, *, bias: bool = False) -> Linear:
        weight = self._weight(name, hidden, vocab, bias=bias)
        if isinstance(weight, Int4Weight):
            raise ModelError(f"{self._prefix}{name}: an INT4 embedding is not implemented")
        return self._ops.prepare_embedding(weight)

    def finish(self, *, tied_head: bool) -> None:
        """Raise ModelError if tensors remain that no layer took."""
        surplus = {name for name in self._left if not name.endswith(_DERIVED)}
        if tied_head:  # some checkpoints save the tied head twice
            surplus -= {"lm_head.weight", "lm_head.scales"}
        if surplus:
            shown = ", ".join(sorted(surplus)[:5])
            raise ModelError(
                f"{self._checkpoint.model_dir}: {len(surplus)} tensors have no place in "
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
            raise ModelError(f"{self._prefix}{name}.weight: type {weight.dtype} is not understood")
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


def load(
    checkpoint: Checkpoint,
    ops: Ops,
    rope_plan: rope.RopePlan,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Model:
    """Build the model, rotary tables included.

    Raises ModelError naming what is missing, surplus or misshapen.
    """
    ops.expect_weights(checkpoint.loaded_bytes(ops.dtype))
    config, weights = checkpoint.config, Weights(checkpoint, ops, on_progress=on_progress)
    kind = registry.find(config)
    model = kind(config, weights, ops, rope.build(rope_plan, kind, config, ops.device))
    weights.finish(tied_head=checkpoint.is_tied)
    return model


def _concatenate(parts: list[Weight]) -> Weight:
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    biases = [part.bias for part in parts]
    bias = None if first.bias is None else torch.cat([b for b in biases if b is not None])
    if isinstance(first, DenseWeight):
        return DenseWeight(torch.cat([p.weight for p in parts if isinstance(p, DenseWeight)]), bias)
    if isinstance(first, Int8Weight):
        same8 = [p for p in parts if isinstance(p, Int8Weight)]
        return Int8Weight(
            torch.cat([p.weight for p in same8]), torch.cat([p.scales for p in same8]), bias
        )
    same4 = [p for p in parts if isinstance(p, Int4Weight)]
    return Int4Weight(
        torch.cat([p.qweight for p in same4], dim=1),
        torch.cat([p.qzeros for p in same4], dim=1),
        torch.cat([p.scales for p in same4], dim=1),
        bias,
    )


def _shards(model_dir: Path) -> list[Path]:
    index = model_dir / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map") or {}
        names = sorted({str(name) for name in weight_map.values()})
        paths = [model_dir / name for name in names]
    else:
        paths = sorted(model_dir.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.exists()]
    if missing or not paths:
        what = f"lacks {', '.join(missing)}" if missing else "holds no .safetensors file"
        raise ModelError(f"{model_dir} {what}. Get the model again with `youtu pull`.")
    return paths


def _header(path: Path) -> Iterator[tuple[str, TensorInfo]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                count = 1
                for length in shape:
                    count *= length
                if dtype not in _DTYPE_BYTES:
                    raise ModelError(f"{path}: tensors of type {dtype} ({name}) are not understood")
                yield name, TensorInfo(path, dtype, shape, count * _DTYPE_BYTES[dtype])
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is damaged or cut short ({error}). Get the model again with `youtu pull`."
        ) from None


_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1}


def _check_quantization(config: ModelConfig) -> None:
    quantization = config.values.get("quantization_config")
    if not quantization:
        return
    method, version = quantization.get("quant_method"), quantization.get("version", "gemm").lower()
    if method not in _QUANT_METHODS:
        raise ModelError(
            f"{config.source}: quantisation {method!r} is not implemented; "
            "convert it with `youtu import`"
        )
    if version != "gemm" or quantization.get("bits", 4) != 4:
        raise ModelError(
            f"{config.source}: AWQ version {version!r} with {quantization.get('bits')} bits is "
            "not implemented, only gemm with 4 bits"
        )
