"""The samples of the documentation work."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import asgi_datasource
from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, load, session
from asgi_datasource.asgi.problem_details import ProblemDetails
from asgi_datasource.registry.runtime_config import ErrorSettings
from asgi_datasource.testing import serve
from tests.apps import client
from tests.asgi_call import Call
from tests.docs.samples import ROOT, Sample, samples
from tests.world import World


def is_for_this_version(sample: Sample) -> bool:
    """Whether a sample has no title that names a newer version of Python than the running one."""
    needed = re.fullmatch(r"Python 3\.(\d+)", sample.title or "")
    return needed is None or sys.version_info >= (3, int(needed[1]))


@pytest.mark.parametrize("sample", [*filter(is_for_this_version, samples("python"))], ids=str)
def test_python_sample_compiles(sample: Sample) -> None:
    compile(sample.text, str(sample), "exec", flags=0x2000)  # top-level await is allowed in a sample


def run(sample: Sample) -> dict[str, Any]:
    """Run a sample without top-level await; the library's names need no import."""
    names = {name: getattr(asgi_datasource, name) for name in asgi_datasource.__all__}
    names["JSONResponse"] = JSONResponse
    exec(compile(sample.text, str(sample), "exec"), names)
    return names


async def test_the_application_of_the_readme_serves_orders(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, node in (("PRIMARY", "primary"), ("R1", "r1"), ("R2", "r2")):
        monkeypatch.setenv(f"ORDERS_{name}_URL", world.url(node))
    (tmp_path / "datasource.yaml").write_text(samples("yaml", "README.md")[0].text)
    monkeypatch.chdir(tmp_path)
    app = run(samples("python", "README.md")[0])["app"]
    async with (
        serve(app) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}) as http,
    ):
        placed = await http.post("/orders")
        assert placed.status_code == 201
        assert placed.json()["item"] == "tea"
        await asyncio.to_thread(world.cluster.wait_caught_up)
        assert (await http.get("/orders")).json() == [placed.json()]
        assert (await http.get("/orders", headers={"X-Tenant": "nobody"})).status_code == 404


def test_the_configuration_of_the_readme_is_valid() -> None:
    source = samples("yaml", "README.md")[0].text
    environ = dict.fromkeys(("ORDERS_PRIMARY_URL", "ORDERS_R1_URL", "ORDERS_R2_URL"), "postgresql://db.example/orders")
    environ = {name: url + name for name, url in environ.items()}
    import yaml

    assert set(load(yaml.safe_load(source), environ=environ).tenants) == {"acme", "globex"}


CONFIGURATIONS = [
    sample for page in ("routing", "consistency", "deployment") for sample in samples("yaml", f"docs/{page}.md")
]


@pytest.mark.parametrize("sample", CONFIGURATIONS, ids=str)
def test_configurations_are_valid(sample: Sample) -> None:
    import yaml

    urls = {
        f"ORDERS_{name}_URL": f"postgresql://{name.lower()}.example/orders" for name in ("PRIMARY", "R1", "R2", "ADMIN")
    }
    assert load(yaml.safe_load(sample.text), environ={**urls, "TOKEN_SECRET": "a secret of 16 or more"}).datasources


async def test_the_python_of_the_pages_about_routing(world: World, tmp_path: Path, capsys: Any) -> None:
    names: dict[str, Any] = {}
    for sample in [*samples("python", "docs/routing.md"), *samples("python", "docs/consistency.md")]:
        names |= run(sample)
    file = tmp_path / "datasource.json"
    file.write_text(json.dumps(world.config(consistency={"token": "cookie", "secret": "a secret of 16 or more"})))
    registry = asgi_datasource.compile(file)
    async with client(world, [Route("/orders", names["list_orders"])], registry=registry) as http:
        assert (await http.get("/orders")).json() == []
        assert await names["place_and_read"](registry) == 1
        assert (await names["why"](registry))["version"] == 1
        file.write_text(json.dumps(world.config(replicas=("r1",))))
        await names["change"](registry)
    told = capsys.readouterr().out
    assert "orders → r1 (balanced)" in told
    assert "primary spared a replica may answer" in told
    assert "pools: 0 opened, 1 retired, 2 kept" in told


def test_the_explanation_of_the_routing_page(tmp_path: Path) -> None:
    from tests.cli.run import run as run_program

    (tmp_path / "datasource.yaml").write_text(samples("yaml", "docs/routing.md")[0].text)
    (tmp_path / "state.json").write_text(samples("json", "docs/routing.md")[0].text)
    [command] = [sample.text for sample in samples("console", "docs/routing.md") if "explain" in sample.text]
    done = run_program(*command.split()[2:], cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out == samples("text", "docs/routing.md")[0].text


async def test_the_annotations_of_the_transactions_page(world: World) -> None:
    names = run(samples("python", "docs/transactions.md")[0])
    assert {"place_order", "report", "transfer"} <= set(names)


async def test_the_block_and_the_later_session_of_the_transactions_page(world: World) -> None:
    await world.sql("create table coupons (code text unique); alter table coupons owner to app")
    await world.sql("create table notes (text text); alter table notes owner to app")
    await world.sql("alter table orders add column receipt_sent bool; alter table orders alter item drop not null")
    await world.sql("alter table orders drop constraint orders_item_key")
    place = run(sample_with("coupons"))["place"]
    send_receipt = run(sample_with("async def send_receipt"))["send_receipt"]
    async with world.registry() as registry:
        await place_twice(registry, place)
        async with registry.session(tenant="acme") as db:
            await send_receipt(db)
    assert await world.sql("select item, receipt_sent from orders") == [("tea", True)] * 2
    assert await world.sql("select code from coupons") == [("once",)]
    assert await world.sql("select text from notes") == [("coupon was used before",)]


def sample_with(text: str) -> Sample:
    """The sample of the transactions page that contains this text."""
    return next(sample for sample in samples("python", "docs/transactions.md") if text in sample.text)


async def test_the_service_functions_of_the_transactions_page(world: World) -> None:
    await world.sql("create table stock (item text, left_over int); alter table stock owner to app")
    await world.sql("insert into stock values ('tea', 3)")
    names = run(sample_with("update stock"))
    async with world.registry() as registry, registry.session(tenant="acme"):
        await names["place"]("tea")
    assert await world.sql("select left_over from stock") == [(2,)]
    assert await world.items() == ["tea"]


async def test_the_retry_the_export_and_the_hook_of_the_transactions_page(world: World) -> None:
    await world.sql("create table accounts (owner text, balance int); alter table accounts owner to app")
    await world.sql("insert into accounts values ('anna', 15)")
    await world.sql("alter table orders add column receipt_sent bool")
    await world.sql("insert into orders (item) values ('tea'), ('milk')")
    await world.cluster.caught_up()
    withdraw = run(sample_with("async def withdraw"))["withdraw"]
    export = run(sample_with("async def export"))["export"]
    send_mail = run(sample_with("async def send_mail"))["send_mail"]
    routes = [Route("/withdraw", withdraw, methods=["POST"]), Route("/export", export)]
    registry = world.registry()
    async with client(world, routes, registry=registry) as http:
        assert [(await http.post("/withdraw")).status_code for _ in range(2)] == [200, 422]
        assert (await http.get("/export")).text == "tea\nmilk\n"
        async with registry.session(tenant="acme") as db:
            await db.execute("delete from orders where item = 'milk'")
            db.after_commit(send_mail)
    assert await world.sql("select item, receipt_sent from orders") == [("tea", True)]


async def test_the_locks_and_the_tasks_of_the_transactions_page(world: World) -> None:
    await world.sql("create table invoices (number int); alter table invoices owner to app")
    await world.sql("create table jobs (id int, payload text); alter table jobs owner to app")
    await world.sql("create table seats (id int, taken bool); alter table seats owner to app")
    await world.sql("insert into jobs values (1, 'first'), (2, 'second'); insert into seats values (1, false)")
    close_month = run(sample_with("async def close_month"))["close_month"]
    queue = run(sample_with("async def next_job"))
    async with world.registry() as registry:
        async with registry.session("acme") as one, registry.session("acme") as other:
            await close_month(one)
            assert await queue["next_job"](one) == {"payload": "first"}
            assert await queue["next_job"](other) == {"payload": "second"}
            assert [await queue["reserve_seat"](db) for db in (one, other)] == [1, None]
        async with registry.session("acme") as db:
            assert await run(sample_with("async def dashboard"))["dashboard"](db) == [0, []]
    assert await world.sql("select number from invoices") == [(1,)]


async def test_the_handlers_of_the_errors_page(world: World) -> None:
    advice, handlers, function = (run(sample) for sample in samples("python", "docs/errors.md"))

    async def place(request: Request) -> JSONResponse:
        await session(request).execute("insert into orders (item) values ('tea')")
        return JSONResponse({}, status_code=201)

    routes = [Route("/", place, methods=["POST"])]
    registry = world.registry()
    own = {DataError: handlers["data_error"], 503: handlers["busy"]}
    async with client(world, routes, registry=registry, exception_handlers=own) as http:
        assert (await http.post("/")).status_code == 201
        assert (await http.post("/")).json() == {"error": "constraint", "constraint": "orders_item_key"}
    errors = ErrorSettings(handler=function["render"])
    for error, status, start in [
        (DataError(DataErrorKind.TENANT, "x"), 404, b"<h1>Unknown shop"),
        (DataError(DataErrorKind.CONFLICT, "x"), 409, b'{"error": "The request conflicts'),
        (DataError(DataErrorKind.RESOURCE, "x"), 503, b'{"type": "urn:asgi-datasource:problem:resource"'),
    ]:
        call = Call()
        await ProblemDetails(errors).send(error, call.scope, call.receive, call.send)
        assert (call.status, call.body[: len(start)]) == (status, start)
    assert advice["advice"](DataError(DataErrorKind.CONFLICT, "x")) == "try again"


async def place_twice(registry: DataSourceRegistry, place: Any) -> None:
    for _ in range(2):
        async with registry.session(tenant="acme") as db:
            await place(db)


def test_the_driver_of_the_drivers_page_is_the_one_that_is_tested() -> None:
    driver, contract = samples("python", "docs/drivers.md")
    assert driver.text.strip() == Path("tests/drivers/sqlite_driver.py").read_text().strip()
    assert "TestSqlite" in run(contract)


def test_the_configuration_of_the_drivers_page_is_valid() -> None:
    import yaml

    document = yaml.safe_load(samples("yaml", "docs/drivers.md")[0].text)
    assert load(document).datasources["notes"].driver == "shop.sqlite:DRIVER"


def test_the_files_that_the_documentation_names_exist() -> None:
    missing = [
        f"{page.name}: {name}"
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for name in re.findall(r"(?<![\w./])((?:[a-z_]+/)+[a-z_]+\.py)\b", page.read_text())
        if not any((ROOT / folder / name).exists() for folder in ("", "asgi_datasource", "tests"))
    ]
    assert missing == []


PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_existing_files_and_headings(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_scripts_name_existing_tests() -> None:
    named = {
        name
        for script in (ROOT / "scripts").iterdir()
        if script.is_file()
        for name in re.findall(r"\btests(?:/\w+)+(?:\.py)?", script.read_text())
    }
    assert "tests/sessions/test_programs.py" in named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
