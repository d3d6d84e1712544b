"""The public data sets: where they are on this machine, their origin, their records."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from youtu_llm.errors import InvalidRequest, NotFound
from youtu_llm.manifest import sha256_of

DATA_VARIABLE = "YOUTU_EVAL_DATA"
DEFAULT_FOLDER = Path("~/.local/share/youtu/evals")


@dataclass(frozen=True, slots=True)
class DataSet:
    name: str
    pattern: str  # of its file's name
    origin: str
    fields: tuple[str, ...] = ()  # what each record must have


GSM8K = DataSet(
    "GSM8K",
    "gsm8k_test*.jsonl",
    "openai/grade-school-math on GitHub: test.jsonl, saved as gsm8k_test.jsonl (MIT)",
    ("question", "answer"),
)
CMATH = DataSet(
    "CMATH", "cmath*.jsonl", "XiaoMi/cmath on GitHub: cmath_dev.jsonl (CC BY 4.0)",
    ("input", "golden"),
)  # fmt: skip
HUMANEVAL = DataSet(
    "HumanEval",
    "HumanEval*.jsonl*",
    "openai/human-eval on GitHub: HumanEval.jsonl.gz (MIT)",
    ("task_id", "prompt", "entry_point", "canonical_solution", "test"),
)
CHINESE = DataSet(
    "UD_Chinese-GSDSimp",
    "zh_gsdsimp*.txt",
    "UniversalDependencies/UD_Chinese-GSDSimp on GitHub: the sentences of its dev part, one a"
    " line, as zh_gsdsimp_dev.txt (CC BY-SA 4.0)",
)


def folder(chosen: Path | None) -> Path:
    """--data, or else YOUTU_EVAL_DATA, or else a folder of this account."""
    return (chosen or Path(os.environ.get(DATA_VARIABLE) or DEFAULT_FOLDER)).expanduser()


def find(data_set: DataSet, place: Path) -> Path:
    """The data set's file, if `place` is a folder, or `place` itself. Raises NotFound."""
    if place.is_file():
        return place
    found = sorted(place.glob(data_set.pattern)) if place.is_dir() else []
    if not found:
        raise NotFound(
            f"{data_set.name} is missing ({place / data_set.pattern}). It comes from"
            f" {data_set.origin}. Put it in that folder, or name yours by --data or {DATA_VARIABLE}"
        )
    return found[0]


def text(path: Path) -> str:
    """Of a UTF-8 file, gzipped or not."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"{path} cannot be read: {why}") from error


def records(data_set: DataSet, path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line. Raises InvalidRequest naming the line."""
    found = []
    for number, line in enumerate(text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InvalidRequest(f"{path}:{number}: not JSON: {error}") from error
        values = record if isinstance(record, dict) else {}
        missing = [name for name in data_set.fields if not isinstance(values.get(name), str)]
        if missing:
            raise InvalidRequest(
                f"{path}:{number}: a record of {data_set.name} has {', '.join(missing)}"
            )
        found.append(record)
    return found


def digest(*paths: Path) -> str:
    """Names the contents of files."""
    sha = hashlib.sha256()
    for path in paths:
        sha.update(bytes.fromhex(sha256_of(path)))
    return sha.hexdigest()[:16]
