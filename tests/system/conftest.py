"""The package, and a machine to install it on.

YOUTU_DEB=FILE takes a package that is there in place of building it, YOUTU_SYSTEM_ROOT=clean a
minimal Debian in place of this machine's own files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import CGROUPS, Machine, clean_root, overlay_root
from youtu_llm import paths

REPOSITORY = Path(__file__).parents[2]
BUILD_TOOLS = ("dpkg-buildpackage", "dh", "dh_installsysusers", "cmake", "lintian")
SOURCES = ("daemon", "kernels", "profiles", "systemd", "packaging")
MODEL = "qwen2.5-coder-0.5b"


def require(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: scripts/packaging-tools installs them")


@pytest.fixture(scope="session")
def arch() -> str:
    require("dpkg")
    return subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the package is built from, as it is now."""
    return copy_sources(REPOSITORY, tmp_path_factory.mktemp("sources"))


def copy_sources(tree: Path, folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "build")
    for name in SOURCES:
        shutil.copytree(tree / name, folder / name, ignore=ignored)
    shutil.copy(tree / "CHANGELOG.md", folder)
    (REPOSITORY / "build/wheels").mkdir(parents=True, exist_ok=True)  # fetched once
    (folder / "build").mkdir()
    (folder / "build/wheels").symlink_to(REPOSITORY / "build/wheels")
    return folder


def build(folder: Path, arch: str, **environ: str) -> Path:
    require(*BUILD_TOOLS)
    environ = os.environ | {"PYTHON": sys.executable} | environ
    subprocess.run([folder / "packaging/build-deb", arch], env=environ, check=True)
    (package,) = (folder / "dist").glob(f"youtu_*_{arch}.deb")
    return package


@pytest.fixture(scope="session")
def deb(arch: str, sources: Path) -> Path:
    if os.environ.get("YOUTU_DEB"):
        return Path(os.environ["YOUTU_DEB"])
    return build(sources, arch)


@pytest.fixture(scope="session")
def model() -> Path:
    path = paths.models_dir() / MODEL
    if not path.is_dir():
        pytest.skip(f"needs the model {MODEL}: make models")
    return path


@pytest.fixture(scope="module")
def machine(model: Path, deb: Path) -> Iterator[Machine]:
    """Booted, with torch out of its Python's sight at /opt/torch."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to boot a systemd in namespaces")
    if not (CGROUPS / "systemd").is_dir() or not os.access(CGROUPS / "memory", os.W_OK):
        pytest.skip("needs writable cgroups in systemd's hybrid layout")
    clean = os.environ.get("YOUTU_SYSTEM_ROOT") == "clean"
    require("unshare", "nsenter", "setpriv", *(["mmdebstrap"] if clean else ["systemctl"]))
    folder = Path(tempfile.mkdtemp(prefix="youtu-"))
    make_root = clean_root if clean else overlay_root
    with make_root(folder) as root:
        version = subprocess.check_output(
            ["chroot", root, "/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2])"]
        )
        if version.split() != [b"%d" % part for part in sys.version_info[:2]]:
            pytest.skip(f"torch here is for another Python than /usr/bin/python3, {version!r}")
        machine = Machine(root, (Path(sysconfig.get_path("purelib")), "/opt/torch"))
        try:
            machine.boot()
            yield machine
        finally:
            machine.power_off()
