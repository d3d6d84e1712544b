"""docs/ADDING.md, followed word for word: its code goes into a copy of the package, which runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest

ROOT = Path(__file__).parents[2]
STEP = re.compile(r"[Ii]n `([^`]+)`, (above|below) the line `([^`]+)`\n\n```text\n(.*?)```", re.S)


def follow(paragraph: str, package: Path) -> None:
    """Carry out the steps of a paragraph of ADDING.md on a copy of the package."""
    text = (ROOT / "docs" / "ADDING.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^\*\*{paragraph}\.\*\*(.*?)(?=^\*\*|\Z)", text, re.S | re.M)
    steps = STEP.findall(body)
    assert len(steps) == body.count("```text")
    for name, where, anchor, code in steps:
        lines = (package / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (at,) = [i for i, line in enumerate(lines) if re.split("  #", line)[0].strip() == anchor]
        lines.insert(at + (where == "below"), code)
        (package / name).write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def copy() -> Iterator[Path]:
    """A checkout's daemon/ and what a daemon of the tests needs, at a path short enough for
    Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="youtu") as folder:
        root = Path(folder)
        shutil.copytree(ROOT / "daemon" / "youtu_llm", root / "daemon" / "youtu_llm")
        # An editable install would find the modules of the checkout first: this hides its hook.
        (root / "daemon" / "_editable_skbc_youtu.py").touch()
        (root / "tests" / "service").mkdir(parents=True)
        for name in ("fake_engine.py", "byte_tokenizer.py", "service/run_daemon.py"):
            shutil.copy(ROOT / "tests" / name, root / "tests" / name)
        yield root


def run(copy: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(copy / "daemon"), *sys.path])
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": path} | environ,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def start(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[harness.Daemon]]:
    """Daemons of the copy to stop at the end."""
    monkeypatch.setattr(harness, "TESTS", copy / "tests")
    monkeypatch.setattr(harness, "RUN_DAEMON", copy / "tests" / "service" / "run_daemon.py")
    daemons: list[harness.Daemon] = []
    yield daemons
    for daemon in daemons:
        daemon.stop()


def test_a_route(copy: Path, start: list[harness.Daemon]) -> None:
    follow("A route", copy / "daemon" / "youtu_llm")
    daemon = harness.Daemon(copy, {}, [])
    start.append(daemon)
    daemon.wait_for("ready")
    answer = daemon.http.post("/count", json={"text": "four"})
    assert (answer.status_code, answer.json()) == (200, {"tokens": 4})
    refused = daemon.http.post("/count", json={"text": 4})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "text")
    assert daemon.http.get("/count").status_code == 405
    bounds = run(
        copy,
        "-c",
        "from youtu_llm.service.http import schemas\n"
        "(body,) = [body for body in schemas.BODIES if body.__name__ == 'CountBody']\n"
        "print(body.model_json_schema()['properties']['text']['maxLength'])",
    )
    assert bounds.stdout == f"{1 << 20}\n", bounds.stderr


def test_a_profile_option(copy: Path, start: list[harness.Daemon]) -> None:
    follow("A profile option", copy / "daemon" / "youtu_llm")
    config = copy / "config.yaml"

    def youtu(text: str, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        config.write_text(text)
        environ |= {"YOUTU_CONFIG": str(config)}
        return run(copy, "-c", "from youtu_llm.cli import main; exit(main())", *command, **environ)

    shown = youtu("engine: {step_pause_ms: 7}", "config", "show")
    assert re.search(rf"^  step_pause_ms: 7 +# {config}:1:10$", shown.stdout, re.M), shown.stderr
    shown = youtu("", "config", "show", YOUTU_ENGINE__STEP_PAUSE_MS="8")
    assert "  step_pause_ms: 8 " in shown.stdout
    refused = youtu("engine: {step_pause_ms: 1001}", "config", "check")
    assert refused.returncode == 78
    assert "engine.step_pause_ms: must be at most 1000 (got 1001)" in refused.stderr
    schema = json.loads(youtu("", "config", "schema").stdout)
    field = schema["$defs"]["EngineSection"]["properties"]["step_pause_ms"]
    assert (field["minimum"], field["maximum"], field["default"]) == (0, 1000, 0)
    assert field["description"] == "Pause after each step of the engine. 0: none."

    # «!pages» is answered with a field of the EngineConfig that the engine got: let it be this one.
    engine = copy / "tests" / "fake_engine.py"
    source = engine.read_text(encoding="utf-8")
    assert source.count("str(config.kv_cache_max_page)") == 1
    engine.write_text(source.replace("config.kv_cache_max_page)", "config.step_pause_ms)", 1))
    (copy / "profiles").mkdir()
    (copy / "profiles" / "slow.yaml").write_text("engine: {step_pause_ms: 9}")
    daemon = harness.Daemon(copy, {"profile": "slow"}, [])
    start.append(daemon)
    daemon.wait_for("ready")
    assert daemon.chat("!pages").json()["text"] == "9"
