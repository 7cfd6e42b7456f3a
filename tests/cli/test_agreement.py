"""The commands agree with each other: how the file is named, where modules are found, and what messages lead to."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgi_datasource.config import TenantConfig, load
from tests.cli.run import Ran, call

ROOT = Path(__file__).parent.parent.parent
CONFIG = """\
version: 1
datasources:
  orders:
    primary: {url: "${ORDERS_PRIMARY_URL}"}
    replicas: {r1: {url: "${ORDERS_R1_URL}"}, r2: {url: "${ORDERS_R2_URL}"}}
    routing: {max_lag: 5s}
tenancy: {resolve: [{header: X-Tenant}]}
tenants: {acme: {datasource: orders, schema: acme}}
"""
URLS = {name: f"host=/nowhere/{name}" for name in ("ORDERS_PRIMARY_URL", "ORDERS_R1_URL", "ORDERS_R2_URL")}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "other.yaml").write_text(CONFIG)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("shop_of_agreement"):
            del sys.modules[name]


def ran(folder: Path, line: str) -> Ran:
    return call(*line.split(), cwd=folder, environ={**URLS, "DATABASE_URL": ""})


# -- the file


@pytest.mark.parametrize(
    "line",
    [
        "validate {}",
        "explain --tenant acme {}",
        "show {}",
        "diff other.yaml {}",
        "check {}",
        "tenants create globex --schema globex {}",
        "tenants list {}",
        "migrate plan {}",
        "migrate new add_orders --scope shared {}",
        "outbox status {}",
        "outbox dead replay 3f2b0e0e-0000-4000-8000-000000000000 {}",
        "init --force {}",
    ],
)
def test_the_file_is_an_argument_or_an_option(line: str, folder: Path) -> None:
    as_argument, as_option = (ran(folder, line.format(file)) for file in ("other.yaml", "--config other.yaml"))
    assert as_argument == as_option
    assert "there is no datasource.yaml" not in as_argument.err
    both = ran(folder, line.format("other.yaml --config missing.yaml"))
    assert "two configurations are named" in both.err or "missing.yaml" in both.err + both.out
    assert ran(folder, line.format("other.yaml what.yaml extra.yaml")).code == 2 or line.startswith("validate")


# -- modules of the application


@pytest.mark.parametrize("key", ["resolve: [{callable: 'NAME'}]", "resolve: [{header: X}], authorize: 'NAME'"])
def test_modules_of_the_working_directory_are_found(key: str, folder: Path) -> None:
    def config(name: str) -> Ran:
        text = CONFIG.replace("resolve: [{header: X-Tenant}]", key.replace("NAME", name))
        (folder / "datasource.yaml").write_text(text)
        return ran(folder, "explain --tenant acme")

    (folder / "shop_of_agreement.py").write_text("def find(*_): return None\nengine = 'postgresql://db/shop'\n")
    assert config("shop_of_agreement:find").code == 0
    assert ran(folder, "init --stdout --object shop_of_agreement:engine").code == 0
    missing = config("shop_of_agreement.tenants:find").err
    assert "there is no module 'shop_of_agreement.tenants' in" in missing
    assert "shop_of_agreement has no 'nothing'" in config("shop_of_agreement:nothing").err
    (folder / "shop_of_agreement_2.py").write_text("import redis_of_agreement\n")
    assert "it imports 'redis_of_agreement', which is not installed" in config("shop_of_agreement_2:find").err
    (folder / "shop_of_agreement_3.py").write_text("x = {}['hunter2']\n")
    broken = config("shop_of_agreement_3:find").err
    assert "it fails when it is imported: KeyError in" in broken
    assert "shop_of_agreement_3.py, line 1" in broken
    assert "hunter2" not in broken


# -- explanations


def test_a_rule_prints_what_the_documentation_says() -> None:
    page = (ROOT / "docs" / "diagnostics.md").read_text()
    section = page.split("## ADS021\n\n")[1].split("\n## ")[0].split("\n<!-- end")[0]
    assert call("rule", "ads021").out == f"ADS021 {section.strip()}\n"


def test_servers_may_be_assumed_down_or_late(folder: Path) -> None:
    assert "GET / → r2 (balanced)" in ran(folder, "explain other.yaml --tenant acme --down r1").out
    late = ran(folder, "explain other.yaml --tenant acme --down orders.r1 --lag r2=7s").out
    assert "GET / → primary" in late
    assert "its data may be 7.0 s old" in late
    (folder / "state.json").write_text('{"version": 1, "datasources": {"orders": {"servers": {"r2": {"age_s": 0.1}}}}}')
    line = "explain other.yaml --tenant acme --state state.json --format json"
    verdicts = [
        {server["node"]: server["verdict"] for server in json.loads(ran(folder, each).out)["servers"]}
        for each in (line, f"{line} --down r2")
    ]
    assert [each["r2"] for each in verdicts] == ["chosen", "down"]
    assert (
        "there is no server 'r9'. There are: orders.r1, orders.r2, orders.primary."
        in ran(folder, "explain other.yaml --tenant acme --down r9").err
    )
    assert "Write it as r1=3s." in ran(folder, "explain other.yaml --tenant acme --lag r1=3").err


def test_a_tenant_of_a_catalog_is_taken_to_be_there_with_its_defaults(folder: Path) -> None:
    (folder / "other.yaml").write_text(
        CONFIG + "tenants_from: {datasource: orders, query: select 1 as name,"
        " defaults: {datasource: orders, schema: '{tenant}'}}\n"
    )
    done = ran(folder, "explain other.yaml --header X-Tenant:globex")
    assert done.code == 0, done.err
    assert "tenant    globex, on orders (schema, active)" in done.out
    assert "The tenant 'globex' is taken to be in the table of tenants_from" in done.out
    found = json.loads(ran(folder, "explain other.yaml --tenant globex --format json").out)
    assert found["assumed_tenants"] == ["globex"]
    assert ran(folder, "explain other.yaml --tenant Not.A.Name").code == 1


# -- fixes


def test_a_fix_leaves_alone_what_resembles_two_keys_and_finds_what_is_below_a_misspelt_one(folder: Path) -> None:
    text = """\
version: 1
datasources:
  orders:
    prmary: {ur: host=db}
    pool: {size: 3, max_sizze: 5, max_siz: 4}
tenancy: {resolv: [{heder: X}, {header: 5}], default: orders2}
"""
    (folder / "wrong.yaml").write_text(text)
    found = ran(folder, "validate wrong.yaml --format concise").out
    for place in ("prmary:", "prmary.ur:", "tenancy.resolv[0].heder:", "tenancy.resolv[1].header:"):
        assert place in found
    assert ran(folder, "validate --fix wrong.yaml").code == 1
    assert (folder / "wrong.yaml").read_text() == (
        text.replace("prmary: {ur:", "primary: {url:")
        .replace("resolv: [{heder:", "resolve: [{header:")
        .replace("header: 5", "header: '5'")
        .replace("header: '5'", 'header: "5"')
    )


# -- first files and models


def test_init_writes_the_schema_that_the_file_names(folder: Path) -> None:
    (folder / "conf").mkdir()
    done = ran(folder, "init conf/datasource.yaml --format json")
    assert json.loads(done.out)["schema"] == "conf/datasource.schema.json"
    assert "$schema=./datasource.schema.json" in (folder / "conf" / "datasource.yaml").read_text()
    schema = json.loads((folder / "conf" / "datasource.schema.json").read_text())
    assert schema == json.loads((ROOT / "datasource.schema.json").read_text())
    assert "{" not in ran(folder, "init --stdout").err


def test_a_tenant_reads_as_it_prints(folder: Path) -> None:
    acme = load(folder / "other.yaml", environ=URLS).tenants["acme"]
    assert isinstance(acme, TenantConfig)
    assert (acme.schema, acme.schema_name) == ("acme", "acme")
    assert "schema='acme'" in repr(acme)
