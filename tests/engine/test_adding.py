"""docs/ADDING.md's paragraph about a model architecture, followed step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from tests.engine import tiny
from tests.engine.test_parity import logits_of
from tests.tools.quantize import models as tiny_models
from youtu_llm.engine import models
from youtu_llm.engine.models.architectures import ARCHITECTURES, Architecture, Fold
from youtu_llm.tools.quantize.run import quantize

# Step 1: a file in engine/models. Llama's decoder, whose queries and keys pass a norm first.
SOURCE = '''
"""Qwen3 (Yang et al. 2025): Llama's decoder with a norm of each head's queries and keys."""

import torch
from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.layers import Attention, GQAttention
from youtu_llm.engine.models.llama import Llama
from youtu_llm.engine.models.spec import Extension
from youtu_llm.engine.weights import Weights
from youtu_llm.ops.api import Batch, CacheStorage, Ops, Rope


class NormedAttention(GQAttention):
    def __init__(
        self, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, layer: int
    ) -> None:
        super().__init__(config, weights, ops, rope, layer, qkv_bias=False)
        self.eps = config.float("rms_norm_eps")
        self.q_norm = weights.tensor("q_norm.weight", self.head_dim)
        self.k_norm = weights.tensor("k_norm.weight", self.head_dim)

    def forward(self, qkv: Tensor, batch: Batch, cache: CacheStorage) -> Tensor:
        heads = qkv.view(len(qkv), -1, self.head_dim)  # [T, H + 2 G, D]
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        q, k = self._norm(q, self.q_norm), self._norm(k, self.k_norm)
        return super().forward(torch.cat((q, k, v), dim=1).flatten(1), batch, cache)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """[T, heads, D] -> [T, heads, D]"""
        rows = x.reshape(-1, self.head_dim)
        return self.ops.rms_norm(rows, weight, self.eps).view(x.shape)


class Qwen3(Llama):
    extension = Extension("yarn", 4.0)

    @classmethod
    def make_attention(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, layer: int
    ) -> Attention:
        return NormedAttention(config, weights, ops, rope, layer)
'''

# Step 2: an entry in engine/models/architectures.py.
ENTRY = Architecture(
    model="qwen3:Qwen3",
    folds=(
        Fold("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Fold("self_attn.v_proj", ("self_attn.o_proj",), "values_of_groups"),
        Fold("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        Fold("mlp.up_proj", ("mlp.down_proj",)),
    ),
)


# Step 3: a tiny model in tests/engine/tiny.py.
def qwen3(**changes: Any) -> PreTrainedModel:
    values = {**tiny._COMMON, "num_key_value_heads": 2, "head_dim": 32}
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**(values | changes)))


def test_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine and `youtu quantize` compute what transformers' plain torch does."""
    (tmp_path / "qwen3.py").write_text(SOURCE)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setitem(ARCHITECTURES, "Qwen3ForCausalLM", ENTRY)
    monkeypatch.setitem(tiny.ARCHITECTURES, "qwen3", qwen3)

    oracle = tiny_models.make("qwen3", tmp_path / "source")
    prompt = tiny.prompt(300)  # more than a page
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0]  # [300, vocab]
    got = logits_of(tiny.core(tmp_path / "source"), prompt, 512)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)

    out = quantize(tmp_path / "source", tmp_path / "out", tiny_models.options("awq"))
    oracle.load_state_dict(tiny_models.dequantised(out))
    with torch.inference_mode():
        expected = oracle(torch.tensor([prompt])).logits[0]
    got = logits_of(tiny.core(out), prompt, 512)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_paragraph_names_these_places() -> None:
    text = (Path(__file__).parents[2] / "docs" / "ADDING.md").read_text("utf-8")
    paragraph = text.partition("**A model architecture.**")[2].partition("\n**")[0]
    for place in ("engine/models/", "engine/models/architectures.py", "tests/engine/tiny.py"):
        assert f"`{place}`" in paragraph
