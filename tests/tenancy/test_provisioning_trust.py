"""The role that provisions runs no code of the application's: not in its tables, not in a set-up, not in a dump."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from asgi_datasource import DataError
from asgi_datasource.tenancy.provisioning.tenant_site import Place
from asgi_datasource.tenancy.provisioning.trust import ControlConnection
from tests.pgbouncer import pgbouncer
from tests.tenancy.provisioning_site import Site

ESCALATE = "execute 'reset role'; if (select rolsuper from pg_roles where rolname = current_user) then {how} end if;"
"""Code of an attacker: it leaves a role that was only put on, and takes what is to be had."""
NOW_SUPER = ESCALATE.format(how="alter role app superuser;")


def trigger_function(schema: str) -> str:
    body = f"begin {NOW_SUPER} return coalesce(new, old); end"
    return f"create function {schema}.evil() returns trigger language plpgsql as $${body}$$;"


LEDGER = """
create schema asgi_datasource;
create table asgi_datasource.tenants (name text primary key, id uuid default gen_random_uuid(), datasource text,
  schema text, row_security jsonb, role text, state text default 'active', aliases text[], max_connections int,
  database text, is_ready bool default false, made text[] default '{}', created_at timestamptz, updated_at timestamptz);
create table asgi_datasource.tenants_left_behind
  (tenant uuid, datasource text, schema text, database text, made text[]);
create table asgi_datasource.tenant_steps (tenant text, operation text, step text, state text, kept jsonb default '{}',
  reason text, began_at timestamptz default now(), ended_at timestamptz, primary key (tenant, operation, step));
"""


async def test_a_table_of_tenants_that_was_planted_is_refused(site: Site) -> None:
    trigger = "create trigger x before insert on asgi_datasource.tenants for each row"
    await site.app_sql(
        f"{LEDGER} {trigger_function('asgi_datasource')} {trigger} execute function asgi_datasource.evil()", "control"
    )
    with pytest.raises(DataError, match="provisioning runs as 'postgres' and does not use") as refused:
        await site.provisioner().create("acme")
    assert "schema asgi_datasource (of 'app')" in refused.value.message
    assert not await site.is_superuser()


@pytest.mark.parametrize(
    ("granted", "planted", "undone", "told"),
    [
        (
            "grant trigger on asgi_datasource.tenants to app",
            f"create schema mine; {trigger_function('mine')} create trigger x before update on asgi_datasource.tenants"
            " for each row execute function mine.evil()",
            "",
            "trigger x on table asgi_datasource.tenants (of 'app')",
        ),
        (
            "grant create on schema asgi_datasource to app",
            "create table asgi_datasource.set_up_steps (tenant uuid, step text)",
            "",
            "table asgi_datasource.set_up_steps (of 'app')",
        ),
        (
            "grant create on schema asgi_datasource to app",
            "create function asgi_datasource.to_jsonb(text) returns jsonb language sql as 'select null::jsonb'",
            "",
            "function asgi_datasource.to_jsonb(text) (of 'app')",
        ),
        (
            "create rule r as on update to asgi_datasource.tenants do also select 1",
            "",
            "",
            "rule r on table asgi_datasource.tenants",
        ),
        (
            "create schema s; create function s.f() returns event_trigger language plpgsql as 'begin end';"
            " alter schema s owner to app; alter function s.f() owner to app;"
            " create event trigger e on ddl_command_end execute function s.f()",
            "",
            "drop event trigger e",
            "event trigger e (of 'app')",
        ),
        (
            "do $$begin execute format('alter database %I set role = app', current_database()); end$$",
            "",
            "do $$begin execute format('alter database %I reset role', current_database()); end$$",
            "the setting role of the database",
        ),
    ],
)
async def test_what_another_role_can_change_is_refused(
    site: Site, granted: str, planted: str, undone: str, told: str
) -> None:
    await site.provisioner().list()
    try:
        await site.sql(granted)
        if planted:
            await site.app_sql(planted, "control")
        with pytest.raises(DataError) as refused:
            await site.provisioner().create("acme")
        assert told in refused.value.message
        assert refused.value.kind.value == "config"
    finally:
        if undone:
            await site.sql(undone)
    assert not await site.is_superuser()


async def test_names_are_not_looked_up_in_what_the_database_says(site: Site) -> None:
    """The owner of a database chooses the search path of all who connect to it, but not of those who provision."""
    await site.app_sql(
        f"create schema mine; create function mine.now() returns timestamptz language plpgsql as $$begin {NOW_SUPER}"
        " return pg_catalog.now(); end$$",
        "control",
    )
    name = f"{site.prefix}_control"
    await site.app_sql(f"alter database {name} set search_path = mine, pg_catalog", "control")
    try:
        await site.provisioner().create("acme")
        await site.provisioner().drop("acme")
    finally:
        await site.sql(f"alter database {name} reset search_path")
    assert not await site.is_superuser()


# -- set-up


@pytest.mark.parametrize(
    ("granted", "planted", "told"),
    [
        ("create schema extra; grant create, usage on schema extra to app", "select 1", "schema extra"),
        ("create schema extra; grant create on schema extra to public", "select 1", "schema extra"),
        ("create schema extra authorization app", "select 1", "schema extra"),
        (
            "create schema extra; grant create, usage on schema extra to app",
            "create function extra.evil() returns text language sql as 'select null'",
            "function extra.evil()",
        ),
        (
            "create schema extra; create table extra.countries (id int); alter table extra.countries owner to app",
            "select 1",
            "table extra.countries",
        ),
        (
            "create schema extra; create table extra.countries (id int); grant trigger on extra.countries to app;"
            " grant usage on schema extra to app",
            f"create schema mine; {trigger_function('mine')}"
            " create trigger x before insert on extra.countries for each row execute function mine.evil()",
            "trigger x on table extra.countries",
        ),
        ("create role team; grant team to app; create schema extra authorization team", "select 1", "schema extra"),
    ],
)
async def test_a_set_up_runs_only_where_the_application_puts_no_functions(
    site: Site, granted: str, planted: str, told: str
) -> None:
    document = json.loads(site.config.read_text())
    document["datasources"]["one"]["search_path"] = ["extra"]
    site.set(datasources=document["datasources"])
    await site.sql(granted, "one")
    try:
        await site.app_sql(planted)
        with pytest.raises(DataError, match="the set-up would run as 'postgres'") as refused:
            await site.provisioner().create("acme")
        assert told in refused.value.message
    finally:
        if "team" in granted:
            await site.sql("drop owned by team; drop role team", "one")
    assert await site.sql("select from pg_class where relname = 'items'", "one") == []


async def test_a_step_that_lets_the_application_create_comes_last(site: Site) -> None:
    """So that the application can migrate its own tables."""
    (site.folder / "rights.sql").write_text(
        "do $$begin execute format('grant create on schema %I to app', current_schema()); end$$"
    )
    site.set(provisioning={"set_up": ["rights.sql", "tables.sql"]})
    with pytest.raises(DataError, match="has to be the last one"):
        await site.provisioner().create("acme")
    await site.provisioner().drop("acme")
    site.set(provisioning={"set_up": ["tables.sql", "rights.sql"]})
    await site.provisioner().create("acme")
    await site.app_sql("create table t_acme.more (id int)")


async def test_one_login_for_both_needs_no_protection(site: Site) -> None:
    document = json.loads(site.config.read_text())
    for name in ("control", "one", "two"):
        document["datasources"][name].pop("admin")
    document["datasources"]["one"]["search_path"] = ["extra"]
    site.set(datasources=document["datasources"])
    await site.app_sql("create schema extra; create table extra.countries (id int)")
    await site.provisioner().create("acme")
    await site.provisioner().move("acme", "two")
    assert await site.app_sql("select tableowner from pg_tables where schemaname = 't_acme'", "two") == [("app",)]
    async with site.registry() as registry:
        assert len(await site.items(registry, "acme")) == 2


# -- dumps


@asynccontextmanager
async def planted(site: Site, sql: str) -> AsyncIterator[None]:
    """A tenant whose application may create in its schema, and has done so."""
    (site.folder / "more.sql").write_text(
        "do $$begin execute format('grant create on schema %I to app', current_schema()); end$$"
    )
    await site.provisioner().create("acme")
    await site.app_sql(sql)
    try:
        yield
    finally:
        was_super = await site.is_superuser()
        await site.sql("alter role app nosuperuser")
        assert not was_super


EVIL = "create function t_acme.evil(t text) returns bool language plpgsql {kind} as $${body}$$;"
CHECK = EVIL.format(kind="volatile", body=f"begin {NOW_SUPER} return true; end")
PLAIN = "begin if (select rolsuper from pg_roles where rolname = current_user) then execute 'alter role app superuser';"
BUILD = EVIL.format(kind="immutable", body=f"{PLAIN} end if; return true; end")
"""The same without `reset role`, which is refused while an index or a materialized view is built."""

WITH_CODE = {
    "check": "create table t_acme.notes (item text check (t_acme.evil(item)))",
    "default": "create table t_acme.notes (item text, ok bool generated always as (t_acme.evil(item)) stored)",
    "domain": "create domain t_acme.d as text check (t_acme.evil(value)); create table t_acme.notes (item t_acme.d)",
    "index": "create table t_acme.notes (item text); create index on t_acme.notes (t_acme.evil(item))",
    "view": "create materialized view t_acme.notes as select t_acme.evil('x') as item",
}


@pytest.mark.parametrize("kind", WITH_CODE)
async def test_code_in_a_dump_does_not_run_as_the_role_that_provisions(site: Site, kind: str) -> None:
    row = "" if kind == "view" else "insert into t_acme.notes values ('x')"
    async with planted(site, f"{BUILD} {WITH_CODE[kind]}; {row}"):
        await site.provisioner().move("acme", "two")
        [[count]] = await site.sql("select count(*) from t_acme.notes", "two")
        assert count == 1


@pytest.mark.parametrize("kind", ["check", "domain"])
async def test_code_in_a_dump_that_leaves_its_role_finds_no_better_one(site: Site, kind: str) -> None:
    async with planted(site, f"{CHECK} {WITH_CODE[kind]}; insert into t_acme.notes values ('x')"):
        # What it gets at is the login of the restore, which can do nothing: the rest of the restore fails.
        with pytest.raises(DataError, match="permission denied for schema t_acme"):
            await site.provisioner().move("acme", "two")
        assert await site.sql("select from pg_roles where rolname like 'asgi_datasource_restore%'") == []


async def test_what_was_restored_belongs_to_a_role_without_rights(site: Site) -> None:
    """A function of the application's that runs with its owner's rights gains none by a move."""
    definer = "create function t_acme.evil() returns void language plpgsql security definer"
    body = "as $$begin alter role app superuser; end$$"
    view = "create view t_acme.passwords as select usename, passwd from pg_catalog.pg_shadow"
    async with planted(site, f"{definer} {body}; {view}"):
        await site.provisioner().move("acme", "two")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await site.app_sql("select t_acme.evil()", "two")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await site.app_sql("select * from t_acme.passwords", "two")
        [[owner]] = await site.sql("select distinct tableowner from pg_tables where schemaname = 't_acme'", "two")
        rights = "rolsuper or rolcreatedb or rolcreaterole or rolcanlogin or rolbypassrls or rolreplication"
        assert await site.sql(f"select {rights} from pg_roles where rolname = '{owner}'") == [(False,)]
        # The application was a member of it for the restore only.
        assert await site.sql(f"select pg_has_role('app', '{owner}', 'member')") == [(False,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await site.app_sql("create table t_acme.mine (id int)", "two")
        await site.provisioner().drop("acme")
        assert await site.sql(f"select from pg_roles where rolname = '{owner}'") == []


async def test_a_moved_schema_keeps_what_it_uses_around_it(site: Site) -> None:
    for name in ("one", "two"):
        await site.sql(
            """create schema "Shared X"; create type "Shared X".colour as enum ('red');
            grant usage on schema "Shared X" to app; create schema shared; grant usage on schema shared to app;
            create table shared.countries (id int primary key); grant select on shared.countries to app;
            insert into shared.countries values (1);
            create sequence shared.numbers; grant usage on sequence shared.numbers to app""",
            name,
        )
    (site.folder / "more.sql").write_text(
        """create extension vector;
        create table docs (id int primary key default nextval('shared.numbers'), e vector(3), colour "Shared X".colour,
            country int references shared.countries);
        insert into docs values (1, '[1,2,3]', 'red', 1);
        create view near as select d.id, c.id as country from docs d join shared.countries c on c.id = d.country"""
    )
    await site.provisioner().create("acme")
    await site.provisioner().move("acme", "two")
    assert await site.app_sql("select e::text from t_acme.docs", "two") == [("[1,2,3]",)]
    assert await site.app_sql("select * from t_acme.near", "two") == [(1, 1)]
    await site.sql("select setval('shared.numbers', 7)", "two")
    await site.app_sql("insert into t_acme.docs (colour, country) values ('red', 1)", "two")


async def test_a_database_moves_with_its_schemas_and_extensions(site: Site) -> None:
    document = json.loads(site.config.read_text())
    own = document["datasources"]["own"]
    other = json.loads(json.dumps(own).replace(f"{site.prefix}_{{tenant}}", f"{site.prefix}_other_{{tenant}}"))
    site.set(
        datasources={**document["datasources"], "other": other},
        tenants_from={"datasource": "control", "defaults": {"datasource": "own"}},
    )
    (site.folder / "more.sql").write_text(
        "create schema extensions; create extension vector schema extensions; create schema audit;"
        " create table audit.log (v extensions.vector(2), note text); insert into audit.log values ('[1,2]', 'x')"
    )
    await site.provisioner().create("acme")
    await site.provisioner().move("acme", "other")
    assert await site.sql("select v::text from audit.log", f"{site.prefix}_other_acme") == [("[1,2]",)]
    async with site.registry() as registry:
        assert await site.items(registry, "acme") == [f"of public in {site.prefix}_acme", "seed of acme"]
    # It goes as a whole, and what was left behind is known to be the tenant's.
    await site.provisioner().move("acme", "own")
    await site.provisioner().drop("acme")


async def test_a_dump_is_restored_on_the_server_itself(site: Site) -> None:
    """The application reaches it through PgBouncer, whose sessions are shared, and which does not know the login."""
    document = json.loads(site.config.read_text())
    two = document["datasources"]["two"]
    async with pgbouncer(two["primary"]["url"], size=2) as bouncer:
        two["primary"]["url"] = bouncer.url(f"{site.prefix}_two")
        site.set(datasources=document["datasources"])
        await site.provisioner().create("acme")
        await site.provisioner().move("acme", "two")
        async with await psycopg.AsyncConnection.connect(two["primary"]["url"], autocommit=True) as client:
            [row] = await (await client.execute("select current_user, count(*) from t_acme.items")).fetchall()
    assert row == ("app", 2)


async def test_the_role_that_provisions_need_not_be_a_superuser(site: Site) -> None:
    builder = f"{site.prefix}_builder"
    await site.cluster.create_role(builder, options="createrole createdb")
    document = json.loads(site.config.read_text())
    for name in ("control", "one", "two"):
        dbname = f"{site.prefix}_{name}"
        await site.sql(f"grant create on database {dbname} to {builder}")
        document["datasources"][name]["admin"]["url"] = site.cluster.primary.url(dbname=dbname, user=builder)
    site.set(datasources=document["datasources"])
    try:
        provisioner = site.provisioner()
        await provisioner.create("acme", role=f"{site.prefix}_acme")
        await provisioner.move("acme", "two")
        await provisioner.move("acme", "one")
        async with site.registry() as registry:
            assert await site.items(registry, "acme") == [f"of t_acme in {site.prefix}_one", "seed of acme"]
        await provisioner.drop("acme")
        assert await site.sql("select from pg_namespace where nspname = 't_acme'", "one") == []
    finally:
        for [role] in await site.sql(f"select rolname from pg_roles where rolname = '{site.prefix}_acme'"):
            await site.drop_role(role)
        for name in ("control", "one", "two"):
            await site.sql("drop schema if exists t_acme, asgi_datasource cascade", name)
        await site.drop_role(builder)


async def test_a_view_in_the_place_of_a_table_is_not_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's role may own tables of a tenant, and swap one while it is being counted."""
    async with planted(site, f"create table t_acme.notes (item text); {CHECK}"):
        tables = Place.tables

        async def swapped(place: Place, admin: ControlConnection, *, kinds: str = "r") -> Any:
            found = await tables(place, admin, kinds=kinds)
            if kinds == "r" and ("t_acme", "notes") in found and place.site.name == "one":
                view = "create view t_acme.notes as select t_acme.evil('x') as item"
                await site.app_sql(f"drop table t_acme.notes; {view}")
            return found

        monkeypatch.setattr(Place, "tables", swapped)
        with pytest.raises(DataError, match="the tables of 'acme' are being changed"):
            await site.provisioner().move("acme", "two")
