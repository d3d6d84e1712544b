"""The messages between the service and the engine: the only thing the two processes share.

A frame is a 4-byte little-endian length and one MessagePack-encoded struct, tagged by its
type. Every `Add` is answered by exactly one `Output` with a `finish_reason`; `Abort` is
idempotent and unknown ids are ignored. Text never crosses: only token ids do.
"""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from youtu_llm.sampling import SamplingParams as SamplingParams

PROTOCOL_VERSION = 1
PAGE_SIZE = 256  # tokens of one cache page
MAX_FRAME_BYTES = 16 << 20  # the longest prompt is 131072 ids of at most 5 bytes


def pages_for(num_tokens: int) -> int:
    """Cache pages that hold so many tokens."""
    return -(-num_tokens // PAGE_SIZE)


FinishReason = Literal["stop", "length", "abort", "error"]
Phase = Literal["starting", "loading", "idle", "step"]


class EngineConfig(msgspec.Struct, frozen=True):
    """What the engine needs to know to load: derived from the service's settings.

    Zero or None means «let the engine decide from the model and the hardware».
    """

    model_dir: str
    device: str = "auto"  # auto, cpu, cuda
    dtype: str = "auto"  # auto, float32, float16, bfloat16: activations and cache
    kernels: str = "auto"  # auto, native, reference
    threads: int = 0
    memory_fraction: float = 0.7
    memory_limit_bytes: int = 0
    kv_cache_max_page: int = 0
    max_num_seqs: int = 8
    max_step_tokens: int = 512
    max_context_tokens: int = 0
    long_context: bool = False
    window_tokens: int = 0  # rolling window of a sequence; 0: none
    prefix_cache: bool = True
    cache_idle_s: float = 300.0  # an idle engine drops unpinned prefixes after so long
    pinned_prefix_ids: tuple[int, ...] = ()  # a profile's system prompt, prefilled at start


# service -> engine


class Configure(msgspec.Struct, tag=True, frozen=True):
    """First message: the engine loads and sends `Hello`, or sends `Fatal` and exits."""

    config: EngineConfig
    protocol_version: int = PROTOCOL_VERSION


class Add(msgspec.Struct, tag=True, frozen=True):
    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0  # higher is admitted first and may preempt lower ones


class Abort(msgspec.Struct, tag=True, frozen=True):
    id: str


class Pin(msgspec.Struct, tag=True, frozen=True):
    """A new system prompt: prefill it when pages are free; it replaces the last one."""

    prompt_ids: tuple[int, ...]


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Finish nothing, free everything, exit 0."""


# engine -> service


class PageStats(msgspec.Struct, frozen=True):
    used: int = 0
    free: int = 0
    limit: int = 0
    limit_by: str = ""  # kv_cache_max_page, memory or context: the limit that applies
    cached: int = 0  # of the free ones, how many still hold a reusable prefix


class MemoryStats(msgspec.Struct, frozen=True):
    """Bytes. `total` is what the plan may use of `device`'s memory."""

    weights: int = 0
    cache: int = 0
    workspace: int = 0
    used: int = 0
    total: int = 0


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The engine is ready. The service itself refuses requests that exceed these limits."""

    architecture: str
    backend: str
    device: str
    max_model_len: int  # prompt and answer together, in tokens
    window_tokens: int  # of a sequence's rolling window, which may then grow beyond; 0: none
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    load_s: float
    pages: PageStats
    memory: MemoryStats
    degraded: tuple[str, ...] = ()  # fallbacks in use, for /health
    plan: str = ""  # the printed memory plan
    model_digest: str = ""  # identifies the model's files
    protocol_version: int = PROTOCOL_VERSION


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens served from cached prefix pages
    completion_tokens: int = 0
    dropped_tokens: int = 0  # dropped from the rolling window
    queue_s: float = 0.0  # from Add to the first step that computed it


class Output(msgspec.Struct, frozen=True):
    """What one step did for one request. The last one has a finish_reason and the usage."""

    id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error_code: str = ""  # with finish_reason "error": out_of_memory, context_length_exceeded ...
    error_message: str = ""
    usage: Usage | None = None


class Step(msgspec.Struct, tag=True, frozen=True):
    """The outputs of one step, in one message."""

    outputs: tuple[Output, ...]


class Heartbeat(msgspec.Struct, tag=True, frozen=True):
    """Sent by the step loop itself: before a step that computes prompts, else at most every 0.2 s;
    when idle each second; while loading."""

    phase: Phase
    running: int = 0
    waiting: int = 0
    step_tokens: int = 0  # tokens of the step about to run
    prefilling: tuple[str, ...] = ()  # ids of the requests whose prompts it computes
    pages: PageStats = PageStats()
    memory: MemoryStats = MemoryStats()
    progress: float = 0.0  # of loading, 0..1


class Fatal(msgspec.Struct, tag=True, frozen=True):
    """The engine must exit. `heals` false: another start would fail the same way."""

    code: str
    message: str
    heals: bool = False


ToEngine = Configure | Add | Abort | Pin | Shutdown
FromEngine = Hello | Step | Heartbeat | Fatal

_encoder = msgspec.msgpack.Encoder()
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)

HEADER = struct.Struct("<I")


def encode(message: ToEngine | FromEngine) -> bytes:
    """One frame, header included."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a {type(message).__name__} of {len(body)} bytes exceeds the frame limit")
    return HEADER.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frame bodies. Raises ValueError on an impossible length."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[HEADER.size : end]))
            del self._buffer[:end]
        return frames
