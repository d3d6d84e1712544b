"""Our packing beside AutoAWQ's own code: `make check-autoawq`, not part of `make test`."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine import tiny
from tests.engine.test_parity import logits_of
from tests.tools.quantize import models
from youtu_llm.ops import awq
from youtu_llm.quant import load_awq_model
from youtu_llm.tools.quantize import gptq
from youtu_llm.tools.quantize.block import InputStats
from youtu_llm.tools.quantize.run import quantize

PARTS = ("qweight", "qzeros", "scales")
SHAPES = [(256, 384, 128), (1024, 896, 128), (64, 256, 64), (2112, 512, 128), (576, 512, 32)]


@pytest.fixture(scope="module")
def autoawq() -> types.SimpleNamespace:
    """Its packing and its linear. The package's own __init__ would import every model it knows,
    and the data sets it calibrates on: these modules need none of that."""
    found = importlib.util.find_spec("awq")
    assert found is not None
    assert found.submodule_search_locations is not None
    package = types.ModuleType("awq")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["awq"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from awq.modules.linear.gemm import WQLinear_GEMM
        from awq.utils import packing_utils
    return types.SimpleNamespace(linear=WQLinear_GEMM, packing=packing_utils)


def gptq_of(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, ...]:
    x = torch.randn(1000, weight.shape[1])
    return gptq.quantize(weight, InputStats(x.t() @ x, x.abs().sum(0), len(x)), group)


@pytest.mark.parametrize(("out", "inner", "group"), SHAPES)
@pytest.mark.parametrize("method", [awq.quantize_rtn, gptq_of], ids=["rtn", "gptq"])
def test_it_unpacks_what_we_packed(
    autoawq: Any, out: int, inner: int, group: int, method: Any
) -> None:
    torch.manual_seed(out)
    weight = torch.randn(out, inner) * torch.rand(out, 1)
    qweight, qzeros, scales = method(weight, group)
    unpacked = autoawq.packing.unpack_awq(qweight, qzeros, 4)
    values, zeros = (part & 15 for part in autoawq.packing.reverse_awq_order(*unpacked, 4))
    assert torch.equal(values.to(torch.uint8), awq.unpack(qweight))
    assert torch.equal(zeros.to(torch.uint8), awq.unpack(qzeros))
    theirs = autoawq.packing.dequantize_gemm(qweight, qzeros, scales, 4, group)
    assert torch.equal(theirs, awq.dequantize(qweight, qzeros, scales).half())


@pytest.mark.parametrize(("out", "inner", "group"), SHAPES)
def test_it_packs_the_same_words(autoawq: Any, out: int, inner: int, group: int) -> None:
    torch.manual_seed(out)
    qweight, qzeros, scales = awq.quantize_rtn(torch.randn(out, inner), group)
    linear = torch.nn.Linear(inner, out, bias=False)
    linear.weight.data = awq.dequantize(qweight, qzeros, scales).t().contiguous()
    theirs = autoawq.linear.from_linear(
        linear, 4, group, scales=scales.clone(), zeros=awq.unpack(qzeros).float()
    )
    assert torch.equal(theirs.qweight, qweight)
    assert torch.equal(theirs.qzeros, qzeros)
    assert torch.equal(theirs.scales, scales)


def test_we_load_what_it_packed(autoawq: Any, tmp_path: Path) -> None:
    """A tiny Qwen2 whose linears AutoAWQ's own code packed, with the config it writes."""
    oracle = models.make("qwen2", tmp_path / "source")
    ours = quantize(tmp_path / "source", tmp_path / "ours", models.options(int8_head=False))
    tensors = load_file(ours / "model.safetensors")
    for module in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        weight = awq.dequantize(*(tensors[f"{module}.{p}"] for p in PARTS))
        linear = torch.nn.Linear(*weight.shape, bias=False)
        linear.weight.data = weight.t().contiguous()
        packed = autoawq.linear.from_linear(
            linear,
            4,
            models.GROUP,
            scales=tensors[f"{module}.scales"],
            zeros=awq.unpack(tensors[f"{module}.qzeros"]).float(),
        )
        for part in PARTS:
            tensors[f"{module}.{part}"] = getattr(packed, part).contiguous()
    save_file(tensors, ours / "model.safetensors", {"format": "pt"})
    config = json.loads((ours / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq",
        "zero_point": True,
        "group_size": models.GROUP,
        "bits": 4,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    (ours / "config.json").write_text(json.dumps(config))
    core = tiny.core(ours)
    core.runner.model = load_awq_model(ours, group_size=models.GROUP, ops=core.runner.model.ops)
    oracle.load_state_dict(models.dequantised(ours), strict=False)
    prompt = tiny.prompt(64)
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(logits_of(core, prompt, 512), expected, atol=1e-4, rtol=1e-4)
