"""Making a model needs torch: where the engine has a Python of its own, that one has it."""

from __future__ import annotations

import os
import sys

from youtu_llm.tools import configure


def switch() -> None:
    """Run this command again under the engine's Python, unless it already is."""
    python = configure.load().settings.engine.python
    if python and python != sys.executable:
        os.execv(python, [python, "-I", "-B", *sys.argv])
