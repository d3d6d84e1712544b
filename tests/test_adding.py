"""docs/ADDING.md, followed word for word in a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

SAMPLING_OPTION = (
    "**A sampling option.** An annotated field of `SamplingParams` in `sampling.py`: the value"
    " that turns it off, and an `Option` with its description, its default in config.yaml and its"
    " bounds. Its use in `engine/sampler.py`, where `is_greedy` has to know it if it may change a"
    " greedy choice. config.yaml and its schema, the request bodies, the message to the engine and"
    " the flags of `youtu chat` follow."
)

ASK = """
import asyncio, contextlib, io, json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# An editable install would be found before the copy in PYTHONPATH.
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable")]

from aiohttp.test_utils import TestClient, TestServer
from byte_tokenizer import ByteTokenizer
from pydantic import ValidationError

from youtu_llm import cli, protocol
from youtu_llm.settings import Settings
from youtu_llm.service.http.access import Access
from youtu_llm.service.http.application import make_application
from youtu_llm.service.http.chat import ChatRoutes
from youtu_llm.service.live import LiveConfig
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.requests.admission import Admission
from youtu_llm.service.requests.pipeline import Pipeline
from youtu_llm.service.status import State, Status
from youtu_llm.service.supervision.client import EngineClient
from youtu_llm.service.thermal import ThermalMonitor

def refusal(value):
    try:
        Settings.model_validate({"sampling": {"floor_p": value}})
    except ValidationError as error:
        return error.errors()[0]["type"]

async def post(settings, *bodies):
    status, metrics = Status(), Metrics()
    client = EngineClient(metrics)
    sent = []

    def send(message):
        frame = protocol.encode(message)
        add = protocol.to_engine_decoder.decode(frame[protocol.HEADER.size :])
        sent.append(add.params.floor_p)
        client.deliver(protocol.Step((protocol.Output(add.id, (120,), "stop"),)))

    pages, memory = protocol.PageStats(), protocol.MemoryStats()
    status.hello = protocol.Hello("fake", "none", "cpu", 2048, 0, 257, (256,), 0.0, pages, memory)
    status.change(State.READY)
    client.attach(lambda m: asyncio.get_running_loop().call_soon(send, m), status.hello)
    admission = Admission(LiveConfig(settings, tokenizer=ByteTokenizer()), status)
    pipeline = Pipeline(admission, client, metrics, ThermalMonitor(Path("/")), ThreadPoolExecutor(1))
    routes = ChatRoutes(pipeline).routes
    access = Access.of(settings.service)
    server = TestServer(make_application(access, metrics, pipeline.admit, routes))
    async with TestClient(server) as http:
        answers = []
        for body in bodies:
            answer = await http.post("/chat", json={"prompt": "a", "stream": False} | body)
            error = (await answer.json()).get("error", {})
            answers.append((answer.status, error.get("message")))
        return answers, sent

help = io.StringIO()
with contextlib.redirect_stdout(help), contextlib.suppress(SystemExit):
    cli.main(["chat", "--help"])
settings = Settings.model_validate({"sampling": {"floor_p": 0.25}})
answers, sent = asyncio.run(post(settings, {}, {"floor_p": 0.5}, {"floor_p": 1.5}))
print(json.dumps({
    "default": Settings().sampling.floor_p,
    "refused": [refusal(-0.1), refusal(1.5), refusal(0.5)],
    "answers": answers,
    "sent": sent,
    "help": help.getvalue(),
}))
"""

DRAW = """
import sys

sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable")]

import torch

from youtu_llm.engine.sampler import Sampler
from youtu_llm.engine.sequence import Sequence
from youtu_llm.protocol import SamplingParams

logits = torch.tensor([[0.6, 0.3, 0.1]]).log()  # [1, vocab]
for floor_p in (0.0, 0.2):
    drawn = set()
    for seed in range(100):
        params = SamplingParams(temperature=1.0, floor_p=floor_p, seed=seed)
        drawn.update(Sampler().sample(logits, [Sequence("a", [0], params, arrival_s=0.0)]))
    print(sorted(drawn))
"""


def run(folder: Path, script: str) -> str:
    """What `script` prints with the package in `folder`."""
    path = os.pathsep.join((str(folder), str(ROOT / "tests")))
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def insert(file: Path, before: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{file.name}: {before}"
    file.write_text(text.replace(before, new + before), encoding="utf-8")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    ignore = shutil.ignore_patterns("__pycache__", "lib", "*.so")
    made = tmp_path / "youtu_llm"
    shutil.copytree(ROOT / "daemon" / "youtu_llm", made, ignore=ignore)
    return made


def test_a_sampling_option(package: Path) -> None:
    guide = (ROOT / "docs" / "ADDING.md").read_text(encoding="utf-8")
    assert SAMPLING_OPTION in " ".join(guide.split())
    insert(
        package / "sampling.py",
        "    stop_token_ids: tuple[int, ...] = ()\n",
        "    floor_p: Annotated[\n"
        '        float, Option("Drop tokens less likely than this.", 0.1, ge=0.0, le=1.0)\n'
        "    ] = 0.0\n",
    )
    insert(
        package / "engine" / "sampler.py",
        "    cumulative = probs",
        "    if params.floor_p > 0.0:\n        probs = probs * (probs >= params.floor_p)\n",
    )
    report: dict[str, Any] = json.loads(run(package.parent, ASK))
    assert report["default"] == 0.1
    assert report["refused"] == ["greater_than_equal", "less_than_equal", None]
    assert report["answers"] == [
        [200, None],
        [200, None],
        [400, "floor_p: must be at most 1.0 (got 1.5)"],
    ]
    assert report["sent"] == [0.25, 0.5]
    assert "--floor-p N" in report["help"]
    assert "Drop tokens less likely than this." in report["help"]
    pytest.importorskip("torch")
    assert run(package.parent, DRAW) == "[0, 1, 2]\n[0, 1]\n"
