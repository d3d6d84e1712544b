"""A GGUF file as the source of an import: its config and tensors under Hugging Face names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from youtu_llm.engine.models.architectures import ARCHITECTURES
from youtu_llm.errors import ModelError
from youtu_llm.tools import gguf_tokenizer
from youtu_llm.tools.source_model import SourceTensor

if TYPE_CHECKING:
    import gguf
    from torch import Tensor

TIED_DIFFERENCE = 0.1  # between two quantisations of one table; unrelated tables differ by > 1
_SAMPLE_ROWS = 64


class GgufModel:
    """Raises ModelError for a file that is not GGUF or whose architecture is not supported."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self.reader = GGUFReader(path)
        except (ValueError, IndexError) as error:  # a truncated file ends in the middle of a field
            raise ModelError(
                f"{path} is not a GGUF file, or cut short: download it again"
            ) from error
        name = self.field("general.architecture")
        known = {e.gguf.name: (key, e.gguf) for key, e in ARCHITECTURES.items() if e.gguf}
        if name not in known:
            raise ModelError(
                f"{path}: GGUF architecture {name!r} is not supported (known: {', '.join(known)})"
            )
        self._architecture, self._gguf = known[name]
        self._tensors = {self._hf_name(t.name): t for t in self.reader.tensors}
        self.tied = self._merge_tied_tables()

    def field(self, key: str, default: Any = None) -> Any:
        """A metadata value as a Python object, or `default`."""
        found = self.reader.get_field(key)
        return default if found is None else found.contents()

    def config(self) -> dict[str, Any]:
        """config.json in Hugging Face's terms."""
        values = {}
        prefix = self._gguf.name
        for key, gguf_key in self._gguf.config_keys.items():
            value = self.field(f"{prefix}.{gguf_key}")
            if value is None:
                raise ModelError(f"{self.path}: {prefix}.{gguf_key} is missing")
            values[key] = float(f"{value:.7g}") if isinstance(value, float) else value
        for scaling in ("rope.scaling.type", "rope.scaling.factor"):
            if self.field(f"{prefix}.{scaling}") not in (None, "none"):
                raise ModelError(f"{self.path} scales its RoPE ({scaling}): not supported")
        return {
            "architectures": [self._architecture],
            "model_type": self._gguf.model_type,
            "vocab_size": int(self._tensors["model.embed_tokens.weight"].shape[1]),
            "tie_word_embeddings": self.tied,
            "bos_token_id": self.field("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.field("tokenizer.ggml.eos_token_id"),
            **self._gguf.constants,
            **dict(sorted(values.items())),
        }

    def tensors(self) -> list[SourceTensor]:
        """In the file's order."""
        return [
            SourceTensor(name, tuple(map(int, reversed(tensor.shape))), _row_reader(tensor))
            for name, tensor in self._tensors.items()
        ]

    def ready_files(self) -> list[Path]:
        return []

    def write_tokenizer(self, target: Path) -> None:
        gguf_tokenizer.write_tokenizer(self.field, target)

    def _hf_name(self, gguf_name: str) -> str:
        module, _, kind = gguf_name.rpartition(".")
        if module.startswith("blk."):
            _, layer, part = module.split(".", 2)
            found = self._gguf.layer_tensors.get(part)
            if found:
                return f"model.layers.{layer}.{found}.{kind}"
        elif module in self._gguf.tensors:
            return f"{self._gguf.tensors[module]}.{kind}"
        raise ModelError(f"{self.path}: tensor {gguf_name} is not known in {self._gguf.name}")

    def _merge_tied_tables(self) -> bool:
        """True when embedding and head are one table; then only the more precise copy is kept.

        Some files store a tied table twice, at different precisions.
        """
        if "lm_head.weight" not in self._tensors:
            return True
        embedding = self._tensors["model.embed_tokens.weight"]
        head = self._tensors["lm_head.weight"]
        count = int(min(embedding.shape[1], head.shape[1]))
        step = max(1, count // _SAMPLE_ROWS)
        first, second = _row_reader(embedding), _row_reader(head)
        difference = total = 0.0
        for row in range(0, count, step):
            a, b = first(row, row + 1), second(row, row + 1)
            difference += float((a - b).square().sum())
            total += float(b.square().sum())
        if (difference / total) ** 0.5 > TIED_DIFFERENCE:
            return False
        del self._tensors["lm_head.weight"]
        if head.n_bytes > embedding.n_bytes:
            self._tensors["model.embed_tokens.weight"] = head
        return True


def _row_reader(tensor: gguf.ReaderTensor) -> Callable[[int, int], Tensor]:
    def rows(first: int, end: int) -> Tensor:
        import torch
        from gguf.quants import dequantize

        return torch.from_numpy(dequantize(tensor.data[first:end], tensor.tensor_type).copy())

    return rows
