"""A Hugging Face model directory as the source of an import."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from youtu_llm.engine.models import architectures
from youtu_llm.errors import ModelError
from youtu_llm.tools import pack_quantized
from youtu_llm.tools.source_model import SourceTensor

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
QUANT_METHODS = ("awq", "awq_int8")
_AWQ = {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


class HfModel:
    """Raises ModelError for a directory that is incomplete or not supported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        config_path = path / "config.json"
        if not config_path.is_file():
            raise ModelError(f"{path} has no config.json: not a Hugging Face model directory")
        try:
            self._config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{config_path} is not JSON: {error}") from error
        architectures.find((self._config.get("architectures") or ["?"])[0], str(path))
        if not (path / "tokenizer.json").is_file():
            raise ModelError(f"{path} has no tokenizer.json: other tokenizer files are not read")
        self._quant_method = self._check_quantization()
        self._files = _tensor_files(path)
        if "model.embed_tokens.weight" not in self._files:
            raise ModelError(f"{path}: its safetensors hold no model.embed_tokens.weight")

    def config(self) -> dict[str, Any]:
        # Explicit, because the default of a missing key depends on the architecture.
        config = {**self._config, "tie_word_embeddings": self._tied}
        if self._is_packed:  # `tensors` gives it unpacked, or in another layout
            del config["quantization_config"]
        return config

    def tensors(self) -> list[SourceTensor]:
        from safetensors import safe_open

        found = []
        for name, file in sorted(self._files.items()):
            if self._tied and name.startswith("lm_head."):
                continue
            if self._is_packed and name.endswith(pack_quantized.PACKED):
                found.append(self._packed_tensor(name.removesuffix(pack_quantized.PACKED)))
            if self._is_packed and name.endswith(pack_quantized.PARTS):
                continue
            with safe_open(file, framework="pt") as opened:
                shape = tuple(opened.get_slice(name).get_shape())
            found.append(SourceTensor(name, shape, _row_reader(file, name)))
        return found

    def _packed_tensor(self, module: str) -> SourceTensor:
        """A linear that is INT4 in compressed-tensors' layout."""
        from youtu_llm.ops import awq

        def read(name: str) -> Tensor | None:
            return _read(self._files[name], name) if name in self._files else None

        def int4() -> tuple[Tensor, Tensor, Tensor]:
            return pack_quantized.to_awq(read, module)

        def rows(first: int, end: int) -> Tensor:
            return awq.dequantize(*int4()).t()[first:end]

        shape = _read(self._files[f"{module}.weight_shape"], f"{module}.weight_shape")
        return SourceTensor(f"{module}.weight", tuple(shape.tolist()), rows, int4)

    def write_tokenizer(self, target: Path) -> None:
        for name in TOKENIZER_FILES:
            if (self.path / name).is_file():
                shutil.copyfile(self.path / name, target / name)

    @property
    def _tied(self) -> bool:
        tied = self._config.get("tie_word_embeddings")
        return "lm_head.weight" not in self._files if tied is None else bool(tied)

    @property
    def _is_packed(self) -> bool:
        return self._quant_method == pack_quantized.METHOD

    def ready_files(self) -> list[Path]:
        if self._quant_method is None or self._is_packed:
            return []
        index = self.path / "model.safetensors.index.json"
        return sorted(set(self._files.values())) + ([index] if index.is_file() else [])

    def _check_quantization(self) -> str | None:
        """The quantisation method of the weights; None for floating point."""
        found = self._config.get("quantization_config")
        if found is None:
            return None
        method = found.get("quant_method")
        if method == pack_quantized.METHOD:
            pack_quantized.check(found, self.path)
            return str(method)
        if method not in QUANT_METHODS:
            raise ModelError(
                f"{self.path} is quantised by {method!r}: take the unquantised model,"
                " or one in AutoAWQ's GEMM layout or compressed-tensors' pack-quantized"
            )
        for key, wanted in _AWQ.items():
            got = found.get(key, wanted)
            got = got.lower() if isinstance(got, str) else got
            if got != wanted:
                raise ModelError(
                    f"{self.path}: AWQ with {key} {got!r} is not supported, only {wanted!r}:"
                    " take the unquantised model, or one in AutoAWQ's GEMM layout"
                )
        return str(method)


def _tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds each tensor. Raises ModelError for a missing or truncated file."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    found = {}
    for name in files:
        try:
            with safe_open(path / name, framework="pt") as opened:
                found.update(dict.fromkeys(opened.keys(), path / name))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path / name} cannot be read as safetensors: {error}") from error
    return found


def _read(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
        return tensor


def _row_reader(file: Path, name: str) -> Callable[[int, int], Tensor]:
    def rows(first: int, end: int) -> Tensor:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            part: Tensor = opened.get_slice(name)[first:end]
            return part

    return rows
