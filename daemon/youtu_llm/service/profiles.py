"""The live configuration and its change while the daemon runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from youtu_llm import config
from youtu_llm.config import NOT_IN_PROFILES, Loaded, Settings
from youtu_llm.errors import ConfigError, InvalidRequest, ModelError, YoutuError
from youtu_llm.service.live import LoadTokenizer, LiveConfig, prepare
from youtu_llm.service.requests.admission import Admission
from youtu_llm.service.saved_profile import SavedProfile
from youtu_llm.service.status import State, Status
from youtu_llm.service.supervision.supervisor import Supervisor

logger = logging.getLogger(__name__)

# What the listeners and the engine's process were started with.
FIXED = sorted(NOT_IN_PROFILES - {"profile"})


class NeedsRestart(YoutuError):
    code = "restart_needed"
    status = 409


class SwitchFailed(YoutuError):
    """The new configuration does not work; the last good one is live again."""

    code = "switch_failed"
    status = 409


class Profiles:
    """Validate all, check resources, apply; one change at a time.

    A change the live engine can take is there at once, and running answers keep the config they
    began under. Any other one drains, restarts the engine, and goes back to the last good config
    if the new engine does not come up. A change ends even if who asked for it hangs up.
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
        self._choice = saved_profile
        self._load_tokenizer = load_tokenizer
        self._admission = admission
        self._supervisor = supervisor
        self._status = status
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def names(self) -> list[str]:
        return list(config.profiles(self._loaded.sources.profile_dirs))

    def begin(self) -> None:
        """Starts the engine under the first config; a model that is not there is «failed»."""
        self._spawn(self._begin())

    async def use(self, name: str) -> None:
        """The saved_profile holds over restarts, until config.yaml is written or reloaded.

        Raises InvalidRequest with every problem of the files, NeedsRestart, SwitchFailed.
        """
        await self._see_through(self._change(name))

    async def reload(self) -> None:
        """What the files say now, the profile included. Raises as `use` does."""
        await self._see_through(self._change(None))

    def hang_up(self) -> None:
        """SIGHUP, `systemctl reload`: a change that is refused leaves all as it was."""
        self._spawn(self._hang_up())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _see_through(self, change: Coroutine[Any, Any, None]) -> None:
        await asyncio.shield(self._spawn(change))

    def _spawn(self, change: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, YoutuError):
            logger.error("the configuration stays as it was: %s", error.message)
        elif error is not None:
            logger.error("a change of the configuration failed", exc_info=error)
            reason = f"internal error ({type(error).__name__})"
            if self._status.state is State.READY:
                self._status.note("config", f"{reason}: the configuration stays as it was")
            else:
                self._status.change(State.FAILED, reason)

    async def _hang_up(self) -> None:
        try:
            await self._change(None)
        except (InvalidRequest, NeedsRestart) as error:  # nobody waits for an answer to read it in
            told = f"the configuration stays as it was: {error.message}"
            self._status.note("config", told)
            raise

    async def _begin(self) -> None:
        async with self._lock:
            try:
                config = await self._prepare(self._loaded)
            except ModelError as error:
                self._status.change(State.FAILED, error.message)
                return
            self._admission.config = config
            assert config.engine is not None
            self._supervisor.start(config.engine, config.settings.service)

    async def _change(self, name: str | None) -> None:
        async with self._lock:
            loaded = await self._read(name)
            try:
                await self._go_live(await self._prepare(loaded))
            except (ModelError, SwitchFailed) as error:
                told = f"the profile «{loaded.settings.profile}» cannot be used: {error.message}"
                self._status.note("profile", told)
                raise SwitchFailed(told) from error
            self._loaded = loaded
            loop = asyncio.get_running_loop()
            unsaved = await loop.run_in_executor(None, self._choice.save, name, loaded)
            self._status.note("profile", unsaved)
            self._status.note("config", "")
            generation = self._admission.config.revision
            logger.info("profile %s is live, generation %d", loaded.settings.profile, generation)

    async def _read(self, name: str | None) -> Loaded:
        loop = asyncio.get_running_loop()
        try:
            loaded = await loop.run_in_executor(None, lambda: self._loaded.again(profile=name))
        except ConfigError as error:
            raise InvalidRequest(error.message, param="name" if name else None) from error
        fixed = _changed_keys(self._admission.settings, loaded.settings)
        if fixed:
            raise NeedsRestart(f"this changes {', '.join(fixed)}: restart the service for that")
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
        """Nothing is admitted from the drain to the new engine's hello, so no answer sees two
        setups. Raises SwitchFailed."""
        assert config.engine is not None
        admission, last_good = self._admission, self._admission.config
        to = config.settings.profile
        self._status.change(
            State.DRAINING, f"switching to the profile «{to}»; running answers finish first"
        )
        await admission.drain(last_good.settings.service.drain_timeout_s, "switched")
        await self._supervisor.close()
        admission.config = config
        failure = await self._supervisor.start(config.engine, config.settings.service, trial=True)
        if failure is None:
            return
        admission.config = last_good
        if last_good.engine is None:
            self._status.change(State.FAILED, failure)
            raise SwitchFailed(failure)
        back = last_good.settings.profile
        self._status.change(State.RESTARTING, f"{failure}; going back to the profile «{back}»")
        second = await self._supervisor.start(last_good.engine, last_good.settings.service)
        if second is not None:
            raise SwitchFailed(f"{failure}; going back to «{back}» failed too: {second}")
        raise SwitchFailed(f"{failure}; «{back}» is live again")


def _changed_keys(old: Settings, new: Settings) -> list[str]:
    def value(settings: Settings, key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(settings, section), name)

    return [key for key in FIXED if value(old, key) != value(new, key)]
