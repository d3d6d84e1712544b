"""What a model's answer says: its final number, its code."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

# A dash between operands (8-3) is no sign, a digit behind a letter (cm2, x1) no number.
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)\]}%])-)?(?<![0-9A-Za-z_.])(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
    r"(?:\s*/\s*\d+(?:\.\d+)?)?(?:\s*%)?"
)
_POWER = re.compile(r"(?<=[A-Za-z}\u4e00-\u9fff])\s*\^\s*\{?\d\}?|[²³]")  # of a unit
_FRAC = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}|\\[dt]?frac\s*(\d)\s*(\d)")
_MIXED = re.compile(r"(\d+)\s*(?:又|\s)\s*(\d+/\d+)")  # 1又1/2; 1 1/2
_SPOKEN = re.compile(r"(\d+)分之(\d+)")  # 4分之3 is 3/4
_SPOKEN_PERCENT = re.compile(r"百分之(\d+(?:\.\d+)?)")
_GROUPED = re.compile(r"(?<=\d)(?:\\[,!;: ]|\{,\}|,\s?)(?=\d{3}(?!\d))")
_BOXED = re.compile(r"\\boxed\s*\{")
_MARKED = re.compile(r"####([^\n]*)")
_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


PERCENT = Fraction(1, 100)


def final_number(text: str, *, percent: Fraction = PERCENT) -> Fraction | None:
    """The answer in a worked solution: what is boxed last, or else stands behind the last
    `####`, or else the last number there is; `percent` is what its sign stands for. None
    without any.
    """
    boxes = _boxed(text)
    for part in (*boxes[-1:], *_MARKED.findall(text)[-1:]):
        numbers = _numbers(part, percent)
        if numbers:  # of `\\boxed{x = 3}` the last one, as of a text
            return numbers[-1]
    numbers = _numbers(text, percent)
    return numbers[-1] if numbers else None


def _boxed(text: str) -> list[str]:
    """The contents of every \\boxed{...}, with the braces inside them matched."""
    found = []
    for match in _BOXED.finditer(text):
        depth, start = 1, match.end()
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                found.append(text[start:at])
                break
    return found


def _numbers(text: str, percent: Fraction) -> list[Fraction]:
    """Every number, exactly: 1,450,000; 0.5; 3/4; \\frac{3}{4}; 1又1/2; 25% (which is 1/4)."""
    text = unicodedata.normalize("NFKC", _POWER.sub("", text))
    text = text.replace("\u2044", "/").replace("\u2212", "-")
    text = text.replace("\\%", "%").replace("\\$", "").replace("$", "")
    text = _FRAC.sub(lambda m: f" {m[1] or m[3]}/{m[2] or m[4]} ", text)
    text = _SPOKEN_PERCENT.sub(r"\1%", text)
    text = _SPOKEN.sub(r"\2/\1", text)
    text = _GROUPED.sub("", text)
    text = _MIXED.sub(_add_mixed, text)
    values = (_value(number, percent) for number in _NUMBER.findall(text))
    return [value for value in values if value is not None]


def _add_mixed(match: re.Match[str]) -> str:
    numerator, denominator = map(int, match[2].split("/"))
    return f"{int(match[1]) * denominator + numerator}/{denominator}"


def _value(number: str, percent: Fraction) -> Fraction | None:
    number = number.replace(",", "").replace(" ", "")
    unit, number = percent if number.endswith("%") else 1, number.rstrip("%")
    top, _, bottom = number.partition("/")
    below = Fraction(bottom or 1)
    return Fraction(top) / below * unit if below else None


def code(text: str, entry_point: str) -> str:
    """The program in an answer: the first fenced block that defines `entry_point`, or else the
    first block, or else all of it.
    """
    blocks = [block for block in _FENCE.findall(text) if block.strip()]
    defining = [block for block in blocks if defines(block, entry_point)]
    return str((defining or blocks or [text])[0])


def defines(program: str, name: str) -> bool:
    return re.search(rf"^def {re.escape(name)}\b", program, re.MULTILINE) is not None
