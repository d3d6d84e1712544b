"""What `youtu run` does before it talks: the model is there, a daemon runs, and it has it live."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from youtu_llm import paths
from youtu_llm.errors import InvalidRequest, ModelError, YoutuError
from youtu_llm.tools import background, bar, systemctl, waiting
from youtu_llm.tools.client import RELOAD_TIMEOUT_S, Daemon, NothingListens
from youtu_llm.tools.commands.models import accept, confirm

if TYPE_CHECKING:
    from youtu_llm.config import Loaded
    from youtu_llm.tools.catalogue import CatalogueEntry

PROFILE_MARK = "profile:"


@dataclass(frozen=True, slots=True)
class Target:
    """A model by its name or directory, or a profile with whatever model it has."""

    model: str = ""
    profile: str = ""

    @classmethod
    def of(cls, text: str) -> Target:
        """Raises InvalidRequest for an empty name."""
        name = text.removeprefix(PROFILE_MARK)
        if not name:
            raise InvalidRequest("give a model's name, or profile:NAME")
        if text.startswith(PROFILE_MARK):
            return cls(profile=name)
        return cls(model=os.path.abspath(name) if "/" in name else name)

    def __str__(self) -> str:
        return self.model or f"{PROFILE_MARK}{self.profile}"

    def is_live(self, report: Mapping[str, Any]) -> bool:
        if self.profile:
            return self.profile == report.get("profile")
        return paths.model_dir(self.model) == paths.model_dir(str(report.get("model")))

    @property
    def flags(self) -> tuple[str, ...]:
        """Of `youtu serve`."""
        return ("--model", self.model) if self.model else ("--profile", self.profile)

    def load(self) -> Loaded:
        """The configuration of a daemon started for it. Raises ConfigError."""
        from youtu_llm.tools import configure

        key, value = ("model.name", self.model) if self.model else ("profile", self.profile)
        return configure.load(flags={key: value})


def ensure(target: Target, *, switch: bool, accept_license: bool) -> Daemon:
    """The daemon, with `target` live and ready. `switch`: without asking if another is live.

    Raises YoutuError, and SystemExit with the status of a pull that failed."""
    daemon = Daemon.from_environ()
    try:
        report = daemon.call("GET", "/health", also=(503,))
    except NothingListens:
        if os.environ.get("YOUTU_HOST"):
            raise
        _start(target, accept_license=accept_license)
        return Daemon.from_environ()
    if target.is_live(report):
        if report.get("state") == "failed":  # its model may have been missing
            _fetch(str(report.get("model")), accept_license=accept_license)
            with bar.spinner(f"{target} is loaded again"):
                daemon.call("POST", "/reload", timeout_s=RELOAD_TIMEOUT_S)
    else:
        target.load()  # raises ConfigError for what is not a profile
        if target.model and not _is_here(target.model):
            _find(target.model)
        if not switch:
            _confirm(target, report)
        _switch(target, daemon, accept_license=accept_license)
    waiting.until_ready(Daemon.from_environ)
    return Daemon.from_environ()


def _start(target: Target, *, accept_license: bool) -> None:
    """A daemon of this account in the background, or the service where there is one."""
    loaded = target.load()
    _fetch(loaded.settings.model.name, accept_license=accept_license)
    if paths.socket_path() == paths.SYSTEM_SOCKET and systemctl.has_service():
        systemctl.control("start")
        report = waiting.until_ready(Daemon.from_environ)
        if not target.is_live(report):
            raise YoutuError(_of_the_service(target, report))
        return
    flags = target.flags
    if loaded.origins["service.port"] == "default":
        flags += ("--port", "0")  # another daemon, or program, may have 8080
    process = background.start(*flags)
    try:
        report = waiting.until_ready(
            Daemon.from_environ,
            lambda: process.poll() is None if process else background.own_pid() is not None,
        )
    except NothingListens as error:
        raise YoutuError(
            f"the daemon has ended; {background.log_file()} says:\n{background.last_words()}"
        ) from error
    if not target.is_live(report):  # another `youtu run` was first
        raise YoutuError(f"{_live(report)} was loaded in the meantime: run the same command again")


def _confirm(target: Target, report: Mapping[str, Any]) -> None:
    """Raises YoutuError unless the answer is that the one that is live may be ended."""
    question = f"{_live(report)} is live. End it, for all its clients, for {target}?"
    if not (sys.stdin.isatty() and confirm(question)):
        raise YoutuError(f"{_live(report)} is loaded, not {target}: add --switch to replace it")


def _switch(target: Target, daemon: Daemon, *, accept_license: bool) -> None:
    if target.profile:  # with the model that this daemon's flags and files give it
        with bar.spinner(f"the daemon changes to {target}"):
            daemon.call("PUT", "/profile", {"name": target.profile}, timeout_s=RELOAD_TIMEOUT_S)
        return
    pid = background.own_pid()
    if pid is None or os.environ.get("YOUTU_HOST"):
        raise YoutuError(_of_the_service(target, daemon.call("GET", "/health", also=(503,))))
    _fetch(target.model, accept_license=accept_license)
    background.stop(pid)
    _start(target, accept_license=accept_license)


def _of_the_service(target: Target, report: Mapping[str, Any]) -> str:
    what = f"model.name: {target.model}" if target.model else f"profile: {target.profile}"
    return (
        f"{_live(report)} is live in a daemon that is not this account's own: set {what} in its"
        " config.yaml, then `youtu reload`"
    )


def _live(report: Mapping[str, Any]) -> str:
    return f"{report.get('model')} ({PROFILE_MARK}{report.get('profile')})"


def _is_here(model: str) -> bool:
    return (paths.model_dir(model) / "config.json").is_file()


def _find(model: str) -> CatalogueEntry:
    """What can be pulled by this name. Raises ModelError."""
    from youtu_llm.tools import model_dir
    from youtu_llm.tools.catalogue import catalogue

    if "/" in model:
        raise ModelError(f"{model} has no config.json: it is not a model directory")
    known = catalogue()
    if model not in known:
        raise model_dir.missing(paths.models_dir(), model, also=known)
    return known[model]


def _fetch(model: str, *, accept_license: bool) -> None:
    """Pull the model unless it is here, with what it costs shown first."""
    if _is_here(model):
        return
    entry = _find(model)
    print(
        f"{model}: {entry.wanted.num_bytes / 1e9:.2f} GB to download,"
        f" {entry.model_bytes / 1e9:.2f} GB as a model; licence: {entry.license}",
        file=sys.stderr,
    )
    accept(entry, given=accept_license)
    flags = ("--accept-license",) if entry.must_accept else ()
    # Another process: where the engine has a Python of its own, a pull runs under that.
    pull = background.youtu("pull", model, *flags)
    status = subprocess.run(pull, stdout=subprocess.DEVNULL).returncode
    if status:
        raise SystemExit(status)
