"""A tokenizer without a model: an id is a byte, and 256 ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

EOS = 256


class ByteTokenizer:
    eos_token_ids = (EOS,)
    vocab_size = 257

    @classmethod
    def load(cls, model_dir: Path) -> ByteTokenizer:
        return cls()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(
        self, messages: Sequence[dict[str, Any]], *, enable_thinking: bool = False
    ) -> list[int]:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return self.encode("".join(lines) + "assistant: ")

    def encode_turn(
        self, messages: Sequence[dict[str, Any]], *, enable_thinking: bool = False
    ) -> list[int]:
        return [ord("\n"), *self.encode_chat(messages)]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((token_id,)) if token_id < EOS else b""


def last_user_text(prompt_ids: Sequence[int]) -> bytes:
    """What the fake engine answers with; of a prompt without a template, all of it."""
    text = bytes(token_id for token_id in prompt_ids if token_id != EOS)
    return text.rpartition(b"user: ")[2].removesuffix(b"\nassistant: ")
