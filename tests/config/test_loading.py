"""Loading files and mappings: formats, positions, bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from asgi_datasource.config import Code, Config, InvalidConfig, Severity, examine, load
from asgi_datasource.config.limits import MAX_BYTES
from tests.config.documents import full, small

YAML = """\
version: 1
datasources:
  orders:
    primary: {url: "postgresql://app@db/orders"}
    pool: {max_size: 20, acquire_timeout: 3s}
tenancy:
  resolve:
    - header: X-Tenant
tenants:
  no: {datasource: orders, schema: "no"}
  42: {datasource: orders, row_security: {app.tenant: "42"}}
routes:
  - {match: "GET /reports/**", timeout: 30s}
"""
TOML = """\
version = 1

[datasources.orders]
primary = { url = "postgresql://app@db/orders" }
pool = { max_size = 20, acquire_timeout = "3s" }

[[tenancy.resolve]]
header = "X-Tenant"

[tenants]
no = { datasource = "orders", schema = "no" }
42 = { datasource = "orders", row_security = { "app.tenant" = "42" } }

[[routes]]
match = "GET /reports/**"
timeout = "30s"
"""
MAPPING = {
    "version": 1,
    "datasources": {
        "orders": {
            "primary": {"url": "postgresql://app@db/orders"},
            "pool": {"max_size": 20, "acquire_timeout": "3s"},
        }
    },
    "tenancy": {"resolve": [{"header": "X-Tenant"}]},
    "tenants": {
        "no": {"datasource": "orders", "schema": "no"},
        "42": {"datasource": "orders", "row_security": {"app.tenant": "42"}},
    },
    "routes": [{"match": "GET /reports/**", "timeout": "30s"}],
}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("datasource.yaml", YAML),
        ("datasource.yml", YAML),
        ("datasource.YAML", "\ufeff" + YAML),
        ("datasource.yaml", YAML.replace("\n", "\r\n")),
        ("datasource.toml", TOML),
        ("datasource.json", json.dumps(MAPPING)),
        ("datasource.json", json.dumps(MAPPING, indent="\t", separators=(",", " : "))),
        ("datasource.yaml", json.dumps(MAPPING, indent=2)),
    ],
    ids=["yaml", "yml", "bom", "crlf", "toml", "json", "json-spaced", "json-as-yaml"],
)
def test_all_notations_are_equivalent(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    assert load(path) == load(MAPPING) == load(str(path))


class Lazy(Mapping[str, Any]):
    """A mapping that is not a dict."""

    def __init__(self, inner: dict[str, Any]) -> None:
        self._inner = inner

    def __getitem__(self, key: str) -> Any:
        return self._inner[key]

    def __iter__(self) -> Any:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)


def test_any_mapping_is_accepted() -> None:
    document = MappingProxyType({**MAPPING, "tenants": Lazy(MAPPING["tenants"]), "routes": tuple(MAPPING["routes"])})
    assert load(document) == load(MAPPING)


def test_a_mapping_is_not_modified() -> None:
    document = full()
    document["tenants"]["acme"]["schema"] = "${SCHEMA}"
    before = json.dumps(document)
    load(document, environ={"SCHEMA": "acme"})
    assert json.dumps(document) == before


def test_the_semantics_of_a_config_are_checked_again() -> None:
    config = Config.model_validate(small(tenancy={}))
    with pytest.raises(InvalidConfig, match=r"ADS044 tenancy\.resolve"):
        load(config)
    assert load(config, needs_resolver=False) is config


def test_warnings_are_logged_and_do_not_refuse_the_document(caplog: pytest.LogCaptureFixture) -> None:
    document = small(tenants={"acme": {"datasource": "orders"}, "globex": {"datasource": "orders"}})
    [warning] = examine(document).diagnostics
    assert warning.severity is Severity.WARNING
    load(document)
    assert caplog.record_tuples == [("asgi_datasource.config", 30, str(warning))]


POSITIONS = """\
version: 1
datasources:
  orders:
    primary: {url: "//db/orders"}
    pool:
      max_sise: 3
      max_size: many
tenants:
  acme:
    schema: x
  globex: {datasource: order}
routes:
- match: GET /x
- match: get /y
  intent: reed
"""
PLACES = [
    ("datasources.orders.primary.url", 4, 20),
    ("datasources.orders.pool.max_sise", 6, 7),
    ("datasources.orders.pool.max_size", 7, 17),
    ("tenants.acme.datasource", 9, 3),
    ("tenants.globex.datasource", 11, 24),
    ("routes[1].match", 14, 10),
    ("routes[1].intent", 15, 11),
]


def test_positions_in_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "datasource.yaml", POSITIONS)
    errors = [error for error in examine(path).errors if error.code is not Code.NO_RESOLVER]
    assert [(e.key, e.position and e.position.line, e.position and e.position.column) for e in errors] == PLACES
    assert str(errors[1]).startswith(f"{path}:6:7: ADS020 datasources.orders.pool.max_sise: unknown key")


def test_positions_in_json(tmp_path: Path) -> None:
    text = """\
{"version": 1, "datasources": {
  "orders": {"primary": {"url": "\\/\\/db"},
  "pool": {"max_sise": 3,
           "max_size": [1, {"a": "]}\\""}]}}},
 "tenants": {"acme": {}, "globex": {"datasource": "order"}},
 "routes": [{"match": "GET /x"},
            {"match": 3}]
}
"""
    path = write(tmp_path, "datasource.json", text)
    errors = [error for error in examine(path).errors if error.code is not Code.NO_RESOLVER]
    assert [(e.key, e.position and e.position.line, e.position and e.position.column) for e in errors] == [
        ("datasources.orders.primary.url", 2, 33),
        ("datasources.orders.pool.max_sise", 3, 12),
        ("datasources.orders.pool.max_size", 4, 24),
        ("tenants.acme.datasource", 5, 14),
        ("tenants.globex.datasource", 5, 51),
        ("routes[1].match", 7, 23),
    ]


def test_positions_in_toml(tmp_path: Path) -> None:
    text = """\
version = 1
datasources.orders.primary = { url = "//db/orders" }
[datasources.orders.pool]
max_sise = 3
max_size = [1,
  2]
[tenants.acme]
schema = "x"
[tenants]
globex = {datasource = "order"}
[[routes]]
match = "GET /x"
[[routes]]
match = 3
"""
    path = write(tmp_path, "datasource.toml", text)
    errors = [error for error in examine(path).errors if error.code is not Code.NO_RESOLVER]
    assert [(e.key, e.position and e.position.line, e.position and e.position.column) for e in errors] == [
        ("datasources.orders.primary.url", 2, 38),
        ("datasources.orders.pool.max_sise", 4, 1),
        ("datasources.orders.pool.max_size", 5, 12),
        ("tenants.acme.datasource", 7, 10),
        ("tenants.globex.datasource", 10, 24),
        ("routes[1].match", 14, 9),
    ]


SYNTAX = [
    ("a.yaml", "version: 1\n\tx: 2", Code.SYNTAX, (2, 1), "tab"),
    ("a.yaml", "version: 1\nx: [\n", Code.SYNTAX, (3, 1), "not YAML"),
    ("a.yaml", "a: b: c", Code.SYNTAX, (1, 5), "not YAML"),
    ("a.yaml", "a: {b: ${C}}", Code.SYNTAX, (1, 9), "not YAML"),
    ("a.yaml", "a: @b", Code.SYNTAX, (1, 4), "not YAML"),
    ("a.yaml", "a: 1\nb: \x07", Code.SYNTAX, (2, 4), "does not allow"),
    ("a.yaml", "a: ü\x07", Code.SYNTAX, (1, 5), "does not allow"),
    ("a.yaml", b"a: 1\nb: \xff", Code.SYNTAX, (2, 4), "UTF-8"),
    ("a.yaml", "", Code.SYNTAX, (None, None), "empty"),
    ("a.yaml", "# nothing\n", Code.SYNTAX, (None, None), "empty"),
    ("a.json", "", Code.SYNTAX, (1, 1), "not JSON"),
    ("a.json", '{"a" 1}', Code.SYNTAX, (1, 6), "not JSON"),
    ("a.json", '{"a": NaN}', Code.NOT_PLAIN, (None, None), "NaN"),
    ("a.json", '{"version": 1, "a": "\\ud800"}', Code.NOT_PLAIN, (None, None), "half a character"),
    ("a.json", '{"a": %s}' % ("9" * 5000), Code.TOO_LARGE, (None, None), "digits"),
    ("a.toml", "a = [1\nb = 2\n", Code.SYNTAX, (2, 1), "not TOML"),
    ("a.toml", "a = 1\na = 2\n", Code.DUPLICATE_KEY, (None, None), "second time"),
    ("a.toml", "a = %s" % ("9" * 5000), Code.TOO_LARGE, (None, None), "digits"),
    ("a.ini", "[a]", Code.NOT_READABLE, (None, None), "format"),
]


@pytest.mark.parametrize(("name", "content", "code", "place", "message"), SYNTAX)
def test_syntax_errors_have_a_position(
    tmp_path: Path, name: str, content: str | bytes, code: Code, place: tuple[int | None, int | None], message: str
) -> None:
    path = write(tmp_path, name, content)
    [problem] = examine(path).errors
    assert problem.code is code
    assert message in problem.message
    assert problem.fix
    assert problem.position is not None
    assert problem.position.file == str(path)
    if name != "a.toml":  # tomllib's positions differ between Python versions
        assert (problem.position.line, problem.position.column) == place


@pytest.mark.parametrize("opening", ["[", '{"a":', "- ", "a: {"])
@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
@pytest.mark.parametrize("levels", [33, 900, 20_000])
def test_deep_nesting_is_refused(tmp_path: Path, opening: str, suffix: str, levels: int) -> None:
    closing = {"[": "]", '{"a":': "}"}.get(opening, "")
    content = opening * levels + "1" + closing * levels
    path = write(tmp_path, f"a.{suffix}", ("x = " if suffix == "toml" else "") + content)
    codes = {problem.code for problem in examine(path).errors}
    assert codes & {Code.TOO_LARGE, Code.SYNTAX}


def test_a_mapping_that_contains_itself_is_refused() -> None:
    document = small()
    document["tenants"]["acme"]["row_security"] = document
    assert Code.TOO_LARGE in {problem.code for problem in examine(document).errors}


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with path.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    [problem] = examine(path).errors
    assert problem.code is Code.TOO_LARGE


@pytest.mark.parametrize("name", ["missing.yaml", "folder.yaml"])
def test_an_unreadable_file_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.yaml").mkdir()
    [problem] = examine(tmp_path / name).errors
    assert problem.code is Code.NOT_READABLE
    assert "directory" in problem.message


@pytest.mark.parametrize(
    "value", [{1, 2}, b"x", object(), float("nan"), float("inf"), 1 + 2j], ids=lambda value: type(value).__name__
)
def test_values_that_json_cannot_express_are_refused(value: object) -> None:
    [problem] = examine(small(telemetry={"spans": value})).errors
    assert problem.code is Code.NOT_PLAIN
    assert problem.key == "telemetry.spans"
    assert problem.fix


def test_dates_of_toml_are_refused(tmp_path: Path) -> None:
    content = TOML.replace('header = "X-Tenant"', "header = 2026-01-01")
    [problem] = examine(write(tmp_path, "a.toml", content)).errors
    assert (problem.code, problem.key) == (Code.NOT_PLAIN, "tenancy.resolve[0].header")
    assert problem.fix == "Quote it."
