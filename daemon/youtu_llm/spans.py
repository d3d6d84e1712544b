"""Reads a text that comes in pieces: words, gaps (runs of spaces and marks), protected spans.

A word passes at once. A gap waits for the character on its right and goes to the subclass
as a whole. A protected span (code, mathematics, a tag, JSON, a table row, a heading) passes as
it is until its closing pattern. What is remembered of a line is read off the output, so that
an output read again meets the same state.
"""

from __future__ import annotations

import re
from functools import cache

Pattern = re.Pattern[str]

HAN = "々〇㐀-䶿一-鿿豈-\ufaff\U00020000-\U0003ffff"
KANA_HANGUL = "ぁ-ゟァ-ヺヽ-ヿㇰ-ㇿ\uff66-\uff9d\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
SPACES = " \u3000"
PAUSES = "，、；：。！？…"
OPENING = "（《〈「『【〔［｛“‘"
CLOSING = "）》〉」』】〕］｝”’"
GAP_CHARS = SPACES + ',;:!?."()' + PAUSES + "—" + OPENING + CLOSING + "-"
SPAN_OPENERS = r"`~$<{\[\\"

MAX_GAP = 256  # a longer run is no punctuation: it passes as it is
MAX_TICKS = 16  # the same for backticks
MAX_QUOTE = 24  # how far a quote at a line's start waits to be told from a JSON key
TAIL = 64  # characters remembered of a line and of a span
HEAD = 32  # characters remembered of a line's start
LOOK_BACK = 48  # of TAIL, where a closing pattern may begin: longer than any; the rest is for (?<!)

IS_HAN = re.compile(f"[{HAN}]")
IS_KANA_HANGUL = re.compile(f"[{KANA_HANGUL}]")
WORD = re.compile(f"[^{re.escape(GAP_CHARS)}{SPAN_OPENERS}{KANA_HANGUL}\n]+")
GAP = re.compile(f"[{re.escape(GAP_CHARS)}]{{1,{MAX_GAP}}}")
SPACE_RUN = re.compile(f"[{SPACES}]+")
INDENT = re.compile(f"[{SPACES}\t]+")
NEWLINES = re.compile("\n+")
CODE_RUN = re.compile("`+|~+")
LESS_RUN = re.compile("<+")
OPENS_NOTHING = re.compile(r"(?:\\\\|\${4})+")  # escaped backslashes, empty mathematics

# What ends each span. A look-ahead leaves what it sees to the line.
REST_OF_LINE = re.compile("(?=\n)")
REST_OF_GAP = re.compile(f"(?=[^{re.escape(GAP_CHARS)}])")
MAY_END_PRICE = (",", ".", ";", ":", "!", "?", " ")
MATH = re.compile(r"(?<!\\)\$|(?=\n)")
PRICE = re.compile(rf"(?<!\\)\$|(?=\n)|(?<=\d)(?=[,.;:!?]? ?[{HAN}])|(?<=\d)(?=[{PAUSES}])")
BLANK_LINE = r"\n[ \t\r]{0,8}(?=\n)"
DISPLAY_MATH = {
    opening: re.compile(f"{closing}|{BLANK_LINE}")
    for opening, closing in (("$$", r"\$\$"), (r"\(", r"\\\)"), (r"\[", r"\\\]"))
}
TAG = re.compile(rf"[>\"']|(?<=<!--)|(?=[\n<,;?{PAUSES}{HAN}])|(?<!<)(?=!)|(?<=<)(?=[^A-Za-z/|!])")
COMMENT = re.compile(f"-->|{BLANK_LINE}")
BLOCK_TAG = re.compile(
    r"<(think|thinking|tool_calls?|tool_response|tools|function_call|code|pre|script|style)>\Z"
)
JSON_MEMBER = re.compile(r'"[^"]*"\s*(\S)')
BRACE_OPEN = re.compile(r"(?=\S)")
BRACKET_OPEN = re.compile(r"(?=[^\s])")  # the same, but no set follows
BRACES = re.compile(r"\}|(?=\n)")  # a set, a template
JSON = re.compile(rf"[\[{{]+|[\]}}\"']|{BLANK_LINE}")
STRING = {quote: re.compile(rf"(?<!\\)(?:\\\\){{0,16}}{quote}|(?=\n)") for quote in "\"'"}


@cache
def _closing_ticks(mark: str, length: int) -> Pattern:
    return re.compile(rf"(?<!{mark}){mark}{{{length}}}(?=[^{mark}])|(?=\n)")


@cache
def _closing_fence(mark: str, length: int) -> Pattern:
    return re.compile(rf"\n[ \t]{{0,8}}{mark}{{{length},{MAX_TICKS}}}[ \t\r]{{0,8}}(?=\n)")


def is_han(char: str) -> bool:
    return IS_HAN.match(char) is not None


class SpanReader:
    """Subclasses take the gaps (`_gap`) and may look at each line's start (`_protects_line`)."""

    def __init__(self) -> None:
        self._buffer = ""  # the last TAIL characters read, then what is held back
        self._pieces: list[str] = []  # what was read on
        self._at = 0  # where what is held back begins
        self._final = False  # no more input will come
        self._span: Pattern | None = None  # what ends the protected span, if in one
        self._span_start = 0
        self._outer: Pattern | None = None  # the tag or JSON that a string is in
        self._num_ticks = 0  # that opened the code span
        self._depth = 0  # of JSON brackets
        self._new_line()

    def _new_line(self) -> None:
        self._at_line_start = True
        self._head = ""  # the line's first characters, without indentation
        self._tail = ""  # its last ones
        self._left = ""  # L: the last one that is no space
        self._chinese = False  # Han came on this line

    def _read_on(self) -> str:
        """Reads all that can be read now; returns the output."""
        self._pieces = []
        while self._at < len(self._buffer):
            piece = self._protected(self._span) if self._span else self._token()
            if piece is None:
                break
            self._pieces.append(piece)
        dropped = max(0, self._at - TAIL)
        self._buffer, self._at = self._buffer[dropped:], self._at - dropped
        self._span_start = max(0, self._span_start - dropped)
        return "".join(self._pieces)

    def _read(self, pattern: Pattern, at: int) -> str:
        found = pattern.match(self._buffer, at)
        return found[0] if found else ""

    def _cut_off(self, end: int) -> bool:
        """Whether more input may follow at `end`."""
        return end == len(self._buffer) and not self._final

    def _emit(self, text: str, end: int) -> str:
        """Puts out `text` for the input up to `end`."""
        self._at = end
        self._tail = (self._tail + text)[-TAIL:]
        if len(self._head) < HEAD:
            self._head = (self._head + text)[:HEAD]
        self._left = text.rstrip(SPACES)[-1:] or self._left
        return text

    def _take(self, end: int) -> str:
        return self._emit(self._buffer[self._at : end], end)

    # Tokens: each method returns the next output, or None if it takes more input to tell.

    def _gap(self) -> str | None:
        raise NotImplementedError

    def _protects_line(self, start: str) -> bool:
        """Whether the line that begins with `start` (up to MAX_QUOTE characters) is no text."""
        return start.startswith(("#", "|"))

    def _word(self, num_han: int) -> None:
        """Counts the Han of a word."""
        self._chinese = self._chinese or num_han > 0

    def _token(self) -> str | None:
        if self._at_line_start:
            return self._open_line()
        if word := self._read(WORD, self._at):
            self._word(len(IS_HAN.findall(word)))
            return self._take(self._at + len(word))
        char = self._buffer[self._at]
        if char == "\n":
            newlines = self._read(NEWLINES, self._at)
            return self._newline(newlines)
        if char in GAP_CHARS:
            return self._gap()
        if IS_KANA_HANGUL.match(char):
            return self._protect(REST_OF_LINE, self._at)
        return self._open_span(char)

    def _newline(self, newlines: str) -> str:
        self._at += len(newlines)
        self._new_line()
        return newlines

    def _open_line(self) -> str | None:
        """Passes indentation; protects a heading, a table row and a member of a JSON object."""
        if indent := self._read(INDENT, self._at):
            self._at += len(indent)
            return indent
        line, newline, _ = self._buffer[self._at : self._at + MAX_QUOTE].partition("\n")
        member = JSON_MEMBER.match(line)
        whole = newline or len(line) == MAX_QUOTE or self._final
        if line.startswith('"') and not member and not whole:
            return None
        self._at_line_start = False
        if (member and member[1] == ":") or self._protects_line(line):
            return self._protect(REST_OF_LINE, self._at)
        return ""

    def _open_span(self, char: str) -> str | None:
        """Takes a character that may open code, mathematics, a tag or JSON."""
        if char in "`~":
            return self._open_code(char)
        if char == "<":
            return self._protect(TAG, self._at + len(self._read(LESS_RUN, self._at)))
        if char == "{":
            return self._protect(BRACE_OPEN, self._at + 1)
        if char == "[":
            return self._protect(BRACKET_OPEN, self._at + 1)
        if nothing := self._read(OPENS_NOTHING, self._at):
            return self._take(self._at + len(nothing))
        if self._cut_off(self._at + 1):
            return None
        pair = self._buffer[self._at : self._at + 2]
        if pair in DISPLAY_MATH:
            return self._protect(DISPLAY_MATH[pair], self._at + 2)
        if char == "\\":  # what it escapes opens nothing
            return self._take(self._at + len(pair.rstrip("\n")))
        after = pair[1:]
        if not after or after.isspace() or (after in GAP_CHARS and after not in "(-"):
            return self._take(self._at + 1)
        return self._protect(PRICE if after.isdigit() else MATH, self._at + 1)

    def _open_code(self, mark: str) -> str | None:
        num_ticks = len(self._read(CODE_RUN, self._at))
        end = self._at + num_ticks
        if num_ticks <= MAX_TICKS and self._cut_off(end):
            return None
        if num_ticks > MAX_TICKS or (mark == "~" and (num_ticks < 3 or self._left)):
            return self._take(end)
        self._num_ticks = num_ticks
        return self._protect(
            (_closing_ticks if mark == "`" else _closing_fence)(mark, num_ticks), end
        )

    # Protected spans.

    def _protect(self, until: Pattern, start: int) -> str:
        opening = self._take(start)
        self._span, self._span_start = until, start
        return opening

    def _protected(self, span: Pattern) -> str | None:
        # From a little before: a look-ahead may have had nothing to look at.
        found = span.search(self._buffer, max(self._span_start, self._at - LOOK_BACK))
        if found is None:
            end = len(self._buffer)
            if span is PRICE and not self._final:
                for _ in range(2):  # the price may end before these
                    end -= self._buffer.endswith(MAY_END_PRICE, self._at, end)
            return self._take(end) if end > self._at else None
        text = self._take(max(self._at, found.end()))
        self._span = self._after(span, found[0], found.end())
        self._span_start = self._at
        return text

    def _after(self, span: Pattern, closing: str, end: int) -> Pattern | None:
        """The span that follows when `closing` has ended `span`: most often none."""
        if span is TAG and closing == ">":
            block = BLOCK_TAG.search(self._buffer, max(0, end - TAIL), end)
            return re.compile(f"</{block[1]}>") if block else None
        if span is TAG and self._buffer.endswith("<!--", 0, end):
            return COMMENT
        if span in (BRACE_OPEN, BRACKET_OPEN):
            self._depth = 1
            if self._buffer[end] in "\"'{}[]":
                return JSON
            return BRACES if span is BRACE_OPEN else None
        if span in (TAG, JSON) and closing in STRING:
            self._outer = span
            return STRING[closing]
        if span in STRING.values():
            return self._outer
        if span is JSON and closing[0] != "\n":
            self._depth += len(closing) if closing[0] in "{[" else -1
            return JSON if self._depth else None
        if not closing and self._num_ticks > 2 and span is _closing_ticks("`", self._num_ticks):
            return _closing_fence("`", self._num_ticks)
        return None
