"""config.yaml and profiles as frozen models.

A profile is the same tree with only what differs from the defaults. The order is
defaults < profile < config.yaml < environment < flags. What is derived from config and
hardware does not live here but in the engine's plan.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

StopString = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class ModelSection(Section):
    name: str = Field(
        "qwen2.5-coder-0.5b",
        min_length=1,
        max_length=200,
        description="A model's name in the model folder, or the path of a model directory.",
    )
    kv_cache_max_page: int = Field(
        2048,
        ge=1,
        le=1_000_000,
        description="Most pages (256 tokens each) the cache may take. Memory or context may allow less;"
        " /health says which bound holds.",
    )


class EngineSection(Section):
    python: str = Field(
        "",
        max_length=400,
        description="The Python that runs the engine and sees torch. Empty: the daemon's own.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Type of activations and cache."
    )
    kernels: Literal["auto", "native", "reference"] = Field(
        "auto", description="Native kernels, or the plain torch operations they are checked against."
    )
    threads: int = Field(0, ge=0, le=256, description="CPU threads of the engine. 0: all cores.")
    memory_fraction: float = Field(
        0.7, gt=0.0, le=1.0, description="Share of the device's memory the engine may take."
    )
    memory_limit_bytes: int = Field(
        0, ge=0, le=1 << 44, description="A fixed cap instead of the fraction. 0: none."
    )
    max_num_seqs: int = Field(8, ge=1, le=256, description="Answers computed at the same time.")
    max_step_tokens: int = Field(
        512, ge=16, le=8192, description="Token budget of one step; longer prompts go in chunks."
    )
    prefix_cache: bool = Field(True, description="Compute requests with the same prefix once.")


class ServiceSection(Section):
    socket: str = Field(
        "/run/youtu/youtu.sock", max_length=100, description="Path of the Unix socket."
    )
    host: str = Field("127.0.0.1", max_length=255, description="TCP address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port. 0: no TCP listener.")
    api_key: str = Field(
        "", max_length=256, description="Bearer key for TCP. Needed to listen beyond loopback."
    )
    allowed_hosts: tuple[str, ...] = Field(
        ("localhost", "127.0.0.1", "[::1]"),
        max_length=32,
        description="Host headers accepted over TCP.",
    )
    allowed_origins: tuple[str, ...] = Field(
        (), max_length=32, description="Origins a browser page may call from (CORS)."
    )
    queue_size: int = Field(
        32, ge=0, le=10_000, description="Requests that may wait; beyond that 429 with Retry-After."
    )
    restart_on_failure: bool = Field(True, description="Restart a crashed engine.")
    max_restart_rate: str = Field(
        "3/300",
        pattern=r"^\d{1,3}/\d{1,6}$",
        description="Most engine restarts in how many seconds; beyond that the state is «failed».",
    )
    engine_silence_s: float = Field(
        20.0, ge=1.0, le=600.0, description="An engine silent for so long is killed and restarted."
    )
    load_timeout_s: float = Field(
        300.0, ge=5.0, le=3600.0, description="Longest time an engine may take to load."
    )
    drain_timeout_s: float = Field(
        25.0, ge=0.0, le=600.0, description="How long answers may finish after SIGTERM."
    )


class SamplingSection(Section):
    """Defaults of a request; `bounds` limits what a request may ask for."""

    max_new_tokens: int = Field(256, ge=1, le=131_072, description="Longest answer, in tokens.")
    temperature: float = Field(0.4, ge=0.0, le=2.0, description="0: greedy.")
    top_k: int = Field(20, ge=0, le=1000, description="Keep the k likeliest tokens. 0: off.")
    top_p: float = Field(0.8, gt=0.0, le=1.0, description="Keep the likeliest tokens up to this sum.")
    min_p: float = Field(
        0.0, ge=0.0, le=1.0, description="Drop tokens under this share of the likeliest one's odds."
    )
    repetition_penalty: float = Field(
        1.05, ge=0.5, le=2.0, description="Above 1: less likely to say a token again."
    )
    seed: int | None = Field(
        None, ge=0, le=(1 << 63) - 1, description="The same seed and prompt give the same answer."
    )
    stop: tuple[StopString, ...] = Field(
        (), max_length=8, description="Strings that end an answer; they are not part of it."
    )


class BoundsSection(Section):
    max_new_tokens: int = Field(
        4096, ge=1, le=131_072, description="Most a request may ask for; more is refused."
    )
    max_prompt_tokens: int = Field(
        131_072, ge=1, le=131_072, description="Longest prompt taken, in tokens."
    )
    request_time_s: float = Field(
        600.0, gt=0, le=86_400, description="A request that takes longer ends with what it has."
    )


class TextSection(Section):
    system_prompt: str = Field(
        "", max_length=16_384, description="Put before a conversation that brings none of its own."
    )
    enable_thinking: bool = Field(
        False, description="For models with a thinking mode: let them think first."
    )
    postprocess: bool = Field(False, description="Repair Chinese punctuation in the answer.")
    streaming: bool = Field(True, description="Stream /chat answers unless a request says otherwise.")


class ContextSection(Section):
    max_tokens: int = Field(
        0, ge=0, le=131_072, description="Prompt and answer together. 0: what the model was made for."
    )
    long_context: bool = Field(
        False, description="Extend the model's context by RoPE scaling as the model allows."
    )
    window_tokens: int = Field(
        0, ge=0, le=131_072, description="Beyond this the oldest text is forgotten. 0: never."
    )


class BudgetSection(Section):
    first_word_ms: int = Field(
        0, ge=0, le=600_000, description="Promised time to the first word; misses are counted. 0: none."
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
    budget: BudgetSection = BudgetSection()
    cache: bool = Field(True, description="Write caches to disk. --no-cache turns it off.")
