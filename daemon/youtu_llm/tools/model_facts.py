"""`youtu show`: what a model's files say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from youtu_llm import manifest, paths
from youtu_llm.errors import ModelError
from youtu_llm.tools import model_dir


def show(name: str) -> str:
    """Lines of name and value. Raises ModelError if there is no such model."""
    folder = paths.model_dir(name)
    if not (folder / "config.json").is_file():
        if "/" in name:
            raise ModelError(f"{folder} has no config.json: it is not a model directory")
        raise model_dir.missing(paths.models_dir(), name)
    config = _json(folder / "config.json")
    rows = [
        ("architecture", ", ".join(config.get("architectures") or ("unknown",))),
        ("context", f"{config.get('max_position_embeddings', 'unknown')} tokens"),
        ("template", "yes" if _has_template(folder) else "no: `youtu chat` cannot use it"),
    ]
    if (folder / manifest.MANIFEST).exists():
        info = model_dir.verify(folder)
        rows += [
            ("weights", info.quantization),
            ("bytes", f"{info.num_bytes:,}"),
            ("licence", info.license),
            ("accepted", info.license_accepted),
            ("source", info.source),
            ("digest", f"sha256:{manifest.sha256_of(folder / manifest.MANIFEST)}"),
        ]
    else:
        num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        rows += [
            ("bytes", f"{num_bytes:,}"),
            ("licence", "unknown"),
            ("digest", f"{manifest.identity(folder)} of names, sizes and times: no manifest"),
        ]
    return "\n".join(f"{key:<13} {value}" for key, value in rows if value)


def _has_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    in_config = config.is_file() and bool(_json(config).get("chat_template"))
    return (folder / "chat_template.jinja").is_file() or in_config


def _json(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is damaged ({error})") from error
    return tree
