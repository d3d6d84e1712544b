"""A model with the same function and worse numbers: the proof that AWQ's scales do something.

    python -m tests.tools.quantize.disturb MODEL OUT [SIGMA]

Seeded log-normal scales are folded into every norm and the linears behind it. Models at hand may
carry folded AWQ scales already, and on them AWQ can win nothing; on this copy round to nearest
suffers and AWQ has to find the way back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from youtu_llm.engine.checkpoint import ModelConfig
from youtu_llm.tools import model_dir
from youtu_llm.tools.quantize import folds

SEED = 20250601


def disturb(source: Path, out: Path, sigma: float = 1.0) -> None:
    """`source` is a model directory in float32, in one file."""
    config = ModelConfig.load(source)
    tensors = load_file(source / "model.safetensors")
    generator = torch.Generator().manual_seed(SEED)
    for index in range(config.int("num_hidden_layers")):
        prefix = f"model.layers.{index}."
        block = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        for fold in folds.FOLDS[config.architecture]:
            if block[f"{fold.source}.weight"].dim() == 1:
                width = len(block[f"{fold.source}.weight"])
                scales = torch.randn(width, generator=generator).mul(sigma).exp()
                folds.apply(fold, block, config, scales)
        tensors |= {f"{prefix}{name}": tensor for name, tensor in block.items()}
    out.mkdir()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != model_dir.MANIFEST:
            (out / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    disturb(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:]))
