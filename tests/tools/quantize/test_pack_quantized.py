"""compressed-tensors' pack-quantized directories become ours, value by value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tools import tiny_gguf
from tests.tools.quantize import models
from youtu_llm.errors import ModelError
from youtu_llm.tools.importer import import_model

GROUP = 128


def pack_along(values: np.ndarray, axis: int) -> Tensor:
    """-8..7 as compressed-tensors packs them: plus 8, eight in a word, the first lowest."""
    words = np.moveaxis(values.astype(np.int64) + 8, axis, -1)
    words = words.reshape(*words.shape[:-1], -1, 8)
    packed = sum(words[..., n] << (4 * n) for n in range(8)).astype(np.uint32).view(np.int32)
    return torch.from_numpy(np.moveaxis(packed, -1, axis).copy())


def packed(out: int, inner: int, *, symmetric: bool) -> tuple[dict[str, Tensor], Tensor]:
    """A random linear's tensors, and its weight."""
    rng = np.random.default_rng(out + inner)
    values = rng.integers(-8, 8, (out, inner))
    zeros = np.zeros((out, inner // GROUP), int)
    if not symmetric:
        zeros = rng.integers(-8, 8, zeros.shape)
    scale = torch.from_numpy(rng.uniform(0.001, 0.01, zeros.shape)).to(torch.bfloat16)
    tensors = {
        "weight_packed": pack_along(values, 1),
        "weight_scale": scale,
        "weight_shape": torch.tensor([out, inner]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = pack_along(zeros, 0)
    centred = torch.from_numpy(values - zeros.repeat(GROUP, 1)).float()
    return tensors, centred * scale.float().repeat_interleave(GROUP, 1)


def make(folder: Path, *, symmetric: bool = False, **scheme: Any) -> dict[str, Tensor]:
    """A tiny Qwen2 as llm-compressor leaves it; returns the linears' weights."""
    tiny_gguf.write(folder.parent / "tiny.gguf", tiny_gguf.weights())
    import_model(
        folder.parent / "tiny.gguf",
        models_dir=folder.parent,
        name=folder.name,
        quantize=False,
        dtype="float32",
    )
    tensors, weights = load_file(folder / "model.safetensors"), {}
    for name in [n for n in tensors if n.startswith("model.layers.") and "proj.weight" in n]:
        parts, weights[name] = packed(*tensors.pop(name).shape, symmetric=symmetric)
        tensors |= {f"{name.removesuffix('weight')}{part}": t for part, t in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    kinds = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": kinds | scheme}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


@pytest.mark.parametrize("symmetric", [False, True])
def test_converted_value_by_value(tmp_path: Path, symmetric: bool) -> None:
    weights = make(tmp_path / "packed", symmetric=symmetric)
    ours = import_model(tmp_path / "packed", models_dir=tmp_path, name="ours")
    stored = models.dequantised(ours)
    for name, weight in weights.items():
        torch.testing.assert_close(stored[name], weight, atol=0, rtol=2e-3)  # bf16 scales to fp16
    config = json.loads((ours / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "awq_int8"
    plain = import_model(
        tmp_path / "packed", models_dir=tmp_path, name="plain", quantize=False, dtype="float32"
    )
    unpacked = load_file(plain / "model.safetensors")
    assert all(torch.equal(unpacked[name], stored[name]) for name in weights)
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ({"num_bits": 8}, "num_bits 8"),
        ({"strategy": "channel"}, "strategy 'channel'"),
        ({"actorder": "group"}, "actorder 'group'"),
        ({"actorder": True}, "actorder True"),
    ],
)
def test_others_are_refused_by_name(tmp_path: Path, scheme: dict[str, Any], words: str) -> None:
    make(tmp_path / "packed", **scheme)
    with pytest.raises(ModelError, match=words):
        import_model(tmp_path / "packed", models_dir=tmp_path, name="ours")
