"""Llama (Touvron et al. 2023; Llama 3, Grattafiori et al. 2024; TinyLlama, Zhang et al. 2024)."""

from __future__ import annotations

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.layers import Attention, Decoder, GQAttention
from youtu_llm.engine.models.spec import Extension
from youtu_llm.engine.weights import Weights
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import Ops, Rope


class Llama(Decoder):
    """Grouped-query attention, gated MLP, no biases."""

    extension = Extension("ntk", 2.0, warn=True)
    qkv_bias = False

    @classmethod
    def make_attention(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, layer: int
    ) -> Attention:
        for key in ("attention_bias", "mlp_bias"):
            if config.bool(key, False):
                raise ModelError(f"{config.source}: {key} is not implemented")
        return GQAttention(config, weights, ops, rope, layer, qkv_bias=cls.qkv_bias)
