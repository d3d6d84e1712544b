"""What can be configured: config.yaml and profiles as frozen models with bounds.

A profile is the same tree with only what differs from the defaults; `config.load` puts the
layers together. What is derived from config and hardware is in the engine's plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from ipaddress import ip_address
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model
from pydantic.fields import FieldInfo

from youtu_llm.sampling import MAX_NEW_TOKENS, OPTIONS

MAX_SOCKET_BYTES = 107  # sun_path of unix(7), without its final NUL
SECRETS = frozenset({"service.api_key"})  # dotted keys never shown

StopString = Annotated[str, StringConstraints(min_length=1, max_length=64)]
HostName = Annotated[str, StringConstraints(min_length=1, max_length=255)]


M = TypeVar("M", bound=BaseModel)


def with_options(*, optional: bool = False) -> Callable[[type[M]], type[M]]:
    """Adds a field for each sampling option to a model. `optional`: None if it is left out."""
    added: dict[str, Any] = {}
    for name, (kind, option) in OPTIONS.items():
        default = None if optional else option.default
        field = Field(
            default, ge=option.ge, gt=option.gt, le=option.le, description=option.description
        )
        added[name] = (kind | None if optional else kind, field)

    def add(model: type[M]) -> type[M]:
        made = create_model(model.__name__, __base__=model, __module__=model.__module__, **added)
        made.__doc__ = model.__doc__
        return made

    return add


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class ModelSection(Section):
    name: str = Field(
        "qwen2.5-coder-0.5b",
        min_length=1,
        max_length=200,
        description="Name of a model in the model folder, or path of a model directory.",
    )
    kv_cache_max_page: int = Field(
        2048,
        ge=1,
        le=1_000_000,
        description="Maximum number of KV cache pages (256 tokens each). Memory or context"
        " may allow fewer; /health shows which limit applies.",
    )


class EngineSection(Section):
    python: str = Field(
        "",
        max_length=400,
        description="The Python that runs the engine and can import torch. Empty: the daemon's.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device that runs the model."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Data type of activations and KV cache."
    )
    kernels: Literal["auto", "native", "reference"] = Field(
        "auto",
        description="Native kernels, or the plain torch operations they are tested against.",
    )
    threads: int = Field(0, ge=0, le=256, description="CPU threads of the engine. 0: all cores.")
    memory_fraction: float = Field(
        0.7, gt=0.0, le=1.0, description="Share of the device's memory that the engine may use."
    )
    memory_limit_bytes: int = Field(
        0, ge=0, le=1 << 44, description="A fixed limit instead of the fraction. 0: none."
    )
    max_num_seqs: int = Field(
        8, ge=1, le=256, description="Maximum number of answers generated at the same time."
    )
    max_step_tokens: int = Field(
        512,
        ge=16,
        le=8192,
        description="Maximum number of tokens in one step; longer prompts are split into chunks.",
    )
    prefix_cache: bool = Field(True, description="Reuse the KV cache of shared prompt prefixes.")


class ServiceSection(Section):
    socket: str = Field(
        "/run/youtu/youtu.sock",
        pattern=r"^/",
        max_length=100,
        description="Path of the Unix socket. A user's own daemon has it in $XDG_RUNTIME_DIR.",
    )
    host: str = Field("127.0.0.1", max_length=255, description="TCP address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port. 0: no TCP listener.")
    api_key: str = Field(
        "", max_length=256, description="Bearer key for TCP. Required to listen beyond loopback."
    )
    allowed_hosts: tuple[HostName, ...] = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        max_length=32,
        description="Host headers accepted over TCP.",
    )
    allowed_origins: tuple[HostName, ...] = Field(
        (), max_length=32, description="Allowed CORS origins."
    )
    queue_size: int = Field(
        32,
        ge=0,
        le=10_000,
        description="Maximum number of waiting requests; more are answered 429 with Retry-After.",
    )
    restart_on_failure: bool = Field(True, description="Restart a crashed engine.")
    max_restart_rate: str = Field(
        "3/300",
        pattern=r"^[0-9]{1,3}/[1-9][0-9]{0,5}$",
        description="RESTARTS/SECONDS: after more engine restarts the state is «failed».",
    )
    engine_silence_s: float = Field(
        20.0,
        ge=1.0,
        le=600.0,
        description="Heartbeat timeout, after which the engine is restarted.",
    )
    load_timeout_s: float = Field(
        300.0, ge=5.0, le=3600.0, description="Longest time that loading the engine may take."
    )
    drain_timeout_s: float = Field(
        25.0, ge=0.0, le=600.0, description="Time for running answers to finish after SIGTERM."
    )


@with_options()
class SamplingSection(Section):
    """Defaults of a request; `bounds` limits what a request may ask for."""

    max_new_tokens: int = Field(
        256, ge=1, le=MAX_NEW_TOKENS, description="Longest answer, in tokens."
    )
    stop: tuple[StopString, ...] = Field(
        (), max_length=8, description="Strings that end an answer; not part of it."
    )

    @property
    def options(self) -> dict[str, Any]:
        """The sampling options by their names."""
        return {name: getattr(self, name) for name in OPTIONS}


class BoundsSection(Section):
    max_new_tokens: int = Field(
        4096,
        ge=1,
        le=MAX_NEW_TOKENS,
        description="Maximum number of new tokens a request may ask for.",
    )
    max_prompt_tokens: int = Field(
        131_072, ge=1, le=131_072, description="Longest prompt accepted, in tokens."
    )
    request_time_s: float = Field(
        600.0, gt=0, le=86_400, description="Time limit of a request; its answer is cut off there."
    )
    repetition_tokens: int = Field(
        0,
        ge=0,
        le=1024,
        description="End an answer when the last N tokens repeat a phrase. 0: never.",
    )
    max_celsius: int = Field(
        0,
        ge=0,
        le=150,
        description="Above this temperature one answer runs at a time. 0: no limit.",
    )


class TextSection(Section):
    system_prompt: str = Field(
        "",
        max_length=16_384,
        description="System prompt of conversations that have none of their own.",
    )
    enable_thinking: bool = Field(False, description="Thinking mode, for models that have one.")
    postprocess: bool = Field(False, description="Repair Chinese punctuation in the answer.")
    streaming: bool = Field(
        True, description="Stream /chat answers unless a request says otherwise."
    )


class ContextSection(Section):
    max_tokens: int = Field(
        0,
        ge=0,
        le=131_072,
        description="Maximum number of tokens of prompt and answer. 0: the model's own limit.",
    )
    long_context: bool = Field(
        False, description="Extend the context by RoPE scaling, as far as the model allows."
    )
    window_tokens: int = Field(
        0, ge=0, le=131_072, description="Rolling window: older tokens are dropped. 0: no window."
    )


class SessionsSection(Section):
    """Conversations kept in the daemon."""

    max_sessions: int = Field(
        32,
        ge=1,
        le=10_000,
        description="Maximum number of sessions; beyond that the least recently used is dropped.",
    )
    max_tokens: int = Field(
        0,
        ge=0,
        le=131_072,
        description="Maximum number of tokens of a conversation; beyond that its oldest turns are"
        " dropped. 0: the context's limit.",
    )
    idle_s: float = Field(
        1800.0, ge=1.0, le=604_800.0, description="A conversation unused for so long is dropped."
    )
    interruption_note: str = Field(
        "",
        max_length=200,
        description="Appended to an interrupted answer, so that the model sees it was cut off."
        " Empty: nothing.",
    )


class BudgetSection(Section):
    first_word_ms: int = Field(
        0,
        ge=0,
        le=600_000,
        description="Target for the time to first token; misses are counted. 0: none.",
    )


class Settings(Section):
    """The effective configuration: what `youtu config show` prints."""

    profile: str = Field(
        "default", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="The live scenario profile."
    )
    description: str = Field("", max_length=400, description="What a profile is for.")
    model: ModelSection = ModelSection()
    engine: EngineSection = EngineSection()
    service: ServiceSection = ServiceSection()
    sampling: SamplingSection = SamplingSection()
    bounds: BoundsSection = BoundsSection()
    text: TextSection = TextSection()
    context: ContextSection = ContextSection()
    sessions: SessionsSection = SessionsSection()
    budget: BudgetSection = BudgetSection()
    cache: bool = Field(True, description="Write caches to disk. --no-cache turns it off.")


@cache
def fields() -> Mapping[str, FieldInfo]:
    """Dotted key -> field of every setting, in order."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
        for name, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                yield from walk(info.annotation, f"{prefix}{name}.")
            else:
                yield prefix + name, info

    return MappingProxyType(dict(walk(Settings, "")))


def conflicts(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys, what is wrong) of values that are valid alone but not together."""
    service, context = settings.service, settings.context
    num_new, bound = settings.sampling.max_new_tokens, settings.bounds.max_new_tokens
    if service.port and not _is_loopback(service.host):
        if not service.api_key:
            yield ("service.host",), f"{service.host} is not loopback: set service.api_key too"
        if all(map(_is_loopback, service.allowed_hosts)):
            yield (
                ("service.host",),
                f"{service.host} is not loopback: add the name that clients use"
                " to service.allowed_hosts too",
            )
    if len(os.fsencode(service.socket)) > MAX_SOCKET_BYTES:
        yield ("service.socket",), f"a socket's path may have {MAX_SOCKET_BYTES} bytes at the most"
    if num_new > bound:
        yield (
            ("sampling.max_new_tokens", "bounds.max_new_tokens"),
            f"{num_new} new tokens by default are more than bounds.max_new_tokens allows, {bound}",
        )
    if 0 < context.max_tokens <= num_new:
        yield (
            ("sampling.max_new_tokens", "context.max_tokens"),
            f"{num_new} new tokens leave no room for a prompt in context.max_tokens,"
            f" {context.max_tokens}",
        )
    if 0 < context.max_tokens < context.window_tokens:
        yield (
            ("context.window_tokens", "context.max_tokens"),
            f"a window of {context.window_tokens} is larger than context.max_tokens,"
            f" {context.max_tokens}",
        )
    if settings.engine.max_num_seqs > settings.engine.max_step_tokens:
        yield (
            ("engine.max_num_seqs", "engine.max_step_tokens"),
            f"each answer takes a token a step: {settings.engine.max_num_seqs} of them do not fit"
            f" engine.max_step_tokens, {settings.engine.max_step_tokens}",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
