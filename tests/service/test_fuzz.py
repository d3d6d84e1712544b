"""Requests nobody would write: bodies from our schemas, and bytes that were HTTP once.

`make soak` sends 100,000 of each.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import select
import socket
from typing import Any

from harness import Daemon
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from youtu_llm.service.http.schemas import (
    Body,
    ChatBody,
    ChatCompletionBody,
    CompletionBody,
    InterruptBody,
    ProfileBody,
)

Json = Any

ROUTES: tuple[tuple[str, str, type[Body] | None], ...] = (
    ("POST", "/chat", ChatBody),
    ("POST", "/v1/chat/completions", ChatCompletionBody),
    ("POST", "/v1/completions", CompletionBody),
    ("PUT", "/profile", ProfileBody),
    ("POST", "/sessions/fuzz/interrupt", InterruptBody),
    ("DELETE", "/sessions/fuzz", None),
    ("POST", "/requests/fuzz/cancel", None),
    *(("GET", f"/{name}", None) for name in ("livez", "readyz", "health", "metrics", "v1/models")),
    *(("GET", f"/{name}", None) for name in ("requests", "sessions", "profile", "profiles")),
)
DECLARED = {200, 400, 404, 405, 409, 413, 415, 417, 422, 429}
PATIENCE_S = 0.02  # with what waits for more of a request
TEXT = st.text(max_size=40)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def test_bodies_from_the_schemas(daemon: Daemon) -> None:
    check_bodies(daemon, 300)


def test_bytes_that_are_no_http(daemon: Daemon) -> None:
    check_bytes(daemon, 300, seed=1)


def test_what_is_no_http_gets_the_api_s_error(daemon: Daemon) -> None:
    for wire in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET\r\n\r\n"):
        status, body = exchange(daemon, wire, patience_s=60)
        assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_request")


def values(schema: Json, defs: Json) -> st.SearchStrategy[Json]:
    """What a JSON schema allows; one value in some is anything."""
    if "$ref" in schema:
        return values(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        return st.one_of(*(values(part, defs) for part in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    kind = schema["type"]
    if kind == "object":
        return objects(schema, defs)
    if kind == "array":
        size = {"min_size": schema.get("minItems", 0), "max_size": min(schema["maxItems"], 4)}
        return st.lists(values(schema["items"], defs), **size)
    if kind == "string" and "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    if kind == "string":
        return st.text(min_size=schema.get("minLength", 0), max_size=min(schema["maxLength"], 60))
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        numbers = st.integers if kind == "integer" else st.floats
        return numbers(low, schema["maximum"])
    return {"boolean": st.booleans(), "null": st.none()}[kind]


def objects(schema: Json, defs: Json) -> st.SearchStrategy[Json]:
    def mostly(part: Json) -> st.SearchStrategy[Json]:
        right = values(part, defs)
        return st.one_of(right, right, right, right, ANY_JSON)

    fields = {name: mostly(part) for name, part in schema["properties"].items()}
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    few = st.lists(st.sampled_from(sorted(fields)), max_size=3, unique=True) if fields else None
    if few is None:
        return st.fixed_dictionaries(required)
    return few.flatmap(
        lambda names: st.fixed_dictionaries(required | {name: fields[name] for name in names})
    )


def requests() -> st.SearchStrategy[tuple[str, str, bytes]]:
    return st.one_of(*(request(*route) for route in ROUTES))


def request(
    method: str, path: str, body: type[Body] | None
) -> st.SearchStrategy[tuple[str, str, bytes]]:
    if body is None:
        return st.just((method, path, b""))
    schema = body.model_json_schema()
    sound = objects(schema, schema.get("$defs", {}))
    encoded = st.one_of(sound, sound, sound, ANY_JSON).map(lambda value: json.dumps(value).encode())
    return st.tuples(st.just(method), st.just(path), encoded | st.binary(max_size=60))


def check_bodies(daemon: Daemon, count: int) -> dict[int, int]:
    """The number of answers by status."""
    counts: dict[int, int] = {}
    connection = UnixConnection(daemon)

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def send(wire: tuple[str, str, bytes]) -> None:
        method, path, body = wire
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        status, answer = response.status, response.read()
        assert status in DECLARED, (wire, status, answer)
        check_error(status, answer)
        counts[status] = counts.get(status, 0) + 1

    send()
    connection.close()
    check_nothing_broke(daemon)
    return counts


def check_bytes(daemon: Daemon, count: int, *, seed: int) -> dict[int, int]:
    """The number of answers by status; 0: closed without one."""
    dice = random.Random(seed)
    counts: dict[int, int] = {}
    for _ in range(count):
        wire = spoil(dice, dice.choice(SOUND))
        status, answer = exchange(daemon, wire)
        assert status in DECLARED | {0}, (wire, status, answer)
        if status != 417:  # which aiohttp says in its own words
            check_error(status, answer)
        counts[status] = counts.get(status, 0) + 1
    check_nothing_broke(daemon)
    return counts


BODY = b'{"prompt": "hello", "stream": false, "max_new_tokens": 5}'
HEAD = b"POST /chat HTTP/1.1\r\nHost: youtu\r\nContent-Type: application/json\r\n"
SOUND = (
    b"GET /health HTTP/1.1\r\nHost: youtu\r\nAccept: */*\r\n\r\n",
    HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
    HEAD + b"Expect: 100-continue\r\nX-Request-Id: fuzz\r\nContent-Length: 2\r\n\r\n{}",
    b"PUT /profile HTTP/1.1\r\nHost: youtu\r\nContent-Length: 13\r\n\r\n" + b'{"name": "x"}',
)
PIECES = (b"\r\n", b"\0", b": ", b"%00", b"../", b"HTTP/1.1", b"Content-Length: 9", b"\xff\xfe")
PIECES += (b"Transfer-Encoding: gzip\r\n", b"A" * 9000, b"X: y\r\n" * 300, b"Upgrade: h2c\r\n")


def spoil(dice: random.Random, wire: bytes) -> bytes:
    """A few random edits."""
    data = bytearray(wire)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        to = min(len(data), at + dice.randint(0, 9))
        edit = dice.randrange(5)
        if edit == 0:
            data[at:at] = dice.choice(PIECES)
        elif edit == 1:
            data[at:to] = dice.randbytes(to - at)
        elif edit == 2:
            del data[at:to]
        elif edit == 3:
            data[at:at] = data[at:to] * dice.randint(1, 3)
        else:
            del data[at:]
    return bytes(data)


def exchange(daemon: Daemon, wire: bytes, patience_s: float = PATIENCE_S) -> tuple[int, bytes]:
    """(Status of the first answer or 0, its body). What waits for more is hung up on."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        answer = b""
        with contextlib.suppress(ConnectionError):  # it has heard enough
            client.sendall(wire)
            if select.select([client], [], [], patience_s)[0]:
                answer = client.recv(1 << 16)
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(1 << 16):
                answer += data
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.[01] (\d+)", head)
    return (int(found[1]) if found else 0), body


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, daemon: Daemon) -> None:
        super().__init__("youtu", timeout=60)
        self._path = str(daemon.socket)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def check_error(status: int, answer: bytes) -> None:
    if status >= 400:
        error = json.loads(answer)["error"]
        assert error["message"]
        assert isinstance(error["code"], str)
        assert "Traceback" not in error["message"]


def check_nothing_broke(daemon: Daemon) -> None:
    health = daemon.wait(lambda health: health["queue"]["running"] == 0)
    assert (health["state"], health["engine"]["restarts"]) == ("ready", 0)
    assert daemon.chat("hello").json()["text"] == "hello"
    assert "Traceback" not in daemon.log.read_text()
