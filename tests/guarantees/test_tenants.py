"""Promise 4: a tenant sees only its own data, and none of its settings outlives its transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any

import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import (
    AccessIntent,
    DataError,
    DataErrorKind,
    DataSession,
    DataSourceRegistry,
    UnexpectedRollback,
    compile,
    session,
)
from asgi_datasource.testing import EmbeddedCluster
from tests.apps import client
from tests.world import World

ONE_CONNECTION = {"min_size": 1, "max_size": 1}

LEFTOVERS = """
select pg_backend_pid() as pid,
    jsonb_build_object(
        'user', current_user, 'session_user', session_user,
        'role', current_setting('role'), 'search_path', current_setting('search_path'),
        'tenant', coalesce(current_setting('app.tenant', true), ''),
        'timeout', current_setting('statement_timeout'), 'zone', current_setting('TimeZone'),
        'read_only', current_setting('default_transaction_read_only'),
        'listening', (select jsonb_agg(c) from pg_listening_channels() c),
        'temporary', (select jsonb_agg(relname::text) from pg_class where relnamespace = pg_my_temp_schema()),
        'locks', (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
        'cursors', (select jsonb_agg(name) from pg_cursors where is_holdable),
        'prepared', (select jsonb_agg(name) from pg_prepared_statements where from_sql)
    )::text as state
"""
"""Session state that could outlive a transaction."""


@pytest.fixture
async def role(world: World) -> str:
    """A NOLOGIN role that `app` may SET, with access to the tables of `acme`."""
    name = f"{world.dbname}_acme"
    await world.sql(f"create role {name}; grant {name} to app")
    await world.sql(f"grant usage on schema acme to {name}; grant all on all tables in schema acme to {name}")
    return name


@asynccontextmanager
async def one_connection(
    world: World, *, tenants: dict[str, Any] | None = None, replicas: tuple[str, ...] = ()
) -> AsyncIterator[DataSourceRegistry]:
    """A registry with one connection per server, which also serves requests without a tenant (no settings)."""
    config = world.config(replicas=replicas, pool=ONE_CONNECTION)
    config["tenancy"] = {"resolve": [{"header": "X-Tenant"}], "default": "orders"}
    config["tenants"].update(tenants or {})
    async with compile(config) as registry:
        yield registry


async def leftovers(registry: DataSourceRegistry, *, write: bool = True) -> tuple[int, str]:
    """Backend and session state as the next borrower finds them; without a tenant it applies no settings."""
    async with registry.session() as db:
        row = await (db.write if write else db.read).fetch_one(LEFTOVERS)
    assert row is not None
    return row["pid"], row["state"]


async def commit(db: DataSession) -> None:
    await db.execute("insert into orders (item) values ('tea')")


async def roll_back(db: DataSession) -> None:
    await db.execute("insert into orders (item) values ('tea')")
    await db.rollback()


async def raise_exception(db: DataSession) -> None:
    await db.execute("insert into orders (item) values ('tea')")
    raise RuntimeError("the handler failed")


async def fail_statement(db: DataSession) -> None:
    await db.execute("insert into orders (item) values ('tea')")
    await db.execute("select 1 / 0")


async def fail_read(db: DataSession) -> None:
    await db.read.execute("select 1 / 0")


async def fail_at_commit(db: DataSession) -> None:
    await db.execute("insert into children (parent) values (1)")


async def be_cancelled(db: DataSession) -> None:
    await db.execute("insert into orders (item) values ('tea')")
    async with asyncio.timeout(0.05):
        await db.execute("select pg_sleep(10)")


async def be_cancelled_reading(db: DataSession) -> None:
    async with asyncio.timeout(0.05):
        await db.read.execute("select pg_sleep(10)")


async def be_cancelled_on_a_borrowed_connection(db: DataSession) -> None:
    async with asyncio.timeout(0.05), db.connection(AccessIntent.WRITE) as connection:
        await connection.execute("set search_path = acme")
        await connection.execute("select pg_sleep(10)")


def raises(error: type[Exception] | None) -> AbstractContextManager[object]:
    return nullcontext() if error is None else pytest.raises(error)


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (commit, None),
        (roll_back, None),
        (raise_exception, RuntimeError),
        (fail_statement, DataError),
        (fail_read, DataError),
        (fail_at_commit, DataError),
        (be_cancelled, TimeoutError),
        (be_cancelled_reading, TimeoutError),
        (be_cancelled_on_a_borrowed_connection, TimeoutError),
    ],
)
async def test_no_tenant_settings_remain_after_any_outcome(
    world: World, role: str, work: Callable[[DataSession], Awaitable[None]], error: type[Exception] | None
) -> None:
    settings = {"datasource": "orders", "schema": "acme", "row_security": {"app.tenant": "7"}, "role": role}
    async with one_connection(world, tenants={"acme": settings}) as registry:
        before = await leftovers(registry)
        for _ in range(2):
            with raises(error):
                async with registry.session("acme") as db:
                    await work(db)
            # Another tenant, then none; the same backend serves all three.
            async with registry.session("globex") as db:
                row = await db.fetch_one("select current_schemas(false) as path, current_user as name")
                assert row == {"path": ["globex"], "name": "app"}
            assert await leftovers(registry) == before
            await world.sql("truncate orders")


FAILING_SETUPS = [
    {"schema": "lost", "role": "nobody_of_that_name"},
    {"schema": "lost", "role": "postgres"},
]


@pytest.mark.parametrize("settings", FAILING_SETUPS)
@pytest.mark.parametrize("replicas", [(), ("r1", "r2")])
async def test_settings_that_fail_to_apply_fail_the_request_before_its_statement(
    world: World, settings: dict[str, Any], replicas: tuple[str, ...]
) -> None:
    async with one_connection(
        world, tenants={"broken": {"datasource": "orders", **settings}}, replicas=replicas
    ) as registry:
        before = await leftovers(registry)
        called = 0
        for intent in AccessIntent:
            async with registry.session("broken") as db:
                view = db.read if intent is AccessIntent.READ else db.write
                with pytest.raises(DataError) as caught:
                    await view.execute("insert into acme.orders (item) values ('tea')")
                assert caught.value.kind is DataErrorKind.QUERY
                assert db.in_transaction() is False
                with pytest.raises(DataError):
                    async with db.connection(intent):
                        called += 1
                with pytest.raises(DataError):
                    async with db.transaction(read_only=intent is AccessIntent.READ):
                        await view.execute("select 1")
        assert called == 0
        assert await world.items() == []
        assert await leftovers(registry) == before


@pytest.mark.parametrize("replicas", [(), ("r1", "r2")])
async def test_a_tenant_without_a_usable_schema_gets_404_and_reads_no_other_schema(
    world: World, role: str, replicas: tuple[str, ...]
) -> None:
    """PostgreSQL ignores such an entry of the search_path, and would find names in the entries after it."""
    await world.sql("create schema closed; create table closed.orders (id int, item text)")
    tenants = {
        "missing": {"datasource": "orders", "schema": "lost"},
        "quoted": {"datasource": "orders", "schema": 'lo"st, shared'},
        "closed": {"datasource": "orders", "schema": "closed"},
        # The login may use the schema, the tenant's role may not.
        "by_role": {"datasource": "orders", "schema": "globex", "role": role},
        "by_rows": {"datasource": "orders", "schema": "lost", "row_security": {"app.tenant": "7"}},
    }
    config = world.config(replicas=replicas, pool=ONE_CONNECTION)
    config["datasources"]["orders"]["search_path"] = ["acme", "shared"]
    config["tenants"].update(tenants)
    await world.cluster.caught_up()
    insert = "insert into orders (item) values ('tea')"
    async with compile(config) as registry:
        for name in tenants:
            async with registry.session(name) as db:
                for use in (
                    db.read.fetch_all("select * from orders"),
                    db.write.execute(insert),
                    db.fetch_value("select 1"),
                ):
                    with pytest.raises(DataError, match="there is no such tenant") as caught:
                        await use
                    assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.TENANT, 404)
                for intent in AccessIntent:
                    with pytest.raises(DataError, match="there is no such tenant"):
                        async with db.connection(intent):
                            raise AssertionError("a connection was lent")
                with pytest.raises(DataError, match="there is no such tenant"):
                    async with db.transaction():
                        await db.execute(insert)
                with pytest.raises(DataError, match="there is no such tenant"):
                    async for _ in db.read.stream("select * from orders"):
                        raise AssertionError("a row was read")
        # Other tenants are served, on the same connection.
        async with registry.session("acme") as db:
            await db.execute(insert)
            assert await db.fetch_value("select count(*) from orders") == 1


async def test_settings_that_fail_to_apply_are_an_error_response(world: World) -> None:
    async def place(request: Request) -> Response:
        await session(request).execute("insert into acme.orders (item) values ('tea')")
        return JSONResponse({}, status_code=201)

    tenants = {"broken": {"datasource": "orders", "schema": "acme", "role": "nobody_of_that_name"}}
    async with one_connection(world, tenants=tenants) as registry:
        async with client(world, [Route("/", place, methods=["POST"])], registry=registry, tenant="broken") as http:
            # This is a configuration error: the framework's error page and its error reporting get it.
            assert (await http.post("/")).status_code == 500
        assert await world.items() == []


# -- application code that changes the session


LASTING = [
    "set search_path = globex",
    "set session search_path = globex",
    "/* quietly */ set search_path = globex",
    "select set_config('search_path', 'globex', false)",
    "select set_config('app.tenant', '42', false)",
    "update pg_settings set setting = 'globex' where name = 'search_path'",
    "set role {role}",
    "select set_config('role', '{role}', false)",
    "set session authorization default",
    "set time zone 'Asia/Tokyo'",
    "set statement_timeout = '1h'",
    "set default_transaction_read_only = on",
    "set session characteristics as transaction read only",
    "listen news",
    "prepare stolen as select * from orders",
    "create temp table orders (id int, item text)",
    "select 1 as item into temp orders",
    "select pg_advisory_lock(1)",
    "do $$ begin perform set_config('search_path', 'globex', false); end $$",
    "declare kept cursor with hold for select 1",
    "deallocate all",
]
"""Statements that change the session itself."""

TRANSACTION_COMMANDS = ["begin", "commit", "rollback", "commit and chain", "rollback and chain", "abort", "end"]

HARMLESS = ["set local search_path = globex", "set local role {role}", "discard all", "select 1"]


async def in_a_read(db: DataSession, statement: str) -> None:
    with suppress(DataError):
        await db.read.execute(statement)


async def in_a_transaction(db: DataSession, statement: str) -> None:
    await db.execute("insert into orders (item) values ('tea')")
    await db.execute(statement)


async def in_a_transaction_rolled_back(db: DataSession, statement: str) -> None:
    await in_a_transaction(db, statement)
    await db.rollback()


async def in_a_savepoint_undone(db: DataSession, statement: str) -> None:
    with suppress(ZeroDivisionError):
        async with db.transaction():
            await db.execute(statement)
            raise ZeroDivisionError


async def in_a_snapshot(db: DataSession, statement: str) -> None:
    with suppress(DataError):
        async with db.transaction(read_only=True):
            await db.read.execute(statement)


async def on_a_borrowed_connection(db: DataSession, statement: str) -> None:
    async with db.connection(AccessIntent.WRITE) as connection:
        await connection.execute(statement.encode())


async def on_a_read_only_borrowed_connection(db: DataSession, statement: str) -> None:
    with suppress(DataError, psycopg.Error):
        async with db.connection(AccessIntent.READ) as connection:
            await connection.execute(statement.encode())


PLACES = [
    in_a_read,
    in_a_transaction,
    in_a_transaction_rolled_back,
    in_a_savepoint_undone,
    in_a_snapshot,
    on_a_borrowed_connection,
    on_a_read_only_borrowed_connection,
]


@pytest.mark.parametrize("place", PLACES)
async def test_session_changes_by_application_code_do_not_reach_the_next_borrower(
    world: World, role: str, place: Callable[[DataSession, str], Awaitable[None]]
) -> None:
    async with one_connection(world) as registry:
        before = await leftovers(registry)
        for statement in (*LASTING, *TRANSACTION_COMMANDS, *HARMLESS):
            # Other tests check the response to the misuse; this one checks only the remaining state.
            with suppress(DataError, psycopg.Error):
                async with registry.session("acme") as db:
                    await place(db, statement.format(role=role))
            assert await leftovers(registry) == before, statement
            async with registry.session("globex") as db:
                assert await db.fetch_value("select current_schemas(false)") == ["globex"], statement
                assert await db.fetch_value("select count(*) from orders") == 0, statement
            await world.sql("truncate orders")


async def test_session_changes_on_a_replica_do_not_reach_the_next_borrower(world: World) -> None:
    async with one_connection(world, replicas=("r1",)) as registry:
        before = await leftovers(registry, write=False)
        for statement in LASTING:
            with suppress(DataError):
                async with registry.session("acme") as db:
                    await db.read.execute(statement.format(role="app"))
            assert await leftovers(registry, write=False) == before, statement


async def test_the_default_role_of_the_login_is_restored_after_a_reset(world: World, role: str) -> None:
    await world.sql(f"alter role app in database {world.dbname} set role = {role}")
    async with one_connection(world) as registry:
        before = await leftovers(registry)
        assert f'"role": "{role}"' in before[1]
        async with registry.session("acme") as db:
            await db.read.execute("set search_path = globex")
        assert await leftovers(registry) == before


@pytest.mark.parametrize(
    ("place", "statement"),
    [(place, command) for place in (in_a_transaction, on_a_borrowed_connection) for command in TRANSACTION_COMMANDS],
)
async def test_a_statement_that_ends_the_transaction_is_refused_and_nothing_runs_without_the_tenant(
    world: World, statement: str, place: Callable[[DataSession, str], Awaitable[None]]
) -> None:
    async def misuse(registry: DataSourceRegistry) -> None:
        async with registry.session("acme") as db:
            with pytest.raises(DataError, match=r"would end the session's transaction") as caught:
                await place(db, statement)
            assert caught.value.kind is DataErrorKind.QUERY
            with pytest.raises(DataError, match="an earlier failure has ended this transaction"):
                await db.execute("insert into orders (item) values ('stray')")

    async with one_connection(world) as registry:
        with pytest.raises(UnexpectedRollback):
            await misuse(registry)
        for schema in ("acme", "globex", "shared"):
            assert "stray" not in await world.items(schema)


@pytest.mark.parametrize(
    "statement",
    [
        *TRANSACTION_COMMANDS,
        "/* a /* nested */ one */ commit",
        "-- a comment\rcommit",
        ";; commit",
        "prepare transaction 'x'",
    ],
)
async def test_a_command_that_ends_the_transaction_is_refused_before_it_is_sent(world: World, statement: str) -> None:
    async with world.registry() as registry:
        for intent in AccessIntent:
            with pytest.raises(UnexpectedRollback):
                async with registry.session("acme") as db:
                    await db.execute("insert into orders (item) values ('tea')")
                    view = db.read if intent is AccessIntent.READ else db.write
                    with pytest.raises(DataError, match=r"would end the session's transaction") as caught:
                        await view.execute(statement)
                    assert caught.value.kind is DataErrorKind.QUERY
                    assert db.in_transaction()
            assert await world.items() == []


async def test_a_refused_command_inside_a_savepoint_leaves_the_rest_of_the_transaction(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        await db.execute("insert into orders (item) values ('tea')")
        with pytest.raises(DataError, match="COMMIT as a statement"):
            async with db.transaction():
                await db.execute("insert into orders (item) values ('undone')")
                await db.execute("commit")
    assert await world.items() == ["tea"]


@pytest.mark.parametrize("statement", TRANSACTION_COMMANDS)
async def test_a_read_that_ends_its_transaction_is_refused(world: World, statement: str) -> None:
    async with one_connection(world) as registry, registry.session("acme") as db:
        with pytest.raises(DataError, match=r"would end the session's transaction"):
            await db.read.execute(statement)
        assert await db.read.fetch_value("select current_schemas(false)") == ["acme"]


@pytest.mark.parametrize("version", [16, 18])
async def test_a_procedure_that_commits_internally_cannot_escape_the_tenant(version: int) -> None:
    """PostgreSQL 16 allows that in an implicit transaction; later statements would run without the tenant."""
    with EmbeddedCluster(version=version) as cluster:
        async with World.create(cluster) as world, one_connection(world) as registry:
            await world.sql(
                "create procedure leave() language plpgsql as"
                " 'begin perform 1; commit; insert into shared.orders (item, tenant) values (''stray'', ''x''); end'"
            )
            before = await leftovers(registry)
            for statement in (
                "call acme.leave()",
                "do 'begin perform 1; commit; insert into acme.orders (item) values (''stray''); end'",
            ):
                for intent in AccessIntent:
                    with suppress(UnexpectedRollback):
                        async with registry.session("acme") as db:
                            with pytest.raises(DataError, match="a transaction cannot be ended here"):
                                await (db.read if intent is AccessIntent.READ else db.write).execute(statement)
            assert await world.items() == []
            assert await leftovers(registry) == before


# -- inside the request


async def test_the_tenant_is_applied_again_after_commit_and_rollback(world: World, role: str) -> None:
    where = "select current_schemas(false)::text || current_user || current_setting('app.tenant')"

    async def handler(request: Request) -> Response:
        db = session(request)
        seen = [await db.fetch_value(where)]
        await db.execute("insert into orders (item) values ('kept')")
        await db.commit()
        seen.append(await db.fetch_value(where))
        await db.execute("insert into orders (item) values ('undone')")
        await db.rollback()
        seen.append(await db.fetch_value(where))
        await db.execute("insert into orders (item) values ('last')")
        async with db.transaction():
            seen.append(await db.fetch_value(where))
        seen.append(await db.read.fetch_value(where))
        return JSONResponse(seen)

    settings = {"datasource": "orders", "schema": "acme", "row_security": {"app.tenant": "7"}, "role": role}
    async with one_connection(world, tenants={"acme": settings}) as registry:
        before = await leftovers(registry)
        async with client(world, [Route("/", handler, methods=["POST"])], registry=registry) as http:
            answer = await http.post("/")
        assert answer.json() == [f"{{acme}}{role}7"] * 5
        assert await world.items() == ["kept", "last"]
    assert before[1]


async def test_row_security_hides_other_tenants_rows(world: World) -> None:
    async with world.registry() as registry:
        for tenant in ("initech", "umbrella"):
            async with registry.session(tenant) as db:
                await db.execute("insert into orders (item) values (%s)", [f"of {tenant}"])
        await world.cluster.caught_up()
        for tenant, other in (("initech", "umbrella"), ("umbrella", "initech")):
            own = [{"item": f"of {tenant}"}]
            async with registry.session(tenant) as db:
                # Each replica, then the primary.
                seen = set()
                for _ in range(4):
                    async with registry.session(tenant) as reader:
                        assert await reader.read.fetch_all("select item from orders") == own
                        assert reader.last_route is not None
                        seen.add(reader.last_route.node)
                assert seen == {"r1", "r2"}
                assert await db.fetch_all("select item from orders") == own
                assert await db.execute("update orders set item = 'stolen' where item = %s", [f"of {other}"]) == 0
                assert await db.execute("delete from orders where item = %s", [f"of {other}"]) == 0
                await db.commit()
                with pytest.raises(DataError) as caught:
                    await db.execute("insert into orders (item, tenant) values ('planted', '99')")
                assert caught.value.sqlstate == "42501"
                await db.rollback()
        assert sorted(await world.items("shared")) == ["of initech", "of umbrella"]


async def test_row_security_shows_no_rows_without_a_tenant(world: World) -> None:
    async with one_connection(world) as registry:
        async with registry.session("initech") as db:
            await db.execute("insert into orders (item) values ('tea')")
        async with registry.session() as db:
            assert await db.fetch_all("select * from shared.orders") == []
            assert await db.read.fetch_all("select * from shared.orders") == []


async def test_a_replica_applies_the_tenant(world: World, role: str) -> None:
    settings = {"datasource": "orders", "schema": "acme", "row_security": {"app.tenant": "7"}, "role": role}
    await world.cluster.caught_up()
    async with one_connection(world, tenants={"acme": settings}, replicas=("r1",)) as registry:
        for _ in range(3):
            async with registry.session("acme") as db:
                row = await db.read.fetch_one(
                    "select current_schemas(false) as path, current_user as name,"
                    " current_setting('app.tenant') as tenant, pg_is_in_recovery() as is_replica"
                )
                assert row == {"path": ["acme"], "name": role, "tenant": "7", "is_replica": True}
                async with db.transaction(read_only=True):
                    assert await db.fetch_value("select current_user || pg_is_in_recovery()") == f"{role}true"
                async with db.connection(AccessIntent.READ) as connection:
                    cursor = await connection.execute("select current_user || pg_is_in_recovery()")
                    assert await cursor.fetchone() == (f"{role}true",)


async def test_the_same_statement_uses_each_tenants_table_on_one_connection(world: World) -> None:
    """The statement is prepared for one tenant; for the next one, the same name is a table with other columns."""
    await world.sql("alter table orders add column price int default 3", schema="globex")
    async with one_connection(world) as registry:
        for tenant in ("acme", "globex"):
            async with registry.session(tenant) as db:
                await db.execute("insert into orders (item) values (%s)", [f"of {tenant}"])
        for _ in range(5):
            for tenant, columns in (("acme", ["item"]), ("globex", ["item", "price"])):
                async with registry.session(tenant) as db:
                    for view in (db.read, db.write):
                        row = await view.fetch_one("select * from orders")
                        assert row is not None
                        assert row["item"] == f"of {tenant}"
                        assert [name for name in row if name not in ("id", "tenant")] == columns


async def test_a_cancelled_statement_of_one_tenant_cannot_affect_the_next(world: World) -> None:
    """The cancel request for one tenant's statement must be complete before the connection serves another tenant."""

    async def be_late(registry: DataSourceRegistry) -> None:
        async with registry.session("acme") as db, asyncio.timeout(0.01):
            await db.execute("select pg_sleep(10)")

    async with one_connection(world) as registry:
        pid, _ = await leftovers(registry)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await be_late(registry)
            async with registry.session("globex") as db:
                row = await db.fetch_one(
                    "select pg_backend_pid() as pid, current_schemas(false) as path, pg_sleep(0.02)::text as slept"
                )
                assert row == {"pid": pid, "path": ["globex"], "slept": ""}
