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

ABI = 5
SYSTEM_DIR = Path("/usr/lib/youtu")
FLOAT32, FLOAT16 = 0, 1
FEW_ROWS = 32

# How this file writes types down. A struct of the header goes by its name there.
_KINDS: dict[str, Any] = {"P": c_void_p, "I": c_int32, "L": c_int64, "F": c_float, "S": c_char_p}


def _fields(text: str) -> list[tuple[str, Any]]:
    """(name, type) of each field or argument: "P y x, I n" is two pointers and an int32."""
    parts = [part.split() for part in text.split(",") if part]
    return [(name, _KINDS[kind]) for kind, *names in parts for name in names]


class Step(ctypes.Structure):
    """One step's batch and cache."""

    _fields_ = _fields(
        "P positions slots query_start context_len page_table page_addresses, "
        "I num_tokens num_seqs table_width max_query_len max_context_len cache_width cache_dtype "
        "reserved"
    )


class MlaAttention(ctypes.Structure):
    _fields_ = _fields(
        "P out q kv_b, I group num_heads nope_dim rope_dim v_dim rank layer, F scale"
    )


class NormLinear(ctypes.Structure):
    _fields_ = _fields(
        "P y x_out x delta norm packed bias, L x_stride, I num_tokens n k group gated, F eps"
    )


class MlaNormRopeCache(ctypes.Structure):
    _fields_ = _fields(
        "P q latent norm cos sin, L latent_stride, I rope_dim interleaved num_heads "
        "q_dim layer, F eps"
    )


class MlaDecode(ctypes.Structure):
    _fields_ = _fields(
        "P out q latent norm kv_b cos sin, L latent_stride, I interleaved group "
        "num_heads layer, F scale eps"
    )


# By their names in the header; NAME_args are the arguments of function NAME.
STRUCTS: dict[str, type[ctypes.Structure]] = {
    "youtu_step": Step,
    "youtu_mla_attention_args": MlaAttention,
    "youtu_int4_norm_linear_args": NormLinear,
    "youtu_mla_norm_rope_cache_args": MlaNormRopeCache,
    "youtu_mla_decode_args": MlaDecode,
}
_KINDS |= {name: POINTER(struct) for name, struct in STRUCTS.items()}

# Each function's arguments.
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
        "P qkv cos sin, I rope_dim interleaved, youtu_step step, "
        "I num_heads num_kv_heads head_dim layer, P stream"
    ),
    "youtu_gqa_attention": (
        "P out q, L q_stride, youtu_step step, I num_heads num_kv_heads head_dim layer, F scale, "
        "P stream"
    ),
    "youtu_mla_rope_cache": (
        "P q latent, L latent_stride, P cos sin, I rope_dim interleaved, youtu_step step, "
        "I num_heads q_dim layer, P stream"
    ),
    "youtu_mla_attention": "youtu_mla_attention_args args, youtu_step step, P stream",
    "youtu_int4_norm_linear": "youtu_int4_norm_linear_args args, P stream",
    "youtu_int4_gated": "P y x packed bias, I num_tokens n k group, L x_stride, P stream",
    "youtu_argmax": "P ids x, I num_rows n, P stream",
    "youtu_advance": "P ids positions slots context_len next found turn, I num_rows, P stream",
    "youtu_mla_norm_rope_cache": "youtu_mla_norm_rope_cache_args args, youtu_step step, P stream",
    "youtu_mla_decode": "youtu_mla_decode_args args, youtu_step step, P stream",
    "youtu_cache_gather": "P y, youtu_step step, I sequence count layer, P stream",
}
_RESULTS = {"youtu_workspace_bytes": c_int64, "youtu_int4_bytes": c_int64, "youtu_isa": c_char_p}

# name: (result, {argument: type})
SIGNATURES: dict[str, tuple[Any, dict[str, Any]]] = {
    name: (_RESULTS.get(name, c_int32), dict(_fields(arguments)))
    for name, arguments in _ARGUMENTS.items()
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
        f"{name} not found in {', '.join(map(str, places))}: install the package with"
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
