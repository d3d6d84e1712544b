"""`load_awq_model`: what `youtu quantize` or AutoAWQ wrote runs; the rest is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine import tiny
from tests.tools.quantize import models
from youtu_llm.errors import ModelError
from youtu_llm.ops.reference import ReferenceOps
from youtu_llm.quant import load_awq_model
from youtu_llm.tools.quantize.run import quantize

Q_WEIGHT = "model.layers.1.self_attn.o_proj.qweight"


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As AutoAWQ leaves it: fp16 embedding and head, no tensor that it doesn't know."""
    folder = tmp_path_factory.mktemp("quantised")
    models.make("qwen2", folder / "source")
    return quantize(folder / "source", folder / "out", models.options("rtn", int8_head=False))


def changed(folder: Path, to: Path, **quantization: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    config["quantization_config"] |= quantization
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_it_is_the_model_the_engine_serves(quantised: Path) -> None:
    ops = ReferenceOps(torch.device("cpu"), torch.float32)
    model = load_awq_model(quantised, group_size=models.GROUP, ops=ops)
    core = tiny.core(quantised)
    prompt = {"a": (tiny.prompt(100), tiny.greedy(8))}
    expected = tiny.run(core, prompt)
    core.runner.model = model
    assert tiny.run(core, {"b": prompt["a"]})["b"] == expected["a"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"w_bit": 3}, "w_bit 3"),
        ({"group_size": 100}, "group_size 100"),
        ({"group_size": 128}, "group_size 32, not with 128"),
        ({"group_size": 32, "zero_point": False}, "zero_point False"),
    ],
)
def test_other_arguments_are_refused(
    quantised: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        load_awq_model(quantised, **arguments)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"version": "gemv"}, "'gemv'"),
        ({"version": "GEMV_FAST"}, "'gemv_fast'"),
        ({"version": "marlin"}, "'marlin'"),
        ({"bits": 8}, "with 8 bits"),
        ({"quant_method": "gptq"}, "'gptq'"),
    ],
)
def test_other_layouts_are_refused(
    quantised: Path, tmp_path: Path, quantization: dict[str, Any], words: str
) -> None:
    folder = changed(quantised, tmp_path / "other", **quantization)
    with pytest.raises(ModelError, match=words):
        load_awq_model(folder, group_size=models.GROUP)


def test_a_model_that_is_not_quantised_is_refused(tmp_path: Path) -> None:
    models.make("qwen2", tmp_path)
    with pytest.raises(ModelError, match="not quantised: `youtu quantize"):
        load_awq_model(tmp_path)


def test_every_shape_is_checked(quantised: Path, tmp_path: Path) -> None:
    folder = changed(quantised, tmp_path / "bent")
    tensors = load_file(folder / "model.safetensors")
    tensors[Q_WEIGHT] = tensors[Q_WEIGHT][:, :-1].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{Q_WEIGHT} has shape .* expected"):
        load_awq_model(folder, group_size=models.GROUP)


def test_the_package_itself_stays_free_of_torch() -> None:
    command = "import sys, youtu_llm.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)
