"""Model directories: one folder a model, whole or not there at all.

    MODELS_DIR/NAME/                a model: config, weights, tokenizer, and youtu.json
    MODELS_DIR/.partial/NAME/       an unfinished pull or import

A model is built under .partial, gets its manifest (youtu.json: the size and SHA-256 of every
file), is flushed to disk and then renamed into place.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from youtu_llm import explain, manifest
from youtu_llm.errors import ModelError, ResourceError
from youtu_llm.manifest import MANIFEST, File, Manifest, sha256_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    name: str
    path: Path
    architecture: str
    quantization: str  # awq, awq_int8 or none
    num_bytes: int
    license: str
    source: str
    license_accepted: str = ""  # when, of a licence that must be
    problem: str = ""  # in words, if it cannot be used


def list_models(models_dir: Path) -> list[ModelInfo]:
    """The models in the folder, by name, and what is wrong with any by the sizes of its files.
    Folders without a manifest are left out."""
    found = sorted(models_dir.glob(f"*/{MANIFEST}")) if models_dir.is_dir() else []
    return [_look(path.parent) for path in found]


def _look(model_dir: Path) -> ModelInfo:
    try:
        return verify(model_dir)
    except ModelError as error:
        return _unsound(model_dir, error.message)


def verify(model_dir: Path, *, full: bool = False) -> ModelInfo:
    """Check every file's size against the manifest and, when `full`, its SHA-256.

    Raises ModelError naming the first file at fault.
    """
    found = manifest.read(model_dir)
    manifest.check_sizes(model_dir, found)
    if full:
        manifest.check_digests(model_dir, found)
    return _info(model_dir, found)


def check_name(name: str) -> str:
    """The name itself. Raises ModelError unless it can be a folder's."""
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} cannot be a model's name: use letters, digits, '.', '_', '-'")
    return name


@contextlib.contextmanager
def workspace(models_dir: Path, name: str) -> Iterator[Path]:
    """The model's folder under .partial, locked meanwhile. After a failure its files are kept for
    the next attempt; an empty folder is removed."""
    folder = models_dir / ".partial" / check_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResourceError(f"another process is pulling or importing {name}") from error
        try:
            yield folder
        finally:
            for made in (folder, folder.parent):
                with contextlib.suppress(OSError):  # not empty: the next attempt resumes from it
                    made.rmdir()
    finally:
        os.close(lock)


def remove(models_dir: Path, name: str) -> None:
    """The model, and what an interrupted pull or import of it has left. Raises ModelError,
    ResourceError while it is being pulled."""
    target, partial = models_dir / check_name(name), models_dir / ".partial" / name
    if not target.exists() and not partial.exists():
        raise missing(models_dir, name)
    with workspace(models_dir, name) as work:
        if target.exists():
            target.rename(work / "removed")  # at once: a model is whole or not there
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def copy(models_dir: Path, name: str, to: str) -> Path:
    """A copy to edit: the weights, which are never edited, are the same files on the disk.

    Raises ModelError."""
    source, target = models_dir / check_name(name), models_dir / check_name(to)
    if not (source / MANIFEST).exists():
        raise missing(models_dir, name)
    if target.exists():
        raise ModelError(f"{to} exists: choose another name, or `youtu rm {to}` first")
    verify(source)
    with workspace(models_dir, to) as work:
        staged = work / "model"
        shutil.rmtree(staged, ignore_errors=True)  # of a copy that was interrupted
        shutil.copytree(source, staged, copy_function=_link_weights)
        written = msgspec.structs.replace(manifest.read(staged), name=to)
        return _put(staged, models_dir, to, written)


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def missing(models_dir: Path, name: str, also: Iterable[str] = ()) -> ModelError:
    """The error for a name that no model has. `also`: names of those that can be pulled."""
    there = [*(path.parent.name for path in models_dir.glob(f"*/{MANIFEST}")), *also]
    near = explain.nearest(name, there)
    hint = (
        f", did you mean {near}?" if near else ": `youtu ls` and `youtu ls --available` list them"
    )
    return ModelError(f"no model {name} in {models_dir}{hint}")


def require_disk(folder: Path, need_bytes: int, purpose: str) -> None:
    """Raises ResourceError, with both figures, when less than that is free on the disk."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise ResourceError(
            f"{purpose} needs {need_bytes / 1e9:.2f} GB on the disk of {folder}"
            f" and {free / 1e9:.2f} GB are free: free some, or choose another models folder"
        )


def install(
    staged: Path,
    models_dir: Path,
    name: str,
    *,
    source: str,
    license_name: str,
    quantization: str,
    license_accepted: str = "",
) -> Path:
    """Give the staged folder its manifest and move it into place, all at once."""
    config = json.loads((staged / "config.json").read_text(encoding="utf-8"))
    files = {
        path.name: File(path.stat().st_size, sha256_of(path)) for path in sorted(staged.iterdir())
    }
    written = Manifest(
        manifest.FORMAT_VERSION,
        name,
        config["architectures"][0],
        quantization,
        license_name,
        source,
        files,
        license_accepted,
    )
    return _put(staged, models_dir, name, written)


def _put(staged: Path, models_dir: Path, name: str, written: Manifest) -> Path:
    text = json.dumps(msgspec.to_builtins(written), indent=2, ensure_ascii=False) + "\n"
    (staged / MANIFEST).write_text(text, encoding="utf-8")
    for path in [*staged.iterdir(), staged]:
        _flush(path)
    target = models_dir / name
    if target.exists():  # a corrupt model: a folder cannot be replaced atomically
        shutil.rmtree(target)
    staged.rename(target)
    _flush(models_dir)
    return target


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _info(model_dir: Path, manifest: Manifest) -> ModelInfo:
    return ModelInfo(
        name=model_dir.name,
        path=model_dir,
        architecture=manifest.architecture,
        quantization=manifest.quantization,
        num_bytes=sum(file.size for file in manifest.files.values()),
        license=manifest.license,
        source=manifest.source,
        license_accepted=manifest.license_accepted,
    )


def _unsound(model_dir: Path, problem: str) -> ModelInfo:
    num_bytes = sum(path.stat().st_size for path in model_dir.iterdir() if path.is_file())
    return ModelInfo(model_dir.name, model_dir, "?", "?", num_bytes, "?", "?", problem=problem)
