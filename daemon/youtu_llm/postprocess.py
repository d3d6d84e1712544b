"""Chinese punctuation repair: precision first, from cues only (norm: GB/T 15834-2011).

A gap (a run of spaces and marks, see spans.py) is repaired as a whole, from the character on
its left (L), the gap and the character on its right (R). The words and patterns that the rules
look for are in punctuation_table.py; the rules are numbered as in the specification.
Repairing a whole text is one push and one finish of the same machine, so streamed and whole
answers cannot differ.

Structured output (a JSON schema, tools) must not come here at all: that is the caller's part.
"""

from __future__ import annotations

import re
from collections import deque
from typing import ClassVar, Literal

from youtu_llm import punctuation_table as table
from youtu_llm.spans import (
    CLOSING,
    GAP,
    GAP_CHARS,
    IS_HAN,
    IS_KANA_HANGUL,
    MAX_GAP,
    OPENING,
    PAUSES,
    REST_OF_GAP,
    REST_OF_LINE,
    SPACE_RUN,
    SPACES,
    SpanReader,
    is_han,
)

IS_FULL_WIDTH = re.compile(f"[{PAUSES}{OPENING}{CLOSING}—]+")
OPTIONS = frozenset("ABCDEFGH①②③④⑤⑥")
Mode = Literal["conservative"]


def _is_chinese(left: str) -> bool:
    """Whether L makes the mark after it Chinese: Han, or a mark that closes something."""
    return is_han(left) or (left != "" and left in PAUSES + "—" + CLOSING)


def _asks(clause: str) -> str:
    """The mark of a last clause that has a question cue: "？", "" if unsure, "。" if none."""
    if table.ASKS.search(clause):
        return "？"
    word = table.QUESTION_WORD.search(clause)
    if table.HOW_TO.match(clause):
        return ""
    if not word or table.NO_QUESTION.search(clause) or table.EMBEDS.search(clause[: word.start()]):
        return "。"
    sure = table.SURE_QUESTION.search(clause) and not table.MAY_EMBED.search(clause[: word.start()])
    return "？" if sure else ""


def _is_english(text: str) -> bool:
    """Whether the last sentence of `text` is mostly Latin words, and not Chinese that has some."""
    sentence = table.SENTENCE_END.split(text)[-1].lstrip(SPACES + '"“(')
    num_latin, num_han = len(table.LATIN_WORD.findall(sentence)), len(IS_HAN.findall(sentence))
    cues = bool(table.ENGLISH_WORD.search(sentence)) + bool(table.LATIN_WORD.match(sentence))
    return num_latin >= 2 and num_han < (0, 2, 4)[cues] * num_latin


def punctuate_postprocess(
    text: str, *, finish_reason: str = "stop", mode: Mode = "conservative"
) -> str:
    """`text` with its Chinese punctuation repaired, in time linear in its length.

    The final stop comes for `finish_reason` "stop" only: give another word when a stop string
    ended the answer. If something inside fails, `text` comes back as it was and
    `PunctuationStream.failures` rises. Raises ValueError for an unknown mode.
    """
    stream = PunctuationStream(mode=mode)
    stream._buffer = text
    repaired = stream.finish(finish_reason)
    return text if stream.failed else repaired


class PunctuationStream(SpanReader):
    """The same for a text that comes in pieces: `push` each of them, then `finish` once.

    Held back is at most: a gap and the character after it; spaces after Han with 6 characters
    of the next segment (if it is shorter, the spaces and the character after it too); a run of
    backticks; a quote at a line's start, up to 24 characters.
    Kana or hangul protect the rest of their line: what was sent before them stays as sent.
    """

    failures: ClassVar[int] = 0  # of all streams of this process, for the metrics

    def __init__(self, *, mode: Mode = "conservative") -> None:
        if mode != "conservative":
            raise ValueError(f"punctuation mode {mode!r} is unknown; there is only 'conservative'")
        self.failed = False
        self._natural_end = False  # the model ended its answer itself
        self._paragraph_marked = False  # Chinese marks came in this paragraph
        self._trailing = ""  # spaces that end the text
        self._csv = False  # the line before was of a table of values with commas
        self._bare = False  # the line before was Han without marks: verse, a list, a heading
        self._line_han = self._clause_han = 0
        super().__init__()

    def _new_line(self) -> None:
        super()._new_line()
        self._marked = False  # a pause other than a colon came
        self._line_han = 0  # Han since the last space that was left between Han
        self._clause_han = 0  # Han since the last space or pause
        self._kept_space = False  # a space between Han was left on this line
        self._english = False  # the line opens with a quotation in an English sentence
        self._quote = ""  # the quotation mark that is open
        self._typed_quote = False  # it came as a full-width one
        self._inner_quote = False  # a half-width one is open inside it
        self._parens: deque[str] = deque(maxlen=16)  # the open ones: （ ( or table.CALL

    def push(self, delta: str) -> str:
        """Takes any piece of text; returns what can be sent now."""
        self._buffer += delta
        return self._advance()

    def finish(self, finish_reason: str = "stop") -> str:
        """Flushes what is held back, and adds the final mark if the text wants one."""
        self._final, self._natural_end = True, finish_reason == "stop"
        flushed = self._advance()
        mark = self._final_mark() if self._natural_end and not self.failed else ""
        return flushed + (mark or self._trailing)

    def _advance(self) -> str:
        sent = ""
        try:
            if not self.failed:
                sent = self._read_on()
        except Exception:  # the answer must arrive, repaired or not
            PunctuationStream.failures += 1
            self.failed = True
        if self.failed:
            sent = "".join(self._pieces) + self._buffer[self._at :]
            self._pieces, self._at = [], len(self._buffer)
        return sent

    def _word(self, num_han: int) -> None:
        super()._word(num_han)
        self._line_han += num_han
        self._clause_han += num_han

    def _newline(self, newlines: str) -> str:
        if len(newlines) > 1 or not self._tail.strip():
            self._paragraph_marked = self._csv = self._bare = False
        else:
            self._bare = self._chinese and not self._marked and self._left not in ":："
        return super()._newline(newlines)

    def _protects_line(self, start: str) -> bool:
        if table.ENGLISH_QUOTE.match(start):
            self._quote, self._english = '"', True
        return self._csv or super()._protects_line(start)

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
        if self._chinese and (
            gap in table.FULL_MARKS or (gap == "。" and not self._asked_politely())
        ):  # most gaps: right as they are
            return self._emit_gap(gap, end)
        right, ahead = self._buffer[end : end + 1], self._read(table.NEXT_SEGMENT, end)
        if SPACE_RUN.fullmatch(gap):
            return self._spaces(gap, right, ahead, end)
        if self._cut_off(end + 1) and table.SMILE.search(gap + ahead):
            return None
        if not (self._chinese or is_han(right)) or IS_KANA_HANGUL.match(right):
            return self._take(end)
        if self._is_code(gap, right):
            return self._protect(REST_OF_LINE, end)
        if table.LIST_MARKER.fullmatch(self._head + gap.rstrip(SPACES)):
            return self._take(end)
        smile = table.SMILE.search(gap + ahead[:2])
        if smile:
            return self._emit_gap(
                self._repair(gap[: smile.start()], ":") + gap[smile.start() :], end
            )
        return self._emit_gap(self._repair(gap, right), end)

    def _emit_gap(self, text: str, end: int) -> str:
        pauses = set(text).intersection(PAUSES)
        self._paragraph_marked = self._paragraph_marked or bool(pauses)
        self._marked = self._marked or bool(pauses - {"："})
        if table.CLAUSE_END.search(text):
            self._clause_han = 0
        return self._emit(text, end)

    def _is_code(self, gap: str, right: str) -> bool:
        """Whether the line is code without a fence, or a row of values with commas."""
        if gap == "," and (
            table.CSV_HEAD.match(self._head)
            or (right.isdigit() and table.CSV_ROW.match(self._head))
        ):
            self._csv = True
        if IS_FULL_WIDTH.fullmatch(gap):
            return False
        return self._csv or bool(table.CODE_LINE.match(self._head + gap))

    def _is_english(self, gap: str, right: str) -> bool:
        """Whether the sentence, or what the open quotes hold of it, is English so far."""
        if (is_han(right) and gap[-1] not in SPACES) or not table.LATIN.search(self._tail):
            return self._english
        if self._english or (re.match("[a-z]", right) and table.LATIN_HAN.match(self._tail)):
            return True
        quoted = self._tail.rpartition(self._quote)[2] if self._quote else ""
        return _is_english(self._tail) or _is_english(quoted)

    # Rule 4.

    def _spaces(self, gap: str, right: str, ahead: str, end: int) -> str | None:
        if not right:  # the text ends: a final mark would take their place
            self._at, self._trailing = end, gap
            return ""
        if not (is_han(self._left) and is_han(right)):
            return self._take(end)
        after = "-"
        if len(ahead) < 6:
            then = self._read(table.FEW_SPACES, end + len(ahead))
            stop = end + len(ahead) + len(then)
            if self._cut_off(stop):
                return None
            after = self._buffer[stop : stop + 1]
            if then and after not in ("", "\n") and after not in GAP_CHARS:
                after = " "
        if self._keeps_spaces(gap, ahead, after):
            self._line_han = 0  # a list, a name or pre-tokenised text: no sentence so far
            self._kept_space = True
            return self._emit_gap(gap, end)
        return self._emit_gap("？" if table.ASKS.search(self._tail) else "，", end)

    def _keeps_spaces(self, gap: str, ahead: str, after: str) -> bool:
        """`after`: what ends the segment `ahead`: "" at the text's end, "-" if out of sight."""
        # " " only if another segment follows: spaces before a mark will go.
        num_left, num_right = self._clause_han, len(IS_HAN.findall(ahead))
        segment = table.CLAUSE_END.split(self._tail)[-1]
        is_form = table.LABEL_VALUE.match(self._head) and not table.ANSWER.match(self._head)
        first = not self._marked
        no_sentence = not table.SENTENCE_WORD.search(segment)
        neither = no_sentence and not table.SENTENCE_WORD.search(ahead)
        in_list, ends = after == " ", after in ("", "\n")
        reasons = (
            num_left <= 2 or (num_left <= 3 and num_right <= 3),  # names, words
            table.HEADING_LABEL.fullmatch(self._head) is not None,
            first and table.HEADING.match(self._head),  # a title, maybe in two halves
            first and no_sentence and gap == "\u3000" and num_left >= 7,
            first and neither and self._kept_space and num_left <= 5,
            table.DATE_END.search(self._tail) and table.DATE_AHEAD.match(ahead),
            is_form and first and (len(gap) > 1 or after in ("：", ":")),
            # Words of equal length.
            in_list and num_left == num_right == len(ahead) and not table.TOLD.search(segment),
            in_list and neither and num_left <= 6,
            in_list and num_right <= 2 and not table.CONNECTIVE.match(ahead),  # pre-tokenised
            ends and first and neither and num_left <= 8 and num_right <= 3,
            ends and first and neither and num_left <= 6 and num_right <= 5,
            self._kept_space and ends and num_left == num_right,
            # Names of one kind: schools, provinces.
            first and neither and ahead[-1] == self._left and num_left <= 7,
            ends and num_right <= 3 and table.SIGNED.search(segment),
            IS_KANA_HANGUL.search(ahead),
        )
        return any(reasons) or self._is_english(gap, "")

    # Rules 1 to 3, and the spaces beside full-width marks.

    def _repair(self, gap: str, right: str) -> str:
        if not gap or (table.LEADER.search(gap) and right.isdigit()):
            return gap
        if not self._left and gap.startswith("——"):  # an attribution
            return gap
        left, pieces = self._left, []
        is_english = self._is_english(gap, right)
        for run in table.MARK_RUN.finditer(gap):
            touches_left = run.start() == 0
            after = gap[run.end() :] + right
            if is_english and run[0][0] in ",;:!?.":
                pieces.append(run[0])
            else:
                pieces.append(self._full_width(run[0], left, after, touches_left))
            left = pieces[-1].rstrip(SPACES)[-1:] or left
        text = "".join(pieces)
        if text[:1] == "。" and self._asked_politely():
            text = "？" + text[1:]
        if len(text) < 2:
            return text
        in_chinese = _is_chinese(self._left) or is_han(right)
        beside = table.BESIDE_FULL_WIDTH_IN_CHINESE if in_chinese else table.BESIDE_FULL_WIDTH
        # Two spaces break a Markdown line; spaces that end a form are its blank.
        at_end = right == "\n" or (not right and text.rstrip(SPACES)[-1] in "：:（(")
        body = text.rstrip(SPACES) if at_end else text
        rest = text[len(body) :]
        if self._lays_out(text, right):
            return text
        body = beside.sub(lambda spaces: spaces["blank"] or "", body)
        for repeat, once in table.REPEATS:
            body = repeat.sub(once, body)
        return body + rest

    def _lays_out(self, gap: str, right: str) -> bool:
        """Whether the spaces of a gap keep apart a label, a title or an option and what follows."""
        return bool(
            table.EMPTY_BRACKET.search(gap)
            or (gap[0] in SPACES and table.HEADING_LABEL.fullmatch(self._head))
            or (self._head.startswith(("《", "【")) and gap[0] in "》】" and not self._marked)
            or (table.WIDE_AFTER_BRACKET.fullmatch(gap) and not self._marked)
            or (
                table.LABEL_VALUE.match(self._head)
                and gap[0] in SPACES
                and gap.lstrip(SPACES) in ("（", "(")
                and right.isalnum()
                and not is_han(right)
            )
            or (
                table.LIST_MARKER.match(self._head)
                and (gap.lstrip(SPACES) in ("（", "(") or (gap[-1] in SPACES and right in OPTIONS))
            )
        )

    def _asked_politely(self) -> bool:
        if self._left not in ("吗", "嗎") and "请问" not in self._tail:
            return False
        clause = re.split(f"[{PAUSES}]", self._tail)[-1]
        asked = re.split("[。！？]", self._tail)[-1].rpartition("请问")
        return bool(
            table.POLITE.search(clause) or (asked[1] and table.QUESTION_WORD.search(asked[2]))
        )

    def _full_width(self, run: str, left: str, after: str, touches_left: bool) -> str:
        """Rules 1 to 3 for a run of one mark; `after` is what is known to follow it."""
        mark, following = run[0], after.lstrip(SPACES)[:1]
        if mark in "(（":
            return self._open_paren(mark, left, after, touches_left)
        if mark in ")）":
            return "）" if self._parens and self._parens.pop() == "（" else mark
        if table.CALL in self._parens:
            return run
        chinese, before_han = _is_chinese(left), is_han(following)
        chinese = chinese or (before_han and table.FULL_WIDTH_FORM.match(left) is not None)
        after_word = self._chinese and before_han and table.AFTER_WORD.match(left) is not None
        ends_line = self._ends_line(after)
        if mark in table.HALF_TO_FULL:
            stays = (
                after[:1] == "="
                or run + after[:1] == "!["  # an image in Markdown
                or (mark == ";" and table.ENTITY.search(self._tail))
                or (mark == ":" and len(run) > 1 and not chinese)
            )
            if stays:
                return run
            if mark == "," and left in "%‰℃℉" and self._chinese and after[:1].isalnum():
                after_word = True
            if mark == "!":
                after_word = after_word and bool(
                    table.TWO_LETTERS.search(self._tail) or ord(left) > 255
                )
            ended = ends_line and self._marked and mark == "?" and left.isalnum()
            return table.HALF_TO_FULL[mark] * len(run) if chinese or after_word or ended else run
        if mark == "…" or run.startswith("..."):
            after_latin = after_word and left.isalnum()
            return "……" if chinese or after_latin or (before_han and not left) else run
        if mark == ".":
            return "。" * len(run) if self._is_stop(run, left, following, ends_line) else run
        if run == "--":
            return "——" if is_han(left) and before_han else run
        if mark in '"“”':
            return self._quotation(mark, left, after)
        return run

    def _ends_line(self, after: str) -> bool:
        return after[:1] == "\n" or (not after.strip(SPACES) and self._natural_end)

    def _is_stop(self, run: str, left: str, following: str, ends_line: bool) -> bool:
        """Whether a dot ends a sentence: it may be of a name, a number or an abbreviation."""
        if _is_chinese(left):
            is_name = left in table.IN_FOREIGN_NAMES and following in table.IN_FOREIGN_NAMES
            return not is_name and not (following.isascii() and following.isalnum())
        chinese = self._chinese and (self._marked or len(IS_HAN.findall(self._tail)) >= 5)
        if not (ends_line and chinese and run == "."):
            return False
        return left in ")]" or bool(
            table.ENDS_IN_VALUE.search(self._tail) and not table.ABBREVIATION.search(self._tail)
        )

    # Rule 2.

    def _open_paren(self, mark: str, left: str, after: str, touches_left: bool) -> str:
        if mark == "(" and touches_left and re.match("[A-Za-z_]", left):
            self._parens.append(table.CALL)
            return mark
        full = mark == "（" or (touches_left and _is_chinese(left) and is_han(after[:1]))
        self._parens.append("（" if full else "(")
        return self._parens[-1]

    def _quotation(self, mark: str, left: str, after: str) -> str:
        """A half-width mark closes what is open, in the same width, or opens."""
        if mark == '"' and self._quote == "“" and self._typed_quote:
            opens = not self._inner_quote and (is_han(after[:1]) or after[:1].isalnum())
            if opens or self._inner_quote:
                self._inner_quote = opens
                return mark
        if mark == "”" or (mark == '"' and self._quote):
            closing = "”" if mark == "”" or self._quote == "“" else mark
            self._quote, self._inner_quote = "", False
            return closing
        at_boundary = not left or _is_chinese(left) or left in OPENING
        self._typed_quote = mark == "“"
        self._quote = "“" if mark == "“" or (at_boundary and is_han(after[:1])) else mark
        return self._quote

    # Rule 5.

    def _final_mark(self) -> str:
        tail, last = self._tail, self._tail[-1:]
        if self._span or not self._chinese or "|" in tail or table.ENDED.search(tail):
            return ""
        if table.HAS_BLANK.search(tail + self._trailing):
            return ""
        ends_in_value = (self._marked and table.ENDS_IN_VALUE.search(tail)) or (
            self._paragraph_marked and table.PLAIN_WORD.search(tail)
        )
        if not (is_han(last) or last in CLOSING or ends_in_value):
            return ""
        if self._is_no_sentence() or self._is_english(" ", ""):
            return ""
        clause = re.split(f"[{PAUSES.replace('、', '')}]", tail)[-1]
        asks = "？" if self._asked_politely() else _asks(clause.rstrip("的呀啊"))
        only_lists = not self._marked or not table.STRONG_MARK.search(tail)
        if asks == "。" and only_lists and not self._is_sentence():
            return ""
        if asks == "？" and last in "）)":
            return ""
        return asks

    def _is_no_sentence(self) -> bool:
        """A heading, a list item, a remark, an attribution, a date, a bare label and value."""
        head = self._head
        is_label = (
            table.LABEL_VALUE.match(head)
            and not table.ANSWER.match(head)
            and not (self._marked and table.SAYS_SO.search(self._tail))
        )
        return bool(
            (not self._marked and self._line_han < (8 if self._kept_space else 5))
            or table.LIST_MARKER.match(head)
            or table.HEADING.match(head)
            or is_label
            or (table.REMARK.fullmatch(self._tail) and not self._marked)
            or (head[0] in "（(【" and self._tail[-1] in "）)】")
            or head.startswith(("—", "--"))
            or (not self._marked and "·" in head)
            or ("=" in head and not re.search("[，。；]", self._tail))
            or table.DATE_LINE.match(head)
        )

    def _is_sentence(self) -> bool:
        """Whether a line without inner marks has the words of a sentence, not of a title."""
        if table.ANSWER.match(self._head):
            return True
        if self._bare:  # so had the line before: verse, names, headings
            return False
        said = self._tail.rpartition("：")[2]
        looks_so = self._line_han >= table.LONG_LINE or table.SENTENCE_WORD.search(said)
        return bool(looks_so) and not (table.TITLE_END.search(said) and not table.VERB.search(said))
