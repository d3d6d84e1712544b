"""OpenAI's routes: /v1/chat/completions, /v1/completions, /v1/models."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from youtu_llm.service.http.chat import refuse_formats
from youtu_llm.service.http.responses import REQUEST_ID, json_response, open_stream
from youtu_llm.service.http.schemas import (
    ChatCompletionBody,
    CompletionBody,
    OpenAISampling,
    read_body,
)
from youtu_llm.service.requests.generation import Answer, Generation
from youtu_llm.service.requests.options import Ask
from youtu_llm.service.requests.pipeline import Pipeline
from youtu_llm.service.status import Status


class OpenAIRoutes:
    def __init__(self, pipeline: Pipeline, status: Status) -> None:
        self._pipeline = pipeline
        self._status = status
        self._started_at = int(time.time())
        self.routes = [
            web.post("/v1/chat/completions", self.chat_completions),
            web.post("/v1/completions", self.completions),
            web.get("/v1/models", self.models),
        ]

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, ChatCompletionBody)
        messages = [
            {"role": "system" if m.role == "developer" else m.role, "content": m.text}
            for m in body.messages
        ]
        max_new_tokens = body.max_completion_tokens or body.max_tokens
        ask = _ask(request[REQUEST_ID], body, max_new_tokens, messages=messages)
        return await self._answer(request, body, ask, _ChatShape)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, CompletionBody)
        ask = _ask(request[REQUEST_ID], body, body.max_tokens, text=body.text)
        return await self._answer(request, body, ask, _TextShape)

    async def models(self, request: web.Request) -> web.StreamResponse:
        hello = self._status.hello
        n_ctx = hello.max_model_len if hello else None
        digest = (hello.model_digest if hello else "") or None
        model = {
            "id": self._pipeline.settings.model.name,
            "object": "model",
            "created": self._started_at,
            "owned_by": "youtu",
            "max_model_len": n_ctx,
            "meta": {"n_ctx": n_ctx, "digest": digest},
        }
        return json_response({"object": "list", "data": [model]})

    async def _answer(
        self, request: web.Request, body: OpenAISampling, ask: Ask, shape_of: type[_Shape]
    ) -> web.StreamResponse:
        async with self._pipeline.generate(ask) as generation:
            config = generation.place.config
            fingerprint = f"{config.settings.profile}-{config.revision}"
            shape = shape_of(ask.id, config.settings.model.name, fingerprint)
            if body.stream:
                with_usage = body.stream_options is not None and body.stream_options.include_usage
                return await _stream(request, generation, shape, with_usage=with_usage)
            return json_response(shape.whole(await generation.finish()))


async def _stream(
    request: web.Request, generation: Generation, shape: _Shape, *, with_usage: bool
) -> web.StreamResponse:
    stream = await open_stream(request, named=False)
    extra = {"usage": None} if with_usage else {}
    for choice in shape.first():
        await stream.send("", shape.chunk([choice]) | extra)
    async for delta in generation:
        await stream.send("", shape.chunk([shape.delta(delta)]) | extra)
    answer = await generation.finish()
    await stream.send("", shape.chunk([shape.last(answer)]) | extra)
    if with_usage:
        await stream.send("", shape.chunk([]) | {"usage": _usage(answer)})
    await stream.send_raw(b"data: [DONE]\n\n")
    await stream.close()
    return stream.response


@dataclass(frozen=True)
class _Shape:
    """The JSON around the text on one route; id and time are the same in every chunk."""

    id: str
    model: str
    fingerprint: str  # of the config: its profile and generation
    created: int = field(default_factory=lambda: int(time.time()))

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def first(self) -> list[dict[str, Any]]:
        return []

    def delta(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def last(self, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def full(self, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._envelope(self.chunk_object, choices)

    def whole(self, answer: Answer) -> dict[str, Any]:
        return self._envelope(self.whole_object, [self.full(answer)]) | {"usage": _usage(answer)}

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.prefix + self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }


class _ChatShape(_Shape):
    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def first(self) -> list[dict[str, Any]]:
        return [_choice({"delta": {"role": "assistant", "content": ""}})]

    def delta(self, text: str) -> dict[str, Any]:
        return _choice({"delta": {"content": text}})

    def last(self, answer: Answer) -> dict[str, Any]:
        return _choice({"delta": {}}, answer)

    def full(self, answer: Answer) -> dict[str, Any]:
        return _choice({"message": {"role": "assistant", "content": answer.text}}, answer)


class _TextShape(_Shape):
    prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def delta(self, text: str) -> dict[str, Any]:
        return _choice({"text": text})

    def last(self, answer: Answer) -> dict[str, Any]:
        return _choice({"text": ""}, answer)

    def full(self, answer: Answer) -> dict[str, Any]:
        return _choice({"text": answer.text}, answer)


def _choice(content: dict[str, Any], answer: Answer | None = None) -> dict[str, Any]:
    """`finish_reason` has OpenAI's values only; ours is in `youtu_finish_reason`."""
    choice: dict[str, Any] = {"index": 0, **content, "logprobs": None, "finish_reason": None}
    if answer is not None:
        choice["finish_reason"] = "length" if answer.finish_reason == "length" else "stop"
        choice["youtu_finish_reason"] = answer.finish_reason
    return choice


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _ask(id: str, body: OpenAISampling, max_new_tokens: int | None, **prompt: Any) -> Ask:
    refuse_formats(body.response_format)
    return Ask(
        id=id,
        max_new_tokens=max_new_tokens,
        stop=body.stop_strings,
        ignore_eos=body.ignore_eos,
        options=body.options,
        postprocess=body.postprocess,
        priority=body.priority,
        **prompt,
    )
