"""The composition root: `run` builds the service, serves, and shuts it down."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import resource
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from youtu_llm import child_python, paths
from youtu_llm.config import Loaded
from youtu_llm.service.http import listeners
from youtu_llm.service.http.access import Access
from youtu_llm.service.http.application import make_application
from youtu_llm.service.http.chat import ChatRoutes
from youtu_llm.service.http.control import ControlRoutes
from youtu_llm.service.http.openai import OpenAIRoutes
from youtu_llm.service.http.sessions import SessionRoutes
from youtu_llm.service.live import LiveConfig, LoadTokenizer
from youtu_llm.service.metrics import Metrics
from youtu_llm.service.profiles import Profiles
from youtu_llm.service.requests.admission import LAST_WORDS_S, Admission
from youtu_llm.service.requests.pipeline import Pipeline
from youtu_llm.service.saved_profile import SavedProfile
from youtu_llm.service.status import State, Status
from youtu_llm.service.supervision.client import EngineClient
from youtu_llm.service.supervision.supervisor import Supervisor
from youtu_llm.service.systemd import Notifier
from youtu_llm.service.thermal import ThermalMonitor
from youtu_llm.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NUM_DESCRIPTORS = 16384


def run(
    loaded: Loaded,
    *,
    engine_command: Sequence[str] = (),
    load_tokenizer: LoadTokenizer = Tokenizer.load,
    state_dir: Path | None = None,
    system_root: Path = Path("/"),
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status.

    `engine_command` is executed with `--fd N` instead of the real engine. `state_dir` holds the
    saved profile, None: this account's default. `system_root` is the parent of /sys and /var.
    Raises ConfigError for listeners that must not or cannot be opened. A model that cannot be
    loaded does not stop the daemon: it answers 503 with what to do.
    """
    faulthandler.enable()
    settings = loaded.settings
    listeners.refuse_exposure(settings.service)
    python = settings.engine.python or sys.executable
    command = engine_command or child_python.module(python, "youtu_llm.engine")
    state_dir = state_dir or paths.state_dir()
    asyncio.run(_serve(loaded, state_dir, ThermalMonitor(system_root), command, load_tokenizer))
    return 0


async def _serve(
    loaded: Loaded,
    state_dir: Path,
    thermal: ThermalMonitor,
    command: Sequence[str],
    load_tokenizer: LoadTokenizer,
) -> None:
    _allow_descriptors()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    status, metrics, notifier = Status(), Metrics(), Notifier()
    status.listen(_log)
    status.listen(notifier.follow)
    saved_profile = SavedProfile(state_dir)
    loaded, problem = saved_profile.restore(loaded)
    status.note("profile", problem)
    service = loaded.settings.service
    encoders = ThreadPoolExecutor(2, thread_name_prefix="encode")
    client = EngineClient(metrics)
    supervisor = Supervisor(command, status, client)
    admission = Admission(LiveConfig(loaded.settings), status)
    pipeline = Pipeline(admission, client, metrics, thermal, encoders)
    profiles = Profiles(loaded, saved_profile, load_tokenizer, admission, supervisor, status)
    loop.add_signal_handler(signal.SIGHUP, profiles.on_sighup)
    access = Access.of(service)
    routes = [
        *ChatRoutes(pipeline).routes,
        *OpenAIRoutes(pipeline, status).routes,
        *SessionRoutes(access, pipeline).routes,
        *ControlRoutes(access, admission, thermal, status, metrics, profiles).routes,
    ]
    runner = web.AppRunner(
        make_application(access, metrics, pipeline.admit, routes),
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=LAST_WORDS_S,
    )
    await runner.setup()
    assert runner.server is not None
    sockets = listeners.Listeners(runner.server)
    watchers = [asyncio.create_task(watch) for watch in (notifier.beat(), thermal.watch())]
    try:
        await sockets.open(service)
        profiles.begin()
        await stop.wait()
        status.close()
        await admission.drain(admission.settings.service.drain_timeout_s, "shutdown")
    finally:
        sockets.close()
        await profiles.close()
        # Before the connections, so that streams of a hung engine still get their last event.
        await supervisor.close()
        await runner.cleanup()
        for watcher in watchers:
            watcher.cancel()
        notifier.close()
        encoders.shutdown(wait=False, cancel_futures=True)


def _allow_descriptors() -> None:
    """Raise the soft limit: the usual 1,024 is fewer than the clients that may connect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NUM_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, NUM_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log(status: Status) -> None:
    levels = {State.FAILED: logging.ERROR, State.RESTARTING: logging.WARNING}
    logger.log(levels.get(status.state, logging.INFO), "%s", status)
