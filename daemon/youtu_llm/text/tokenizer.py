"""Text to token ids and back, and the model's own chat template.

Only the template may write control tokens (`<|im_end|>` and its like). In a message they
are ordinary characters: a client cannot end its turn and forge a system message.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

from youtu_llm.errors import InvalidRequest, ModelError
from youtu_llm.modelfiles import eos_token_ids, read_json
from youtu_llm.text.stream import live_prefix_len

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time: no pool of threads

ROLES = ("system", "user", "assistant", "tool")


class Tokenizer:
    """A model directory's tokenizer. Immutable after `load`; about 50 MB for 150,000 tokens."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: Sequence[int],
        chat_template: str | None = None,
        template_globals: dict[str, str] | None = None,
    ) -> None:
        # Control tokens written out in a text are then characters like any others.
        backend.encode_special_tokens = True
        self._backend = backend
        self._byte_level = backend.token_to_id("<0x00>") is None  # else sentencepiece
        added = backend.get_added_tokens_decoder()
        self._added = {i: b"" if t.special else t.content.encode() for i, t in added.items()}
        self._control = {t.content: i for i, t in added.items() if t.special}
        names = "|".join(re.escape(t) for t in sorted(self._control, key=len, reverse=True))
        self._control_token = re.compile(f"({names})" if names else r"((?!))")
        self._control_start = re.compile(f"(?={names})" if names else r"(?!)")
        self._template = _compile(chat_template) if chat_template else None
        self._template_globals = template_globals or {}
        self.eos_token_ids = tuple(eos_token_ids)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Read tokenizer.json and its companions. Raises ModelError naming the file at fault."""
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path} is missing: pull or import the model again")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for a file it can't parse
            raise ModelError(f"{path}: {error}: pull or import the model again") from error
        _return_freed_memory()
        config = read_json(model_dir / "tokenizer_config.json")
        return cls(
            backend,
            eos_token_ids=_eos_token_ids(model_dir, backend, config),
            chat_template=_chat_template(model_dir, config),
            template_globals=_special_tokens(config),
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text: nothing is added, and control tokens in it are only characters."""
        try:
            # Unlike `encode` this lets other threads run: a long text takes seconds.
            return self._backend.encode_batch([text], add_special_tokens=False)[0].ids
        except TypeError as error:  # for a lone surrogate
            raise InvalidRequest("the text holds half of a surrogate pair: not Unicode") from error

    def encode_chat(
        self, messages: Sequence[dict[str, Any]], *, enable_thinking: bool = False
    ) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins.

        `messages` hold a `role` and a text `content`. Raises InvalidRequest when the template
        refuses them or the model has no template.
        """
        return self._encode_after("", messages, enable_thinking)

    def encode_turn(
        self, messages: Sequence[dict[str, Any]], *, enable_thinking: bool = False
    ) -> list[int]:
        """Ids that follow the assistant's last message: the end of its turn, `messages`, and the
        start of its next. Behind the ids of a conversation they continue it, and leave those
        before them as they are. Raises as `encode_chat` does.
        """
        said = f"\ufdd1{secrets.token_hex(8)}"
        before = [{"role": "user", "content": "."}, {"role": "assistant", "content": said}]
        return self._encode_after(said, [*before, *messages], enable_thinking)

    def _encode_after(
        self, cut: str, messages: Sequence[dict[str, Any]], enable_thinking: bool
    ) -> list[int]:
        """Ids of the rendered conversation behind the text `cut`."""
        if self._template is None:
            raise InvalidRequest("this model has no chat template: use /v1/completions")
        # Guard: an unguessable mark is put into each control token a message spells out, so
        # that the rendered text holds only the template's own. The mark is removed before
        # encoding: the message's text is encoded unchanged.
        mark = f"\ufdd0{secrets.token_hex(8)}\ufdd0"
        guarded = [self._guard(message, mark) for message in messages]
        try:
            text = self._template.render(
                messages=guarded,
                add_generation_prompt=True,
                enable_thinking=enable_thinking,
                **self._template_globals,
            )
        except _TemplateRefusal as error:
            raise InvalidRequest(str(error), param="messages") from error
        except jinja2.TemplateError as error:
            raise ModelError(f"the model's chat template failed: {error}") from error
        if cut not in text:
            raise InvalidRequest("this model's chat template omits earlier answers")
        text = text.partition(cut)[2] if cut else text
        ids: list[int] = []
        for at, part in enumerate(self._control_token.split(text)):
            if at % 2:
                ids.append(self._control[part])
            elif part:
                ids += self.encode(part.replace(mark, ""))
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; none for control tokens and ids beyond the vocabulary."""
        added = self._added.get(token_id)
        if added is not None:
            return added
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            return b"".join(_BYTES_OF.get(char) or char.encode() for char in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes((int(token[3:5], 16),))
        return token.replace("▁", " ").encode()

    def _guard(self, message: dict[str, Any], mark: str) -> dict[str, str]:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InvalidRequest(
                f"a message's role is one of {', '.join(ROLES)} (got {role!r})", param="messages"
            )
        if not isinstance(content, str):
            raise InvalidRequest("a message's content must be a text", param="messages")
        pieces, last = [], 0
        for found in self._control_start.finditer(content):
            pieces.append(content[last : found.start() + 1])
            last = found.start() + 1
        pieces.append(content[last:])
        if live_prefix_len(content, tuple(self._control)):
            pieces.append("")  # nor may the template's next characters complete one
        return {"role": str(role), "content": mark.join(pieces)}


def _return_freed_memory() -> None:
    """Parsing a tokenizer leaves 45 MB in glibc's free lists; other C libraries have no call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _TemplateRefusal(jinja2.TemplateError):
    """The template called raise_exception(...): it rejects these messages."""


def _refuse(message: str) -> NoReturn:
    raise _TemplateRefusal(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _compile(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelError(f"the model's chat template does not parse: {error}") from error


def _eos_token_ids(
    model_dir: Path, backend: tokenizers.Tokenizer, config: dict[str, Any]
) -> Sequence[int]:
    token = _special_tokens(config).get("eos_token")
    named = backend.token_to_id(token) if token else None
    found = eos_token_ids(model_dir) or (() if named is None else (named,))
    if not found:
        raise ModelError(f"{model_dir}: no file names the token that ends an answer (eos_token_id)")
    return found


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like, which templates refer to."""
    named = {k: v for k, v in config.items() if k.endswith("_token") and v is not None}
    texts = {k: v["content"] if isinstance(v, dict) else v for k, v in named.items()}
    return {k: v for k, v in texts.items() if isinstance(v, str)}


def _chat_template(model_dir: Path, config: dict[str, Any]) -> str | None:
    path = model_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        return {t["name"]: t["template"] for t in template}.get("default")
    return template


def _bytes_of_characters() -> dict[str, bytes]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    plain = {chr(byte): bytes((byte,)) for byte in printable}
    return plain | {chr(0x100 + i): bytes((byte,)) for i, byte in enumerate(others)}


_BYTES_OF = _bytes_of_characters()
