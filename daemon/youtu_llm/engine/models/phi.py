"""Phi-2 (Javaheripi et al. 2023): parallel attention and MLP, LayerNorm, partial rotary."""

from __future__ import annotations

from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.layers import Attention, Decoder, GQAttention, head_shape
from youtu_llm.engine.models.spec import Extension
from youtu_llm.engine.weights import Weights
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import Batch, CacheStorage, Ops, Rope


class PhiLayer:
    def __init__(
        self, config: ModelConfig, weights: Weights, ops: Ops, attention: Attention
    ) -> None:
        config.activation("gelu_new", "gelu_pytorch_tanh")
        if config.bool("qk_layernorm", False):
            raise ModelError(f"{config.source}: qk_layernorm is not implemented")
        hidden, inner = config.int("hidden_size"), config.int("intermediate_size")
        self.ops, self.eps = ops, config.float("layer_norm_eps")
        self.norm = weights.tensor("input_layernorm.weight", hidden)
        self.norm_bias = weights.tensor("input_layernorm.bias", hidden)
        self.attention = attention
        mlp = weights.under("mlp")
        self.up = mlp.linear("fc1", hidden, inner, bias=True)
        self.down = mlp.linear("fc2", inner, hidden, bias=True)

    def forward(
        self, x: Tensor, delta: Tensor | None, batch: Batch, cache: CacheStorage
    ) -> tuple[Tensor, Tensor]:
        ops = self.ops
        x = x if delta is None else x + delta
        h = ops.layer_norm(x, self.norm, self.norm_bias, self.eps)
        inner = ops.gelu_tanh(ops.linear(h, self.up))  # [T, inner]
        qkv = ops.linear(h, self.attention.input)
        return x, self.attention.forward(qkv, batch, cache) + ops.linear(inner, self.down)


class Phi(Decoder):
    """x += attention(norm(x)) + mlp(norm(x)), one norm for both."""

    extension = Extension("ntk", 2.0, warn=True)

    def take_head(self, config: ModelConfig, weights: Weights, vocab: int, hidden: int) -> None:
        self.eps = config.float("layer_norm_eps")
        self.norm = weights.tensor("model.final_layernorm.weight", hidden)
        self.norm_bias = weights.tensor("model.final_layernorm.bias", hidden)
        self.head = weights.embedding("lm_head", vocab, hidden, bias=True)

    @classmethod
    def make_layer(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, index: int
    ) -> PhiLayer:
        attention = cls.make_attention(config, weights.under("self_attn"), ops, rope, index)
        return PhiLayer(config, weights, ops, attention)

    @classmethod
    def make_attention(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, layer: int
    ) -> Attention:
        return GQAttention(
            config, weights, ops, rope, layer, qkv_bias=True, out_name="dense", out_bias=True
        )

    @classmethod
    def rope_dim(cls, config: ModelConfig) -> int:
        partial = config.rope_parameters.get("partial_rotary_factor")
        factor = float(partial) if partial else config.float("partial_rotary_factor", 0.5)
        return int(head_shape(config)[2] * factor)

    @classmethod
    def activation_width(cls, config: ModelConfig) -> int:
        return 5 * config.int("hidden_size") + 2 * config.int("intermediate_size")

    def logits(self, x: Tensor, delta: Tensor) -> Tensor:
        normed = self.ops.layer_norm(x + delta, self.norm, self.norm_bias, self.eps)
        return self.ops.logits(normed, self.head)
