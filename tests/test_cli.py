"""The client commands, as processes, against a small daemon on a real Unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests import person, test_manifest
from youtu_llm import cli, manifest

YOUTU = (sys.executable, "-c", "import sys, youtu_llm.cli as c; sys.exit(c.main())")
ANSWER = ["好的", "，前方", "500米\x1b[31m", "有加油站"]


@dataclass
class Daemon:
    """Answers as the API says. The last message tells it to misbehave."""

    socket: Path
    state: str = "ready"
    profile: str = "default"
    bodies: list[Any] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        question = body["messages"][-1]["content"]
        if question == "busy":
            error = {"message": "the queue is full", "code": "queue_full"}
            return web.json_response({"error": error}, status=429)
        if body["stream"] is False:
            return web.json_response({"text": "".join(ANSWER)})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await self._stream(response, question)
        except (ConnectionError, asyncio.CancelledError):
            self.hung_up.set()
            raise
        return response

    async def _stream(self, response: web.StreamResponse, question: str) -> None:
        async def send(event: str, data: Any) -> None:
            text = json.dumps(data, ensure_ascii=False)
            await response.write(f"event: {event}\ndata: {text}\n\n".encode())

        for piece in ANSWER:
            await send("token", {"text": piece})
            await response.write(b":\n\n")
        while question == "endless":
            await send("token", {"text": "。"})
            await asyncio.sleep(0.01)
        if question == "crash":
            await send("error", {"error": {"message": "the engine died", "code": "engine_error"}})
        elif question != "cut":
            await send("done", {"text": "".join(ANSWER), "finish_reason": "stop"})

    async def health(self, request: web.Request) -> web.Response:
        report = {
            "state": self.state,
            "profile": self.profile,
            "model": "m",
            "engine": {"phase": "idle", "restarts": 1},
            "pages": {"used": 1, "free": 7, "limit": 8, "limit_by": "memory"},
            "memory": {"used": 5e8, "total": 2e9},
        }
        return web.json_response(report, status=200 if self.state == "ready" else 503)

    async def requests(self, request: web.Request) -> web.Response:
        row = {"id": "r1", "profile": "car", "age_s": 1.25, "prompt_tokens": 9}
        return web.json_response({"requests": [row | {"completion_tokens": 30}]})

    async def reload(self, request: web.Request) -> web.Response:
        if self.state == "stuck":
            error = {"message": "«car» is live again", "code": "switch_failed"}
            return web.json_response({"error": error}, status=409)
        return web.json_response({"name": self.profile})


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    made = Daemon(tmp_path / "y.sock")
    app = web.Application()
    app.add_routes(
        [
            web.post("/chat", made.chat),
            web.get("/health", made.health),
            web.get("/requests", made.requests),
            web.post("/reload", made.reload),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(made.socket)).start()
    yield made
    await runner.cleanup()


@dataclass(frozen=True)
class Done:
    status: int | None
    out: str
    err: str


async def youtu(daemon: Daemon | None, *args: str, stdin: bytes = b"", **environ: str) -> Done:
    host = {"YOUTU_HOST": f"unix://{daemon.socket}"} if daemon else {}
    process = await asyncio.create_subprocess_exec(
        *YOUTU,
        *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **host, **environ},
    )
    out, err = await process.communicate(stdin)
    return Done(process.returncode, out.decode(), err.decode())


async def test_chat_streams_one_answer(daemon: Daemon) -> None:
    done = await youtu(
        daemon, "chat", "最近的加油站", "--temperature", "0.1", "--system", "你是助手"
    )
    assert done == Done(0, "".join(ANSWER) + "\n", "")
    assert daemon.bodies == [
        {
            "messages": [
                {"role": "system", "content": "你是助手"},
                {"role": "user", "content": "最近的加油站"},
            ],
            "stream": True,
            "temperature": 0.1,
        }
    ]


async def test_chat_takes_piped_text_below_the_prompt(daemon: Daemon) -> None:
    done = await youtu(daemon, "chat", "总结", "--no-stream", stdin="第一行\n第二行\n".encode())
    assert done.out == "".join(ANSWER) + "\n"
    await youtu(daemon, "chat", stdin=b"only this\n")
    questions = [body["messages"][-1]["content"] for body in daemon.bodies]
    assert questions == ["总结\n\n第一行\n第二行", "only this"]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (b"busy", "youtu: the queue is full\n"),
        (b"crash", "youtu: the engine died\n"),
        (b"cut", "youtu: the daemon disconnected before the answer was complete\n"),
        (b"", "youtu: nothing to ask: give a prompt or pipe one in\n"),
        (b"\xff", "youtu: standard input is not UTF-8 text\n"),
    ],
)
async def test_chat_says_what_went_wrong(daemon: Daemon, question: bytes, message: str) -> None:
    done = await youtu(daemon, "chat", stdin=question)
    assert (done.status, done.err) == (1, message)


async def test_a_reader_that_leaves_ends_it_quietly(daemon: Daemon) -> None:
    line = " ".join(f"'{part}'" for part in YOUTU) + " chat endless </dev/null | head -c 6"
    process = await asyncio.create_subprocess_shell(
        line,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "YOUTU_HOST": f"unix://{daemon.socket}"},
    )
    assert await process.communicate() == ("好的".encode(), b"")
    await daemon.hung_up.wait()


class Terminal:
    """A process with a terminal of its own, on which Ctrl-C is a signal."""

    def __init__(self, home: Path) -> None:
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)
        self.seen = ""
        self.home = home

    async def start(self, daemon: Daemon, *args: str, TERM: str = "dumb") -> None:
        # The leader of a new session owns the first terminal it opens.
        script = f'tty={os.ttyname(self.slave)}; exec "$@" <$tty >$tty 2>&1'
        self.process = await asyncio.create_subprocess_exec(
            *("sh", "-c", script, "sh", *YOUTU, *args),
            env={
                **os.environ,
                **person.environ(self.home),
                "YOUTU_HOST": f"unix://{daemon.socket}",
                "TERM": TERM,
            },
            start_new_session=True,
        )

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    async def wait_for(self, text: str) -> str:
        """What was printed up to and with `text`."""
        while text not in self.seen:
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except BlockingIOError:
                await asyncio.sleep(0.01)
        before, found, self.seen = self.seen.partition(text)
        return before + found

    async def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    await made.close()


async def test_ctrl_c_stops_the_answer_and_not_the_conversation(
    daemon: Daemon, terminal: Terminal
) -> None:
    await terminal.start(daemon, "chat")
    await terminal.wait_for("> ")
    terminal.type("\x03")  # at the prompt: a fresh one
    await terminal.wait_for("> ")
    terminal.type("endless\n")
    await terminal.wait_for("。。。")
    terminal.type("\x03")
    await daemon.hung_up.wait()
    await terminal.wait_for("> ")
    terminal.type("busy\n")
    await terminal.wait_for("youtu: the queue is full")
    await terminal.wait_for("> ")
    terminal.type("hello\n")
    said = await terminal.wait_for("有加油站")
    assert "500米[31m" in said  # the model cannot steer the terminal
    await terminal.wait_for("> ")
    terminal.type("\x04")
    assert await terminal.process.wait() == 0
    history = daemon.bodies[-1]["messages"]
    assert [message["role"] for message in history] == ["user", "assistant", "user"]
    assert [history[0]["content"], history[2]["content"]] == ["endless", "hello"]
    assert history[1]["content"].startswith("".join(ANSWER) + "。")


async def test_ctrl_c_ends_a_single_question(daemon: Daemon, terminal: Terminal) -> None:
    await terminal.start(daemon, "chat", "endless")
    await terminal.wait_for("。")
    terminal.type("\x03")
    assert await terminal.process.wait() == 130
    await daemon.hung_up.wait()
    await terminal.wait_for("\r\n")
    assert "Traceback" not in terminal.seen


async def test_status_and_ps(daemon: Daemon) -> None:
    done = await youtu(daemon, "status")
    assert done.status == 0
    assert "state     ready\n" in done.out
    assert "pages     1 of 8 used, limited by memory\n" in done.out
    assert "memory    0.50 of 2.00 GB" in done.out
    daemon.state = "loading"
    done = await youtu(daemon, "status", "--json")
    assert (done.status, json.loads(done.out)["state"]) == (3, "loading")
    done = await youtu(daemon, "ps")
    assert done.out.splitlines() == [
        "ID  PROFILE  AGE    PROMPT  ANSWER",
        "r1  car      1.2 s  9       30",
    ]


async def test_over_tcp(daemon: Daemon, unused_tcp_port: int) -> None:
    app = web.Application()
    keys: list[str] = []

    async def requests(request: web.Request) -> web.Response:
        keys.append(request.headers["Authorization"])
        return web.json_response({"requests": []})

    app.router.add_get("/requests", requests)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    host = f"http://127.0.0.1:{unused_tcp_port}"
    done = await youtu(None, "ps", YOUTU_HOST=host, YOUTU_API_KEY="k")
    await runner.cleanup()
    assert (done.status, done.err, keys) == (0, "", ["Bearer k"])


@pytest.mark.parametrize(
    ("host", "status", "message"),
    [
        (
            "unix:///nowhere/y.sock",
            3,
            "nothing listens on unix:///nowhere/y.sock: start",
        ),
        ("ftp://x", 1, "YOUTU_HOST must be unix:///path or http://host:port (got ftp://x)"),
        ("http://x:port", 1, "YOUTU_HOST must be unix:///path or http://host:port"),
    ],
)
async def test_no_daemon(host: str, status: int, message: str) -> None:
    done = await youtu(None, "status", YOUTU_HOST=host)
    assert (done.status, done.out) == (status, "")
    assert done.err.startswith(f"youtu: {message}")


async def test_something_else_listens(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()  # else the client may meet the closed connection first
        writer.write(b"SSH-2.0-x\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(answer, tmp_path / "y.sock")
    done = await youtu(None, "ps", YOUTU_HOST=f"unix://{tmp_path / 'y.sock'}")
    server.close()
    assert done.status == 1
    assert done.err.startswith("youtu: unix:///")
    assert len(done.err.splitlines()) == 1


async def test_profile_use(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# mine\nprofile: default # now\n")
    daemon.profile = "car"  # what it says after the reload
    done = await youtu(daemon, "profile", "use", "car", "--config", str(file))
    assert done == Done(0, f"{file}: profile: car\nThe profile car is live.\n", "")
    assert file.read_text() == "# mine\nprofile: car # now\n"

    done = await youtu(daemon, "profile", "use", "factory", "--config", str(file))
    assert done.status == 1
    assert "is still on the profile car" in done.err

    done = await youtu(daemon, "profile", "use", "cart", "--config", str(file))
    assert (done.status, done.out) == (78, "")
    assert 'no such profile (got "cart"), did you mean car' in done.err
    assert file.read_text() == "# mine\nprofile: factory # now\n"

    environ = {"YOUTU_HOST": "unix:///nowhere/y.sock", "YOUTU_CONFIG": str(tmp_path / "new.yaml")}
    done = await youtu(None, "profile", "use", "car", **environ)
    assert done.status == 78  # a file that YOUTU_CONFIG names must exist
    (tmp_path / "new.yaml").touch()
    done = await youtu(None, "profile", "use", "car", **environ)
    assert (done.status, (tmp_path / "new.yaml").read_text()) == (0, "profile: car\n")


async def test_a_switch_that_fails_leaves_the_file_as_it_was(
    daemon: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("profile: car\n")
    os.utime(file, (1e9, 1e9))
    daemon.state = "stuck"
    done = await youtu(daemon, "profile", "use", "factory", "--config", str(file))
    assert done.status == 1
    assert done.err == f"youtu: «car» is live again. {file} was not changed\n"
    assert (file.read_text(), file.stat().st_mtime) == ("profile: car\n", 1e9)


async def test_profile_ls_and_show(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("profile: car\n")
    nowhere = {"YOUTU_HOST": "unix:///nowhere/y.sock"}
    done = await youtu(None, "profile", "ls", "--config", str(file), **nowhere)
    marks = {line[2:].split(" ")[0]: line[0] for line in done.out.splitlines()}
    assert marks["car"] == "*"
    assert marks["default"] == marks["factory"] == " "
    assert "not live" not in done.out
    daemon.profile = "factory"
    done = await youtu(daemon, "profile", "ls", "--config", str(file))
    lines = {line[2:].split(" ")[0]: line for line in done.out.splitlines()}
    assert lines["factory"].startswith("*")
    assert lines["car"].startswith("  car")
    assert lines["car"].endswith("(configured, not live)")
    done = await youtu(None, "profile", "show", "--config", str(file))
    assert "max_new_tokens: 64" in done.out
    done = await youtu(None, "profile", "show", "educatoin")
    assert done.err.startswith("youtu: no profile educatoin, did you mean education; there are ")


async def test_config_schema_and_check(tmp_path: Path) -> None:
    done = await youtu(None, "config", "schema")
    assert json.loads(done.out)["properties"]["profile"]["default"] == "default"
    file = tmp_path / "config.yaml"
    file.write_text("profile: car\n")
    done = await youtu(None, "config", "check", "--config", str(file))
    assert done.out.startswith(f"ok: {file}; profile car; also valid: car, ")
    file.write_text("bounds: {max_new_tokens: 500}\nsampling: {max_new_tokens: 400}\n")
    assert (await youtu(None, "config", "check", "--config", str(file))).status == 0
    file.write_text("bounds: {max_new_tokens: 500}\n")
    done = await youtu(None, "config", "check", "--config", str(file))
    assert done.status == 78  # a switch to education would fail
    assert "education.yaml:3:3: sampling.max_new_tokens: 2048 new tokens" in done.err


async def test_a_broken_model_does_not_hide_the_others(tmp_path: Path) -> None:
    for name in ("cut", "mad", "sound"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"x" * 100)
        test_manifest.write(tmp_path / name)
    (tmp_path / "cut/weights").write_bytes(b"x")
    (tmp_path / "mad" / manifest.MANIFEST).write_text("[]")
    done = await youtu(None, "models", YOUTU_MODELS=str(tmp_path))
    assert done.status == 0
    assert [line.split()[:2] for line in done.out.splitlines()[1:]] == [
        ["cut", "?"],
        ["mad", "?"],
        ["sound", "none"],
    ]
    assert "cut/weights has 1 bytes and should have 100" in done.err
    assert "mad/youtu.json is damaged" in done.err


async def test_the_version_is_the_newest_release_s() -> None:
    changes = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\d\S+) - ", changes, re.MULTILINE)
    assert newest is not None
    done = await youtu(None, "--version")
    assert done == Done(0, f"youtu {newest[1]}\n", "")


async def test_models_of_an_empty_folder(tmp_path: Path) -> None:
    done = await youtu(None, "models", YOUTU_MODELS=str(tmp_path))
    assert done == Done(0, f"No models in {tmp_path}: `youtu pull NAME` gets one.\n", "")


@pytest.mark.parametrize("args", [["--help"], ["chat", "--help"], ["profile", "use", "--help"]])
def test_help_is_quick(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(args)
    assert "usage: youtu" in capsys.readouterr().out


async def test_clients_load_no_heavy_module() -> None:
    script = (
        "import sys, youtu_llm.cli as c; c._parser(); import youtu_llm.tools.chat as t;"
        "heavy = {'aiohttp', 'pydantic', 'torch', 'yaml', 'msgspec'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await process.wait() == 0


@pytest.mark.parametrize("redirect", ["2>&-", ">&-", ">&- 2>&-", "<&-", ">/dev/full"])
@pytest.mark.parametrize("command", ["config schema", "models", "status"])
def test_odd_streams_give_no_traceback(tmp_path: Path, command: str, redirect: str) -> None:
    youtu = Path(sys.executable).with_name("youtu")
    done = subprocess.run(
        ["bash", "-c", f"'{youtu}' {command} {redirect}"],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "YOUTU_HOST": "unix:///nowhere"},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if redirect == ">/dev/full" and command != "status":
        assert done.returncode == 1
        assert "No space left" in done.stderr


def test_a_terminal_without_utf_8_loses_only_what_it_cannot_show() -> None:
    youtu = Path(sys.executable).with_name("youtu")
    done = subprocess.run(
        [youtu, "profile", "show", "car"],
        env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout
    assert "temperature: 0.1" in done.stdout
