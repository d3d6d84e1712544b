"""The conversation at the terminal: lines, several lines as one message, and its commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from youtu_llm import explain
from youtu_llm.errors import InvalidRequest, YoutuError
from youtu_llm.tools.chat import Chat
from youtu_llm.tools.client import RELOAD_TIMEOUT_S
from youtu_llm.tools.history import History

FENCE = '"""'
HELP = """\
/bye               leave, as Ctrl-D does
/clear             forget the conversation
/session [NAME]    let the daemon keep the conversation as NAME; alone: keep it here
/set [KEY [VALUE]] set an option of the requests; without a value: the profile's again
/profile [NAME]    list the profiles, or make one live
/save FILE         write the conversation and the options to a file
/load FILE         go on with a saved conversation
/help              this
\"""                begins and ends a message of several lines; pasted lines are one too
Ctrl-C stops an answer."""

Kind = Callable[[str], Any]


class Repl:
    """Reads, asks, repeats. `kinds` are the options that /set knows, with their types."""

    def __init__(self, chat: Chat, kinds: dict[str, Kind]) -> None:
        self._chat = chat
        self._kinds: dict[str, Kind] = {**kinds, "system": str, "verbose": _switch}
        self._commands: dict[str, Callable[[str], None]] = {
            "/clear": self._clear,
            "/session": self._session,
            "/set": self._set,
            "/profile": self._profile,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda rest: print(HELP),
        }

    def run(self) -> None:
        """Until /bye or Ctrl-D. Ctrl-C stops the answer."""
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        history = History.open([*self._commands, "/bye"])
        print("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
        while True:
            try:
                message = _read().strip()
                if not message:
                    continue
                history.add(message)
                if message == "/bye":
                    return
                self._do(message)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
            except YoutuError as error:
                print(f"youtu: {error.message}", file=sys.stderr)
            except OSError as error:
                print(f"youtu: {error.filename}: {error.strerror}", file=sys.stderr)

    def _do(self, message: str) -> None:
        word, _, rest = message.partition(" ")
        if not (word[0] == "/" and word[1:].isascii() and word[1:].isalpha()):
            self._chat.ask(message)  # a path, such as /etc/hosts, is a message too
        elif word in self._commands:
            self._commands[word](rest.strip())
        else:
            near = explain.nearest(word, [*self._commands, "/bye"])
            raise InvalidRequest(
                f"no command {word}: " + (f"did you mean {near}?" if near else "/help lists them")
            )

    def _clear(self, rest: str) -> None:
        self._chat.clear()

    def _session(self, name: str) -> None:
        self._chat.session = name
        place = f"the daemon (session {name})" if name else "this client"
        print(f"Conversation stored in {place}.")

    def _set(self, rest: str) -> None:
        key, _, value = rest.partition(" ")
        key = key.replace("-", "_")
        if not key:
            print("\n".join(f"{name:<19}{self._value(name)}" for name in self._kinds))
            return
        if key not in self._kinds:
            near = explain.nearest(key, self._kinds)
            hint = f", did you mean {near}?" if near else ": /set lists them"
            raise InvalidRequest(f"no option {key}{hint}")
        if key in ("system", "verbose"):
            setattr(self._chat, key, self._kinds[key](value.strip()))
        elif value.strip():
            try:
                self._chat.options[key] = self._kinds[key](value.strip())
            except ValueError as error:
                raise InvalidRequest(f"{key} cannot be {value.strip()}") from error
        else:
            self._chat.options.pop(key, None)

    def _value(self, key: str) -> object:
        if key == "verbose":
            return "on" if self._chat.verbose else "off"
        if key == "system":
            return self._chat.system or "(the live profile's)"
        return self._chat.options.get(key, "(the live profile's)")

    def _profile(self, name: str) -> None:
        daemon = self._chat.daemon
        if name:
            daemon.call("PUT", "/profile", {"name": name}, timeout_s=RELOAD_TIMEOUT_S)
        told = daemon.call("GET", "/profiles")
        for profile in dict.fromkeys([told["live"], *told["profiles"]]):
            print(f"{'*' if profile == told['live'] else ' '} {profile}")

    def _save(self, name: str) -> None:
        chat = self._chat
        saved = {"system": chat.system, "options": chat.options, "messages": chat.messages}
        text = json.dumps(saved, ensure_ascii=False, indent=1) + "\n"
        _path(name).write_text(text, encoding="utf-8")

    def _load(self, name: str) -> None:
        try:
            saved = json.loads(_path(name).read_text(encoding="utf-8"))
            system, options, messages = (saved[key] for key in ("system", "options", "messages"))
            turns = [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
            self._chat.options = dict(options)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"{name} is not what /save writes") from error
        self._chat.system, self._chat.session = str(system), ""
        self._chat.messages[:] = turns
        print(f"{len(turns)} messages")


def _read() -> str:
    """A message: a line, pasted lines, or all between two fences."""
    line = input("> ")
    if not line.startswith(FENCE):
        return line
    lines = [line.removeprefix(FENCE)]
    while not lines[-1].rstrip().endswith(FENCE):
        lines.append(input("... "))
    lines[-1] = lines[-1].rstrip().removesuffix(FENCE)
    return "\n".join(lines)


def _path(name: str) -> Path:
    if not name:
        raise InvalidRequest("give the name of a file")
    return Path(name).expanduser().resolve()


def _switch(text: str) -> bool:
    if text not in ("", "on", "off"):
        raise InvalidRequest("give on or off")
    return text != "off"
