"""Measures the punctuation repair: `python -m lab.evals.punctuation WHAT`.

corpus --file F   precision, recall and F1 a mark, on punctuated sentences, one a line
kinds             harm by kind: texts that must stay as they are (punctuation_kinds.txt)
questions --file F  final marks of questions whose ？ is cut off, JSON lines with "input"
fuzz --count N    N random soups of tokens against what must hold for every text
speed [--file F]  characters a second, microseconds a delta, growth with the input
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from youtu_llm.postprocess import PunctuationStream, punctuate_postprocess

FINAL_MARKS = "。？！"
MIB = 1 << 20
KINDS = Path(__file__).with_name("punctuation_kinds.txt")

# What meets in an answer: Chinese, Latin, numbers, every mark the rules name, span openers.
WORDS = (
    "我 你们 今天天气很好 去公园玩 吗 什么 呢 第一章 图1 星期日 2026年11月22日 Python a 3.14 1,000"
)
ASCII = (
    "v1.2.3 08:05 2026-11-22 a.b@c.cn https://a.cn/b,c?d=1 /etc/a.yaml f(a, :) :D ![ 1. - * ** # |"
)
MARKS = (
    ", ; : ! ? . ， ； ： ！ ？ 。 、 … ... 。。 -- - —— \" ' “ ” ‘ ’ ( ) （ ） 《 》 「 」 【 】"
)
SPANS = (
    r"` `` ``` ~~~ $ $$ \ \( \) \[ \] < > <b> </b> <think> </think> <tool_call> </tool_call> {} [ ]"
)
OTHERS = "の カ 한 😀 ＡＢ é \u200b \ud800"
OPENINGS = ['<a title="', '{"a": "', '"城市": "', "- ", "# ", "| ", "1. ", "（1）", "    ", "\t"]
LAYOUT = [*[" "] * 6, "  ", "\u3000", *["\n"] * 3, "\n\n", "\r\n"]
TOKENS = " ".join((WORDS, ASCII, MARKS, SPANS, OTHERS)).split(" ") + OPENINGS + LAYOUT


@dataclass(frozen=True)
class Score:
    hits: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        return self.hits / max(1, self.hits + self.wrong)

    @property
    def recall(self) -> float:
        return self.hits / max(1, self.hits + self.missed)

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(1, 2 * self.hits + self.wrong + self.missed)

    def __str__(self) -> str:
        return (
            f"P {self.precision:.4f}  R {self.recall:.4f}  F1 {self.f1:.4f}"
            f"  ({self.hits} right, {self.wrong} wrong, {self.missed} missed)"
        )


@dataclass(frozen=True)
class Corpus:
    """Shares of 1, and scores a mark."""

    lines: int
    sentences: int  # the lines that end in a final mark
    unchanged: float
    unchanged_sentences: float
    final_right: float
    commas: Score
    half_width: dict[str, Score]


def content(text: str) -> str:
    """`text` without white space and punctuation."""
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c)[0] != "P")


def stream(pieces: list[str], finish_reason: str) -> str:
    machine = PunctuationStream()
    return "".join(machine.push(piece) for piece in pieces) + machine.finish(finish_reason)


def cut(text: str, rng: random.Random, longest: int = 8) -> list[str]:
    pieces = []
    while text:
        size = rng.randint(1, longest)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def soups(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choices(TOKENS, k=rng.randint(1, 32)))


def violations(text: str, rng: random.Random) -> list[str]:
    """Which of the invariants `text` breaks: none, one hopes."""
    failures = PunctuationStream.failures
    reason = rng.choice(("stop", "stop", "length"))
    repaired = punctuate_postprocess(text, finish_reason=reason)
    broken = {
        "exception": PunctuationStream.failures != failures,
        "content change": content(repaired) != content(text),
        "chunk variance": any(
            stream(pieces, reason) != repaired for pieces in (list(text), cut(text, rng))
        ),
        "not idempotent": punctuate_postprocess(repaired, finish_reason=reason) != repaired,
    }
    return [name for name, is_broken in broken.items() if is_broken]


def fuzz(count: int, seed: int) -> int:
    """Prints how many soups break an invariant, with the shortest of each kind; returns the sum."""
    rng, found = random.Random(seed), Counter[str]()
    examples: dict[str, str] = {}
    for soup in soups(count, seed):
        for name in violations(soup, rng):
            found[name] += 1
            examples[name] = min(examples.get(name, soup), soup, key=len)
    for name in ("exception", "content change", "chunk variance", "not idempotent"):
        print(f"{name:15} {found[name]:6} of {count}", repr(examples.get(name, "")))
    return sum(found.values())


def marks_by_place(text: str, marks: str) -> set[tuple[int, str]]:
    """(how many content characters came before it, mark) of each of `marks` in `text`."""
    places, before = set(), 0
    for char in text:
        if char in marks:
            places.add((before, char))
        before += char.isalnum()
    return places


def without_commas(line: str) -> str:
    """Every comma a space, no final stop: what a model without punctuation writes."""
    return line[:-1].replace("，", " ")


def half_width(line: str) -> str:
    return line.translate(str.maketrans("，；：！？。（）“”", ',;:!?.()""'))


def recovery(lines: list[str], damage: Callable[[str], str], marks: str) -> dict[str, Score]:
    """How well the repair brings back, of each mark, what `damage` took from `lines`."""
    counts = {mark: Counter[str]() for mark in marks}
    for line in lines:
        damaged = damage(line)
        left = marks_by_place(damaged, marks)
        truth = marks_by_place(line, marks) - left
        told = marks_by_place(punctuate_postprocess(damaged), marks) - left
        for name, places in (
            ("hits", truth & told),
            ("wrong", told - truth),
            ("missed", truth - told),
        ):
            for _, mark in places:
                counts[mark][name] += 1
    return {mark: Score(**count) for mark, count in counts.items() if count}


def corpus(path: Path) -> Corpus:
    """The specification's corpus figures, on a file of punctuated sentences, one a line."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    sentences = [line for line in lines if line[-1] in FINAL_MARKS]
    final = [punctuate_postprocess(without_commas(line))[-1] == line[-1] for line in sentences]
    return Corpus(
        lines=len(lines),
        sentences=len(sentences),
        unchanged=sum(punctuate_postprocess(line) == line for line in lines) / len(lines),
        unchanged_sentences=sum(punctuate_postprocess(s) == s for s in sentences) / len(sentences),
        final_right=sum(final) / len(final),
        commas=recovery([s[:-1] + "。" for s in sentences], without_commas, "，")["，"],
        half_width=recovery(sentences, half_width, "，；：！？。（）“”"),
    )


def print_corpus(path: Path) -> None:
    got = corpus(path)
    print(
        f"unchanged as it is: {got.unchanged:.4f} of {got.lines} lines,"
        f" {got.unchanged_sentences:.4f} of the {got.sentences} that end in a final mark"
    )
    print(f"final mark right: {got.final_right:.4f}")
    print(f"commas from spaces: {got.commas}")
    for mark, score in got.half_width.items():
        print(f"{mark} from half-width: {score}")


Repair = Callable[[list[str]], list[str]]


def repair_all(texts: list[str]) -> list[str]:
    return [punctuate_postprocess(text) for text in texts]


def kinds() -> dict[str, list[str]]:
    """Kind, and half of its texts ("tuned" or "held out") -> texts that must stay unchanged."""
    found: dict[str, list[str]] = {}
    for line in KINDS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and line.endswith((", tuned", ", held out")):
            texts = found[line[2:]] = []
        else:
            texts.append(line.replace("⏎", "\n"))
    return found


def harmed(texts: list[str], repair: Repair = repair_all) -> list[str]:
    return [
        text
        for text, repaired in zip(texts, repair(texts), strict=True)
        if unspaced(repaired) != unspaced(text)
    ]


def unspaced(text: str) -> str:
    """Without the spaces between Han and Latin, which are house style: other tools put them."""
    return re.sub("(?<=[一-鿿]) (?=[!-~])|(?<=[!-~]) (?=[一-鿿])", "", text)


def repair_by(command: str) -> Repair:
    """A repair by another tool: it reads a JSON list of texts and writes one."""

    def repair(texts: list[str]) -> list[str]:
        done = subprocess.run(
            command, shell=True, input=json.dumps(texts), capture_output=True, text=True, check=True
        )
        return list(json.loads(done.stdout))

    return repair


def print_kinds(repair: Repair, cases: list[Path]) -> None:
    """Harm by kind; of the files of cases, how many come out as expected, and harm too."""
    for kind, texts in kinds().items():
        changed = harmed(texts, repair)
        print(f"{kind}: {len(changed)} of {len(texts)} changed", *map(repr, changed[:9]))
    for path in cases:
        rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["finish_reason"] == "stop"]
        keep = [row["input"] for row in rows if row["input"] == row["expected"]]
        mend = [row for row in rows if row["input"] != row["expected"]]
        repaired = repair([row["input"] for row in mend])
        right = sum(
            unspaced(text) == unspaced(row["expected"])
            for text, row in zip(repaired, mend, strict=True)
        )
        print(
            f"{path.name}: {right} of {len(mend)} repaired,"
            f" {len(harmed(keep, repair))} of {len(keep)} harmed"
        )


def final_marks(path: Path) -> Counter[str]:
    """How often each final mark comes ("": none) when the ？ of a question is cut off."""
    rows = path.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["input"].rstrip() for row in rows]
    repaired = [punctuate_postprocess(text[:-1]) for text in texts if text[-1] in "？?"]
    return Counter(text[-1] if text[-1] in FINAL_MARKS else "" for text in repaired)


def print_questions(path: Path) -> None:
    marks = final_marks(path)
    for mark, count in marks.most_common():
        print(f"{mark or 'none'}: {count / marks.total():.4f} of {marks.total()} questions")


def held(pieces: list[str]) -> list[int]:
    """After each piece, how many characters the machine holds back."""
    machine, waiting = PunctuationStream(), []
    given = sent = 0
    for piece in pieces:
        given += len(piece)
        sent += len(machine.push(piece))
        waiting.append(given - sent)
    return waiting


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of `repeats` runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def seconds(text: str, repeats: int = 1) -> float:
    return best_of(repeats, partial(punctuate_postprocess, text))


def delta_times(pieces: list[str]) -> list[float]:
    """CPU microseconds of each push."""
    machine, times = PunctuationStream(), []
    for piece in pieces:
        start = time.process_time()
        machine.push(piece)
        times.append(1e6 * (time.process_time() - start))
    return times


def print_speed(path: Path | None) -> None:
    text = path.read_text(encoding="utf-8") if path else "今天天气很好，我们去玩。\n" * 1000
    for name, sample in (("as it is", text), ("half-width", half_width(text))):
        print(f"{name}: {len(sample) / seconds(sample, 5):,.0f} characters a second")
        runs = [delta_times(cut(sample, random.Random(0), longest=4)) for _ in range(5)]
        times = [min(same) for same in zip(*runs, strict=True)]  # a busy machine is not our cost
        print(
            f"  a delta: p50 {percentile(times, 0.5):.1f} us, p99 {percentile(times, 0.99):.1f} us"
        )
    waiting = [float(n) for line in text.split("\n") for n in held(list(line))]
    print(f"held back: p99 {percentile(waiting, 0.99):.0f} characters, most {max(waiting):.0f}")
    chars = sorted(set("".join(TOKENS)))
    slowest = sorted(((seconds(f"今{char * MIB}"), char) for char in chars), reverse=True)[:5]
    for once, char in slowest:  # of all characters, the slowest five
        growth = seconds(f"今{char * 2 * MIB}") / once
        print(f"1 MiB of {char!r}: {once:.2f} s, twice as much takes {growth:.2f} times as long")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("corpus", "kinds", "questions", "fuzz", "speed"))
    parser.add_argument("--file", type=Path, help="punctuated sentences, one a line")
    parser.add_argument("--by", help="kinds: a command instead of ours, JSON list in and out")
    parser.add_argument("--cases", type=Path, nargs="*", default=[], help="kinds: files of cases")
    parser.add_argument("--count", type=int, default=100_000, help="soups (default: 100000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "fuzz":
        return 1 if fuzz(options.count, options.seed) else 0
    if options.what == "speed":
        print_speed(options.file)
    elif options.what == "kinds":
        print_kinds(repair_by(options.by) if options.by else repair_all, options.cases)
    elif options.file is None:
        parser.error(f"{options.what} needs --file")
    elif options.what == "questions":
        print_questions(options.file)
    else:
        print_corpus(options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
