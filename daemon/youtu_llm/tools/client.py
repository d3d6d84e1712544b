"""Talks to a running daemon over its Unix socket or TCP, with the standard library alone.

YOUTU_HOST names the daemon: unix:///path or http://host:port; unset, the socket of this
account, or else the system's. YOUTU_API_KEY is sent as the bearer key.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from youtu_llm import paths
from youtu_llm.errors import InvalidRequest, YoutuError

CONTROL_TIMEOUT_S = 10.0  # a healthy daemon answers these at once
RELOAD_TIMEOUT_S = 600.0  # it may drain and load a model
ANSWER_TIMEOUT_S = 900.0  # without data: a request may wait long in the queue
MAX_LINE_BYTES = 8 << 20  # one event; `done` repeats the whole answer
MAX_BODY_BYTES = 16 << 20


class Unreachable(YoutuError):
    """No daemon answers there, or no valid answer came."""

    code = "unreachable"


class NothingListens(Unreachable):
    """No daemon runs there."""


class Refused(YoutuError):
    """An error that the daemon answered."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Daemon:
    """One connection a call. Raises Unreachable and Refused."""

    host: str
    api_key: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Daemon:
        host = environ.get("YOUTU_HOST")
        if not host:
            own, system = paths.socket_path(environ), paths.SYSTEM_SOCKET
            paths.refuse_foreign(own)
            host = f"unix://{system if _is_there(system) and not _is_there(own) else own}"
        return cls(host, environ.get("YOUTU_API_KEY", ""))

    @property
    def socket_path(self) -> Path | None:
        """Of its Unix socket; None over TCP."""
        url = urlsplit(self.host)
        return Path(url.path) if url.scheme == "unix" and url.path and not url.netloc else None

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = CONTROL_TIMEOUT_S,
        also: tuple[int, ...] = (),
    ) -> Any:
        """The JSON of the answer. `also`: error statuses whose body is an answer too."""
        with self._connection(timeout_s) as connection:
            response = self._send(connection, method, path, body)
            if response.status not in also:
                self._refuse_errors(response)
            return json.loads(response.read(MAX_BODY_BYTES))

    def events(self, path: str, body: Any) -> Generator[tuple[str, Any], None, None]:
        """(event, data) of a streamed answer. Closing the iterator disconnects, which cancels
        the answer; an end without a last event is an error."""
        with self._connection(ANSWER_TIMEOUT_S) as connection:
            response = self._send(connection, "POST", path, body)
            self._refuse_errors(response)
            name, data = "", ""
            while line := response.readline(MAX_LINE_BYTES).decode():
                label, _, value = line.rstrip("\r\n").partition(":")
                if label == "event":
                    name = value.strip()
                elif label == "data":
                    data += value
                elif not line.strip() and data:
                    yield name, json.loads(data)
                    name, data = "", ""

    @contextlib.contextmanager
    def _connection(self, timeout_s: float) -> Iterator[http.client.HTTPConnection]:
        """One connection, whose failures raise Unreachable."""
        connection = self._connect(timeout_s)
        try:
            yield connection
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        except ValueError as error:
            raise Unreachable(f"{self.host} does not answer as a youtu daemon does") from error
        finally:
            connection.close()

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.socket_path is not None:
            return _UnixConnection(str(self.socket_path), timeout_s)
        url = urlsplit(self.host)
        try:
            if url.scheme == "http" and url.hostname:
                return http.client.HTTPConnection(url.hostname, url.port, timeout=timeout_s)
        except ValueError:
            pass  # an invalid port: reported below
        raise InvalidRequest(
            f"YOUTU_HOST must be unix:///path or http://host:port (got {self.host})"
        )

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any
    ) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection.request(method, path, data, headers)
        return connection.getresponse()

    def _refuse_errors(self, response: http.client.HTTPResponse) -> None:
        if response.status < 400:
            return
        error = json.loads(response.read(MAX_BODY_BYTES))
        try:
            message, code = str(error["error"]["message"]), str(error["error"]["code"])
        except (KeyError, TypeError) as shape:
            raise ValueError("not the API's error object") from shape
        raise Refused(message, code=code)

    def _lost(self, error: Exception) -> Unreachable:
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return NothingListens(
                f"nothing listens on {self.host}: start the daemon with `youtu serve` (or"
                " `systemctl start youtu`), or name another one in YOUTU_HOST"
            )
        if isinstance(error, PermissionError):
            return Unreachable(
                f"you may not open {self.host}: join its group"
                " (`sudo usermod -aG youtu $USER`, then log in again)"
            )
        if isinstance(error, TimeoutError):
            return Unreachable(f"{self.host} does not answer: is the daemon stopped or overloaded?")
        reason = str(error).strip() or type(error).__name__
        return Unreachable(f"{self.host}: the connection was lost: {reason}")


def _is_there(socket_path: Path) -> bool:
    try:
        socket_path.stat()
    except PermissionError:
        pass  # it exists, in a folder for its group: connecting reports the remedy
    except OSError:
        return False
    return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
