"""The lint: each rule on a statement that has the problem and on one that has not, and the formats of `validate`."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from asgi_datasource.migrate import lint_file, read_folder
from tests.cli.run import call

ROOT = Path(__file__).parents[2]
OFF = "-- transaction: off\n"
CONTRACT = "-- phase: contract\n"

WRONG = {
    "create index i on orders (item)": "ADS201",
    "create unique index on orders (item)": "ADS201",
    "drop index i": "ADS201",
    "create index concurrently i on orders (item)": "ADS202",
    "vacuum orders": "ADS202",
    "alter table p detach partition q concurrently": None,
    OFF + "create index concurrently if not exists i on orders (item)": "ADS203",
    "alter table orders add constraint f foreign key (item) references items (id)": "ADS204",
    "alter table only orders add check (item > 0), add column b int": "ADS204",
    "alter table orders add column item int references items": "ADS204",
    "alter table orders add constraint u unique (item)": "ADS205",
    "alter table orders add primary key (id)": "ADS205",
    "alter table orders add column token uuid default gen_random_uuid()": "ADS206",
    "alter table orders add n bigserial": "ADS206",
    "alter table orders add column c text generated always as (upper(item)) stored": "ADS206",
    "alter table orders alter column item type bigint using item::bigint": "ADS206",
    "alter table orders alter item set data type bigint": "ADS206",
    "alter table orders set unlogged": "ADS206",
    "refresh materialized view totals": "ADS206",
    OFF + "vacuum full orders": "ADS206",
    "alter table orders alter column item set not null": "ADS207",
    "alter table orders add column item text not null": "ADS207",
    "alter table orders rename column item to name": "ADS208",
    "alter table orders rename to sales": "ADS208",
    "alter table orders drop column item": "ADS208",
    "alter table orders add column b int, drop item": "ADS208",
    "drop table if exists orders": "ADS208",
    "alter type mood rename value 'sad' to 'blue'": "ADS208",
    "insert into public.orders values (1)": "ADS209",
    'create table if not exists "acme".orders (id int)': "ADS209",
    "update public.orders set a = 1 where true": "ADS209",
    "update orders set item = ''": "ADS210",
    "delete from orders": "ADS210",
    "create tabel t (id int)": "ADS200",
}

RIGHT = [
    "create table orders (id int); create index i on orders (id); alter table orders add unique (id)",
    OFF + "create index concurrently i on orders (item)",
    OFF + "drop index concurrently i",
    "alter table orders add constraint f foreign key (item) references items (id) not valid",
    "alter table orders validate constraint f",
    "alter table orders add constraint u unique using index i",
    "alter table orders add column a int, add column b text default 'x' not null, add c timestamptz default now()",
    "alter table orders drop constraint f",
    "alter table orders alter column item drop not null, alter column item set default 1",
    CONTRACT + "alter table orders drop column item; drop table old",
    "update orders set item = '' where item is null",
    "insert into orders select pg_catalog.now()",
    "create or replace function f() returns int language sql as 'select 1 from public.x'",
    "create view v as select * from orders",
    "grant select on orders to app",
]


def lint(tmp_path: Path, text: str, scope: str = "tenant", name: str = "0001_a.sql") -> list[str]:
    folder = tmp_path / scope
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    [migration] = read_folder(tmp_path)
    found, _ = lint_file(migration)
    return [diagnostic.code.value for diagnostic in found]


@pytest.mark.parametrize(("text", "code"), WRONG.items())
def test_each_rule_finds_what_it_is_for(tmp_path: Path, text: str, code: str | None) -> None:
    found = lint(tmp_path, text)
    if code is None:
        assert "ADS202" in found
    else:
        assert code in found


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_safe_passes(tmp_path: Path, text: str) -> None:
    assert lint(tmp_path, text) == []


def test_shared_files_may_name_schemas_and_baselines_may_do_what_a_new_schema_needs(tmp_path: Path) -> None:
    assert lint(tmp_path / "a", "insert into public.plans values (1)", scope="shared") == []
    assert lint(tmp_path / "b", "create table t (); create index on u (v)", name="B0001_start.sql") == []


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_file_allows_a_code_with_a_reason_and_no_more_than_it_needs(tmp_path: Path) -> None:
    text = "-- lint: allow ADS201 twenty rows\n-- lint: allow ADS208 unused\n-- lint: allow ADS999 what\n"
    assert lint(tmp_path, text + "create index i on orders (item)") == ["ADS007", "ADS006"]


def test_findings_have_their_place_and_the_formats_of_validate(tmp_path: Path) -> None:
    folder = tmp_path / "migrations" / "tenant"
    folder.mkdir(parents=True)
    (folder / "0001_start.sql").write_text("create table orders (id int);")
    (folder / "0002_index.sql").write_text("-- why\n\n  create index i\n    on orders (id);\n\ndelete from orders;")
    (tmp_path / "datasource.json").write_text(
        json.dumps(
            {
                "version": 1,
                "datasources": {"orders": {"primary": {"url": "postgresql://app@db/orders"}}},
                "migrate": {"folder": "migrations"},
            }
        )
    )
    text = call("migrate", "lint", cwd=tmp_path)
    assert text.code == 1
    assert "error[ADS201]" in text.out
    assert "0002_index.sql:3:3" in text.out
    assert "asgi-datasource rule ADS201" in text.out
    document = json.loads(call("migrate", "lint", "--format", "json", cwd=tmp_path).out)
    jsonschema.validate(document, json.loads((ROOT / "schemas/diagnostics/v1.json").read_text()))
    assert [one["code"] for one in document["diagnostics"]] == ["ADS201", "ADS210"]
    sarif = json.loads(call("migrate", "lint", "--format", "sarif", cwd=tmp_path).out)
    assert [rule["id"] for rule in sarif["runs"][0]["tool"]["driver"]["rules"]] == ["ADS201", "ADS210"]
    assert "::error title=asgi-datasource ADS201" in call("migrate", "lint", "--format", "github", cwd=tmp_path).out
    assert len(json.loads(call("migrate", "lint", "--format", "gitlab", cwd=tmp_path).out)) == 2
    assert ElementTree.fromstring(call("migrate", "lint", "--format", "junit", cwd=tmp_path).out).get("failures") == "1"
    assert call("migrate", "lint", "--since", "2", cwd=tmp_path).code == 0
