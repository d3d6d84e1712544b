"""Qwen1.5, Qwen2, Qwen2.5 (Yang et al. 2024): Llama's decoder with biases on q, k and v."""

from __future__ import annotations

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.llama import Llama
from youtu_llm.engine.models.spec import Extension
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import CacheSpec


class Qwen2(Llama):
    extension = Extension("yarn", 4.0)
    qkv_bias = True

    @classmethod
    def cache_spec(cls, config: ModelConfig) -> CacheSpec:
        if config.bool("use_sliding_window", False):
            raise ModelError(f"{config.source}: use_sliding_window is not implemented")
        return super().cache_spec(config)
