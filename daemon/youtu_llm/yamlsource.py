"""YAML -> values and the file, line and column of each, with every error in one pass.

Only what a settings file needs is YAML here: mappings, lists and scalars. Anchors, aliases,
tags, several documents, duplicate keys and keys that are not text are errors. Scalars follow
YAML 1.2's core schema, so `no` and `on` are words and `010` is ten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 128 * 1024  # the longest system prompt in Chinese is 48 KiB
MAX_DEPTH = 8

KeyPath = tuple[str | int, ...]

_INT = re.compile(r"[-+]?[0-9]{1,19}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    word: value
    for words, value in (
        (("", "~", "null", "Null", "NULL"), None),
        (("true", "True", "TRUE"), True),
        (("false", "False", "FALSE"), False),
    )
    for word in words
}


@dataclass(frozen=True, slots=True)
class Place:
    """A piece of a file. Line and column count from 1, start and end are text offsets."""

    file: str
    line: int
    column: int
    start: int = 0
    end: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One error: its place, the dotted key, what is wrong."""

    where: Place | str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.where), self.key, self.message) if part)

    @property
    def order(self) -> tuple[int, int]:
        """Sorts the problems of one file."""
        return (self.where.line, self.where.column) if isinstance(self.where, Place) else (0, 0)


@dataclass(slots=True)
class Document:
    """The content of a file. With problems, `values` holds what could still be read."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)  # of the values
    problems: list[Problem] = field(default_factory=list)


def read(path: Path) -> Document:
    """Parse a file. A file that cannot be read has that as its problem."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        return Document(str(path), problems=[Problem(str(path), "", message)])
    return parse(data, str(path))


def parse(data: bytes, file: str) -> Document:
    """Read one YAML file. Never raises on its content: errors are in `problems`.

    Lists come out as tuples. An empty file is an empty mapping.
    """
    document = Document(file)
    if len(data) > MAX_BYTES:
        message = f"a settings file may have at most {MAX_BYTES // 1024} KiB"
        document.problems.append(Problem(Place(file, 1, 1), "", message))
        return document
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        message = f"not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        document.problems.append(Problem(_end_of(file, before), "", message))
        return document
    _Reader(document, text).read()
    return document


def resolve(word: str) -> str | int | float | bool | None:
    """The value of a plain (unquoted) scalar."""
    if word in _WORDS:
        return _WORDS[word]
    if _INT.fullmatch(word):
        return int(word)
    if _FLOAT.fullmatch(word) and not word.lstrip("+-").isdigit():
        return float(word)
    return word


def dotted(path: KeyPath) -> str:
    """('sampling', 'stop', 0) -> 'sampling.stop[0]'"""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


class _Reader:
    """Builds the values from the parser's events. After a syntax error the events end, and
    what came before it is kept."""

    def __init__(self, document: Document, text: str) -> None:
        self.document = document
        self.text = text
        self.events = self._events()

    def read(self) -> None:
        root = next(self.events, None)
        if root is None:
            return
        empty = isinstance(root, yaml.ScalarEvent) and not root.style and not root.value
        value = self._node(root, ())
        if isinstance(value, dict):
            self.document.values = value
        elif not empty:
            self._problem(root, (), "a settings file holds `key: value` lines")
        extra = next(self.events, None)
        if isinstance(extra, yaml.DocumentStartEvent):
            self._problem(extra, (), "a second document begins here; a file holds one")

    def _events(self) -> Iterator[yaml.Event]:
        ignored = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentEndEvent)
        num_documents = 0
        try:
            for event in yaml.parse(self.text, Loader=yaml.SafeLoader):
                if isinstance(event, yaml.DocumentStartEvent):
                    num_documents += 1
                    if num_documents == 1:
                        continue
                if not isinstance(event, ignored):
                    yield event
        except yaml.MarkedYAMLError as error:
            # An unfinished key is noticed a line later; its own line is the one to look at.
            unfinished = error.context_mark is not None and "':'" in (error.problem or "")
            mark = error.context_mark if unfinished else error.problem_mark
            place = self._place(mark, mark) if mark else Place(self.document.file, 1, 1)
            message = f"not valid YAML: {error.problem or error.context}"
            self.document.problems.append(Problem(place, "", message))
        except yaml.reader.ReaderError as error:
            place = _end_of(self.document.file, self.text[: error.position])
            message = (
                f"a character that may not be in YAML (U+{ord(self.text[error.position]):04X})"
            )
            self.document.problems.append(Problem(place, "", message))

    def _node(self, event: yaml.Event, path: KeyPath) -> Any:
        """The value that begins with `event`."""
        self.document.places.setdefault(path, self._place(event.start_mark, event.end_mark))
        if isinstance(event, yaml.AliasEvent):
            self._problem(event, path, f"aliases are not allowed (got *{event.anchor})")
            return None
        self._refuse_decoration(event, path)
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else resolve(event.value)
        if len(path) >= MAX_DEPTH:
            self._problem(event, path, f"nested deeper than {MAX_DEPTH} levels")
            self.events = iter(())
            return None
        return (
            self._mapping(path) if isinstance(event, yaml.MappingStartEvent) else self._list(path)
        )

    def _list(self, path: KeyPath) -> tuple[Any, ...]:
        items: list[Any] = []
        while (event := next(self.events, None)) is not None:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, (*path, len(items))))
        return tuple(items)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        key: str | None = None
        while (event := next(self.events, None)) is not None:
            if isinstance(event, yaml.MappingEndEvent):
                return values
            key = self._key(event, path)
            inner = (*path, key)
            new = inner not in self.document.keys
            if new:
                self.document.keys[inner] = self._place(event.start_mark, event.end_mark)
            else:
                first = self.document.keys[inner].line
                self._problem(event, inner, f"given twice; the first is at line {first}")
            value_event = next(self.events, None)
            if value_event is None:
                return values
            value = self._node(value_event, inner)
            if new:
                values[key] = value
        if key is not None and not isinstance(values.get(key), dict):
            values.pop(key, None)  # a syntax error follows: the value may be misread
        return values

    def _key(self, event: yaml.Event, path: KeyPath) -> str:
        if isinstance(event, yaml.ScalarEvent):
            self._refuse_decoration(event, (*path, event.value))
            key = event.value if event.style else resolve(event.value)
            if not isinstance(key, str):
                self._problem(event, path, f"a key must be text (got {event.value or 'nothing'})")
            return event.value
        self._problem(event, path, "a key must be text (got a list, a mapping or an alias)")
        if not isinstance(event, yaml.AliasEvent):
            self._node(event, (*path, "?"))
        return "?"

    def _refuse_decoration(self, event: Any, path: KeyPath) -> None:
        if event.anchor is not None:
            self._problem(event, path, f"anchors are not allowed (got &{event.anchor})")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self._problem(event, path, f"tags are not allowed (got {tag})")

    def _problem(self, event: yaml.Event, path: KeyPath, message: str) -> None:
        place = self._place(event.start_mark, event.end_mark)
        self.document.problems.append(Problem(place, dotted(path), message))

    def _place(self, start: Any, end: Any) -> Place:
        return Place(self.document.file, start.line + 1, start.column + 1, start.index, end.index)


def _end_of(file: str, text: str) -> Place:
    """The place right behind `text`, which begins the file."""
    last_line = text[text.rfind("\n") + 1 :]
    return Place(file, text.count("\n") + 1, len(last_line) + 1)
