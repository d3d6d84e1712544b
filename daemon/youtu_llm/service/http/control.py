"""The control API: health, metrics, live requests, profiles."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from youtu_llm.errors import NotFound
from youtu_llm.service.http.access import Access, is_local
from youtu_llm.service.http.responses import json_response
from youtu_llm.service.http.schemas import ProfileBody, read_body
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.profiles import Profiles
from youtu_llm.service.requests.admission import Admission
from youtu_llm.service.status import State, Status
from youtu_llm.service.thermal import ThermalMonitor


class ControlRoutes:
    def __init__(
        self,
        access: Access,
        admission: Admission,
        thermal: ThermalMonitor,
        status: Status,
        metrics: Metrics,
        profiles: Profiles,
    ) -> None:
        self._access = access
        self._admission = admission
        self._thermal = thermal
        self._status = status
        self._metrics = metrics
        self._profiles = profiles
        self.routes = [
            web.get("/livez", self.livez),
            web.get("/readyz", self.readyz),
            web.get("/health", self.health),
            web.get("/metrics", self.metrics),
            web.post("/requests/{id}/cancel", self.cancel),
            self._admin("GET", "/requests", self.requests),
            self._admin("GET", "/profiles", self.list_profiles),
            self._admin("GET", "/profile", self.show_profile),
            self._admin("PUT", "/profile", self.use_profile),
            self._admin("POST", "/reload", self.reload),
        ]

    def _admin(self, method: str, path: str, handler: Any) -> web.RouteDef:
        async def guarded(request: web.Request) -> web.StreamResponse:
            self._access.require_admin(request)
            response: web.StreamResponse = await handler(request)
            return response

        return web.route(method, path, guarded)

    async def livez(self, request: web.Request) -> web.StreamResponse:
        return json_response({"alive": True})

    async def readyz(self, request: web.Request) -> web.StreamResponse:
        self._status.require_ready()
        return json_response({"ready": True})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Only the Unix socket gets the engine's log, which may reveal file names."""
        num_live = len(self._admission.live)
        running = min(self._status.num_running, num_live)  # the heartbeat may be outdated
        self._note_heat()
        body = {
            "profile": self._admission.settings.profile,
            "generation": self._admission.config.revision,
            "model": self._admission.settings.model.name,
            **self._status.report(with_log=is_local(request)),
            "board": self._thermal.reading.report(),
            "queue": {
                "running": running,
                "waiting": num_live - running,
                "limit": self._admission.settings.service.queue_size,
            },
        }
        if self._status.state is State.READY:
            return json_response(body)
        retry_after_s = self._status.unavailable().retry_after_s
        return json_response(body, status=503, retry_after_s=retry_after_s)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        self._note_heat()
        text = self._metrics.render(self._status, self._thermal, len(self._admission.live))
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    def _note_heat(self) -> None:
        thermal, max_celsius = self._thermal, self._admission.settings.bounds.max_celsius
        hot = f"above {max_celsius} °C (bounds.max_celsius): one request at a time"
        self._status.note("heat", hot if thermal.check(max_celsius) else "")

    async def requests(self, request: web.Request) -> web.StreamResponse:
        now = time.monotonic()
        rows = [
            {
                "id": place.id,
                "profile": place.settings.profile,
                "age_s": round(now - place.received_at, 3),
                "prompt_tokens": place.num_prompt_tokens,
                "completion_tokens": place.num_tokens,
            }
            for place in self._admission.live.values()
        ]
        return json_response({"requests": rows})

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        id = request.match_info["id"]
        place = self._admission.live.get(id)
        if place is None:
            raise NotFound("no request with this id is running")
        place.end("cancelled")
        return json_response({"id": id, "cancelled": True})

    async def list_profiles(self, request: web.Request) -> web.StreamResponse:
        names = self._profiles.names()
        return json_response({"profiles": names, "live": self._admission.settings.profile})

    async def show_profile(self, request: web.Request) -> web.StreamResponse:
        return json_response(self._profile())

    async def use_profile(self, request: web.Request) -> web.StreamResponse:
        body = await read_body(request, ProfileBody)
        await self._profiles.use(body.name)
        return json_response(self._profile())

    async def reload(self, request: web.Request) -> web.StreamResponse:
        await self._profiles.reload()
        return json_response(self._profile())

    def _profile(self) -> dict[str, Any]:
        """The live profile, without the API key."""
        settings = self._admission.settings
        return {
            "name": settings.profile,
            "generation": self._admission.config.revision,
            "degraded": self._status.degraded,  # e.g. the profile was not saved
            "settings": settings.model_dump(mode="json", exclude={"service": {"api_key"}}),
        }
