"""The process at the other end of a Unix socket."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple


class Peer(NamedTuple):
    """`pid` is 0 for one outside our container. Of a socket that systemd opened it is 1."""

    pid: int
    uid: int
    gid: int


def of(connection: socket.socket) -> Peer:
    """SO_PEERCRED of a connected Unix socket: for the client, the listening process."""
    size = struct.calcsize("3i")
    return Peer(
        *struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    )
