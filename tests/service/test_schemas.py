"""Every field of every request body has an upper bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from youtu_llm.service.http.schemas import BODIES, Body

BOUND = {"string": "maxLength", "array": "maxItems"}


def unbounded(schema: dict[str, Any], where: str) -> Iterator[str]:
    """Places in a JSON schema that take values of any size."""
    for name, part in (schema.get("properties", {}) | schema.get("$defs", {})).items():
        yield from unbounded(part, f"{where}.{name}")
    for part in schema.get("anyOf", []):
        yield from unbounded(part, where)
    if "items" in schema:
        yield from unbounded(schema["items"], f"{where}[]")
    kind = schema.get("type")
    if "enum" in schema or "const" in schema or kind in ("boolean", "null") or "$ref" in schema:
        return
    if kind in ("integer", "number"):
        if "maximum" not in schema or not {"minimum", "exclusiveMinimum"} & schema.keys():
            yield where
    elif kind in BOUND:
        if BOUND[kind] not in schema:
            yield where
    elif kind != "object" and "anyOf" not in schema and "properties" not in schema:
        yield where


@pytest.mark.parametrize("body", BODIES)
def test_bounds(body: type[Body]) -> None:
    schema = body.model_json_schema()
    assert schema["properties"]
    assert list(unbounded(schema, body.__name__)) == []


def test_the_walk_finds_what_is_unbounded() -> None:
    schema = {"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}
    assert list(unbounded(schema, "x")) == ["x.a"]
