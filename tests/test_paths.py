"""From a model's name to its directory: one rule for the service and every tool."""

from __future__ import annotations

from pathlib import Path

import pytest

from youtu_llm import paths
from youtu_llm.errors import ModelError


def test_a_name_is_a_folder_of_models_and_a_slash_makes_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("models/mine", "mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    monkeypatch.setenv("YOUTU_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    assert paths.find_model("mine") == tmp_path / "models/mine"
    assert paths.find_model("./mine").samefile(tmp_path / "mine")
    with pytest.raises(ModelError, match="run «youtu pull other», or name a directory"):
        paths.find_model("other")
    with pytest.raises(ModelError, match=r"directory «models» has no config\.json") as refused:
        paths.find_model(f"{tmp_path}/models")
    assert str(tmp_path) not in refused.value.message
    with pytest.raises(ModelError, match=r"cannot be read by this account \(File name too long\)"):
        paths.find_model(f"./{'m' * 300}")
