"""Reserved ports of 127.0.0.1."""

from __future__ import annotations

import socket
import sys
from typing import Final

HOST: Final = "127.0.0.1"


def reserve_port() -> tuple[int, socket.socket]:
    """Find a free port and reserve it for as long as the returned socket is open.

    The socket is bound and does not listen: connects are refused, and no other process can bind the port or get it for
    an outgoing connection. PostgreSQL can bind it, because it sets SO_REUSEADDR like this socket. On systems other than
    Linux the second bind would fail, so the socket is closed at once, and the port is only probably free.
    """
    reservation = socket.socket()
    reservation.bind((HOST, 0))
    port = int(reservation.getsockname()[1])
    if sys.platform == "linux":
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        reservation.close()
    return port, reservation
