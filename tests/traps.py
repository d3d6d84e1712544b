"""A folder that a command must not import from: each of its modules leaves a mark when it runs."""

from __future__ import annotations

from pathlib import Path

NAMES = (
    *("json", "pip", "torch", "msgspec", "psutil", "numpy", "yaml", "logging", "runpy", "zipfile"),
    *("safetensors", "youtu_llm", "sitecustomize", "usercustomize", "socket", "ctypes", "platform"),
)


def make(folder: Path) -> Path:
    """The folder that holds the modules; `sprung` says which of them ran."""
    folder.mkdir()
    for name in NAMES:
        mark = folder / f"{name}.ran"
        (folder / f"{name}.py").write_text(
            f"open({str(mark)!r}, 'w').close()\nraise SystemExit(99)"
        )
    return folder


def sprung(folder: Path) -> list[str]:
    return sorted(mark.stem for mark in folder.glob("*.ran"))
