"""The commands about models, as processes, on small folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import test_manifest
from tests.test_cli import Daemon, daemon, youtu  # noqa: F401 - a fixture
from youtu_llm import manifest
from youtu_llm.errors import ModelError
from youtu_llm.tools import catalogue, store


def make(models: Path, name: str = "tiny") -> Path:
    folder = models / name
    folder.mkdir(parents=True)
    config = {"architectures": ["Tiny"], "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"w" * 1000)
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    test_manifest.write(folder)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("command", ["list", "ls", "models"])
async def test_one_listing_by_three_names(tmp_path: Path, command: str) -> None:
    make(tmp_path)
    done = await youtu(None, command, YOUTU_MODELS=str(tmp_path))
    assert [line.split()[0] for line in done.out.splitlines()] == ["NAME", "tiny"]


async def test_what_can_be_pulled(tmp_path: Path) -> None:
    make(tmp_path, "phi-2")
    done = await youtu(None, "ls", "--available", YOUTU_MODELS=str(tmp_path))
    rows = {line.split()[0]: line for line in done.out.splitlines()}
    assert set(rows) == {"NAME", *catalogue.catalogue()}
    assert rows["phi-2"].split() == ["phi-2", "5.57", "GB", "1.58", "GB", "yes", "MIT"]
    assert "no    see LICENSE" in rows["youtu-llm-2b"]
    assert rows["youtu-llm-2b"].endswith("(needs --accept-license)")


async def test_show(tmp_path: Path) -> None:
    folder = make(tmp_path)
    done = await youtu(None, "show", "tiny", YOUTU_MODELS=str(tmp_path))
    facts = dict(line.split(maxsplit=1) for line in done.out.splitlines())
    size = sum(file.size for file in manifest.read(folder).files.values())
    digest = manifest.sha256_of(folder / "youtu.json")
    assert facts["architecture"] == "Tiny"
    assert facts["context"] == "512 tokens"
    assert facts["template"] == "yes"
    assert facts["bytes"] == f"{size:,}"
    assert facts["digest"] == f"sha256:{digest}"
    (folder / "youtu.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    done = await youtu(None, "show", str(folder))
    assert "template      no: " in done.out
    assert f"digest        {manifest.identity(folder)} of names" in done.out


async def test_a_copy_shares_the_weights_and_outlives_its_source(tmp_path: Path) -> None:
    make(tmp_path)
    done = await youtu(None, "cp", "tiny", "mine", YOUTU_MODELS=str(tmp_path))
    assert (done.status, done.out) == (0, f"{tmp_path}/mine\n")
    assert (tmp_path / "mine/model.safetensors").stat().st_nlink == 2
    assert (tmp_path / "mine/config.json").stat().st_nlink == 1
    done = await youtu(None, "cp", "tiny", "mine", YOUTU_MODELS=str(tmp_path))
    assert (done.status, "choose another name" in done.err) == (1, True)
    assert (await youtu(None, "rm", "tiny", YOUTU_MODELS=str(tmp_path))).status == 0
    assert store.verify(tmp_path / "mine", full=True).name == "mine"
    assert manifest.read(tmp_path / "mine").name == "mine"
    assert names(tmp_path) == ["mine"]


async def test_rm_names_what_is_near_and_leaves_the_live_model(
    daemon: Daemon,  # noqa: F811
    tmp_path: Path,
) -> None:
    make(tmp_path / "models", "m")  # what the daemon says it has
    models = str(tmp_path / "models")
    done = await youtu(daemon, "rm", "m", YOUTU_MODELS=models)
    assert done.status == 1
    assert done.err == "youtu: m is live: `youtu stop` first, or make another model live\n"
    make(tmp_path / "models", "tiny")
    done = await youtu(None, "rm", "tyny", YOUTU_MODELS=models)
    assert done.err.endswith("did you mean tiny?\n")
    done = await youtu(None, "rm", "../models/tiny", YOUTU_MODELS=models)
    assert "cannot be a model's name" in done.err
    assert names(tmp_path / "models") == ["m", "tiny"]


async def test_rm_takes_what_an_interrupted_pull_left(tmp_path: Path) -> None:
    partial = tmp_path / ".partial/tiny/download"
    partial.mkdir(parents=True)
    (partial / "tiny.gguf.part").write_bytes(b"x")
    assert (await youtu(None, "rm", "tiny", YOUTU_MODELS=str(tmp_path))).status == 0
    assert names(tmp_path) == []


def test_a_licence_that_asks_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"«see LICENSE .*Hugging Face .*--accept-license"):
        store.pull("youtu-llm-2b", models_dir=tmp_path)
    assert names(tmp_path) == []
