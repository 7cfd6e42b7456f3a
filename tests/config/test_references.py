"""References: `${NAME}` and `{file: path}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from asgi_datasource.config import Code, Config, examine, json_schema, load
from asgi_datasource.config.limits import MAX_SECRET_BYTES
from asgi_datasource.config.references import Outside, Surroundings
from tests.config.documents import PASSWORD, full, put, small

ENVIRON = {"NAME": "acme", "EMPTY": "", "SIZE": "20", "_A1": "x", "BRACES": "${NAME}"}


def resolve(text: str) -> tuple[Any, list[Code]]:
    outside = Outside(Surroundings(ENVIRON))
    resolved: Any = outside.resolve({"a": text})
    return resolved["a"], [problem.code for problem in outside.diagnostics]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("plain", "plain"),
        ("${NAME}", "acme"),
        ("${_A1}", "x"),
        ("a${NAME}b${NAME}c", "aacmebacmec"),
        ("${EMPTY}", ""),
        ("${NAME:-other}", "acme"),
        ("${EMPTY:-other}", "other"),
        ("${NOPE:-other}", "other"),
        ("${NOPE:-}", ""),
        ("${NOPE:-a b:-c$}", "a b:-c$"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$${NAME}"),
        ("${NAME}$${NAME}", "acme${NAME}"),
        ("$NAME", "$NAME"),
        ("a$", "a$"),
        ("$$", "$$"),
        ("{NAME}", "{NAME}"),
        ("^[a-z]{2}$", "^[a-z]{2}$"),
        ("${BRACES}", "${NAME}"),
    ],
)
def test_references(written: str, text: str) -> None:
    assert resolve(written) == (text, [])


@pytest.mark.parametrize(
    "written", ["${", "${}", "${1A}", "${A B}", "${A", "${A:-", "${A:-${NAME}}", "${A-b}", "x${ä}"]
)
def test_a_malformed_reference_is_an_error(written: str) -> None:
    assert Code.MALFORMED_REFERENCE in resolve(written)[1]


def test_an_unset_variable_is_reported() -> None:
    [problem] = examine(small(tenants={"acme": {"datasource": "${ORDES}"}}), environ={"ORDERS": "orders"}).errors
    assert problem.code is Code.VARIABLE_NOT_SET
    assert problem.key == "tenants.acme.datasource"
    assert problem.message == "the environment variable ORDES is not set"
    assert problem.fix == "Did you mean ORDERS? Else set it, or give a default: ${ORDES:-default}."


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADS_TEST_SCHEMA", "acme")
    config = load(small(tenants={"acme": {"datasource": "orders", "schema": "${ADS_TEST_SCHEMA}"}}))
    assert config.tenants["acme"].schema_name == "acme"


TYPED = [
    (("datasources", "*", "pool"), "max_size", "20", 20),
    (("datasources", "*", "pool"), "min_size", "0", 0),
    (("datasources", "*", "pool"), "acquire_timeout", "250ms", 0.25),
    (("telemetry",), "spans", "false", False),
    (("transactions",), "retry", "3", 3),
    (("transactions",), "retry_body_limit", "64KiB", 65536),
    (("transactions",), "deadline", "10s", 10.0),
    (("transactions",), "multiple_writers", "allow", "allow"),
    (("tenancy",), "missing", "404", 404),
    (("tenancy",), "default", "orders", "orders"),
    (("routes", "*"), "match", "POST /x", "POST /x"),
]


@pytest.mark.parametrize(("section", "key", "text", "value"), TYPED)
def test_a_reference_may_stand_for_any_value(section: tuple[str, ...], key: str, text: str, value: object) -> None:
    document = put(full(), section, key, "${VALUE}")
    assert Draft202012Validator(json_schema()).is_valid(document)
    found: Any = load(document, environ={"VALUE": text})
    for step in section:
        found = (found[0] if isinstance(found, tuple) else found["orders"]) if step == "*" else getattr(found, step)
    stored = getattr(found, f"{key}_s", None) or getattr(found, key)
    assert stored == value
    assert type(stored) is type(value)


@pytest.mark.parametrize(("section", "key", "text", "value"), TYPED)
def test_a_referenced_value_is_checked_and_not_shown(
    section: tuple[str, ...], key: str, text: str, value: object
) -> None:
    [problem] = examine(put(full(), section, key, "${VALUE}"), environ={"VALUE": f"{PASSWORD} !"}).errors
    assert problem.code is Code.WRONG_VALUE
    assert problem.path[-1] == key
    assert problem.fix == "What the environment or the file holds is something else."
    assert PASSWORD not in str(problem)


def test_text_is_converted_to_a_number_only_in_a_reference() -> None:
    document = put(full(), ("datasources", "*", "pool"), "max_size", "20")
    [problem] = examine(document).errors
    assert problem.code is Code.WRONG_TYPE


def test_a_reference_as_version_is_refused() -> None:
    document = small(version="${VERSION}")
    assert not Draft202012Validator(json_schema()).is_valid(document)
    [problem] = examine(document, environ={"VERSION": "1"}).errors
    assert problem.key == "version"


def test_references_in_names_are_refused() -> None:
    document = small(tenants={"${NAME}": {"datasource": "orders"}})
    assert not Draft202012Validator(json_schema()).is_valid(document)
    [problem] = examine(document, environ=ENVIRON).errors
    assert problem.code is Code.WRONG_NAME


def with_url(url: object) -> dict[str, Any]:
    return put(full(), ("datasources", "*", "primary"), "url", url)


def url_of(config: Config) -> str:
    return config.datasources["orders"].primary.url.get_secret_value()


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_a_secret_file_path_is_relative_to_the_config(tmp_path: Path, ending: str) -> None:
    (tmp_path / "url").write_bytes(f"postgresql://app:{PASSWORD}@db/orders{ending}".encode())
    config = tmp_path / "datasource.yaml"
    config.write_text(
        'version: 1\ndatasources: {orders: {primary: {url: {file: url}}, replicas: {r1: {url: {file: "${R1}"}}}}}\n'
        "tenancy: {default: orders}\n"
    )
    (tmp_path / "r1").write_text("host=r1")
    loaded = load(config, environ={"R1": str(tmp_path / "r1")})
    assert url_of(loaded) == f"postgresql://app:{PASSWORD}@db/orders"
    assert loaded.datasources["orders"].replicas["r1"].url.get_secret_value() == "host=r1"


def test_the_content_of_a_secret_file_is_used_literally(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://app:${NAME}@db/orders")
    assert url_of(load(with_url({"file": str(tmp_path / "url")}))) == "postgresql://app:${NAME}@db/orders"


def test_the_longest_secret_is_used_whole(tmp_path: Path) -> None:
    text = "postgresql://db/orders?application_name=".ljust(MAX_SECRET_BYTES, "x")
    (tmp_path / "url").write_text(text)
    assert url_of(load(with_url({"file": str(tmp_path / "url")}))) == text


@pytest.mark.parametrize("name", [5, "", "a\nb", ["keys.json"]])
def test_what_is_no_file_name_is_reported_as_such(name: object) -> None:
    claim = {"claim": "tenant", "algorithms": ["RS256"], "jwks": name}
    [problem] = examine(small(tenancy={"resolve": [{"jwt_claim": claim}]})).errors
    assert problem.key == "tenancy.resolve[0].jwt_claim.jwks"


def test_unreadable_secret_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    (tmp_path / "binary").write_bytes(b"\xff")
    for name in ("missing", "long", "binary", "", "a\0b"):
        [problem] = examine(with_url({"file": f"{tmp_path}/{name}"})).errors
        assert problem.code is Code.SECRET_NOT_READABLE
        assert problem.key == "datasources.orders.primary.url"
        assert problem.fix


def test_a_secret_file_with_other_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(PASSWORD)
    [problem] = examine(with_url({"file": str(tmp_path / "url")})).errors
    assert problem.code is Code.WRONG_VALUE
    assert PASSWORD not in str(problem)


def test_a_tenant_may_be_called_file() -> None:
    config = load(small(tenants={"file": {"datasource": "orders"}}))
    assert list(config.tenants) == ["file"]
