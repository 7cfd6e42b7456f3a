"""Tenants made, moved and taken away by the command line; killed at any step, and taken up again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from asgi_datasource import DataError, compile
from asgi_datasource.tenancy.provisioning import Operation
from tests.tenancy.commands import Command
from tests.tenancy.provisioning_site import FILES, Point, Site, kill_points, ok, refreshed, stopped_at


async def test_a_tenant_is_made_listed_suspended_renamed_and_dropped(site: Site) -> None:
    assert "ready" in ok(
        site.command("create", "acme", "--alias", "shop", "--domain", "Shop.Acme.Test", "--max-connections", "3")
    )
    async with site.registry() as registry:
        assert await site.items(registry, "acme") == [f"of t_acme in {site.prefix}_one", "seed of acme"]
        assert registry.tenant("shop").max_connections == 3
        assert registry.compiled.admission.directory.map.domains == {"shop.acme.test": "acme"}
        async with registry.session("acme") as db:
            await db.execute("insert into items (name) values ('written')")

        ok(site.command("suspend", "acme"))
        await refreshed(registry)
        with pytest.raises(DataError, match="suspended"):
            await site.items(registry, "acme")
        ok(site.command("resume", "acme"))
        ok(site.command("rename", "acme", "hooli"))
        ok(site.command("rename", "acme", "hooli"))
        await refreshed(registry)
        assert registry.tenant("acme").name == "hooli"
        assert (await site.items(registry, "hooli"))[-1] == "written"

    listing = json.loads(ok(site.command("list", "--format", "json")))["tenants"]
    assert [(row["name"], row["schema"], row["state"], row["is_ready"]) for row in listing] == [
        ("hooli", "t_acme", "active", True)
    ]
    assert "hooli" in ok(site.command("list"))

    refused = site.command("drop", "hooli")
    assert (refused.code, "--yes hooli" in refused.err) == (2, True)
    assert site.command("drop", "hooli", "--yes", "acme").code == 2
    told = ok(site.command("drop", "hooli", "--yes", "hooli", "--keep-dump"))
    [dump] = (site.folder / "dumps").iterdir()
    assert str(dump) in told
    assert dump.stat().st_size > 0
    assert await site.sql("select nspname from pg_namespace where nspname like 't!_%' escape '!'", "one") == []
    assert json.loads(ok(site.command("list", "--format", "json")))["tenants"] == []


async def test_what_is_there_already_is_left_alone(site: Site) -> None:
    for _ in range(2):
        ok(site.command("create", "acme"))
    async with site.registry() as registry:
        assert len(await site.items(registry, "acme")) == 2
        # In the application as well, and it is known there at once.
        tenant = await registry.provision("globex", schema="g")
        assert tenant.settings == (("search_path", '"g"'),)
        assert await site.items(registry, "globex") == [f"of g in {site.prefix}_one", "seed of globex"]
    other = site.command("create", "acme", "--schema", "elsewhere")
    assert (other.code, "in another place" in other.err) == (2, True)


async def test_what_cannot_be_done_is_said(site: Site) -> None:
    for *arguments, told in (
        ("create", "a*b", "cannot be a tenant's name"),
        ("create", "x" * 63, "too long"),
        ("create", "acme", "--datasource", "nowhere", "needs a datasource"),
        ("suspend", "nobody", "there is no tenant"),
        ("drop", "nobody", "--yes", "nobody", "there is no tenant"),
        ("move", "nobody", "--to", "two", "there is no tenant"),
        ("rename", "nobody", "somebody", "there is no tenant"),
    ):
        done = site.command(*arguments)
        assert (done.code, told in done.err, "Traceback" in done.err) == (2, True, False), done.err


async def test_a_name_cannot_leave_its_place_in_sql(site: Site) -> None:
    site.set(tenancy={"resolve": [{"header": "X-Tenant"}], "pattern": ".*"})
    name = "x'; drop table asgi_datasource.tenants; --\""
    ok(site.command("create", name))
    [record] = json.loads(ok(site.command("list", "--format", "json")))["tenants"]
    assert (record["name"], record["schema"]) == (name, f"t_{name}")
    ok(site.command("drop", name, "--yes", name))


async def test_a_set_up_that_fails_leaves_the_tenant_unserved_and_goes_on_once_it_is_mended(site: Site) -> None:
    (site.folder / "more.sql").write_text("create index x on no_such_table (id);")
    done = site.command("create", "acme")
    assert done.code == 2
    assert "no_such_table" in done.err
    assert "goes on where it stopped" in done.err
    listing = site.command("list", "--format", "json")
    assert listing.code == 1
    [record] = json.loads(listing.out)["tenants"]
    assert (record["is_ready"], record["under_way"]) == (False, "create")
    async with site.registry() as registry:
        with pytest.raises(DataError, match="no such tenant"):
            await site.items(registry, "acme")
    (site.folder / "more.sql").write_text(FILES["more.sql"])
    ok(site.command("create", "acme"))
    async with site.registry() as registry:
        assert len(await site.items(registry, "acme")) == 2


async def test_a_schema_moves_to_another_datasource_with_all_its_rows(site: Site) -> None:
    ok(site.command("create", "acme"))
    async with site.registry() as registry:
        async with registry.session("acme") as db:
            await db.execute("insert into items (name) select 'row ' || n from generate_series(1, 50) n")
        before = await site.items(registry, "acme")
        ok(site.command("move", "acme", "--to", "two"))
        # A process that does not know yet reads the old place, and cannot write there any more.
        with pytest.raises(DataError, match="42501"):
            async with registry.session("acme") as db:
                await db.execute("insert into items (name) values ('lost')")
        await refreshed(registry)
        assert registry.tenant("acme").datasource == "two"
        assert await site.items(registry, "acme") == before
        async with registry.session("acme") as db:
            await db.execute("insert into items (name) values ('new')")
    ok(site.command("move", "acme", "--to", "two"))
    assert len(await site.sql("select * from t_acme.items", "two")) == 53


async def test_a_database_each_from_its_making_to_its_end(site: Site) -> None:
    site.set(tenants_from={"datasource": "control", "defaults": {"datasource": "own"}})
    ok(site.command("create", "acme"))
    async with site.registry() as registry:
        assert await site.items(registry, "acme") == [f"of public in {site.prefix}_acme", "seed of acme"]
        # Dropped under an application that has it open.
        ok(site.command("drop", "acme", "--yes", "acme", "--keep-dump"))
        await refreshed(registry)
        with pytest.raises(DataError, match="no such tenant"):
            await site.items(registry, "acme")
    assert await site.sql(f"select 1 from pg_database where datname = '{site.prefix}_acme'") == []


# -- what is not the tenant's alone


async def test_what_others_have_as_well_outlives_a_tenant(site: Site) -> None:
    """Tenants of shared tables, in a schema that `create` has made for the first of them."""
    defaults = {
        "datasource": "one",
        "schema": "shop",
        "row_security": {"app.tenant": "{tenant}"},
        "role": "shop_reader",
    }
    site.set(tenants_from={"datasource": "control", "defaults": defaults})
    (site.folder / "tables.sql").write_text(
        "create table if not exists items (id int generated always as identity, name text);"
    )
    (site.folder / "more.sql").write_text("select 1")
    provisioner = site.provisioner()
    try:
        for name in ("acme", "globex"):
            await provisioner.create(name)
        # Each has been set up, although the schema is one.
        assert await site.sql("select name from shop.items", "one") == [("seed of acme",), ("seed of globex",)]
        with pytest.raises(DataError, match="nothing to dump"):
            await provisioner.drop("globex", keep_dump=True)
        with pytest.raises(DataError, match="can be moved"):
            await provisioner.move("acme", "two")
        told = ok(site.command("drop", "globex", "--yes", "globex"))
        assert "gone" in told
        async with site.registry() as registry:
            assert await site.items(registry, "acme") == ["seed of acme", "seed of globex"]
    finally:
        await site.sql("drop owned by shop_reader; drop role shop_reader", "one")


async def test_a_role_of_a_tenant_goes_with_it(site: Site) -> None:
    await site.provisioner().create("acme", role=f"{site.prefix}_acme")
    await site.provisioner().drop("acme")
    assert await site.sql(f"select 1 from pg_roles where rolname = '{site.prefix}_acme'") == []


async def test_nobody_moves_in_with_somebody_else(site: Site) -> None:
    document = json.loads(site.config.read_text())
    site.set(
        datasources={**document["datasources"], "twin": document["datasources"]["one"]},
        tenants={"listed": {"datasource": "one", "schema": "listed", "domains": ["listed.test"]}},
        tenancy={"resolve": [{"subdomain_of": "app.test"}, {"domain": {}}]},
    )
    provisioner = site.provisioner()
    await provisioner.create("acme", aliases=["shop"], domains=["shop.test"])
    wanted: list[tuple[str, dict[str, Any], str]] = [
        ("other", {"schema": "t_acme"}, "'acme' lives in the same place"),
        ("other", {"schema": "listed"}, "'listed' lives in the same place"),
        ("other", {"datasource": "twin", "schema": "t_acme"}, "'acme' lives in the same place"),
        ("listed", {}, "the document has the name"),
        ("shop", {}, "the tenant 'acme' has the name"),
        ("other", {"aliases": ["shop"]}, "the tenant 'acme' has the name"),
        ("other", {"aliases": ["listed"]}, "the document has the name"),
        ("other", {"domains": ["Shop.test"]}, "the tenant 'acme' has the name, or an alias or domain,"),
        ("other", {"domains": ["listed.test"]}, "the document has the name, or an alias or domain,"),
        ("other", {"domains": ["acme.app.test"]}, "one of the application's own"),
        ("other", {"domains": ["no host"]}, "not a host name"),
    ]
    for name, placed, told in wanted:
        with pytest.raises(DataError, match=told):
            await provisioner.create(name, **placed)
    assert [record.name for record in await provisioner.list()] == ["acme"]


def test_the_tenants_of_the_document_are_in_memory_once() -> None:
    """There may be 100,000 of them."""
    document = {
        "version": 1,
        "datasources": {"one": {"primary": {"url": "postgresql://app@127.0.0.1:1/one"}}},
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": {"acme": {"datasource": "one", "schema": "acme"}},
    }
    compiled = compile(document).compiled
    assert compiled.provisioning is not None
    assert compiled.provisioning.listed is compiled.admission.directory.map


async def test_a_renamed_tenant_keeps_its_place_from_whoever_takes_its_old_name(site: Site) -> None:
    provisioner = site.provisioner()
    await provisioner.create("acme")
    await provisioner.rename("acme", "hooli")
    with pytest.raises(DataError, match="the tenant 'hooli' has the name"):
        await provisioner.create("acme")
    await provisioner.rename("hooli", "acme")
    assert [record.name for record in await provisioner.list()] == ["acme"]


async def test_a_move_takes_nobodys_place(site: Site) -> None:
    await site.provisioner().create("acme")
    await site.sql("create schema t_acme; create table t_acme.ours (id int)", "two")
    with pytest.raises(DataError, match="tables of another owner"):
        await site.provisioner().move("acme", "two")
    assert await site.sql("select * from t_acme.ours", "two") == []
    await site.sql("drop schema t_acme cascade", "two")
    await site.provisioner().move("acme", "two")
    # What it left behind there is its own.
    await site.provisioner().move("acme", "one")
    assert await site.sql("select name from t_acme.items", "one") == [
        (f"of t_acme in {site.prefix}_one",),
        ("seed of acme",),
    ]


# -- killed


async def kill_at(site: Site, points: Sequence[Point], *arguments: str) -> None:
    """Kill a command at each of these points; each time it is started anew."""
    for step, state in points:
        async with stopped_at(site, step, state, *arguments):
            pass
    done = site.command(*arguments)
    assert done.code == 0, done.err
    assert await site.sql("select * from asgi_datasource.tenant_steps") == []
    assert await site.sql("select * from asgi_datasource.tenant_operations") == []


async def steps_of(site: Site, *arguments: str) -> list[str]:
    """Every step of a command, by what it tells of them as it runs through."""
    done = site.command(*arguments)
    assert done.code == 0, done.err
    return re.findall(rf"^{arguments[0]} {arguments[1]}: (.+)$", done.err, re.MULTILINE)


async def test_making_goes_on_after_a_kill_at_any_step(site: Site, whole: bool) -> None:
    steps = await steps_of(site, "create", "globex")
    assert len(steps) == 7
    await kill_at(site, kill_points(steps, whole=whole), "create", "acme")
    async with site.registry() as registry:
        # Nothing was left out, and nothing was done twice.
        assert await site.items(registry, "acme") == [f"of t_acme in {site.prefix}_one", "seed of acme"]


async def test_moving_goes_on_after_a_kill_at_any_step(site: Site, whole: bool) -> None:
    for name in ("acme", "globex"):
        await site.provisioner().create(name)
    steps = await steps_of(site, "move", "globex", "--to", "two")
    assert len(steps) == 5
    async with stopped_at(site, steps[1], "running", "move", "acme", "--to", "two"):
        pass
    # Nothing else may come in between.
    with pytest.raises(DataError, match="move of 'acme' to 'two' is under way"):
        await site.provisioner().drop("acme")
    await site.provisioner().cancel("acme", Operation.MOVE)
    await kill_at(site, kill_points(steps, whole=whole), "move", "acme", "--to", "two")
    async with site.registry() as registry:
        assert registry.known_tenants["acme"].datasource == "two"
        assert registry.known_tenants["acme"].state.value == "active"
        assert len(await site.items(registry, "acme")) == 2
        async with registry.session("acme") as db:
            await db.execute("insert into items (name) values ('new')")


async def test_dropping_goes_on_after_a_kill_at_any_step(site: Site, whole: bool) -> None:
    for name in ("acme", "globex"):
        await site.provisioner().create(name)
    steps = await steps_of(site, "drop", "globex", "--yes", "globex", "--keep-dump")
    assert len(steps) == 4
    await kill_at(site, kill_points(steps, whole=whole), "drop", "acme", "--yes", "acme", "--keep-dump")
    assert await site.sql("select * from asgi_datasource.tenants") == []
    assert await site.sql("select 1 from pg_namespace where nspname like 't!_%' escape '!'", "one") == []
    dumps = site.folder / "dumps"
    assert [len(list(dumps.glob(f"{name}-*.dump"))) for name in ("acme", "globex")] == [1, 1]
    assert not list(dumps.glob(".*"))


async def test_two_at_once_do_not_meet(site: Site) -> None:
    ok(site.command("list"))
    async with stopped_at(site, "place", "running", "create", "acme"):
        second = site.command("create", "acme")
        assert (second.code, "another process is at work" in second.err) == (2, True)


def test_the_sql_of_policies_is_printed_without_a_configuration(tmp_path: Path) -> None:
    done = Command(tmp_path, "tenants", "sql", "orders", "shop.items", "--column", "owner", "--type", "uuid").wait()
    assert done.code == 0
    assert 'alter table "shop"."items" force row level security;' in done.out
    assert done.out.count("create policy") == 2
    refused = Command(tmp_path, "tenants", "sql", "a b").wait()
    assert (refused.code, "not the name of a table" in refused.err) == (2, True)
