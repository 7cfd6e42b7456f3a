"""Positions in the write-ahead log, and forks of timelines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_datasource.routing import Lineage, Position, format_lsn, parse_lsn


@given(st.integers(0, 2**64 - 1).filter(lambda lsn: lsn % 8192 != 24))
def test_positions_are_parsed_from_their_printed_form(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


def test_positions_are_printed_like_postgresql() -> None:
    assert format_lsn(parse_lsn("16/B374D848")) == "16/B374D848"
    assert str(Position(2, parse_lsn("0/3000148"))) == "2:0/3000148"
    with pytest.raises(ValueError, match="no position"):
        parse_lsn("3000148")


def test_a_position_after_an_empty_page_header_equals_the_end_of_the_previous_page() -> None:
    # An insert position may be there, the end of a record never is.
    assert format_lsn(parse_lsn("0/3002018")) == "0/3002000"


def test_on_one_timeline_positions_compare_by_number() -> None:
    assert Lineage().covers(Position(1, 100), Position(1, 100))
    assert not Lineage().covers(Position(1, 99), Position(1, 100))


def test_an_older_timeline_is_contained_up_to_the_fork() -> None:
    lineage = Lineage().with_fork(2, 100)
    assert lineage.covers(Position(2, 150), Position(1, 100))
    assert not lineage.covers(Position(2, 150), Position(1, 101)), "the same number is something else there"
    assert not lineage.covers(Position(2, 90), Position(1, 95))
    assert not Lineage().covers(Position(2, 150), Position(1, 1)), "nobody knows where it branched off"


def test_every_fork_in_between_must_be_known() -> None:
    lineage = Lineage().with_fork(2, 100).with_fork(4, 200)
    assert not lineage.covers(Position(4, 300), Position(1, 50))
    assert lineage.with_fork(3, 150).covers(Position(4, 300), Position(1, 50))
    assert lineage.with_fork(3, 150).covers(Position(4, 300), Position(2, 150))
    assert not lineage.with_fork(3, 150).covers(Position(4, 300), Position(2, 151))


def test_a_newer_timeline_is_not_contained() -> None:
    assert not Lineage().with_fork(2, 100).covers(Position(1, 500), Position(2, 50))


def test_the_known_position_of_a_fork_only_grows() -> None:
    assert Lineage().with_fork(2, 100).with_fork(2, 50) == Lineage(((2, 100),))
