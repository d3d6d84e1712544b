"""`youtu serve` with the fake engine: run_daemon.py CONFIG ENGINE_ARGS...

A model directory without a tokenizer gets the byte tokenizer.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from byte_tokenizer import ByteTokenizer

from youtu_llm import config
from youtu_llm.errors import YoutuError
from youtu_llm.service import app
from youtu_llm.text.tokenizer import Tokenizer

FAKE_ENGINE = Path(__file__).parents[1] / "fake_engine.py"


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    path, *engine_args = sys.argv[1:]
    loaded = config.load(
        Path(path), profile_dirs=[Path(path).parent / "profiles"], environ={}, flags={}
    )
    command = (sys.executable, str(FAKE_ENGINE), *engine_args)
    has_tokenizer = (Path(loaded.settings.model.name) / "tokenizer.json").exists()
    load = Tokenizer.load if has_tokenizer else ByteTokenizer.load
    try:
        return app.run(
            loaded,
            engine_command=command,
            load_tokenizer=load,
            state_dir=Path(path).parent / "state",
        )
    except YoutuError as error:
        print(error.message, file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
