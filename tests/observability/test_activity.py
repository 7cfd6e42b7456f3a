"""What a console knows of the last minutes, with a fake clock."""

from __future__ import annotations

from asgi_datasource.observability.activity import KEPT_TENANTS, MOST_TENANTS, OTHERS, SLOTS, Activity, route_of
from asgi_datasource.observability.names import DATASOURCE, NODE, REASON, ROLE


class Pool:
    datasource, name, full_name, dimensions = "orders", "r1", "orders.r1", {}


class Connection:
    backend_pid, is_in_transaction, has_failed_transaction = 7, True, False


DECISION = {DATASOURCE: "orders", NODE: "r1", ROLE: "replica", REASON: "balanced"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_counts_leave_with_their_slots() -> None:
    clock = Clock()
    activity = Activity(clock)
    session = activity.recorder(None).measure("acme")
    key = ("orders", "r1", "replica", "balanced")
    session.chose(DECISION)
    clock.now += 50
    session.chose(DECISION)
    assert (activity.decisions(10)[key], activity.decisions(60)[key]) == (1, 2)
    clock.now += 20
    assert (activity.decisions(10)[key], activity.decisions(60)[key], activity.decisions(900)[key]) == (0, 1, 2)
    clock.now += 10 * SLOTS
    session.chose(DECISION)
    assert activity.decisions(900)[key] == 1


def test_a_connection_that_is_held_counts_while_it_is_held() -> None:
    clock = Clock()
    activity = Activity(clock)
    session = activity.recorder(None).measure("acme", {"type": "http", "method": "GET", "path": "/secret/7"})
    held = session.lent(Pool(), 0.5, Connection())
    clock.now += 25
    assert activity.tenants(60)["acme"].busy_s == 25
    assert list(activity.in_flight.values()) == [held]
    assert held.route == "GET"
    clock.now += 600
    assert activity.tenants(1200)["acme"].busy_s == 625
    assert activity.tenants(60)["acme"].busy_s == 55
    held.end()
    held.end()
    assert activity.tenants(1200)["acme"].busy_s == 625
    assert activity.in_flight == {}
    clock.now += 86_400
    assert activity.tenants(1200) == {}


def test_the_heaviest_of_many_tenants_are_kept() -> None:
    activity = Activity(Clock())
    recorder = activity.recorder(None)
    for number in range(10 * MOST_TENANTS):
        for _ in range(50 if number % 1000 == 0 else 1):
            recorder.measure(f"t{number}").chose(DECISION)
    slot = activity.current
    assert len(slot.tenants) <= MOST_TENANTS + 1
    assert all(slot.tenants[f"t{number}"].statements == 50 for number in range(0, 10 * MOST_TENANTS, 1000))
    slot.reduce()
    assert len(slot.tenants) == KEPT_TENANTS + 1
    assert sum(load.statements for load in slot.tenants.values()) == 10 * MOST_TENANTS + 4 * 49
    assert OTHERS in slot.tenants


def test_a_route_is_what_the_framework_declares() -> None:
    class Endpoint:
        path = "/orders/{id}"

    async def handler() -> None: ...

    base = {"type": "http", "method": "GET", "path": "/orders/7"}
    assert route_of({**base, "route": Endpoint()}) == "GET /orders/{id}"
    assert route_of({**base, "path_template": "/orders/{id:int}"}) == "GET /orders/{id:int}"
    assert route_of({**base, "endpoint": handler}).endswith("handler")
    assert "7" not in route_of(base)
