"""`youtu quantize` on tiny models: what it writes is what runs, and a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine import tiny
from tests.engine.test_parity import logits_of
from tests.tools import tiny_gguf
from tests.tools.quantize import models
from youtu_llm.errors import ModelError
from youtu_llm.tools import model_dir
from youtu_llm.tools.importer import import_model
from youtu_llm.tools.quantize.run import REPORT, Options, quantize

PROMPT = tiny.prompt(200)


@pytest.fixture(scope="module")
def youtu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "tiny-youtu"
    models.make("youtu", folder)
    return folder


@pytest.mark.parametrize(
    ("arch", "method"),
    [("youtu", "auto"), ("youtu", "awq+gptq"), ("qwen2", "awq"), ("llama", "rtn"), ("phi", "gptq")],
)
def test_logits_are_those_of_the_dequantised_model(arch: str, method: str, tmp_path: Path) -> None:
    oracle = models.make(arch, tmp_path / "source")
    with torch.inference_mode():
        original = oracle(torch.tensor([PROMPT])).logits[0]
    out = quantize(tmp_path / "source", tmp_path / "out", models.options(method))
    state = models.dequantised(out)
    oracle.load_state_dict(state, strict="lm_head.weight" in state)
    oracle.tie_weights()
    with torch.inference_mode():
        expected = oracle(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits_of(tiny.core(out), PROMPT, 512), expected, **_CLOSE)
    assert 0 < (expected - original).norm() < original.norm()
    assert model_dir.verify(out, full=True).quantization == "awq_int8"
    report = json.loads((out / REPORT).read_text())
    assert len(report["blocks"]) == 3
    assert all(block["error"] > 0 for block in report["blocks"])


_CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def test_a_killed_run_goes_on_and_gives_the_same_bytes(youtu: Path, tmp_path: Path) -> None:
    whole = quantize(youtu, tmp_path / "whole", models.options())
    work = tmp_path / ".partial" / "killed"
    command = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from youtu_llm.tools.quantize.progress import Progress\n"
        "from youtu_llm.tools.quantize.run import Options, Recipe, quantize\n"
        "finish = Progress.finish_block\n"
        "def killed(*args):\n"
        "    finish(*args)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Progress.finish_block = killed\n"
        f"options = Options('gptq', Recipe({models.GROUP}))\n"
        f"quantize(Path({str(youtu)!r}), Path({str(tmp_path / 'killed')!r}), options)\n"
    )
    ended = subprocess.run([sys.executable, "-c", command], env=_same_threads(), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (work / "block-0000.json").exists()
    assert not (work / "block-0001.json").exists()
    killed = quantize(youtu, tmp_path / "killed", models.options())
    for name in ("model.safetensors", "config.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not work.exists()


def _same_threads() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def test_rounding_a_gguf_file_is_what_import_does(tmp_path: Path) -> None:
    source = tiny_gguf.write(tmp_path / "tiny.gguf", tiny_gguf.weights())
    imported = load_file(import_model(source, models_dir=tmp_path) / "model.safetensors")
    out = quantize(source, tmp_path / "out", Options("rtn"))
    made = load_file(out / "model.safetensors")
    assert made.keys() == imported.keys()
    assert all(torch.equal(made[name], imported[name]) for name in made)


def test_another_command_does_not_go_on_from_there(youtu: Path, tmp_path: Path) -> None:
    work = tmp_path / ".partial" / "out"
    work.mkdir(parents=True)
    (work / "plan.json").write_text('{"method": "rtn"}')
    (work / "block-0000.json").write_text("{}")
    with pytest.raises(ModelError, match=r"another .*method"):
        quantize(youtu, tmp_path / "out", models.options("gptq"))


def test_a_refused_command_is_not_in_the_way_of_the_right_one(youtu: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nonsense"):
        quantize(youtu, tmp_path / "out", models.options("rtn", "nonsense"))
    quantize(youtu, tmp_path / "out", models.options("rtn"))


def test_int8_exceptions_and_an_fp16_head(youtu: Path, tmp_path: Path) -> None:
    plain = quantize(youtu, tmp_path / "plain", models.options("rtn", int8_head=False))
    config = json.loads((plain / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "awq"  # nothing in it that AutoAWQ's readers don't know
    assert "int8_modules" not in config
    kept = quantize(youtu, tmp_path / "kept", models.options("rtn", "kv_b", int8_head=False))
    config = json.loads((kept / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "awq_int8"
    assert config["int8_modules"] == [f"model.layers.{i}.self_attn.kv_b_proj" for i in range(3)]
    assert torch.isfinite(logits_of(tiny.core(kept), PROMPT, 512)).all()


@pytest.mark.parametrize(
    ("keep", "words"),
    [(("up",), "--keep-int8 gate_proj,up_proj"), (("fc1",), "the linears are down_proj, ")],
)
def test_exceptions_that_cannot_be(
    youtu: Path, tmp_path: Path, keep: tuple[str, ...], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        quantize(youtu, tmp_path / "out", models.options("rtn", *keep))


def test_what_is_quantised_already_is_refused(youtu: Path, tmp_path: Path) -> None:
    once = quantize(youtu, tmp_path / "once", models.options("rtn", int8_head=False))
    config = json.loads((once / "config.json").read_text())
    config["quantization_config"]["group_size"] = 128
    (once / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised already"):
        quantize(once, tmp_path / "twice", models.options())
