"""The `youtu quantize` command: its options, and what they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from youtu_llm import paths


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a model's name, ./directory (with a slash) or .gguf file"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to make it")
    parser.add_argument(
        "--method",
        choices=("rtn", "awq", "gptq", "awq+gptq", "auto"),
        default="gptq",
        help="auto: the best of the others for each block (%(default)s)",
    )
    parser.add_argument(
        "--calib",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="texts to calibrate on, weighted equally (default: the bundled set)",
    )
    parser.add_argument("--w-bit", type=int, choices=(4,), default=4, help="(%(default)s)")
    parser.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=128,
        help="inputs that share a scale (%(default)s); CUDA takes 128 only",
    )
    parser.add_argument(
        "--head",
        choices=("int8", "fp16"),
        default="int8",
        help="embedding and head; with fp16 other programs can read the model (%(default)s)",
    )
    parser.add_argument(
        "--keep-int8",
        type=_names,
        default=(),
        metavar="NAME,...",
        help="linears kept in INT8: name prefixes, e.g. kv_b,down",
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name: give kv_b,down")
    return names


def run(args: argparse.Namespace) -> None:
    from youtu_llm.tools import engine_python

    engine_python.switch()
    from youtu_llm.tools.importer import require_extra

    require_extra()
    from youtu_llm.tools.quantize import calibration, rounding, run

    options = run.Options(
        method=args.method,
        recipe=rounding.Recipe(args.group_size, args.keep_int8),
        int8_head=args.head == "int8",
        calibration_files=tuple(args.calib) or calibration.DEFAULT_FILES,
    )
    is_gguf = args.model.endswith(".gguf")
    source = Path(args.model) if is_gguf else paths.find_model(args.model)
    print(run.quantize(source, args.out.resolve(), options))
