"""Counting round trips from the bytes of the protocol."""

from __future__ import annotations

import itertools
import struct
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from asgi_datasource.testing import RoundTripCounter
from asgi_datasource.testing.protocol import Phase


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!I", len(body) + 4) + body


def startup(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", len(body) + 8, code) + body


STARTUP: Final = startup(196608, b"user\0app\0\0")
SSL_REQUEST: Final = startup(80877103)
CANCEL_REQUEST: Final = startup(80877102, b"\0" * 8)
READY: Final = message("Z", b"I")
QUERY: Final = message("Q", b"select 1\0")
PARSE, BIND, EXECUTE, SYNC, FLUSH = (message(kind, b"x" * 9) for kind in "PBESH")
PARSED, BOUND, ROW, DONE, ERROR = (message(kind, b"x" * 9) for kind in "12DCE")

C: Final = "client"
S: Final = "server"


def counter_after(*steps: tuple[str, bytes], opened: bool = True) -> RoundTripCounter:
    counter = RoundTripCounter()
    if opened:
        counter.from_client(STARTUP)
        counter.from_server(message("R", b"\0\0\0\0") + READY)
    for side, data in steps:
        (counter.from_client if side == C else counter.from_server)(data)
    return counter


def test_query_and_its_result_are_one_round_trip_for_any_number_of_rows() -> None:
    assert counter_after((C, QUERY), (S, ROW * 1000), (S, ROW + DONE + READY)).round_trips == 1


def test_start_up_is_counted_separately() -> None:
    counter = counter_after((C, STARTUP), (S, message("R", b"\0\0\0\x0a")), opened=False)
    assert counter.phase is Phase.AUTHENTICATION
    assert (counter.round_trips, counter.startup_round_trips) == (0, 1)


def test_pipeline_with_one_sync_is_one_round_trip() -> None:
    counter = counter_after((C, (PARSE + BIND + EXECUTE) * 3 + SYNC), (S, (PARSED + BOUND + DONE) * 3 + READY))
    assert (counter.round_trips, counter.requests) == (1, 1)


def test_two_requests_sent_together_are_one_round_trip() -> None:
    counter = counter_after((C, QUERY), (C, QUERY), (S, DONE + READY), (S, DONE + READY))
    assert (counter.round_trips, counter.requests) == (1, 2)


def test_request_in_pieces_is_one_round_trip_even_with_early_errors() -> None:
    counter = counter_after((C, PARSE + BIND), (S, ERROR), (C, EXECUTE), (C, SYNC), (S, READY))
    assert counter.round_trips == 1


def test_flush_with_a_wait_is_a_separate_round_trip() -> None:
    waited = counter_after((C, PARSE + FLUSH), (S, PARSED), (C, BIND + EXECUTE + SYNC), (S, BOUND + DONE + READY))
    assert waited.round_trips == 2


def test_flush_without_a_wait_is_no_round_trip() -> None:
    together = counter_after((C, PARSE + FLUSH + BIND + EXECUTE + SYNC), (S, PARSED), (S, BOUND + DONE + READY))
    assert together.round_trips == 1
    ended = counter_after((C, PARSE + FLUSH), (C, BIND + EXECUTE + SYNC), (S, PARSED + BOUND), (S, DONE + READY))
    assert ended.round_trips == 1


def test_copy_in_is_two_round_trips() -> None:
    data = message("d", b"1\n") * 5 + message("c")
    assert counter_after((C, QUERY), (S, message("G", b"\0\0\0")), (C, data), (S, DONE + READY)).round_trips == 2


def test_notifications_and_terminate_are_no_round_trips() -> None:
    counter = counter_after((S, message("A", b"\0" * 8)), (S, message("N", b"\0")), (C, message("X")))
    assert counter.round_trips == 0


def test_refused_encryption_is_a_start_up_round_trip_and_counting_continues() -> None:
    counter = counter_after((C, SSL_REQUEST), (S, b"N"), (C, STARTUP), (S, READY), (C, QUERY), (S, READY), opened=False)
    assert (counter.startup_round_trips, counter.round_trips) == (2, 1)


def test_encrypted_connection_counts_changes_of_direction() -> None:
    steps = ((C, SSL_REQUEST), (S, b"S"), (C, b"\x16hello"), (S, b"\x16hello"), (C, b"\x17a"), (C, b"b"), (S, b"c"))
    counter = counter_after(*steps, opened=False)
    assert counter.phase is Phase.OPAQUE
    assert counter.round_trips == 2
    direct = counter_after((C, b"\x16\x03\x01\x02\0\x01\0\0"), (S, b"\x16"), (C, b"\x17"), (S, b"\x17"), opened=False)
    assert direct.round_trips == 2


def test_cancel_request_is_no_round_trip() -> None:
    counter = counter_after((C, CANCEL_REQUEST), opened=False)
    assert (counter.phase, counter.round_trips, counter.startup_round_trips) == (Phase.CANCEL, 0, 0)


def test_a_round_trip_running_at_the_reset_counts_when_its_result_arrives() -> None:
    counter = counter_after((C, QUERY), (S, READY), (C, QUERY))
    counter.reset()
    assert counter.round_trips == 0
    counter.from_server(DONE + READY)
    assert counter.round_trips == 1


CLIENT_TALK: Final = STARTUP + message("p", b"secret") + QUERY + PARSE + BIND + EXECUTE + SYNC
SERVER_TALK: Final = (
    message("R", b"\0\0\0\x0a"),
    message("R", b"\0\0\0\0") + message("S", b"a\0b\0") * 3 + READY,
    ROW * 3 + DONE + READY,
    PARSED + BOUND + ROW + DONE + READY,
)


@given(st.data())
def test_the_count_does_not_depend_on_packet_boundaries(data: st.DataObject) -> None:
    counter = RoundTripCounter()
    sends = (STARTUP, message("p", b"secret"), QUERY, PARSE + BIND + EXECUTE + SYNC)
    assert b"".join(sends) == CLIENT_TALK
    for sent, answer in zip(sends, SERVER_TALK, strict=True):
        for feed, stream in ((counter.from_client, sent), (counter.from_server, answer)):
            cuts = sorted(data.draw(st.sets(st.integers(1, len(stream)), max_size=6)) | {0, len(stream)})
            for start, end in itertools.pairwise(cuts):
                feed(stream[start:end])
    assert (counter.startup_round_trips, counter.round_trips, counter.requests) == (2, 2, 2)
