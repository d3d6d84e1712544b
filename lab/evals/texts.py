"""Held-out texts by domain, for teacher-forced measures. Nothing here calibrates a model.

chinese      sentences of UD_Chinese-GSDSimp's dev part, and CMATH's questions
english      english.txt beside this file, written for this purpose
mathematics  GSM8K: the question in the model's chat form, then the gold solution
code         HumanEval: the prompt, then the canonical solution
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from youtu_llm.errors import InvalidRequest
from youtu_llm.tools.evals.datasets import (
    CHINESE,
    CMATH,
    GSM8K,
    HUMANEVAL,
    digest,
    find,
    records,
    text,
)

ENGLISH = Path(__file__).with_name("english.txt")
CHINESE_CHARS, CHARS = 400, 1200  # of a document made of lines: about 250 tokens
SOLUTIONS = ("mathematics", "code")  # domains whose targets are gold solutions

_CALCULATION = re.compile(r"<<.*?>>")  # GSM8K's notes to a calculator


@dataclass(frozen=True, slots=True)
class Document:
    """`target` is what a model has to predict: after `question` in a chat, or after `prefix`."""

    id: str
    domain: str
    target: str
    prefix: str = ""
    question: str = ""


@dataclass(frozen=True, slots=True)
class Texts:
    documents: list[Document]
    digest: str  # names the files they are from


def held_out(place: Path, domains: Iterable[str], limit: int | None = None) -> Texts:
    """At most `limit` documents of each of `domains`, from the data sets in the folder `place`,
    domain by turns: a run that was cut short has measured some of each.

    Raises NotFound saying where a data set that is not there comes from.
    """
    made = [DOMAINS[domain](place) for domain in domains]
    rounds = itertools.zip_longest(*(documents[:limit] for _, documents in made))
    documents = [document for turn in rounds for document in turn if document is not None]
    return Texts(documents, digest(*(file for files, _ in made for file in files)))


def of_file(path: Path, limit: int | None = None) -> Texts:
    """A person's own text as the one domain `file`; a long line goes into several documents."""
    lines = [
        line[at : at + CHARS]
        for line in text(path).splitlines()
        for at in range(0, len(line), CHARS)
    ]
    documents = _packed("file", lines, CHARS)[:limit]
    if not documents:
        raise InvalidRequest(f"{path} is empty")
    return Texts(documents, digest(path))


Made = tuple[list[Path], list[Document]]


def _chinese(place: Path) -> Made:
    prose, sums = find(CHINESE, place), find(CMATH, place)
    lines = text(prose).splitlines()
    questions = [record["input"] for record in records(CMATH, sums)]
    # In turns, so that a limit keeps both.
    packs = [_packed("chinese", part, CHINESE_CHARS) for part in (lines, questions)]
    names = ("prose", "cmath")
    both = [
        (at, Document(f"{name}-{at}", "chinese", document.target))
        for name, pack in zip(names, packs, strict=True)
        for at, document in enumerate(pack)
    ]
    return [prose, sums], [document for _, document in sorted(both, key=lambda pair: pair[0])]


def _english(place: Path) -> Made:
    return [ENGLISH], _packed("english", text(ENGLISH).splitlines(), 1)


def _mathematics(place: Path) -> Made:
    path = find(GSM8K, place)
    return [path], [
        Document(
            f"gsm8k-{i}",
            "mathematics",
            target=_CALCULATION.sub("", record["answer"]),
            question=record["question"],
        )
        for i, record in enumerate(records(GSM8K, path))
    ]


def _code(place: Path) -> Made:
    path = find(HUMANEVAL, place)
    return [path], [
        Document(
            record["task_id"], "code", target=record["canonical_solution"], prefix=record["prompt"]
        )
        for record in records(HUMANEVAL, path)
    ]


DOMAINS: dict[str, Callable[[Path], Made]] = {
    "chinese": _chinese,
    "english": _english,
    "mathematics": _mathematics,
    "code": _code,
}


def _packed(domain: str, lines: Iterable[str], chars: int) -> list[Document]:
    """Documents of whole lines, each closed once it has `chars` characters."""
    packs: list[list[str]] = [[]]
    for line in filter(None, map(str.strip, lines)):
        packs[-1].append(line)
        if sum(map(len, packs[-1])) >= chars:
            packs.append([])
    return [
        Document(f"{domain}-{at}", domain, "\n".join(pack)) for at, pack in enumerate(packs) if pack
    ]
