"""`youtu chat`: one question, or a conversation at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from youtu_llm.errors import InvalidRequest, YoutuError
from youtu_llm.tools.client import ANSWER_TIMEOUT_S, Daemon, Refused, Unreachable

# Not passed on to a terminal: every control character but newline and tab.
_CONTROLS = dict.fromkeys(
    code for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
)


@dataclass(slots=True)
class Chat:
    """A conversation kept here. `options` are /chat's sampling fields."""

    daemon: Daemon
    options: Mapping[str, Any]
    system: str = ""
    stream: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.system:
            self.messages.append({"role": "system", "content": self.system})

    def ask(self, prompt: str) -> None:
        """Print the answer as it arrives. Raises YoutuError and, after disconnecting,
        KeyboardInterrupt; the partial answer stays in the conversation."""
        self.messages.append({"role": "user", "content": prompt})
        said: list[str] = []
        try:
            self._answer(said)
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
                print()
            else:
                self.messages.pop()

    def _answer(self, said: list[str]) -> None:
        body = {"messages": self.messages, "stream": self.stream, **self.options}
        if not self.stream:
            done = self.daemon.call("POST", "/chat", body, timeout_s=ANSWER_TIMEOUT_S)
            self._say(done["text"], said)
            return
        with closing(self.daemon.events("/chat", body)) as events:
            for event, data in events:
                if event == "token":
                    self._say(data["text"], said)
                elif event == "done":
                    return
                elif event == "error":
                    error = data["error"]
                    raise Refused(error["message"], code=error["code"])
        raise Unreachable("the daemon disconnected before the answer was complete")

    def _say(self, text: str, said: list[str]) -> None:
        said.append(text)
        print(text.translate(_CONTROLS) if sys.stdout.isatty() else text, end="", flush=True)


def once(chat: Chat, prompt: str | None) -> None:
    """Ask `prompt` with standard input below it, or either of them."""
    piped = ""
    if sys.stdin is not None and not sys.stdin.isatty():
        try:
            piped = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("standard input is not UTF-8 text") from error
    question = "\n\n".join(part for part in (prompt, piped.strip()) if part)
    if not question:
        raise InvalidRequest("nothing to ask: give a prompt or pipe one in")
    chat.ask(question)


def converse(chat: Chat) -> None:
    """Read, ask, repeat. Ctrl-C stops the answer, Ctrl-D leaves."""
    import readline  # noqa: F401  input() then has editing and history

    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    print("Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            prompt = input("> ").strip()
            if prompt:
                chat.ask(prompt)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
        except YoutuError as error:
            print(f"youtu: {error.message}", file=sys.stderr)
