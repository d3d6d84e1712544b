"""Writes one .safetensors file piece by piece, so that no model has to fit in memory.

The format: the header's length (8 bytes, little-endian), a JSON header that gives each
tensor's type, shape and byte range, then the bytes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_ITEM_BYTES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1}
DTYPE_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "int8": "I8",
}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    dtype: str  # a key of DTYPE_NAMES
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one step along the first dimension."""
        size = _ITEM_BYTES[DTYPE_NAMES[self.dtype]]
        for length in self.shape[1:]:
            size *= length
        return size

    @property
    def num_bytes(self) -> int:
        return self.shape[0] * self.row_bytes


class SafetensorsWriter:
    """`plan` names all tensors; their rows may then be written in any order, each once."""

    def __init__(self, path: Path, plan: dict[str, TensorPlan]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._plan = plan
        self._start: dict[str, int] = {}
        at = 0
        # Wide types first keeps every tensor aligned to its own item size.
        for name in sorted(plan, key=lambda n: -_ITEM_BYTES[DTYPE_NAMES[plan[n].dtype]]):
            tensor = plan[name]
            end = at + tensor.num_bytes
            header[name] = {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": tensor.shape,
                "data_offsets": [at, end],
            }
            self._start[name] = at
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._data_at = 8 + len(text)
        self._missing_bytes = at
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def write(self, name: str, rows: Tensor, *, first_row: int = 0) -> None:
        """rows [n, ...] of the tensor, in its planned type and shape, from `first_row` on."""
        import torch

        plan = self._plan[name]
        if str(rows.dtype) != f"torch.{plan.dtype}" or tuple(rows.shape[1:]) != plan.shape[1:]:
            raise ValueError(f"{name}: got {rows.dtype} {tuple(rows.shape)}, planned {plan}")
        self._file.seek(self._data_at + self._start[name] + first_row * plan.row_bytes)
        self._missing_bytes -= self._file.write(
            rows.contiguous().flatten().view(torch.uint8).numpy().data
        )

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is None and self._missing_bytes:
            raise ValueError(f"{self._missing_bytes} planned bytes were not written")
