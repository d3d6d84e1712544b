"""Pydantic's errors as messages for the editor of a settings file."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from youtu_llm.yamlsource import KeyPath, dotted, resolve

_WORDS = {
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "int_type": "must be a whole number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "model_type": "must be a group of keys",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must look like {pattern}",
    "list_type": "must be a list",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}
_PATTERNS = {
    r"^/": "an absolute path",
    r"^[0-9]{1,3}/[1-9][0-9]{0,5}$": "RESTARTS/SECONDS, such as 3/300",
    r"^[A-Za-z0-9._:-]+$": "a name of letters, digits and . _ : -",
    r"^[a-z0-9][a-z0-9_-]{0,63}$": "a profile's name (small letters, digits, - and _)",
}
_YES = ("yes", "on", "y", "1", "enable", "enabled")
_NO = ("no", "off", "n", "0", "disable", "disabled")
_SYNONYMS = {"gpu": "cuda", "fp16": "float16", "fp32": "float32", "bf16": "bfloat16"}
_SHOWN_CHARACTERS = 60


def value_error(error: Mapping[str, Any], *, secret: bool = False) -> str:
    """One of ValidationError.errors() -> «must be ... (got X), did you mean Y»."""
    context = dict(error.get("ctx", {}))
    if "pattern" in context:
        context["pattern"] = _PATTERNS.get(context["pattern"], context["pattern"])
    words = _WORDS.get(error["type"])
    text = words.format(**context) if words else str(error["msg"])
    if secret:
        return text
    hint = _better_value(error["type"], error["input"], context)
    return f"{text} (got {show(error['input'])})" + (f", did you mean {hint}" if hint else "")


def nearest_key(path: KeyPath, keys: Collection[str]) -> str | None:
    """The setting an unknown key probably stands for: a misspelt name, or the right name
    in the wrong section."""
    section, name = dotted(path[:-1]), str(path[-1]).lower().replace("-", "_")
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    by_name = {key.rpartition(".")[2]: key for key in (*keys, *siblings)}
    near = difflib.get_close_matches(name, [key.rpartition(".")[2] for key in siblings], 1, 0.6)
    near = near or difflib.get_close_matches(name, by_name, 1, 0.75)
    return by_name[near[0]] if near else None


def nearest(word: str, words: Iterable[str]) -> str | None:
    by_lower = {known.lower(): known for known in words}
    near = difflib.get_close_matches(word.lower(), by_lower, 1, 0.6)
    return by_lower[near[0]] if near else None


def show(value: Any) -> str:
    """A value as it would stand in the file, truncated."""
    if isinstance(value, Mapping):
        return "a group of keys"
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _better_value(kind: str, value: Any, context: Mapping[str, Any]) -> str | None:
    if kind == "bool_type" and str(value).lower() in (*_YES, *_NO):
        return "true" if str(value).lower() in _YES else "false"
    if kind in ("int_type", "float_type"):
        return _better_number(str(value), whole=kind == "int_type")
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return f'"{show(value)}"'
    if kind == "tuple_type" and isinstance(value, str):
        return f"[{show(value)}]"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected")))
        word = _SYNONYMS.get(str(value).lower(), str(value))
        return nearest(word, choices)
    return None


def _better_number(text: str, *, whole: bool) -> str | None:
    """The number in «"64"», «20s», «70%» or «1_000»."""
    match = re.match(r"[-+]?[0-9]*\.?[0-9]+", text.strip().replace("_", ""))
    number = resolve(match[0]) if match else None
    if not isinstance(number, (int, float)):
        return None
    if text.endswith("%"):
        number /= 100
    if whole:
        return show(int(number)) if number == int(number) else None
    return show(number)
