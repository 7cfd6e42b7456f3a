"""The kinds of mistakes in the form of a document: code, path, message and fix of each."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_datasource.config import Code, InvalidConfig, examine, load
from asgi_datasource.errors import ConfigError, DataErrorKind
from tests.config.documents import full, put, small

ORDERS = ("datasources", "*")
POOL = (*ORDERS, "pool")

MISTAKES = [
    # where, key, value, code, key path, part of the message, part of the fix
    ((), "datasorces", {}, Code.UNKNOWN_KEY, "datasorces", "unknown key", "Known here: version, include, datasources"),
    (
        POOL,
        "max_sise",
        3,
        Code.UNKNOWN_KEY,
        "datasources.orders.pool.max_sise",
        "unknown key",
        "Did you mean 'max_size'?",
    ),
    (
        POOL,
        "max-size",
        3,
        Code.UNKNOWN_KEY,
        "datasources.orders.pool.max-size",
        "unknown key",
        "Did you mean 'max_size'?",
    ),
    (("routes", "*"), "timeot", "3s", Code.UNKNOWN_KEY, "routes[0].timeot", "unknown key", "Did you mean 'timeout'?"),
    (("consistency",), "x", 1, Code.UNKNOWN_KEY, "consistency.x", "unknown key", "Known here: token, secret"),
    (("tenants", "*"), "<<", {}, Code.UNKNOWN_KEY, "tenants.acme.…", "unknown key", "Merge keys"),
    ((), "version", 2, Code.WRONG_VALUE, "version", "expected 1; found 2", "For example: 1"),
    ((), "version", True, Code.WRONG_TYPE, "version", "expected 1; found true", "For example: 1"),
    (
        (),
        "routes",
        {},
        Code.WRONG_TYPE,
        "routes",
        "expected a list; found a mapping",
        "For example: [{match: POST /search",
    ),
    ((), "routes", "GET /", Code.WRONG_TYPE, "routes", "expected a list; found this string", "Put it in brackets"),
    ((), "tenants", None, Code.WRONG_TYPE, "tenants", "expected a mapping; found null", "leave the key out"),
    ((), "tenants", [], Code.WRONG_TYPE, "tenants", "expected a mapping; found a list", "For example: {acme: {"),
    ((), "datasources", {}, Code.WRONG_COUNT, "datasources", "there is nothing in it", "Add an entry"),
    (
        ("tenants",),
        "x",
        3,
        Code.WRONG_TYPE,
        "tenants.x",
        "expected a mapping; found 3",
        "For example: {datasource: orders",
    ),
    (("tenants",), "x", {}, Code.MISSING_KEY, "tenants.x.datasource", "is missing", "Add datasource: orders"),
    (("tenants",), "x", {"datasource": None}, Code.WRONG_TYPE, "tenants.x.datasource", "found null", "Write a value"),
    (
        ("tenants",),
        "a{b}",
        {"datasource": "orders"},
        Code.WRONG_NAME,
        "tenants.…",
        "expected a tenant name",
        "another name",
    ),
    (("tenants", "*"), "schema", None, Code.WRONG_TYPE, "tenants.acme.schema", "found null", "leave the key out"),
    (("tenants", "*"), "schema", 42, Code.WRONG_TYPE, "tenants.acme.schema", "found 42", "Quote it: '42'"),
    (
        ("tenants", "*"),
        "row_security",
        {},
        Code.WRONG_COUNT,
        "tenants.acme.row_security",
        "nothing in it",
        "Add an entry",
    ),
    (
        ("tenants", "*"),
        "row_security",
        {"tenant": "1"},
        Code.WRONG_NAME,
        "tenants.acme.row_security.tenant",
        "with a dot in it",
        "another name",
    ),
    (
        ("tenants", "*"),
        "row_security",
        {"app.tenant": 42},
        Code.WRONG_TYPE,
        'tenants.acme.row_security."app.tenant"',
        "found a number",
        "Quote it.",
    ),
    (POOL, "max_size", "20", Code.WRONG_TYPE, "datasources.orders.pool.max_size", "found '20'", "without quotes"),
    (
        POOL,
        "max_size",
        0,
        Code.WRONG_VALUE,
        "datasources.orders.pool.max_size",
        "from 1 to 10000; found 0",
        "example: 20",
    ),
    (POOL, "max_size", 2.5, Code.WRONG_VALUE, "datasources.orders.pool.max_size", "found 2.5", "For example: 20"),
    (POOL, "max_size", [1], Code.WRONG_TYPE, "datasources.orders.pool.max_size", "found a list", "For example: 20"),
    (
        POOL,
        "acquire_timeout",
        3,
        Code.WRONG_TYPE,
        "datasources.orders.pool.acquire_timeout",
        "its unit",
        "Write the unit: 3s.",
    ),
    (POOL, "acquire_timeout", "3sec", Code.WRONG_VALUE, "datasources.orders.pool.acquire_timeout", "'3sec'", "'3s'?"),
    (
        POOL,
        "connect_timeout",
        "250ms",
        Code.WRONG_VALUE,
        "datasources.orders.pool.connect_timeout",
        "'250ms'",
        "example",
    ),
    (
        (*ORDERS, "primary"),
        "url",
        "//db/orders",
        Code.WRONG_VALUE,
        "datasources.orders.primary.url",
        "expected postgresql://",
        '"${ORDERS_PRIMARY_URL}"',
    ),
    (
        (*ORDERS, "primary"),
        "url",
        "postgresql://db\n",
        Code.WRONG_VALUE,
        "datasources.orders.primary.url",
        "expected postgresql://",
        "write >- and |-",
    ),
    (
        (*ORDERS, "primary"),
        "uri",
        "host=db",
        Code.UNKNOWN_KEY,
        "datasources.orders.primary.uri",
        "unknown",
        "Known here: url",
    ),
    (
        (*ORDERS, "replicas"),
        "primary",
        {"url": "host=r2"},
        Code.WRONG_NAME,
        "datasources.orders.replicas.primary",
        "not 'primary'",
        "another name",
    ),
    (
        ("tenancy",),
        "missing",
        200,
        Code.WRONG_VALUE,
        "tenancy.missing",
        "from 400 to 499; found 200",
        "For example: 400",
    ),
    (("tenancy",), "exempt", ["docs"], Code.WRONG_VALUE, "tenancy.exempt[0]", "a path such as /docs", "/healthz"),
    (
        ("tenancy", "resolve", "*"),
        "subdomain_of",
        "x",
        Code.WRONG_COUNT,
        "tenancy.resolve[0]",
        "exactly one key",
        "entry",
    ),
    (("tenancy",), "resolve", [{}], Code.WRONG_COUNT, "tenancy.resolve[0]", "exactly one key", "entry"),
    (("routes", "*"), "match", "get /x", Code.WRONG_VALUE, "routes[0].match", "a method and a path", "GET /reports/**"),
    (("routes", "*"), "match", "/a/**/b", Code.WRONG_VALUE, "routes[0].match", "'**' at the end", "GET /reports/**"),
    (("routes", "*"), "intent", "reed", Code.WRONG_VALUE, "routes[0].intent", "read or write", "Did you mean 'read'?"),
    (
        ("routes", "*"),
        "isolation",
        "repeatable_read",
        Code.WRONG_VALUE,
        "routes[0].isolation",
        "found",
        "'repeatable read'",
    ),
    (
        ("routes", "*"),
        "commit_on",
        [600],
        Code.WRONG_VALUE,
        "routes[0].commit_on[0]",
        "found 600",
        "For example: 4xx.",
    ),
    (
        ("routes", "*"),
        "read_only",
        "yes",
        Code.WRONG_TYPE,
        "routes[0].read_only",
        "true or false; found 'yes'",
        "Write true",
    ),
    (("telemetry",), "spans", 1, Code.WRONG_TYPE, "telemetry.spans", "true or false; found 1", "For example: true"),
    (
        ("errors",),
        "status",
        {"confict": 409},
        Code.WRONG_NAME,
        "errors.status.confict",
        "expected tenant",
        "'conflict'?",
    ),
    (("errors",), "status", {"conflict": 200}, Code.WRONG_VALUE, "errors.status.conflict", "400 to 599", "503"),
    (
        ("transactions",),
        "on_disconnect",
        "commit",
        Code.NOT_YET_SUPPORTED,
        "transactions.on_disconnect",
        "not yet supported",
        "rollback",
    ),
    (
        ("outbox",),
        "publisher",
        {"callable": "a:b", "nats": {"url": "nats://nats"}},
        Code.WRONG_COUNT,
        "outbox.publisher",
        "exactly one key",
        "Keep one",
    ),
    (("consistency",), "token", "cooky", Code.WRONG_VALUE, "consistency.token", "off, cookie, header", "'cookie'?"),
    (("transactions",), "retry", 21, Code.WRONG_VALUE, "transactions.retry", "from 0 to 20", "For example"),
    (("transactions",), "retry_body_limit", "1MB", Code.WRONG_VALUE, "transactions.retry_body_limit", "64KiB", ""),
    (("transactions",), "retry_body_limit", "1024MiB", Code.WRONG_VALUE, "transactions.retry_body_limit", "1MiB", ""),
    (("transactions",), "max_parallel", 0, Code.WRONG_VALUE, "transactions.max_parallel", "from 1 to 100", ""),
    (("telemetry",), "metric_tenants", -1, Code.WRONG_VALUE, "telemetry.metric_tenants", "from 0 to 10000", ""),
]


@pytest.mark.parametrize(("section", "key", "value", "code", "path", "message", "fix"), MISTAKES)
def test_a_mistake_of_structure_is_reported_with_its_path_and_fix(
    section: tuple[str, ...], key: str, value: Any, code: Code, path: str, message: str, fix: str
) -> None:
    [problem] = examine(put(full(), section, key, value)).errors
    assert problem.code is code
    assert problem.key == path
    assert message in problem.message
    assert fix in problem.fix
    assert str(problem) == f"{code.value} {path}: {problem.message}. {problem.fix}"


def test_a_misspelt_required_key_is_reported_with_both_fixes() -> None:
    document = {"version": 1, "datasorces": {"orders": {"primary": {"url": "host=db"}}}}
    missing, unknown = examine(document).errors
    assert (missing.code, missing.fix) == (Code.MISSING_KEY, "Is 'datasorces' meant to be it?")
    assert (unknown.code, unknown.fix) == (Code.UNKNOWN_KEY, "Did you mean 'datasources'?")


@pytest.mark.parametrize(
    "document", [{1: 2}, {"tenants": {5: {"datasource": "orders"}}}, {"errors": {"status": {5: 409}}}]
)
def test_a_key_that_is_not_a_string_is_reported(document: dict[Any, Any]) -> None:
    [problem] = examine(small() | document).errors
    assert problem.code is Code.NOT_PLAIN
    assert problem.fix == "Quote it."


def test_all_problems_are_reported_at_once() -> None:
    document = small(
        datasources={"orders": {"primary": {"url": "//db/orders"}, "pool": {"min_sise": 1}}},
        tenants={"acme": {"datasource": "order"}, "globex": {}},
        routes=[{"match": "nowhere"}],
        transactions={"on_disconnect": "commit"},
    )
    with pytest.raises(InvalidConfig) as caught:
        load(document)
    assert [(problem.code, problem.key) for problem in caught.value.diagnostics] == [
        (Code.WRONG_VALUE, "datasources.orders.primary.url"),
        (Code.UNKNOWN_KEY, "datasources.orders.pool.min_sise"),
        (Code.MISSING_KEY, "tenants.globex.datasource"),
        (Code.WRONG_VALUE, "routes[0].match"),
        (Code.NOT_YET_SUPPORTED, "transactions.on_disconnect"),
        # And the second stage on the valid parts:
        (Code.UNKNOWN_DATASOURCE, "tenants.acme.datasource"),
    ]
    assert isinstance(caught.value, ConfigError)
    assert caught.value.kind is DataErrorKind.CONFIG
    lines = str(caught.value).splitlines()
    assert lines[0] == "the configuration has 6 errors:"
    assert lines[1:] == [f"  {problem}" for problem in caught.value.diagnostics]


def test_the_report_of_many_mistakes_is_bounded() -> None:
    document = small(tenants={f"t{number}": {"datasorce": "orders"} for number in range(3_000)})
    findings = examine(document)
    assert 500 <= len(findings.errors) <= 2_000
    message = str(InvalidConfig(findings.errors))
    assert len(message.splitlines()) == 102
    assert message.endswith(f"and {len(findings.errors) - 100} more")


@pytest.mark.parametrize("document", [None, [], "x", 3])
def test_a_document_that_is_not_a_mapping_is_refused(document: Any, tmp_path: Any) -> None:
    file = tmp_path / "datasource.json"
    file.write_text({"x": '"x"'}.get(str(document), str(document).replace("None", "null")))
    [problem] = examine(file).errors
    assert problem.code in (Code.WRONG_TYPE, Code.SYNTAX)
