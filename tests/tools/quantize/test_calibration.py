"""The text that models are calibrated on is not the text that they are judged by."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from lab.evals import texts
from tests.text.samples import write_sample_tokenizer
from youtu_llm.errors import ModelError
from youtu_llm.text.tokenizer import Tokenizer
from youtu_llm.tools.quantize import calibration

DATA = Path(__file__).parents[4] / "shared" / "data"
EVALUATION = (
    DATA / "gsm8k_test_400.jsonl",
    DATA / "cmath_dev.jsonl",
    DATA / "HumanEval.jsonl.gz",
    DATA / "zh_gsdsimp_dev.txt",
    texts.ENGLISH,
)
RUN = 12  # words, or Chinese characters, in a row


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\u4e00-\u9fff]|[a-z]+|\d+", text.lower().replace("\\n", "\n"))
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


@pytest.mark.parametrize("path", EVALUATION, ids=lambda path: path.name)
def test_no_overlap_with_evaluation_data(path: Path) -> None:
    if not path.exists():
        pytest.skip(f"{path} is not there")
    data = path.read_bytes()
    judged = runs((gzip.decompress(data) if path.suffix == ".gz" else data).decode())
    assert len(judged) > 1000
    for file in calibration.DEFAULT_FILES:
        assert not runs(file.read_text("utf-8")) & judged, file


def test_sequences_come_from_all_files_and_so_do_those_held_out(tmp_path: Path) -> None:
    files = []
    for letter in "abcd":
        files.append(tmp_path / letter)
        files[-1].write_text(f"{letter} " * 5000)
    tokenizer = Tokenizer.load(write_sample_tokenizer(tmp_path))
    loaded = calibration.load(tokenizer, files)
    assert loaded.token_ids.numel() == calibration.NUM_TOKENS
    fit, held_out = loaded.split()
    assert sorted([*fit.tolist(), *held_out.tolist()]) == list(range(len(loaded.token_ids)))
    for part in (fit, held_out):
        assert len(loaded.token_ids[part, -1].unique()) == len(files)


def test_a_short_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("too short")
    tokenizer = Tokenizer.load(write_sample_tokenizer(tmp_path))
    with pytest.raises(ModelError, match=r"note\.txt has \d+ tokens"):
        calibration.load(tokenizer, [tmp_path / "note.txt"])
