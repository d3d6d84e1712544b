"""A model directory: its config.json and its tensors, read one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from youtu_llm.errors import ModelError
from youtu_llm.modelfiles import read_json

T = TypeVar("T", int, float, str, bool)

_QUANT_METHODS = ("awq", "awq_int8")


class ModelConfig:
    """A config.json with typed access; errors name the key."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    @classmethod
    def load(cls, model_dir: Path) -> ModelConfig:
        path = model_dir / "config.json"
        if not path.exists():
            raise ModelError(
                f"{path.parent} has no config.json: not a model directory. Get one with "
                "`youtu pull`, or make one with `youtu import`."
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
class TensorInfo:
    path: Path
    dtype: str  # safetensors' name: F32, F16, BF16, I32, I8 ...
    shape: tuple[int, ...]
    num_bytes: int


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
        """Bytes of the weights in memory: floating-point ones in `dtype`, quantised ones and
        their scales as stored."""
        return sum(
            info.num_bytes
            if name.endswith(".scales") or info.dtype not in ("F64", "F32", "F16", "BF16")
            else math.prod(info.shape) * dtype.itemsize
            for name, info in self.tensors.items()
            if not (self.is_tied and name.startswith("lm_head."))
        )

    @property
    def is_tied(self) -> bool:
        """Whether the embedding is the head too; some checkpoints store it twice nevertheless."""
        return bool(self.config.values.get("tie_word_embeddings"))

    def read(self, name: str) -> Tensor:
        """One tensor. The file is mapped only meanwhile, so its pages don't stay resident."""
        path = self.tensors[name].path
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor.clone()
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}. Get the model again.") from None


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
                if dtype not in _DTYPE_BYTES:
                    raise ModelError(f"{path}: tensor {name} has type {dtype}: not supported")
                yield name, TensorInfo(path, dtype, shape, math.prod(shape) * _DTYPE_BYTES[dtype])
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
