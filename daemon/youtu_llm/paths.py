"""Where files are on this machine, in one place.

The machine's own accounts (UID below 1000: root, and `youtu` under systemd) use the system's
folders; a user has folders of their own:

              system                      user
config        /etc/youtu/config.yaml      ~/.config/youtu/config.yaml
profiles      /etc/youtu/profiles         ~/.config/youtu/profiles, then the system's
socket        /run/youtu/youtu.sock       $XDG_RUNTIME_DIR/youtu/youtu.sock, or /tmp/youtu-UID/
models        /var/lib/youtu/models       ~/.local/share/youtu/models
state         /var/lib/youtu/state        ~/.local/state/youtu

YOUTU_CONFIG and YOUTU_MODELS name another config file and model folder. Nothing here is
created: the code that writes makes the folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from youtu_llm.errors import ConfigError, ModelError

FIRST_USER_UID = 1000  # below it are the machine's own accounts
SYSTEM_CONFIG = Path("/etc/youtu")
SYSTEM_PROFILES = Path("/usr/share/youtu/profiles")
SYSTEM_SOCKET = Path("/run/youtu/youtu.sock")
SYSTEM_DATA = Path("/var/lib/youtu")

Environ = Mapping[str, str]


def config_file(environ: Environ = os.environ) -> Path:
    """The config file, which need not exist unless YOUTU_CONFIG names it."""
    if environ.get("YOUTU_CONFIG"):
        return Path(environ["YOUTU_CONFIG"])
    return _config_dir(environ) / "config.yaml"


def profile_dirs(environ: Environ = os.environ) -> tuple[Path, ...]:
    """Folders of profiles; for equal names the earlier folder's file is used."""
    dirs = (_config_dir(environ), SYSTEM_CONFIG)
    return (*(folder / "profiles" for folder in dict.fromkeys(dirs)), *_shipped_profiles())


def socket_path(environ: Environ = os.environ) -> Path:
    """The Unix socket the daemon of this account listens on when the config names none."""
    if _is_system():
        return SYSTEM_SOCKET
    run = environ.get("XDG_RUNTIME_DIR")
    return Path(run, "youtu") / "youtu.sock" if run else _shared_tmp() / "youtu.sock"


def refuse_foreign(socket: Path) -> None:
    """Raises ConfigError if another account could have put `socket` in a world-writable folder.

    A false daemon there would read the prompts. Other folders are guarded by their own rights.
    """
    folder = socket.parent
    if folder != _shared_tmp():
        return
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{folder} is accessible to other accounts, one of which could replace the socket:"
            " remove it, or set XDG_RUNTIME_DIR to a folder of yours"
        )


def make_socket_folder(socket: Path) -> None:
    """Raises OSError, and ConfigError for a folder of another account."""
    mode = 0o700 if socket.parent == _shared_tmp() else 0o750
    socket.parent.mkdir(mode=mode, parents=True, exist_ok=True)
    refuse_foreign(socket)


def _shared_tmp() -> Path:
    return Path(f"/tmp/youtu-{os.geteuid()}")


def models_dir(environ: Environ = os.environ) -> Path:
    if environ.get("YOUTU_MODELS"):
        return Path(environ["YOUTU_MODELS"])
    if _is_system():
        return SYSTEM_DATA / "models"
    return _home(environ, "XDG_DATA_HOME", ".local/share") / "models"


def model_dir(name: str) -> Path:
    """Where a model is: `name` is a directory if it has a slash, else a name in `models_dir`."""
    return Path(name) if "/" in name else models_dir() / name


def find_model(name: str) -> Path:
    """`model_dir`, checked. Raises ModelError, which shows no path, if no model can be read."""
    directory = model_dir(name)
    try:
        if (directory / "config.json").is_file():
            return directory
    except OSError as error:
        raise ModelError(
            f"the model directory «{directory.name}» cannot be read by this account"
            f" ({error.strerror}): move it to where it can be read, or change its rights"
        ) from error
    if "/" in name:
        raise ModelError(
            f"the model directory «{directory.name}» has no config.json: name a model directory,"
            " or a model that «youtu models» shows"
        )
    raise ModelError(
        f"the model «{name}» is not on this machine: run «youtu pull {name}», or name a directory"
        " with a slash, like «./mine»"
    )


def state_dir(environ: Environ = os.environ) -> Path:
    """State of the daemon that survives a reboot."""
    if _is_system():
        return SYSTEM_DATA / "state"
    return _home(environ, "XDG_STATE_HOME", ".local/state")


def _is_system() -> bool:
    return os.geteuid() < FIRST_USER_UID


def _config_dir(environ: Environ) -> Path:
    return SYSTEM_CONFIG if _is_system() else _home(environ, "XDG_CONFIG_HOME", ".config")


def _home(environ: Environ, variable: str, default: str) -> Path:
    base = environ.get(variable)
    return (Path(base) if base else Path(environ.get("HOME") or Path.home(), default)) / "youtu"


def _shipped_profiles() -> tuple[Path, ...]:
    """Installed by the .deb, inside a wheel's package, or beside daemon/ in a checkout."""
    package = Path(__file__).parent
    return SYSTEM_PROFILES, package / "profiles", package.parents[1] / "profiles"
