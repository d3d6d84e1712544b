"""The device code checks its shared memory against what the host asks for (NVRTC, no GPU)."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"


def load_compile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_cuda", KERNELS / "cuda/compile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count == 1
    path.write_text(text)


def test_enlarging_attend_shared_needs_the_constant(tmp_path: Path) -> None:
    module = load_compile()
    if module.main(["--check"]):
        pytest.skip("this Python has no NVRTC (nvidia-cuda-nvrtc-cu12, nvidia-cuda-runtime-cu12)")
    cuda = shutil.copytree(KERNELS / "cuda", tmp_path / "cuda")

    def compile_mla() -> None:
        module.Compiler().compile(cuda / "mla.cu", KERNELS / "include", "compute_80")

    compile_mla()
    edit(cuda / "mla.cu", r"float correction\[16\];", "float correction[16 + 4];")
    with pytest.raises(SystemExit, match="ATTEND_SHARED_BYTES"):
        compile_mla()
    edit(cuda / "args.h", r"ATTEND_SHARED_BYTES 62016", "ATTEND_SHARED_BYTES (62016 + 16)")
    compile_mla()
