"""The public way to load an INT4 model: `from youtu_llm.quant import load_awq_model`."""

from __future__ import annotations

import os
from pathlib import Path

from youtu_llm.engine.backend import choose
from youtu_llm.engine.build import load
from youtu_llm.engine.checkpoint import Checkpoint
from youtu_llm.engine.models.spec import Model
from youtu_llm.errors import ModelError
from youtu_llm.ops.api import Ops
from youtu_llm.protocol import EngineConfig

GROUP_SIZES = (32, 64, 128)


def load_awq_model(
    model_path: str | os.PathLike[str],
    w_bit: int = 4,
    group_size: int = 128,
    zero_point: bool = True,
    *,
    ops: Ops | None = None,
) -> Model:
    """A model directory in AutoAWQ's GEMM layout (Lin et al. 2023), ready to run.

    `model_path` holds config.json and safetensors written by `youtu quantize`, `youtu import` or
    AutoAWQ itself: INT4 linears in groups of `group_size` inputs with zero points; embedding and
    head in fp16 or, as config.json's `int8_modules` lists, in INT8. Tensors are read one by one
    and repacked for `ops`, by default the fastest of this machine, so the host never holds the
    model twice. Returns the engine's model: `forward(batch, cache)` gives float32 logits.

    Raises ModelError, naming file and tensor, for a checkpoint that is not whole, for shapes that
    don't fit its config, and where its quantisation is not that of the arguments: other bits, other
    groups, without zero points, or in the layouts gemv, gemv_fast or marlin.
    """
    path = Path(model_path)
    if w_bit != 4:
        raise ModelError(f"w_bit {w_bit} is not supported: the kernels compute with 4 bits")
    if group_size not in GROUP_SIZES:
        sizes = ", ".join(map(str, GROUP_SIZES))
        raise ModelError(f"group_size {group_size} is not supported: it may be {sizes}")
    if not zero_point:
        raise ModelError("zero_point False is not supported: the layout always holds zero points")
    checkpoint = Checkpoint(path)
    quantization = checkpoint.config.values.get("quantization_config")
    if not quantization:
        raise ModelError(f"{path} is not quantised: `youtu quantize {path} --out DIR` does that")
    wanted = {"group_size": group_size, "zero_point": zero_point}
    for key, value in wanted.items():
        found = quantization.get(key, value)
        if found != value:
            raise ModelError(f"{path} is quantised with {key} {found}, not with {value}")
    return load(checkpoint, ops or choose(EngineConfig(str(path))).ops)
