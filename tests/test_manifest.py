"""A damaged model is named with both checksums, by the check alone and by the engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from youtu_llm import manifest
from youtu_llm.errors import ModelError
from youtu_llm.manifest import File, Manifest


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit": flip,
    "a cut file": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "an empty file": lambda path: path.write_bytes(b""),
    "a missing shard": Path.unlink,
}


def write(folder: Path) -> Manifest:
    """The manifest of the files that are there."""
    files = {
        path.name: File(path.stat().st_size, manifest.sha256_of(path))
        for path in sorted(folder.iterdir())
    }
    made = Manifest(manifest.FORMAT_VERSION, "tiny", "Tiny", "none", "none", "a test", files)
    (folder / manifest.MANIFEST).write_bytes(msgspec.json.encode(made))
    return made


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_named_with_the_checksums(tmp_path: Path, damage: str) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    right = write(tmp_path).files["two.safetensors"].sha256
    manifest.Check(tmp_path).finish()
    path = tmp_path / "two.safetensors"
    DAMAGES[damage](path)
    found = manifest.sha256_of(path) if path.exists() else ""
    with pytest.raises(ModelError, match=rf"two\.safetensors .*{found}.*{right}.*pull or import"):
        manifest.Check(tmp_path).finish()


def test_without_a_manifest_there_is_nothing_to_check(tmp_path: Path) -> None:
    manifest.Check(tmp_path).finish()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format_version": 1}', '{"format_version": 2, "files": 3}', "{"]
)
def test_a_bad_manifest_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.MANIFEST).write_text(text)
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / manifest.MANIFEST))):
        manifest.read(tmp_path)
