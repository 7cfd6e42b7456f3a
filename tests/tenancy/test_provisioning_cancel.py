"""A move or a drop that has not ended can be taken back, after any failure and any crash: all is as it was before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from asgi_datasource import DataError
from asgi_datasource.tenancy.provisioning import Operation
from asgi_datasource.testing import EmbeddedCluster
from tests.tenancy.provisioning_site import Site, kill_points, ok, stopped_at

MOVE_STEPS = ("stop writes", "fence", "copy", "compare", "switch")

AS_IT_WAS = """
select c.relname, (
    select array_agg(g::text order by g::text)
    from aclexplode(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) g
), (select count(*) from pg_trigger t where t.tgrelid = c.oid and not t.tgisinternal)
from pg_class c where c.relnamespace = 't_acme'::regnamespace and c.relkind in ('r', 'S', 'v') order by 1
"""


async def as_it_was(site: Site) -> list[Any]:
    """Everything of the tenant that a move touches where it lives."""
    tenant = await site.sql("select datasource, state, is_ready, made from asgi_datasource.tenants where name = 'acme'")
    return [*tenant, *await site.sql(AS_IT_WAS, "one")]


async def write(site: Site, tenant: str = "acme") -> None:
    async with site.registry() as registry, registry.session(tenant) as db:
        await db.execute("insert into items (name) values ('written')")


async def is_clean(site: Site, database: str = "two") -> bool:
    """Whether nothing of a move is left at its target, and no role of it."""
    schemas = await site.sql("select nspname::text from pg_namespace where nspname like 't!_%' escape '!'", database)
    roles = await site.sql("select rolname from pg_roles where rolname like 'asgi_datasource_%'")
    steps = await site.sql("select tenant from asgi_datasource.tenant_steps")
    operations = await site.sql("select tenant from asgi_datasource.tenant_operations")
    return (schemas, roles, steps, operations) == ([], [], [], [])


async def test_a_move_that_failed_is_taken_back(site: Site) -> None:
    document = json.loads(site.config.read_text())
    for name in ("control", "one", "two"):
        document["datasources"][name].pop("admin")
    site.set(datasources=document["datasources"])
    (site.folder / "more.sql").write_text(
        "alter table items enable row level security, force row level security; create policy p on items using (true)"
    )
    await site.provisioner().create("acme")
    failed = site.command("move", "acme", "--to", "two")
    assert (failed.code, "tenants move acme --cancel" in failed.err) == (2, True)
    # Nothing says that it is done while writes are held back.
    for refused in (
        site.command("resume", "acme"),
        site.command("rename", "acme", "hooli"),
        site.command("drop", "acme", "--yes", "acme"),
        site.command("move", "acme", "--to", "one"),
        site.command("move", "acme", "--to", "control"),
    ):
        assert (refused.code, "tenants move acme --cancel" in refused.err) == (2, True), refused
    listed = site.command("list")
    assert (listed.code, "move to two" in listed.out) == (1, True)
    assert "HINT: To disable the policy for the table's owner" in listed.out
    [row] = json.loads(site.command("list", "--format", "json").out)["tenants"]
    assert (row["under_way"], row["under_way_to"], row["is_cancelled"]) == ("move", "two", False)
    assert 'row-level security policy for table "items"' in row["failure"]

    assert "taken back" in ok(site.command("move", "acme", "--cancel"))
    await write(site)
    assert ok(site.command("list"))
    assert await is_clean(site)


async def test_a_move_is_taken_back_after_a_kill_at_any_step(site: Site, whole: bool) -> None:
    await site.provisioner().create("acme")
    before = await as_it_was(site)
    for step, state in kill_points(MOVE_STEPS, whole=whole):
        async with stopped_at(site, step, state, "move", "acme", "--to", "two"):
            pass
        ok(site.command("move", "acme", "--cancel"))
        assert await as_it_was(site) == before, (step, state)
        assert await is_clean(site), (step, state)
    await write(site)
    ok(site.command("move", "acme", "--to", "two"))
    assert len(await site.sql("select * from t_acme.items", "two")) == 3


async def test_taking_a_move_back_goes_on_after_a_kill_at_any_step(site: Site, whole: bool) -> None:
    await site.provisioner().create("acme")
    before = await as_it_was(site)
    for step in {step for step, _ in kill_points(MOVE_STEPS, whole=whole, count=2)}:
        async with stopped_at(site, "switch", "deleted", "move", "acme", "--to", "two"):
            pass
        async with stopped_at(site, step, "deleted", "move", "acme", "--cancel"):
            # And nothing else comes in between.
            busy = site.command("move", "acme", "--to", "two")
            assert (busy.code, "another process is at work" in busy.err) == (2, True)
        with pytest.raises(DataError, match="is being taken back: finish that with cancel"):
            await site.provisioner().move("acme", "two")
        [row] = json.loads(site.command("list", "--format", "json").out)["tenants"]
        assert (row["under_way"], row["is_cancelled"]) == ("move", True)
        ok(site.command("move", "acme", "--cancel"))
        assert await as_it_was(site) == before, step
        assert await is_clean(site), step
    await write(site)


async def test_rights_on_sequences_come_back_as_they_were(site: Site) -> None:
    await site.provisioner().create("acme")
    await site.sql(
        """create role readers; create sequence t_acme.numbers; grant usage on sequence t_acme.numbers to public;
        grant update on sequence t_acme.numbers to readers with grant option;
        grant select (name) on t_acme.items to readers; revoke update on t_acme.items from app;
        create table t_acme.mine (id serial); alter table t_acme.mine owner to app""",
        "one",
    )
    try:
        before = await as_it_was(site)
        # Begun anew, the step finds no rights to note, and has not forgotten those that it has noted.
        async with stopped_at(site, "fence", "done", "move", "acme", "--to", "two"):
            pass
        async with stopped_at(site, "copy", "running", "move", "acme", "--to", "two"):
            during = await as_it_was(site)
            for sequence in ("numbers", "items_id_seq", "mine_id_seq"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await site.app_sql(f"select nextval('t_acme.{sequence}')")
        await site.provisioner().cancel("acme", Operation.MOVE)
        assert await as_it_was(site) == before != during
        await site.app_sql("insert into t_acme.mine default values")
    finally:
        await site.drop_role("readers")


async def test_the_fence_holds_back_every_write(site: Site) -> None:
    await site.provisioner().create("acme")
    await site.sql(
        """create function t_acme.place() returns void language sql security definer
        as 'insert into t_acme.items (name) values (1)';
        grant create on schema t_acme to app; create view t_acme.v as select name from t_acme.items;
        grant insert on t_acme.v to app; create role writers; grant writers to app;
        create table t_acme.parts (id int) partition by list (id);
        create table t_acme.part partition of t_acme.parts for values in (1);
        grant all on t_acme.parts, t_acme.part to writers""",
        "one",
    )
    await site.app_sql("create table t_acme.mine (id int)")
    writes = (
        "insert into t_acme.items (name) values ('x')",
        "update t_acme.items set name = 'x'",
        "delete from t_acme.items",
        "truncate t_acme.mine",
        "insert into t_acme.mine values (1)",
        "insert into t_acme.v values ('x')",
        "insert into t_acme.parts values (1)",
        "insert into t_acme.part values (1)",
        "select t_acme.place()",
        "copy t_acme.items (name) from program 'echo x'",
    )
    try:
        async with stopped_at(site, "copy", "running", "move", "acme", "--to", "two"):
            for statement in writes:
                run = site.sql if "program" in statement else site.app_sql
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="nothing is written here any more"):
                    await run(statement, "one")
            assert len(await site.app_sql("select * from t_acme.items")) == 2
        await site.provisioner().move("acme", "two")
        # Nor where it has lived; and where it lives, no fence has come along.
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await site.app_sql(writes[0])
        await site.app_sql(writes[0], "two")
    finally:
        await site.drop_role("writers")


async def test_the_fence_waits_for_those_who_have_written(site: Site) -> None:
    await site.provisioner().create("acme")
    url = site.cluster.primary.url(dbname=f"{site.prefix}_one")
    async with await psycopg.AsyncConnection.connect(url) as writer:
        await writer.execute("insert into t_acme.items (name) values ('in time')")
        moving = asyncio.create_task(site.provisioner().move("acme", "two"))
        waits = (
            "select from pg_stat_activity where wait_event_type = 'Lock' and query like 'create or replace trigger%'"
        )
        async with asyncio.timeout(30):
            while not await site.sql(waits):
                await asyncio.sleep(0.01)
        await writer.commit()
    await moving
    assert await site.app_sql("select name from t_acme.items where name = 'in time'", "two") == [("in time",)]


@pytest.mark.parametrize("state", ["suspended", "read_only"])
async def test_a_tenant_keeps_its_state(site: Site, state: str) -> None:
    await site.provisioner().create("acme")
    await site.sql(f"update asgi_datasource.tenants set state = '{state}'")
    async with stopped_at(site, "copy", "running", "move", "acme", "--to", "two"):
        # What is not served is not served while it moves.
        during = {"suspended": "suspended", "read_only": "moving"}[state]
        assert await site.sql("select state from asgi_datasource.tenants") == [(during,)]
    await site.provisioner().cancel("acme", Operation.MOVE)
    assert await site.sql("select state from asgi_datasource.tenants") == [(state,)]
    await site.provisioner().move("acme", "two")
    assert await site.sql("select state from asgi_datasource.tenants") == [(state,)]


async def test_what_was_left_behind_is_gone_once_it_has_been_replaced(site: Site) -> None:
    await site.provisioner().create("acme")
    await site.provisioner().move("acme", "two")
    async with stopped_at(site, "compare", "running", "move", "acme", "--to", "one"):
        pass
    await site.provisioner().cancel("acme", Operation.MOVE)
    assert await site.sql("select from pg_namespace where nspname = 't_acme'", "one") == []
    # Then what is there is another's.
    await site.sql("create schema t_acme", "one")
    with pytest.raises(DataError, match="tables of another owner exist"):
        await site.provisioner().move("acme", "one")
    await site.sql("drop schema t_acme", "one")
    await site.provisioner().move("acme", "one")


async def test_what_came_to_the_target_meanwhile_is_not_the_moves(site: Site) -> None:
    await site.provisioner().create("acme")
    async with stopped_at(site, "copy", "running", "move", "acme", "--to", "two"):
        await site.sql("create schema t_acme; create table t_acme.ours (id int)", "two")
    with pytest.raises(DataError, match="tables of another owner exist"):
        await site.provisioner().move("acme", "two")
    await site.provisioner().cancel("acme", Operation.MOVE)
    assert await site.sql("select * from t_acme.ours", "two") == []
    await write(site)


@asynccontextmanager
async def second_server(site: Site) -> AsyncIterator[EmbeddedCluster]:
    """The datasource `two` is on a server of its own."""
    async with EmbeddedCluster() as other:
        await other.create_database("two")
        document = json.loads(site.config.read_text())
        document["datasources"]["two"] = {
            "primary": {"url": other.primary.url("two")},
            "admin": {"url": other.primary.url("two", user="postgres")},
        }
        site.set(datasources=document["datasources"])
        yield other


async def test_roles_are_the_servers(site: Site) -> None:
    role = f"{site.prefix}_acme"
    has_role = f"select from pg_roles where rolname = '{role}'"
    await site.provisioner().create("acme", role=role)
    try:
        async with second_server(site) as other:
            async with stopped_at(site, "compare", "running", "move", "acme", "--to", "two"):
                assert await other.primary.sql(has_role) == [()]
            await site.provisioner().cancel("acme", Operation.MOVE)
            assert await other.primary.sql(has_role) == []
            assert await other.primary.sql("select from pg_roles where rolname like 'asgi_datasource%'") == []
            assert await site.sql(has_role) == [()]
            await write(site)

            await other.create_role(role)
            with pytest.raises(DataError, match=f"the role '{role}' is there already"):
                await site.provisioner().move("acme", "two")
            await site.provisioner().cancel("acme", Operation.MOVE)
            await other.primary.sql(f"drop role {role}")

            await site.provisioner().move("acme", "two")
            await write(site)
            await site.provisioner().drop("acme")
            assert await other.primary.sql(has_role) == []
    finally:
        await site.drop_role(role)


# -- drop


@asynccontextmanager
async def failing_dump(site: Site) -> AsyncIterator[None]:
    document = json.loads(site.config.read_text())
    folder = site.folder / "programs"
    folder.mkdir()
    (folder / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump: error: no room' >&2\nexit 1\n")
    (folder / "pg_dump").chmod(0o755)
    site.set(provisioning={**document["provisioning"], "programs": str(folder)})
    yield
    site.set(provisioning=document["provisioning"])


async def test_a_drop_that_failed_is_taken_back(site: Site) -> None:
    await site.provisioner().create("acme")
    await site.sql("update asgi_datasource.tenants set state = 'read_only'")
    async with failing_dump(site):
        failed = site.command("drop", "acme", "--yes", "acme", "--keep-dump")
        assert (failed.code, "no room" in failed.err, "tenants drop acme --cancel" in failed.err) == (2, True, True)
    assert await site.sql("select state, is_ready from asgi_datasource.tenants") == [("suspended", False)]
    assert "taken back" in ok(site.command("drop", "acme", "--cancel"))
    assert await site.sql("select state, is_ready from asgi_datasource.tenants") == [("read_only", True)]
    assert ok(site.command("list"))


async def test_there_is_no_way_back_once_a_drop_takes_away(site: Site) -> None:
    await site.provisioner().create("acme")
    async with stopped_at(site, "drop objects", "running", "drop", "acme", "--yes", "acme"):
        pass
    await site.provisioner().cancel("acme", Operation.DROP)
    await write(site)
    async with stopped_at(site, "drop objects", "done", "drop", "acme", "--yes", "acme"):
        pass
    with pytest.raises(DataError, match="cannot be taken back any more: 'drop objects' has begun"):
        await site.provisioner().cancel("acme", Operation.DROP)
    await site.provisioner().drop("acme")


async def test_a_tenant_that_could_not_be_created_is_dropped(site: Site) -> None:
    (site.folder / "more.sql").write_text("nonsense")
    assert site.command("create", "acme").code == 2
    refused = site.command("move", "acme", "--to", "two")
    assert (refused.code, "finish it, or drop the tenant" in refused.err) == (2, True)
    async with stopped_at(site, "drop objects", "running", "drop", "acme", "--yes", "acme"):
        pass
    ok(site.command("drop", "acme", "--cancel"))
    (site.folder / "more.sql").write_text("select 1")
    ok(site.command("create", "acme"))
    await write(site)


@pytest.mark.parametrize("name", ["move", "drop"])
async def test_there_has_to_be_something_to_take_back(site: Site, name: str) -> None:
    await site.provisioner().create("acme")
    refused = site.command(name, "acme", "--cancel")
    assert (refused.code, f"no {name} of 'acme' is under way" in refused.err) == (2, True)
    assert site.command("move", "acme").code == 2
    assert site.command("move", "acme", "--cancel", "--to", "two").code == 2


async def test_a_name_that_is_being_created_is_not_given_away(site: Site) -> None:
    """`rename` holds the lock on the new name as well."""
    await site.provisioner().create("acme")
    async with stopped_at(site, "place", "running", "create", "hooli"):
        refused = site.command("rename", "acme", "hooli")
    assert (refused.code, "another process is at work on the tenant 'hooli'" in refused.err) == (2, True)
