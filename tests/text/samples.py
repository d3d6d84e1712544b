"""A cut-down Qwen2.5 tokenizer and what llama.cpp makes of some texts with it.

See `about` in tests/data/qwen2_tokens.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from youtu_llm.tools.gguf_tokenizer import write_tokenizer

DATA = json.loads((Path(__file__).parents[1] / "data/qwen2_tokens.json").read_text("utf-8"))
SAMPLES: dict[str, dict[str, Any]] = DATA["samples"]

GGUF_FIELDS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": DATA["tokens"],
    "tokenizer.ggml.token_type": DATA["types"],
    "tokenizer.ggml.merges": DATA["merges"],
    "tokenizer.ggml.eos_token_id": DATA["tokens"].index("<|im_end|>"),
    "tokenizer.ggml.padding_token_id": DATA["tokens"].index("<|endoftext|>"),
    "tokenizer.ggml.bos_token_id": DATA["tokens"].index("<|endoftext|>"),
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": DATA["chat_template"],
}


def write_sample_tokenizer(folder: Path, **changed: Any) -> Path:
    """A model directory's tokenizer files, rebuilt as an import rebuilds them."""
    fields = GGUF_FIELDS | {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    write_tokenizer(fields.get, folder)
    return folder
