"""An account of a person in a folder of its own, whoever runs the tests.

Its daemon is the real one, with the fake engine and a model of bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

TESTS = Path(__file__).parent
YOUTU = (sys.executable, "-c", "import sys, youtu_llm.cli as c; sys.exit(c.main())")
# Imported at the start of every Python, also of those that ours start.
AS_PERSON = "import youtu_llm.paths\nyoutu_llm.paths._is_system = lambda: False\n"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


def environ(folder: Path) -> dict[str, str]:
    """Variables under which commands take `folder` for the home of a person."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(AS_PERSON)
    run = folder / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return kept | {"HOME": str(folder), "XDG_RUNTIME_DIR": str(run), "PYTHONPATH": str(site)}


class Person:
    """`folder` must have a short path (Unix sockets)."""

    def __init__(self, folder: Path, *, load_s: float = 0.0) -> None:
        self.folder = folder
        self.environ = environ(folder)
        self.models = folder / ".local/share/youtu/models"
        self.state = folder / ".local/state/youtu"
        self.socket = folder / "run/youtu/youtu.sock"
        self.config_file = folder / ".config/youtu/config.yaml"
        self.config_file.parent.mkdir(parents=True)
        python = folder / "python"
        engine = f"{sys.executable} {TESTS / 'fake_engine.py'}"
        python.write_text(f'#!/bin/sh\nshift 2\nexec {engine} --load-s {load_s} "$@"\n')
        python.chmod(0o755)
        self.config = {"engine": {"python": str(python)}}
        self.configure()
        for name in ("one", "two"):
            self.make_model(name)

    def configure(self, **sections: object) -> None:
        self.config_file.write_text(json.dumps(self.config | sections))

    def make_model(self, name: str) -> None:
        folder = self.models / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        printable = [n for n in range(256) if chr(n) in alphabet]
        others = [n for n in range(256) if chr(n) not in alphabet]  # GPT-2 moves these up
        vocab = {chr(n): n for n in printable} | {chr(256 + i): n for i, n in enumerate(others)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(["<end>"])
        backend.save(str(folder / "tokenizer.json"))
        config = {"eos_token": "<end>", "chat_template": TEMPLATE}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))

    def youtu(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*YOUTU, *args], env=self.environ, input=stdin, capture_output=True, text=True
        )

    def serve(self, model: str = "one") -> subprocess.Popen[bytes]:
        """In the foreground, once it listens."""
        log = (self.folder / "serve.log").open("wb")
        with log:
            command = [*YOUTU, "serve", "--model", model, "--port", "0"]
            process = subprocess.Popen(command, env=self.environ, stderr=log)
        while not self.socket.exists():
            assert process.poll() is None, (self.folder / "serve.log").read_text()
            time.sleep(0.02)
        return process
