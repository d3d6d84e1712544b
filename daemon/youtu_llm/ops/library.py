"""Finds and loads the native kernels; one table of their signatures.

The contract is kernels/include/youtu_kernels.h; a test compares it with this table.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import youtu_llm
from youtu_llm.errors import ModelError, ResourceError

ABI = 4
SYSTEM_DIR = Path("/usr/lib/youtu")
FLOAT32, FLOAT16 = 0, 1
FEW_ROWS = 32


class Step(ctypes.Structure):
    """`youtu_step`: one step's batch and cache."""

    _fields_ = (
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("query_start", c_void_p),
        ("context_len", c_void_p),
        ("page_table", c_void_p),
        ("page_addresses", c_void_p),
        ("num_tokens", c_int32),
        ("num_seqs", c_int32),
        ("table_width", c_int32),
        ("max_query_len", c_int32),
        ("max_context_len", c_int32),
        ("cache_width", c_int32),
        ("cache_dtype", c_int32),
        ("reserved", c_int32),
    )


_P, _I, _L, _F, _STEP = c_void_p, c_int32, c_int64, c_float, POINTER(Step)

# name: (result, arguments)
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "youtu_abi": (_I, ()),
    "youtu_workspace_bytes": (_L, (_I,)),
    "youtu_init": (_I, (_I, c_char_p, _P, _L)),
    "youtu_isa": (c_char_p, ()),
    "youtu_read_memory": (_I, (_P, _L, _P)),
    "youtu_int4_bytes": (_L, (_I, _I, _I)),
    "youtu_int4_pack": (_I, (_P, _P, _P, _P, _I, _I, _I, _P)),
    "youtu_int4_linear": (_I, (_P, _P, _P, _P, _I, _I, _I, _I, _L, _P)),
    "youtu_int8_linear": (_I, (_P, _P, _P, _P, _P, _I, _I, _I, _L, _P)),
    "youtu_dense_linear": (_I, (_P, _P, _P, _P, _I, _I, _I, _L, _P)),
    "youtu_int8_embed": (_I, (_P, _P, _P, _P, _I, _I, _I, _P)),
    "youtu_rms_norm": (_I, (_P, _P, _P, _I, _I, _L, _F, _P)),
    "youtu_add_rms_norm": (_I, (_P, _P, _P, _P, _I, _I, _F, _P)),
    "youtu_layer_norm": (_I, (_P, _P, _P, _P, _I, _I, _F, _P)),
    "youtu_silu_mul": (_I, (_P, _P, _I, _I, _P)),
    "youtu_gelu_tanh": (_I, (_P, _P, _L, _P)),
    "youtu_rope_cache": (_I, (_P, _P, _P, _I, _I, _STEP, _I, _I, _I, _I, _P)),
    "youtu_gqa_attention": (_I, (_P, _P, _L, _STEP, _I, _I, _I, _I, _F, _P)),
    "youtu_mla_rope_cache": (_I, (_P, _P, _L, _P, _P, _I, _I, _STEP, _I, _I, _I, _P)),
    "youtu_mla_attention": (
        _I,
        (_P, _P, _P, _I, _STEP, _I, _I, _I, _I, _I, _I, _F, _P),
    ),
    "youtu_int4_norm_linear": (
        _I,
        (_P, _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _I, _L, _F, _P),
    ),
    "youtu_int4_gated": (_I, (_P, _P, _P, _P, _I, _I, _I, _I, _L, _P)),
    "youtu_argmax": (_I, (_P, _P, _I, _I, _P)),
    "youtu_advance": (_I, (_P, _P, _P, _P, _P, _P, _P, _I, _P)),
    "youtu_mla_norm_rope_cache": (
        _I,
        (_P, _P, _P, _L, _P, _P, _I, _I, _STEP, _I, _I, _I, _F, _P),
    ),
    "youtu_mla_decode": (
        _I,
        (_P, _P, _P, _P, _P, _L, _P, _P, _I, _I, _STEP, _I, _I, _F, _F, _P),
    ),
    "youtu_cache_gather": (_I, (_P, _STEP, _I, _I, _I, _P)),
}
_ONLY = {
    "cpu": {"youtu_read_memory", "youtu_dense_linear"},
    "cuda": {
        "youtu_int4_norm_linear",
        "youtu_int4_gated",
        "youtu_argmax",
        "youtu_advance",
        "youtu_mla_norm_rope_cache",
        "youtu_mla_decode",
        "youtu_cache_gather",
    },
}

_ERRORS = {
    1: "a shape or pointer that the kernel does not take",
    2: "this machine lacks what was asked for",
    3: "the kernels' self-test failed on this machine",
}


# What the libraries write to. They know one workspace, the last one given, whatever became of the
# operations that gave it; models loaded before go on with it.
workspaces: dict[str, Any] = {}


def find(backend: str) -> Path:
    """The library of a backend ("cpu", "cuda"): beside the package, else the system's."""
    name = f"libyoutu_{backend}.so"
    # An editable install keeps Python in the source tree and built files in site-packages: the
    # package then has both places in its path.
    places = [Path(p) / "lib" for p in youtu_llm.__path__] + [SYSTEM_DIR]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise ModelError(
        f"{name} is in none of {', '.join(map(str, places))}: install the package with"
        " `pip install .`, or set engine.kernels to reference"
    )


def load(backend: str) -> ctypes.CDLL:
    """Load a backend's library and declare its functions.

    Raises ModelError if it is missing or of another version.
    """
    path = find(backend)
    library = ctypes.CDLL(str(path))
    library.youtu_abi.restype = c_int32
    if (abi := library.youtu_abi()) != ABI:
        raise ModelError(f"{path} has ABI {abi}, this program needs {ABI}: reinstall both together")
    for name, (result, arguments) in SIGNATURES.items():
        if any(name in only for other, only in _ONLY.items() if other != backend):
            continue
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def check(status: int, what: str) -> None:
    """Raise for a kernel's non-zero result."""
    if status == 0:
        return
    message = f"{what}: {_ERRORS.get(status, f'error {status}')}"
    raise ResourceError(message) if status == 2 else ModelError(message)
