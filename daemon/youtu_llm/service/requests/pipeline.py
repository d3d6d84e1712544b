"""From a request to its running generation: place, prompt ids, submission, the session's turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from youtu_llm.errors import YoutuError
from youtu_llm.postprocess import PunctuationStream
from youtu_llm.protocol import Add, SamplingParams
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.requests.admission import Admission
from youtu_llm.service.requests.generation import Generation
from youtu_llm.service.requests.options import Ask, fit, room, sampling_params
from youtu_llm.service.requests.place import Place
from youtu_llm.service.requests.sessions import History, Prompt, Session, Sessions, next_prompt
from youtu_llm.service.supervision.client import EngineClient
from youtu_llm.service.thermal import ThermalMonitor
from youtu_llm.settings import Settings
from youtu_llm.text.stream import TextStream

HOT_POLL_S = 0.05


class Pipeline:
    def __init__(
        self,
        admission: Admission,
        client: EngineClient,
        metrics: Metrics,
        thermal: ThermalMonitor,
        encoders: Executor,
    ) -> None:
        self.sessions = Sessions()
        self._admission = admission
        self._client = client
        self._metrics = metrics
        self._thermal = thermal
        self._encoders = encoders

    @property
    def settings(self) -> Settings:
        return self._admission.settings

    def admit(self) -> None:
        """Raises EngineUnavailable or QueueFull if no request could be admitted now."""
        self._admission.check(may_replace=self.sessions.num_speaking > 0)

    @contextlib.asynccontextmanager
    async def generate(self, ask: Ask) -> AsyncIterator[Generation]:
        """The generation, once the engine's first event is there; leaving the block frees it.

        Raises InvalidRequest, ContextLengthExceeded, QueueFull, EngineUnavailable, EngineFault.
        """
        params = sampling_params(ask, self.settings)
        replaces = self.sessions.is_speaking(ask.session)
        place = self._admission.enter(ask.id, ask.rank, replaces=replaces)
        session = self.sessions.enter(ask.session, place)
        time_limit_s = place.settings.bounds.request_time_s
        deadline = asyncio.get_running_loop().call_later(time_limit_s, place.end, "time_limit")
        generation: Generation | None = None
        try:
            generation = await self._begin(ask, params, place, session)
            yield generation
        except (asyncio.CancelledError, ConnectionError):
            if generation is None or generation.answer is None:
                self._count_disconnect(place)
            raise
        finally:
            deadline.cancel()
            self._admission.leave(place)
            self.sessions.leave(session, place.config)

    async def _begin(
        self, ask: Ask, params: SamplingParams, place: Place, session: Session
    ) -> Generation:
        """The session stays as it was if the engine's first event is an error."""
        async with session.lock:
            await self._cool(place)
            before, limit = session.history, room(params, place.n_ctx, place.settings)
            prompt = await asyncio.get_running_loop().run_in_executor(
                self._encoders, next_prompt, before, ask, place.config, limit
            )
            generation = self._submit(ask, params, place, prompt)
            session.history = History(prompt.turns, prompt.answers, prompt.ids, generation)
        try:
            await generation.start()
        except BaseException:
            if session.history.answer is generation:
                session.history = before
            raise
        return generation

    def _submit(self, ask: Ask, params: SamplingParams, place: Place, prompt: Prompt) -> Generation:
        if isinstance(place.ending, YoutuError):  # refused while its prompt was made
            raise place.ending
        settings, tokenizer = place.settings, place.config.tokenizer
        assert tokenizer is not None
        place.num_prompt_tokens = len(prompt.ids)
        fitted = fit(params, len(prompt.ids), place.n_ctx, settings)
        stop = settings.sampling.stop if ask.stop is None else tuple(ask.stop)
        punctuate = settings.text.postprocess if ask.postprocess is None else ask.postprocess
        text = TextStream(tokenizer, stop)
        punctuation = PunctuationStream() if punctuate else None
        outputs = self._client.submit(Add(ask.id, prompt.ids, fitted, place.priority))
        place.follow(outputs)
        return Generation(place, outputs, text, punctuation, self._metrics, prompt.num_dropped)

    async def _cool(self, place: Place) -> None:
        """On a board that is too hot, waits until every request before this one has left."""
        while self._thermal.check(place.settings.bounds.max_celsius):
            earliest = next(iter(self._admission.live.values()))
            if earliest is place or place.ending is not None:
                return
            await asyncio.sleep(HOT_POLL_S)

    def _count_disconnect(self, place: Place) -> None:
        self._metrics.requests.labels("cancelled", place.settings.profile).inc()
        self._metrics.prompt_tokens.inc(place.num_prompt_tokens)
        self._metrics.completion_tokens.inc(place.num_tokens)
