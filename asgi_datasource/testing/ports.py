"""Ports of 127.0.0.1 that stay ours while nobody listens on them."""

from __future__ import annotations

import socket
import sys
from typing import Final

HOST: Final = "127.0.0.1"


def reserve_port() -> tuple[int, socket.socket]:
    """Find a free port and keep others away from it for as long as the returned socket is open.

    The socket is bound and does not listen: connects are refused, nobody else can bind the port or be given it for an
    outgoing connection, and PostgreSQL, which sets SO_REUSEADDR as the socket now does, can. Elsewhere than on Linux
    the second bind would fail, so the socket is closed at once and the port is only probably ours.
    """
    reservation = socket.socket()
    reservation.bind((HOST, 0))
    port = int(reservation.getsockname()[1])
    if sys.platform == "linux":
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    else:
        reservation.close()
    return port, reservation
