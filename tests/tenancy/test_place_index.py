"""`"*"` and the defaults of a catalog expand no name to a place in use, nor to one that does not exist."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import ConfigError, DataError, DataErrorKind, DataSourceRegistry, compile, session
from asgi_datasource.config import Code, examine
from asgi_datasource.tenancy import place_index
from tests.apps import client
from tests.world import World

SHARED = "postgresql://app@db.test/orders"


def document(star: dict[str, Any], *, url: str = SHARED, **more: Any) -> dict[str, Any]:
    tenants = {"*": {"datasource": "d", **star}, **more.pop("tenants", {})}
    datasources = {"d": {"primary": {"url": url}, **more.pop("datasource", {})}, **more.pop("datasources", {})}
    tenancy = {"resolve": [{"header": "X-Tenant"}], "pattern": "[^ ]+"}
    return {"version": 1, "datasources": datasources, "tenancy": tenancy, "tenants": tenants, **more}


def served(made: DataSourceRegistry, *names: str) -> list[str]:
    """Those of some names that have a tenant; the others have none, in the words of an unknown one."""
    found: list[str] = []
    for name in names:
        try:
            found.append(str(made.tenant(name).name))
        except DataError as error:
            looks = (error.kind, error.http_status, error.message)
            if looks != (DataErrorKind.TENANT, 404, "there is no such tenant"):
                raise
    return found


# -- what is the server's, another datasource's, or the library's


def test_no_name_is_a_schema_that_is_no_tenants() -> None:
    made = compile(document({"schema": "{tenant}"}, datasource={"search_path": ["extensions"]}))
    reserved = ["public", "pg_catalog", "pg_toast", "pg_temp", "pg_x", "information_schema", "asgi_datasource", "$user"]
    assert served(made, *reserved, "extensions", "app", "pg", "acme", "Public") == ["pg", "acme", "Public"]


def test_a_template_keeps_what_is_reserved_out_by_itself() -> None:
    made = compile(document({"schema": "t_{tenant}"}))
    assert served(made, "public", "pg_catalog", "app") == ["public", "pg_catalog", "app"]
    made = compile(document({"schema": "p{tenant}_x"}))
    assert served(made, "g", "g_", "gx", "h", "ublic") == ["gx", "h", "ublic"]
    made = compile(document({"schema": "{tenant}{tenant}"}))
    assert served(made, "pg_", "pg", "a") == ["pg", "a"]


def test_no_name_is_a_database_that_is_no_tenants() -> None:
    admin = {"admin": {"url": "postgresql://boss@db.test/maintenance"}}
    others = {
        "control": {"primary": {"url": "host=DB.test dbname=control user=app"}},
        "far": {"primary": {"url": "postgresql://app@elsewhere.test/far"}},
    }
    made = compile(
        document(
            {},
            url="postgresql://app@db.test:5432/{tenant}",
            datasource=admin,
            datasources=others,
            provisioning={"template": "blank"},
        )
    )
    names = ("postgres", "template0", "template1", "control", "maintenance", "blank", "far", "acme", "x" * 64)
    assert served(made, *names) == ["far", "acme"]


def test_no_name_is_a_role_that_is_no_tenants() -> None:
    made = compile(document({"role": "{tenant}"}, datasource={"admin": {"url": "postgresql://boss@db.test/postgres"}}))
    names = ("none", "public", "postgres", "pg_read_all_data", "app", "boss", "acme")
    assert served(made, *names) == ["acme"]
    made = compile(document({}, url="postgresql://{tenant}@db.test/{tenant}_db"))
    assert served(made, "postgres", "pg_monitor", "acme") == ["acme"]


def test_the_role_none_is_no_role() -> None:
    with pytest.raises(ConfigError, match="'none' is no role"):
        compile(document({"schema": "{tenant}"}, tenants={"acme": {"datasource": "d", "role": "none"}}))


# -- what is a tenant's

COLLISIONS = [
    ({}, "postgresql://app@db.test/{tenant}", {"database": "globex_2019"}, "globex_2019"),
    ({"database": "c_{tenant}"}, "postgresql://app@db.test/{tenant}", {"database": "c_2019"}, "2019"),
    ({}, "postgresql://app@{tenant}.test/orders", {"database": "old"}, "old"),
    ({}, "postgresql://{tenant}@db.test/orders", {"database": "old"}, "old"),
    ({"schema": "{tenant}"}, SHARED, {"schema": "globex_2019"}, "globex_2019"),
    ({"schema": "t_{tenant}"}, SHARED, {"schema": "t_old"}, "old"),
    ({"row_security": {"app.tenant": "{tenant}"}}, SHARED, {"row_security": {"app.tenant": "42"}}, "42"),
    ({"role": "r_{tenant}"}, SHARED, {"schema": "s", "role": "r_old"}, "old"),
]


@pytest.mark.parametrize(("star", "url", "place", "other"), COLLISIONS)
def test_validate_finds_a_name_that_leads_to_a_listed_tenants_place(
    star: dict[str, Any], url: str, place: dict[str, Any], other: str
) -> None:
    listed = {"globex": {"datasource": "d", **place}}
    [problem] = examine(document(star, url=url, tenants=listed)).errors
    assert (problem.code, problem.key) == (Code.SHARED_PLACE, "tenants.globex")
    assert f"a request for '{other}', which is not listed" in problem.message
    # By another name of its own the tenant is served as itself.
    listed["globex"]["aliases"] = [other]
    made = compile(document(star, url=url, tenants=listed))
    assert served(made, other, "globex", "hooli") == ["globex", "globex", "hooli"]
    # Nor is there anything wrong where no request can have that name, or where it leads elsewhere.
    del listed["globex"]["aliases"]
    narrow = document(star, url=url, tenants=listed)
    narrow["tenancy"]["pattern"] = "globex|[h-n]+"
    assert examine(narrow).errors == ()
    apart = document(star, url=url, tenants={"globex": {"datasource": "e", **place}})
    apart["datasources"]["e"] = {"primary": {"url": url.replace(".test", ".example")}}
    assert examine(apart).errors == ()


def test_two_datasources_that_lead_to_one_place_are_one_place() -> None:
    twin = {"e": {"primary": {"url": "host=DB.TEST port=5432 dbname=orders user=other"}}}
    listed = {"globex": {"datasource": "e", "schema": "old"}}
    [problem] = examine(document({"schema": "{tenant}"}, datasources=twin, tenants=listed)).errors
    assert problem.key == "tenants.globex"


CATALOG = {"datasource": "orders", "refresh": "1h", "miss_interval": "20ms"}


async def with_rows(world: World, *rows: str, star: dict[str, Any], **catalog: Any) -> dict[str, Any]:
    """The world's datasource with rows of a table and something for every other name."""
    await world.sql("create schema catalog; grant usage on schema catalog to app")
    await world.sql(
        "create table catalog.t (name text, schema text, row_security jsonb, role text, database text, is_ready bool)"
    )
    await world.sql("grant select on catalog.t to app")
    for row in rows:
        await world.sql(f"insert into catalog.t (name, schema, row_security, role, is_ready) values ({row})")
    made = world.config(replicas=())
    made["tenants"] = {} if not star else {"*": {"datasource": "orders", **star}}
    made["tenants_from"] = {
        **CATALOG,
        "query": "select * from catalog.t",
        "defaults": {"datasource": "orders"},
        **catalog,
    }
    return made


async def test_no_name_leads_to_the_place_of_a_tenant_of_the_table(world: World) -> None:
    star = {"schema": "{tenant}", "row_security": {"app.tenant": "no {tenant}"}, "role": "r_{tenant}"}
    rows = ("'hooli', 'globex', null, null, true", "'x', 'x', '{\"app.tenant\": \"no 42\"}', null, null")
    made = compile(await with_rows(world, *rows, "'y', 'yy', null, 'r_z', true", star=star))
    async with made:
        assert served(made, "globex", "42", "z", "yy", "acme") == ["acme"]
        # One that comes later has its place as soon as it is known.
        assert served(made, "late-place") == ["late-place"]
        await world.sql("insert into catalog.t (name, schema) values ('late', 'late-place')")
        await made.compiled.admission.find("late")
        assert served(made, "late-place", "late") == ["late"]


async def test_a_tenant_that_is_not_made_yet_is_nobodys(world: World) -> None:
    """Its row says so, and whatever it has already is not served under its name, nor under another one."""
    config = await with_rows(world, "'acme', 'globex', null, null, false", star={"schema": "{tenant}"})
    async with compile(config) as made:
        assert served(made, "acme", "globex", "initech") == ["initech"]
        assert "acme" not in made.known_tenants
        await world.sql("insert into catalog.t (name, is_ready) values ('hooli', false)")
        with pytest.raises(DataError, match="no such tenant"):
            await made.compiled.admission.find("hooli")
        await world.sql("update catalog.t set is_ready = true where name = 'acme'")
        assert made.catalog is not None
        await made.catalog.refresh()
        assert served(made, "acme", "globex") == ["acme"]


async def test_a_row_whose_name_leads_to_somebodys_place_is_left_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("public", "pg_catalog", "asgi_datasource", "shared", "globex", "hooli", "fine", "s1")
    rows = [f"'{name}', null, null, null, null" for name in names]
    rows += ["'explicit', 'hooli', null, null, null", "'s2', 's1', null, null, null", "'S1', 'fine_', null, null, null"]
    config = await with_rows(
        world, *rows, star={}, defaults={"datasource": "orders", "schema": "{tenant}", "limits": {"max_connections": 3}}
    )
    config["datasources"]["orders"]["search_path"] = ["shared"]
    config["tenants"] = {"listed": {"datasource": "orders", "schema": "globex"}}
    async with compile(config) as made:
        assert [tenant.name async for tenant in made.tenants()] == ["S1", "explicit", "fine", "listed", "s2"]
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert sum("a place that is reserved" in text for text in told) == 4
    assert any("a place that belongs to the tenant 'listed'" in text for text in told)
    assert sum("the place of the tenant" in text for text in told) == 2


# -- what is not there


async def read(request: Request) -> Response:
    return JSONResponse(await session(request).read.fetch_value("select count(*) from orders"))


async def write(request: Request) -> Response:
    await session(request).execute("insert into orders (item) values ('tea')")
    return Response(status_code=201)


ROUTES = [Route("/", read), Route("/", write, methods=["POST"])]


async def test_a_schema_that_is_not_there_is_no_tenant_and_falls_through_to_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place_index, "MISSING_FOR_S", 60.0)
    config = world.config()
    config["tenants"] = {"*": {"datasource": "orders", "schema": "{tenant}"}}
    config["datasources"]["orders"]["search_path"] = ["globex"]
    await world.sql("create schema closed; create table closed.orders (id int); grant select on closed.orders to app")
    made = compile(config)
    async with client(world, ROUTES, registry=made) as http:
        for name in ("www", "closed"):
            for method in ("GET", "POST", "GET"):
                answer = await http.request(method, "/", headers={"X-Tenant": name})
                assert (answer.status_code, answer.json()["detail"]) == (404, "there is no such tenant")
            # Known not to be there: no server is asked again.
            assert served(made, name) == []
        assert (await http.get("/")).json() == 0
    assert await world.items("globex") == []


async def test_a_database_that_is_not_there_is_remembered_too(world: World) -> None:
    url = world.cluster.nodes["primary"].url(dbname="PLACE").replace("PLACE", "fleet_{tenant}")
    made = compile(document({}, url=url))
    async with made:
        for _ in range(2):
            with pytest.raises(DataError, match="no such tenant") as caught:
                async with made.session("www") as db:
                    await db.read.fetch_value("select 1")
            assert caught.value.http_status == 404
        assert served(made, "www") == []


async def test_what_is_not_there_is_forgotten_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(place_index, "MOST_MISSING", 3)
    config = world.config(replicas=())
    config["tenants"] = {"*": {"datasource": "orders", "schema": "{tenant}"}}
    made = compile(config)
    missing = made.tenant("late").missing
    assert missing is not None
    monkeypatch.setattr(missing, "_clock", lambda: now[0])

    async def ask(name: str) -> None:
        async with made.session(name) as db:
            await db.read.fetch_value("select 1")

    async with made:
        for name in ("a", "b", "c", "d", "e"):
            with pytest.raises(DataError, match="no such tenant"):
                await ask(name)
        assert len(missing) == 3
        with pytest.raises(DataError, match="no such tenant"):
            await ask("late")
        await world.sql("create schema late authorization app")
        with pytest.raises(DataError, match="no such tenant"):
            await ask("late")
        now[0] += place_index.MISSING_FOR_S + 0.1
        await ask("late")


async def test_an_error_of_the_applications_own_does_not_make_a_tenant_missing(world: World) -> None:
    config = world.config(replicas=())
    config["tenants"] = {"*": {"datasource": "orders", "schema": "{tenant}"}}
    async with compile(config) as made, made.session("acme") as db:
        with pytest.raises(DataError) as caught:
            async with db.transaction():
                await db.write.execute("create table nowhere.orders (id int)")
        assert caught.value.sqlstate == "3F000"
        assert caught.value.kind is not DataErrorKind.TENANT
        assert served(made, "acme") == ["acme"]
