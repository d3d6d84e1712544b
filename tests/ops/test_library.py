"""The signature table says what the header says."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from youtu_llm.errors import ModelError
from youtu_llm.ops import library

HEADER = Path(__file__).parents[2] / "kernels/include/youtu_kernels.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "const char*": ctypes.c_char_p,
    **{f"const {name}*": ctypes.POINTER(struct) for name, struct in library.STRUCTS.items()},
}


def ctype(c: str) -> object:
    return TYPES.get(c) or (
        ctypes.c_void_p if c.endswith("*") else pytest.fail(f"unknown type {c}")
    )


def test_functions_match_the_header() -> None:
    declared = {}
    pattern = r"YOUTU_API\s+((?:const )?\w+\*?)\s+(youtu_\w+)\(([^)]*)\);"
    for result, name, arguments in re.findall(pattern, TEXT):
        parts = [] if arguments == "void" else [a.strip() for a in arguments.split(",")]
        pairs = [re.sub(r"\s+", " ", part).rsplit(" ", 1) for part in parts]
        kinds = {argument: ctype(kind) for kind, argument in pairs}
        declared[name] = (ctype(result), kinds)
    assert declared == library.SIGNATURES
    assert max(len(kinds) for _, kinds in declared.values()) <= 12


def test_structs_and_constants_match_the_header() -> None:
    structs = dict(re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", TEXT, re.DOTALL))
    assert structs.keys() == library.STRUCTS.keys()
    for struct, body in structs.items():
        fields = re.findall(r"([\w ]+\*?) (\w+);", body)
        declared = [(name, ctype(kind.strip())) for kind, name in fields]
        assert declared == list(library.STRUCTS[struct]._fields_)
    constants = dict(re.findall(r"#define (YOUTU_\w+) (\d+)", TEXT))
    assert int(constants["YOUTU_KERNELS_ABI"]) == library.ABI
    assert int(constants["YOUTU_FLOAT32"]) == library.FLOAT32
    assert int(constants["YOUTU_FLOAT16"]) == library.FLOAT16
    assert int(constants["YOUTU_FEW_ROWS"]) == library.FEW_ROWS


def test_a_missing_library_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"pip install|engine\.kernels"):
        library.find("abacus")
