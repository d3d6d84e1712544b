"""The socket's folder where every account may write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from youtu_llm import paths
from youtu_llm.errors import ConfigError
from youtu_llm.service.http import listeners
from youtu_llm.tools.client import Daemon


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /tmp/youtu-UID of an account that has no XDG_RUNTIME_DIR."""
    folder = tmp_path / "youtu-1"
    monkeypatch.setattr(paths, "_shared_tmp", lambda: folder)
    monkeypatch.setattr(paths, "_is_system", lambda: False)
    return folder


def test_a_folder_of_ones_own_is_made_and_taken(shared: Path) -> None:
    socket = paths.socket_path({})
    assert socket.parent == shared
    listeners.unix_socket(socket).close()
    assert shared.stat().st_mode & 0o777 == 0o700
    assert Daemon.from_environ({}).host == f"unix://{socket}"


@pytest.mark.parametrize("kind", ["open", "link", "file", "foreign"])
def test_what_another_account_may_have_made_is_refused(
    shared: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "open":
        shared.mkdir()
        shared.chmod(0o777)
    elif kind == "link":
        shared.symlink_to(shared.parent)
    elif kind == "file":
        shared.touch(0o600)
    else:
        shared.mkdir(0o700)
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigError, match="is accessible to other accounts"):
        Daemon.from_environ({})
    with pytest.raises(ConfigError, match=r"is accessible to other accounts|cannot listen"):
        listeners.unix_socket(shared / "youtu.sock")
