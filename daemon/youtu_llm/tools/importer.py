"""A GGUF file or a Hugging Face directory becomes a model directory.

Quantised: linears INT4 in AutoAWQ's GEMM layout, groups of 128, round to nearest (`quantize` does
better) or, where the source is pack-quantized, the very values it holds; embedding
and head tables INT8 with one scale a row; norms and biases fp16. A table serves both look-up
and head when tied, and INT8 costs it 0.0005 of KL divergence where INT4 costs 0.027
(Qwen2.5-Coder-0.5B). Tensors are read, converted and written a few rows at a time.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from youtu_llm.errors import ModelError
from youtu_llm.tools import bar, model_dir
from youtu_llm.tools.gguf_model import GgufModel
from youtu_llm.tools.hf_model import HfModel
from youtu_llm.tools.safetensors_writer import SafetensorsWriter, TensorPlan
from youtu_llm.tools.source_model import SourceModel, SourceTensor

if TYPE_CHECKING:
    from torch import Tensor

Dtype = Literal["float32", "float16", "bfloat16"]
GROUP_SIZE = 128
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_CHUNK_ROWS = 8192  # of a table: 64 MB at 2048 columns in fp32


def import_model(
    source: Path,
    *,
    models_dir: Path,
    name: str | None = None,
    quantize: bool = True,
    dtype: Dtype = "float16",
    license_name: str = "unknown",
) -> Path:
    """Make `models_dir/name` from a .gguf file or a Hugging Face directory; return its path.

    `dtype` is that of an unquantised import. The name is the source's own unless given. A
    model of that name is replaced only when `verify` finds it broken. Raises ModelError for
    a source that is not supported and ResourceError when the disk has too little room.
    """
    _require(source)
    name = model_dir.check_name(name or _name_of(source))
    if is_sound(models_dir / name):
        raise ModelError(f"{models_dir / name} exists: remove it first, or choose another name")
    with model_dir.workspace(models_dir, name) as work:
        path = build(
            source,
            work,
            models_dir=models_dir,
            name=name,
            quantize=quantize,
            dtype=dtype,
            license_name=license_name,
            origin=f"file:{source.name}",
        )
        shutil.rmtree(work)
    return path


def is_sound(path: Path) -> bool:
    """Whether a model directory is complete, by its files' sizes."""
    try:
        model_dir.verify(path)
    except ModelError:
        return False
    return True


def build(
    source: Path,
    work: Path,
    *,
    models_dir: Path,
    name: str,
    quantize: bool,
    dtype: Dtype,
    license_name: str,
    origin: str,
    license_accepted: str = "",
) -> Path:
    """`import_model` within a workspace the caller holds."""
    require_extra()
    staged = work / "model"
    shutil.rmtree(staged, ignore_errors=True)  # what an interrupted import left
    staged.mkdir()
    try:
        config = _convert(source, staged, quantize=quantize, dtype=dtype)
        return model_dir.install(
            staged,
            models_dir,
            name,
            source=origin,
            license_name=license_name,
            license_accepted=license_accepted,
            quantization=config.get("quantization_config", {}).get("quant_method", "none"),
        )
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # after a failure; else it has been moved


def open_source(source: Path) -> SourceModel:
    """Raises ModelError for what is neither a model directory nor a GGUF file."""
    _require(source)
    return HfModel(source) if source.is_dir() else GgufModel(source)


def _require(source: Path) -> None:
    if not source.exists():
        raise ModelError(f"{source} does not exist: give a .gguf file or a directory")


def _convert(source: Path, staged: Path, *, quantize: bool, dtype: Dtype) -> dict[str, Any]:
    """Write every file of the model but its manifest; returns its config."""
    model = open_source(source)
    config = model.config()
    ready = model.ready_files()
    if ready:
        if not quantize:
            raise ModelError(f"{source} is quantised already and is copied: leave out --dtype")
        num_bytes = sum(file.stat().st_size for file in ready)
        model_dir.require_disk(staged, num_bytes, f"copying {source}")
        for file in ready:
            shutil.copyfile(file, staged / file.name)
    else:
        _write_weights(model.tensors(), staged, quantize=quantize, dtype=dtype)
        config.pop("dtype", None)  # the key's newer spelling
        config["torch_dtype"] = "float16" if quantize else dtype
        if quantize:
            tables = TABLES[:1] if config["tie_word_embeddings"] else TABLES
            modules = [table.removesuffix(".weight") for table in tables]
            config["quantization_config"] = quantization_config(modules)
    (staged / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model.write_tokenizer(staged)
    return config


def quantization_config(
    int8_modules: Sequence[str], *, group_size: int = GROUP_SIZE
) -> dict[str, Any]:
    """AutoAWQ's keys. INT8 modules change the method's name: readers must support them."""
    config = {
        "quant_method": "awq_int8" if int8_modules else "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    return config | ({"int8_modules": list(int8_modules)} if int8_modules else {})


def _write_weights(
    tensors: Sequence[SourceTensor], staged: Path, *, quantize: bool, dtype: Dtype
) -> None:
    plan: dict[str, TensorPlan] = {}
    for tensor in tensors:
        plan |= plan_of(tensor, quantize=quantize, dtype=dtype)
    num_bytes = sum(tensor.num_bytes for tensor in plan.values())
    model_dir.require_disk(staged, num_bytes, "importing this model")
    with SafetensorsWriter(staged / "model.safetensors", plan) as writer:
        for tensor in bar.track(tensors, "Importing"):
            if not quantize:
                write_plain(writer, tensor, dtype)
            elif tensor.name in TABLES:
                write_int8(writer, tensor)
            elif _is_linear(tensor):
                _write_int4(writer, tensor)
            else:
                write_plain(writer, tensor, "float16")


def _is_linear(tensor: SourceTensor) -> bool:
    return tensor.name.startswith("model.layers.") and len(tensor.shape) == 2


def plan_of(tensor: SourceTensor, *, quantize: bool, dtype: Dtype) -> dict[str, TensorPlan]:
    """The tensors that one source tensor becomes in the file."""
    module = tensor.name.removesuffix(".weight")
    if not quantize:
        return {tensor.name: TensorPlan(dtype, tensor.shape)}
    if tensor.name in TABLES:
        return {
            tensor.name: TensorPlan("int8", tensor.shape),
            f"{module}.scales": TensorPlan("float16", tensor.shape[:1]),
        }
    if not _is_linear(tensor):
        return {tensor.name: TensorPlan("float16", tensor.shape)}
    out_features, in_features = tensor.shape
    if in_features % GROUP_SIZE or out_features % 8:
        raise ModelError(
            f"{module} is {in_features} x {out_features}: INT4 needs inputs in groups of"
            f" {GROUP_SIZE} and outputs a multiple of 8; import it unquantised"
        )
    num_groups = in_features // GROUP_SIZE
    return {
        f"{module}.qweight": TensorPlan("int32", (in_features, out_features // 8)),
        f"{module}.qzeros": TensorPlan("int32", (num_groups, out_features // 8)),
        f"{module}.scales": TensorPlan("float16", (num_groups, out_features)),
    }


def chunks(tensor: SourceTensor) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, tensor.shape[0], _CHUNK_ROWS):
        rows = tensor.rows(first, min(first + _CHUNK_ROWS, tensor.shape[0]))
        if not rows.isfinite().all():
            raise ModelError(
                f"{tensor.name} holds values that are not finite: the source is corrupt"
            )
        yield first, rows


def write_plain(writer: SafetensorsWriter, tensor: SourceTensor, dtype: Dtype) -> None:
    import torch

    for first, rows in chunks(tensor):
        cast = rows.to(getattr(torch, dtype))
        if not cast.isfinite().all():
            raise ModelError(f"{tensor.name} holds values too large for {dtype}")
        writer.write(tensor.name, cast, first_row=first)


def write_int8(writer: SafetensorsWriter, tensor: SourceTensor) -> None:
    from youtu_llm.ops import awq

    for first, rows in chunks(tensor):
        values, scales = awq.quantize_rows_int8(rows)
        writer.write(tensor.name, values, first_row=first)
        writer.write(f"{tensor.name.removesuffix('.weight')}.scales", scales, first_row=first)


def _write_int4(writer: SafetensorsWriter, tensor: SourceTensor) -> None:
    import torch

    from youtu_llm.ops import awq

    if tensor.int4 is not None:
        parts = tensor.int4()
    else:
        weight = torch.cat([rows for _, rows in chunks(tensor)])
        parts = awq.quantize_rtn(weight, GROUP_SIZE)
    module = tensor.name.removesuffix(".weight")
    for part, values in zip(("qweight", "qzeros", "scales"), parts, strict=True):
        writer.write(f"{module}.{part}", values)


def require_extra() -> None:
    """Raises ModelError with the remedy when a package that import needs is not installed."""
    modules = ("gguf", "huggingface_hub", "numpy", "safetensors", "torch")
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ModelError(
            f"{', '.join(missing)} not installed: run `sudo youtu setup-engine`, or without the"
            " package pip install 'youtu[models]'"
        )


def _name_of(source: Path) -> str:
    stem = source.stem if source.suffix == ".gguf" else source.resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")
