"""Rotary tables against transformers' own, and what each model allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models import rope
from youtu_llm.engine.models.llama import Llama
from youtu_llm.engine.models.phi import Phi
from youtu_llm.engine.models.qwen2 import Qwen2
from youtu_llm.engine.models.spec import Model
from youtu_llm.engine.models.youtu import Youtu
from youtu_llm.errors import ModelError

THETA = {"rope_theta": 500_000.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
        {"rope_type": "llama3", "factor": 8.0, **LLAMA3},
        {"rope_type": "dynamic", "factor": 2.0},
    ],
    ids=lambda parameters: parameters["rope_type"],
)
def test_frequencies_equal_transformers(parameters: dict[str, Any]) -> None:
    original = parameters.get("original_max_position_embeddings", 2048)
    longest = int(original * parameters["factor"])
    parameters = {"original_max_position_embeddings": original, **parameters}
    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=original,
        rope_parameters={**parameters, **THETA},
    )
    make = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    expected, factor = make(config, device="cpu", seq_len=longest)
    ours, our_factor = rope.frequencies_of({**parameters, **THETA}, 128, longest)
    torch.testing.assert_close(ours, expected)
    assert our_factor == pytest.approx(factor)


def config(native: int, **values: Any) -> ModelConfig:
    return ModelConfig({"max_position_embeddings": native, "rope_theta": 1e4, **values}, "test")


def test_an_identity_block_of_yarn_changes_nothing() -> None:
    block = {"type": "yarn", "factor": 1.0, "mscale_all_dim": 0}
    plain, _ = rope.frequencies_of(THETA, 64, 4096)
    same, factor = rope.frequencies_of({**THETA, **block}, 64, 4096)
    assert torch.equal(plain, same)
    assert factor == 1.0
    assert rope.mla_softmax_factor(block) == 1.0


def test_mscale_all_dim_scales_the_softmax() -> None:
    """DeepSeek-V2's rule: (0.1 * mscale * ln(factor) + 1) squared."""
    block = {"rope_type": "yarn", "factor": 40.0, "mscale_all_dim": 1.0}
    assert rope.mla_softmax_factor(block) == pytest.approx((0.1 * 3.6888794541 + 1) ** 2)


@pytest.mark.parametrize(
    ("kind", "native", "max_tokens", "method", "positions", "warned"),
    [
        (Youtu, 131072, 0, None, 131072, False),
        (Qwen2, 32768, 16384, None, 16384, False),
        (Qwen2, 32768, 65536, "yarn", 65536, False),
        (Qwen2, 32768, 0, "yarn", 131072, False),
        (Llama, 2048, 0, "ntk", 4096, True),
        (Phi, 2048, 3000, "ntk", 3000, True),
        (Phi, 2048, 8192, "ntk", 4096, True),
    ],
)
def test_long_context_by_model(
    kind: type[Model],
    native: int,
    max_tokens: int,
    method: str | None,
    positions: int,
    warned: bool,
) -> None:
    plan = rope.plan(config(native), kind.extension, long_context=True, max_tokens=max_tokens)
    assert plan.parameters.get("rope_type") == method
    assert plan.max_positions == positions
    assert bool(plan.warnings) == warned
    assert plan.notes, "the log says what the flag did"


def test_scaling_that_a_model_was_trained_with_stays() -> None:
    llama3 = {"rope_type": "llama3", "factor": 32.0, **LLAMA3}
    trained = config(131072, rope_scaling=llama3)
    plan = rope.plan(trained, Llama.extension, long_context=True, max_tokens=0)
    assert plan.parameters["rope_type"] == "llama3"
    assert plan.max_positions == 131072
    block = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    plan = rope.plan(
        config(32768, rope_scaling=block), Qwen2.extension, long_context=True, max_tokens=0
    )
    assert plan.parameters["factor"] == 4.0
    assert plan.max_positions == 131072


def test_dynamic_scaling_leaves_the_native_context_alone() -> None:
    values = config(2048, rope_scaling={"type": "dynamic", "factor": 2.0})
    plan = rope.plan(values, Llama.extension, long_context=False, max_tokens=0)
    got, _ = rope.frequencies_of(plan.parameters, 64, plan.max_positions)
    plain, _ = rope.frequencies_of({"rope_theta": 1e4}, 64, 2048)
    assert torch.equal(got, plain)
    plan = rope.plan(values, Llama.extension, long_context=True, max_tokens=0)
    assert plan.max_positions == 4096
    got, _ = rope.frequencies_of(plan.parameters, 64, plan.max_positions)
    assert (got[1:] < plain[1:]).all()


def test_a_config_without_theta_is_refused_unless_convention_has_one() -> None:
    bare = {"max_position_embeddings": 2048}
    plan = rope.plan(
        ModelConfig({**bare, "architectures": ["LlamaForCausalLM"]}, "test"),
        Llama.extension,
        long_context=False,
        max_tokens=0,
    )
    assert plan.parameters["rope_theta"] == 1e4
    with pytest.raises(ModelError, match="rope_theta"):
        rope.plan(ModelConfig(bare, "test"), Youtu.extension, long_context=True, max_tokens=0)


def test_beyond_the_native_context_needs_the_flag() -> None:
    with pytest.raises(ModelError, match="--enable-long-context"):
        rope.plan(config(2048), Qwen2.extension, long_context=False, max_tokens=4096)


@pytest.mark.parametrize("kind", ["longrope", "fancy"])
def test_unknown_types_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ModelError, match=kind):
        rope.frequencies_of({**THETA, "rope_type": kind}, 64, 4096)
