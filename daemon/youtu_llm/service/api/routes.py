"""The application both listeners share: access rules, request ids, errors; and its routes."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from pydantic_core import to_json

from youtu_llm.config import ServiceSection
from youtu_llm.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    YoutuError,
)
from youtu_llm.service.api.schemas import MAX_BODY_BYTES
from youtu_llm.service.api.sse import EventStream
from youtu_llm.service.guard import Guard
from youtu_llm.service.metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID = web.RequestKey("REQUEST_ID", str)
STREAM = web.RequestKey("STREAM", EventStream)

MAX_HEADER_BYTES = 16 << 10
BODY_DEADLINE_S = 30.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_WITHOUT_KEY = frozenset({"/livez", "/readyz"})
_GENERATES = frozenset({"/chat", "/v1/chat/completions", "/v1/completions"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class MethodNotAllowed(InvalidRequest):
    status = 405


def json_response(data: Any, *, status: int = 200, retry_after_s: int = 0) -> web.Response:
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else {}
    return web.Response(
        body=to_json(data), status=status, headers=headers, content_type="application/json"
    )


def error_object(error: YoutuError) -> dict[str, Any]:
    """The API's error, in OpenAI's shape with our string codes."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    message = error.message.encode(errors="replace").decode()  # it may quote bytes of a head
    body = {"message": message, "type": kind, "param": error.param, "code": error.code}
    return {"error": body | error.details}


async def open_stream(request: web.Request, *, named: bool) -> EventStream:
    """From here on an error of this request travels inside the stream."""
    stream = request[STREAM] = EventStream(request, named=named)
    await stream.open()
    return stream


@dataclass(frozen=True)
class Access:
    """Who may ask. The Unix socket is guarded by its file mode; TCP by these rules."""

    api_key: str
    hosts: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def of(cls, service: ServiceSection) -> Access:
        hosts = {host.lower() for host in (*service.allowed_hosts, service.host)}
        return cls(service.api_key, frozenset(hosts), frozenset(service.allowed_origins))

    def check(self, request: web.Request) -> None:
        """Raises Forbidden or Unauthorized."""
        if is_local(request):
            return
        host = request.headers.get("Host", "").lower()
        if re.sub(r":\d+$", "", host) not in self.hosts:
            raise Forbidden("this Host is not served here (service.allowed_hosts)")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self.origins and origin != f"http://{host}":
            raise Forbidden("pages of this Origin may not call (service.allowed_origins)")
        if request.method != "OPTIONS" and request.path not in _WITHOUT_KEY:
            self._check_key(request)

    def require_admin(self, request: web.Request) -> None:
        """Past `check`, a caller over TCP has the key if there is one. Raises Forbidden."""
        if not is_local(request) and not self.api_key:
            raise Forbidden("this needs the Unix socket, or an API key over TCP (service.api_key)")

    def _check_key(self, request: web.Request) -> None:
        if not self.api_key:
            return
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given, right = key.encode(errors="replace"), self.api_key.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, right):
            raise Unauthorized("send the API key as Authorization: Bearer KEY")


def is_local(request: web.Request) -> bool:
    """Came over the Unix socket."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    return connection is not None and connection.family == socket.AF_UNIX


def make_application(
    access: Access, metrics: Metrics, admit: Callable[[], None], routes: Iterable[web.RouteDef]
) -> web.Application:
    """`admit` refuses what would generate, before its body is read: a flood costs little."""

    @web.middleware
    async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request passes here: id, access, limits in; errors out."""
        guard = Guard.of(request)
        if guard is not None:
            guard.head_is_read()
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
            if (stream := request.get(STREAM)) is None:
                raise
            return stream.response  # its client is gone or has stopped reading: nobody to tell
        except Exception:
            logger.exception("request %s failed", request.get(REQUEST_ID))
            internal = YoutuError("internal error; the journal of the service has the details")
            return await _fail(request, internal, metrics)
        finally:
            if (stream := request.get(STREAM)) is not None:
                stream.quiet()
            if guard is not None:
                guard.is_answered()

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
    """As a status while nothing was sent; afterwards as the stream's last event."""
    metrics.refused.labels(error.code).inc()
    stream = request.get(STREAM)
    if stream is None:
        retry_after_s = getattr(error, "retry_after_s", 1) if error.status in (429, 503) else 0
        return json_response(error_object(error), status=error.status, retry_after_s=retry_after_s)
    with contextlib.suppress(ConnectionError):  # as above
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
    """The body is read here, once, so that no handler waits for a dripping client."""
    if sum(len(name) + len(value) for name, value in request.raw_headers) > MAX_HEADER_BYTES:
        raise InvalidRequest(f"the headers are longer than {MAX_HEADER_BYTES} bytes")
    try:
        await asyncio.wait_for(request.read(), BODY_DEADLINE_S)
    except web.HTTPRequestEntityTooLarge:
        raise PayloadTooLarge(f"the body is longer than {MAX_BODY_BYTES} bytes") from None
    except asyncio.TimeoutError:
        raise InvalidRequest(f"the body took longer than {BODY_DEADLINE_S:g} s") from None
