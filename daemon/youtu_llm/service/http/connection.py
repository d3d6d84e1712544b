"""aiohttp's connection, with the API's error for what is no HTTP request."""

from __future__ import annotations

import logging

from aiohttp import web

from youtu_llm.errors import InvalidRequest
from youtu_llm.service.http.responses import error_object, json_response

logger = logging.getLogger(__name__)

MAX_SHOWN_CHARS = 200


class Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """For what never reached the application, or left it: its own errors do not."""
        if isinstance(exc, ConnectionError):
            raise exc  # nobody is left to tell: the connection ends
        # aiohttp decodes a head without knowing its encoding, and may stumble over that later.
        has_begun = request.writer.output_size > 0  # nothing can be told in its middle
        if has_begun or (status != 400 and not isinstance(exc, UnicodeError)):
            return super().handle_error(request, status, exc, message)
        what = (message or "").strip().partition("\n")[0][:MAX_SHOWN_CHARS].rstrip(" :")
        logger.info("refused what is no HTTP request: %s", what)
        error = InvalidRequest(f"this is not a valid HTTP/1.1 request: {what or 'unreadable'}")
        response = json_response(error_object(error), status=error.status)
        response.force_close()
        return response
