"""Rotary embeddings (Su et al. 2021) and the ways to stretch them, fixed when a model loads.

linear: Chen et al. 2023. NTK-aware: theta grows so that the lowest frequency spans the longer
context. YaRN: Peng et al. 2023. llama3: the scheme of Llama 3.1's release. Frequencies and the
attention factor follow each paper and agree with transformers (tests).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.engine.models.architectures import ARCHITECTURES
from youtu_llm.engine.models.spec import Extension, Model
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import Rope


@dataclass(frozen=True, slots=True)
class RopePlan:
    """How positions become angles, and the number of positions."""

    parameters: dict[str, Any]
    max_positions: int
    notes: tuple[str, ...] = ()  # for the log
    warnings: tuple[str, ...] = field(default=())  # for /health


def plan(
    config: ModelConfig, extension: Extension, *, long_context: bool, max_tokens: int
) -> RopePlan:
    """Choose scaling and context from the model, the flag and `context.max_tokens` (0: native).

    Raises ModelError when `max_tokens` needs the flag.
    """
    parameters = _parameters(config)
    native = config.int("max_position_embeddings")
    kind = _kind(parameters)
    if kind in ("yarn", "linear") and "original_max_position_embeddings" in parameters:
        stretched = parameters["original_max_position_embeddings"] * _factor(parameters)
        native = max(native, int(stretched))
    if not long_context:
        if max_tokens > native:
            raise ModelError(
                f"context.max_tokens is {max_tokens}, but the model was trained for {native}: "
                "lower it, or set context.long_context: true (--enable-long-context)"
            )
        return RopePlan(parameters, max_tokens or native)

    if kind == "dynamic":
        extension = Extension("dynamic", _factor(parameters))
    elif kind != "default" and _factor(parameters) > 1:
        extension = Extension("", 1.0)  # trained with its scaling: keep it
    reach = int(native * extension.max_factor)
    wanted = min(max_tokens or reach, reach)
    notes, warnings = [], []
    if max_tokens > reach:
        warnings.append(f"context.max_tokens {max_tokens} exceeds what the model reaches: {reach}")
    if wanted <= native:
        notes.append(f"long context: {wanted} tokens need no scaling, the model reaches {native}")
        return RopePlan(parameters, wanted, tuple(notes), tuple(warnings))
    factor = wanted / native
    if extension.method != "dynamic":
        parameters = {
            "rope_type": extension.method,
            "rope_theta": parameters["rope_theta"],
            "factor": factor,
            "original_max_position_embeddings": native,
        }
    notes.append(f"long context: {extension.method} by {factor:g}, {native} -> {wanted} tokens")
    if extension.warn:
        warnings.append(f"context stretched by {factor:g} beyond training; expect weaker answers")
    return RopePlan(parameters, wanted, tuple(notes), tuple(warnings))


def build(
    rope_plan: RopePlan, kind: type[Model], config: ModelConfig, device: torch.device
) -> Rope:
    """A model's tables for every position, cos and sin [max_positions + 1, dim / 2].

    The extra position is for a captured step that is computed ahead and then dropped.
    """
    dim = kind.rope_dim(config)
    frequencies, factor = frequencies_of(rope_plan.parameters, dim, rope_plan.max_positions)
    positions = torch.arange(rope_plan.max_positions + 1, dtype=torch.float32)
    angles = torch.outer(positions, frequencies)  # [positions, dim / 2]
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return Rope(cos.to(device), sin.to(device), kind.rope_interleaved(config))


def frequencies_of(
    parameters: dict[str, Any], dim: int, max_positions: int
) -> tuple[Tensor, float]:
    """Inverse frequencies [dim / 2] and the factor on cos and sin. Refuses unknown types."""
    kind, factor = _kind(parameters), _factor(parameters)
    theta = float(parameters["rope_theta"])
    plain = _inverse_frequencies(theta, dim)
    if kind == "default":
        return plain, 1.0
    if kind == "linear":
        return plain / factor, 1.0
    if kind == "ntk":
        return _inverse_frequencies(theta * factor ** (dim / (dim - 2)), dim), 1.0
    if kind == "dynamic":  # at-load: the base that the longest context gets
        original = parameters["original_max_position_embeddings"]
        stretch = max(1.0, factor * max_positions / original - (factor - 1))
        return _inverse_frequencies(theta * stretch ** (dim / (dim - 2)), dim), 1.0
    if kind == "yarn":
        return _yarn(plain, parameters, theta, factor)
    if kind == "llama3":
        return _llama3(plain, parameters, factor), 1.0
    raise ModelError(
        f"rope_type {kind!r} is not implemented; known are default, linear, dynamic, yarn, llama3"
    )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's temperature on the logits, as a factor on queries and keys."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def mla_softmax_factor(parameters: dict[str, Any]) -> float:
    """DeepSeek's MLA multiplies the softmax scale by mscale_all_dim's temperature, squared."""
    mscale = float(parameters.get("mscale_all_dim") or 0.0)
    if _kind(parameters) != "yarn" or not mscale:
        return 1.0
    return yarn_mscale(_factor(parameters), mscale) ** 2


def _parameters(config: ModelConfig) -> dict[str, Any]:
    """The config's rope block, completed with the architecture's conventional values."""
    parameters = config.rope_parameters
    known = ARCHITECTURES.get(config.architecture)
    theta = parameters.get("rope_theta") or (known and known.rope_theta)
    if not theta:
        raise ModelError(
            f"{config.source}: rope_theta is missing, and {config.architecture} has no default"
        )
    parameters = {**parameters, "rope_theta": float(theta)}
    if _kind(parameters) == "dynamic":
        parameters.setdefault(
            "original_max_position_embeddings", config.int("max_position_embeddings")
        )
    return parameters


def _kind(parameters: dict[str, Any]) -> str:
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def _factor(parameters: dict[str, Any]) -> float:
    return float(parameters.get("factor") or 1.0)


def _inverse_frequencies(theta: float, dim: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _yarn(
    plain: Tensor, parameters: dict[str, Any], theta: float, factor: float
) -> tuple[Tensor, float]:
    original = parameters.get("original_max_position_embeddings")
    if factor == 1.0:  # an identity; Youtu's old config has it without the original length
        return plain, 1.0
    if not original:
        raise ModelError("rope_type yarn needs original_max_position_embeddings")
    dim = 2 * plain.shape[0]

    def dimension_of(rotations: float) -> float:
        """Where a frequency turns `rotations` times over the original context."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension_of(float(parameters.get("beta_fast") or 32))
    high = dimension_of(float(parameters.get("beta_slow") or 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretch = ramp.clamp(0, 1)  # 0: keep the frequency, 1: interpolate it
    frequencies = plain * (1 - stretch) + plain / factor * stretch

    attention = parameters.get("attention_factor")
    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if attention is None and mscale and all_dim:
        attention = yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    elif attention is None:
        attention = yarn_mscale(factor)
    return frequencies, float(attention)


def _llama3(plain: Tensor, parameters: dict[str, Any], factor: float) -> Tensor:
    try:
        low = float(parameters["low_freq_factor"])
        high = float(parameters["high_freq_factor"])
        original = float(parameters["original_max_position_embeddings"])
    except KeyError as key:
        raise ModelError(f"rope_type llama3 needs {key.args[0]}") from None
    turns = original * plain / (2 * math.pi)  # over the original context
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * smooth + plain / factor * (1 - smooth)
