"""Dropping a tenant takes nothing that is not its own: what would go with it is named, and goes when asked for."""

from __future__ import annotations

import pytest

from asgi_datasource import DataError
from tests.tenancy.provisioning_site import Site, ok

AROUND = {
    "view public.all_items": "create view public.all_items as select name from t_acme.items",
    "view public.of_view": "create view public.all_items as select 1 from t_acme.items;"
    " create view public.of_view as select * from public.all_items",
    "materialized view t_globex.copy": "create materialized view t_globex.copy as select name from t_acme.items",
    "constraint bills_doc_fkey on table public.bills": "create table public.bills (doc int references t_acme.docs)",
    "column v of table t_globex.items": "alter table t_globex.items add v t_acme.vector(3)",
    "column c of table t_globex.items": "create type t_acme.colour as enum ('red');"
    " alter table t_globex.items add c t_acme.colour",
    "default value for column n of table t_globex.items": "create sequence t_acme.numbers;"
    " alter table t_globex.items add n int default nextval('t_acme.numbers')",
    "function public.f(t_acme.docs)": "create function public.f(t_acme.docs) returns int language sql as 'select 1'",
    "index t_globex.by_f": "create function t_acme.f(text) returns text immutable language sql as 'select $1';"
    " create index by_f on t_globex.items (t_acme.f(name))",
    "trigger t on table t_globex.items": "create function t_acme.f() returns trigger language plpgsql as"
    " 'begin return new; end'; create trigger t before insert on t_globex.items for each row"
    " execute function t_acme.f()",
    "policy p on table t_globex.items": "create function t_acme.f(text) returns bool language sql as 'select true';"
    " create policy p on t_globex.items using (t_acme.f(name))",
    "rule r on table t_globex.items": "create rule r as on insert to t_globex.items do also"
    " insert into t_acme.docs values (1)",
    "table t_globex.part": "create table t_acme.parts (id int) partition by list (id);"
    " create table t_globex.part partition of t_acme.parts for values in (1)",
    "table t_globex.child": "create table t_globex.child () inherits (t_acme.docs)",
    "constraint d_check": "create function t_acme.f(int) returns bool language sql as 'select true';"
    " create domain t_globex.d as int check (t_acme.f(value))",
}


async def two_tenants(site: Site, around: str) -> None:
    (site.folder / "more.sql").write_text("create table docs (id int primary key)")
    for name in ("acme", "globex"):
        await site.provisioner().create(name)
    await site.sql("create extension vector schema t_acme", "one")
    await site.sql(around, "one")


@pytest.mark.parametrize("what", AROUND)
async def test_what_depends_on_a_tenant_is_named_and_kept(site: Site, what: str) -> None:
    await two_tenants(site, AROUND[what])
    before = await site.sql("select count(*) from pg_class", "one")
    with pytest.raises(DataError, match="would go") as refused:
        await site.provisioner().drop("acme")
    assert what in refused.value.message
    assert refused.value.kind.value == "conflict"
    # As it was: it is served.
    assert await site.sql("select count(*) from pg_class", "one") == before
    record = next(record for record in await site.provisioner().list() if record.name == "acme")
    assert (record.state, record.is_ready, record.under_way) == ("active", True, None)


async def test_what_depends_on_a_tenant_goes_when_asked_for(site: Site) -> None:
    await two_tenants(site, "; ".join(sql for what, sql in AROUND.items() if "column" in what or "bills" in what))
    refused = site.command("drop", "acme", "--yes", "acme")
    assert (refused.code, "column v of table t_globex.items" in refused.err) == (2, True)
    assert "--cascade" in refused.err
    assert "Nothing was done." in refused.err
    told = site.command("drop", "acme", "--yes", "acme", "--cascade")
    assert told.code == 0, told.err
    assert "takes with it: column v of table t_globex.items" in told.err
    assert "takes with it: constraint bills_doc_fkey on table public.bills" in told.err
    columns = "select column_name::text from information_schema.columns where table_schema = 't_globex'"
    assert ("v",) not in await site.sql(columns, "one")
    assert await site.sql("select count(*) from public.bills", "one") == [(0,)]


async def test_what_is_the_tenants_own_goes(site: Site) -> None:
    """Also what is no member of the schema: publications of its tables, statistics, casts, default privileges."""
    await two_tenants(
        site,
        "create publication p for table t_acme.docs; create schema s; create table t_acme.wide (a int, b int);"
        " create statistics s.wide on a, b from t_acme.wide; create type t_acme.colour as enum ('red');"
        " create cast (t_acme.colour as text) with inout as assignment; create view t_acme.v as"
        " select * from t_globex.items; create table t_acme.more (doc int references t_globex.docs)",
    )
    try:
        ok(site.command("drop", "acme", "--yes", "acme"))
    finally:
        await site.sql("drop publication p", "one")
    assert await site.sql("select from pg_namespace where nspname = 't_acme'", "one") == []


async def test_what_a_tenants_role_owns_elsewhere_is_named_and_kept(site: Site) -> None:
    role = f"{site.prefix}_acme"
    await site.provisioner().create("acme", role=role)
    await site.sql(f"create table public.mine (id int); alter table public.mine owner to {role}", "one")
    with pytest.raises(DataError, match=r"table public\.mine"):
        await site.provisioner().drop("acme")
    await site.provisioner().drop("acme", cascade=True)
    assert await site.sql("select from pg_tables where tablename = 'mine'", "one") == []
    assert await site.sql(f"select from pg_roles where rolname = '{role}'") == []


async def test_a_role_that_is_needed_elsewhere_stays(site: Site) -> None:
    """A move has left a schema behind, in which the role has rights: dropping it is not possible, and not needed."""
    role = f"{site.prefix}_acme"
    await site.provisioner().create("acme", role=role)
    await site.provisioner().move("acme", "two")
    told = site.command("drop", "acme", "--yes", "acme")
    try:
        assert told.code == 0, told.err
        assert f"stays: the role '{role}': it has something in the database {site.prefix}_one" in told.err
        assert "stays: the schema 't_acme' on 'one', which a move has left behind" in told.err
    finally:
        await site.drop_role(role)


async def test_what_came_to_depend_on_a_tenant_while_it_is_dropped_is_kept(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.provisioner().create("acme")
    provisioner = site.provisioner()

    def meanwhile(text: str) -> None:
        if text == "drop acme: drop objects":
            site.cluster.primary.blocking.sql(
                "create view public.late as select name from t_acme.items", dbname=f"{site.prefix}_one"
            )

    monkeypatch.setattr(provisioner, "_tell", meanwhile)
    with pytest.raises(DataError, match=r"view public\.late"):
        await provisioner.drop("acme")
    assert await site.sql("select count(*) from public.late", "one") == [(2,)]
    await site.sql("drop view public.late", "one")
    await site.provisioner().drop("acme")


async def test_a_move_takes_nothing_that_depends_on_what_was_left_behind(site: Site) -> None:
    await site.provisioner().create("acme")
    await site.provisioner().move("acme", "two")
    await site.sql("create view public.old as select name from t_acme.items", "one")
    with pytest.raises(DataError, match=r"view public\.old"):
        await site.provisioner().move("acme", "one")
    assert await site.sql("select count(*) from public.old", "one") == [(2,)]
    [record] = await site.provisioner().list()
    assert (record.state, record.under_way) == ("active", None)
