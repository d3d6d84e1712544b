"""Splits a text, whole or in pieces, into sentences: Chinese, English and both.

A sentence is a list item, a heading, a line of verse or a row too: a line never goes on in the
next. Nothing is cut inside a number, an abbreviation, a pair of quotation marks or brackets, a
URL, a formula, code or a table row. The reader is the one of the punctuation repair (spans.py).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from youtu_llm.punctuation_table import IN_FOREIGN_NAMES
from youtu_llm.spans import CLOSING, GAP, MAX_GAP, REST_OF_GAP, SPACES, SpanReader, is_han

PAIRS = {"（": "）", "(": ")", "“": "”", "‘": "’", "「": "」", "『": "』", "【": "】", "《": "》"}
MAX_INSIDE = 300  # characters: a pair that is not closed by then was no pair
ENDING = re.compile(rf"[。！？!?.]+[\"'{CLOSING})]*")
SOFT_ENDINGS = frozenset("，,；;：:")
CLOSES = frozenset(CLOSING + "\"')")
SPEECH_GOES_ON = frozenset("的地得说道问喊叫答想，、；")  # after a closing quotation mark
ABBREVIATION = re.compile(
    r"(?:^|[^A-Za-z])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|vs|No|Vol|Fig|Eq|pp|cf|etc|Inc|Ltd|Co|Jr"
    r"|e\.g|i\.e|a\.m|p\.m|al)$"
)
LIST_NUMBER = re.compile(r"(?:\d{1,4}|[A-Za-z]|[一二三四五六七八九十]{1,3})$")


class Sentence(NamedTuple):
    """`text` is the answer's `[start:end]`, in code points; between them lies white space.

    What has no letter and no digit (a rule, the marks that end bold text) is no sentence.
    """

    text: str
    start: int
    end: int


def split_sentences(text: str, *, first_clause: int = 0) -> list[Sentence]:
    """The sentences of `text` in order; see `SentenceStream`."""
    stream = SentenceStream(first_clause=first_clause)
    return stream.push(text) + stream.finish()


class SentenceStream(SpanReader):
    """`push` each piece of a text, then `finish` once: both return the sentences complete by then.

    However the text is cut into pieces, the sentences are the same. A sentence comes with its
    closing mark as soon as the character after its marks is there.

    `first_clause`: the first sentence may end at a comma, semicolon or colon already, once it has
    so many Han (0: never), for a voice that should begin to speak.
    """

    def __init__(self, *, first_clause: int = 0) -> None:
        super().__init__()
        self._first_clause = first_clause
        self._open: list[str] = []  # the closing marks that are awaited
        self._opened_at = 0  # characters of the sentence before the last of them opened
        self._waiting: list[str] = []  # what was read of the sentence
        self._length = self._num_han = 0  # of that: characters, Han
        self._start = 0  # where it begins in the text
        self._done: list[Sentence] = []
        self._any = False  # a sentence was found

    def push(self, delta: str) -> list[Sentence]:
        """Takes any piece of text; returns the sentences that end in what can be told by now."""
        self._buffer += delta
        self._read_on()
        return self._hand_out()

    def finish(self) -> list[Sentence]:
        """The rest of the text."""
        self._final = True
        self._read_on()
        self._end()
        return self._hand_out()

    def _hand_out(self) -> list[Sentence]:
        done, self._done = self._done, []
        return done

    def _emit(self, text: str, end: int) -> str:
        self._wait(text)
        return super()._emit(text, end)

    def _wait(self, text: str) -> None:
        self._waiting.append(text)
        self._length += len(text)

    def _word(self, num_han: int) -> None:
        super()._word(num_han)
        self._num_han += num_han

    def _end(self) -> None:
        """Ends the sentence here."""
        whole = "".join(self._waiting)
        text = whole.strip()
        if any(map(str.isalnum, text)):
            start = self._start + whole.index(text)
            self._done.append(Sentence(text, start, start + len(text)))
            self._any = True
        self._start += len(whole)
        self._waiting, self._open = [], []
        self._length = self._num_han = 0

    def _newline(self, newlines: str) -> str:
        self._end()
        self._start += len(newlines)
        return super()._newline(newlines)

    def _open_line(self) -> str | None:
        opened = super()._open_line()
        if opened and not self._span:  # indentation, which goes past `_emit`
            self._wait(opened)
        return opened

    def _gap(self) -> str | None:
        gap = self._read(GAP, self._at)
        start, end = self._at, self._at + len(gap)
        if len(gap) == MAX_GAP:
            return self._protect(REST_OF_GAP, end)
        if self._cut_off(end):
            return None
        seen = gap + self._buffer[end : end + 1]
        at = 0
        while at < len(gap):
            found = ENDING.match(gap, at)
            if found and self._ends(found[0], seen[found.end() :]):
                at = found.end()
                self._emit(found[0], start + at)
                self._end()
                continue
            mark, after = gap[at], seen[at + 1 : at + 2]
            self._pair(mark)
            at += 1
            self._emit(mark, start + at)
            if self._may_end_first(mark, after):
                self._end()
        return gap

    def _is_inside(self) -> bool:
        """Whether a pair of marks is open, and not for too long to be one."""
        return bool(self._open) and self._length - self._opened_at <= MAX_INSIDE

    def _pair(self, mark: str) -> None:
        """Notes what opens and closes; a half-width quotation mark does both."""
        if not self._is_inside():
            self._open = []
        if self._open and mark == self._open[-1]:
            self._open.pop()
        elif mark in PAIRS or (mark == '"' and not self._left.isdigit()):
            self._open = [*self._open[-8:], PAIRS.get(mark, '"')]
            self._opened_at = self._length

    def _ends(self, marks: str, rest: str) -> bool:
        """Whether `marks` end the sentence; `rest` is what is known to follow them."""
        still_open = list(self._open)
        for mark in marks:
            if still_open and mark == still_open[-1]:
                still_open.pop()
        if still_open and self._is_inside():
            return False
        after, following = rest[:1], rest.lstrip(SPACES)[:1]
        if marks[-1] in CLOSES and (after in SPEECH_GOES_ON or following.islower()):
            return False
        if marks[-1] in "》〉":  # of a title that is a word of the sentence
            return False
        if marks[0] in "。！？":
            return True
        left = self._tail[-1:]
        spaced = after in ("", "\n", *SPACES)
        if marks[0] == ".":
            return self._is_stop(marks, left, following, spaced)
        return spaced or is_han(left) or (is_han(after) and not left.isdigit())

    def _is_stop(self, marks: str, left: str, following: str, spaced: bool) -> bool:
        """Whether a dot ends a sentence: it may be of a name, a number or an abbreviation."""
        if LIST_NUMBER.fullmatch(self._head) or (".." in marks and not spaced):
            return False
        if is_han(left):
            is_name = left in IN_FOREIGN_NAMES and following in IN_FOREIGN_NAMES
            return spaced or not (is_name or (following.isascii() and following.isalnum()))
        ends_line = following in ("", "\n")
        if ABBREVIATION.search(self._tail) and not ends_line:
            return False
        return spaced and (ends_line or following.isupper() or not following.isascii())

    def _may_end_first(self, mark: str, after: str) -> bool:
        """Whether the first sentence, a long enough clause, may end at a pause."""
        if self._any or not self._first_clause or self._open or mark not in SOFT_ENDINGS:
            return False
        is_number = self._tail[-2:-1].isdigit() and after.isdigit()
        return self._num_han >= self._first_clause and not is_number
