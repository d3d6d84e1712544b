"""Rebuilds a Hugging Face tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from youtu_llm.errors import ModelError


class TokenType(IntEnum):
    """tokenizer.ggml.token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut before byte-level BPE: the parts of tokenizer.json that GGUF only names."""

    pattern: str
    nfc: bool = False
    ignore_merges: bool = False  # a piece that is a token is not split


def _pattern(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# By tokenizer.ggml.pre.
PRE_TOKENIZERS = {
    "qwen2": PreTokenizer(_pattern(r"\p{N}"), nfc=True),
    "llama-bpe": PreTokenizer(_pattern(r"\p{N}{1,3}"), ignore_merges=True),
}

# GGUF files mark these as control tokens; in the published tokenizers they are plain added
# tokens, which a prompt may spell out (that is how fill-in-the-middle is asked for).
_PROMPT_MARKERS = ("<|fim_", "<|repo_name|>", "<|file_sep|>")

# Which control tokens end an answer beside the one the file names, as the published
# generation_config.json of these models has them.
_END_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")


def write_tokenizer(field: Callable[..., Any], target: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json.

    `field(key, default=None)` reads a GGUF metadata value. Raises ModelError for a kind of
    tokenizer that is not supported.
    """
    tokens: list[str] = field("tokenizer.ggml.tokens", [])
    types: list[int] = field("tokenizer.ggml.token_type", [])
    kind, pre = field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ModelError(
            f"tokenizer {kind!r} / {pre!r} is not supported (known: gpt2 with {known})"
        )
    backend = _byte_level_bpe(tokens, types, field("tokenizer.ggml.merges"), PRE_TOKENIZERS[pre])
    backend.save(str(target / "tokenizer.json"))

    ids = {name: field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    ids["pad"] = field("tokenizer.ggml.padding_token_id")
    if ids["eos"] is None:
        raise ModelError("tokenizer.ggml.eos_token_id is missing: no token would end an answer")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": field("tokenizer.ggml.add_bos_token", False),
    }
    for name, token_id in ids.items():
        # Files name a bos token even for models that were never trained with one.
        if token_id is not None and (name != "bos" or config["add_bos_token"]):
            config[f"{name}_token"] = tokens[token_id]
    _write_json(target / "tokenizer_config.json", config)

    ends = [i for i, t in enumerate(tokens) if types[i] == TokenType.CONTROL and t in _END_TOKENS]
    generation = {f"{name}_token_id": i for name, i in ids.items() if i is not None}
    generation["eos_token_id"] = [ids["eos"], *(i for i in ends if i != ids["eos"])]
    _write_json(target / "generation_config.json", generation)

    template = field("tokenizer.chat_template")
    if template:
        (target / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level_bpe(
    tokens: list[str], types: list[int], merges: list[str], pre: PreTokenizer
) -> tokenizers.Tokenizer:
    vocab = {t: i for i, t in enumerate(tokens) if types[i] == TokenType.NORMAL}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=pairs, fuse_unk=False, ignore_merges=pre.ignore_merges)
    )
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pre.pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            special = kind == TokenType.CONTROL and not token.startswith(_PROMPT_MARKERS)
            backend.add_tokens([AddedToken(token, special=special, normalized=False)])
            if backend.token_to_id(token) != token_id:
                raise ModelError(
                    f"added token {token!r} (id {token_id}) does not follow the vocabulary"
                )
    return backend


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
