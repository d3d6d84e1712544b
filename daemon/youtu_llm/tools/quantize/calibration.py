"""The text that quantisation is calibrated on: short, licensed, in four domains."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from youtu_llm.errors import ModelError
from youtu_llm.text.tokenizer import Tokenizer

DEFAULT_FILES = tuple(
    Path(__file__).with_name("data") / f"{domain}.txt" for domain in ("zh", "en", "math", "code")
)
NUM_TOKENS = 8192
SEQUENCE_LEN = 256
HELD_OUT_EVERY = 5  # no multiple of the default files' number, so it takes from all of them


@dataclass(frozen=True, slots=True)
class Calibration:
    token_ids: Tensor  # [sequences, SEQUENCE_LEN] int64

    def split(self) -> tuple[Tensor, Tensor]:
        """Indices of the sequences to fit on, and of those held out to choose a method by."""
        every = torch.arange(len(self.token_ids))
        held_out = every % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        return every[~held_out], every[held_out]


def load(tokenizer: Tokenizer, files: Sequence[Path]) -> Calibration:
    """An equal share from the beginning of each file, their sequences interleaved.

    Raises ModelError for a file that cannot be read or is shorter than one sequence.
    """
    share = max(1, NUM_TOKENS // SEQUENCE_LEN // len(files))  # sequences
    rows = []
    for file in files:
        ids = tokenizer.encode(_read(file))[: share * SEQUENCE_LEN]
        count = len(ids) // SEQUENCE_LEN
        if not count:
            raise ModelError(
                f"{file} has {len(ids)} tokens: calibration needs {SEQUENCE_LEN} or more of a file"
            )
        rows.append(torch.tensor(ids[: count * SEQUENCE_LEN]).view(count, SEQUENCE_LEN))
    turns = [row for turn in range(share) for part in rows for row in part[turn : turn + 1]]
    if len(turns) < HELD_OUT_EVERY:
        raise ModelError(
            f"the calibration files give {len(turns)} sequences of {SEQUENCE_LEN} tokens: too few,"
            f" at least {HELD_OUT_EVERY} are needed and {NUM_TOKENS // SEQUENCE_LEN} are used"
        )
    return Calibration(torch.stack(turns))


def digest(files: Sequence[Path]) -> str:
    return hashlib.sha256("\0".join(_read(file) for file in files).encode()).hexdigest()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"calibration file {file} cannot be read: {error}") from error
