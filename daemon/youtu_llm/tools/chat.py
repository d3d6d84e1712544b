"""A conversation with a running daemon, and one question of it: `youtu chat`, `youtu run`."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from youtu_llm.errors import InvalidRequest
from youtu_llm.tools import bar, waiting
from youtu_llm.tools.client import ANSWER_TIMEOUT_S, Daemon, Refused, Unreachable

# Not passed on to a terminal: every control character but newline and tab.
_CONTROLS = dict.fromkeys(
    code for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
)


@dataclass(slots=True)
class Chat:
    """A conversation kept here or, with a `session`, by the daemon under that name. `options`
    are /chat's fields."""

    daemon: Daemon
    options: dict[str, Any]
    system: str = ""
    session: str = ""
    stream: bool = True
    verbose: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, prompt: str) -> None:
        """Print the answer as it arrives; waits while the model loads. Raises YoutuError and,
        after disconnecting, KeyboardInterrupt; the partial answer stays in the conversation."""
        self.messages.append({"role": "user", "content": prompt})
        said: list[str] = []
        try:
            self._answer(said)
        except Refused as error:
            if error.code not in waiting.NOT_YET or said:
                raise
            waiting.until_ready(lambda: self.daemon)
            self._answer(said)
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()

    def clear(self) -> None:
        """Forget the conversation, in the daemon too."""
        self.messages.clear()
        if self.session and self._daemon_knows():
            self.daemon.call("DELETE", f"/sessions/{self.session}")

    def _answer(self, said: list[str]) -> None:
        body = {"messages": self._turn(), "stream": self.stream, **self.options}
        if self.session:
            body["session"] = self.session
        done: dict[str, Any] = {}
        try:
            with closing(self._texts(body, done)) as texts:
                for text in texts:
                    said.append(text)
                    shown = text.translate(_CONTROLS) if sys.stdout.isatty() else text
                    print(shown, end="", flush=True)
        finally:
            if said:
                print(flush=True)
        if self.verbose:
            print(timings(done), file=sys.stderr)

    def _texts(self, body: dict[str, Any], done: dict[str, Any]) -> Generator[str, None, None]:
        """The answer in pieces, behind a spinner until the first; `done` is filled at its end."""
        with ExitStack() as spinning:
            spinning.enter_context(bar.spinner(""))
            if not self.stream:
                done |= self.daemon.call("POST", "/chat", body, timeout_s=ANSWER_TIMEOUT_S)
                spinning.close()
                yield done["text"]
                return
            with closing(self.daemon.events("/chat", body)) as events:
                for event, data in events:
                    spinning.close()
                    if event == "token":
                        yield data["text"]
                    elif event == "done":
                        done |= data
                        return
                    elif event == "error":
                        raise Refused(data["error"]["message"], code=data["error"]["code"])
        raise Unreachable("the daemon disconnected before the answer was complete")

    def _turn(self) -> list[dict[str, str]]:
        """The messages of the next request."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        if not self.session:
            return [*system, *self.messages]
        return [*([] if system and self._daemon_knows() else system), self.messages[-1]]

    def _daemon_knows(self) -> bool:
        kept = self.daemon.call("GET", "/sessions")["sessions"]
        return any(session["id"] == self.session for session in kept)


def timings(done: dict[str, Any]) -> str:
    """One line of figures of a finished answer."""
    usage, times = done.get("usage") or {}, done.get("timings") or {}
    figures = [
        f"prompt {usage.get('prompt_tokens')} tokens ({usage.get('cached_tokens')} cached)",
        f"answer {usage.get('completion_tokens')} tokens",
        f"first word {times.get('ttft_ms') or 0:.0f} ms",
        f"{times.get('decode_tokens_per_s') or 0:.1f} tokens/s",
        f"queue {times.get('queue_ms') or 0:.0f} ms",
        f"ended by {done.get('finish_reason')}",
    ]
    return f"[{', '.join(figures)}]"


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
