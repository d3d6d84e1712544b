"""The interface of everything that can be imported, independent of the file format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor that is read on demand, some rows at a time."""

    name: str  # Hugging Face's
    shape: tuple[int, ...]
    rows: Callable[[int, int], Tensor]  # (first, end) -> [end - first, ...] floating point
    # (qweight, qzeros, scales) of ops/awq.py if the source is INT4; `rows` dequantises them
    int4: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None


class SourceModel(Protocol):
    def config(self) -> dict[str, Any]:
        """config.json in Hugging Face's terms."""

    def tensors(self) -> Sequence[SourceTensor]:
        """Every tensor of the model; of a tied table only `model.embed_tokens.weight`."""

    def ready_files(self) -> list[Path]:
        """Weight files that are quantised already and taken as they are; else none."""

    def write_tokenizer(self, target: Path) -> None:
        """tokenizer.json, tokenizer_config.json, generation_config.json and the chat template."""
