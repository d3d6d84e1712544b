"""The live configuration: settings, tokenizer and engine configuration of one revision."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from youtu_llm import paths
from youtu_llm.errors import ModelError
from youtu_llm.protocol import EngineConfig, pages_for
from youtu_llm.settings import Settings
from youtu_llm.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MODEL_FILES = ("*.json", "*.safetensors")

LoadTokenizer = Callable[[Path], Tokenizer]


@dataclass(frozen=True)
class LiveConfig:
    """Replaced as a whole when the profile changes; a request keeps the one it was admitted under.

    `revision` counts the changes since the start. `tokenizer` and `engine` are None until the
    model directory has been read.
    """

    settings: Settings
    revision: int = 0
    tokenizer: Tokenizer | None = None
    engine: EngineConfig | None = None

    def runs_on(self, engine: EngineConfig | None) -> bool:
        """Whether an engine that loaded `engine` can serve this without a restart: the system
        prompt may differ if it takes as many pages, since the memory plan reserves them."""
        if engine is None or self.engine is None:
            return False
        pinned = self.engine.pinned_prefix_ids
        if pages_for(len(pinned)) != pages_for(len(engine.pinned_prefix_ids)):
            return False
        return msgspec.structs.replace(engine, pinned_prefix_ids=pinned) == self.engine


async def prepare(
    settings: Settings, before: LiveConfig, load_tokenizer: LoadTokenizer
) -> LiveConfig:
    """The configuration for `settings`, which replaces `before`. Raises ModelError."""
    model_dir = _find_model(settings.model.name)
    tokenizer = before.tokenizer
    if tokenizer is None or before.engine is None or before.engine.model_dir != str(model_dir):
        try:
            tokenizer = await asyncio.to_thread(load_tokenizer, model_dir)
        except ModelError as error:
            raise ModelError(error.message.replace(str(model_dir), model_dir.name)) from error
    engine, context = settings.engine, settings.context
    engine_config = EngineConfig(
        model_dir=str(model_dir),
        device=engine.device,
        dtype=engine.dtype,
        kernels=engine.kernels,
        threads=engine.threads,
        memory_fraction=engine.memory_fraction,
        memory_limit_bytes=engine.memory_limit_bytes,
        kv_cache_max_page=settings.model.kv_cache_max_page,
        max_num_seqs=engine.max_num_seqs,
        max_step_tokens=engine.max_step_tokens,
        max_context_tokens=context.max_tokens,
        long_context=context.long_context,
        window_tokens=context.window_tokens,
        prefix_cache=engine.prefix_cache,
        pinned_prefix_ids=_shared_prefix(tokenizer, settings.text.system_prompt),
    )
    return LiveConfig(settings, before.revision + 1, tokenizer, engine_config)


def _find_model(name: str) -> Path:
    try:
        directory = paths.find_model(name)
    except ModelError as error:
        logger.error("no model at %s", paths.model_dir(name))
        raise ModelError(f"{error.message}; then reload or restart the service") from error
    for name in MODEL_FILES:
        # Otherwise the engine crashes on it and is restarted in vain.
        for file in directory.glob(name):
            if os.access(file, os.R_OK, effective_ids=True):
                continue
            raise ModelError(
                f"«{directory.name}/{file.name}» cannot be read by this account: `chmod a+r` it,"
                " then reload or restart the service"
            )
    return directory


def _shared_prefix(tokenizer: Tokenizer, system_prompt: str) -> tuple[int, ...]:
    """The token ids that every conversation of this profile starts with."""
    if not system_prompt:
        return ()
    system = {"role": "system", "content": system_prompt}
    one, other = (
        tokenizer.encode_chat([system, {"role": "user", "content": text}]) for text in "ab"
    )
    shared = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), 0)
    return tuple(one[:shared])
