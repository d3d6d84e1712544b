"""The JSON files of a model directory, which service and engine read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from youtu_llm.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """Empty if there is no such file. Raises ModelError unless it holds a JSON object."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}): {_REMEDY}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} is not a JSON object: {_REMEDY}")
    return values


def eos_token_ids(model_dir: Path) -> tuple[int, ...]:
    """The tokens that end an answer, by generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(model_dir / name).get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (int(ids),)
    return ()


_REMEDY = "pull or import the model again"
