"""Full-size models with random INT4 weights, for memory and speed without a hub.

`python -m lab.bench.random_model youtu-llm-2b DIR` writes a model directory that
loads like the real one: the same tensors, sizes and memory, no sense in what it says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from youtu_llm.tools.safetensors_writer import SafetensorsWriter, TensorPlan

GROUP_SIZE = 128
_TEMPLATE = """{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}assistant: """
CONFIGS: dict[str, dict[str, Any]] = {
    "youtu-llm-2b": {  # as in the published config.json
        "architectures": ["YoutuForCausalLM"],
        "model_type": "youtu",
        "num_hidden_layers": 32,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "rope_theta": 1600000.0,
        "rope_interleave": True,
        "hidden_act": "silu",
        "eos_token_id": 128001,
    },
}


def write(name: str, folder: Path, *, seed: int = 0, num_layers: int | None = None) -> Path:
    """Write config, tokenizer and weights; `num_layers` makes a shorter model. -> folder"""
    import torch

    config = dict(CONFIGS[name])
    if num_layers:
        config["num_hidden_layers"] = num_layers
    config["quantization_config"] = {
        "quant_method": "awq_int8",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
        "int8_modules": ["model.embed_tokens"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_tokenizer(folder, config["vocab_size"])
    generator = torch.Generator().manual_seed(seed)
    plan = dict(_tensors(config))
    with SafetensorsWriter(folder / "model.safetensors", plan) as writer:
        for tensor, shape in plan.items():
            writer.write(tensor, _random(tensor, shape, generator))
    return folder


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A token a byte; the others are words that no text is split into, but an answer may have."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"Ġ{i}" for i in range(len(alphabet), vocab_size))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")


def _tensors(config: dict[str, Any]) -> Iterator[tuple[str, TensorPlan]]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", TensorPlan("int8", (vocab, hidden))
    yield "model.embed_tokens.scales", TensorPlan("float16", (vocab,))
    yield "model.norm.weight", TensorPlan("float16", (hidden,))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm, width in _norms(config).items():
            yield f"{prefix}.{norm}.weight", TensorPlan("float16", (width,))
        for linear, (rows, columns) in _linears(config).items():
            groups = rows // GROUP_SIZE
            yield f"{prefix}.{linear}.qweight", TensorPlan("int32", (rows, columns // 8))
            yield f"{prefix}.{linear}.qzeros", TensorPlan("int32", (groups, columns // 8))
            yield f"{prefix}.{linear}.scales", TensorPlan("float16", (groups, columns))


def _norms(config: dict[str, Any]) -> dict[str, int]:
    hidden = config["hidden_size"]
    return {
        "input_layernorm": hidden,
        "post_attention_layernorm": hidden,
        "self_attn.q_a_layernorm": config["q_lora_rank"],
        "self_attn.kv_a_layernorm": config["kv_lora_rank"],
    }


def _linears(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, q_rank, rank = (
        config["num_attention_heads"],
        config["q_lora_rank"],
        config["kv_lora_rank"],
    )
    nope, rope, v = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    return {
        "self_attn.q_a_proj": (hidden, q_rank),
        "self_attn.q_b_proj": (q_rank, heads * (nope + rope)),
        "self_attn.kv_a_proj_with_mqa": (hidden, rank + rope),
        "self_attn.kv_b_proj": (rank, heads * (nope + v)),
        "self_attn.o_proj": (heads * v, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def _random(name: str, plan: TensorPlan, generator: Any) -> Any:
    """Weights of about the size a trained model has: nothing overflows, nothing dies out."""
    import torch

    if plan.dtype == "int8":
        return torch.randint(-127, 128, plan.shape, dtype=torch.int8, generator=generator)
    if plan.dtype == "int32" and name.endswith("qzeros"):
        return torch.full(plan.shape, -0x77777778, dtype=torch.int32)  # every zero point is 8
    if plan.dtype == "int32":
        low, high = -(1 << 31), 1 << 31
        return torch.randint(low, high, plan.shape, dtype=torch.int64, generator=generator).int()
    if name.endswith("norm.weight"):
        return torch.ones(plan.shape, dtype=torch.float16)
    return torch.full(plan.shape, 0.02 / (73 if "embed" in name else 4.6), dtype=torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(CONFIGS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the real model")
    arguments = parser.parse_args()
    print(write(arguments.name, arguments.folder, num_layers=arguments.layers))


if __name__ == "__main__":
    main()
