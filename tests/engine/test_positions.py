"""That positions matter: a wrong rotary layout, theta or flag shows in the logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.engine import tiny
from tests.engine.test_parity import logits_of

PROMPT = tiny.prompt(200)


@torch.inference_mode()
def oracle_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model(torch.tensor([ids])).logits[0]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rope_interleave": False},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    ],
    ids=["layout", "theta"],
)
def test_youtu_with_wrong_rope_fails_parity(tmp_path: Path, wrong: dict[str, Any]) -> None:
    tiny.make("youtu", tmp_path)
    expected = oracle_logits(tmp_path, PROMPT)
    edit_config(tmp_path, **wrong)
    error = (logits_of(tiny.core(tmp_path), PROMPT, 512) - expected).abs().max()
    assert error > 0.1, f"{wrong} went unnoticed: {error}"


def test_youtu_reads_its_old_config(tmp_path: Path) -> None:
    """An identity YaRN block and rope_theta beside it, as in the first release."""
    tiny.make("youtu", tmp_path)
    expected = oracle_logits(tmp_path, PROMPT)
    block = {"type": "yarn", "factor": 1.0, "mscale_all_dim": 0}
    edit_config(tmp_path, rope_parameters=None, rope_scaling=block, rope_theta=1.6e6)
    got = logits_of(tiny.core(tmp_path), PROMPT, 512)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_mla_mscale_rules_equal_transformers(tmp_path: Path) -> None:
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
    }
    oracle = tiny.make("youtu", tmp_path, rope_parameters=yarn)
    with torch.inference_mode():
        expected = oracle(torch.tensor([PROMPT])).logits[0]
    got = logits_of(tiny.core(tmp_path), PROMPT, 512)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", ["qwen2", "llama", "phi"])
def test_the_long_context_flag_changes_the_logits(arch: str, tmp_path: Path) -> None:
    plain = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    tiny.make(arch, tmp_path, max_position_embeddings=512, rope_parameters=plain)
    without = logits_of(tiny.core(tmp_path), PROMPT, 512)
    core = tiny.core(tmp_path, long_context=True, max_context_tokens=1024)
    assert core.plan.max_model_len == 1024
    assert (logits_of(core, PROMPT, 512) - without).abs().max() > 1e-2


def test_static_yarn_of_qwen2_equals_transformers(tmp_path: Path) -> None:
    tiny.make("qwen2", tmp_path, max_position_embeddings=512)
    core = tiny.core(tmp_path, long_context=True, max_context_tokens=2048)
    ids = tiny.prompt(900)
    got = logits_of(core, ids, 512)
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    edit_config(tmp_path, rope_parameters=yarn, max_position_embeddings=2048)
    expected = oracle_logits(tmp_path, ids)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_pages_that_hold_less_stretch_less(tmp_path: Path) -> None:
    """The rotary plan follows the memory plan: positions that no page can hold cost accuracy."""
    tiny.make("qwen2", tmp_path, max_position_embeddings=512)
    ids = tiny.prompt(400)
    few = tiny.core(tmp_path, long_context=True, max_context_tokens=2048, kv_cache_max_page=5)
    assert few.plan.max_model_len == 1024
    same = tiny.core(tmp_path, long_context=True, max_context_tokens=1024)
    assert torch.equal(logits_of(few, ids, 512), logits_of(same, ids, 512))
    whole = tiny.core(tmp_path, long_context=True, max_context_tokens=2048)
    assert not torch.equal(logits_of(few, ids, 512), logits_of(whole, ids, 512))
