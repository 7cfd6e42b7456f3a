"""The hosts of a URL: their order, and which servers are accepted as primary."""

from __future__ import annotations

from dataclasses import replace

import pytest
from psycopg.conninfo import conninfo_to_dict

from asgi_datasource.drivers.psycopg import PsycopgServer
from asgi_datasource.drivers.psycopg.multi_host import Bearing, Hosts, writer_of
from asgi_datasource.drivers.psycopg.settings import Address, connect_failure
from asgi_datasource.drivers.settings import ServerSettings
from asgi_datasource.routing import Role

THREE = "postgresql://app@a:1,b:2,c:3/orders?target_session_attrs=read-write"


def first_and_rest(conninfo: str) -> tuple[object, object]:
    parts = conninfo_to_dict(conninfo)
    return parts["host"], parts.get("port")


def test_the_known_primary_is_tried_first_and_then_the_other_hosts() -> None:
    hosts = Hosts(THREE)
    assert (hosts.count, hosts.is_settled, hosts.conninfo) == (3, False, THREE)
    hosts.lead_with(1)
    assert hosts.is_settled
    assert first_and_rest(hosts.conninfo) == ("b,a,c", "2,1,3")
    assert conninfo_to_dict(hosts.conninfo)["target_session_attrs"] == "read-write"
    hosts.unsettle()
    assert not hosts.is_settled
    assert first_and_rest(hosts.alone(2)) == ("c", "3")


def test_one_port_applies_to_all_hosts() -> None:
    hosts = Hosts("host=a,b port=6000 dbname=orders")
    hosts.lead_with(1)
    assert first_and_rest(hosts.conninfo) == ("b,a", "6000,6000")
    assert [hosts.address(index) for index in range(2)] == [("a", 6000), ("b", 6000)]


def test_a_single_host_needs_no_discovery() -> None:
    hosts = Hosts("host=a dbname=orders")
    hosts.unsettle()
    assert (hosts.count, hosts.is_settled, hosts.address(0)) == (1, True, ("a", 5432))
    assert hosts.alone(0) == hosts.conninfo == "host=a dbname=orders"


@pytest.mark.parametrize(
    ("conninfo", "where", "found"),
    [
        (THREE, ("b", "10.0.0.2", "2"), 1),
        ("hostaddr=10.0.0.1,10.0.0.2 dbname=orders", ("10.0.0.2", "10.0.0.2", "5432"), 1),
        ("host=a,a port=1,2", ("a", "10.0.0.1", "2"), 1),
        ("host=a,b", ("elsewhere", "", "5432"), None),
    ],
)
def test_the_identity_of_a_connected_server(conninfo: str, where: tuple[str, str, str], found: int | None) -> None:
    assert Hosts(conninfo).find(*where) == found


def test_every_attempt_is_reported_with_its_host() -> None:
    error = OSError(
        "connection failed: b\nMultiple connection attempts failed. All failures were:\n"
        "- host: 'a', port: '1', hostaddr: '10.0.0.1': connection failed: connection to server at \"10.0.0.1\", port 1"
        " failed: Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?\n"
        "- host: 'b', port: '2', hostaddr: '10.0.0.2': connection failed: connection to server at \"10.0.0.2\", port 2"
        " failed: FATAL:  password geheim is wrong"
    )
    address = Address("a", 1, "orders", THREE, "geheim")
    assert connect_failure(error, address) == "a:1: Connection refused; b:2: password *** is wrong"


def test_the_newest_timeline_is_the_primary_and_fenced_off_clusters_are_not() -> None:
    old, new = Bearing(timeline=1, system="one"), Bearing(timeline=2, system="one")
    assert writer_of([old, new]) is new
    assert writer_of([replace(old, is_read_only=True), new]) is new
    fenced = replace(new, is_read_only=True)
    assert writer_of([old, fenced]) is fenced, "the other one was left behind, whatever this one is fenced off for"
    other = Bearing(timeline=1, system="two")
    assert writer_of([fenced, other]) is other
    assert writer_of([replace(old, is_read_only=True), old]) == old


async def test_the_servers_that_are_accepted_as_primary() -> None:
    primary = PsycopgServer("primary", "orders", Role.PRIMARY, ServerSettings(conninfo=THREE))

    def refuses(**bearing: object) -> bool:
        return primary._discovery.reason_against(Bearing(**bearing)) is not None  # type: ignore[arg-type]

    assert refuses(is_standby=True)
    assert not refuses(timeline=1, system="one")
    primary._discovery.arrived(Bearing(timeline=3, system="one"), ("b", 2))
    assert (primary.timeline, primary.label) == (3, "orders.primary (b:2)")
    assert refuses(timeline=2, system="one")
    assert refuses(timeline=2, system=None), "it does not say that it is another one"
    assert not refuses(timeline=0), "a service that does not tell its timeline"
    assert not refuses(timeline=3, system="one")
    # A move to another cluster by logical replication: its timelines start again.
    assert not refuses(timeline=1, system="two")
    primary._discovery.arrived(Bearing(timeline=1, system="two"), ("c", 3))
    assert primary.timeline == 1
    replica = PsycopgServer("r1", "orders", Role.REPLICA, ServerSettings(conninfo=THREE))
    assert replica._discovery.reason_against(Bearing(is_standby=True)) is None
