"""`youtu serve` with the fake engine: run_daemon.py CONFIG ENGINE_ARGS..., or with --real.

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
from youtu_llm.service import app, board, guard
from youtu_llm.service.api import routes, sse
from youtu_llm.text.tokenizer import Tokenizer

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    path, *engine_args = sys.argv[1:]
    if deadline_s := os.environ.get("TEST_DEADLINE_S"):  # for tests that can't wait
        guard.HEAD_DEADLINE_S = routes.BODY_DEADLINE_S = float(deadline_s)
        sse.WRITE_DEADLINE_S = float(deadline_s)
    if interval_s := os.environ.get("TEST_INTERVAL_S"):
        sse.KEEP_ALIVE_S = board.INTERVAL_S = float(interval_s)
    loaded = config.load(
        Path(path), profile_dirs=[Path(path).parent / "profiles"], environ={}, flags={}
    )
    is_real = engine_args == ["--real"]
    command = () if is_real else (sys.executable, str(FAKE_ENGINE), *engine_args)
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
