"""Responses of the handlers: JSON, the error object, an event stream."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic_core import to_json

from youtu_llm.errors import YoutuError
from youtu_llm.service.http.sse import EventStream

REQUEST_ID = web.RequestKey("REQUEST_ID", str)
STREAM = web.RequestKey("STREAM", EventStream)


def json_response(data: Any, *, status: int = 200, retry_after_s: int = 0) -> web.Response:
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else {}
    return web.Response(
        body=to_json(data), status=status, headers=headers, content_type="application/json"
    )


def error_object(error: YoutuError) -> dict[str, Any]:
    """The API's error: OpenAI's format with our string codes."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    message = error.message.encode(errors="replace").decode()  # may quote undecodable header bytes
    body = {"message": message, "type": kind, "param": error.param, "code": error.code}
    return {"error": body | error.details}


async def open_stream(request: web.Request, *, named: bool) -> EventStream:
    """Start a stream; later errors of this request become its last event."""
    stream = request[STREAM] = EventStream(request, named=named)
    await stream.open()
    return stream
