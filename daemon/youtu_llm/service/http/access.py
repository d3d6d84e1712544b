"""Access control: the Unix socket is protected by its file mode, TCP by these rules."""

from __future__ import annotations

import hmac
import re
import socket
from dataclasses import dataclass

from aiohttp import web

from youtu_llm.errors import Forbidden, Unauthorized
from youtu_llm.settings import ServiceSection

_WITHOUT_KEY = frozenset({"/livez", "/readyz"})


@dataclass(frozen=True)
class Access:
    """The rules for requests over TCP."""

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
            raise Forbidden("this Host is not allowed: add it to service.allowed_hosts")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self.origins and origin != f"http://{host}":
            raise Forbidden("this Origin is not allowed: add it to service.allowed_origins")
        if request.method != "OPTIONS" and request.path not in _WITHOUT_KEY:
            self._check_key(request)

    def require_admin(self, request: web.Request) -> None:
        """After `check`, which has verified the key if one is set. Raises Forbidden."""
        if not is_local(request) and not self.api_key:
            raise Forbidden("use the Unix socket, or set service.api_key to allow this over TCP")

    def _check_key(self, request: web.Request) -> None:
        if not self.api_key:
            return
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given, right = key.encode(errors="replace"), self.api_key.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, right):
            raise Unauthorized("send the API key as Authorization: Bearer KEY")


def is_local(request: web.Request) -> bool:
    """Whether the request came over the Unix socket."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    return connection is not None and connection.family == socket.AF_UNIX
