"""What answers are made under: one generation of the settings, with both halves of its model."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from youtu_llm import paths
from youtu_llm.config import Settings
from youtu_llm.errors import ModelError
from youtu_llm.protocol import EngineConfig, pages_for
from youtu_llm.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

LoadTokenizer = Callable[[Path], Tokenizer]


@dataclass(frozen=True)
class Setup:
    """Replaced as a whole when the profile changes; an answer keeps the one it began under.

    `generation` counts the changes since the start. `tokenizer` and `engine`, the service's
    and the engine's half of the model, are None until the model is read.
    """

    settings: Settings
    generation: int = 0
    tokenizer: Tokenizer | None = None
    engine: EngineConfig | None = None

    def runs_on(self, engine: EngineConfig | None) -> bool:
        """Whether an engine that loaded `engine` will do. It can learn another system prompt,
        if that takes the pages that its memory plan has for one."""
        if engine is None or self.engine is None:
            return False
        pinned = self.engine.pinned_prefix_ids
        if pages_for(len(pinned)) != pages_for(len(engine.pinned_prefix_ids)):
            return False
        return msgspec.structs.replace(engine, pinned_prefix_ids=pinned) == self.engine


async def prepare(settings: Settings, before: Setup, load_tokenizer: LoadTokenizer) -> Setup:
    """The setup for `settings`, to follow `before`. Raises ModelError without directories."""
    model_dir = _model_dir(settings.model.name)
    tokenizer = before.tokenizer
    if tokenizer is None or before.engine is None or before.engine.model_dir != str(model_dir):
        loop = asyncio.get_running_loop()
        try:
            tokenizer = await loop.run_in_executor(None, load_tokenizer, model_dir)
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
    return Setup(settings, before.generation + 1, tokenizer, engine_config)


def _model_dir(name: str) -> Path:
    directory = paths.model_dir(name)
    try:
        is_there = (directory / "config.json").is_file()
    except OSError as error:
        raise ModelError(
            f"the model directory «{directory.name}» cannot be read by this account"
            f" ({error.strerror}): put it where the service may read, or change its rights"
        ) from error
    if not is_there:
        logger.error("%s holds no model", directory)
        if "/" in name:
            raise ModelError(
                f"the model directory «{directory.name}» has no config.json: set model.name"
                " to a model directory, or to a name that «youtu pull» knows"
            )
        raise ModelError(
            f"the model «{name}» is not on this machine: run «youtu pull {name}»,"
            " then reload or restart the service"
        )
    for file in directory.iterdir():
        # Otherwise the engine would find out, and be restarted three times for it.
        if not os.access(file, os.R_OK, effective_ids=True):
            raise ModelError(
                f"«{directory.name}/{file.name}» cannot be read by this account: `chmod a+r` it,"
                " then reload or restart the service"
            )
    return directory


def _shared_prefix(tokenizer: Tokenizer, system_prompt: str) -> tuple[int, ...]:
    """The ids with which every conversation of this profile begins."""
    if not system_prompt:
        return ()
    system = {"role": "system", "content": system_prompt}
    one, other = (
        tokenizer.encode_chat([system, {"role": "user", "content": text}]) for text in "ab"
    )
    shared = next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), 0)
    return tuple(one[:shared])
