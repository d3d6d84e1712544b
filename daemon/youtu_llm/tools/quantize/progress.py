"""The finished blocks of a quantisation, on disk: a killed run resumes from them.

plan.json                 the whole command; another command cannot resume from here
block-0007.safetensors    a finished block's tensors
block-0007.json           its report, written last: with it the block is finished
stream-0008.safetensors   the calibration text's residual stream in front of the next block
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from youtu_llm import atomicfile
from youtu_llm.errors import ModelError


class Progress:
    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        """Raises ModelError when the folder holds the work of another command."""
        self.folder = folder
        path = folder / "plan.json"
        self.reports: list[dict[str, Any]] = []
        while (report := self._path("block", len(self.reports), "json")).exists():
            self.reports.append(json.loads(report.read_text(encoding="utf-8")))
        if self.reports:
            found = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in found.keys() | plan if found.get(key) != plan.get(key))
            if changed:
                raise ModelError(
                    f"{folder} holds the unfinished work of another command (another"
                    f" {', '.join(changed)}): finish that one, or remove the folder"
                )
        else:  # nothing to resume: no block was finished
            atomicfile.replace(path, _json(plan))

    def block_file(self, index: int) -> Path:
        return self._path("block", index, "safetensors")

    def stream(self) -> Tensor:
        """In front of the first block that is not finished."""
        return load_file(self._path("stream", len(self.reports), "safetensors"))["stream"]

    def start(self, stream: Tensor) -> None:
        atomicfile.replace(self._path("stream", 0, "safetensors"), save({"stream": stream}))

    def finish_block(
        self, tensors: dict[str, Tensor], report: dict[str, Any], stream: Tensor
    ) -> None:
        """`stream` is the one behind the block."""
        index = len(self.reports)
        atomicfile.replace(self.block_file(index), save(dict(sorted(tensors.items()))))
        after = self._path("stream", index + 1, "safetensors")
        atomicfile.replace(after, save({"stream": stream}))
        atomicfile.replace(self._path("block", index, "json"), _json(report))
        self.reports.append(report)
        self._path("stream", index, "safetensors").unlink()

    def _path(self, kind: str, index: int, suffix: str) -> Path:
        return self.folder / f"{kind}-{index:04d}.{suffix}"


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()
