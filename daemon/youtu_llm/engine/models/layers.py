"""The blocks that architectures share."""

from __future__ import annotations

import abc
from typing import Protocol

from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.spec import Layer, Model
from youtu_llm.engine.weights import Weights
from youtu_llm.ops.api import Batch, CacheSpec, CacheStorage, Linear, Ops, Rope


class GQAttention:
    """Grouped-query attention (Ainslie et al. 2023) with rotary positions."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        ops: Ops,
        rope: Rope,
        layer: int,
        *,
        qkv_bias: bool,
        out_name: str = "o_proj",
        out_bias: bool = False,
    ) -> None:
        hidden = config.int("hidden_size")
        self.num_heads, self.num_kv_heads, self.head_dim = head_shape(config)
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.input = weights.fused_linear(
            ("q_proj", "k_proj", "v_proj"), hidden, (q, kv, kv), bias=qkv_bias
        )
        self.out = weights.linear(out_name, q, hidden, bias=out_bias)
        self.ops, self.rope, self.layer = ops, rope, layer
        self.scale = self.head_dim**-0.5

    def forward(self, qkv: Tensor, batch: Batch, cache: CacheStorage) -> Tensor:
        """[T, (H + 2 G) * D] -> [T, hidden]"""
        q = self.ops.rope_cache(qkv, self.head_dim, self.rope, batch, cache, self.layer)
        mixed = self.ops.gqa_attention(q, batch, cache, self.layer, self.scale)  # [T, H * D]
        return self.ops.linear(mixed, self.out)


class Attention(Protocol):
    input: Linear  # from the normalised residual to what `forward` takes

    def forward(self, projected: Tensor, batch: Batch, cache: CacheStorage) -> Tensor:
        """-> [T, hidden]; writes this step's cache entries."""


class DecoderLayer:
    """Attention, then down(silu(gate(x)) * up(x)) (Shazeer 2020), each after a norm."""

    def __init__(
        self, config: ModelConfig, weights: Weights, ops: Ops, attention: Attention
    ) -> None:
        config.activation("silu")
        hidden, inner = config.int("hidden_size"), config.int("intermediate_size")
        self.ops, self.eps = ops, config.float("rms_norm_eps")
        self.input_norm = weights.tensor("input_layernorm.weight", hidden)
        self.attention = attention
        self.post_norm = weights.tensor("post_attention_layernorm.weight", hidden)
        mlp = weights.under("mlp")
        self.gate_up = mlp.fused_linear(("gate_proj", "up_proj"), hidden, (inner, inner))
        self.down = mlp.linear("down_proj", inner, hidden)

    def forward(
        self, x: Tensor, delta: Tensor | None, batch: Batch, cache: CacheStorage
    ) -> tuple[Tensor, Tensor]:
        ops, attention = self.ops, self.attention
        x, h = ops.norm_linear(x, delta, self.input_norm, self.eps, attention.input)
        delta = attention.forward(h, batch, cache)
        x, h = ops.norm_gated(x, delta, self.post_norm, self.eps, self.gate_up)
        return x, ops.linear(h, self.down)


class Decoder(Model):
    """The pre-norm decoder of Llama and its kin; architectures differ in their attention."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope) -> None:
        self.ops = ops
        hidden, vocab = config.int("hidden_size"), config.int("vocab_size")
        self.embedding = weights.embedding("model.embed_tokens", vocab, hidden)
        self.layers = [
            self.make_layer(config, weights.under(f"model.layers.{i}"), ops, rope, i)
            for i in range(config.int("num_hidden_layers"))
        ]
        self.take_head(config, weights, vocab, hidden)

    def take_head(self, config: ModelConfig, weights: Weights, vocab: int, hidden: int) -> None:
        """The last norm and the head: what `logits` needs."""
        self.eps = config.float("rms_norm_eps")
        self.norm = weights.tensor("model.norm.weight", hidden)
        tied = config.bool("tie_word_embeddings", not weights.has("lm_head.weight"))
        self.head = self.embedding if tied else weights.embedding("lm_head", vocab, hidden)

    @classmethod
    def make_layer(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, index: int
    ) -> Layer:
        attention = cls.make_attention(config, weights.under("self_attn"), ops, rope, index)
        return DecoderLayer(config, weights, ops, attention)

    @classmethod
    @abc.abstractmethod
    def make_attention(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, layer: int
    ) -> Attention:
        """The attention block of one layer."""

    @classmethod
    def cache_spec(cls, config: ModelConfig) -> CacheSpec:
        _, num_kv_heads, head_dim = head_shape(config)
        return CacheSpec(config.int("num_hidden_layers"), 2 * num_kv_heads * head_dim)

    @classmethod
    def rope_dim(cls, config: ModelConfig) -> int:
        return head_shape(config)[2]

    @classmethod
    def activation_width(cls, config: ModelConfig) -> int:
        return 8 * config.int("hidden_size") + 3 * config.int("intermediate_size")

    def forward(self, batch: Batch, cache: CacheStorage) -> Tensor:
        ops = self.ops
        x = ops.embed(batch.token_ids, self.embedding)  # [T, hidden], the residual stream
        delta: Tensor | None = None  # a block's output, added by the next block's norm
        for layer in self.layers:
            x, delta = layer.forward(x, delta, batch, cache)
        assert delta is not None
        if batch.logit_rows is not None:
            x, delta = x[batch.logit_rows], delta[batch.logit_rows]  # [R, hidden]
        return self.logits(x, delta)

    def logits(self, x: Tensor, delta: Tensor) -> Tensor:
        """[R, hidden], [R, hidden] -> [R, vocab] float32"""
        return self.ops.logits(self.ops.add_rms_norm(x, delta, self.norm, self.eps), self.head)


def head_shape(config: ModelConfig) -> tuple[int, int, int]:
    """(query heads, key/value heads, values a head)."""
    num_heads = config.int("num_attention_heads")
    num_kv_heads = config.int("num_key_value_heads", num_heads)
    head_dim = config.int("head_dim", config.int("hidden_size") // num_heads)
    return num_heads, num_kv_heads, head_dim
