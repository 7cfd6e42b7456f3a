"""A set that is bounded in size and in time."""

from __future__ import annotations

from asgi_datasource.concurrency.expiring_set import ExpiringSet


def test_members_stay_for_a_while() -> None:
    now = [0.0]
    known: ExpiringSet[str] = ExpiringSet(most=9, keep_s=2.0, clock=lambda: now[0])
    known.add("a")
    now[0] = 1.5
    known.add("b")
    assert "a" in known
    now[0] = 2.0
    assert "a" not in known
    assert "b" in known
    known.add("a")
    now[0] = 3.9
    assert "a" in known
    known.clear()
    assert "a" not in known
    assert len(known) == 0


def test_the_oldest_go_first_where_there_are_too_many() -> None:
    known: ExpiringSet[int] = ExpiringSet(most=2, keep_s=60.0)
    for number in (1, 2, 1, 3):
        known.add(number)
    assert len(known) == 2
    assert [number for number in (1, 2, 3) if number in known] == [1, 3]
