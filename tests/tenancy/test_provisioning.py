"""Tenants made, moved and taken away by the command line; killed at any step, and taken up again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from asgi_datasource import DataError, DataSourceRegistry, compile, load
from asgi_datasource.provisioning import Provisioner, compile_provisioning
from asgi_datasource.testing import EmbeddedCluster
from asgi_datasource.testing.binaries import find_binaries
from tests.cli.run import Ran, run

FILES = {
    "tables.sql": "create table items (id int generated always as identity, name text);"
    " insert into items (name) values ('of ' || current_schema || ' in ' || current_database());",
    "more.sql": "create index items_name on items (name);",
}


async def seed(tenant: Any, connection: psycopg.AsyncConnection[Any]) -> None:
    """A set-up step as an application writes it."""
    await connection.execute("insert into items (name) values (%s)", (f"seed of {tenant.name}",))


@dataclass
class Site:
    """A control database, two databases for schemas, and a server for databases; the configuration is a file."""

    cluster: EmbeddedCluster
    folder: Path
    prefix: str

    @property
    def config(self) -> Path:
        return self.folder / "datasource.json"

    def command(self, *arguments: str) -> Ran:
        return run(
            "tenants", arguments[0], *arguments[1:], "--config", self.config, cwd=self.folder, environ=self.environ
        )

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "asgi_datasource", "tenants", *arguments, "--config", str(self.config)],
            cwd=self.folder,
            env={**os.environ, **self.environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def provisioner(self) -> Provisioner:
        """What the commands run, in this process."""
        return Provisioner(compile_provisioning(load(self.config)))

    def registry(self) -> DataSourceRegistry:
        return compile(self.config)

    async def sql(self, statement: str, database: str = "control") -> list[Any]:
        dbname = database if database.startswith(self.prefix) else f"{self.prefix}_{database}"
        url = self.cluster.nodes["primary"].url(dbname=dbname, user="postgres")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            cursor = await connection.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []

    async def items(self, registry: DataSourceRegistry, tenant: str) -> list[str]:
        async with registry.session(tenant) as db:
            return [row["name"] for row in await db.read.fetch_all("select name from items order by id")]


@pytest.fixture
async def site(cluster: EmbeddedCluster, tmp_path: Path) -> AsyncIterator[Site]:
    prefix = f"site_{os.getpid()}"
    made = Site(cluster, tmp_path, prefix)
    for name in ("control", "one", "two"):
        await cluster.create_database(f"{prefix}_{name}")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    node = cluster.nodes["primary"]

    def server(dbname: str, user: str) -> dict[str, str]:
        return {"url": node.url(dbname=f"{prefix}_{dbname}", user=user)}

    def place(dbname: str) -> dict[str, Any]:
        return {"primary": server(dbname, "app"), "admin": server(dbname, "postgres")}

    own = node.url(dbname="PLACE").replace("PLACE", f"{prefix}_{{tenant}}")
    document = {
        "version": 1,
        "datasources": {
            **{name: place(name) for name in ("control", "one", "two")},
            "own": {"primary": {"url": own}, "admin": {"url": node.url(dbname="postgres", user="postgres")}},
        },
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants_from": {"datasource": "control", "defaults": {"datasource": "one", "schema": "t_{tenant}"}},
        "provisioning": {
            "set_up": ["tables.sql", "tests.tenancy.test_provisioning:seed", "more.sql"],
            "dump_folder": str(tmp_path / "dumps"),
            "programs": str(find_binaries(18).bin_dir),
        },
    }
    made.config.write_text(json.dumps(document))
    yield made
    for [dbname] in await made.sql(f"select datname from pg_database where datname like '{prefix}%'", f"{prefix}_one"):
        if dbname != f"{prefix}_one":
            await cluster.drop_database(dbname)
    await cluster.drop_database(f"{prefix}_one")


async def refreshed(registry: DataSourceRegistry) -> None:
    assert registry.catalog is not None
    await registry.catalog.refresh()


def ok(done: Ran) -> str:
    assert done.code == 0, done.err
    return done.out


async def test_a_tenant_is_made_listed_suspended_renamed_and_dropped(site: Site) -> None:
    assert "ready" in ok(site.command("create", "acme", "--alias", "shop.acme.test", "--max-connections", "3"))
    async with site.registry() as registry:
        assert await site.items(registry, "acme") == [f"of t_acme in {site.prefix}_one", "seed of acme"]
        assert registry.tenant("shop.acme.test").max_connections == 3
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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "a*b"), "cannot be a tenant's name"),
        (("create", "x" * 63), "too long"),
        (("create", "acme", "--datasource", "nowhere"), "needs a datasource"),
        (("suspend", "nobody"), "there is no tenant"),
        (("drop", "nobody", "--yes", "nobody"), "there is no tenant"),
        (("move", "nobody", "--to", "two"), "there is no tenant"),
        (("rename", "nobody", "somebody"), "there is no tenant"),
    ],
)
async def test_what_cannot_be_done_is_said(site: Site, arguments: tuple[str, ...], told: str) -> None:
    done = site.command(*arguments)
    assert done.code == 2
    assert told in done.err
    assert "Traceback" not in done.err


async def test_a_name_cannot_leave_its_place_in_sql(site: Site) -> None:
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
        # Whoever does not know yet reads the old place, and cannot write there any more.
        with pytest.raises(DataError, match="permission denied"):
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
    document = json.loads(site.config.read_text())
    document["tenants_from"]["defaults"] = {"datasource": "own"}
    site.config.write_text(json.dumps(document))
    ok(site.command("create", "acme"))
    async with site.registry() as registry:
        assert await site.items(registry, "acme") == [f"of public in {site.prefix}_acme", "seed of acme"]
        # Dropped under an application that has it open.
        ok(site.command("drop", "acme", "--yes", "acme", "--keep-dump"))
        await refreshed(registry)
        with pytest.raises(DataError, match="no such tenant"):
            await site.items(registry, "acme")
    assert await site.sql(f"select 1 from pg_database where datname = '{site.prefix}_acme'") == []


# -- killed


STOP = """
create function asgi_datasource.stop_there() returns trigger language plpgsql as
$$begin if new.step = '{step}' and new.state = '{state}' then perform pg_sleep(60); end if; return new; end$$;
create trigger stop_there before insert or update on asgi_datasource.tenant_steps
    for each row execute function asgi_datasource.stop_there()
"""


GO_ON = "drop trigger stop_there on asgi_datasource.tenant_steps; drop function asgi_datasource.stop_there()"
STOPPED = "select 1 from pg_stat_activity where wait_event = 'PgSleep' and state = 'active'"


async def kill_at(site: Site, step: str, state: str, *arguments: str) -> None:
    """Start a command, and kill it with SIGKILL where it is about to write that a step begins or has ended."""
    await site.sql(STOP.format(step=step, state=state))
    process = site.start(*arguments)
    try:
        async with asyncio.timeout(60):
            while not await site.sql(
                "select 1 from pg_stat_activity where wait_event = 'PgSleep' and state = 'active'"
            ):
                assert process.poll() is None, f"it ended with {process.returncode} before {step}"
                await asyncio.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    await site.sql("select pg_terminate_backend(pid, 5000) from pg_stat_activity where wait_event = 'PgSleep'")
    await site.sql(
        "drop trigger stop_there on asgi_datasource.tenant_steps; drop function asgi_datasource.stop_there()"
    )


CREATE_STEPS = ["place", "grants", "set-up tables.sql", "set-up more.sql", "activate"]
KILLED = [("place", "running"), ("set-up more.sql", "running"), *((step, "done") for step in CREATE_STEPS)]


@pytest.mark.parametrize(("step", "state"), KILLED)
async def test_making_goes_on_after_a_kill_at_any_step(site: Site, step: str, state: str) -> None:
    await site.provisioner().list()
    await kill_at(site, step, state, "create", "acme")
    await site.provisioner().create("acme")
    async with site.registry() as registry:
        # Nothing was left out, and nothing was done twice.
        assert await site.items(registry, "acme") == [f"of t_acme in {site.prefix}_one", "seed of acme"]
    assert await site.sql("select * from asgi_datasource.tenant_steps") == []


@pytest.mark.parametrize("step", ["stop writes", "fence", "copy", "compare", "switch"])
async def test_moving_goes_on_after_a_kill_at_any_step(site: Site, step: str) -> None:
    await site.provisioner().create("acme")
    await kill_at(site, step, "done", "move", "acme", "--to", "two")
    # Nothing else may come in between.
    if step != "switch":
        with pytest.raises(DataError, match="move of 'acme' is under way"):
            await site.provisioner().drop("acme")
    await site.provisioner().move("acme", "two")
    async with site.registry() as registry:
        assert registry.known_tenants["acme"].datasource == "two"
        assert registry.known_tenants["acme"].state.value == "active"
        assert len(await site.items(registry, "acme")) == 2
        async with registry.session("acme") as db:
            await db.execute("insert into items (name) values ('new')")
    assert await site.sql("select * from asgi_datasource.tenant_steps") == []


@pytest.mark.parametrize("step", ["stop serving", "dump", "take away"])
async def test_dropping_goes_on_after_a_kill_at_any_step(site: Site, step: str) -> None:
    await site.provisioner().create("acme")
    await kill_at(site, step, "done", "drop", "acme", "--yes", "acme", "--keep-dump")
    await site.provisioner().drop("acme", keep_dump=True)
    assert await site.sql("select * from asgi_datasource.tenants") == []
    assert await site.sql("select 1 from pg_namespace where nspname = 't_acme'", "one") == []
    dumps = list((site.folder / "dumps").glob("*.dump"))
    assert dumps
    assert not list((site.folder / "dumps").glob(".*"))


async def test_two_at_once_do_not_meet(site: Site) -> None:
    ok(site.command("list"))
    await site.sql(STOP.format(step="place", state="running"))
    first = site.start("create", "acme")
    try:
        async with asyncio.timeout(60):
            while not await site.sql(STOPPED):
                await asyncio.sleep(0.02)
        second = site.command("create", "acme")
        assert (second.code, "another process is at work" in second.err) == (2, True)
    finally:
        first.kill()
        first.wait(timeout=30)
        await site.sql("select pg_terminate_backend(pid, 5000) from pg_stat_activity where wait_event = 'PgSleep'")
    await site.sql(
        "drop trigger stop_there on asgi_datasource.tenant_steps; drop function asgi_datasource.stop_there()"
    )


def test_the_sql_of_policies_is_printed_without_a_configuration(tmp_path: Path) -> None:
    done = run("tenants", "sql", "orders", "shop.items", "--column", "owner", "--type", "uuid", cwd=tmp_path)
    assert done.code == 0
    assert 'alter table "shop"."items" force row level security;' in done.out
    assert done.out.count("create policy") == 2
    refused = run("tenants", "sql", "a b", cwd=tmp_path)
    assert (refused.code, "not the name of a table" in refused.err) == (2, True)
