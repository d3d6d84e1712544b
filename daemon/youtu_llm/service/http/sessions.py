"""Conversations the daemon keeps: list, interrupt, delete."""

from __future__ import annotations

import time

from aiohttp import web

from youtu_llm.service.http.access import Access
from youtu_llm.service.http.responses import json_response
from youtu_llm.service.http.schemas import InterruptBody, read_body
from youtu_llm.service.requests.pipeline import Pipeline


class SessionRoutes:
    def __init__(self, access: Access, pipeline: Pipeline) -> None:
        self._access = access
        self._pipeline = pipeline
        self.routes = [
            web.get("/sessions", self.list),
            web.post("/sessions/{id}/interrupt", self.interrupt),
            web.delete("/sessions/{id}", self.delete),
        ]

    async def list(self, request: web.Request) -> web.StreamResponse:
        """All of them, for administrators only: an id is enough to interrupt or delete one."""
        self._access.require_admin(request)
        now = time.monotonic()
        rows = [
            {
                "id": session.id,
                "turns": len(session.history.turns),
                "tokens": session.history.num_tokens,
                "speaking": session.is_speaking,
                "idle_s": round(now - session.used_at, 3),
            }
            for session in self._pipeline.sessions.all(self._pipeline.settings.sessions.idle_s)
        ]
        return json_response({"sessions": rows})

    async def interrupt(self, request: web.Request) -> web.StreamResponse:
        body = InterruptBody()
        if request.body_exists:
            body = await read_body(request, InterruptBody)
        session = self._pipeline.sessions.get(request.match_info["id"])
        interrupted = session.interrupt(body.spoken_chars)
        return json_response(
            {
                "id": session.id,
                "interrupted": interrupted,
                "kept_text": session.history.answer_text,
                "kept_tokens": session.history.num_tokens,
            }
        )

    async def delete(self, request: web.Request) -> web.StreamResponse:
        id = request.match_info["id"]
        self._pipeline.sessions.delete(id)
        return json_response({"id": id, "deleted": True})
