"""Compiles the device code with NVRTC 12.6: `compile.py SOURCE INCLUDE OUT`.

NVRTC comes from the PyPI wheels nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12 (headers); it
needs no GPU and no CUDA toolkit. What CUDA 13 makes would not load on JetPack 6.
For every line of archs.txt it writes OUT/ARCH.bin (machine code for sm_*, PTX for compute_*); then
OUT/resources.txt.
`compile.py --check` exits with 1 if a wheel is missing.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path

ARCHS = Path(__file__).with_name("archs.txt").read_text().split()
STDINT = b"""#pragma once
typedef signed char int8_t; typedef unsigned char uint8_t; typedef int int32_t;
typedef unsigned int uint32_t; typedef long long int64_t; typedef unsigned long long uint64_t;
"""


def wheel_file(package: str, name: str) -> Path:
    for file in metadata.files(package) or []:
        if file.name.startswith(name):
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{package} holds no {name}")


def libraries() -> tuple[Path, Path]:
    """(NVRTC, the folder of cuda_fp16.h). Raises if a wheel is missing."""
    nvrtc = wheel_file("nvidia-cuda-nvrtc-cu12", "libnvrtc.so")
    return nvrtc, wheel_file("nvidia-cuda-runtime-cu12", "cuda_fp16.h").parent


class Compiler:
    def __init__(self) -> None:
        path, self.headers = libraries()
        self.nvrtc = ctypes.CDLL(str(path))

    def compile(self, source: Path, include: Path, arch: str) -> tuple[bytes, str]:
        """-> (image, log with the resources of each kernel)."""
        program, pointers = ctypes.c_void_p(), ctypes.c_char_p * 1
        self.nvrtc.nvrtcCreateProgram(
            ctypes.byref(program),
            source.read_bytes(),
            source.name.encode(),
            1,
            pointers(STDINT),
            pointers(b"stdint.h"),
        )
        options = [
            f"--gpu-architecture={arch}",
            "--std=c++17",
            "--ptxas-options=-v",
            *(f"-I{folder}" for folder in (source.parent, include, self.headers)),
        ]
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self.nvrtc.nvrtcCompileProgram(program, len(options), array)
        log = self._get(program, "ProgramLog").rstrip(b"\0").decode()
        if status:
            sys.exit(f"{arch}:\n{log}")
        image = self._get(program, "CUBIN" if arch.startswith("sm_") else "PTX")
        self.nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        return image, log

    def _get(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self.nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.nvrtc, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw


def resources(arch: str, log: str) -> list[str]:
    """A line a kernel: registers, bytes of shared memory, bytes of spills."""
    lines, name, spills = [], "", "0"
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes spill stores", line):
            spills = match[1]
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            lines.append(f"{arch} {name} {match[1]} {shared[1] if shared else 0} {spills}")
        elif "warning" in line:
            sys.exit(f"{arch}:\n{log}")
    return lines


def compile_for(arch: str, source: Path, include: Path, folder: Path) -> list[str]:
    """Write one image. -> its kernels' resources."""
    image, log = Compiler().compile(source, include, arch)
    (folder / f"{arch}.bin").write_bytes(image)
    return resources(arch, log)


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        try:
            libraries()
        except (metadata.PackageNotFoundError, FileNotFoundError):
            return 1
        return 0
    source, include, folder = map(Path, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    one = functools.partial(compile_for, source=source, include=include, folder=folder)
    with ProcessPoolExecutor() as pool:
        lines = [line for image in pool.map(one, ARCHS) for line in image]
    (folder / "resources.txt").write_text(
        "arch kernel registers shared spills\n" + "".join(line + "\n" for line in lines)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
