"""The conversation at a terminal, with a small daemon that answers as the API says."""

from __future__ import annotations

import json
from pathlib import Path

from tests.test_cli import Daemon, Terminal, daemon, terminal  # noqa: F401 - fixtures

DONE = "有加油站"  # the end of every answer


def questions(daemon: Daemon) -> list[str]:  # noqa: F811
    return [body["messages"][-1]["content"] for body in daemon.bodies]


async def ask(terminal: Terminal, typed: str) -> str:  # noqa: F811
    terminal.type(typed)
    said = await terminal.wait_for(DONE)
    await terminal.wait_for("> ")
    return said


async def test_fenced_and_pasted_lines_are_one_message(
    daemon: Daemon,  # noqa: F811
    terminal: Terminal,  # noqa: F811
) -> None:
    await terminal.start(daemon, "chat", TERM="xterm")
    await terminal.wait_for("> ")
    terminal.type('"""第一行\n')
    await terminal.wait_for("... ")
    await ask(terminal, '第二行"""\n')
    await ask(terminal, "\x1b[200~one\ntwo\nthree\x1b[201~\n")
    await ask(terminal, "好坏\x7f的\n")  # the terminal deletes a whole character
    await ask(terminal, "/etc/hosts 是什么\n")
    assert questions(daemon) == ["第一行\n第二行", "one\ntwo\nthree", "好的", "/etc/hosts 是什么"]
    terminal.type("/bye\n")
    assert await terminal.process.wait() == 0


async def test_what_was_typed_is_there_after_a_restart(
    daemon: Daemon,  # noqa: F811
    terminal: Terminal,  # noqa: F811
) -> None:
    await terminal.start(daemon, "chat", TERM="xterm")
    await terminal.wait_for("> ")
    await ask(terminal, "\x1b[200~one\ntwo\x1b[201~\n")
    terminal.type("\x04")
    assert await terminal.process.wait() == 0
    history = terminal.home / ".local/state/youtu/chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    await terminal.start(daemon, "chat", TERM="xterm")
    await terminal.wait_for("> ")
    await ask(terminal, "\x1b[A\n")  # up
    assert questions(daemon) == ["one\ntwo", "one\ntwo"]


async def test_options_and_a_misspelt_command(
    daemon: Daemon,  # noqa: F811
    terminal: Terminal,  # noqa: F811
) -> None:
    await terminal.start(daemon, "chat", "--temperature", "0.5", "--verbose")
    await terminal.wait_for("> ")
    terminal.type("/sesion x\n")
    await terminal.wait_for("no command /sesion: did you mean /session?")
    terminal.type("/set temprature 1\n")
    await terminal.wait_for("no option temprature, did you mean temperature?")
    terminal.type("/set seed much\n")
    await terminal.wait_for("seed cannot be much")
    for line in ("/set seed 7", "/set temperature", "/set stop 。 ！", "/set system 短"):
        await terminal.wait_for("> ")
        terminal.type(f"{line}\n")
    await terminal.wait_for("> ")
    terminal.type("/set\n")
    assert "(the live profile's)" in await terminal.wait_for("system             短")
    await terminal.wait_for("> ")
    terminal.type("hello\n")
    await terminal.wait_for("ended by stop]")
    body = daemon.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "短"}
    assert (body["seed"], body["stop"], "temperature" in body) == (7, ["。", "！"], False)


async def test_clear_session_save_and_load(
    daemon: Daemon,  # noqa: F811
    terminal: Terminal,  # noqa: F811
    tmp_path: Path,
) -> None:
    await terminal.start(daemon, "chat")
    await terminal.wait_for("> ")
    await ask(terminal, "first\n")
    terminal.type(f"/save {tmp_path}/talk\n")
    await terminal.wait_for("> ")
    terminal.type("/clear\n")
    await terminal.wait_for("> ")
    await ask(terminal, "second\n")
    assert len(daemon.bodies[-1]["messages"]) == 1
    terminal.type(f"/load {tmp_path}/talk\n")
    await terminal.wait_for("2 messages")
    await ask(terminal, "third\n")
    told = [message["content"] for message in daemon.bodies[-1]["messages"]]
    assert (told[0], told[2]) == ("first", "third")
    saved = json.loads((tmp_path / "talk").read_text())
    assert saved["messages"][0] == {"role": "user", "content": "first"}
    (tmp_path / "talk").write_text("[]")
    terminal.type(f"/load {tmp_path}/talk\n")
    await terminal.wait_for("is not what /save writes")
    terminal.type("/load\n")
    await terminal.wait_for("give the name of a file")
    terminal.type("/load /nowhere/x\n")
    await terminal.wait_for("youtu: /nowhere/x: No such file")
    terminal.type("/session driver\n")
    await terminal.wait_for("stored in the daemon (session driver).")
    await ask(terminal, "fourth\n")
    assert daemon.bodies[-1]["session"] == "driver"
    assert [m["content"] for m in daemon.bodies[-1]["messages"]] == ["fourth"]
