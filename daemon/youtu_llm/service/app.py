"""The composition root: `run` puts the service together, serves, and takes it apart."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from youtu_llm import paths
from youtu_llm.config import Loaded, Settings
from youtu_llm.errors import ModelError, YoutuError
from youtu_llm.protocol import EngineConfig
from youtu_llm.service import listeners
from youtu_llm.service.api.chat import ChatRoutes
from youtu_llm.service.api.control import ControlRoutes
from youtu_llm.service.api.openai import OpenAIRoutes
from youtu_llm.service.api.routes import KEEP_ALIVE_TIMEOUT_S, Access, make_application
from youtu_llm.service.engine_client import EngineClient
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.pipeline import Pipeline
from youtu_llm.service.profiles import Profiles
from youtu_llm.service.state import State, Status
from youtu_llm.service.supervisor import Supervisor
from youtu_llm.service.systemd import Notifier
from youtu_llm.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

LAST_WORDS_S = 2.0  # for streams that the end of the drain cuts, to say so

LoadTokenizer = Callable[[Path], Tokenizer]


def run(
    loaded: Loaded,
    *,
    engine_command: Sequence[str] = (),
    load_tokenizer: LoadTokenizer = Tokenizer.load,
) -> int:
    """Serves until SIGTERM or SIGINT; the exit status.

    `engine_command` is executed with `--fd N` instead of the real engine. Raises ConfigError
    for listeners that must not or cannot be opened; a model that cannot be loaded does not
    end the daemon: it stays up and answers 503 with what to do.
    """
    faulthandler.enable()
    settings = loaded.settings
    listeners.refuse_exposure(settings.service)
    python = settings.engine.python or sys.executable
    command = engine_command or (python, "-m", "youtu_llm.engine.worker")
    asyncio.run(_serve(loaded, command, load_tokenizer))
    return 0


async def _serve(loaded: Loaded, command: Sequence[str], load_tokenizer: LoadTokenizer) -> None:
    settings = loaded.settings
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    status, metrics, notifier = Status(), Metrics(), Notifier()
    status.listen(_log)
    status.listen(notifier.follow)
    encoders = ThreadPoolExecutor(2, thread_name_prefix="encode")
    client = EngineClient(metrics)
    pipeline = Pipeline(settings, status, client, metrics, encoders)
    access = Access.of(settings.service)
    profiles = Profiles(loaded, pipeline)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, profiles)
    control = ControlRoutes(access, pipeline, status, metrics, profiles)
    routes = [
        *ChatRoutes(pipeline).routes,
        *OpenAIRoutes(pipeline, status).routes,
        *control.routes,
    ]
    runner = web.AppRunner(
        make_application(access, metrics, routes),
        handle_signals=False,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_TIMEOUT_S,
        shutdown_timeout=LAST_WORDS_S,
    )
    await runner.setup()
    watchdog = asyncio.create_task(notifier.beat())
    supervisor: Supervisor | None = None
    try:
        await listeners.open_all(runner, settings.service)
        try:
            engine_config = await _load_text_half(settings, pipeline, load_tokenizer)
        except ModelError as error:
            status.change(State.FAILED, error.message)
        else:
            supervisor = Supervisor(command, engine_config, settings.service, status, client)
            supervisor.start()
        await stop.wait()
        await _drain(status, pipeline)
    finally:
        await runner.cleanup()
        if supervisor is not None:
            await supervisor.close()
        watchdog.cancel()
        encoders.shutdown(wait=False, cancel_futures=True)


def _log(status: Status) -> None:
    levels = {State.FAILED: logging.ERROR, State.RESTARTING: logging.WARNING}
    logger.log(levels.get(status.state, logging.INFO), "%s", status)


def _reload(profiles: Profiles) -> None:
    """SIGHUP, `systemctl reload`: a change that is refused leaves all as it was."""
    try:
        profiles.reload()
    except YoutuError as error:
        logger.error("the configuration stays as it was: %s", error.message)


async def _load_text_half(
    settings: Settings, pipeline: Pipeline, load_tokenizer: LoadTokenizer
) -> EngineConfig:
    """The tokenizer goes into the pipeline; the rest is for the engine. Raises ModelError."""
    model_dir = _model_dir(settings.model.name)
    loop = asyncio.get_running_loop()
    try:
        tokenizer = await loop.run_in_executor(None, load_tokenizer, model_dir)
    except ModelError as error:
        raise ModelError(error.message.replace(str(model_dir), model_dir.name)) from error
    pipeline.tokenizer = tokenizer
    engine, context = settings.engine, settings.context
    return EngineConfig(
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


def _model_dir(name: str) -> Path:
    directory = Path(name) if "/" in name else paths.models_dir() / name
    if not (directory / "config.json").is_file():
        logger.error("%s holds no model", directory)
        if "/" in name:
            raise ModelError(
                f"the model directory «{directory.name}» has no config.json: set model.name"
                " to a model directory, or to a name that «youtu pull» knows"
            )
        raise ModelError(
            f"the model «{name}» is not on this machine: run «youtu pull {name}»,"
            " then restart the service"
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


async def _drain(status: Status, pipeline: Pipeline) -> None:
    """No new requests; the running ones may finish, then are ended with what they have."""
    status.change(State.DRAINING)
    if not await pipeline.wait_idle(pipeline.settings.service.drain_timeout_s):
        for generation in list(pipeline.live.values()):
            generation.stop("shutdown")
        await pipeline.wait_idle(LAST_WORDS_S)
