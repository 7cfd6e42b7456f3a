"""Counts the round trips of one PostgreSQL connection from the bytes that pass. No I/O.

A client waits once for each round trip: it sends requests and goes on when the answer is complete. Several requests
    sent
together are one round trip; so is a request sent in several pieces. The answer is complete when

- `ReadyForQuery` has arrived for every `Sync` or `Query` sent so far,
- the server asks for the client's data (`CopyInResponse`), or
- the client has sent `Flush` and sends again after an answer.

Start-up and authentication are counted separately.

Source: PostgreSQL manual, "Frontend/Backend Protocol", "Message Formats".
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final

_SSL_REQUEST: Final = 80877103
_GSS_REQUEST: Final = 80877104
_CANCEL_REQUEST: Final = 80877102
_TLS_RECORD: Final = 0x16
"""First byte of a client that starts with TLS (`sslnegotiation=direct`)."""

_LENGTH: Final = struct.Struct("!I")
_STARTUP_HEAD: Final = struct.Struct("!II")

_QUERY, _SYNC, _FUNCTION_CALL, _FLUSH, _TERMINATE = b"QSFHX"
_READY, _COPY_IN, _COPY_BOTH = b"ZGW"
_END_OF_REQUEST: Final = frozenset((_QUERY, _SYNC, _FUNCTION_CALL))
_INVITATION: Final = frozenset((_COPY_IN, _COPY_BOTH))


class Phase(StrEnum):
    """Phase of a connection, derived from its bytes."""

    STARTUP = "startup"  # before the client's StartupMessage
    ENCRYPTION = "encryption"  # it asked for encryption; one byte decides
    AUTHENTICATION = "authentication"  # until the first ReadyForQuery
    OPEN = "open"
    OPAQUE = "opaque"  # encrypted: only changes of direction are counted
    CANCEL = "cancel"  # a CancelRequest: it gets no answer


class RoundTripCounter:
    """Counts one connection; call it for both directions, in the order in which the bytes pass.

    Attributes:
        round_trips: Round trips since the connection was ready, or since `reset`.
        startup_round_trips: Round trips before that: encryption, start-up and authentication.
        requests: `Query` and `Sync` messages, which `ReadyForQuery` answers.
    """

    __slots__ = (
        "_answered",
        "_client",
        "_has_asked",
        "_is_flushed",
        "_pending",
        "_server",
        "phase",
        "requests",
        "round_trips",
        "startup_round_trips",
    )

    def __init__(self) -> None:
        self.phase = Phase.STARTUP
        self.round_trips = 0
        self.startup_round_trips = 0
        self.requests = 0
        self._client = _Scanner()
        self._server = _Scanner()
        self._pending = 0
        self._has_asked = False
        self._is_flushed = False
        self._answered = False

    def reset(self) -> None:
        """Count from zero; a round trip in progress counts when its answer is complete."""
        self.round_trips = 0
        self.startup_round_trips = 0
        self.requests = 0

    def from_client(self, data: bytes) -> None:
        """Bytes that the client sent."""
        if self.phase in (Phase.OPEN, Phase.AUTHENTICATION):
            self._client_messages(self._client.scan(data))
        elif self.phase is Phase.OPAQUE:
            self._has_asked = True
        elif self.phase is Phase.STARTUP:
            self._startup(data)

    def from_server(self, data: bytes) -> None:
        """Bytes that the server sent."""
        if self.phase is Phase.ENCRYPTION:
            self.startup_round_trips += 1
            self.phase = Phase.OPAQUE if data[:1] in (b"S", b"G") else Phase.STARTUP
        elif self.phase is Phase.OPAQUE:
            self.round_trips += self._has_asked
            self._has_asked = False
        elif self.phase is Phase.AUTHENTICATION:
            self._authentication(self._server.scan(data))
        elif self.phase is Phase.OPEN:
            self._server_messages(self._server.scan(data))

    def _startup(self, data: bytes) -> None:
        head = self._client.head(data, _STARTUP_HEAD.size)
        if head is None:
            return
        if head[0] == _TLS_RECORD:
            self._has_asked = True
            self.phase = Phase.OPAQUE
            return
        length, code = _STARTUP_HEAD.unpack_from(head)
        if code in (_SSL_REQUEST, _GSS_REQUEST):
            self._client = _Scanner()
            self.phase = Phase.ENCRYPTION
        elif code == _CANCEL_REQUEST:
            self.phase = Phase.CANCEL
        else:
            self._client = _Scanner(skip=max(length - len(head), 0))
            self._has_asked = True
            self.phase = Phase.AUTHENTICATION

    def _authentication(self, kinds: bytes) -> None:
        self.startup_round_trips += self._has_asked
        self._has_asked = False
        if _READY in kinds:
            self.phase = Phase.OPEN

    def _client_messages(self, kinds: bytes) -> None:
        for kind in kinds:
            if kind == _TERMINATE:
                continue
            if self._answered:
                # An answer after Flush, and the client sends again: it waited in between.
                self._finish()
            self._has_asked = True
            if kind in _END_OF_REQUEST:
                self._pending += 1
                self.requests += 1
                self._is_flushed = False
            elif kind == _FLUSH:
                self._is_flushed = True

    def _server_messages(self, kinds: bytes) -> None:
        for kind in kinds:
            if kind == _READY:
                self._pending = max(self._pending - 1, 0)
                if not self._pending:
                    self._finish()
            elif kind in _INVITATION:
                self._finish()
            elif self._is_flushed:
                self._answered = True

    def _finish(self) -> None:
        self.round_trips += self._has_asked
        self._has_asked = self._is_flushed = self._answered = False


class _Scanner:
    """Finds message boundaries in a stream that arrives in pieces."""

    __slots__ = ("_head", "_skip")

    def __init__(self, skip: int = 0) -> None:
        self._head: bytes = b""
        self._skip = skip

    def scan(self, data: bytes) -> bytes:
        """Types of the messages that begin in this piece; a type without its length yet is kept for the next piece."""
        kinds = bytearray()
        position = self._skip
        if self._head:
            data = self._head + data
            self._head = b""
        size = len(data)
        while position + 5 <= size:
            kinds.append(data[position])
            position += 1 + _LENGTH.unpack_from(data, position + 1)[0]
        if position < size:
            self._head = data[position:]
            self._skip = 0
        else:
            self._skip = position - size
        return bytes(kinds)

    def head(self, data: bytes, size: int) -> bytes | None:
        """The first `size` bytes, once they have arrived."""
        self._head += data
        return self._head if len(self._head) >= size else None
