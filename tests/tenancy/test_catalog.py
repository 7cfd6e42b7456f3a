"""Tenants from a table: loaded, kept up to date, asked for one by one, and what is done without the table."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, Tenant, compile, session
from asgi_datasource.tenancy import Catalog, CatalogState, Strategy, TenantState, catalog
from asgi_datasource.tenancy.catalog_snapshot import SnapshotWriter
from asgi_datasource.testing import EmbeddedCluster
from tests.apps import client
from tests.drivers.polling import until as eventually
from tests.pools import until
from tests.tenancy.scopes import ask as ask_resolver
from tests.tenancy.scopes import scope
from tests.world import World

TABLE = """
create table catalog.customers (
    name text primary key, datasource text, schema text, row_security jsonb, role text,
    state text, aliases text[], max_connections int, database text, domains text[]
);
grant select on catalog.customers to app;
insert into catalog.customers (name, schema) values ('acme', 'acme'), ('globex', 'globex')
"""
CLAIMED = ("alias 'both'", "domain 'both.test'")
NOTIFYING = """
create function catalog.tell() returns trigger language plpgsql as $$begin notify customers_changed; return null; end$$;
create trigger tell after insert or update or delete on catalog.customers execute function catalog.tell()
"""


@pytest.fixture
async def table(world: World) -> World:
    """The world with two of its tenants in a table."""
    await world.sql("create schema catalog; grant usage on schema catalog to app")
    for statement in TABLE.split(";\n"):
        await world.sql(statement)
    return world


def config(world: World, **catalog: Any) -> dict[str, Any]:
    document = world.config(replicas=())
    document["tenants"] = {}
    document["tenants_from"] = {
        "datasource": "orders",
        "query": "select * from catalog.customers",
        "defaults": {"datasource": "orders"},
        "refresh": "1h",
        "miss_interval": "50ms",
        "timeout": "5s",
        **catalog,
    }
    return document


@asynccontextmanager
async def registry(world: World, **catalog: Any) -> AsyncIterator[DataSourceRegistry]:
    async with compile(config(world, **catalog)) as made:
        yield made


def catalog_of(made: DataSourceRegistry) -> Catalog:
    assert made.catalog is not None
    return made.catalog


async def names(made: DataSourceRegistry) -> list[str | None]:
    return [tenant.name async for tenant in made.tenants()]


async def insert(world: World, *rows: str) -> None:
    for row in rows:
        await world.sql(f"insert into catalog.customers (name, schema) values ('{row}', '{row}')")


def known(made: DataSourceRegistry, name: str) -> Callable[[], bool]:
    return lambda: name in made.known_tenants


async def test_tenants_are_loaded_at_the_start_and_served(table: World) -> None:
    async with registry(table) as made:
        assert await names(made) == ["acme", "globex"]
        assert catalog_of(made).state is CatalogState.LOADED
        async with made.session("acme") as db:
            await db.execute("insert into orders (item) values ('tea')")
    assert await table.items("acme") == ["tea"]
    assert await table.items("globex") == []


async def test_a_row_may_say_all_that_the_document_may(table: World) -> None:
    await table.sql(
        "insert into catalog.customers values ('initech', 'orders', 'shared', '{\"app.tenant\": \"41\"}', 'app',"
        " 'read_only', '{old-name, old.initech.test}', 3, 'db', '{shop.initech.test, BÜCHER.example}')"
    )
    async with registry(table) as made:
        tenant = made.tenant("initech")
        assert tenant == Tenant(
            "initech",
            "orders",
            Strategy.ROW_SECURITY,
            (("search_path", '"shared"'), ("app.tenant", "41"), ("role", "app")),
            TenantState.READ_ONLY,
            3,
            None,
        )
        for alias in ("old-name", "old.initech.test"):
            assert made.tenant(alias) is tenant
        domains = made.compiled.admission.directory.map.domains
        assert domains == {"shop.initech.test": "initech", "xn--bcher-kva.example": "initech"}


async def test_what_a_row_leaves_out_stands_in_the_defaults(table: World) -> None:
    defaults = {
        "datasource": "orders",
        "schema": "t_{tenant}",
        "row_security": {"app.tenant": "{tenant}"},
        "role": "r_{tenant}",
        "limits": {"max_connections": 2},
    }
    async with registry(table, query="select name from catalog.customers", defaults=defaults) as made:
        tenant = made.tenant("acme")
        assert tenant.settings == (("search_path", '"t_acme"'), ("app.tenant", "acme"), ("role", "r_acme"))
        assert tenant.max_connections == 2


async def test_a_bad_row_is_left_out_and_spoils_none_of_the_others(
    table: World, caplog: pytest.LogCaptureFixture
) -> None:
    await table.sql("alter table catalog.customers drop constraint customers_pkey, alter name drop not null")
    await table.sql("""
        insert into catalog.customers (name, datasource, row_security, state, max_connections) values
        (null, null, null, null, null), ('', null, null, null, null), ('a*b', null, null, null, null),
        ('far', 'elsewhere', null, null, null), ('set', null, '[1]', null, null),
        ('odd', null, null, 'asleep', null), ('few', null, null, null, 0), ('twin', 'orders', null, null, null),
        ('twin', null, null, null, null)
    """)
    await table.sql("update catalog.customers set aliases = '{both}', domains = '{both.test}' where schema is not null")
    async with registry(table) as made:
        assert await names(made) == ["acme", "globex"]
        assert made.tenant("acme").settings == (("search_path", '"acme"'),)
        # An alias or domain that two tenants claim belongs to neither.
        with pytest.raises(DataError):
            made.tenant("both")
        assert made.compiled.admission.directory.map.domains == {}
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 8
    claims = [record.getMessage() for record in caplog.records if "belongs to two tenants" in record.getMessage()]
    assert sorted(claims) == [f"the {what} belongs to two tenants and is used for neither" for what in CLAIMED]


@pytest.mark.parametrize("row", ["{}", "[1, 2]", '{"x": "y"}', '{"app.tenant": 1}'])
async def test_settings_that_are_none_are_left_out(table: World, row: str) -> None:
    await table.sql(f"insert into catalog.customers (name, row_security) values ('odd', '{row}')")
    async with registry(table) as made:
        assert ("odd" in made.known_tenants) == (row == "{}")


async def test_tenants_of_the_document_go_before_those_of_the_table(table: World) -> None:
    document = config(table)
    document["tenants"] = {"acme": {"datasource": "orders", "schema": "shared", "aliases": ["globex"]}}
    await table.sql("delete from catalog.customers where name = 'globex'")
    async with compile(document) as made:
        assert made.tenant("acme").settings == (("search_path", '"shared"'),)
        assert made.tenant("globex") is made.tenant("acme")


# -- kept up to date


async def test_the_interval_brings_what_has_changed_and_swaps_the_map_whole(table: World) -> None:
    async with registry(table, refresh="50ms") as made:
        before = made.known_tenants
        acme = made.tenant("acme")
        loads = catalog_of(made).loads
        await insert(table, "hooli")
        await table.sql("update catalog.customers set state = 'suspended' where name = 'acme'")
        await table.sql("delete from catalog.customers where name = 'globex'")
        await until(
            lambda: (
                sorted(made.known_tenants) == ["acme", "hooli"] and made.tenant("acme").state is TenantState.SUSPENDED
            ),
            "the tenants have not changed",
        )
        assert list(before) == ["acme", "globex"]
        assert (acme.state, made.tenant("acme").state) == (TenantState.ACTIVE, TenantState.SUSPENDED)
        # What has not changed is not read again.
        after = catalog_of(made).loads
        assert after > loads
        for _ in range(3):
            await catalog_of(made).refresh()
        assert catalog_of(made).loads == after


async def test_a_notification_brings_it_at_once_also_after_the_connection_was_lost(table: World) -> None:
    for statement in NOTIFYING.split(";\ncreate trigger"):
        await table.sql(statement if "function catalog.tell() returns" in statement else "create trigger" + statement)
    async with registry(table, notify="customers_changed") as made:
        await insert(table, "hooli")
        await until(known(made, "hooli"), "the notification was not heard")
        for _ in range(2):
            lost = catalog_of(made)._connection
            assert lost is not None
            await table.sql(f"select pg_terminate_backend({lost.pgconn.backend_pid})")
            await until(lambda was=lost: catalog_of(made)._connection not in (None, was), "it does not listen again")
        await insert(table, "umbra")
        await until(known(made, "umbra"), "the notification was not heard after the connection was lost")
        # Changes during a lost LISTEN connection are loaded as well.
        lost = catalog_of(made)._connection
        assert lost is not None
        await asyncio.gather(
            table.sql(f"select pg_terminate_backend({lost.pgconn.backend_pid})"), insert(table, "stark")
        )
        await until(known(made, "stark"), "what was notified meanwhile was missed")


async def test_a_flood_of_notifications_costs_one_read_in_a_while_and_the_last_one_is_heard(
    table: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "NOTIFY_INTERVAL_S", 0.3)
    reads: list[float] = []
    async with registry(table, notify="customers_changed") as made:
        read, loop = catalog_of(made)._read, asyncio.get_running_loop()

        async def counted(*arguments: Any) -> None:
            reads.append(loop.time())
            await read(*arguments)

        monkeypatch.setattr(catalog_of(made), "_read", counted)
        async with await psycopg.AsyncConnection.connect(table.url(), autocommit=True) as anybody:
            until_then = loop.time() + 1.5
            while loop.time() < until_then:
                await anybody.execute("notify customers_changed")
            await insert(table, "hooli")
            await anybody.execute("notify customers_changed")
        await until(known(made, "hooli"), "the last notification was not heard")
        assert 2 <= len(reads) <= 8
        assert all(later - earlier >= 0.3 for earlier, later in pairwise(reads))
        # Then there is silence.
        count = len(reads)
        await asyncio.sleep(0.5)
        assert len(reads) <= count + 1


async def test_one_connection_is_enough_whatever_the_pool_does(table: World) -> None:
    document = config(table, notify="customers_changed")
    document["datasources"]["orders"]["pool"] = {"min_size": 1, "max_size": 1, "acquire_timeout": "1s"}
    async with compile(document) as made, made.session("acme") as db:
        await db.execute("select 1")
        await insert(table, "hooli")
        await catalog_of(made).refresh()
        assert "hooli" in made.known_tenants
        # That of the session, and one that is not the pool's.
        names = "select application_name from pg_stat_activity where usename = 'app' and datname = current_database()"

        async def are_two() -> bool:
            return sorted(name for [name] in await table.sql(names)) == ["asgi-datasource", "asgi-datasource catalog"]

        # The backend of the start-up audit's connection may need a moment to end.
        await eventually(are_two)


async def test_columns_that_nobody_asked_for_are_not_read(table: World) -> None:
    query = "select c.*, date '20000-01-01' as since, 'x'::bytea as \"a \"\"b\" from catalog.customers c"
    async with registry(table, query=query) as made:
        assert await names(made) == ["acme", "globex"]
        await insert(table, "hooli")
        async with made.session("hooli") as db:
            assert db.tenant.name == "hooli"


# -- names that are not known


async def test_a_name_that_is_not_known_yet_is_asked_for(table: World) -> None:
    async with registry(table) as made:
        await insert(table, "hooli")
        await table.sql("update catalog.customers set aliases = '{old-hooli}' where name = 'hooli'")
        async with made.session("hooli") as db:
            assert db.tenant.settings == (("search_path", '"hooli"'),)
        assert made.tenant("old-hooli").name == "hooli"


async def test_a_flood_of_unknown_names_costs_one_question_in_a_while(table: World) -> None:
    async with registry(table, miss_interval="200ms") as made:
        loop = asyncio.get_running_loop()

        async def ask(name: str) -> int:
            try:
                await made.compiled.admission.find(name)
            except DataError as error:
                return error.http_status
            return 200

        started = loop.time()
        answers: list[int] = []
        for wave in range(5):
            answers += await asyncio.gather(*(ask(f"nobody-{wave}-{number}") for number in range(200)))
        assert set(answers) == {404}
        assert catalog_of(made).questions <= 2 + (loop.time() - started) / 0.2
        # Those that were asked for are known not to be there, and are answered without a question.
        questions = catalog_of(made).questions
        assert set(await asyncio.gather(*(ask(f"nobody-4-{number}") for number in range(200)))) == {404}
        assert catalog_of(made).questions == questions


@pytest.mark.parametrize("others", [{}, {"*": {"datasource": "orders", "schema": "{tenant}"}}], ids=["listed", "*"])
async def test_beyond_the_most_names_that_are_asked_for_the_next_is_refused_at_once(
    table: World, monkeypatch: pytest.MonkeyPatch, others: dict[str, Any]
) -> None:
    monkeypatch.setattr(catalog, "MOST_ASKING", 2)
    document = config(table)
    document["tenants"] = others
    async with compile(document) as made:
        await insert(table, "hooli", "initrode", "stark")
        find = made.compiled.admission.find
        waiting = [asyncio.ensure_future(find(name)) for name in ("hooli", "initrode", "hooli")]
        await asyncio.sleep(0)
        # It may be a tenant: neither 404, nor one of the others.
        with pytest.raises(DataError, match="2 other names wait") as caught:
            await find("stark")
        assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.RESOURCE, 503)
        assert [tenant.name for tenant in await asyncio.gather(*waiting)] == ["hooli", "initrode", "hooli"]
        assert (await find("stark")).name == "stark"


async def test_whoever_waits_for_an_unknown_name_can_leave(table: World) -> None:
    async with registry(table, miss_interval="200ms") as made:
        with pytest.raises(DataError):
            await made.compiled.admission.find("nobody")
        waiting = [asyncio.ensure_future(made.compiled.admission.find("somebody")) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome).__name__ for outcome in outcomes] == ["CancelledError", "DataError", "DataError"]


async def test_names_that_the_database_cannot_hold_are_not_asked_for(table: World) -> None:
    document = config(table)
    document["tenancy"]["pattern"] = "(?s).+"
    async with compile(document) as made:
        with pytest.raises(DataError) as caught:
            await made.compiled.admission.find("acme\x00")
        assert (caught.value.http_status, catalog_of(made).questions) == (404, 0)


async def test_names_that_no_tenant_can_have_are_not_asked_for(table: World) -> None:
    async with registry(table) as made:
        for name in ("'; drop table x; --", "A", "x" * 300, "\x00", "%s"):
            with pytest.raises(DataError) as caught:
                await made.compiled.admission.find(name)
            assert caught.value.http_status == 400
        assert catalog_of(made).questions == 0


async def test_what_goes_wrong_with_a_question_is_told_to_whoever_waits(
    table: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The conversion of a value fails in the client: no error of the server's."""
    state = "case when name = 'odd' then date '20000-01-01' end as state"
    query = f"select name, schema, {state} from catalog.customers"
    async with registry(table, query=query, miss_interval="50ms", refresh="1h") as made:
        assert await names(made) == ["acme", "globex"]
        await insert(table, "odd", "hooli")
        for _ in range(2):
            with pytest.raises(DataError, match="the catalog does not answer"):
                async with made.session("odd"):
                    raise AssertionError("it was let in")
        async with made.session("hooli") as db:
            assert db.tenant.name == "hooli"
    assert any("unknown tenants cannot be asked for" in record.getMessage() for record in caplog.records)


async def test_an_alias_that_a_tenant_has_is_taken_by_no_new_one(table: World) -> None:
    await table.sql("alter table catalog.customers add column if not exists aliases text[] not null default '{}'")
    await table.sql("update catalog.customers set aliases = '{shop}' where name = 'acme'")
    async with registry(table, query="select * from catalog.customers", refresh="1h") as made:
        assert made.tenant("shop").name == "acme"
        await table.sql("insert into catalog.customers (name, schema, aliases) values ('hooli', 'hooli', '{shop,new}')")
        async with made.session("new") as db:
            assert db.tenant.name == "hooli"
        assert made.tenant("shop").name == "acme"
        await catalog_of(made).refresh()
        # After the full load it belongs to neither.
        with pytest.raises(DataError, match="no such tenant"):
            made.tenant("shop")


async def test_a_domain_of_a_new_tenant_is_asked_for_as_well(table: World) -> None:
    async def who(request: Request) -> Response:
        return JSONResponse(session(request).tenant.name)

    # With a percent sign in the query, which is no placeholder.
    document = config(table, query="select * from catalog.customers where name like '%'")
    document["tenancy"] = {"resolve": [{"domain": {}}], "trusted_hosts": ["app.test"]}
    async with client(table, [Route("/", who)], registry=compile(document)) as http:
        assert (await http.get("/", headers={"Host": "shop.acme.test"})).status_code == 400
        await table.sql("update catalog.customers set domains = '{shop.globex.test}' where name = 'globex'")
        answer = await http.get("/", headers={"Host": "Shop.Globex.test:443"})
        assert (answer.status_code, answer.json()) == (200, "globex")


async def test_a_customers_domain_takes_neither_anothers_subdomain_nor_a_name(
    table: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def who(request: Request) -> Response:
        return JSONResponse(session(request).tenant.name)

    await table.sql(
        "update catalog.customers set domains = '{globex.app.test, app.test, WWW.shop.test, globex, initech, \"a b\"}'"
        " where name = 'acme'"
    )
    document = config(table)
    document["tenancy"] = {
        "resolve": [{"domain": {}}, {"subdomain_of": "app.test"}, {"header": "X-Tenant"}],
        "trusted_hosts": ["shop.test", "app.test", "*.app.test", "127.0.0.1", "localhost"],
    }
    async with client(table, [Route("/", who)], tenant="", registry=compile(document)) as http:

        async def ask(**headers: str) -> tuple[int, object]:
            answer = await http.get("/", headers={name.replace("_", "-"): value for name, value in headers.items()})
            return answer.status_code, answer.json() if answer.status_code == 200 else None

        assert await ask(Host="globex.app.test") == (200, "globex")
        assert await ask(Host="app.test") == (400, None)
        assert await ask(Host="www.shop.test") == (400, None)
        for name, wanted in (("globex", (200, "globex")), ("initech", (404, None))):
            assert await ask(X_Tenant=name, Host="localhost") == wanted
        # As a host it is the customer's own affair.
        assert await ask(Host="initech") == (200, "acme")
    told = {record.getMessage() for record in caplog.records if "of the tenant 'acme' is left out" in record.message}
    assert len(told) == 4


async def test_whoever_tells_no_domains_is_not_asked_for_hosts(table: World) -> None:
    document = config(table, query="select name, schema from catalog.customers")
    document["tenancy"] = {"resolve": [{"domain": {}}], "trusted_hosts": ["app.test"]}
    async with compile(document) as made:
        for host in ("shop.acme.test", "acme"):
            with pytest.raises(DataError, match="not one that is served here"):
                await ask_resolver(made.compiled.resolution(), scope(host=host))
        assert catalog_of(made).questions == 0


# -- without the table


def nowhere(world: World, **catalog: Any) -> dict[str, Any]:
    """The configuration with a catalog that does not answer."""
    document = config(world, **{"datasource": "catalog", "timeout": "2s", **catalog})
    document["datasources"]["catalog"] = {"primary": {"url": "postgresql://app@127.0.0.1:1/none"}}
    document["tenants"] = {
        "initech": {"datasource": "orders", "schema": "shared", "row_security": {"app.tenant": "41"}}
    }
    return document


async def read(request: Request) -> Response:
    return JSONResponse(await session(request).fetch_value("select count(*) from orders"))


async def test_without_table_and_snapshot_the_app_starts_and_tenants_are_answered_with_503(table: World) -> None:
    async with client(table, [Route("/", read)], registry=compile(nowhere(table))) as http:
        answer = await http.get("/", headers={"X-Tenant": "acme"})
        assert (answer.status_code, answer.json()["kind"]) == (503, "connection")
        assert "retry-after" in answer.headers
        # Those of the document are served.
        assert (await http.get("/", headers={"X-Tenant": "initech"})).status_code == 200


async def test_the_last_good_snapshot_stands_in_for_the_table(table: World, tmp_path: Path) -> None:
    snapshot = tmp_path / "tenants.snapshot"
    async with registry(table, snapshot=str(snapshot)):
        pass
    assert snapshot.stat().st_mode & 0o077 == 0
    made = compile(nowhere(table, snapshot=str(snapshot)))
    async with made:
        assert catalog_of(made).state is CatalogState.SNAPSHOT
        assert await names(made) == ["acme", "globex", "initech"]
        async with made.session("acme") as db:
            assert await db.fetch_value("select count(*) from orders") == 0
        # Whether there is another one cannot be told.
        with pytest.raises(DataError) as caught:
            await made.compiled.admission.find("hooli")
        assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.CONNECTION, 503)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other", "missing"])
async def test_a_damaged_snapshot_is_not_used(
    table: World, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = tmp_path / "tenants.snapshot"
    async with registry(table, snapshot=str(snapshot)):
        pass
    content = snapshot.read_bytes()
    lines = content.splitlines(keepends=True)
    if damage == "missing":
        snapshot.unlink()
    else:
        changed = content.replace(b"acme", b"evil")
        snapshot.write_bytes(
            {"cut": b"".join(lines[:-1]), "changed": changed, "empty": b"", "other": b'{"version": 1}\n'}[damage]
        )
    made = compile(nowhere(table, snapshot=str(snapshot)))
    async with made:
        assert catalog_of(made).state is CatalogState.UNKNOWN
        assert await names(made) == ["initech"]
    assert any("snapshot" in record.getMessage() and record.levelno == logging.ERROR for record in caplog.records)


async def test_a_snapshot_is_replaced_whole_and_only_by_a_whole_load(table: World, tmp_path: Path) -> None:
    snapshot = tmp_path / "tenants.snapshot"
    async with registry(table, snapshot=str(snapshot)) as made:
        first = snapshot.read_bytes()
        await table.sql("alter table catalog.customers rename to gone")
        with pytest.raises(DataError):
            await catalog_of(made).refresh()
        assert snapshot.read_bytes() == first
        assert await names(made) == ["acme", "globex"]
        await table.sql("alter table catalog.gone rename to customers")
        await insert(table, "hooli")
        await catalog_of(made).refresh()
    lines = [json.loads(line) for line in snapshot.read_text().splitlines()]
    assert [line[0] for line in lines[1:-1]] == ["acme", "globex", "hooli"]
    assert [path.name for path in tmp_path.iterdir()] == ["tenants.snapshot"]


async def test_a_snapshot_that_cannot_be_written_keeps_nobody_from_being_served(table: World, tmp_path: Path) -> None:
    async with registry(table, snapshot=str(tmp_path / "nowhere" / "tenants.snapshot")) as made:
        assert await names(made) == ["acme", "globex"]


async def test_a_disk_that_is_full_keeps_no_tenant_from_being_known(
    table: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SnapshotWriter, "add", is_full)
    async with registry(table, snapshot=str(tmp_path / "tenants.snapshot")) as made:
        assert await names(made) == ["acme", "globex"]
    assert list(tmp_path.iterdir()) == []


async def test_a_snapshot_that_cannot_be_put_in_its_place_keeps_no_tenant_from_being_known(
    table: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def is_read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(SnapshotWriter, "commit", is_read_only)
    async with registry(table, snapshot=str(tmp_path / "tenants.snapshot")) as made:
        assert await names(made) == ["acme", "globex"]
    assert list(tmp_path.iterdir()) == []
    assert "the snapshot of the tenants cannot be written: Read-only file system" in caplog.text


async def test_rows_beyond_one_round_trip_are_read_too(table: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROWS_A_ROUND_TRIP", 2)
    await insert(table, "hooli", "initrode", "stark")
    async with registry(table) as made:
        assert await names(made) == ["acme", "globex", "hooli", "initrode", "stark"]


async def test_a_defect_in_one_refresh_does_not_end_refreshing(
    table: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with registry(table, refresh="50ms") as made:
        read, failures = catalog_of(made)._read, [RuntimeError("a defect")]

        async def failing(*arguments: Any) -> None:
            if failures:
                raise failures.pop()
            await read(*arguments)

        monkeypatch.setattr(catalog_of(made), "_read", failing)
        await until(lambda: not failures, "there was no refresh")
        await insert(table, "hooli")
        await until(known(made, "hooli"), "the tenants were not refreshed after the defect")
    assert "the tenants cannot be refreshed" in caplog.text


async def test_a_query_that_is_wrong_is_told_and_tried_again(table: World, caplog: pytest.LogCaptureFixture) -> None:
    async with registry(table, query="select schema from catalog.customers") as made:
        assert catalog_of(made).state is CatalogState.UNKNOWN
    assert any("no column `name`" in record.getMessage() for record in caplog.records)


async def test_a_catalog_that_comes_up_later_is_loaded_then(table: World) -> None:
    await table.sql("alter table catalog.customers rename to later")
    async with registry(table) as made:
        assert catalog_of(made).state is CatalogState.UNKNOWN
        await table.sql("alter table catalog.later rename to customers")
        await until(known(made, "acme"), "the tenants were not loaded later")


async def test_an_outage_leaves_the_tenants_as_they_were() -> None:
    with EmbeddedCluster() as cluster:
        async with World.create(cluster) as world:
            await world.sql("create schema catalog; grant usage on schema catalog to app")
            for statement in TABLE.split(";\n"):
                await world.sql(statement)
            async with registry(world, refresh="50ms") as made:
                await cluster.nodes["primary"].stop()
                with pytest.raises(DataError):
                    await catalog_of(made).refresh()
                assert await names(made) == ["acme", "globex"]
                await cluster.nodes["primary"].start()
                await insert(world, "hooli")
                await until(known(made, "hooli"), "the tenants were not refreshed after the outage")


# -- another configuration


async def test_a_reload_loads_anew_and_keeps_what_was_known_where_it_cannot(table: World) -> None:
    async with registry(table) as made:
        await made.reload(config(table, defaults={"datasource": "orders", "limits": {"max_connections": 1}}))
        assert made.tenant("acme").max_connections == 1
        await table.sql("alter table catalog.customers rename to gone")
        await made.reload({**config(table), "tenants": {"solo": {"datasource": "orders"}}})
        assert await names(made) == ["acme", "globex", "solo"]
        # One that the document listed is not kept with those of the table.
        await made.reload(config(table))
        assert await names(made) == ["acme", "globex"]
        document = config(table)
        del document["tenants_from"]
        document["tenants"] = {"solo": {"datasource": "orders"}}
        await made.reload(document)
        assert await names(made) == ["solo"]
        assert made.catalog is None


async def test_a_reload_keeps_no_tenant_whose_datasource_is_gone(table: World) -> None:
    await table.sql("update catalog.customers set datasource = 'archive' where name = 'globex'")
    before = config(table)
    before["datasources"]["archive"] = before["datasources"]["orders"]
    async with compile(before) as made:
        assert made.tenant("globex").datasource == "archive"
        await table.sql("alter table catalog.customers rename to gone")
        await made.reload(config(table))
        assert await names(made) == ["acme"]
