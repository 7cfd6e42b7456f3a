"""Edits of texts: what is wrong is changed, and everything else is preserved."""

from __future__ import annotations

from pathlib import Path

import pytest

from asgi_datasource.config import Edit, EditKind, Format, Text, apply_edit, edit_text, load
from tests.cli.run import run

YAML = """\
# our databases
---
version: 1
datasources:
  orders:   # the shop
    primary: {url: "${ORDERS_URL}"}      # from the vault
    pool: {max_size: "20", acquire_timeout: 3}
telemetry: {spans: no}  # not yet

tenancy: {default: orders}
transactions:
  deadlin: 10 seconds   # one of the words is wrong
"""
YAML_AFTER = """\
# our databases
---
version: 1
datasources:
  orders:   # the shop
    primary: {url: "${ORDERS_URL}"}      # from the vault
    pool: {max_size: 20, acquire_timeout: 3s}
telemetry: {spans: false}  # not yet

tenancy: {default: orders}
transactions:
  deadline: 10s   # one of the words is wrong
"""
TOML = """\
# our databases
version = 1
tenancy = {default = "order"}
[datasources.orders]
primary = {url = "host=db"}     # the shop
[datasources.orders.pool]
max_sise = 20
acquire_timeout = 3
"""
TOML_AFTER = """\
# our databases
version = 1
tenancy = {default = "orders"}
[datasources.orders]
primary = {url = "host=db"}     # the shop
[datasources.orders.pool]
max_size = 20
acquire_timeout = "3s"
"""
JSON = """\
{
  "version": 1,
  "datasources": {"orders": {"primary": {"url": "host=db"}, "pool": {"max_size": "20"}}},
  "tenancy": {"default": "orders"}
}
"""
JSON_AFTER = JSON.replace('"20"', "20")


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [(Format.YAML, YAML, YAML_AFTER), (Format.TOML, TOML, TOML_AFTER), (Format.JSON, JSON, JSON_AFTER)],
)
def test_an_edit_changes_only_the_problem(form: Format, before: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / f"datasource.{form.value}"
    path.write_text(before)
    done = run("validate", "--fix", path)
    assert (done.code, path.read_text()) == (0, after), done.out
    load(path, environ={"ORDERS_URL": "host=db"})


def test_validate_fix_fixes_what_is_certain(tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text(
        "version: 1\ninclude: [part.yaml]\ndatasources: {orders: {primary: {url: host=db}, pol: {max_size: 9}}}\n"
        "tenancy: {resolve: [{header: X}]}  # as it is\nquux: 1\n"
    )
    (tmp_path / "part.yaml").write_text("tenants: {acme: {datasource: ordes, shema: acme}}\n")
    done = run("validate", "--fix", cwd=tmp_path)
    assert "datasource.yaml: 3 fixed" in done.err
    assert done.code == 1
    assert "error[ADS020]" in done.out
    assert done.out.count("error[") == 1
    assert "{orders: {primary: {url: host=db}, pool: {max_size: 9}}}" in path.read_text()
    assert "# as it is" in path.read_text()
    assert (tmp_path / "part.yaml").read_text() == "tenants: {acme: {datasource: orders, schema: acme}}\n"


@pytest.mark.parametrize(
    ("before", "edit", "after"),
    [
        ("a: {b: 1}", Edit(EditKind.RENAME, ("a", "b"), "c"), "a: {c: 1}"),
        ("a: {'b': 1}", Edit(EditKind.RENAME, ("a", "b"), "c d"), "a: {c d: 1}"),
        ("a: b c  # d", Edit(EditKind.REPLACE, ("a",), "x"), "a: x  # d"),
        ("a: [b c, d]", Edit(EditKind.REPLACE, ("a", 0), 5), "a: [5, d]"),
        ("a: b\n", Edit(EditKind.REPLACE, ("a",), True), "a: true\n"),
        ("a: b\n", Edit(EditKind.REPLACE, ("a",), "true"), 'a: "true"\n'),
        ("a: b\n", Edit(EditKind.REMOVE, ("a",)), None),
        ("a: b\n", Edit(EditKind.REPLACE, ("z", "y"), 1), None),
        ("a: >-\n  b\n  c\n", Edit(EditKind.REPLACE, ("a",), 1), None),
        ("a: &x b\nc: *x\n", Edit(EditKind.REPLACE, ("c",), 1), "a: &x b\nc: 1\n"),
    ],
)
def test_an_edit_changes_one_word_or_nothing(before: str, edit: Edit, after: str | None) -> None:
    text, made = edit_text(Text("x", Format.YAML, before), [edit])
    assert text.content == (before if after is None else after)
    assert made == ([] if after is None else [edit])


def test_fixes_of_documents() -> None:
    document = {"a": {"b": [1, 2]}, "c": 3}
    assert apply_edit(document, Edit(EditKind.REMOVE, ("a", "b", 0))) == {"a": {"b": [2]}, "c": 3}
    assert apply_edit(document, Edit(EditKind.ADD, ("d", "e"), 4)) == {**document, "d": {"e": 4}}
    assert apply_edit(document, Edit(EditKind.RENAME, ("a",), "z")) == {"z": {"b": [1, 2]}, "c": 3}
    assert document == {"a": {"b": [1, 2]}, "c": 3}
