#!/usr/bin/env python3
"""The daemon's Python libraries, for every CPython and processor we ship to.

    vendor.py lock                       write vendor.txt anew, for the versions it names
    vendor.py unpack ARCH CACHE FOLDER   its wheels in FOLDER, licences in FOLDER/licences

A library without wheels is pure Python, and comes from its source archive.
An extension module carries its CPython's name, so the wheels of all of them share one folder;
of a file that several wheels hold, all copies must be equal. torch is not among them.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.parser import HeaderParser
from pathlib import Path

LOCK = Path(__file__).with_name("vendor.txt")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = {  # glibc 2.28 at the most: JetPack 6 has 2.35
    "amd64": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "arm64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
}
NO_WHEELS = ("sdnotify",)
NOT_AT_RUN_TIME = (".pyx", ".pxd", ".pxi", ".pyi", ".c", ".h", ".hash")
LICENCE = re.compile(r"licen[cs]e|notice|copying", re.IGNORECASE)
ORIGIN = "The Python libraries below /usr/lib/youtu/vendor, as their authors publish them.\n"


def fetch(requirements: Path, arch: str, folder: Path, *options: str) -> list[Path]:
    """The wheels of all CPythons, by pip, which checks what is asked of it."""

    def one(python: str) -> list[Path]:
        into = folder / python
        into.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
        command += ["--only-binary", ":all:", "--no-binary", ",".join(NO_WHEELS)]
        command += ["--no-build-isolation", "--implementation", "cp"]
        command += ["--python-version", python, "--dest", str(into)]
        command += [word for name in PLATFORMS[arch] for word in ("--platform", name)]
        subprocess.run([*command, *options, "--requirement", str(requirements)], check=True)
        return sorted(into.iterdir())

    with ThreadPoolExecutor() as pool:
        return [wheel for wheels in pool.map(one, PYTHONS) for wheel in wheels]


def lock() -> None:
    pins = re.findall(r"^(\S+==\S+)", LOCK.read_text(), re.MULTILINE)
    hashes: dict[str, set[str]] = {pin: set() for pin in pins}
    names = {_normal(pin.partition("==")[0]): pin for pin in pins}
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "pins.txt")
        bare.write_text("\n".join(pins))
        for arch in PLATFORMS:
            for wheel in fetch(bare, arch, Path(folder, arch)):
                pin = names[_normal(wheel.name.partition("-")[0])]
                hashes[pin].add(hashlib.sha256(wheel.read_bytes()).hexdigest())
    head = [line for line in LOCK.read_text().splitlines() if line.startswith("#")]
    body = [
        " \\\n    ".join([pin, *(f"--hash=sha256:{digest}" for digest in sorted(digests))])
        for pin, digests in hashes.items()
    ]
    LOCK.write_text("\n".join([*head, *body]) + "\n")


def unpack(arch: str, cache: Path, folder: Path) -> None:
    stamp = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    cache = cache / stamp / arch
    if not (cache / "complete").exists():
        fetch(LOCK, arch, cache, "--require-hashes")
        (cache / "complete").touch()
    seen: dict[str, bytes] = {}
    about: dict[str, str] = {}
    for file in sorted(cache.glob("*/*-*")):
        for name, data in _wheel(file) if file.suffix == ".whl" else _source_archive(file):
            if name.endswith(".dist-info/METADATA"):
                about.setdefault(*_summary(data))
            elif ".dist-info/" in name:
                library = name.partition("-")[0]
                _write(folder / "licences" / library / Path(name).name, data)
            elif seen.setdefault(name, data) is data:
                _write(folder / name, data)
            elif seen[name] != data:
                sys.exit(f"{file.name}: {name} differs from another wheel's")
    text = ORIGIN + "".join(f"\n{name} {rest}" for name, rest in sorted(about.items())) + "\n"
    _write(folder / "licences" / "README", text.encode())


def _wheel(file: Path) -> Iterator[tuple[str, bytes]]:
    """What is needed at run time, the metadata and the licences."""
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            parts = name.split("/")
            if ".dist-info/" in name:
                if not LICENCE.search(parts[-1]) and parts[-1] != "METADATA":
                    continue
            elif name.endswith((*NOT_AT_RUN_TIME, "/")) or "tests" in parts:
                continue
            yield name, archive.read(name)


def _source_archive(file: Path) -> Iterator[tuple[str, bytes]]:
    """The same, named as a wheel would name it."""
    top = file.name[: -len(".tar.gz")]
    package = top.partition("-")[0]
    with tarfile.open(file) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            name = member.name.partition("/")[2]
            stream = archive.extractfile(member)
            if stream is None:
                continue
            if name.startswith(f"{package}/") and name.endswith(".py"):
                yield name, stream.read()
            elif name == "PKG-INFO":
                yield f"{top}.dist-info/METADATA", stream.read()
            elif "/" not in name and LICENCE.search(name):
                yield f"{top}.dist-info/{name}", stream.read()


def _summary(metadata: bytes) -> tuple[str, str]:
    fields = HeaderParser().parsestr(metadata.decode())
    licence = fields["License-Expression"] or fields["License"] or ""
    if licence in ("", "UNKNOWN") or "\n" in licence:
        kinds = [c for c in fields.get_all("Classifier") or () if c.startswith("License ::")]
        licence = ", ".join(kind.rpartition(" :: ")[2] for kind in kinds)
    return fields["Name"], f"{fields['Version']}: {licence}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def main(arguments: list[str]) -> None:
    if arguments == ["lock"]:
        lock()
    elif len(arguments) == 4 and arguments[0] == "unpack":
        unpack(arguments[1], Path(arguments[2]), Path(arguments[3]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
