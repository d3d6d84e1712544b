"""The listening sockets: Unix and TCP."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import stat
from pathlib import Path

from aiohttp import web

from youtu_llm import paths, peer
from youtu_llm.errors import ConfigError
from youtu_llm.service.http.connection import Connection
from youtu_llm.service.http.head_deadline import HeadDeadline
from youtu_llm.settings import ServiceSection

logger = logging.getLogger(__name__)

SOCKET_MODE = 0o660  # owner and group (`youtu` under systemd)
PROBE_S = 2.0
BACKLOG = 1024
KEEP_ALIVE_TIMEOUT_S = 75.0
FIRST_FD = 3  # SD_LISTEN_FDS_START


def refuse_exposure(service: ServiceSection) -> None:
    """Raises ConfigError if TCP would be reachable from other machines without a key."""
    if service.port and not service.api_key and not _is_loopback(service.host):
        raise ConfigError(
            f"service.host: {service.host} can be reached from other machines: set"
            " service.api_key, or listen on 127.0.0.1"
        )


class Listeners:
    """`close` stops accepting connections and removes the socket file that `open` made."""

    def __init__(self, server: web.Server) -> None:
        self._server = server
        self._open: list[asyncio.Server] = []
        self._file: tuple[Path, int] | None = None  # with its inode

    async def open(self, service: ServiceSection) -> None:
        """Raises ConfigError if an address is in use or invalid."""
        loop = asyncio.get_running_loop()
        listeners = inherited()
        if service.socket not in [listener.getsockname() for listener in listeners]:
            path = Path(service.socket)
            listeners.append(unix_socket(path))
            self._file = (path, os.stat(path).st_ino)
        for listener in listeners:
            # Not create_unix_server: since Python 3.13 its close() deletes systemd's socket file.
            self._open.append(
                await loop.create_server(self._connection, sock=listener, backlog=BACKLOG)
            )
            logger.info("listening on unix://%s", listener.getsockname())
        if service.port:
            await self._open_tcp(service)

    async def _open_tcp(self, service: ServiceSection) -> None:
        try:
            self._open.append(
                await asyncio.get_running_loop().create_server(
                    self._connection, service.host, service.port, backlog=BACKLOG
                )
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {service.host}:{service.port} ({error.strerror}): set"
                " service.port to a free one, or to 0 for the Unix socket only"
            ) from error
        logger.info("listening on http://%s:%d", service.host, service.port)

    def close(self) -> None:
        for server in self._open:
            server.close()
        if self._file is not None:
            path, inode = self._file
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:  # not one that a newer daemon made
                    path.unlink()

    def _connection(self) -> HeadDeadline:
        loop = asyncio.get_running_loop()
        # Made here because web.Server always makes aiohttp's own RequestHandler.
        inner = Connection(
            self._server,
            loop=loop,
            keepalive_timeout=KEEP_ALIVE_TIMEOUT_S,
            access_log=None,  # type: ignore[arg-type]  # None disables it
        )
        return HeadDeadline(inner)


def inherited() -> list[socket.socket]:
    """The sockets passed by systemd (sd_listen_fds(3), youtu.socket)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    return [socket.socket(fileno=number) for number in range(FIRST_FD, FIRST_FD + count)]


def unix_socket(path: Path) -> socket.socket:
    """Bind to `path` with mode 0660, replacing a stale socket file. Raises ConfigError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        paths.make_socket_folder(path)
        other = _answering(path)
        if other is not None:
            how = "`youtu stop`" if path == paths.socket_path() else f"`kill {other.pid}`"
            raise ConfigError(
                f"another daemon (pid {other.pid}) is listening on {path}: {how} ends it, or set"
                " service.socket"
            )
        path.unlink(missing_ok=True)
        os.fchmod(listener.fileno(), SOCKET_MODE)  # bind applies it, less the umask: never wider
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {error.strerror}") from error
    except ConfigError:
        listener.close()
        raise
    return listener


def _answering(path: Path) -> peer.Peer | None:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ConfigError(f"{path} is a file and not a socket: move it, or set service.socket")
    except FileNotFoundError:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return None  # left by a daemon that was killed
        except OSError as error:
            raise ConfigError(f"cannot probe {path}: {error.strerror or error}") from error
        return peer.of(probe)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
