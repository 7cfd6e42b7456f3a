"""What a new tenant may take: nothing that is there already, unless it is told to, and nothing reserved."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from asgi_datasource import DataError, DataErrorKind
from asgi_datasource.tenancy.provisioning import tenant_site
from asgi_datasource.tenancy.provisioning.tenant_site import Place
from tests.tenancy.provisioning_site import Site, ok

BARE = {"datasource": "one", "schema": "{tenant}"}


def by_name(site: Site, **defaults: Any) -> None:
    """Places have the names of the tenants, which customers choose at sign-up."""
    site.set(tenants_from={"datasource": "control", "defaults": defaults or BARE})


async def test_a_schema_of_somebody_else_is_refused(site: Site) -> None:
    by_name(site)
    await site.sql("create schema billing; create table billing.cards (pan text)", "one")
    async with site.registry() as registry:
        with pytest.raises(DataError, match="the schema 'billing' is there already") as refused:
            await registry.provision("billing")
        assert refused.value.http_status == 409
    # No trace of it, and no right on it.
    assert await site.provisioner().list() == []
    assert await site.sql("select has_schema_privilege('app', 'billing', 'usage')", "one") == [(False,)]


@pytest.mark.parametrize(
    "name",
    ["public", "pg_catalog", "pg_x", "information_schema", "asgi_datasource", "template0", "template1", "postgres"],
)
async def test_a_reserved_schema_is_nobodys(site: Site, name: str) -> None:
    by_name(site)
    for adopt in (False, True):
        with pytest.raises(DataError, match=f"the schema '{name}' is reserved") as refused:
            await site.provisioner().create(name, adopt=adopt)
        assert refused.value.http_status == 400
    refused_by_command = site.command("create", "acme", "--schema", name, "--adopt")
    assert (refused_by_command.code, "is reserved" in refused_by_command.err) == (2, True)
    assert await site.provisioner().list() == []


async def test_a_shared_schema_is_no_tenants(site: Site) -> None:
    """Also one that is yet to be created: it would be searched for all tenants."""
    document = json.loads(site.config.read_text())
    document["datasources"]["one"]["search_path"] = ["extensions"]
    site.set(datasources=document["datasources"])
    by_name(site)
    with pytest.raises(DataError, match="the schema 'extensions' is reserved"):
        await site.provisioner().create("extensions")


async def test_the_document_may_share_what_it_names(site: Site) -> None:
    """Its own words, the same for every tenant, are no tenant's choice."""
    await site.sql("create role reader; create schema shop; create table shop.items (id int, name text)", "one")
    by_name(site, datasource="one", schema="shop", role="reader", row_security={"app.tenant": "{tenant}"})
    site.set(provisioning={"set_up": ["tests.tenancy.commands:seed"]})
    try:
        await site.provisioner().create("acme")
        await site.provisioner().drop("acme")
        assert await site.sql("select name from shop.items", "one") == [("seed of acme",)]
        assert await site.sql("select from pg_roles where rolname = 'reader'") == [()]
        by_name(site, datasource="one", schema="public", row_security={"app.tenant": "{tenant}"})
        site.set(provisioning={"set_up": []})
        await site.provisioner().create("globex")
    finally:
        await site.drop_role("reader")


async def test_a_place_is_taken_over_when_told_to(site: Site) -> None:
    await site.sql("create schema t_acme; create table t_acme.ours (id int); create role t_acme_role", "one")
    try:
        refused = site.command("create", "acme", "--role", "t_acme_role")
        assert (refused.code, "is there already" in refused.err, "--adopt" in refused.err) == (2, True, True)
        told = site.command("create", "acme", "--role", "t_acme_role", "--adopt")
        assert told.code == 0, told.err
        assert "takes over the schema 't_acme' as it is; it stays when the tenant is dropped" in told.err
        assert "takes over the role 't_acme_role'" in told.err
        ok(site.command("drop", "acme", "--yes", "acme"))
        assert await site.sql("select * from t_acme.ours", "one") == []
        assert await site.sql("select from pg_roles where rolname = 't_acme_role'") == [()]
    finally:
        await site.drop_role("t_acme_role")


async def test_taking_over_goes_on_after_a_failure(site: Site) -> None:
    await site.sql("create schema t_acme", "one")
    (site.folder / "more.sql").write_text("nonsense")
    with pytest.raises(DataError, match="syntax error"):
        await site.provisioner().create("acme", adopt=True)
    (site.folder / "more.sql").write_text("select 1")
    await site.provisioner().create("acme")
    await site.provisioner().drop("acme")
    assert await site.sql("select from pg_namespace where nspname = 't_acme'", "one") == [()]


# -- roles


@pytest.mark.parametrize(
    ("made", "role", "told"),
    [
        ("select 1", "postgres", "is reserved"),
        ("select 1", "app", "is reserved"),
        ("select 1", "pg_read_all_data", "is reserved"),
        ("create role boss superuser", "boss", "has rights of its own"),
        ("create role boss createrole", "boss", "has rights of its own"),
        ("create role boss bypassrls", "boss", "has rights of its own"),
        ("create role boss replication", "boss", "has rights of its own"),
        ("create role boss; grant pg_write_all_data to boss", "boss", "through 'pg_write_all_data'"),
        ("create role boss; grant postgres to boss", "boss", "has rights of its own"),
    ],
)
async def test_the_application_becomes_a_member_of_no_powerful_role(
    site: Site, made: str, role: str, told: str
) -> None:
    await site.sql(made)
    try:
        for adopt in (False, True):
            with pytest.raises(DataError, match=told):
                await site.provisioner().create("acme", role=role, adopt=adopt)
        assert await site.sql(f"select pg_has_role('app', '{role}', 'member')") == [(role == "app",)]
        assert await site.provisioner().list() == []
    finally:
        if "boss" in made:
            await site.drop_role("boss")


async def test_a_role_of_somebody_else_is_refused(site: Site) -> None:
    await site.sql("create role payroll")
    try:
        by_name(site, datasource="one", schema="t_{tenant}", role="{tenant}")
        with pytest.raises(DataError, match="the role 'payroll' is there already"):
            await site.provisioner().create("payroll")
    finally:
        await site.drop_role("payroll")


async def test_a_role_that_a_listed_tenant_has_outlives_another_one(site: Site) -> None:
    role = f"{site.prefix}_readers"
    site.set(tenants={"listed": {"datasource": "two", "schema": "listed", "role": role}})
    try:
        await site.provisioner().create("acme", role=role)
        await site.provisioner().drop("acme")
        assert await site.sql(f"select from pg_roles where rolname = '{role}'") == [()]
    finally:
        await site.drop_role(role)


# -- databases


async def test_a_database_of_somebody_else_is_refused(site: Site) -> None:
    document = json.loads(site.config.read_text())
    own = document["datasources"]["own"]
    own["primary"]["url"] = own["primary"]["url"].replace(f"{site.prefix}_{{tenant}}", "{tenant}")
    site.set(
        datasources=document["datasources"],
        tenants_from={"datasource": "control", "defaults": {"datasource": "own"}},
        provisioning={"set_up": []},
    )
    for name in ("postgres", "template1", f"{site.prefix}_control"):
        for adopt in (False, True):
            with pytest.raises(DataError, match=f"the database '{name}' is reserved"):
                await site.provisioner().create(name, adopt=adopt)
    billing = f"{site.prefix}_billing"
    await site.cluster.create_database(billing)
    with pytest.raises(DataError, match=f"the database '{billing}' is there already"):
        await site.provisioner().create(billing)
    assert await site.provisioner().list() == []
    await site.provisioner().create(billing, adopt=True)
    await site.provisioner().drop(billing)
    assert await site.sql(f"select from pg_database where datname = '{billing}'") == [()]


async def test_a_schema_that_came_with_the_template_is_the_tenants(site: Site) -> None:
    template = f"{site.prefix}_template"
    await site.cluster.create_database(template, owner="postgres")
    await site.sql("create schema shop; create table shop.items (id int, name text)", template)
    site.set(
        tenants_from={"datasource": "control", "defaults": {"datasource": "own", "schema": "{tenant}"}},
        provisioning={"set_up": [], "template": template},
    )
    await site.provisioner().create("shop")
    await site.provisioner().drop("shop")
    assert await site.sql(f"select from pg_database where datname = '{site.prefix}_shop'") == []


async def test_a_tenant_without_a_database_yet_can_be_dropped(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    role = f"{site.prefix}_acme"

    async def refuse(*_: Any, **__: Any) -> None:
        raise DataError(DataErrorKind.CONFIG, "not today")

    with monkeypatch.context() as patched:
        patched.setattr(tenant_site, "check_role", refuse)
        with pytest.raises(DataError, match="not today"):
            await site.provisioner().create("acme", datasource="own", role=role)
    [record] = await site.provisioner().list()
    assert record.made == {"role"}
    await site.provisioner().drop("acme")
    assert await site.sql(f"select from pg_roles where rolname = '{role}'") == []


async def test_only_the_application_connects_to_a_tenants_database(site: Site) -> None:
    stranger = f"{site.prefix}_stranger"
    await site.cluster.create_role(stranger)
    site.set(tenants_from={"datasource": "control", "defaults": {"datasource": "own"}})
    try:
        await site.provisioner().create("acme")
        url = site.cluster.primary.url(dbname=f"{site.prefix}_acme", user=stranger)
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            await psycopg.AsyncConnection.connect(url)
        # As well after it has moved.
        document = json.loads(site.config.read_text())
        other = json.dumps(document["datasources"]["own"]).replace(f"{site.prefix}_", f"{site.prefix}_other_")
        site.set(datasources={**document["datasources"], "other": json.loads(other)})
        await site.provisioner().move("acme", "other")
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            await psycopg.AsyncConnection.connect(url.replace(f"{site.prefix}_acme", f"{site.prefix}_other_acme"))
    finally:
        await site.sql(f"drop role {stranger}")


# -- names


@pytest.mark.parametrize("name", ["Acme", "-acme", "acme.example", "a b", "x" * 64])
async def test_a_tenants_name_matches_the_pattern(site: Site, name: str) -> None:
    """No request could name it otherwise."""
    with pytest.raises(DataError, match=r"cannot be a tenant's name: see tenancy.pattern"):
        await site.provisioner().create(name)
    await site.provisioner().create("acme")
    with pytest.raises(DataError, match=r"cannot be a tenant's name: see tenancy.pattern"):
        await site.provisioner().rename("acme", name)
    assert [record.name for record in await site.provisioner().list()] == ["acme"]


async def test_the_length_of_a_name_is_counted_in_bytes(site: Site) -> None:
    """PostgreSQL cuts off what is beyond 63 of them, and two tenants would meet in one schema."""
    site.set(tenancy={"resolve": [{"header": "X-Tenant"}], "pattern": ".*"})
    with pytest.raises(DataError, match="is too long for a name in the database"):
        await site.provisioner().create("ü" * 31)  # and two for `t_`
    await site.provisioner().create("ü" * 30)
    with pytest.raises(DataError, match="is too long for a name in the database"):
        await site.provisioner().create("x" * 55, datasource="own", schema="own")


# -- a process that died, and another that came in between


@pytest.mark.parametrize("look", [1, 2], ids=["before it is noted", "before it is created"])
async def test_what_another_process_creates_meanwhile_is_not_the_tenants(
    site: Site, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    has, looks = Place._has, 0

    async def late(place: Place, part: str, admin: Any) -> bool:
        nonlocal looks
        found = await has(place, part, admin)
        looks += part == "schema"
        if part == "schema" and looks == look:
            await site.sql("create schema t_acme; create table t_acme.ours (id int)", "one")
        return found

    monkeypatch.setattr(Place, "_has", late)
    with pytest.raises(DataError, match="is there already"):
        await site.provisioner().create("acme")
    monkeypatch.undo()
    [record] = await site.provisioner().list()
    assert record.made == frozenset()
    await site.provisioner().drop("acme")
    assert await site.sql("select from pg_tables where tablename = 'ours'", "one") == [()]


async def test_what_was_noted_and_is_another_roles_is_not_the_tenants(site: Site) -> None:
    """The process has died between the note and the command, and the application has a schema of that name now."""
    (site.folder / "tables.sql").write_text("nonsense")
    with pytest.raises(DataError):
        await site.provisioner().create("acme")
    await site.sql("delete from asgi_datasource.tenant_steps where step = 'place'")
    await site.sql("drop schema t_acme cascade; create schema t_acme authorization app", "one")
    with pytest.raises(DataError, match="the schema 't_acme' is there already"):
        await site.provisioner().create("acme")
    await site.provisioner().drop("acme")
    assert await site.sql("select from pg_namespace where nspname = 't_acme'", "one") == [()]
