"""The engine's Python: what is found, what is planned, and an environment made offline."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

import pytest

from youtu_llm import config
from youtu_llm.errors import ModelError, YoutuError
from youtu_llm.tools import setup_engine
from youtu_llm.tools.setup_engine import OTHERS, Found

NO_TORCH = {"torch": "No module named 'torch'", **dict.fromkeys(OTHERS, "not installed")}
TORCH_MODULE = """
__version__ = "2.9.0"
class cuda:
    def is_available():
        return False
"""


def test_the_packages_are_those_of_the_extras() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = re.findall(r"^(?:engine|models) = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    named = {name for extra in extras for name in re.findall(r'"([^"]+)"', extra)} - {"pip"}
    ours = {setup_engine.TORCH, *OTHERS.values()} - {OTHERS["rich"]}  # the daemon's own
    assert ours == named


def test_a_python_that_has_all_is_taken_as_it_is(tmp_path: Path) -> None:
    found = [
        Found("/usr/bin/python3", "3.10.12", "", "cpu", NO_TORCH),
        Found("/opt/mine/bin/python", "3.10.12", "2.8.0", "Orin", {}),
    ]
    assert setup_engine.plan(found, tmp_path) == setup_engine.Plan("/opt/mine/bin/python", ())


def test_the_platforms_torch_is_kept(tmp_path: Path) -> None:
    """JetPack: NVIDIA's torch is in the system's Python, safetensors is not."""
    lacks = {"safetensors": "not installed"}
    found = [Found("/usr/bin/python3", "3.10.12", "2.8.0", "Orin", lacks)]
    todo = setup_engine.plan(found, tmp_path / "engine")
    assert [step.command[-1] for step in todo.steps] == [
        str(tmp_path / "engine"),
        OTHERS["safetensors"],
    ]
    assert "--system-site-packages" in todo.steps[0].command


def test_a_jetson_without_torch_needs_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    assert setup_engine.l4t_release(release) == "36.4.3"
    monkeypatch.setattr(setup_engine, "l4t_release", lambda: "36.4.3")
    bare = [Found("/usr/bin/python3", "3.10.12", "", "cpu", NO_TORCH)]
    with pytest.raises(ModelError, match="NVIDIA's wheel"):
        setup_engine.plan(bare, tmp_path)
    todo = setup_engine.plan(bare, tmp_path, wheels=tmp_path)
    assert all("--no-index" in step.command for step in todo.steps[1:])


def _wheel(folder: Path, name: str, version: str, module: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", module)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_made_from_a_folder_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, vendor, path = tmp_path / "wheels", tmp_path / "vendor", tmp_path / "engine"
    wheels.mkdir()
    vendor.mkdir()
    for module in ("msgspec", "psutil"):  # the daemon's libraries, which the engine sees too
        (vendor / f"{module}.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(vendor))
    for name, requirement in OTHERS.items():
        _wheel(wheels, name, requirement.partition(">=")[2] + ".9", "")
    base = Found(sys.executable, "", "", "cpu", NO_TORCH)
    monkeypatch.setattr(setup_engine, "look", lambda pythons: [base])
    file = tmp_path / "config.yaml"
    file.write_text("# mine\nprofile: default\n")
    loaded = config.load(file, profile_dirs=(), environ={}, flags={})
    options = {"wheels": wheels, "index_url": "", "only_say": False, "ask": False}

    with pytest.raises(YoutuError, match=r"this failed: .*torch"):
        setup_engine.setup(loaded, path, **options)
    assert not path.exists(), "half an environment stayed"
    assert "engine" not in file.read_text()

    _wheel(wheels, "torch", "2.9.0", TORCH_MODULE)
    setup_engine.setup(loaded, path, **options)
    assert file.read_text() == f"# mine\nprofile: default\nengine:\n  python: {path}/bin/python\n"
    made = setup_engine.probe(f"{path}/bin/python")
    assert made is not None
    assert (made.torch, made.wrong) == ("2.9.0", {})
