"""From what was asked to a running generation: admission, defaults and bounds, ids, submit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from youtu_llm.errors import ContextLengthExceeded, InvalidRequest, QueueFull
from youtu_llm.postprocess import PunctuationStream
from youtu_llm.protocol import Add, Hello, SamplingParams
from youtu_llm.service.live import LiveConfig
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.requests.generation import FinishReason, Generation
from youtu_llm.service.requests.rate import Rate
from youtu_llm.service.requests.sessions import History, Session, Sessions, next_prompt
from youtu_llm.service.status import Status
from youtu_llm.service.supervision.client import EngineClient
from youtu_llm.service.thermal import ThermalMonitor
from youtu_llm.settings import Settings
from youtu_llm.text.stream import TextStream
from youtu_llm.text.tokenizer import Tokenizer

T = TypeVar("T")
Priority = Literal["high", "normal", "low"]

PRIORITIES: dict[Priority, int] = {"low": -1, "normal": 0, "high": 1}

HOT_POLL_S = 0.05
LAST_WORDS_S = 2.0  # for streams that the end of a drain cuts, to say so


@dataclass(frozen=True)
class Ask:
    """One request, whichever route it came by. None: the live profile's value."""

    id: str
    session: str | None = None  # whose conversation the messages continue
    messages: Sequence[Mapping[str, str]] = ()  # for the chat template
    text: str | None = None  # instead of messages: continued as it stands
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] | None = None
    postprocess: bool | None = None
    priority: Priority | None = None  # None: high in a session, where somebody listens
    ignore_eos: bool = False


class Pipeline:
    """`config` may be replaced while it runs; a request keeps the one it was admitted under."""

    def __init__(
        self,
        config: LiveConfig,
        status: Status,
        client: EngineClient,
        metrics: Metrics,
        thermal: ThermalMonitor,
        encoders: Executor,
    ) -> None:
        self.config = config
        self.live: dict[str, Generation] = {}
        self.sessions = Sessions()
        self._rate = Rate()
        self._status = status
        self._client = client
        self._metrics = metrics
        self.thermal = thermal
        self._encoders = encoders
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def settings(self) -> Settings:
        return self.config.settings

    @property
    def capacity(self) -> int:
        """Most requests taken at a time: those computed together and those that may wait."""
        return self.settings.engine.max_num_seqs + self.settings.service.queue_size

    @contextlib.asynccontextmanager
    async def generate(self, ask: Ask) -> AsyncIterator[Generation]:
        """The generation, once the engine's first event is there; leaving the block frees it.

        Raises InvalidRequest, ContextLengthExceeded, QueueFull, EngineUnavailable, EngineFault.
        """
        config = self.config
        if ask.id in self.live:
            raise InvalidRequest(f"a request with the id «{ask.id}» is still running")
        params = sampling_params(ask, config.settings)
        priority = PRIORITIES[ask.priority or ("normal" if ask.session is None else "high")]
        hello = self._enter(priority, replaces=self.sessions.is_speaking(ask.session))
        generation = self.live[ask.id] = Generation(ask.id, config, self._metrics, priority)
        session = self.sessions.enter(ask.session, config) if ask.session is not None else None
        if session is not None:
            session.interrupt()
        self._idle.clear()
        deadline = asyncio.get_running_loop().call_later(
            config.settings.bounds.request_time_s, generation.stop, "time_limit"
        )
        try:
            await self._begin(generation, ask, params, session, hello)
            yield generation
        except (asyncio.CancelledError, ConnectionError):
            generation.count_hang_up()
            raise
        finally:
            deadline.cancel()
            generation.abort()
            generation.is_live = False
            if session is not None:
                self.sessions.leave(session, config)
            self._measure(generation)
            del self.live[ask.id]
            if not self.live:
                self._idle.set()

    async def drain(self, timeout_s: float, reason: FinishReason) -> None:
        """Waits for the running answers; those that take longer end with what they have.

        Who calls it has closed the admission before, by the state.
        """
        if not await self._wait_idle(timeout_s):
            for generation in list(self.live.values()):
                generation.stop(reason)
            await self._wait_idle(LAST_WORDS_S)

    async def _wait_idle(self, timeout_s: float) -> bool:
        """Whether every request ended in time."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self.live

    def admit(self) -> None:
        """Raises EngineUnavailable or QueueFull if no request whatever would get a place."""
        self._status.require_ready()
        num_places = self._num_free + (self.sessions.num_speaking > 0)
        if num_places <= 0 and self._last_low() is None:
            raise self._full()

    def _enter(self, priority: int, *, replaces: bool) -> Hello:
        """The live engine's limits. `replaces`: it ends another one, in its session.

        A full queue makes room by refusing the newest waiting `low` request, unless this is one
        too. Raises EngineUnavailable, QueueFull.
        """
        hello = self._status.require_ready()
        if len(self.live) >= 2 * self.capacity:  # those that were ended and have not left yet
            raise self._full()
        if self._num_free + replaces <= 0:
            last_low = self._last_low()
            if last_low is None or priority <= last_low.priority:
                raise self._full()
            last_low.refuse(self._full())
        return hello

    @property
    def _num_free(self) -> int:
        return self.capacity - sum(generation.is_staying for generation in self.live.values())

    def _last_low(self) -> Generation | None:
        low = PRIORITIES["low"]
        return next(
            (g for g in reversed(self.live.values()) if g.priority == low and g.is_waiting), None
        )

    def _full(self) -> QueueFull:
        num_live = len(self.live)
        retry_after_s = self._rate.retry_after_s(num_live, self.settings.engine.max_num_seqs)
        return QueueFull(
            f"{num_live} requests are being answered or wait, which is the most"
            f" (engine.max_num_seqs + service.queue_size); try again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )

    def _measure(self, generation: Generation) -> None:
        clock = generation.clock
        if generation.result is not None and clock.last_token_at:
            queue_s = generation.result.timings.queue_ms / 1e3
            self._rate.measure(clock.last_token_at - clock.received_at - queue_s)

    async def _begin(
        self,
        generation: Generation,
        ask: Ask,
        params: SamplingParams,
        session: Session | None,
        hello: Hello,
    ) -> None:
        settings, tokenizer = generation.settings, generation.config.tokenizer
        assert tokenizer is not None  # ready means that both halves of the model are there
        # Under a rolling window a conversation may outgrow the context: the oldest text goes.
        n_ctx = None if hello.window_tokens else hello.max_model_len
        sampling = settings.sampling
        stop = sampling.stop if ask.stop is None else tuple(ask.stop)
        punctuate = settings.text.postprocess if ask.postprocess is None else ask.postprocess
        text = TextStream(tokenizer, stop)
        punctuation = PunctuationStream() if punctuate else None

        async def submit(prompt_ids: Sequence[int]) -> None:
            await self._cool(generation)
            num_prompt = generation.num_prompt_tokens = len(prompt_ids)
            fitted = fit(params, num_prompt, n_ctx, settings)
            add = Add(ask.id, tuple(prompt_ids), fitted, generation.priority)
            await generation.begin(lambda: self._client.submit(add), text, punctuation)

        if session is None:
            await submit(await self._encode(_encoder(tokenizer, ask, settings)))
            return
        async with self._turn(session, generation, ask, _room(params, n_ctx, settings)) as ids:
            await submit(ids)

    async def _cool(self, generation: Generation) -> None:
        """On a board that is too hot, waits until every request before this one has ended."""
        while self.thermal.check(generation.settings.bounds.max_celsius):
            earlier = next(iter(self.live.values()))
            if earlier is generation or not generation.is_staying:
                return
            await asyncio.sleep(HOT_POLL_S)

    async def _encode(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._encoders, work)

    @contextlib.asynccontextmanager
    async def _turn(
        self, session: Session, generation: Generation, ask: Ask, limit: int
    ) -> AsyncIterator[Sequence[int]]:
        """Ids of the session's next prompt. It stays as it was if nothing comes of it."""
        async with session.lock:
            session.interrupt()  # who was still having a prompt made when this one came
            before, config = session.history, generation.config
            prompt = await self._encode(lambda: next_prompt(before, ask.messages, config, limit))
            generation.num_dropped = prompt.num_dropped
            session.history = after = History(prompt.turns, prompt.said, prompt.ids, generation)
        try:
            yield prompt.ids
        except BaseException:
            if session.history.answer is after.answer:
                session.history = before
            raise


def _room(params: SamplingParams, n_ctx: int | None, settings: Settings) -> int:
    """Tokens a session's prompt may have so that the answer fits too."""
    bounds = [settings.bounds.max_prompt_tokens, settings.sessions.max_tokens]
    if n_ctx is not None:
        bounds.append(max(n_ctx - params.max_new_tokens, n_ctx // 2))
    return min(bound for bound in bounds if bound)


def sampling_params(ask: Ask, settings: Settings) -> SamplingParams:
    """The profile's defaults under what was asked. Raises InvalidRequest over a bound."""
    sampling, bounds = settings.sampling, settings.bounds
    if ask.max_new_tokens is not None and ask.max_new_tokens > bounds.max_new_tokens:
        raise InvalidRequest(
            f"max_new_tokens is {ask.max_new_tokens}, but the profile «{settings.profile}» allows"
            f" at most {bounds.max_new_tokens} (bounds.max_new_tokens)",
            param="max_new_tokens",
        )

    def pick(name: str) -> Any:
        asked = getattr(ask, name)
        return getattr(sampling, name) if asked is None else asked

    return SamplingParams(
        max_new_tokens=min(pick("max_new_tokens"), bounds.max_new_tokens),
        temperature=pick("temperature"),
        top_k=pick("top_k"),
        top_p=pick("top_p"),
        min_p=pick("min_p"),
        repetition_penalty=pick("repetition_penalty"),
        seed=pick("seed"),
        ignore_eos=ask.ignore_eos,
    )


def fit(
    params: SamplingParams, num_prompt: int, n_ctx: int | None, settings: Settings
) -> SamplingParams:
    """Cuts max_new_tokens to the context's rest. Raises ContextLengthExceeded without one."""
    if num_prompt == 0:
        raise InvalidRequest("the prompt is empty", param="prompt")
    bound = settings.bounds.max_prompt_tokens
    if num_prompt > bound:
        raise InvalidRequest(
            f"the prompt has {num_prompt} tokens, but the profile «{settings.profile}» takes at"
            f" most {bound} (bounds.max_prompt_tokens)",
            param="messages",
        )
    if n_ctx is None:
        return params
    room = n_ctx - num_prompt
    if room < 1:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt} tokens and the context {n_ctx}: shorten the prompt",
            param="messages",
            n_prompt_tokens=num_prompt,
            n_ctx=n_ctx,
        )
    if params.max_new_tokens <= room:
        return params
    return msgspec.structs.replace(params, max_new_tokens=room)


def _encoder(tokenizer: Tokenizer, ask: Ask, settings: Settings) -> Callable[[], list[int]]:
    """The work for the executor: templates and long texts would hold up the loop."""
    if ask.text is not None:
        text = ask.text
        return lambda: tokenizer.encode(text)
    messages = [dict(message) for message in ask.messages]
    system = settings.text.system_prompt
    if system and all(message["role"] != "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system})
    thinking = settings.text.enable_thinking
    return lambda: tokenizer.encode_chat(messages, enable_thinking=thinking)
