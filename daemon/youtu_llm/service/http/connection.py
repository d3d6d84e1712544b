"""aiohttp's connection, with the API's error object for malformed HTTP."""

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
        """For errors outside the application: malformed requests and aborted connections."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client disconnected
        has_begun = request.writer.output_size > 0
        # UnicodeError: aiohttp decodes headers with surrogates and may fail to encode them later.
        if has_begun or (status != 400 and not isinstance(exc, UnicodeError)):
            return super().handle_error(request, status, exc, message)
        what = (message or "").strip().partition("\n")[0][:MAX_SHOWN_CHARS].rstrip(" :")
        logger.info("rejected malformed HTTP: %s", what)
        error = InvalidRequest(f"this is not a valid HTTP/1.1 request: {what or 'unreadable'}")
        response = json_response(error_object(error), status=error.status)
        response.force_close()
        return response
