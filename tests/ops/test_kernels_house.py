"""The sources of kernels/ form no circle, counting includes and calls."""

from __future__ import annotations

import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
COMMENT = re.compile(r"//[^\n]*|/\*[\s\S]*?\*/")
INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
# What is visible outside of its file is declared and defined in the first column.
DECLARED = re.compile(r"^[A-Za-z][\w ]*[ *&]+(\w+)\([^;{}]*\);", re.MULTILINE)
EXTERN = re.compile(r"^extern ([^;()]+);", re.MULTILINE)
DEFINED = re.compile(
    r"^[A-Za-z][\w ]*[ *&]+(\w+)(?:\([^;{}]*\) \{| = \{|;)|^\w+ (\w+);", re.MULTILINE
)


def dependencies(folder: str) -> dict[str, set[str]]:
    """Each unit (X.h with X.cpp) of a library -> the units that it includes or calls."""
    paths = [*(KERNELS / folder).rglob("*"), *(KERNELS / "include").iterdir()]
    texts = {
        p: COMMENT.sub("", p.read_text()) for p in paths if re.search(r"\.(h|c..|cu)$", p.name)
    }
    units = {p: str(p.relative_to(KERNELS).with_suffix("")) for p in texts}
    functions = {name for text in texts.values() for name in DECLARED.findall(text)}
    externs = ",".join(names for text in texts.values() for names in EXTERN.findall(text))
    variables = {name.split()[-1] for name in externs.split(",") if name}
    defined = {
        name: units[path]
        for path, text in texts.items()
        if path.suffix == ".cpp"
        for names in DEFINED.findall(text)
        for name in names
        if name in functions | variables
    }
    graph: dict[str, set[str]] = {unit: set() for unit in units.values()}
    for path, text in texts.items():
        for include in INCLUDE.findall(text):
            places = [(folder / include).resolve() for folder in (path.parent, KERNELS / "include")]
            graph[units[path]] |= {units[place] for place in places if place in texts}
        body = EXTERN.sub("", DECLARED.sub("", text))
        own = {name for names in DEFINED.findall(text) for name in names}
        called = set(re.findall(r"(?<![\w.>*])(\w+)\(", body)) & functions
        used = called | set(re.findall(r"\w+", body)) & variables
        graph[units[path]] |= {defined[name] for name in (used - own) & defined.keys()}
    for unit, others in graph.items():
        others.discard(unit)
    return graph


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_the_sources_form_no_circle(folder: str) -> None:
    graph = dependencies(folder)
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_calls_count_as_dependencies() -> None:
    graph = dependencies("cpu")
    assert {"cpu/checks", "cpu/engine", "cpu/isa_plain"} <= graph["cpu/library"]
    assert "cpu/linear" in graph["cpu/checks"] & graph["cpu/attention"]
    assert "cuda/driver" in dependencies("cuda")["cuda/operations"]
