"""Entry of the engine process: `python -m youtu_llm.engine --fd N`.

It imports no torch itself, so that a Python without torch can report that.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import socket
import sys

from youtu_llm.protocol import Fatal, encode


def main() -> int:
    _die_with_parent()  # before torch: importing it takes seconds
    try:
        from youtu_llm.engine import worker
    except (ImportError, OSError) as error:  # OSError: a library that torch itself loads
        return _refuse(error)
    return worker.main()


def _die_with_parent() -> None:
    """PR_SET_PDEATHSIG: an orphan would keep the memory if the service is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _refuse(error: Exception) -> int:
    message = (
        f"the engine's Python cannot import what the engine needs ({error}): run"
        " `sudo youtu setup-engine`, which finds or makes one that can, then `sudo youtu restart`"
    )
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--fd", type=int, required=True)
    with socket.socket(fileno=parser.parse_known_args()[0].fd) as link:
        link.recv(1 << 16)  # Configure: left unread, our end would look like a reset
        link.sendall(encode(Fatal("engine_python", message, heals=False)))
    print(f"{sys.executable}: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
