"""The text that models are calibrated on is not the text that they are judged by."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from lab.evals import texts
from tests.text.samples import write_sample_tokenizer
from youtu_llm.errors import ModelError
from youtu_llm.text.tokenizer import Tokenizer
from youtu_llm.tools.evals import datasets
from youtu_llm.tools.quantize import calibration

CARRIED = (Path(__file__).parents[2] / "data/zh_gsdsimp_dev.txt", texts.ENGLISH)
NOT_CARRIED = (datasets.GSM8K, datasets.CMATH, datasets.HUMANEVAL)
RUN = 12  # words, or Chinese characters, in a row


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[\u4e00-\u9fff]|[a-z]+|\d+", text.lower().replace("\\n", "\n"))
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


@pytest.mark.parametrize("source", [*CARRIED, *NOT_CARRIED], ids=lambda source: source.name)
def test_no_overlap_with_evaluation_data(source: Path | datasets.DataSet) -> None:
    if isinstance(source, datasets.DataSet):
        if datasets.DATA_VARIABLE not in os.environ:
            pytest.skip(f"{datasets.DATA_VARIABLE} names no folder with the evaluation data sets")
        source = datasets.find(source, datasets.folder(None))
    judged = runs(datasets.text(source))
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
