"""`youtu setup-engine`: find a Python with torch on this machine, or create one.

The platform's own torch comes first (on JetPack it is the one built for the board's CUDA). What
it lacks, or all of it, goes into a virtual environment, so the system stays unchanged.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from youtu_llm import child_python
from youtu_llm.config import Loaded
from youtu_llm.errors import ModelError, YoutuError
from youtu_llm.tools import configure

DEFAULT_PATH = Path("/opt/youtu/engine")
TORCH = "torch>=2.5"
# module -> requirement: what the engine, `youtu pull` and `youtu import` need beside torch.
OTHERS = {
    "numpy": "numpy>=1.26",
    "safetensors": "safetensors>=0.4",
    "gguf": "gguf>=0.16",
    "huggingface_hub": "huggingface_hub>=0.23",
    "rich": "rich>=13",
}
PROBE_TIMEOUT_S = 120  # torch from a slow card
_PROBE = """
import importlib.util, json, platform, sys
wrong = {n: "not installed" for n in sys.argv[1:] if importlib.util.find_spec(n) is None}
about = {"version": platform.python_version(), "wrong": wrong, "torch": "", "device": "cpu"}
try:
    import torch
    about["torch"] = torch.__version__
    if torch.cuda.is_available():
        about["device"] = torch.cuda.get_device_name()
except (ImportError, OSError) as error:  # OSError: a library that torch itself loads
    wrong["torch"] = str(error)
print(json.dumps(about))
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A Python and what it can import. `wrong`: module -> why it cannot be imported."""

    python: str
    version: str
    torch: str
    device: str
    wrong: dict[str, str]

    def __str__(self) -> str:
        torch = f"torch {self.torch} on {self.device}" if self.torch else "no torch"
        lacks = [name for name in self.wrong if name != "torch"]
        return f"{self.python}: Python {self.version}, {torch}" + (
            f", without {', '.join(lacks)}" if lacks else ""
        )


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and why."""

    why: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps that make `python` complete; none if it is."""

    python: str
    steps: tuple[Step, ...]


def setup(
    loaded: Loaded, path: Path, *, wheels: Path | None, index_url: str, only_say: bool, ask: bool
) -> None:
    """Print what was found and what is to do, do it, and set engine.python in config.yaml.
    Raises ModelError, ConfigError, YoutuError."""
    file = loaded.sources.config_file
    assert file is not None
    configured = loaded.settings.engine.python or sys.executable
    found = list(look((configured, sys.executable, str(path / "bin/python"))))
    print("\n".join(f"found {one}" for one in found))
    todo = plan(found, path, wheels=wheels, index_url=index_url)
    tasks = [step.why for step in todo.steps]
    if todo.python != configured:
        tasks.append(f"engine.python: {todo.python} in {file}")
    if not tasks:
        print("Nothing to do: the engine has what it needs.")
        return
    print("To do:", *tasks, sep="\n  - ")
    if only_say:
        return
    if ask and not _confirmed():
        raise YoutuError("cancelled, nothing changed; answer y or pass --yes")
    if todo.steps:
        print(f"made {carry_out(todo, path)}")
    configure.set_value(file, "engine.python", todo.python)
    print(f"{file}: engine.python: {todo.python}. `sudo youtu restart` makes it live.")


def _confirmed() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and input("Continue? [y/N] ").lower() == "y"


def look(pythons: Sequence[str]) -> Iterator[Found]:
    """What each Python can import; those that do not run are left out."""
    for python in dict.fromkeys(pythons):
        if found := probe(python):
            yield found


def probe(python: str) -> Found | None:
    # Not isolated: the engine inherits PYTHONPATH too, and with it the daemon's libraries.
    command = child_python.code(python, _PROBE, *OTHERS, "msgspec", "psutil")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
        about = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    return Found(python, about["version"], about["torch"], about["device"], about["wrong"])


def plan(
    found: Sequence[Found], path: Path, *, wheels: Path | None = None, index_url: str = ""
) -> Plan:
    """The first Python that has all; else an environment over the first that has torch; else
    one with a torch of its own. Raises ModelError when that torch must be downloaded by hand."""
    for candidate in found:
        if not candidate.wrong:
            return Plan(candidate.python, ())
    python = str(path / "bin/python")
    platform_torch = next((one for one in found if one.torch), None)
    if platform_torch is not None and platform_torch.python != python:
        missing = [OTHERS[name] for name in OTHERS if name in platform_torch.wrong]
        venv = (platform_torch.python, "-I", "-m", "venv", "--system-site-packages", str(path))
        steps = [Step(f"an environment in {path} that uses the platform's torch", venv)]
    else:
        missing = list(OTHERS.values())
        base = next((one.python for one in found if one.python != python), sys.executable)
        steps = [
            Step(f"an environment of its own in {path}", (base, "-I", "-m", "venv", str(path)))
        ]
        steps.append(_torch_step(python, wheels, index_url))
    others = (*_pip(python, wheels), *missing)
    steps.append(Step("what the engine and `youtu pull` need beside torch", others))
    return Plan(python, tuple(steps))


def _torch_step(python: str, wheels: Path | None, index_url: str) -> Step:
    install = _pip(python, wheels)
    if index_url:
        return Step("torch from the index you named", (*install, "--index-url", index_url, TORCH))
    if wheels is not None:
        return Step(f"torch from {wheels}", (*install, TORCH))
    if release := l4t_release():
        raise ModelError(
            f"this is a Jetson (L4T {release}) without torch, and the package index's torch is"
            " not built for its CUDA: get NVIDIA's wheel for this JetPack into a folder and run"
            " `youtu setup-engine --wheels FOLDER` (docs/INSTALL.md)"
        )
    if Path("/proc/driver/nvidia/version").exists():
        return Step("torch with CUDA, about 3 GB to download", (*install, TORCH))
    if platform.machine() == "x86_64":
        why = "torch; its default build brings about 3 GB of CUDA that this machine cannot use;"
        return Step(f"{why} --index-url or --wheels get a CPU build", (*install, TORCH))
    return Step("torch, about 0.2 GB to download", (*install, TORCH))


def _pip(python: str, wheels: Path | None) -> tuple[str, ...]:
    source = () if wheels is None else ("--no-index", "--find-links", str(wheels))
    return (python, "-I", "-m", "pip", "install", *source)


def l4t_release(file: Path = Path("/etc/nv_tegra_release")) -> str:
    """NVIDIA's Linux for Tegra, such as 36.4: JetPack 6 is 36, JetPack 7 is 38. Else empty."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return ""
    numbers = re.search(r"R(\d+).*?REVISION: ([\d.]+)", text)
    return ".".join(numbers.groups()) if numbers else "unknown"


def carry_out(todo: Plan, path: Path) -> Found:
    """Run the steps; returns what the Python can import then. Raises YoutuError and leaves no half
    environment behind."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    was_there = path.exists()
    try:
        for step in todo.steps:
            print(f"- {step.why}")
            if subprocess.run(step.command, env=environ).returncode:
                raise YoutuError(f"this failed: {shlex.join(step.command)}{_hint(step)}")
        found = probe(todo.python)
        if found is None or found.wrong:
            wrong = found.wrong if found else {"python": "it does not run"}
            reasons = "; ".join(f"{name}: {why}" for name, why in wrong.items())
            raise YoutuError(f"{todo.python} still lacks something: {reasons}")
    except BaseException:
        if not was_there:
            shutil.rmtree(path, ignore_errors=True)
        raise
    return found


def _hint(step: Step) -> str:
    if "venv" in step.command:
        return " (on Debian and Ubuntu: apt install python3-venv; below /opt it needs sudo)"
    return " (without network: --wheels FOLDER)" if "--no-index" not in step.command else ""
