"""The pages for applications that come from elsewhere: what they show before and after runs, and does the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgi_datasource import compile
from asgi_datasource.testing import serve
from tests.docs.samples import load, titled
from tests.world import World

ACME, GLOBEX = {"X-Tenant": "acme"}, {"X-Tenant": "globex"}


@pytest.fixture
def folder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the applications, with the addresses of the world's servers in the environment."""
    for name in ("ORDERS", "SHOP"):
        monkeypatch.setenv(f"{name}_PRIMARY_URL", world.url())
        monkeypatch.setenv(f"{name}_R1_URL", world.url("r1"))
    monkeypatch.setenv("TOKEN_SECRET", "a secret of 16 or more")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def module(folder: Path, page: str, title: str) -> Any:
    """The Python file of a page, imported."""
    path = folder / title
    path.write_text(titled(f"docs/coming-from/{page}.md", title))
    return load(path)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(app) as server, httpx.AsyncClient(base_url=server.url) as http:
        yield http


def write_config(folder: Path, page: str) -> None:
    (folder / "datasource.yaml").write_text(titled(f"docs/coming-from/{page}.md", "datasource.yaml"))


@pytest.mark.parametrize("title", ["before.py", "after.py"])
@pytest.mark.parametrize("page", ["sqlalchemy", "asyncpg"])
async def test_orders_before_and_after(
    page: str, title: str, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(folder, "rails")
    if (page, title) == ("sqlalchemy", "before.py"):
        for variable, node in (("ORDERS_PRIMARY_URL", "primary"), ("ORDERS_R1_URL", "r1")):
            monkeypatch.setenv(variable, world.url(node).replace("postgresql://", "postgresql+psycopg://"))
    example = module(folder, page, title)
    async with served(example.app) as http:
        placed = await http.post("/orders", params={"item": "tea"}, headers=ACME)
        assert (placed.status_code, placed.json()["item"]) == (201, "tea")
        await world.cluster.caught_up()
        for headers, items in ((ACME, ["tea"]), (GLOBEX, [])):
            assert [order["item"] for order in (await http.get("/orders", headers=headers)).json()] == items
    for name in ("primary", "replica"):
        if hasattr(example, name):
            await getattr(example, name).dispose()
    assert await world.items() == ["tea"]


async def test_tenants_of_django_tenants(world: World, folder: Path) -> None:
    await world.sql(
        "create table public.customers_client (id int primary key, schema_name text);"
        "create table public.customers_domain (domain varchar(253), tenant_id int);"
        "insert into public.customers_client values (1, 'public'), (2, 'acme'), (3, 'globex');"
        "insert into public.customers_domain values ('shop.example', 1), ('acme.example', 2), ('globex.example', 3);"
        "grant select on public.customers_client, public.customers_domain to app"
    )
    for schema in ("acme", "globex"):
        await world.sql(
            "alter table orders alter item set default 'tea', add reminded bool, add due date default '2020-01-01'",
            schema=schema,
        )
    write_config(folder, "django-tenants")
    example = module(folder, "django-tenants", "after.py")
    async with served(example.app) as http:
        assert (await http.post("/orders", headers={"host": "acme.example"})).status_code == 201
        assert (await http.post("/orders", headers={"host": "other.example"})).status_code == 400
    async with compile("datasource.yaml") as registry:
        await example.remind(registry)
    assert await world.sql("select item, reminded from orders") == [("tea", True)]
    assert await world.items("globex") == []


async def test_reads_and_writes_of_rails(world: World, folder: Path) -> None:
    write_config(folder, "rails")
    async with served(module(folder, "rails", "after.py").app) as http:
        created = await http.post("/orders", json={"item": "tea"}, headers=ACME)
        assert created.status_code == 201
        found = await http.post("/orders/search", json={"item": "tea"}, headers=ACME)
        assert found.json() == [created.json()]


async def test_transactions_of_spring(world: World, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await world.sql("create table audits (what text); alter table audits owner to app")
    orders = module(folder, "spring", "orders.py")
    async with world.registry() as registry:
        async with registry.session(tenant="acme"):
            number = await orders.place("tea")
        with pytest.raises(RuntimeError):
            async with registry.session(tenant="acme") as db, db.transaction():
                await orders.place("milk")
                raise RuntimeError
        await world.cluster.caught_up()
        async with registry.session(tenant="acme"):
            assert await orders.all_orders() == [{"id": number, "item": "tea"}]
    assert len(await world.sql("select what from audits")) == 2
    assert capsys.readouterr().out == f"placed {number}\n"
