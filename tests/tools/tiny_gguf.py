"""A whole GGUF file of a two-layer Qwen2 with the sample tokenizer, in a few hundred kB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.text.samples import GGUF_FIELDS

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS = 128, 256, 4, 2
VOCAB = len(GGUF_FIELDS["tokenizer.ggml.tokens"])
KV = HIDDEN // HEADS * KV_HEADS
LAYER = {
    "attn_norm.weight": (HIDDEN,),
    "attn_q.weight": (HIDDEN, HIDDEN),
    "attn_q.bias": (HIDDEN,),
    "attn_k.weight": (KV, HIDDEN),
    "attn_k.bias": (KV,),
    "attn_v.weight": (KV, HIDDEN),
    "attn_v.bias": (KV,),
    "attn_output.weight": (HIDDEN, HIDDEN),
    "ffn_norm.weight": (HIDDEN,),
    "ffn_gate.weight": (INTERMEDIATE, HIDDEN),
    "ffn_up.weight": (INTERMEDIATE, HIDDEN),
    "ffn_down.weight": (HIDDEN, INTERMEDIATE),
}


def weights(**changed: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    shapes |= {f"blk.{n}.{name}": shape for n in range(2) for name, shape in LAYER.items()}
    random = {n: rng.normal(0, 0.05, s).astype(np.float32) for n, s in shapes.items()}
    return random | changed


def write(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    architecture: str = "qwen2",
    quantized: dict[str, gguf.GGMLQuantizationType] | None = None,
    **metadata: Any,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    for key, value in (GGUF_FIELDS | metadata).items():
        writer.add_key_value(key, value, *_type_of(value))
    for name, values in tensors.items():
        kind = (quantized or {}).get(name)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _type_of(value: Any) -> tuple[gguf.GGUFValueType, gguf.GGUFValueType | None]:
    if isinstance(value, list):
        return gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.get_type(value[0])
    return gguf.GGUFValueType.get_type(value), None
