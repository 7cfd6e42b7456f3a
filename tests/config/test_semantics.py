"""The semantic checks of well-formed documents: code, path and fix of each; and no false alarms next to mistakes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from asgi_datasource.config import Code, Severity, examine, json_schema
from asgi_datasource.config.coverage import Coverage, split_match
from asgi_datasource.config.url import find_fault
from tests.config.documents import PASSWORD, full, small

EU = {"primary": {"url": "postgresql://eu/orders"}}
US = {"primary": {"url": "postgresql://us/orders"}}


def datasource(**changes: Any) -> dict[str, Any]:
    return {"orders": {"primary": {"url": "postgresql://app@db/orders"}, **changes}}


NONSENSE = [
    # the document, the code, the key path, part of the message, part of the fix
    (
        small(tenants={"acme": {"datasource": "order"}}),
        Code.UNKNOWN_DATASOURCE,
        "tenants.acme.datasource",
        "names a datasource that is not there",
        "Did you mean 'orders'?",
    ),
    (
        small(tenants={"acme": {"datasource": "elsewhere"}}),
        Code.UNKNOWN_DATASOURCE,
        "tenants.acme.datasource",
        "names a datasource that is not there",
        "There are: orders.",
    ),
    (
        small(tenancy={"resolve": [{"header": "X"}], "default": "Orders"}),
        Code.UNKNOWN_DATASOURCE,
        "tenancy.default",
        "names a datasource that is not there",
        "Did you mean 'orders'?",
    ),
    (
        small(datasources=datasource(pool={"min_size": 11})),
        Code.CONTRADICTION,
        "datasources.orders.pool.min_size",
        "min_size 11 is more than max_size 10",
        "Lower min_size",
    ),
    (
        small(datasources=datasource(replicas={"r1": {"url": "postgresql://app@db/orders"}})),
        Code.SAME_SERVER,
        "datasources.orders.replicas.r1.url",
        "the same server as primary",
        "Give each server once",
    ),
    (
        small(datasources=datasource(replicas={"r1": {"url": "host=a"}, "r2": {"url": "host=a"}})),
        Code.SAME_SERVER,
        "datasources.orders.replicas.r2.url",
        "the same server as replicas.r1",
        "Give each server once",
    ),
    (
        small(
            tenants={
                "acme": {"datasource": "orders", "schema": "shop"},
                "globex": {"datasource": "orders", "schema": "shop"},
            }
        ),
        Code.SHARED_PLACE,
        "tenants.globex.schema",
        "the same schema as tenant 'acme'",
        "a datasource of its own",
    ),
    (
        small(
            tenants={
                "acme": {"datasource": "orders", "row_security": {"app.tenant": "1", "app.x": "2"}},
                "globex": {"datasource": "orders", "row_security": {"app.x": "2", "app.tenant": "1"}},
            }
        ),
        Code.SHARED_PLACE,
        "tenants.globex.row_security",
        "the same row_security as tenant 'acme'",
        "a datasource of its own",
    ),
    (
        small(
            datasources={"a": EU, "b": EU},
            tenants={"acme": {"datasource": "a", "schema": "shop"}, "globex": {"datasource": "b", "schema": "shop"}},
        ),
        Code.SHARED_PLACE,
        "tenants.globex.schema",
        "the same schema as tenant 'acme'",
        "a datasource of its own",
    ),
    (
        small(
            datasources={"own": {"primary": {"url": "host=a dbname={tenant}"}}},
            tenants={name: {"datasource": "own", "database": "eu", "schema": "shop"} for name in ("acme", "globex")},
        ),
        Code.SHARED_PLACE,
        "tenants.globex.schema",
        "the same schema as tenant 'acme'",
        "a datasource of its own",
    ),
    (
        small(
            tenants={
                "acme": {"datasource": "orders", "schema": "acme", "aliases": ["shop"]},
                "globex": {"datasource": "orders", "schema": "globex", "aliases": ["Shop", "shop"]},
            }
        ),
        Code.SHARED_NAME,
        "tenants.globex.aliases[1]",
        "'shop' is also a name of the tenant 'acme'",
        "a name stands for one tenant",
    ),
    (
        small(
            tenants={
                "acme": {"datasource": "orders", "schema": "acme", "domains": ["shop.test"]},
                "globex": {"datasource": "orders", "schema": "globex", "domains": ["Shop.Test"]},
            }
        ),
        Code.SHARED_NAME,
        "tenants.globex.domains[0]",
        "'Shop.Test' is also a host of the tenant 'acme'",
        "a host stands for one tenant",
    ),
    (
        small(
            tenancy={"resolve": [{"domain": {}}, {"subdomain_of": "app.test"}]},
            tenants={"acme": {"datasource": "orders", "schema": "acme", "domains": ["globex.App.test"]}},
        ),
        Code.CONTRADICTION,
        "tenants.acme.domains[0]",
        "'globex.App.test' is, or lies below, a domain of the application's own",
        "in the map of a domain resolver",
    ),
    (
        small(
            tenancy={"resolve": [{"domain": {}}], "trusted_hosts": ["*.app.test"]},
            tenants={"acme": {"datasource": "orders", "schema": "acme", "domains": ["app.test"]}},
        ),
        Code.CONTRADICTION,
        "tenants.acme.domains[0]",
        "a domain of the application's own",
        "without being listed in trusted_hosts",
    ),
    (
        small(migrate={"folder": "m", "stages": [{"name": "rest"}, {"name": "late", "tenants": ["acme"]}]}),
        Code.CONTRADICTION,
        "migrate.stages[0]",
        "all tenants that are left, and no stage can follow",
        "put it last",
    ),
    (
        small(
            migrate={
                "folder": "m",
                "stages": [{"name": "canary", "tenants": ["acme"]}, {"name": "late", "tenants": ["acme"]}],
            }
        ),
        Code.CONTRADICTION,
        "migrate.stages[1].tenants[0]",
        "a stage before has this tenant already",
        "Name it once",
    ),
    (
        small(migrate={"folder": "m", "stages": [{"name": "canary", "tenants": ["hooli"]}]}),
        Code.UNKNOWN_TENANT,
        "migrate.stages[0].tenants[0]",
        "there is no such tenant",
        "Name one of the tenants",
    ),
    (
        small(tenancy={"resolve": [{"header": "X"}], "trusted_hosts": ["app.test", f"*.{'a' * 64}.test"]}),
        Code.ADDRESS,
        "tenancy.trusted_hosts[1]",
        "not the name of a host",
        "as it stands in an address",
    ),
    (
        small(
            tenants={"acme": {"datasource": "orders", "schema": "acme", "domains": ["a..b".replace("..", ".\u3002")]}}
        ),
        Code.ADDRESS,
        "tenants.acme.domains[0]",
        "not the name of a host",
        "as it stands in an address",
    ),
    (
        small(
            tenancy={"resolve": [{"domain": {"shop.test": "acme"}}]},
            tenants={
                "acme": {"datasource": "orders", "schema": "acme"},
                "globex": {"datasource": "orders", "schema": "globex", "domains": ["SHOP.test"]},
            },
        ),
        Code.SHARED_NAME,
        "tenants.globex.domains[0]",
        "'SHOP.test' is also a host of the tenant 'acme'",
        "a host stands for one tenant",
    ),
    (
        small(
            tenancy={"resolve": [{"domain": {"shop.test": "acme"}}, {"domain": {"Shop.test": "globex"}}]},
            tenants={name: {"datasource": "orders", "schema": name} for name in ("acme", "globex")},
        ),
        Code.SHARED_NAME,
        'tenancy.resolve[1].domain."Shop.test"',
        "'Shop.test' is also a host of the tenant 'acme'",
        "a host stands for one tenant",
    ),
    (
        small(consistency={"token": "cookie"}),
        Code.MISSING_KEY,
        "consistency.secret",
        "tokens are to be signed",
        "Add secret:",
    ),
    (
        small(consistency={"token": "header", "secret": "0123456789abcdef", "old_secrets": ["short"]}),
        Code.WRONG_VALUE,
        "consistency.old_secrets[0]",
        "too short for a secret that signs",
        "16 characters or more",
    ),
    (
        small(routes=[{"match": "GET /basket", "consistency": "session"}]),
        Code.CONTRADICTION,
        "routes[0].consistency",
        "takes a token, and clients carry none",
        "leave this out",
    ),
    (
        small(consistency={"monotonic": True}),
        Code.CONTRADICTION,
        "consistency.monotonic",
        "monotonic reads take a token",
        "or leave this out",
    ),
    (
        small(tenancy={}),
        Code.NO_RESOLVER,
        "tenancy.resolve",
        "no way to tell them from requests",
        "resolve: [{header: X-Tenant}]",
    ),
    (
        small(tenants={"Acme": {"datasource": "orders"}}),
        Code.TENANT_NAME,
        "tenants.Acme",
        "does not match tenancy.pattern",
        "Rename the tenant, or widen the pattern",
    ),
    (
        small(tenancy={"resolve": [{"header": "X"}], "pattern": "["}),
        Code.PATTERN,
        "tenancy.pattern",
        "not a regular expression",
        "re module",
    ),
    (
        small(tenants={"acme": {"datasource": "orders", "schema": "ä" * 40}}),
        Code.NAME_TOO_LONG,
        "tenants.acme.schema",
        "longer than 63 bytes",
        "Shorten it",
    ),
    (
        small(datasources=datasource(search_path=["x", "ä" * 40])),
        Code.NAME_TOO_LONG,
        "datasources.orders.search_path[1]",
        "longer than 63 bytes",
        "Shorten it",
    ),
    (
        small(routes=[{"match": "/x", "read_only": True, "intent": "write"}]),
        Code.CONTRADICTION,
        "routes[0].read_only",
        "contradicts intent: write",
        "Keep one of them",
    ),
    (
        small(routes=[{"match": "/x", "stream": True}]),
        Code.CONTRADICTION,
        "routes[0].stream",
        "has to end before the response starts",
        "Add read_only: true",
    ),
    (
        small(routes=[{"match": "/x", "deferrable": True, "read_only": True}]),
        Code.CONTRADICTION,
        "routes[0].deferrable",
        "read-only serializable transactions",
        "isolation: serializable",
    ),
    (
        small(routes=[{"match": "/x", "propagation": "not_supported", "retry": 3}]),
        Code.CONTRADICTION,
        "routes[0].retry",
        "propagation: not_supported does without",
        "Keep one of them",
    ),
    (
        small(routes=[{"match": "/x", "commit_on": [409, "5xx"], "rollback_on": ["5xx"]}]),
        Code.CONTRADICTION,
        "routes[0].commit_on",
        "5xx stands in commit_on and in rollback_on",
        "Keep it in one of them",
    ),
    (
        small(datasources=datasource(primary={"url": f"postgresql://app:{PASSWORD}@x@db/orders"})),
        Code.URL,
        "datasources.orders.primary.url",
        "where the password ends",
        "%40",
    ),
    (
        small(
            tenancy={
                "resolve": [{"header": "X"}],
                "trusted_proxies": ["unix"],
                "trusted_headers": ["forwarded", "none"],
            }
        ),
        Code.CONTRADICTION,
        "tenancy.trusted_headers[1]",
        "'none' beside other headers",
        "Keep none alone",
    ),
]


@pytest.mark.parametrize(("document", "code", "path", "message", "fix"), NONSENSE)
def test_a_semantic_mistake_is_reported_with_its_path_and_fix(
    document: dict[str, Any], code: Code, path: str, message: str, fix: str
) -> None:
    assert Draft202012Validator(json_schema()).is_valid(document), "the form is valid"
    [problem] = examine(document).errors
    assert problem.code is code
    assert problem.key == path
    assert message in problem.message
    assert fix in problem.fix


WARNINGS = [
    (
        small(tenants={"acme": {"datasource": "orders"}, "globex": {"datasource": "orders"}}),
        Code.SHARED_PLACE,
        "tenants.globex",
        "nothing keeps this tenant apart from 'acme'",
    ),
    (small(tenants={}), Code.NO_RESOLVER, "tenants", "no request will be served"),
    (
        small(routes=[{"match": "GET /a/**"}, {"match": "GET /a/b"}]),
        Code.UNREACHABLE,
        "routes[1].match",
        "routes[0] matches all that it matches",
    ),
    (
        small(datasources=datasource(replicas={"r1": {"url": "host=r1"}}, routing={"max_lag": "199ms"})),
        Code.LAG_TOO_SHORT,
        "datasources.orders.routing.max_lag",
        "no replica can show that its data is younger than 199ms",
    ),
    (
        small(
            datasources=datasource(replicas={"r1": {"url": "host=r1"}}),
            routes=[{"match": "/x"}, {"match": "/y", "max_lag": "1ms"}],
        ),
        Code.LAG_TOO_SHORT,
        "routes[1].max_lag",
        "younger than 1ms",
    ),
    (
        small(tenancy={"resolve": [{"header": "X"}, {"header": "X"}]}),
        Code.UNREACHABLE,
        "tenancy.resolve[1]",
        "the same way stands in front of it",
    ),
    (
        small(telemetry={"metric_tenants": 100}),
        Code.CONTRADICTION,
        "telemetry.metric_tenants",
        "there are no metrics that could name tenants",
    ),
    (
        small(tenancy={"resolve": [{"fixed": "acme"}, {"header": "X"}]}),
        Code.UNREACHABLE,
        "tenancy.resolve[1]",
        "the one in front of it answers every request",
    ),
    (
        small(tenancy={"resolve": [{"path_prefix": "/t/"}], "exempt": ["/t"]}),
        Code.NEVER_ANSWERS,
        "tenancy.resolve[0]",
        "all paths below its prefix are exempt",
    ),
    (
        small(
            tenancy={"resolve": [{"subdomain_of": "app.test"}], "pattern": "[A-Z ]+"},
            tenants={"ACME INC": {"datasource": "orders"}},
        ),
        Code.NEVER_ANSWERS,
        "tenancy.resolve[0]",
        "none of the tenants has a name that is a label of a host name",
    ),
    (
        small(tenancy={"resolve": [{"header": "X"}], "trusted_proxies": ["10.0.0.0/8"]}),
        Code.CONTRADICTION,
        "tenancy.trusted_headers",
        "proxies are trusted, but none of their headers",
    ),
    (
        small(tenancy={"resolve": [{"header": "X"}], "trusted_headers": ["forwarded"]}),
        Code.CONTRADICTION,
        "tenancy.trusted_headers",
        "headers are trusted, but no proxy",
    ),
]


@pytest.mark.parametrize(("document", "code", "path", "message"), WARNINGS)
def test_probable_mistakes_are_warnings(document: dict[str, Any], code: Code, path: str, message: str) -> None:
    findings = examine(document)
    assert findings.config is not None
    assert findings.errors == ()
    [problem] = findings.diagnostics
    assert (problem.severity, problem.code, problem.key) == (Severity.WARNING, code, path)
    assert message in problem.message
    assert problem.fix


TOKENS = {"token": "cookie", "secret": "0123456789abcdef", "ttl": "30s"}


@pytest.mark.parametrize("routing", [{}, {"max_lag": "31s"}])
def test_replicas_that_may_outlive_a_token_are_a_hint(routing: dict[str, Any]) -> None:
    replicas = {"r1": {"url": "host=r1"}}
    document = small(datasources=datasource(replicas=replicas, routing=routing), consistency=TOKENS)
    [problem] = examine(document).diagnostics
    assert (problem.severity, problem.code) == (Severity.HINT, Code.OUTLIVED_TOKEN)
    assert problem.key == "datasources.orders.routing.max_lag"
    assert "counts for 30s, and replicas may be further behind" in problem.message
    assert problem.edit is not None
    assert problem.edit.value == "30s"


SENSIBLE = [
    small(
        # The table may have a tenant whose name can be in a host.
        tenancy={"resolve": [{"subdomain_of": "app.test"}], "pattern": "[A-Z ]+"},
        tenants={"ACME INC": {"datasource": "orders"}},
        tenants_from={"datasource": "orders", "defaults": {"datasource": "orders", "schema": "{tenant}"}},
    ),
    small(
        tenancy={"resolve": [{"domain": {"shop.test": "acme"}}, {"domain": {"SHOP.test": "acme"}}]},
        tenants={"acme": {"datasource": "orders", "schema": "acme", "domains": ["shop.test"]}},
    ),
    small(
        datasources=datasource(replicas={"r1": {"url": "host=r1"}}, routing={"max_lag": "200ms"}),
        consistency={**TOKENS, "monotonic": True},
    ),
    small(datasources=datasource(routing={"max_lag": "1ms"}), consistency=TOKENS),
    full(),
    *(
        # There may be such a tenant.
        small(migrate={"folder": "m", "stages": [{"name": "canary", "tenants": ["hooli"]}, {"name": "rest"}]}, **others)
        for others in (
            {"tenants_from": {"datasource": "orders", "defaults": {"datasource": "orders", "schema": "{tenant}"}}},
            {"tenants": {"*": {"datasource": "orders", "schema": "t_{tenant}"}}},
        )
    ),
    small(tenancy={"default": "orders"}, tenants={}),
    small(
        tenants={
            "acme": {"datasource": "orders", "schema": "shop", "row_security": {"app.tenant": "1"}},
            "globex": {"datasource": "orders", "schema": "shop", "row_security": {"app.tenant": "2"}},
        }
    ),
    small(
        tenants={
            "acme": {"datasource": "orders", "schema": "shop", "role": "acme"},
            "globex": {"datasource": "orders", "schema": "shop", "role": "globex"},
        }
    ),
    small(
        datasources={"eu": EU, "us": US},
        tenants={"acme": {"datasource": "eu", "schema": "x"}, "globex": {"datasource": "us", "schema": "x"}},
    ),
    small(
        # Several tenants share a database and have a schema each.
        datasources={"own": {"primary": {"url": "host=a dbname={tenant}"}}},
        tenants={
            name: {"datasource": "own", "database": "eu", "schema": name} for name in ("acme", "globex", "initech")
        },
    ),
    small(tenancy={"resolve": [{"header": "X"}], "trusted_proxies": ["unix"], "trusted_headers": ["none"]}),
    small(routes=[{"match": "GET /a/*"}, {"match": "/a/*"}, {"match": "GET /a/**"}, {"match": "/**"}]),
]


@pytest.mark.parametrize("document", SENSIBLE)
def test_a_correct_document_has_no_finding(document: dict[str, Any]) -> None:
    assert examine(document).diagnostics == ()


def test_a_wrong_part_causes_no_second_problem() -> None:
    """A datasource with a wrong URL still exists for the tenants that refer to it."""
    mistakes: list[tuple[dict[str, Any], list[str]]] = [
        (small(datasources=datasource(primary={"url": "//"})), ["datasources.orders.primary.url"]),
        (small(datasources=datasource(primary={})), ["datasources.orders.primary.url"]),
        (small(datasources={"orders": 3}), ["datasources.orders"]),
        (small(datasources={}), ["datasources"]),
        (small(datasources=datasource(pool={"min_size": 20, "max_size": "x"})), ["datasources.orders.pool.max_size"]),
        (small(tenancy={"resolve": [{"headr": "X"}]}), ["tenancy.resolve[0].headr"]),
        (small(tenancy={"resolve": 3}), ["tenancy.resolve"]),
        (
            small(tenants={"acme": {"datasource": "orders", "schema": 3}, "globex": {"datasource": "orders"}}),
            ["tenants.acme.schema"],
        ),
        (small(version=2), ["version"]),
        (small(datasources={"orders": EU, "or ders": US}), ["datasources.…"]),
    ]
    for document, paths in mistakes:
        assert [problem.key for problem in examine(document).diagnostics] == paths


def test_semantics_are_checked_despite_mistakes_of_structure() -> None:
    document = small(
        datasources=datasource(pool={"min_size": 20}, replicas={"r1": {"url": "//"}}),
        tenants={"acme": {"datasource": "elsewhere"}, "globex": {}, "initech": {"datasource": "orders", "schema": 3}},
        routes=[{"match": 3}, {"match": "/x", "read_only": True, "intent": "write"}],
    )
    assert [(problem.code, problem.key) for problem in examine(document).errors] == [
        (Code.WRONG_VALUE, "datasources.orders.replicas.r1.url"),
        (Code.MISSING_KEY, "tenants.globex.datasource"),
        (Code.WRONG_TYPE, "tenants.initech.schema"),
        (Code.WRONG_TYPE, "routes[0].match"),
        (Code.CONTRADICTION, "datasources.orders.pool.min_size"),
        (Code.UNKNOWN_DATASOURCE, "tenants.acme.datasource"),
        (Code.CONTRADICTION, "routes[1].read_only"),
    ]


@pytest.mark.parametrize(
    ("match", "other", "expected"),
    [
        ("/**", "GET /a/b", True),
        ("GET /**", "/a", False),
        ("GET /**", "POST /a", False),
        ("* /a", "GET /a", True),
        ("/a/*", "/a/b", True),
        ("/a/*", "/a/*", True),
        ("/a/*", "/a/b/c", False),
        ("/a/*", "/a/**", False),
        ("/a/*", "/a/", False),
        ("/a/b", "/a/*", False),
        ("/a/**", "/a", True),
        ("/a/**", "/a/b/**", True),
        ("/a/**", "/ab", False),
        ("/*/b", "/a/b", True),
        ("/", "/", True),
        ("/", "/a", False),
    ],
)
def test_which_rule_covers_which(match: str, other: str, expected: bool) -> None:
    rules = Coverage()
    rules.add(match, 7)
    assert rules.find(other) == (7 if expected else None)
    assert covers(match, other) is expected


def covers(match: str, other: str) -> bool:
    """The same for two rules, by definition."""
    method, segments = split_match(match)
    other_method, others = split_match(other)

    def covers_each(front: tuple[str, ...], behind: tuple[str, ...]) -> bool:
        return all(
            segment == theirs or (segment == "*" and theirs not in ("**", ""))
            for segment, theirs in zip(front, behind, strict=True)
        )

    if method not in (None, other_method):
        return False
    if segments[-1] == "**":
        return len(others) >= len(segments) - 1 and covers_each(segments[:-1], others[: len(segments) - 1])
    return len(segments) == len(others) and others[-1] != "**" and covers_each(segments, others)


def test_the_first_rule_that_covers_another_is_found_among_many() -> None:
    chance = random.Random(7)

    def match() -> str:
        segments = [chance.choice(["a", "b", "*"]) for _ in range(chance.randrange(4))]
        segments += chance.choice([[], ["**"], [""]]) if segments else [chance.choice(["", "**"])]
        return f"{chance.choice(['', 'GET ', 'POST ', '* '])}/{'/'.join(segments)}"

    for _ in range(100):
        matches = [match() for _ in range(30)]
        rules = Coverage()
        for index, each in enumerate(matches):
            expected = next((number for number in range(index) if covers(matches[number], each)), None)
            assert rules.find(each) == expected, (matches, index)
            rules.add(each, index)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgresql://db",
        "postgres://app:p%40ss@db:5432/orders?sslmode=require&options=-c%20x%3D1",
        "postgresql://app@[::1]:5433/orders",
        "postgresql://a:1,b:2,c/orders?target_session_attrs=read-write",
        "postgresql:///orders?host=/var/run/postgresql",
        "postgresql://%2Fvar%2Frun/orders",
        "host=db port=5432 dbname=orders",
        "host = db  password = 'a b\\'c'",
        "service=orders ",
        "user=app password=",
    ],
)
def test_urls_that_libpq_understands(url: str) -> None:
    assert find_fault(url) is None


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://app:a@b@db/orders", "where the password ends"),
        ("postgresql://app:a/b@db/orders", "where the password ends"),
        ("postgresql://app:a#b@db/orders", "'#'"),
        ("postgresql://app:a b@db/orders", "a space"),
        ("postgresql://app:100%@db/orders", "percent sign"),
        ("postgresql://db:port/orders", "host and port"),
        ("mysql://db/orders", "not a URL of PostgreSQL"),
        ("postgresql://::1/orders", "host and port"),
        ("postgresql://db:0/orders", "a port that is not one"),
        ("postgresql://a:5432,b:99999/orders", "a port that is not one"),
        ("host=db password='open", "keyword=value"),
        ("host=db orders", "keyword=value"),
        ("host=a b=c d", "keyword=value"),
    ],
)
def test_urls_that_libpq_does_not_understand(url: str, fault: str) -> None:
    found = find_fault(url)
    assert found is not None
    assert fault in found[0]
    assert found[1].endswith(".")


def test_a_schema_that_a_template_fills_is_the_place_that_it_names() -> None:
    tenants = {
        "acme": {"datasource": "orders", "schema": "t_{tenant}"},
        "old": {"datasource": "orders", "schema": "t_acme"},
    }
    [problem] = examine(small(tenants=tenants)).diagnostics
    assert (problem.key, "acme" in problem.message) == ("tenants.old.schema", True)
    assert not examine(small(tenants={**tenants, "old": {"datasource": "orders", "schema": "t_{tenant}"}})).diagnostics


def test_a_name_of_63_bytes_is_not_too_long() -> None:
    longest = "ä" * 31 + "x"
    tenants = {"acme": {"datasource": "orders", "schema": longest}}
    assert not examine(small(tenants=tenants, datasources=datasource(search_path=[longest]))).diagnostics
