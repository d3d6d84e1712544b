"""Chinese punctuation repair: precision first, from cues only (norm: GB/T 15834-2011).

A line is words and gaps. A word passes at once. A gap is a run of spaces and marks: it waits
for what follows and is repaired as a whole, from the character on its left (L), the gap and
the character on its right (R). A protected span passes as it is until its closing pattern.
Repairing a whole text is one push and one finish of the same machine, so streamed and whole
answers cannot differ. What is remembered of a line is read off the output: so a repaired text
meets the same state again and is left alone.

Structured output (a JSON schema, tools) must not come here at all: that is the caller's part.
"""

from __future__ import annotations

import re
from collections import deque
from functools import cache
from typing import ClassVar, Literal

Mode = Literal["conservative"]
Pattern = re.Pattern[str]

HAN = "々〇㐀-䶿一-鿿豈-\ufaff\U00020000-\U0003ffff"
KANA_HANGUL = "ぁ-ゟァ-ヺヽ-ヿㇰ-ㇿ\uff66-\uff9d\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
SPACES = " \u3000"
HALF_TO_FULL = {",": "，", ";": "；", ":": "：", "!": "！", "?": "？"}
PAUSES = "，、；：。！？…"
FULL_MARKS = frozenset("，、；：。！？")
OPENING = "（《〈「『【〔［｛“‘"
CLOSING = "）》〉」』】〕］｝”’"
SHARED_WITH_LATIN = "…—“”‘’"  # full-width only beside Chinese
GAP_CHARS = SPACES + ',;:!?."()' + PAUSES + "—" + OPENING + CLOSING + "-"
SPAN_OPENERS = r"`~$<{\[\\"

MAX_GAP = 256  # a longer run is no punctuation: it passes as it is
MAX_TICKS = 16  # the same for backticks
MAX_JSON_KEY = 24  # how far a quote at a line's start waits to be told from a JSON key
TAIL = 64  # characters remembered of a line and of a span
LOOK_BACK = (
    48  # of those, where a closing pattern may begin: longer than any; the rest is for (?<!)
)

IS_HAN = re.compile(f"[{HAN}]")
IS_KANA_HANGUL = re.compile(f"[{KANA_HANGUL}]")
WORD = re.compile(f"[^{re.escape(GAP_CHARS)}{SPAN_OPENERS}{KANA_HANGUL}\n]+")
GAP = re.compile(f"[{re.escape(GAP_CHARS)}]{{1,{MAX_GAP}}}")
NEXT_SEGMENT = re.compile(f"[^{re.escape(GAP_CHARS)}{SPAN_OPENERS}\n]{{1,6}}")
SPACE_RUN = re.compile(f"[{SPACES}]+")
INDENT = re.compile(f"[{SPACES}\t]+")
NEWLINES = re.compile("\n+")
CODE_RUN = re.compile("`+|~+")
LESS_RUN = re.compile("<+")
OPENS_NOTHING = re.compile(r"(?:\\\\|\${4})+")  # escaped backslashes, empty mathematics
MARK_RUN = re.compile(r'["“”()（）]|(.)\1*')

# Protected spans: what ends each. A look-ahead leaves what it sees to the line.
REST_OF_LINE = re.compile("(?=\n)")
REST_OF_GAP = re.compile(f"(?=[^{re.escape(GAP_CHARS)}])")
MATH = re.compile(r"(?<!\\)\$|(?=\n)")
PRICE = re.compile(rf"(?<!\\)\$|(?=\n)|(?<=[\d,.])(?= ?[{HAN}])")
BLANK_LINE = r"\n[ \t\r]{0,8}(?=\n)"
DISPLAY_MATH = {
    opening: re.compile(f"{closing}|{BLANK_LINE}")
    for opening, closing in (("$$", r"\$\$"), (r"\(", r"\\\)"), (r"\[", r"\\\]"))
}
TAG = re.compile(rf"[>\"']|(?=[\n<,;!?{PAUSES}{HAN}])|(?<=<)(?=[^A-Za-z/|!])")
BLOCK_TAG = re.compile(
    r"<(think|thinking|tool_calls?|tool_response|tools|function_call|code|pre|script|style)>\Z"
)
JSON_MEMBER = re.compile(r'"[^"]*"\s*(\S)')
JSON_OPEN = re.compile(r"(?=\S)")
JSON = re.compile(rf"[\[{{]+|[\]}}\"']|{BLANK_LINE}")
STRING = {quote: re.compile(rf"(?<!\\)(?:\\\\){{0,16}}{quote}|(?=\n)") for quote in "\"'"}

# What a line or a clause looks like.
HEADING_LABEL = re.compile(
    r"(?:第[\d一二三四五六七八九十百千零〇两]{1,6}[章节節篇部卷回编編条條讲講课課])+"
    r"|[图圖表] ?\d[\d.-]{0,6}"
)
HEADING = re.compile(f"(?:{HEADING_LABEL.pattern})(?=[{SPACES}：:]|$)")
LIST_MARKER = re.compile(
    r"[-*+] |(?:\d{1,4}|[A-Za-z])[.)、．](?!\d)|[一二三四五六七八九十]{1,3}[.、．]"
    r"|[(（](?:\d{1,4}|[A-Za-z]|[一二三四五六七八九十]{1,3})[)）]|[①-⑳•·]"
)
LABEL_VALUE = re.compile(f"[^{PAUSES}:]{{1,8}}[：:]")
DATE_END = re.compile("[\\d一二三四五六七八九十][日号號]$")
WEEKDAY = re.compile("星期|周|週|礼拜|禮拜")
ASKS = re.compile("(?:[吗嗎]|(?<![什甚怎那这這多要])[么麼])$")
QUESTION_WORD = re.compile("[谁誰哪几幾何啥怎]|[什甚][么麼]|多少")
ENDED = re.compile(f"[。！？…][{CLOSING}]*$")
PLAIN_WORD = re.compile(r"[^!-~](?:[A-Za-z0-9]+|\d[\d,.]*\d)$")  # and no end of a URL or a path
SMILE = re.compile(r"[:;]-?(?:\)|\((?!\w)|[DPp](?![A-Za-z0-9]))")
CLAUSE_END = re.compile(f"[{SPACES}{PAUSES.replace('、', '')}]")
REPEATS = (  # in this order
    (re.compile("…*(?:(?:。{3,}|…{2,})…*)+"), "……"),
    (re.compile("[，、；]+(?=[。！？])"), ""),
    (re.compile(r"([，、；：。])\1+"), r"\1"),
    (re.compile("([！？])。+"), r"\1"),
    (re.compile("([！？]{3})[！？]+"), r"\1"),
)


def _spaces_beside(marks: str) -> Pattern:
    return re.compile(f"(?<=[{marks}])[{SPACES}]+|[{SPACES}]+(?=[{marks}])")


FULL_WIDTH = "".join(sorted(set(PAUSES + OPENING + CLOSING) - set(SHARED_WITH_LATIN)))
BESIDE_FULL_WIDTH = _spaces_beside(FULL_WIDTH)
BESIDE_FULL_WIDTH_IN_CHINESE = _spaces_beside(FULL_WIDTH + SHARED_WITH_LATIN)


@cache
def _closing_ticks(mark: str, length: int) -> Pattern:
    return re.compile(rf"(?<!{mark}){mark}{{{length}}}(?=[^{mark}])|(?=\n)")


@cache
def _closing_fence(mark: str, length: int) -> Pattern:
    return re.compile(rf"\n[ \t]{{0,8}}{mark}{{{length},{MAX_TICKS}}}[ \t\r]{{0,8}}(?=\n)")


def _is_han(char: str) -> bool:
    return IS_HAN.match(char) is not None


def _is_chinese(left: str) -> bool:
    """Whether L makes the mark after it Chinese: Han, or a mark that closes something."""
    return _is_han(left) or (left != "" and left in PAUSES + "—" + CLOSING)


def punctuate_postprocess(
    text: str, *, finish_reason: str = "stop", mode: Mode = "conservative"
) -> str:
    """`text` with its Chinese punctuation repaired, in time linear in its length.

    The final stop comes for `finish_reason` "stop" only: give another word when a stop string
    ended the answer. If something inside fails, `text` comes back as it was and
    `PunctuationStream.failures` rises. Raises ValueError for an unknown mode.
    """
    stream = PunctuationStream(mode=mode)
    repaired = stream.push(text) + stream.finish(finish_reason)
    return text if stream.failed else repaired


class PunctuationStream:
    """The same for a text that comes in pieces: `push` each of them, then `finish` once.

    Held back is at most: a gap and the character after it; spaces after Han with 6 characters
    of the next segment; a run of backticks; a quote at a line's start, up to 24 characters.
    Kana or hangul protect the rest of their line: what was sent before them stays as sent.
    """

    failures: ClassVar[int] = 0  # of all streams of this process, for the metrics

    def __init__(self, *, mode: Mode = "conservative") -> None:
        if mode != "conservative":
            raise ValueError(f"punctuation mode {mode!r} is unknown; there is only 'conservative'")
        self.failed = False
        self._buffer = ""  # the last TAIL characters read, then what is held back
        self._at = 0  # where what is held back begins
        self._final = False  # no more input will come
        self._span: Pattern | None = None  # what ends the protected span, if in one
        self._span_start = 0
        self._outer: Pattern | None = None  # the tag or JSON that a string is in
        self._num_ticks = 0  # that opened the code span
        self._depth = 0  # of JSON brackets
        self._paragraph_marked = False  # Chinese marks came in this paragraph
        self._trailing = ""  # spaces that end the text
        self._new_line()

    def _new_line(self) -> None:
        self._at_line_start = True
        self._head = ""  # the line's first characters, without indentation
        self._tail = ""  # its last ones
        self._left = ""  # L: the last one that is no space
        self._chinese = False  # Han came on this line
        self._marked = False  # a pause other than a colon came
        self._line_han = 0  # Han since the last space that was left between Han
        self._clause_han = 0  # Han since the last space or pause
        self._quote = ""  # the quotation mark that is open
        self._parens: deque[bool] = deque(maxlen=16)  # of each open one: is it full-width

    def push(self, delta: str) -> str:
        """Takes any piece of text; returns what can be sent now."""
        self._buffer += delta
        return self._advance()

    def finish(self, finish_reason: str = "stop") -> str:
        """Flushes what is held back, and adds the final mark if the text wants one."""
        self._final = True
        flushed = self._advance()
        mark = self._final_mark() if finish_reason == "stop" and not self.failed else ""
        return flushed + (mark or self._trailing)

    def _advance(self) -> str:
        pieces = []
        try:
            while not self.failed and self._at < len(self._buffer):
                piece = self._protected(self._span) if self._span else self._token()
                if piece is None:
                    break
                pieces.append(piece)
        except Exception:  # the answer must arrive, repaired or not
            PunctuationStream.failures += 1
            self.failed = True
        if self.failed:
            pieces.append(self._buffer[self._at :])
            self._at = len(self._buffer)
        dropped = max(0, self._at - TAIL)
        self._buffer, self._at = self._buffer[dropped:], self._at - dropped
        self._span_start = max(0, self._span_start - dropped)
        return "".join(pieces)

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
        if len(self._head) < 16:
            self._head += text[:16]
        self._left = text.rstrip(SPACES)[-1:] or self._left
        return text

    def _take(self, end: int) -> str:
        return self._emit(self._buffer[self._at : end], end)

    # Tokens: each method returns the next output, or None if it takes more input to tell.

    def _token(self) -> str | None:
        if self._at_line_start:
            return self._open_line()
        if word := self._read(WORD, self._at):
            num_han = len(IS_HAN.findall(word))
            self._chinese = self._chinese or num_han > 0
            self._line_han += num_han
            self._clause_han += num_han
            return self._take(self._at + len(word))
        char = self._buffer[self._at]
        if char == "\n":
            return self._newline()
        if char in GAP_CHARS:
            return self._gap()
        if IS_KANA_HANGUL.match(char):
            return self._protect(REST_OF_LINE, self._at)
        return self._open_span(char)

    def _newline(self) -> str:
        newlines = self._read(NEWLINES, self._at)
        if len(newlines) > 1 or not self._tail.strip():
            self._paragraph_marked = False
        self._at += len(newlines)
        self._new_line()
        return newlines

    def _open_line(self) -> str | None:
        """Passes indentation; protects a heading, a table row and a member of a JSON object."""
        if indent := self._read(INDENT, self._at):
            self._at += len(indent)
            return indent
        line, newline, _ = self._buffer[self._at : self._at + MAX_JSON_KEY].partition("\n")
        member = JSON_MEMBER.match(line)
        whole = newline or len(line) == MAX_JSON_KEY or self._final
        if line.startswith('"') and not member and not whole:
            return None
        self._at_line_start = False
        if line.startswith(("#", "|")) or (member and member[1] == ":"):
            return self._protect(REST_OF_LINE, self._at)
        return ""

    def _open_span(self, char: str) -> str | None:
        """Takes a character that may open code, mathematics, a tag or JSON."""
        if char in "`~":
            return self._open_code(char)
        if char == "<":
            return self._protect(TAG, self._at + len(self._read(LESS_RUN, self._at)))
        if char in "{[":
            return self._protect(JSON_OPEN, self._at + 1)
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

    def _protected(self, span: Pattern) -> str:
        # From a little before: a look-ahead may have had nothing to look at.
        found = span.search(self._buffer, max(self._span_start, self._at - LOOK_BACK))
        if found is None:
            return self._take(len(self._buffer))
        text = self._take(max(self._at, found.end()))
        self._span = self._after(span, found[0], found.end())
        self._span_start = self._at
        return text

    def _after(self, span: Pattern, closing: str, end: int) -> Pattern | None:
        """The span that follows when `closing` has ended `span`: most often none."""
        if span is TAG and closing == ">":
            block = BLOCK_TAG.search(self._buffer, max(0, end - TAIL), end)
            return re.compile(f"</{block[1]}>") if block else None
        if span is JSON_OPEN:
            self._depth = 1
            return JSON if self._buffer[end] in "\"'{}[]" else None
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

    # Gaps.

    def _gap(self) -> str | None:
        if not self._chinese and (spaces := self._read(SPACE_RUN, self._at)):
            return self._take(self._at + len(spaces))
        gap = self._read(GAP, self._at)
        end = self._at + len(gap)
        if len(gap) == MAX_GAP:
            return self._protect(REST_OF_GAP, end)
        if self._cut_off(end):
            return None
        if self._chinese and gap in FULL_MARKS:  # most gaps: right as they are
            return self._emit_gap(gap, end)
        right, ahead = self._buffer[end : end + 1], self._read(NEXT_SEGMENT, end)
        if SPACE_RUN.fullmatch(gap):
            return self._spaces(gap, right, ahead, end)
        if self._cut_off(end + 1) and SMILE.search(gap + ahead):
            return None
        if not (self._chinese or _is_han(right)) or IS_KANA_HANGUL.match(right):
            return self._take(end)
        if LIST_MARKER.fullmatch(self._head + gap.rstrip(SPACES)):
            return self._take(end)
        smile = SMILE.search(gap + ahead[:2])
        if smile:
            return self._emit_gap(
                self._repair(gap[: smile.start()], ":") + gap[smile.start() :], end
            )
        return self._emit_gap(self._repair(gap, right), end)

    def _emit_gap(self, text: str, end: int) -> str:
        pauses = set(text).intersection(PAUSES)
        self._paragraph_marked = self._paragraph_marked or bool(pauses)
        self._marked = self._marked or bool(pauses - {"："})
        if CLAUSE_END.search(text):
            self._clause_han = 0
        return self._emit(text, end)

    def _spaces(self, gap: str, right: str, ahead: str, end: int) -> str | None:
        """Rule 4."""
        if not right:  # the text ends: a final mark would take their place
            self._at, self._trailing = end, gap
            return ""
        if not (_is_han(self._left) and _is_han(right)):
            return self._take(end)
        if len(ahead) < 6 and self._cut_off(end + len(ahead)):
            return None
        if (
            self._clause_han <= 2
            or (self._clause_han <= 3 and len(IS_HAN.findall(ahead)) <= 3)
            or HEADING_LABEL.fullmatch(self._head)
            or (DATE_END.search(self._tail) and WEEKDAY.match(ahead))
            or IS_KANA_HANGUL.search(ahead)
        ):
            self._line_han = 0  # a list, a name or pre-tokenised text: no sentence so far
            return self._emit_gap(gap, end)
        return self._emit_gap("？" if ASKS.search(self._tail) else "，", end)

    def _repair(self, gap: str, right: str) -> str:
        """Rules 1 to 3, and the spaces beside full-width marks."""
        left, pieces = self._left, []
        for run in MARK_RUN.finditer(gap):
            touches_left = run.start() == 0
            pieces.append(self._full_width(run[0], left, gap[run.end() :] + right, touches_left))
            left = pieces[-1].rstrip(SPACES)[-1:] or left
        text = "".join(pieces)
        if len(text) < 2:
            return text
        in_chinese = _is_chinese(self._left) or _is_han(right)
        beside = BESIDE_FULL_WIDTH_IN_CHINESE if in_chinese else BESIDE_FULL_WIDTH
        body = text.rstrip(SPACES) if right == "\n" else text  # two spaces break a Markdown line
        rest, body = text[len(body) :], beside.sub("", body)
        for repeat, once in REPEATS:
            body = repeat.sub(once, body)
        return body + rest

    def _full_width(self, run: str, left: str, after: str, touches_left: bool) -> str:
        """Rules 1 to 3 for a run of one mark; `after` is what is known to follow it."""
        mark, following = run[0], after.lstrip(SPACES)[:1]
        chinese, before_han = _is_chinese(left), _is_han(following)
        after_latin = left.isalnum() and before_han and self._chinese
        if mark in HALF_TO_FULL and run + after[:1] != "![":  # an image in Markdown
            return HALF_TO_FULL[mark] * len(run) if chinese or after_latin else run
        if mark == "…" or run.startswith("..."):
            return "……" if chinese or after_latin or (before_han and not left) else run
        if mark == ".":
            stop = chinese and not (following.isascii() and following.isalnum())
            return "。" * len(run) if stop or (after_latin and left.isalpha()) else run
        if run == "--":
            return "——" if _is_han(left) and before_han else run
        if mark in '"“”':
            return self._quotation(mark, left, _is_han(after[:1]))
        if mark in "(（":
            self._parens.append(mark == "（" or (touches_left and chinese and _is_han(after[:1])))
            return "（" if self._parens[-1] else mark
        if mark in ")）":
            return "）" if self._parens and self._parens.pop() else mark
        return run

    def _quotation(self, mark: str, left: str, before_han: bool) -> str:
        """Rule 2: a half-width mark closes what is open, in the same width, or opens."""
        if mark == "”" or (mark == '"' and self._quote):
            closing = "”" if mark == "”" or self._quote == "“" else mark
            self._quote = ""
            return closing
        at_boundary = not left or _is_chinese(left) or left in OPENING
        self._quote = "“" if mark == "“" or (at_boundary and before_han) else mark
        return self._quote

    # Rule 5.

    def _final_mark(self) -> str:
        tail, head, last = self._tail, self._head, self._tail[-1:]
        if self._span or not self._chinese or "|" in tail or ENDED.search(tail):
            return ""
        plain_word = self._paragraph_marked and PLAIN_WORD.search(tail)
        if not (_is_han(last) or last in CLOSING or plain_word):
            return ""
        if self._line_han < 5 and not self._marked:
            return ""
        if LIST_MARKER.match(head) or HEADING.match(head):
            return ""
        if LABEL_VALUE.match(head) and not self._marked:
            return ""
        clause = re.split(f"[{PAUSES}]", tail)[-1]
        asks = ASKS.search(clause) or (clause.endswith("呢") and QUESTION_WORD.search(clause))
        return "？" if asks else "。"
