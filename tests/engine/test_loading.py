"""Bad models are refused by name, plans that don't fit with a table, memory is given back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine import tiny
from youtu_llm.engine.checkpoint import Checkpoint
from youtu_llm.engine.core import is_out_of_memory
from youtu_llm.errors import ModelError, ResourceError
from youtu_llm.modelfiles import eos_token_ids
from youtu_llm.protocol import PAGE_SIZE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.make("qwen2", tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*not implemented"),
        ({"hidden_act": "relu"}, "relu.*not implemented"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e6}}, "longrope"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\.\S+ is missing"),
        ({"num_hidden_layers": 2}, r"unexpected tensors for Qwen2ForCausalLM: model\.layers\.2"),
        ({"intermediate_size": 256}, "has shape"),
        ({"hidden_size": "64"}, "hidden_size must be a int"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq", "version": "gemv"}}, "gemv"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused_by_name(folder: Path, change: dict[str, Any], message: str) -> None:
    edit_config(folder, **change)
    with pytest.raises(ModelError, match=message):
        tiny.core(folder)


def test_surplus_and_missing_tensors(folder: Path) -> None:
    edit_tensors(folder, **{"model.layers.0.self_attn.q_proj.extra": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"q_proj\.extra"):
        tiny.core(folder)
    edit_tensors(
        folder,
        **{"model.layers.0.self_attn.q_proj.extra": None, "model.norm.weight": None},
    )
    with pytest.raises(ModelError, match=r"model\.norm\.weight is missing"):
        tiny.core(folder)


def test_parts_of_one_linear_must_be_stored_alike(folder: Path) -> None:
    name = "model.layers.0.self_attn.k_proj"
    edit_tensors(
        folder,
        **{f"{name}.weight": torch.ones(32, 64, dtype=torch.int8)},
        **{f"{name}.scales": torch.ones(32, dtype=torch.float16)},
    )
    with pytest.raises(ModelError, match=r"have the same format.*DenseWeight and Int8Weight"):
        tiny.core(folder)


def test_a_model_without_sense_fails_its_requests_only(folder: Path) -> None:
    edit_tensors(folder, **{"model.norm.weight": torch.full((64,), float("nan"))})
    core = tiny.core(folder)
    assert core.add("a", tiny.prompt(20), tiny.greedy(4)) is None
    (output,) = core.step()
    assert output.error_code == "engine_error"
    assert not core.has_work
    assert core.pool.num_used == 0


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors.index.json"])
def test_damaged_json_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    with pytest.raises(ModelError, match=name):
        eos_token_ids(Checkpoint(folder).model_dir)


def test_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged or cut short"):
        Checkpoint(folder)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="youtu pull"):
        Checkpoint(tmp_path / "nothing")


def test_a_plan_that_does_not_fit_shows_who_needs_what(folder: Path) -> None:
    with pytest.raises(ResourceError, match=r"(?s)weights.*workspace.*cache.*engine\.memory"):
        tiny.core(folder, memory_limit_bytes=1 << 20)


@pytest.mark.parametrize(
    ("change", "limit_by", "pages"),
    [
        ({"kv_cache_max_page": 9}, "kv_cache_max_page", 9),
        ({"max_num_seqs": 2, "max_context_tokens": 1024}, "context", 2 * 5),
        ({"memory_limit_bytes": 6_000_000}, "memory", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_least_bound_limits_the_pages(
    folder: Path, change: dict[str, int], limit_by: str, pages: int | None
) -> None:
    core = tiny.core(folder, **change)
    stats = core.page_stats()
    assert stats.limit_by == limit_by
    assert stats.limit == (pages or stats.limit)
    plan = core.plan
    assert plan.weights + plan.workspace + plan.num_pages * plan.page_bytes <= plan.total
    assert plan.max_model_len <= (stats.limit - 1) * PAGE_SIZE


def test_cache_memory_returns_to_its_start(folder: Path) -> None:
    core = tiny.core(folder)
    assert core.cache.num_bytes == 0
    peak = 0
    for round in range(8):
        for i in range(8):
            ids = tiny.prompt(100, seed=8 * round + i)
            assert core.add(f"{round}.{i}", ids, tiny.greedy(8)) is None
        while core.has_work:
            core.step()
            peak = max(peak, core.cache.num_bytes)
    assert peak > 0
    core._last_work_s -= core._cache_idle_s + 1  # an idle engine, five minutes later
    core.idle()
    assert core.cache.num_bytes == 0
    assert core.pool.num_used == core.pool.num_cached == 0


def test_out_of_memory_fails_only_the_newest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = tiny.core(folder)
    run = core.runner.run
    monkeypatch.setattr(core.runner, "run", lambda plan: _refuse(plan) or run(plan))
    outputs = {}
    core.add("old", tiny.prompt(20), tiny.greedy(4))
    core.add("new", tiny.prompt(20, seed=1), tiny.greedy(4))
    while core.has_work:
        for output in core.step():
            outputs[output.id] = output
    assert outputs["new"].error_code == "out_of_memory"
    assert outputs["old"].finish_reason == "length"
    assert core.pool.num_used == 0


def _refuse(plan: Any) -> None:
    """What torch raises on a Jetson when device memory is gone."""
    if len(plan.chunks) > 1:
        raise RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at somewhere")


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
