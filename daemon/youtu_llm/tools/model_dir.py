"""Model directories: one folder a model, whole or not there at all.

    MODELS_DIR/NAME/                a model: config, weights, tokenizer, and youtu.json
    MODELS_DIR/.partial/NAME/       what a pull or an import has so far

A model is built under .partial, gets its manifest (youtu.json: the size and SHA-256 of every
file), is flushed to disk and then renamed into place.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from youtu_llm.errors import ModelError, ResourceError

MANIFEST = "youtu.json"
FORMAT_VERSION = 1
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


def list_models(models_dir: Path) -> list[ModelInfo]:
    """The models in the folder, by name. Folders without a manifest are not ours."""
    found = sorted(models_dir.glob(f"*/{MANIFEST}")) if models_dir.is_dir() else []
    return [_info(path.parent, _read_manifest(path.parent)) for path in found]


def verify(model_dir: Path, *, full: bool = False) -> ModelInfo:
    """Check every file's size against the manifest and, when `full`, its SHA-256.

    Raises ModelError naming the first file at fault.
    """
    manifest = _read_manifest(model_dir)
    for name, expected in manifest["files"].items():
        path = model_dir / name
        if not path.is_file():
            raise ModelError(f"{path} is missing: {_remedy(model_dir)}")
        size = path.stat().st_size
        if size != expected["size"]:
            raise ModelError(
                f"{path} has {size} bytes and should have {expected['size']}: {_remedy(model_dir)}"
            )
        if full and (digest := sha256_of(path)) != expected["sha256"]:
            raise ModelError(
                f"{path} is corrupt: its SHA-256 is {digest} and should be"
                f" {expected['sha256']}: {_remedy(model_dir)}"
            )
    return _info(model_dir, manifest)


def check_name(name: str) -> str:
    """The name itself. Raises ModelError unless it can be a folder's."""
    if not _NAME.fullmatch(name):
        raise ModelError(f"{name!r} cannot be a model's name: use letters, digits, '.', '_', '-'")
    return name


@contextlib.contextmanager
def workspace(models_dir: Path, name: str) -> Iterator[Path]:
    """The model's folder under .partial, ours alone until the end. Kept if we fail."""
    folder = models_dir / ".partial" / check_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResourceError(f"another process is pulling or importing {name}") from error
        yield folder
    finally:
        os.close(lock)


def require_disk(folder: Path, need_bytes: int, purpose: str) -> None:
    """Raises ResourceError, with both figures, when the disk has not that much left."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise ResourceError(
            f"{purpose} needs {need_bytes / 1e9:.2f} GB on the disk of {folder}"
            f" and {free / 1e9:.2f} GB are free: free some, or choose another models folder"
        )


def install(
    staged: Path, models_dir: Path, name: str, *, source: str, license_name: str, quantization: str
) -> Path:
    """Give the staged folder its manifest and move it into place, all at once."""
    config = json.loads((staged / "config.json").read_text(encoding="utf-8"))
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(staged.iterdir())
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "architecture": config["architectures"][0],
        "quantization": quantization,
        "license": license_name,
        "source": source,
        "files": files,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (staged / MANIFEST).write_text(text, encoding="utf-8")
    for path in [*staged.iterdir(), staged]:
        _flush(path)
    target = models_dir / name
    if target.exists():  # a corrupt one: a folder cannot be replaced in one step
        shutil.rmtree(target)
    staged.rename(target)
    _flush(models_dir)
    return target


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(model_dir: Path) -> dict[str, Any]:
    path = model_dir / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no model at {model_dir}: `youtu pull NAME` or `youtu import PATH` makes one"
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}): {_remedy(model_dir)}") from error
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {version} and this youtu reads {FORMAT_VERSION}:"
            f" {_remedy(model_dir)}"
        )
    return manifest


def _info(model_dir: Path, manifest: dict[str, Any]) -> ModelInfo:
    return ModelInfo(
        name=model_dir.name,
        path=model_dir,
        architecture=manifest["architecture"],
        quantization=manifest["quantization"],
        num_bytes=sum(file["size"] for file in manifest["files"].values()),
        license=manifest["license"],
        source=manifest["source"],
    )


def _remedy(model_dir: Path) -> str:
    return f"remove {model_dir} and pull or import the model again"
