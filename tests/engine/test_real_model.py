"""The real Qwen2.5-Coder-0.5B, unquantised in float32, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from tests.engine import tiny
from youtu_llm import paths
from youtu_llm.engine.core import Core
from youtu_llm.text.tokenizer import Tokenizer

MODEL = "qwen2.5-coder-0.5b-fp32"
NUM_NEW = 64
PROMPTS = [
    "导航到最近的加油站，避开高速",
    "请用三句话介绍一下长城的历史。",
    "把大象装进冰箱，总共分几步？",
    "小明有12个苹果，给了小红5个，又买了8个，现在有几个？",
    "What is the capital of France, and why is it famous?",
    "Explain the difference between a process and a thread.",
    "A train travels 60 km in 45 minutes. What is its speed in km/h?",
    "Write a Python function that checks whether a string is a palindrome.",
    "def quicksort(items):\n    # sort in place, then explain the complexity\n",
    "SELECT name, COUNT(*) FROM orders GROUP BY name; -- 这条语句做什么？",
]

pytestmark = [pytest.mark.model, pytest.mark.long]


@pytest.fixture(scope="module")
def folder() -> Path:
    path = paths.models_dir() / MODEL
    if not path.exists():
        pytest.skip(f"{MODEL} is not in {path.parent}; `make test` makes it")
    return path


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    tokenizer = Tokenizer.load(folder)
    return [tokenizer.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]


@pytest.fixture(scope="module")
def core(folder: Path) -> Core:
    return tiny.core(folder, kv_cache_max_page=32, prefix_cache=False)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_greedy_equals_transformers(
    core: Core, oracle: PreTrainedModel, prompts: list[list[int]]
) -> None:
    """All ten prompts at once, token for token; then four of them alone, the same again."""
    eos = oracle.generation_config.eos_token_id
    eos_ids = set(eos if isinstance(eos, list) else [eos])
    together = tiny.run(
        core, {str(i): (ids, tiny.greedy(NUM_NEW)) for i, ids in enumerate(prompts)}
    )
    for i, (text, ids) in enumerate(zip(PROMPTS, prompts, strict=True)):
        expected = tiny.oracle_greedy(oracle, ids, NUM_NEW)
        if expected[-1] in eos_ids:
            expected = expected[:-1]
        assert together[str(i)] == expected, text
    for i in (0, 3, 6, 9):
        solo = tiny.run(core, {"solo": (prompts[i], tiny.greedy(NUM_NEW))})["solo"]
        assert solo == together[str(i)], PROMPTS[i]
