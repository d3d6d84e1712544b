"""`youtu serve` with the fake engine: run_daemon.py CONFIG ENGINE_ARGS..., with the real one
(--real), or with the real one that has faults on demand (--faulty).

A model directory without a tokenizer gets the byte tokenizer.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from byte_tokenizer import ByteTokenizer

from youtu_llm import config
from youtu_llm.errors import YoutuError
from youtu_llm.service import app, thermal
from youtu_llm.service.http import application, head_deadline, sse
from youtu_llm.text.tokenizer import Tokenizer

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"
FAULTY_ENGINE = Path(__file__).parents[1] / "engine" / "faulty_engine.py"


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    path, *engine_args = sys.argv[1:]
    if deadline_s := os.environ.get("TEST_DEADLINE_S"):  # for tests that can't wait
        head_deadline.HEAD_DEADLINE_S = application.BODY_DEADLINE_S = float(deadline_s)
        sse.WRITE_DEADLINE_S = float(deadline_s)
    if interval_s := os.environ.get("TEST_INTERVAL_S"):
        sse.KEEP_ALIVE_S = thermal.INTERVAL_S = float(interval_s)
    loaded = config.load(
        Path(path), profile_dirs=[Path(path).parent / "profiles"], environ={}, flags={}
    )
    command: tuple[str, ...] = (sys.executable, str(FAKE_ENGINE), *engine_args)
    if engine_args == ["--real"]:
        command = ()
    elif engine_args == ["--faulty"]:
        command = (sys.executable, str(FAULTY_ENGINE))
    has_tokenizer = (Path(loaded.settings.model.name) / "tokenizer.json").exists()
    load = Tokenizer.load if has_tokenizer else ByteTokenizer.load
    try:
        return app.run(
            loaded,
            engine_command=command,
            load_tokenizer=load,
            state_dir=Path(path).parent / "state",
            system_root=Path(path).parent / "root",
        )
    except YoutuError as error:
        print(error.message, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
