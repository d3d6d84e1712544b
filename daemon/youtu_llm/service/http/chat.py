"""POST /chat, the native route."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from youtu_llm.errors import InvalidRequest
from youtu_llm.service.http.responses import REQUEST_ID, json_response, open_stream
from youtu_llm.service.http.schemas import ChatBody, ResponseFormat, read_body
from youtu_llm.service.requests.generation import Generation
from youtu_llm.service.requests.options import Ask
from youtu_llm.service.requests.pipeline import Pipeline


class ChatRoutes:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.routes = [web.post("/chat", self.chat)]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, ChatBody)
        ask = _ask(request[REQUEST_ID], body)
        settings = self._pipeline.settings
        streamed = settings.text.streaming if body.stream is None else body.stream
        async with self._pipeline.generate(ask) as generation:
            if not streamed:
                return json_response(await _done(generation))
            stream = await open_stream(request, named=True)
            async for delta in generation:
                await stream.send("token", {"text": delta})
            await stream.send("done", await _done(generation))
            await stream.close()
            return stream.response


def refuse_formats(wanted: ResponseFormat | None) -> None:
    if wanted is not None and wanted.type != "text":
        raise InvalidRequest(
            f"response_format «{wanted.type}» is not supported by this version: leave it out",
            param="response_format",
        )


def _ask(id: str, body: ChatBody) -> Ask:
    refuse_formats(body.response_format)
    messages = (
        [message.model_dump() for message in body.messages]
        if body.messages is not None
        else [{"role": "user", "content": body.prompt or ""}]
    )
    return Ask(
        id=id,
        session=body.session,
        messages=messages,
        max_new_tokens=body.max_new_tokens,
        stop=body.stop,
        options=body.options,
        postprocess=body.postprocess,
        priority=body.priority,
    )


async def _done(generation: Generation) -> dict[str, Any]:
    answer, place = await generation.finish(), generation.place
    usage = answer.usage
    return {
        "id": place.id,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "profile": place.settings.profile,
        "generation": place.config.revision,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "dropped_tokens": usage.dropped_tokens,
        },
        "timings": msgspec.to_builtins(answer.timings),
    }
