"""What a tenant leaves in a session of the server, by whatever way, the next tenant does not find.

Nothing here shows in a statement's text: functions do it, parameters and spellings hide it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest

from asgi_datasource import DataError, DataErrorKind, DataSession, DataSourceRegistry, compile
from asgi_datasource.drivers.psycopg import PsycopgServer
from tests.drivers.polling import until
from tests.pgbouncer import pgbouncer
from tests.pools import assert_whole
from tests.world import ROW_TENANTS, World

FUNCTIONS = """
create schema helpers;
grant usage on schema helpers to app;
set search_path = helpers;
create function report() returns setof text language plpgsql as $$ begin
    create temp table if not exists tmp_report as select item from orders; return query select item from tmp_report;
end $$;
create function shadow() returns void language plpgsql as $$ begin
    execute 'create temp view orders as select ''of acme''::text as item, 0::bigint as id';
end $$;
create function zone(name text) returns text language sql as $$ select set_config('timezone', name, false) $$;
create function path(name text) returns text language sql as $$ select set_config('search_path', name, false) $$;
create function limit_time() returns text language sql as $$ select set_config('statement_timeout', '80ms', false) $$;
create function encoding(name text) returns text language sql as
    $$ select set_config('client_encoding', name, false) $$;
create function become(name text) returns text language sql as $$ select set_config('role', name, false) $$;
create function hold() returns void language plpgsql as $$ begin
    execute 'declare held cursor with hold for select item from orders';
end $$;
create function hear() returns void language plpgsql as $$ begin listen acme_news; end $$;
create function lock_it() returns void language plpgsql as $$ begin perform pg_advisory_lock(4711); end $$;
create function fill(count int) returns void language plpgsql as $$ begin
    for n in 1..count loop execute format('create temp table if not exists t%s (id int)', n); end loop;
end $$;
"""

STATE = """
select pg_backend_pid() as pid, jsonb_build_object(
    'user', current_user, 'role', current_setting('role'), 'zone', current_setting('TimeZone'),
    'timeout', current_setting('statement_timeout'), 'encoding', current_setting('client_encoding'),
    'flag', coalesce(current_setting('app.flag', true), ''),
    'temporary', (select jsonb_agg(relname::text) from pg_class where relnamespace = pg_my_temp_schema()),
    'locks', (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
    'cursors', (select jsonb_agg(name) from pg_cursors where is_holdable)
)::text as state
"""

LEAVINGS: dict[str, tuple[str, list[Any]]] = {
    "a temporary table of a function": ("select * from helpers.report()", []),
    "a temporary view in front of a table": ("select helpers.shadow()", []),
    "a setting of a function": ("select helpers.zone('Asia/Tokyo')", []),
    "a search path of a function": ("select helpers.path('acme')", []),
    "a bound setting": ("select set_config(%s, %s, %s)", ["timezone", "Asia/Tokyo", False]),
    "a bound search path": ("select set_config('search_path', %s, %s)", ["acme", False]),
    "an escaped spelling": ("select U&\"set\\005fconfig\"('app.flag', 'evil', false)", []),
    "a quoted spelling": ("select \"set_config\"('app.flag', 'evil', false)", []),
    "a limit of time": ("select helpers.limit_time()", []),
    "an encoding": ("select helpers.encoding('LATIN1')", []),
    "a role": ("select helpers.become(%s)", ["{role}"]),
    "a cursor with hold": ("select helpers.hold()", []),
    "a channel": ("select helpers.hear()", []),
    "a lock of the session": ("select helpers.lock_it()", []),
    "a value of a sequence": ("select nextval('acme.numbers')", []),
    "several things": (
        "select helpers.shadow(), helpers.zone('Asia/Tokyo'), helpers.hold(), helpers.hear(), helpers.lock_it()",
        [],
    ),
}

Leave = Callable[[DataSession, str, list[Any]], Awaitable[None]]


async def in_a_read(db: DataSession, query: str, values: list[Any]) -> None:
    with suppress(DataError):
        await db.read.execute(query, values)


async def in_a_transaction(db: DataSession, query: str, values: list[Any]) -> None:
    await db.write.execute(query, values)


async def rolled_back(db: DataSession, query: str, values: list[Any]) -> None:
    await db.write.execute(query, values)
    await db.rollback()


async def cancelled(db: DataSession, query: str, values: list[Any]) -> None:
    await db.write.execute(query, values)
    await db.commit()
    with suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            await db.write.execute("select pg_sleep(10)")


@pytest.fixture
async def role(world: World) -> str:
    """A role that `app` may take."""
    name = f"{world.dbname}_other"
    await world.sql(f"create role {name}; grant {name} to app; grant usage on schema helpers to {name}")
    return name


@pytest.fixture(autouse=True)
async def functions(world: World) -> None:
    await world.sql(FUNCTIONS)
    await world.sql("insert into orders (item, tenant) values ('of acme', 'acme')")
    await world.sql("insert into orders (item, tenant) values ('of globex', 'globex')", schema="globex")


@asynccontextmanager
async def one_connection(world: World, url: str | None = None, **pool: Any) -> AsyncIterator[DataSourceRegistry]:
    """A registry with one connection, that serves requests without a tenant as well."""
    urls = {} if url is None else {"primary": url}
    config = world.config(replicas=(), pool={"min_size": 1, "max_size": 1, **pool}, urls=urls)
    config["tenancy"] = {"resolve": [{"header": "X-Tenant"}], "default": "orders"}
    async with compile(config) as registry:
        yield registry


async def state(registry: DataSourceRegistry, *, write: bool) -> tuple[int, str]:
    """Backend and state of the session as the next borrower finds it, who has no tenant and so sets nothing."""
    async with registry.session() as db:
        row = await (db.write if write else db.read).fetch_one(STATE)
    assert row is not None
    # UNLISTEN takes effect at the end of its transaction.
    async with registry.session() as db:
        assert await db.read.fetch_value("select count(*) from pg_listening_channels()") == 0
    return row["pid"], row["state"]


async def leave_behind(registry: DataSourceRegistry, leave: Leave, name: str, role: str) -> None:
    """A request of one tenant; that it fails is of no interest."""
    query, values = LEAVINGS[name]
    with suppress(DataError):
        async with registry.session("acme") as db:
            await leave(db, query, [role if value == "{role}" else value for value in values])


async def assert_finds_nothing(registry: DataSourceRegistry, *, write: bool) -> None:
    """Another tenant sees its own rows, and no value of a sequence."""
    async with registry.session("globex") as db:
        view = db.write if write else db.read
        assert await view.fetch_all("select item from orders") == [{"item": "of globex"}]
    with pytest.raises(DataError) as caught:
        async with registry.session("globex") as db:
            await (db.write if write else db.read).fetch_value("select lastval()")
    assert caught.value.sqlstate == "55000"


@pytest.mark.parametrize("reset", ["on_tenant_change", "always"])
@pytest.mark.parametrize("leave", [in_a_read, in_a_transaction, rolled_back, cancelled])
async def test_nothing_that_a_tenant_leaves_reaches_the_next(world: World, role: str, leave: Leave, reset: str) -> None:
    async with one_connection(world, reset=reset) as registry:
        before = await state(registry, write=True)
        for write in (False, True):
            for name in LEAVINGS:
                await leave_behind(registry, leave, name, role)
                await assert_finds_nothing(registry, write=write)
                await leave_behind(registry, leave, name, role)
                # The session is as in the beginning, and the same one unless a cancelled statement took too long.
                found = await state(registry, write=write)
                assert found[1:] == before[1:], name
                assert found[0] == before[0] or leave is cancelled, name


async def test_a_report_of_a_function_shows_each_tenant_its_own(world: World) -> None:
    async with one_connection(world) as registry:
        for tenant in ("acme", "globex", "acme"):
            async with registry.session(tenant) as db:
                assert await db.fetch_all("select report from helpers.report()") == [{"report": f"of {tenant}"}]


async def test_text_arrives_whole_behind_another_encoding(world: World) -> None:
    async with one_connection(world) as registry:
        for write in (False, True):
            async with registry.session("acme") as db:
                await db.write.execute("select helpers.encoding('LATIN1')")
            async with registry.session("globex") as db:
                view = db.write if write else db.read
                assert await view.fetch_value("select %s::text", ["Grüße, Ł€"]) == "Grüße, Ł€"


@pytest.mark.parametrize("reset", ["on_tenant_change", "always"])
async def test_what_a_rollback_brings_back_is_cleared_again(world: World, reset: str) -> None:
    async with one_connection(world, reset=reset) as registry:
        async with registry.session("acme") as db:
            await db.write.execute("select helpers.shadow(), helpers.zone('Asia/Tokyo')")
        items = "select item from orders"
        for _ in range(2):
            # A rollback of the transaction that the reset stands in would undo it.
            async with registry.session("globex") as db:
                assert await db.write.fetch_all(items) == [{"item": "of globex"}]
                await db.rollback()
                assert await db.write.fetch_all(items) == [{"item": "of globex"}]
                assert await db.write.fetch_value("show timezone") != "Asia/Tokyo"
                await db.rollback()
            async with registry.session("globex") as db:
                with pytest.raises(DataError):
                    await db.read.execute("select 1 / 0")
                assert await db.read.fetch_all(items) == [{"item": "of globex"}]
                with suppress(DataError):
                    async with db.transaction():
                        await db.execute("select 1 / 0")
                assert await db.read.fetch_all(items) == [{"item": "of globex"}]


@pytest.mark.parametrize("write", [False, True])
async def test_a_session_that_cannot_be_cleared_runs_nothing_and_is_replaced(world: World, write: bool) -> None:
    await world.sql(f"alter role app in database {world.dbname} set lock_timeout = '100ms'")
    async with one_connection(world) as registry:
        async with registry.session("acme") as db:
            await db.write.execute("select helpers.shadow()")
            mine = "select pg_backend_pid() as pid, pg_my_temp_schema()::regnamespace::text as schema"
            former = await db.write.fetch_one(mine)
        assert former is not None
        superuser = world.cluster.primary.url(world.dbname, user="postgres")
        async with await psycopg.AsyncConnection.connect(superuser) as holder:
            # It keeps the view from being dropped.
            await holder.execute(f"lock table {former['schema']}.orders in access share mode".encode())
            async with registry.session("globex") as db:
                view = db.write if write else db.read
                assert await view.fetch_all("select item from orders") == [{"item": "of globex"}]
                assert await view.fetch_value("select pg_backend_pid()") != former["pid"]
            await holder.rollback()
        await assert_whole(registry, world)


async def test_the_same_tenant_pays_nothing_and_each_tenant_gets_its_connection_back(world: World) -> None:
    async with one_connection(world, min_size=2, max_size=2) as registry:
        pids: dict[str, set[int]] = {"initech": set(), "umbrella": set()}

        async def use(tenant: str, together: asyncio.Barrier) -> None:
            async with registry.session(tenant) as db:
                pids[tenant].add(await db.write.fetch_value("select pg_backend_pid()"))
                await together.wait()

        both = asyncio.Barrier(2)
        await asyncio.gather(use("initech", both), use("umbrella", both))
        for _ in range(5):
            for tenant in ROW_TENANTS:
                await use(tenant, asyncio.Barrier(1))
        assert [len(found) for found in pids.values()] == [1, 1]


async def test_never_leaves_it_to_the_application(world: World) -> None:
    async with one_connection(world, reset="never") as registry:
        async with registry.session("acme") as db:
            await db.write.execute("select helpers.zone('Asia/Tokyo')")
        async with registry.session("globex") as db:
            assert await db.read.fetch_value("show timezone") == "Asia/Tokyo"


async def test_a_role_that_the_login_takes_by_itself_is_there_behind_a_reset(world: World, role: str) -> None:
    await world.sql(f"alter role app in database {world.dbname} set role = {role}")
    await world.sql(f"grant usage on schema acme to {role}")
    async with one_connection(world) as registry:
        before = await state(registry, write=False)
        assert f'"role": "{role}"' in before[1]
        async with registry.session("acme") as db:
            await db.read.execute("select set_config(%s, %s, %s)", ["role", "none", False])
        assert await state(registry, write=False) == before


async def test_the_librarys_prepared_statements_stay(world: World) -> None:
    async with one_connection(world) as registry:
        for _ in range(4):
            for tenant in ROW_TENANTS:
                async with registry.session(tenant) as db:
                    await db.read.fetch_all("select item from orders where id > %s", [0])
        [server] = registry.compiled.servers
        assert isinstance(server, PsycopgServer)
        async with registry.session("initech") as db:
            prepared = "select count(*) from pg_prepared_statements where statement like '%orders where id%'"
            assert await db.read.fetch_value(prepared) == 1


# -- behind a pooler


@pytest.mark.parametrize("named", [True, False])
async def test_behind_a_pooler_every_transaction_begins_with_a_clear_session(
    world: World, role: str, named: bool
) -> None:
    async with pgbouncer(world.url(), size=1) as bouncer:
        pooler = {"pooler": "transaction"} if named else {}
        async with one_connection(world, bouncer.url(world.dbname), **pooler) as registry:
            before = await state(registry, write=True)
            for name in LEAVINGS:
                for leave in (in_a_read, in_a_transaction, rolled_back):
                    await leave_behind(registry, leave, name, role)
                    await assert_finds_nothing(registry, write=leave is in_a_transaction)
                    assert await state(registry, write=leave is in_a_read) == before, name
            await assert_whole(registry, world)


async def test_behind_a_named_pooler_the_first_transaction_of_a_connection_is_clear_too(world: World) -> None:
    """The session of the server is another client's, of another process."""
    async with (
        pgbouncer(world.url(), size=1) as bouncer,
        await psycopg.AsyncConnection.connect(bouncer.url(world.dbname), autocommit=True) as other,
        one_connection(world, bouncer.url(world.dbname), pooler="transaction") as registry,
    ):
        # The pool has its connection; its checks are over.
        await until(lambda: registry.compiled.servers[0].idle == 1)
        cursor = await other.execute("select set_config('app.flag', 'theirs', false), pg_backend_pid()")
        left = await cursor.fetchone()
        pid, found = await state(registry, write=False)
        assert left == ("theirs", pid)
        assert '"flag": ""' in found


async def test_behind_a_pooler_what_it_has_set_up_for_the_client_stays(world: World) -> None:
    async with pgbouncer(world.url(), size=1) as bouncer:
        url = f"{bouncer.url(world.dbname)}?application_name=shop&client_encoding=latin1"
        async with one_connection(world, url, pooler="transaction") as registry:
            for tenant in ("acme", "globex"):
                async with registry.session(tenant) as db:
                    assert await db.write.fetch_value("show application_name") == "shop"
                    assert await db.write.fetch_value("select %s::text || 'ß'", ["Grüße "]) == "Grüße ß"


async def test_a_deadline_that_ends_the_reset_runs_nothing(world: World) -> None:
    async with one_connection(world) as registry:
        async with registry.session("acme") as db:
            await db.write.execute("select helpers.shadow()")
        with pytest.raises(DataError) as caught:
            async with registry.session("globex", timeout=0.000001) as db:
                await db.write.fetch_all("select item from orders")
        assert caught.value.kind is DataErrorKind.TIMEOUT
        await assert_finds_nothing(registry, write=True)
