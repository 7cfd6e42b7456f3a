"""`diff` explains what a change means for tenants, `show` prints the origin of every value; neither prints a secret."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.cli.run import call

ROOT = Path(__file__).parent.parent.parent
PASSWORD = "hunter2-Tr0ub4dor"
OLD: dict[str, Any] = {
    "version": 1,
    "datasources": {
        "orders": {
            "primary": {"url": "${ORDERS_URL}"},
            "replicas": {"r1": {"url": "${R1_URL}"}, "r2": {"url": {"file": "secrets/r2"}}},
            "pool": {"max_size": 10},
        },
        "other": {"primary": {"url": f"postgresql://app:{PASSWORD}@other/db"}},
    },
    "tenancy": {"resolve": [{"header": "X-Tenant"}]},
    "tenants": {
        "acme": {"datasource": "orders", "schema": "acme"},
        "globex": {"datasource": "orders", "row_security": {"app.tenant": PASSWORD}},
        "initech": {"datasource": "orders", "schema": "initech", "role": "initech"},
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    document = copy.deepcopy(OLD)
    for path, value in changes.items():
        here: Any = document
        *steps, last = path.split("__")
        for step in steps:
            here = here[step]
        if value is None:
            del here[last]
        else:
            here[last] = value
    return document


def diff(new: dict[str, Any], folder: Path, *arguments: str) -> Any:
    (folder / "old.json").write_text(json.dumps(OLD))
    (folder / "new.json").write_text(json.dumps(new))
    done = call("diff", "old.json", "new.json", "--format", "json", *arguments, cwd=folder)
    assert done.code in (0, 1), done.err
    assert PASSWORD not in done.out + done.err
    found = json.loads(done.out)
    Draft202012Validator(json.loads((ROOT / "schemas" / "diff" / "v1.json").read_text())).validate(found)
    return found["changes"]


CHANGES = [
    ({"tenants__acme__datasource": "other"}, "tenant-moved", "danger", "from datasource orders to other", ["acme"]),
    ({"tenants__acme__schema": "acme2"}, "tenant-moved", "danger", "moves from schema 'acme' to 'acme2'", ["acme"]),
    ({"tenants__acme__schema": None}, "isolation-weakened", "danger", "no longer kept apart by a schema", ["acme"]),
    ({"tenants__initech__role": None}, "isolation-weakened", "danger", "no longer kept apart by a role", ["initech"]),
    ({"tenants__globex__row_security": {"app.tenant": "2"}}, "isolation-changed", "danger", "other values for row",
     ["globex"]),
    ({"tenants__acme__role": "acme"}, "isolation-changed", "notice", "is kept apart by a role as well", ["acme"]),
    ({"tenants__acme": None}, "tenant-removed", "danger", "is gone from datasource orders", ["acme"]),
    ({"tenants__new": {"datasource": "other", "schema": "new"}}, "tenant-added", "plain", "comes to", ["new"]),
    ({"datasources__orders__replicas__r1": None}, "replica-lost", "notice", "replica r1 is gone, 1 left",
     ["acme", "globex", "initech"]),
    ({"datasources__orders__replicas": {}}, "replica-lost", "notice", "none is left", ["acme", "globex", "initech"]),
    ({"datasources__orders__primary__url": "${NEW_URL}"}, "primary-changed", "danger", "leads to postgresql://NEW_URL",
     ["acme", "globex", "initech"]),
    ({"datasources__orders__pool__max_size": 20}, "setting", "notice", "10 becomes 20", ["acme", "globex", "initech"]),
    ({"datasources__third": {"primary": {"url": "host=x"}}}, "datasource-added", "plain", "is new", []),
    ({"datasources__other": None}, "datasource-removed", "danger", "is gone", []),
    ({"transactions": {"deadline": "5s"}}, "setting", "notice", "'30s' becomes '5s'", []),
    ({"transactions": {"rollback_on": ["5xx"]}}, "setting", "danger", "[4xx, 5xx] becomes [5xx]: what was rolled", []),
    ({"transactions": {"rollback_on": ["4xx", "5xx", "3xx"]}}, "setting", "notice", "becomes [4xx, 5xx, 3xx]", []),
    ({"transactions": {"default": "annotated"}}, "setting", "danger", "'request' becomes 'annotated': a request", []),
    ({"tenancy__resolve": [{"query": "t"}, {"header": "X-Tenant"}]}, "setting", "danger", "another tenant's", []),
    ({"datasources__orders__audit": {"on_start": "off"}}, "setting", "danger", "a role bypasses row security",
     ["acme", "globex", "initech"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "weight", "says", "tenants"), CHANGES, ids=[c[3] for c in CHANGES])
def test_each_change_is_explained(
    changes: dict[str, Any], kind: str, weight: str, says: str, tenants: list[str], tmp_path: Path
) -> None:
    found = diff(changed(**changes), tmp_path)
    assert {change["kind"] for change in found} == {kind}
    change = found[0]
    assert change["weight"] == weight
    assert says in change["message"]
    assert change["tenants"] == tenants
    assert change["tenant_count"] == len(tenants)


def test_equal_documents_have_no_changes(tmp_path: Path) -> None:
    assert diff(OLD, tmp_path) == []
    assert "nothing changes" in call("diff", "old.json", "new.json", cwd=tmp_path).out


def test_markdown_for_a_pull_request(tmp_path: Path) -> None:
    diff(changed(tenants__acme__datasource="other"), tmp_path)
    done = call("diff", "old.json", "new.json", "--format", "markdown", cwd=tmp_path)
    assert done.out.startswith("### asgi-datasource: `old.json` → `new.json`\n\n1 change: 1 danger.\n")
    assert "| :rotating_light: danger | `tenants.acme` | moves from datasource orders to other" in done.out
    assert call("diff", "old.json", "new.json", cwd=tmp_path).code == 0
    diff(changed(transactions={"deadline": "5s"}), tmp_path)
    notice = call("diff", "old.json", "new.json", "--format", "markdown", cwd=tmp_path).out
    assert "| :information_source: notice | `transactions.deadline` | '30s' becomes '5s' |" in notice
    diff(changed(tenants__acme__datasource="other"), tmp_path)
    assert call("diff", "old.json", "new.json", "--exit-code", cwd=tmp_path).code == 1


def test_many_tenants_are_one_change(tmp_path: Path) -> None:
    document = changed()
    document["tenants"] = {f"t{n}": {"datasource": "orders", "schema": f"t{n}"} for n in range(300)}
    (tmp_path / "many.json").write_text(json.dumps(document))
    document["tenants"] = {name: {**tenant, "datasource": "other"} for name, tenant in document["tenants"].items()}
    (tmp_path / "moved.json").write_text(json.dumps(document))
    done = call("diff", "many.json", "moved.json", cwd=tmp_path)
    assert "danger tenants: moves from datasource orders to other" in done.out
    assert "and 280 more" in done.out


def test_an_invalid_file_is_not_compared(tmp_path: Path) -> None:
    diff(OLD, tmp_path)
    (tmp_path / "wrong.json").write_text("{}")
    done = call("diff", "old.json", "wrong.json", cwd=tmp_path)
    assert done.code == 2
    assert "the configuration has 2 errors" in done.err


YAML = f"""\
version: 1
include: [tenants.yaml]
datasources:
  orders:
    primary: {{url: "postgresql://app:{PASSWORD}@db/orders"}}
    replicas: {{r1: {{url: "${{R1_URL}}"}}, r2: {{url: {{file: secrets/r2}}}}}}
    pool: {{max_size: "${{SIZE:-10}}"}}
tenancy: {{resolve: [{{header: X-Tenant}}]}}
"""


def test_show_prints_the_origin_of_each_value(tmp_path: Path) -> None:
    (tmp_path / "datasource.yaml").write_text(YAML)
    (tmp_path / "tenants.yaml").write_text(
        f"tenants: {{acme: {{datasource: orders, row_security: {{a.b: '{PASSWORD}'}}}}}}\n"
    )
    (tmp_path / "prod.yaml").write_text("datasources: {orders: {pool: {min_size: 2}}}\n")
    done = call("show", "--overlay", "prod.yaml", "--defaults", "--format", "json", cwd=tmp_path)
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    values = {value["key"]: value for value in shown["values"]}
    assert values["datasources.orders.primary.url"]["value"] == "postgresql://db/orders"
    assert values["datasources.orders.primary.url"]["where"] == "datasource.yaml:5:20"
    assert values["datasources.orders.replicas.r1.url"]["where"] == "datasource.yaml:6:26 ${R1_URL}"
    assert values["datasources.orders.replicas.r1.url"]["from"] == "reference"
    assert values["datasources.orders.replicas.r2.url"]["value"] == "**********"
    assert values["datasources.orders.pool.min_size"]["where"].startswith("prod.yaml:1:")
    assert values["tenants.acme.datasource"]["where"].startswith("tenants.yaml:1:")
    assert values["transactions.deadline"] == {
        "key": "transactions.deadline", "value": "30s", "from": "default", "where": "default"
    }  # fmt: skip
    text = call("show", "--overlay", "prod.yaml", cwd=tmp_path).out
    assert "datasources.orders.pool.min_size: 2" in text
    assert "# prod.yaml:1:" in text
    assert PASSWORD not in done.out + text
