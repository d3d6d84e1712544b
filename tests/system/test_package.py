"""The .deb as a file: what it weighs, what lintian says, the same bytes wherever it is built."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.system.conftest import REPOSITORY, build, copy_sources, require
from youtu_llm.settings import fields

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

MAX_BYTES = 15_000_000
JETPACK_6 = {"libc6": (2, 35), "libstdc++6": (12,)}  # Ubuntu 22.04


def test_small_and_for_jetpack_6(deb: Path) -> None:
    print(f"{deb.name}: {deb.stat().st_size / 1e6:.1f} MB")
    assert deb.stat().st_size < MAX_BYTES
    depends = subprocess.check_output(["dpkg-deb", "--field", deb, "Depends"], text=True)
    floors = dict(word.split(" (>= ") for word in depends.strip().split(", ") if ">=" in word)
    for library, newest in JETPACK_6.items():
        floor = floors[library].rstrip(")")
        assert tuple(map(int, floor.split(".")))[: len(newest)] <= newest, depends


def test_lintian_says_nothing(deb: Path) -> None:
    require("lintian")
    command = ["lintian", "--allow-root", "--fail-on", "warning", str(deb)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == ""


def test_contents(deb: Path, tmp_path: Path) -> None:
    require("man")
    subprocess.run(["dpkg-deb", "--extract", deb, tmp_path], check=True)
    schema = json.loads((tmp_path / "usr/share/youtu/config.schema.json").read_text())
    assert "engine" in schema["properties"]
    page = ["man", "--warnings", "-E", "UTF-8", "-l"]
    for name, word in (("man1/youtu.1", "setup-engine"), ("man5/youtu.yaml.5", list(fields())[-2])):
        shown = subprocess.run(
            [*page, tmp_path / f"usr/share/man/{name}.gz"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"MANPAGER": "cat", "LC_ALL": "C.UTF-8"},
        )
        assert word in shown.stdout
        assert shown.stderr == ""
    licences = tmp_path / "usr/share/doc/youtu/third-party"
    vendored = {line.partition("==")[0] for line in _pins()}
    listed = (licences / "README").read_text()
    assert all(f"\n{name} " in listed.replace("_", "-") for name in vendored), listed
    assert not list(tmp_path.rglob("torch")), "torch is the machine's"
    app = tmp_path / "usr/lib/youtu/app"
    assert (app / "youtu_llm/py.typed").exists()
    holds_no_lab([str(path.relative_to(app)) for path in app.rglob("*")])
    complete = tmp_path / "usr/share/bash-completion/completions/youtu"
    answer = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", complete],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == ["restart"]


def holds_no_lab(names: list[str]) -> None:
    """What only developers run, and faults on demand, stay in the repository."""
    ours = [name for name in names if not name.startswith(("lab/", "tests/"))]
    assert ours == names
    assert not [name for name in names if re.search("fault|sandbox|jail|divergence|fake", name)]


def test_the_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    options = ["--config-settings", "wheel.cmake=false"]  # the kernels take minutes
    subprocess.run([*command, tmp_path, *options, REPOSITORY], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"youtu_llm", "youtu"}
    assert "youtu_llm/py.typed" in names
    holds_no_lab(names)


COMPLETE = """
_init_completion() { words=(youtu res) cword=1 cur=res prev=youtu; }
__ltrim_colon_completions() { :; }
source "$1"; _youtu; echo "${COMPREPLY[@]}"
"""


def _pins() -> list[str]:
    lock = (REPOSITORY / "packaging/vendor.txt").read_text()
    return [line.split()[0] for line in lock.splitlines() if "==" in line.split("#")[0]]


def test_same_bytes_in_another_folder(deb: Path, arch: str, sources: Path, tmp_path: Path) -> None:
    if os.environ.get("YOUTU_DEB"):
        pytest.skip("YOUTU_DEB was built elsewhere")
    elsewhere = tmp_path / "another folder's name"
    elsewhere.mkdir()
    copy_sources(sources, elsewhere)
    again = build(elsewhere, arch, TZ="Asia/Shanghai", LC_ALL="C")
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (deb, again)]
    print(*digests, sep="\n")
    assert digests[0] == digests[1]
