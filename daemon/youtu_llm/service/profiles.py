"""Changes of the live configuration while the daemon runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from operator import attrgetter
from typing import Any

from youtu_llm import config
from youtu_llm.config import NOT_IN_PROFILES, Loaded
from youtu_llm.errors import ConfigError, InvalidRequest, ModelError, YoutuError
from youtu_llm.service.live import LiveConfig, LoadTokenizer, prepare
from youtu_llm.service.requests.admission import Admission
from youtu_llm.service.saved_profile import SavedProfile
from youtu_llm.service.status import State, Status
from youtu_llm.service.supervision.supervisor import Supervisor

logger = logging.getLogger(__name__)

# Applied once, when the listeners and the engine process start.
FIXED = sorted(NOT_IN_PROFILES - {"profile"})


class NeedsRestart(YoutuError):
    code = "restart_needed"
    status = 409


class SwitchFailed(YoutuError):
    """The new configuration does not work; the previous one was restored if it still works."""

    code = "switch_failed"
    status = 409


class Profiles:
    """Validates, prepares and applies one change at a time.

    A change that the running engine supports applies at once; running requests keep their
    configuration. Any other change drains, restarts the engine, and rolls back if the new engine
    does not load. A change completes even if the client that requested it disconnects.
    """

    def __init__(
        self,
        loaded: Loaded,
        saved_profile: SavedProfile,
        load_tokenizer: LoadTokenizer,
        admission: Admission,
        supervisor: Supervisor,
        status: Status,
    ) -> None:
        self._loaded = loaded
        self._saved_profile = saved_profile
        self._load_tokenizer = load_tokenizer
        self._admission = admission
        self._supervisor = supervisor
        self._status = status
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def names(self) -> list[str]:
        return list(config.profiles(self._loaded.sources.profile_dirs))

    def begin(self) -> None:
        """Start the engine. A missing model makes the state «failed»."""
        self._spawn(self._begin())

    async def use(self, name: str) -> None:
        """Switch to a profile and save it (`SavedProfile` says for how long).

        Raises InvalidRequest with every problem of the files, NeedsRestart, SwitchFailed.
        """
        await asyncio.shield(self._spawn(self._change(name)))

    async def reload(self) -> None:
        """Apply the files as they are now, with their profile. Raises as `use` does."""
        await asyncio.shield(self._spawn(self._change(None)))

    def on_sighup(self) -> None:
        """Reload (`systemctl reload`) and show a rejected change in `degraded`."""
        self._spawn(self._reload())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, change: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, YoutuError):
            logger.error("configuration unchanged: %s", error.message)
        elif error is not None:
            logger.error("changing the configuration failed", exc_info=error)
            reason = f"internal error ({type(error).__name__})"
            if self._status.state is State.READY:
                self._status.note("config", f"configuration unchanged: {reason}")
            else:
                self._status.change(State.FAILED, reason)

    async def _reload(self) -> None:
        try:
            await self._change(None)
        except (InvalidRequest, NeedsRestart) as error:  # a signal has no response to carry it
            self._status.note("config", f"configuration unchanged: {error.message}")
            raise

    async def _begin(self) -> None:
        async with self._lock:
            try:
                self._start(await self._prepare(self._loaded))
            except ModelError as error:
                self._status.change(State.FAILED, error.message)

    async def _change(self, name: str | None) -> None:
        async with self._lock:
            loaded = await self._read(name)
            try:
                await self._go_live(await self._prepare(loaded))
            except (ModelError, SwitchFailed) as error:
                problem = f"the profile «{loaded.settings.profile}» cannot be used: {error.message}"
                self._status.note("profile", problem)
                raise SwitchFailed(problem) from error
            self._loaded = loaded
            unsaved = await asyncio.to_thread(self._saved_profile.save, name, loaded)
            self._status.note("profile", unsaved)
            self._status.note("config", "")
            revision = self._admission.config.revision
            logger.info("profile %s is live, revision %d", loaded.settings.profile, revision)

    async def _read(self, name: str | None) -> Loaded:
        try:
            loaded = await asyncio.to_thread(self._loaded.again, profile=name)
        except ConfigError as error:
            raise InvalidRequest(error.message, param="name" if name else None) from error
        old, new = self._admission.settings, loaded.settings
        fixed = [key for key in FIXED if attrgetter(key)(old) != attrgetter(key)(new)]
        if fixed:
            raise NeedsRestart(f"this changes {', '.join(fixed)}: restart the service to apply it")
        return loaded

    async def _prepare(self, loaded: Loaded) -> LiveConfig:
        return await prepare(loaded.settings, self._admission.config, self._load_tokenizer)

    async def _go_live(self, config: LiveConfig) -> None:
        assert config.engine is not None
        if config.runs_on(self._admission.config.engine) and self._status.state is not State.FAILED:
            self._supervisor.adopt(config.engine, config.settings.service)
            self._admission.config = config
        else:
            await self._restart_engine(config)

    async def _restart_engine(self, config: LiveConfig) -> None:
        """No request is admitted between the drain and the new engine's Hello, so none runs under
        two configurations. Raises SwitchFailed."""
        last_good = self._admission.config
        to = config.settings.profile
        self._status.change(
            State.DRAINING, f"switching to the profile «{to}» when running requests have finished"
        )
        await self._admission.drain(last_good.settings.service.drain_timeout_s, "switched")
        await self._supervisor.close()
        failure = await self._start(config, trial=True)
        if failure is None:
            return
        if last_good.engine is None:  # its model was missing at the start
            self._admission.config = last_good
            self._status.change(State.FAILED, failure)
            raise SwitchFailed(failure)
        back = last_good.settings.profile
        self._status.change(State.RESTARTING, f"{failure}; restoring the profile «{back}»")
        second = await self._start(last_good)
        outcome = (
            f"restoring «{back}» failed too: {second}" if second else f"«{back}» is live again"
        )
        raise SwitchFailed(f"{failure}; {outcome}")

    def _start(self, config: LiveConfig, *, trial: bool = False) -> asyncio.Future[str | None]:
        """Make `config` live; for the rest see `Supervisor.start`."""
        assert config.engine is not None
        self._admission.config = config
        return self._supervisor.start(config.engine, config.settings.service, trial=trial)
