"""Conversations that the daemon keeps, as the token ids the engine has pages of.

The next prompt begins with the ids of the last one and of what was said, exactly, so the engine
finds their pages and computes only what is new. The texts are kept beside them for the day when
the ids are no use: the oldest turns must go, or another model or system prompt came.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from youtu_llm.errors import NotFound
from youtu_llm.service.live import LiveConfig
from youtu_llm.service.requests.generation import Generation

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class History:
    """A conversation up to its last prompt, and the answer to that, finished or not."""

    turns: tuple[Messages, ...] = ()  # the last is the one being answered
    said: tuple[str, ...] = ()  # to each but the last
    prompt_ids: tuple[int, ...] = ()
    answer: Generation | None = None
    num_heard: int | None = None  # characters of the answer; None: all it says

    @property
    def answer_text(self) -> str:
        return self.answer.text[: self.num_heard] if self.answer else ""

    @property
    def answer_ids(self) -> list[int]:
        return self.answer.ids_of(self.num_heard) if self.answer else []

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)

    @property
    def was_interrupted(self) -> bool:
        if self.answer is None:
            return False
        return self.num_heard is not None or self.answer.stopped_by == "interrupted"


@dataclass(frozen=True)
class Prompt:
    ids: tuple[int, ...]
    turns: tuple[Messages, ...]
    said: tuple[str, ...]
    num_dropped: int  # tokens of turns that were forgotten to make room


@dataclass
class Session:
    id: str
    history: History = field(default_factory=History)
    used_at: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while a prompt is made
    num_requests: int = 0  # that are being answered

    @property
    def speaking(self) -> Generation | None:
        answer = self.history.answer
        is_speaking = answer is not None and answer.is_live and answer.stopped_by is None
        return answer if is_speaking else None

    def interrupt(self, num_heard: int | None = None) -> bool:
        """Whether it was speaking. It then stops; what comes after `num_heard` characters is
        forgotten, also of an answer that is complete and was not listened to the end."""
        speaking = self.speaking
        if speaking is not None:
            speaking.stop("interrupted")
        if num_heard is not None:
            self.history = replace(self.history, num_heard=num_heard)
        return speaking is not None


def next_prompt(history: History, messages: Messages, config: LiveConfig, limit: int) -> Prompt:
    """The prompt for `messages`, of `limit` tokens at the most if forgetting turns can do that.

    Renders and encodes: not for the event loop.
    """
    tokenizer, settings = config.tokenizer, config.settings
    assert tokenizer is not None
    note = settings.sessions.interruption_note if history.was_interrupted else ""
    turns = (*history.turns, messages)
    said = history.said if history.answer is None else (*history.said, history.answer_text + note)
    thinking = settings.text.enable_thinking
    if history.answer is not None and _is_alike(history.answer.config, config):
        tail = tokenizer.encode_turn([dict(m) for m in messages], enable_thinking=thinking)
        note_ids = tokenizer.encode(note) if note else []
        ids = (*history.prompt_ids, *history.answer_ids, *note_ids, *tail)
        if len(ids) <= limit:
            return Prompt(ids, turns, said, 0)
    # Half of it goes at once: forgetting costs a prefill of the rest, so not at every turn.
    first = 0
    while True:
        told = list(_messages(turns[first:], said[first:], settings.text.system_prompt))
        ids = tuple(tokenizer.encode_chat(told, enable_thinking=thinking))
        if first == len(said) or len(ids) <= (limit // 2 if first else limit):
            num_dropped = max(0, history.num_tokens - len(ids)) if first else 0
            return Prompt(ids, turns[first:], said[first:], num_dropped)
        first += max(1, (len(said) - first) // 4)


def _is_alike(before: LiveConfig, now: LiveConfig) -> bool:
    one, other = before.settings.text, now.settings.text
    return before.tokenizer is now.tokenizer and one.system_prompt == other.system_prompt


def _messages(
    turns: Sequence[Messages], said: Sequence[str], system_prompt: str
) -> Iterator[dict[str, Any]]:
    if system_prompt and all(message["role"] != "system" for message in turns[0]):
        yield {"role": "system", "content": system_prompt}
    for turn, answer in zip(turns, (*said, None), strict=True):
        yield from map(dict, turn)
        if answer is not None:
            yield {"role": "assistant", "content": answer}


class Sessions:
    """Bounded in number and age by the live profile; in length by the prompts."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the unused first

    def enter(self, id: str, config: LiveConfig) -> Session:
        """The session, new if there is none, for one request: `leave` follows."""
        self._forget_idle(config.settings.sessions.idle_s)
        session = self._sessions.setdefault(id, Session(id))
        self._sessions.move_to_end(id)
        session.used_at = time.monotonic()
        session.num_requests += 1
        return session

    def leave(self, session: Session, config: LiveConfig) -> None:
        """What a refused request began is forgotten; beyond the most there may be, so are those
        unused for longest, and none in use."""
        session.num_requests -= 1
        is_empty = session.num_requests == 0 and session.history.answer is None
        if is_empty and self._sessions.get(session.id) is session:
            del self._sessions[session.id]
        excess = len(self._sessions) - config.settings.sessions.max_sessions
        unused = [s.id for s in self._sessions.values() if s.num_requests == 0]
        for id in unused[: max(0, excess)]:
            del self._sessions[id]

    def get(self, id: str) -> Session:
        """Raises NotFound."""
        if id not in self._sessions:
            raise NotFound("there is no session with this id: it is new, or was forgotten")
        return self._sessions[id]

    @property
    def num_speaking(self) -> int:
        return sum(session.speaking is not None for session in self._sessions.values())

    def is_speaking(self, id: str | None) -> bool:
        session = self._sessions.get(id) if id is not None else None
        return session is not None and session.speaking is not None

    def delete(self, id: str) -> None:
        """Raises NotFound."""
        self.get(id).interrupt()
        del self._sessions[id]

    def all(self, idle_s: float) -> list[Session]:
        self._forget_idle(idle_s)
        return list(self._sessions.values())

    def _forget_idle(self, idle_s: float) -> None:
        now = time.monotonic()
        for id, session in list(self._sessions.items()):
            if now - session.used_at <= idle_s:
                break
            if session.num_requests == 0:
                del self._sessions[id]
