"""youtu.json, a model's manifest: the size and SHA-256 of every file, and the check of them.

A model without one, such as a directory from elsewhere, cannot be checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import msgspec

from youtu_llm.errors import ModelError

MANIFEST = "youtu.json"
FORMAT_VERSION = 1


class File(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    format_version: int
    name: str
    architecture: str
    quantization: str  # awq, awq_int8 or none
    license: str
    source: str
    files: dict[str, File]
    license_accepted: str = ""  # when, of a licence that must be: ISO 8601


class _Version(msgspec.Struct):
    format_version: int


def read(model_dir: Path) -> Manifest:
    """Raises ModelError if it is missing, damaged or of another format version."""
    path = model_dir / MANIFEST
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Version).format_version
        if version != FORMAT_VERSION:
            raise ModelError(
                f"{path} has format version {version} and this youtu reads {FORMAT_VERSION}:"
                f" {remedy(model_dir)}"
            )
        return msgspec.json.decode(data, type=Manifest)
    except FileNotFoundError as error:
        raise ModelError(
            f"there is no model at {model_dir}: `youtu pull NAME` or `youtu import PATH` makes one"
        ) from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is damaged ({error}): {remedy(model_dir)}") from error


def check_sizes(model_dir: Path, manifest: Manifest) -> None:
    """Raises ModelError naming the first file that is missing or has another size."""
    for name, wanted in manifest.files.items():
        path = model_dir / name
        if not path.is_file():
            raise ModelError(
                f"{path} is missing; its SHA-256 should be {wanted.sha256}: {remedy(model_dir)}"
            )
        size = path.stat().st_size
        if size != wanted.size:
            raise ModelError(
                f"{path} has {size} bytes and should have {wanted.size}; its SHA-256 is"
                f" {sha256_of(path)} and should be {wanted.sha256}: {remedy(model_dir)}"
            )


def check_digests(model_dir: Path, manifest: Manifest) -> None:
    """Reads every file. Raises ModelError naming the first whose content changed."""
    for name, wanted in manifest.files.items():
        digest = sha256_of(model_dir / name)
        if digest != wanted.sha256:
            raise ModelError(
                f"{model_dir / name} is corrupt: its SHA-256 is {digest} and should be"
                f" {wanted.sha256}: {remedy(model_dir)}"
            )


class Check:
    """The check of a model that is being loaded: sizes first, digests in a thread meanwhile."""

    def __init__(self, model_dir: Path) -> None:
        """Raises ModelError."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._digests = None
        has_manifest = (model_dir / MANIFEST).exists()
        # Identifies all files together.
        self.digest = sha256_of(model_dir / MANIFEST) if has_manifest else identity(model_dir)
        if has_manifest:
            manifest = read(model_dir)
            check_sizes(model_dir, manifest)
            self._digests = self._pool.submit(check_digests, model_dir, manifest)

    def finish(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Waits for the digests, with a call of `on_wait` each second. Raises ModelError."""
        if self._digests is not None:
            while not wait([self._digests], timeout=1.0).done:
                on_wait()
            self._digests.result()
        self._pool.shutdown()


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def identity(model_dir: Path) -> str:
    """Identifies the files of a model without reading them, by names, sizes and times."""
    files = sorted((*model_dir.glob("*.safetensors"), *model_dir.glob("*.json")))
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def remedy(model_dir: Path) -> str:
    return f"remove {model_dir} and pull or import the model again"
