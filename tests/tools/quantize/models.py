"""Tiny model directories, complete enough to be quantised, and a look at what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.engine import tiny
from tests.text.samples import DATA, write_sample_tokenizer
from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.ops import awq
from youtu_llm.tools.quantize.block import Tensors
from youtu_llm.tools.quantize.run import Options, Recipe

GROUP = 32
# What INT4 in groups of 32 can hold: every linear's inputs come in whole groups.
_SHAPES: dict[str, dict[str, Any]] = {"youtu": {"q_lora_rank": 64, "v_head_dim": 32}}


def make(arch: str, folder: Path) -> PreTrainedModel:
    """A tiny model with a tokenizer; returns transformers' own of it."""
    changes = {"vocab_size": len(DATA["tokens"]), **_SHAPES.get(arch, {})}
    folder.mkdir(exist_ok=True)
    model = tiny.make(arch, folder, **changes)
    write_sample_tokenizer(folder)
    return model


def options(method: str = "gptq", *keep_int8: str, **changes: Any) -> Options:
    return Options(method, Recipe(GROUP, keep_int8), **changes)


def block_of(model: PreTrainedModel, index: int = 0) -> Tensors:
    prefix = f"model.layers.{index}."
    state = model.state_dict().items()
    return {n.removeprefix(prefix): t.clone() for n, t in state if n.startswith(prefix)}


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig.load(folder)


def dequantised(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a quantised model directory as transformers calls it, in float32."""
    stored, plain = load_file(folder / "model.safetensors"), {}
    for name, tensor in stored.items():
        module, _, kind = name.rpartition(".")
        if kind == "qweight":
            parts = (stored[f"{module}.{part}"] for part in ("qweight", "qzeros", "scales"))
            plain[f"{module}.weight"] = awq.dequantize(*parts).t()
        elif tensor.dtype == torch.int8:
            plain[name] = tensor.float() * stored[f"{module}.scales"].float()[:, None]
        elif kind not in ("qzeros", "scales"):
            plain[name] = tensor.float()
    return plain
