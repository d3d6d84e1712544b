"""Phi-2 (Javaheripi et al. 2023): parallel attention and MLP, LayerNorm, partial rotary."""

from __future__ import annotations

from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.layers import GQAttention, head_shape
from youtu_llm.engine.models.spec import Extension, Model
from youtu_llm.engine.weights import Weights
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import Batch, CacheSpec, CacheStorage, Ops, Rope


class PhiLayer:
    def __init__(
        self, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, layer: int
    ) -> None:
        hidden, inner = config.int("hidden_size"), config.int("intermediate_size")
        self.ops, self.eps = ops, config.float("layer_norm_eps")
        self.norm = weights.tensor("input_layernorm.weight", hidden)
        self.norm_bias = weights.tensor("input_layernorm.bias", hidden)
        self.attention = GQAttention(
            config,
            weights.under("self_attn"),
            ops,
            rope,
            layer,
            qkv_bias=True,
            out_name="dense",
            out_bias=True,
        )
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


class Phi(Model):
    """x += attention(norm(x)) + mlp(norm(x)), one norm for both."""

    extension = Extension("ntk", 2.0, warn=True)

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope) -> None:
        config.activation("gelu_new", "gelu_pytorch_tanh")
        if config.bool("qk_layernorm", False):
            raise ModelError(f"{config.source}: qk_layernorm is not implemented")
        hidden, vocab = config.int("hidden_size"), config.int("vocab_size")
        self.ops = ops
        self.eps = config.float("layer_norm_eps")
        self.embedding = weights.embedding("model.embed_tokens", vocab, hidden)
        self.layers = [
            self.make_layer(config, weights.under(f"model.layers.{i}"), ops, rope, i)
            for i in range(config.int("num_hidden_layers"))
        ]
        self.norm = weights.tensor("model.final_layernorm.weight", hidden)
        self.norm_bias = weights.tensor("model.final_layernorm.bias", hidden)
        self.head = weights.embedding("lm_head", vocab, hidden, bias=True)

    @classmethod
    def make_layer(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, index: int
    ) -> PhiLayer:
        return PhiLayer(config, weights, ops, rope, index)

    @classmethod
    def cache_spec(cls, config: ModelConfig) -> CacheSpec:
        _, num_kv_heads, head_dim = head_shape(config)
        return CacheSpec(config.int("num_hidden_layers"), 2 * num_kv_heads * head_dim)

    @classmethod
    def rope_dim(cls, config: ModelConfig) -> int:
        partial = config.rope_parameters.get("partial_rotary_factor")
        factor = float(partial) if partial else config.float("partial_rotary_factor", 0.5)
        return int(head_shape(config)[2] * factor)

    @classmethod
    def activation_width(cls, config: ModelConfig) -> int:
        return 5 * config.int("hidden_size") + 2 * config.int("intermediate_size")

    def forward(self, batch: Batch, cache: CacheStorage) -> Tensor:
        ops = self.ops
        x = ops.embed(batch.token_ids, self.embedding)  # [T, hidden]
        delta: Tensor | None = None
        for layer in self.layers:
            x, delta = layer.forward(x, delta, batch, cache)
        assert delta is not None
        x = x + delta
        if batch.logit_rows is not None:
            x = x[batch.logit_rows]  # [R, hidden]
        return ops.logits(ops.layer_norm(x, self.norm, self.norm_bias, self.eps), self.head)
