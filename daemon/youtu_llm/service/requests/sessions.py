"""Conversations that the daemon keeps, as the token ids the engine has pages of.

The next prompt begins with exactly the ids of the last prompt and its answer, so the engine finds
their pages and computes only what is new. The texts are kept too, for when the ids are of no use:
the oldest turns must be dropped, or the model or the system prompt has changed.
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
from youtu_llm.service.requests.options import Ask
from youtu_llm.service.requests.place import Place

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class History:
    """A conversation up to its last prompt, and the answer to it, complete or not."""

    turns: tuple[Messages, ...] = ()  # the last is the one being answered
    answers: tuple[str, ...] = ()  # to all turns but the last
    prompt_ids: tuple[int, ...] = ()
    answer: Generation | None = None
    num_heard: int | None = None  # characters of the answer; None: all of it

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
        return self.num_heard is not None or self.answer.place.ending == "interrupted"


@dataclass(frozen=True)
class Prompt:
    ids: tuple[int, ...]
    turns: tuple[Messages, ...]
    answers: tuple[str, ...]
    num_dropped: int  # tokens of turns that were dropped to make room


@dataclass
class Session:
    id: str
    history: History = field(default_factory=History)
    used_at: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while a prompt is made
    num_requests: int = 0  # live ones
    newest: Place | None = None  # of these, or of the last one

    @property
    def is_speaking(self) -> bool:
        return self.newest is not None and self.newest.ending is None

    def end_newest(self) -> None:
        if self.newest is not None:
            self.newest.end("interrupted")

    def interrupt(self, num_heard: int | None = None) -> bool:
        """Ends the answer that is heard; returns whether there was one. A next request whose
        prompt is still being made goes on. The text after `num_heard` characters is dropped,
        also of a complete answer that was not heard to its end."""
        answer = self.history.answer
        was_speaking = answer is not None and answer.place.ending is None
        if answer is not None:
            answer.place.end("interrupted")
        if num_heard is not None:
            self.history = replace(self.history, num_heard=num_heard)
        return was_speaking


def next_prompt(history: History, ask: Ask, config: LiveConfig, limit: int) -> Prompt:
    """The prompt for `ask`, of at most `limit` tokens if dropping turns can achieve that.

    Renders and encodes: not for the event loop.
    """
    tokenizer, settings = config.tokenizer, config.settings
    assert tokenizer is not None  # a ready service has both halves of the model
    if ask.text is not None:
        return Prompt(tuple(tokenizer.encode(ask.text)), (), (), 0)
    note = settings.sessions.interruption_note if history.was_interrupted else ""
    turns = (*history.turns, ask.messages)
    answers = history.answers
    if history.answer is not None:
        answers = (*answers, history.answer_text + note)
    thinking = settings.text.enable_thinking
    if history.answer is not None and _is_alike(history.answer.place.config, config):
        tail = tokenizer.encode_turn([dict(m) for m in ask.messages], enable_thinking=thinking)
        note_ids = tokenizer.encode(note) if note else []
        ids = (*history.prompt_ids, *history.answer_ids, *note_ids, *tail)
        if len(ids) <= limit:
            return Prompt(ids, turns, answers, 0)
    # Drop half of it at once: each drop costs a prefill of the rest.
    first = 0
    while True:
        kept = list(_messages(turns[first:], answers[first:], settings.text.system_prompt))
        ids = tuple(tokenizer.encode_chat(kept, enable_thinking=thinking))
        if first == len(answers) or len(ids) <= (limit // 2 if first else limit):
            num_dropped = max(0, history.num_tokens - len(ids)) if first else 0
            return Prompt(ids, turns[first:], answers[first:], num_dropped)
        first += max(1, (len(answers) - first) // 4)


def _is_alike(before: LiveConfig, now: LiveConfig) -> bool:
    one, other = before.settings.text, now.settings.text
    return before.tokenizer is now.tokenizer and one.system_prompt == other.system_prompt


def _messages(
    turns: Sequence[Messages], answers: Sequence[str], system_prompt: str
) -> Iterator[dict[str, Any]]:
    if system_prompt and all(message["role"] != "system" for message in turns[0]):
        yield {"role": "system", "content": system_prompt}
    for turn, answer in zip(turns, (*answers, None), strict=True):
        yield from map(dict, turn)
        if answer is not None:
            yield {"role": "assistant", "content": answer}


class Sessions:
    """Bounded in number and age by the live profile, in length by the limit on prompts."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # longest unused first

    def enter(self, id: str | None, place: Place) -> Session:
        """The session for one request, which interrupts the one before; a new one if there is
        none, and one that is not kept without an id. `leave` follows."""
        if id is None:
            return Session("", newest=place, num_requests=1)
        self._forget_idle(place.settings.sessions.idle_s)
        session = self._sessions.setdefault(id, Session(id))
        self._sessions.move_to_end(id)
        session.end_newest()
        session.newest = place
        session.used_at = time.monotonic()
        session.num_requests += 1
        return session

    def leave(self, session: Session, config: LiveConfig) -> None:
        """Forgets the session if its only request was refused, and those unused for longest if
        there are more than `max_sessions`; none in use."""
        session.num_requests -= 1
        is_empty = session.num_requests == 0 and session.history.answer is None
        if is_empty and self._sessions.get(session.id) is session:
            del self._sessions[session.id]
        excess = len(self._sessions) - config.settings.sessions.max_sessions
        if excess > 0:
            unused = [s.id for s in self._sessions.values() if s.num_requests == 0]
            for id in unused[:excess]:
                del self._sessions[id]

    def get(self, id: str) -> Session:
        """Raises NotFound."""
        if id not in self._sessions:
            raise NotFound("there is no session with this id: it is new, or was forgotten")
        return self._sessions[id]

    @property
    def num_speaking(self) -> int:
        return sum(session.is_speaking for session in self._sessions.values())

    def is_speaking(self, id: str | None) -> bool:
        session = self._sessions.get(id) if id is not None else None
        return session is not None and session.is_speaking

    def delete(self, id: str) -> None:
        """Raises NotFound."""
        session = self.get(id)
        session.interrupt()
        session.end_newest()
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
