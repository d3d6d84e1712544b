"""Youtu-LLM: dense layers with multi-head latent attention (MLA, DeepSeek-V2, Liu et al. 2024).

The cache holds one latent of 512 values and one rotated key part of 64 per token and layer,
shared by all heads; `kv_b` expands it to keys and values when they are needed.
"""

from __future__ import annotations

from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models import rope as rope_module
from youtu_llm.engine.models.layers import Attention, Decoder
from youtu_llm.engine.models.spec import Extension
from youtu_llm.engine.weights import Weights
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import Batch, CacheSpec, CacheStorage, Ops, Rope


class MLAttention:
    def __init__(
        self, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, layer: int
    ) -> None:
        hidden, eps = config.int("hidden_size"), config.float("rms_norm_eps")
        heads, q_rank = config.int("num_attention_heads"), config.int("q_lora_rank")
        rank, self.v_dim = config.int("kv_lora_rank"), config.int("v_head_dim")
        self.head_dim = config.int("qk_nope_head_dim") + rope.dim
        self.q_rank, self.num_heads, self.eps = q_rank, heads, eps
        self.input = weights.fused_linear(
            ("q_a_proj", "kv_a_proj_with_mqa"), hidden, (q_rank, rank + rope.dim)
        )
        self.q_norm = weights.tensor("q_a_layernorm.weight", q_rank)
        self.q_b = weights.linear("q_b_proj", q_rank, heads * self.head_dim)
        self.kv_norm = weights.tensor("kv_a_layernorm.weight", rank)
        kv_b_out = heads * (config.int("qk_nope_head_dim") + self.v_dim)
        self.kv_b = weights.linear("kv_b_proj", rank, kv_b_out)
        self.out = weights.linear("o_proj", heads * self.v_dim, hidden)
        self.ops, self.rope, self.layer = ops, rope, layer
        self.scale = self.head_dim**-0.5
        self.scale *= rope_module.mla_softmax_factor(config.rope_parameters)

    def forward(self, down: Tensor, batch: Batch, cache: CacheStorage) -> Tensor:
        """[T, q_rank + rank + rope] -> [T, hidden]"""
        ops = self.ops
        q_down, latent = down[:, : self.q_rank], down[:, self.q_rank :]
        _, q = ops.norm_linear(q_down, None, self.q_norm, self.eps, self.q_b)
        q = q.view(-1, self.num_heads, self.head_dim)  # [T, H, nope + rope]
        mixed = ops.mla(
            q,
            latent,
            self.kv_norm,
            self.eps,
            self.rope,
            self.kv_b,
            batch,
            cache,
            self.layer,
            self.v_dim,
            self.scale,
        )  # [T, H * v]
        return ops.linear(mixed, self.out)


class Youtu(Decoder):
    """A cache of 576 values per token and layer, independent of the number of heads."""

    # Trained for 131072 positions: the long-context flag only raises the limit.
    extension = Extension("", 1.0)

    @classmethod
    def make_attention(
        cls, config: ModelConfig, weights: Weights, ops: Ops, rope: Rope, layer: int
    ) -> Attention:
        if config.bool("attention_bias", False):
            raise ModelError(f"{config.source}: attention_bias is not implemented")
        return MLAttention(config, weights, ops, rope, layer)

    @classmethod
    def cache_spec(cls, config: ModelConfig) -> CacheSpec:
        width = config.int("kv_lora_rank") + config.int("qk_rope_head_dim")
        return CacheSpec(config.int("num_hidden_layers"), width)

    @classmethod
    def rope_dim(cls, config: ModelConfig) -> int:
        return config.int("qk_rope_head_dim")

    @classmethod
    def rope_interleaved(cls, config: ModelConfig) -> bool:
        return config.bool("rope_interleave", True)
