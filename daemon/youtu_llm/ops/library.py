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


# Each function's arguments, by kind: P pointer, I int32, L int64, F float, S string, STEP.
_ARGUMENTS = {
    "youtu_abi": "",
    "youtu_workspace_bytes": "I threads",
    "youtu_init": "I threads, S isa, P workspace, L bytes",
    "youtu_isa": "",
    "youtu_read_memory": "P data, L bytes, P stream",
    "youtu_int4_bytes": "I n k group",
    "youtu_int4_pack": "P packed qweight qzeros scales, I n k group, P stream",
    "youtu_int4_linear": "P y x packed bias, I num_tokens n k group, L x_stride, P stream",
    "youtu_int8_linear": "P y x weight scales bias, I num_tokens n k, L x_stride, P stream",
    "youtu_dense_linear": "P y x weight bias, I num_tokens n k, L x_stride, P stream",
    "youtu_int8_embed": "P y ids weight scales, I num_tokens n vocab, P stream",
    "youtu_rms_norm": "P y x weight, I num_tokens n, L x_stride, F eps, P stream",
    "youtu_add_rms_norm": "P y residual x weight, I num_tokens n, F eps, P stream",
    "youtu_layer_norm": "P y x weight bias, I num_tokens n, F eps, P stream",
    "youtu_silu_mul": "P y gate_up, I num_tokens n, P stream",
    "youtu_gelu_tanh": "P y x, L count, P stream",
    "youtu_rope_cache": (
        "P qkv cos sin, I rope_dim interleaved, STEP step, "
        "I num_heads num_kv_heads head_dim layer, P stream"
    ),
    "youtu_gqa_attention": (
        "P out q, L q_stride, STEP step, I num_heads num_kv_heads head_dim layer, F scale, P stream"
    ),
    "youtu_mla_rope_cache": (
        "P q latent, L latent_stride, P cos sin, I rope_dim interleaved, STEP step, "
        "I num_heads q_dim layer, P stream"
    ),
    "youtu_mla_attention": (
        "P out q kv_b, I group, STEP step, I num_heads nope_dim rope_dim v_dim rank layer, "
        "F scale, P stream"
    ),
    "youtu_int4_norm_linear": (
        "P y x_out x delta norm packed bias, I num_tokens n k group gated, L x_stride, F eps, "
        "P stream"
    ),
    "youtu_int4_gated": "P y x packed bias, I num_tokens n k group, L x_stride, P stream",
    "youtu_argmax": "P ids x, I num_rows n, P stream",
    "youtu_advance": "P ids positions slots context_len next found turn, I num_rows, P stream",
    "youtu_mla_norm_rope_cache": (
        "P q latent norm, L latent_stride, P cos sin, I rope_dim interleaved, STEP step, "
        "I num_heads q_dim layer, F eps, P stream"
    ),
    "youtu_mla_decode": (
        "P out q latent norm kv_b, L latent_stride, P cos sin, I interleaved group, STEP step, "
        "I num_heads layer, F scale eps, P stream"
    ),
    "youtu_cache_gather": "P y, STEP step, I sequence count layer, P stream",
}
_RESULTS = {"youtu_workspace_bytes": c_int64, "youtu_int4_bytes": c_int64, "youtu_isa": c_char_p}


def _kinds(arguments: str) -> dict[str, Any]:
    kinds = {"P": c_void_p, "I": c_int32, "L": c_int64, "F": c_float, "S": c_char_p}
    kinds["STEP"] = POINTER(Step)
    parts = [part.split() for part in arguments.split(",") if part]
    return {name: kinds[kind] for kind, *names in parts for name in names}


# name: (result, {argument: type})
SIGNATURES: dict[str, tuple[Any, dict[str, Any]]] = {
    name: (_RESULTS.get(name, c_int32), _kinds(arguments)) for name, arguments in _ARGUMENTS.items()
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
    1: "a shape, pointer or token id that the kernel does not take",
    2: "this machine lacks what was asked for",
    3: "the kernels' self-test failed on this machine",
}


# Each library keeps one global workspace, the last one given, and all loaded models use it: keep it
# alive here.
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
        function.restype, function.argtypes = result, tuple(arguments.values())
        if "stream" in arguments:
            function.errcheck = _check_operation
    return library


def _check_operation(status: int, function: Any, values: tuple[Any, ...]) -> int:
    """ctypes calls this after each operation; its error names the operation and its numbers."""
    if status:
        kinds = SIGNATURES[function.__name__][1]
        numbers: dict[str, Any] = {}
        for (name, kind), value in zip(kinds.items(), values, strict=True):
            if isinstance(value, ctypes.Structure):
                fields = [f[0] for f in value._fields_ if f[1] is not c_void_p]
                numbers |= {field: getattr(value, field) for field in fields}
            elif kind is not c_void_p:
                numbers[name] = value
        shape = ", ".join(f"{name}={value}" for name, value in numbers.items())
        check(status, f"{function.__name__} with {shape}")
    return status


def check(status: int, what: str) -> None:
    """Raise for a non-zero result: ResourceError for what the machine lacks, else ModelError."""
    if status == 0:
        return
    message = f"{what}: {_ERRORS.get(status, f'error {status}')}"
    raise ResourceError(message) if status == 2 else ModelError(message)
