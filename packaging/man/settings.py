"""The settings as groff, put in place of «@SETTINGS@» in the page on stdin."""

import sys
from typing import Any

from youtu_llm.settings import fields

LIMITS = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< "}


def bounds(info: Any) -> str:
    """What a value may be, as far as one line can say it."""
    found = [
        f"{sign}{getattr(rule, name)}"
        for rule in info.metadata
        for name, sign in LIMITS.items()
        if getattr(rule, name, None) is not None
    ]
    choices = getattr(info.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        found.append("one of " + ", ".join(choices))
    return "; ".join(found)


def quoted(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def settings() -> str:
    lines: list[str] = []
    for key, info in fields().items():
        default = "" if info.default in ("", (), None) else f" Default: {info.default}."
        limit = f" ({bounds(info)})" if bounds(info) else ""
        lines += [".TP", f".B {quoted(key)}", quoted(f"{info.description}{default}{limit}")]
    return "\n".join(lines)


sys.stdout.write(sys.stdin.read().replace("@SETTINGS@", settings()))
