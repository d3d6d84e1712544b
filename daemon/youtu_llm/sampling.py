"""The sampling options, each in one place: name, type, bounds, default and description.

config.yaml, the request bodies, `youtu chat` and the messages to the engine take them from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_type_hints

MAX_NEW_TOKENS = 131_072


@dataclass(frozen=True)
class Option:
    """`default` is the configuration's; the bounds hold there and in a request."""

    description: str
    default: float | None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. The value of a field here turns its option off: with all of them off
    the choice is greedy, exact and reproducible."""

    max_new_tokens: int = 256
    temperature: Annotated[float, Option("0: greedy.", 0.4, ge=0.0, le=2.0)] = 0.0
    top_k: Annotated[int, Option("Keep the k most likely tokens. 0: off.", 20, ge=0, le=1000)] = 0
    top_p: Annotated[
        float,
        Option(
            "Keep the most likely tokens up to this cumulative probability.", 0.8, gt=0.0, le=1.0
        ),
    ] = 1.0
    min_p: Annotated[
        float,
        Option(
            "Drop tokens less likely than this fraction of the top token's probability.",
            0.0,
            ge=0.0,
            le=1.0,
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float, Option("Above 1: penalise tokens already used.", 1.05, ge=0.5, le=2.0)
    ] = 1.0
    seed: Annotated[
        int | None,
        Option("The same seed and prompt give the same answer.", None, ge=0, le=(1 << 63) - 1),
    ] = None  # the engine draws one
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False  # for benchmarks: run to max_new_tokens


def _options() -> Mapping[str, tuple[Any, Option]]:
    found = {}
    for name, hint in get_type_hints(SamplingParams, include_extras=True).items():
        match get_args(hint):
            case kind, Option() as option:
                found[name] = kind, option
    return MappingProxyType(found)


OPTIONS = _options()  # name -> (type, option)
