"""POST /chat, the native route."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from youtu_llm.errors import InvalidRequest
from youtu_llm.service.http.responses import REQUEST_ID, json_response, open_stream
from youtu_llm.service.http.schemas import ChatBody, ResponseFormat, read_body
from youtu_llm.service.requests.generation import Generation
from youtu_llm.service.requests.pipeline import Ask, Pipeline


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
                async for _ in generation:
                    pass
                return json_response(_done(generation))
            stream = await open_stream(request, named=True)
            async for delta in generation:
                await stream.send("token", {"text": delta})
            await stream.send("done", _done(generation))
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
        **body.sampling(),
    )


def _done(generation: Generation) -> dict[str, Any]:
    result = generation.result
    assert result is not None
    usage = result.usage
    return {
        "id": generation.id,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "profile": generation.settings.profile,
        "generation": generation.config.revision,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "dropped_tokens": usage.dropped_tokens,
        },
        "timings": msgspec.to_builtins(result.timings),
    }
