"""`check` on real servers: roles, replication, limits, poolers, and the isolation of tenants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from jsonschema import Draft202012Validator

from asgi_datasource.cli.checking import evaluation, queries
from asgi_datasource.cli.checking.facts import Facts, PoolerMode, Target
from asgi_datasource.config import Code, load
from asgi_datasource.drivers.settings import ServerSettings
from asgi_datasource.testing import EmbeddedCluster
from tests.cli.run import Ran, call
from tests.pgbouncer import pgbouncer
from tests.world import World

ROOT = Path(__file__).parent.parent.parent
PASSWORD = "hunter2-Tr0ub4dor"


def config(world: World, **changes: Any) -> dict[str, Any]:
    """The world's configuration, whose schemas and policies are correct."""
    document: dict[str, Any] = {
        "version": 1,
        "datasources": {
            "orders": {
                "primary": {"url": world.url()},
                "replicas": {"r1": {"url": world.url("r1")}, "r2": {"url": world.url("r2")}},
            }
        },
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": {
            "acme": {"datasource": "orders", "schema": "acme"},
            "initech": {"datasource": "orders", "schema": "shared", "row_security": {"app.tenant": "41"}},
        },
    }
    for path, value in changes.items():
        here: Any = document
        *steps, last = path.split("__")
        for step in steps:
            here = here.setdefault(step, {})
        here[last] = value
    return document


def check(
    document: dict[str, Any], tmp_path: Path, *arguments: str, **environ: str
) -> tuple[Ran, list[dict[str, Any]]]:
    path = tmp_path / "datasource.json"
    path.write_text(json.dumps(document, indent=1))
    done = call("check", path, "--format", "json", *arguments, environ=environ)
    assert done.out, done.err
    found = json.loads(done.out)
    Draft202012Validator(json.loads((ROOT / "schemas" / "diagnostics" / "v1.json").read_text())).validate(found)
    return done, found["diagnostics"]


def codes(found: list[dict[str, Any]], *, without: set[str] = frozenset()) -> list[tuple[str, str]]:  # type: ignore[assignment]
    return [(each["code"], each["key"]) for each in found if each["code"] not in without]


TABLES = {"ADS111", "ADS112"}
"""Findings of the world's tables without policies, which are intentional."""


async def test_a_correct_configuration_has_no_findings(world: World, tmp_path: Path) -> None:
    done, found = check(config(world), tmp_path)
    assert codes(found, without=TABLES) == []
    assert "asking 3 servers" in done.err
    assert done.code == 0


async def test_swapped_roles_are_reported(world: World, tmp_path: Path) -> None:
    swapped = config(
        world,
        datasources__orders__primary={"url": world.url("r1")},
        datasources__orders__replicas={"r1": {"url": world.url()}},
    )
    done, found = check(swapped, tmp_path)
    assert codes(found, without=TABLES) == [
        ("ADS102", "datasources.orders.primary.url"),
        ("ADS102", "datasources.orders.replicas.r1.url"),
    ]
    assert done.code == 1
    assert [each["position"]["line"] for each in found if each["code"] == "ADS102"] == [6, 10]


async def test_unreachable_servers_are_reported_with_their_reason(world: World, tmp_path: Path) -> None:
    wrong = psycopg.conninfo.make_conninfo(world.url("r1"), password=PASSWORD)
    nowhere = psycopg.conninfo.make_conninfo(world.url("r2"), dbname="nowhere")
    done, found = check(
        config(world, datasources__orders__replicas={"r1": {"url": wrong}, "r2": {"url": nowhere}}), tmp_path
    )
    assert codes(found, without=TABLES) == [
        ("ADS101", "datasources.orders.replicas.r1.url"),
        ("ADS101", "datasources.orders.replicas.r2.url"),
    ]
    printed = [each["message"] for each in found if each["code"] == "ADS101"]
    assert "password authentication failed" in printed[0]
    assert 'database "nowhere" does not exist' in printed[1]
    assert done.code == 2
    assert PASSWORD not in done.out + done.err


@pytest.fixture(scope="module")
def other_cluster() -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(replicas=1) as running:
        yield running


async def test_a_standby_of_another_cluster_is_reported(
    world: World, other_cluster: EmbeddedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "CATCH_UP_S", 0.3)
    [stranger] = other_cluster.replicas.values()
    _, found = check(config(world, datasources__orders__replicas={"r1": {"url": stranger.url()}}), tmp_path)
    assert codes(found, without=TABLES) == [("ADS103", "datasources.orders.replicas.r1.url")]
    # The clusters of the tests are copies and share a system identifier, so only the WAL tells them apart.
    [printed] = [each["message"] for each in found if each["code"] == "ADS103"]
    assert "has not replayed the last" in printed
    document = config(world, datasources__orders__primary={"url": other_cluster.primary.url()}, tenants={})
    document["tenancy"] = {"default": "orders"}
    _, found = check(document, tmp_path)
    assert [each["message"] for each in found] == [
        "orders/r1 is a standby of another cluster than orders/primary",
        "orders/r2 is a standby of another cluster than orders/primary",
    ]


async def test_a_lagging_replica_is_reported(
    other_cluster: EmbeddedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [replica] = other_cluster.replicas.values()
    document = {
        "version": 1,
        "datasources": {
            "orders": {"primary": {"url": other_cluster.primary.url()}, "replicas": {"r1": {"url": replica.url()}}}
        },
        "tenancy": {"default": "orders"},
    }
    assert check(document, tmp_path)[1] == []
    await replica.pause_replay()
    try:
        _, found = check(document, tmp_path)
        assert codes(found) == [("ADS107", "datasources.orders.replicas.r1.url")]
        assert "replay is paused on orders/r1" in found[0]["message"]
    finally:
        await replica.resume_replay()
    # A standby without a source: the primary's writes do not arrive.
    await replica.configure(primary_conninfo="")
    monkeypatch.setattr(queries, "CATCH_UP_S", 0.3)
    try:
        await other_cluster.primary.sql("create table if not exists more (id int)")
        await other_cluster.primary.sql("insert into more select generate_series(1, 1000)")
        _, found = check(document, tmp_path)
        assert codes(found) == [("ADS103", "datasources.orders.replicas.r1.url")]
        assert "has not replayed the last" in found[0]["message"]
    finally:
        replica.stream_from(other_cluster.primary)


async def test_more_connections_than_the_server_allows_are_reported(world: World, tmp_path: Path) -> None:
    budget = {"processes": 31, "reserve": 10}
    _, found = check(config(world, budget=budget), tmp_path)
    limits = [each for each in found if each["code"] == "ADS106"]
    assert [each["key"] for each in limits] == [
        "datasources.orders.primary.url",
        "datasources.orders.replicas.r1.url",
        "datasources.orders.replicas.r2.url",
    ]
    assert "31 processes may open 310 connections to the server of orders/primary" in limits[0]["message"]
    assert limits[0]["fix"].startswith("Lower pool.max_size to 9,")
    assert codes(check(config(world, budget={"processes": 9, "reserve": 10}), tmp_path)[1], without=TABLES) == []
    # Two datasources on one server share its limit.
    twice = config(world, budget={"processes": 16, "reserve": 0})
    assert codes(check(twice, tmp_path)[1], without=TABLES) == []
    twice["datasources"]["more"] = {"primary": {"url": world.url()}}
    assert codes(check(twice, tmp_path)[1], without=TABLES) == [("ADS106", "datasources.orders.primary.url")]


async def test_limits_of_login_and_database_are_checked(world: World, cluster: EmbeddedCluster, tmp_path: Path) -> None:
    await cluster.primary.sql(f"alter database {world.dbname} connection limit 5")
    try:
        _, found = check(config(world, datasources__orders__replicas={}), tmp_path)
        [limit] = [each for each in found if each["code"] == "ADS106"]
        assert "which allows this login 5" in limit["message"]
    finally:
        await cluster.primary.sql(f"alter database {world.dbname} connection limit -1")


@pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
async def test_pgbouncer_is_detected_with_its_mode(mode: str, world: World, tmp_path: Path) -> None:
    async with pgbouncer(world.url(), size=5, mode=mode) as bouncer:
        url = {"url": bouncer.url(world.dbname)}
        document = config(world, datasources__orders__primary=url, datasources__orders__replicas={})
        done, found = await asyncio.to_thread(check, document, tmp_path)
        document["datasources"]["orders"]["pool"] = {"pooler": "transaction"}
        _, declared = await asyncio.to_thread(check, document, tmp_path)
    [pooler] = [each for each in found if each["code"] == "ADS105"]
    assert f"a pooler in {mode} mode stands in front of orders/primary" in pooler["message"]
    assert pooler["severity"] == {"session": "hint", "transaction": "error", "statement": "error"}[mode]
    assert done.code == (0 if mode == "session" else 1)
    if mode == "transaction":
        assert pooler["fix"] == "Say so: pool: {pooler: transaction}."
        assert [each["severity"] for each in declared if each["code"] == "ADS105"] == ["hint"]
    assert not {each["code"] for each in found} & {"ADS106", "ADS116"}


async def test_pgbouncer_with_a_single_connection_is_checked(world: World, tmp_path: Path) -> None:
    async with pgbouncer(world.url(), size=1) as bouncer:
        url = {"url": bouncer.url(world.dbname)}
        document = config(world, datasources__orders__primary=url, datasources__orders__replicas={})
        _, found = await asyncio.to_thread(check, document, tmp_path)
    [pooler] = [each for each in found if each["code"] == "ADS105"]
    assert "in transaction mode" in pooler["message"]


async def execute(world: World, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(world.url(), autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def test_holes_in_row_security_are_reported(world: World, tmp_path: Path) -> None:
    await execute(
        world,
        "create schema books",
        "create table books.ledger (id int, tenant text)",
        "create table books.open_table (id int)",
        "create table books.unforced (id int, tenant text)",
        "create table books.locked (id int)",
        "alter table books.ledger enable row level security, force row level security",
        "alter table books.unforced enable row level security",
        "alter table books.locked enable row level security, force row level security",
        "create policy own on books.ledger using (tenant = current_setting('app.tenant', true))",
        "create policy own on books.unforced using (tenant = current_setting('app.tenant', true))",
        "create view books.through as select * from books.unforced",
        "create materialized view books.copy as select * from books.ledger",
        "create function books.total() returns bigint language sql security definer as 'select 1::bigint'",
        "create function books.safe() returns bigint language sql security definer set search_path = books"
        " as 'select 1::bigint'",
    )
    tenant = {"datasource": "orders", "schema": "books", "row_security": {"app.tenant": "1"}}
    done, found = check(config(world, tenants={"initech": tenant}, datasources__orders__replicas={}), tmp_path)
    printed = {(each["code"], each["message"].removeprefix("orders/primary: ").split(":")[0]) for each in found}
    assert printed == {
        ("ADS111", "the table books.open_table has no row security"),
        ("ADS111", "the table books.locked has row security and no policy"),
        ("ADS112", "the login owns the table books.unforced, and its policies do not hold for the owner"),
        ("ADS112", "the view books.through reads with the rights of its owner, for whom the policies do not hold"),
        ("ADS112", "the materialized view books.copy holds rows of every tenant, and policies do not hold for it"),
        (
            "ADS114",
            "the function books.total() is SECURITY DEFINER and uses its caller's search_path with its owner's rights",
        ),
    }
    assert done.code == 1
    fixes = [each["fix"] for each in found]
    # Applying the fixes resolves the findings.
    await execute(
        world,
        "alter table books.unforced force row level security",
        "alter view books.through set (security_invoker = on)",
        "alter function books.total() set search_path = books, pg_temp",
        "drop materialized view books.copy",
        "drop table books.open_table, books.locked",
    )
    assert "Force them: alter table books.unforced force row level security." in fixes
    assert check(config(world, tenants={"initech": tenant}, datasources__orders__replicas={}), tmp_path)[1] == []


async def test_logins_that_bypass_row_security_are_reported(
    world: World, cluster: EmbeddedCluster, tmp_path: Path
) -> None:
    name = f"bypassing_{world.dbname}"
    await cluster.create_role(name, password="x", options="bypassrls")
    try:
        await execute(world, f"grant usage on schema shared to {name}")
        url = psycopg.conninfo.make_conninfo(world.url(), user=name, password="x")
        document = config(world, datasources__orders__primary={"url": url}, datasources__orders__replicas={})
        document["tenants"] = {"initech": document["tenants"]["initech"]}
        _, found = check(document, tmp_path)
        assert [each["code"] for each in found] == ["ADS110"]
        assert f"the role {name} has BYPASSRLS" in found[0]["message"]
    finally:
        await execute(world, f"revoke usage on schema shared from {name}")
        await cluster.primary.sql(f"drop role {name}")


async def test_tenants_without_schema_or_role_are_reported(world: World, tmp_path: Path) -> None:
    tenants = {
        "acme": {"datasource": "orders", "schema": "acme"},
        "gone": {"datasource": "orders", "schema": "gone"},
        "nobody": {"datasource": "orders", "schema": "globex", "role": "nobody_of_that_name"},
    }
    _, found = check(config(world, tenants=tenants, datasources__orders__replicas={}), tmp_path)
    assert codes(found) == [("ADS115", "tenants.gone"), ("ADS115", "tenants.nobody")]
    assert found[0]["fix"] == "Create it: create schema gone."


async def test_tenants_of_a_table_are_checked_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = config(world, datasources__orders__replicas={})
    document["tenants_from"] = {
        "datasource": "orders",
        "query": "select name, 'of_' || name as schema from books.customers where name not like '%!%'",
        "defaults": {"datasource": "orders"},
    }
    _, found = check(document, tmp_path)
    assert ("ADS116", "tenants_from") in codes(found, without=TABLES)
    await execute(
        world,
        "create schema books",
        "create table books.customers (name text)",
        "insert into books.customers select 'c' || n from generate_series(1, 1200) n",
        "insert into books.customers values ('acme')",
        "do $$ begin for n in 1..1200 loop if n <> 7 then execute 'create schema of_c' || n; end if; end loop; end $$",
    )
    done, found = check(document, tmp_path)
    notes = json.loads(done.out)["notes"]
    assert notes == ["1,000 of the 1,201 tenants of tenants_from were checked"]
    # The sample is deterministic and includes the tenant without a schema.
    [missing] = [each for each in found if each["code"] == "ADS115"]
    assert missing["key"] == "tenants_from"
    assert "the schema of_c7 is not there" in missing["message"]
    printed = call("check", tmp_path / "datasource.json").out
    assert f"note: {notes[0]}" in printed
    assert call("check", tmp_path / "datasource.json", "--format", "concise").out.count("note: ") == 1


async def test_a_sample_of_the_tenants_databases_is_checked(world: World, tmp_path: Path) -> None:
    url = world.cluster.primary.url(dbname="PLACE").replace("PLACE", "{tenant}")
    own = {"primary": {"url": url}, "pool": {"max_open_pools": 5}}
    document = config(world, tenants={}, datasources={"own": own})
    document["tenants"] = {
        "acme": {"datasource": "own", "database": world.dbname, "schema": "acme"},
        "gone": {"datasource": "own", "database": world.dbname, "schema": "gone"},
    }
    done, found = check(document, tmp_path)
    assert codes(found, without=TABLES) == [("ADS115", "tenants.gone")]
    assert json.loads(done.out)["notes"] == []
    for number in range(18):
        document["tenants"][f"t{number}"] = {"datasource": "own"}
    document["tenants"]["*"] = {"datasource": "own"}
    done, found = check(document, tmp_path)
    assert json.loads(done.out)["notes"] == ["10 of the 19 known databases of own were checked"]
    assert [each["message"].split(" of t")[0] for each in found if each["code"] == "ADS101"] == ["own/primary"] * 9
    document["tenants"] = {"*": {"datasource": "own"}}
    done, found = check(document, tmp_path)
    assert found == []
    printed = "any tenant may have a database on own: only the 0 known ones were checked"
    assert json.loads(done.out)["notes"] == [printed]


async def test_names_found_in_a_shared_schema_are_reported(world: World, tmp_path: Path) -> None:
    await execute(
        world, "create schema common", "create table common.orders (id int)", "create table common.taxes (i int)"
    )
    document = config(
        world,
        datasources__orders__search_path=["common"],
        datasources__orders__replicas={},
        tenants={"acme": {"datasource": "orders", "schema": "acme"}},
    )
    _, found = check(document, tmp_path)
    assert codes(found) == [("ADS113", "datasources.orders.primary.url")]
    assert "the table common.orders has the name of one in 1 tenants' schemas (acme)" in found[0]["message"]


async def test_findings_are_ignored_by_comments_on_their_line(world: World, tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text(
        "version: 1\ndatasources:\n  orders:\n"
        '    primary: {url: "${ORDERS_URL}"}  # ads: ignore[ADS111,ADS112] reference tables\n'
        "tenancy: {resolve: [{header: X}]}\n"
        'tenants: {initech: {datasource: orders, schema: shared, row_security: {app.tenant: "41"}}}\n'
    )
    done = call("check", path, environ={"ORDERS_URL": world.url()})
    assert "warning[ADS111]" not in done.out
    assert "ignored, with reasons" in done.out
    assert "ADS007" in done.out  # there is no ADS112 here
    assert call("validate", path).out.endswith("nothing found\n")


def test_an_invalid_configuration_is_not_checked(tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text("version: 1\ndatasources: {}\n")
    done = call("check", path)
    assert (done.code, done.out) == (2, "")
    assert "the configuration has 1 error. Fix the configuration first:" in done.err
    assert "ADS024" in done.err


def test_a_standby_with_another_system_identifier_is_reported() -> None:
    config = load(
        {"version": 1, "datasources": {"orders": {"primary": {"url": "host=db"}}}, "tenancy": {"default": "orders"}}
    )
    replica = facts(is_standby=True, system_id=2)
    replica.target = Target("orders", "r1", ("datasources", "orders", "replicas", "r1", "url"), replica.target.settings)
    found = list(evaluation.evaluate(config, [facts(), replica]))
    assert [each.code for each in found] == [Code.NOT_ITS_REPLICA]
    replica.system_id, replica.version = 1, 150000
    assert [each.code for each in evaluation.evaluate(config, [facts(), replica])] == [Code.SERVER_VERSION]


def facts(**known: Any) -> Facts:
    target = Target(
        "orders", "primary", ("datasources", "orders", "primary", "url"), ServerSettings(conninfo="host=db")
    )
    made = Facts(target, version=160000, is_standby=False, system_id=1)
    for name, value in known.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("known", "code"),
    [
        ({"clock_offset_s": 1.5}, Code.CLOCK),
        ({"clock_offset_s": -1.5}, Code.CLOCK),
        ({"clock_offset_s": 1.5, "clock_error_s": 0.6}, None),
        ({"version": 120003}, Code.SERVER_VERSION),
        ({"is_in_the_clear": True}, Code.NOT_ENCRYPTED),
        ({"unanswered": ["permission denied"]}, Code.CANNOT_TELL),
        ({"pooler": PoolerMode.SESSION}, Code.POOLER),
        ({}, None),
    ],
)
def test_findings_for_states_that_the_test_servers_cannot_have(known: dict[str, Any], code: Code | None) -> None:
    config = load(
        {"version": 1, "datasources": {"orders": {"primary": {"url": "host=db"}}}, "tenancy": {"default": "orders"}}
    )
    found = list(evaluation.evaluate(config, [facts(**known)]))
    assert [each.code for each in found] == ([code] if code else [])
    assert queries.CATCH_UP_S < 10
