"""The aiohttp application of both listeners: access checks, request ids, limits, errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from youtu_llm.errors import InvalidRequest, NotFound, PayloadTooLarge, YoutuError
from youtu_llm.service.http.access import Access
from youtu_llm.service.http.head_deadline import HeadDeadline
from youtu_llm.service.http.responses import REQUEST_ID, STREAM, error_object, json_response
from youtu_llm.service.http.schemas import MAX_BODY_BYTES
from youtu_llm.service.http.sse import EventStream
from youtu_llm.service.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 << 10
BODY_DEADLINE_S = 30.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_GENERATES = frozenset({"/chat", "/v1/chat/completions", "/v1/completions"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class MethodNotAllowed(InvalidRequest):
    status = 405


def make_application(
    access: Access, metrics: Metrics, admit: Callable[[], None], routes: Iterable[web.RouteDef]
) -> web.Application:
    """`admit` rejects generating requests before their bodies are read, so a flood is cheap."""

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        """For every request: set its id, check access and limits, turn errors into responses."""
        deadline = HeadDeadline.of(request)
        if deadline is not None:
            deadline.head_is_read()
        try:
            request[REQUEST_ID] = _request_id(request)
            access.check(request)
            if request.method == "OPTIONS":
                return web.Response(status=204)
            if request.method == "POST" and request.path in _GENERATES:
                admit()
            await _read_within_limits(request)
            return await handler(request)
        except YoutuError as error:
            return await _fail(request, error, metrics)
        except web.HTTPNotFound:
            return await _fail(request, NotFound(f"there is no {request.path}"), metrics)
        except web.HTTPMethodNotAllowed as refusal:
            methods = ", ".join(sorted(refusal.allowed_methods))
            wrong = MethodNotAllowed(f"{request.path} takes {methods}")
            return await _fail(request, wrong, metrics)
        except web.HTTPException:
            raise
        except ConnectionError:
            stream: EventStream | None = request.get(STREAM)
            if stream is None:
                raise
            return stream.response  # the client disconnected or stopped reading
        except Exception:
            logger.exception("request %s failed", request.get(REQUEST_ID))
            internal = YoutuError("internal error: see the journal of the service")
            return await _fail(request, internal, metrics)
        finally:
            if (stream := request.get(STREAM)) is not None:
                stream.quiet()
            if deadline is not None:
                deadline.is_answered()

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")
        origin = request.headers.get("Origin")
        if origin in access.origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
            response.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, DELETE"
            response.headers["Vary"] = "Origin"

    application = web.Application(middlewares=[gate], client_max_size=MAX_BODY_BYTES)
    application.on_response_prepare.append(add_headers)
    application.add_routes(routes)
    return application


async def _fail(request: web.Request, error: YoutuError, metrics: Metrics) -> web.StreamResponse:
    """An error response, or the last event if a stream has begun."""
    metrics.refused.labels(error.code).inc()
    stream: EventStream | None = request.get(STREAM)
    if stream is None:
        retry_after_s = getattr(error, "retry_after_s", 1) if error.status in (429, 503) else 0
        return json_response(error_object(error), status=error.status, retry_after_s=retry_after_s)
    with contextlib.suppress(ConnectionError):  # the client disconnected
        await stream.send("error", error_object(error))
        await stream.close()
    return stream.response


def _request_id(request: web.Request) -> str:
    given = request.headers.get("X-Request-Id")
    if given is None:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(given):
        raise InvalidRequest(
            "X-Request-Id takes 1 to 64 letters, digits and . _ : -", param="X-Request-Id"
        )
    return given


async def _read_within_limits(request: web.Request) -> None:
    """Read the body here, so that no handler waits for a slow client."""
    if sum(len(name) + len(value) for name, value in request.raw_headers) > MAX_HEADER_BYTES:
        raise InvalidRequest(f"the headers are longer than {MAX_HEADER_BYTES} bytes")
    try:
        await asyncio.wait_for(request.read(), BODY_DEADLINE_S)
    except web.HTTPRequestEntityTooLarge:
        raise PayloadTooLarge(f"the body is longer than {MAX_BODY_BYTES} bytes") from None
    except asyncio.TimeoutError:
        raise InvalidRequest(f"the body took longer than {BODY_DEADLINE_S:g} s") from None
