"""Each way to tell the tenant from a request, alone and together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from asgi_datasource import DataError, DataErrorKind, DataSourceRegistry, Resolution, compile
from asgi_datasource.tenancy.hosts import TrustedHosts
from tests.tenancy.scopes import ask, scope

TENANTS: dict[str, Any] = {
    "acme": {
        "datasource": "orders",
        "schema": "acme",
        "aliases": ["acme-inc", "old.acme.test"],
        "domains": ["shop.acme.test", "b\u00fccher.example", "single"],
    },
    "globex": {"datasource": "orders", "schema": "globex"},
}


def registry(*resolve: dict[str, Any], **tenancy: Any) -> DataSourceRegistry:
    return compile(
        {
            "version": 1,
            "datasources": {"orders": {"primary": {"url": "postgresql://app@127.0.0.1:1/orders"}}},
            "tenancy": {"resolve": list(resolve), **tenancy},
            "tenants": TENANTS,
        }
    )


async def name(request: dict[str, Any], *resolve: dict[str, Any], **tenancy: Any) -> str | None:
    return await ask(registry(*resolve, **tenancy).compiled.resolution(), request)


async def refusal(request: dict[str, Any], *resolve: dict[str, Any], **tenancy: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        await name(request, *resolve, **tenancy)
    assert caught.value.kind is DataErrorKind.TENANT
    assert caught.value.http_status == 400
    return caught.value


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("tenant=acme", "acme"),
        ("a=1&tenant=acme&b=2", "acme"),
        ("%74enant=acme", "acme"),
        ("tenant=acme&tenant=acme", "acme"),
        ("tenant=ac%6de", "acme"),
        ("tenant=", None),
        ("tenants=acme", None),
        ("", None),
    ],
)
async def test_a_query_parameter_names_the_tenant(query: str, wanted: str | None) -> None:
    assert await name(scope(query=query), {"query": "tenant"}) == wanted


async def test_a_query_parameter_with_two_values_is_ambiguous() -> None:
    await refusal(scope(query="tenant=acme&tenant=globex"), {"query": "tenant"})


async def test_a_query_of_a_thousand_parameters_is_refused() -> None:
    await refusal(scope(query="&".join(f"tenant{number}=x" for number in range(1001))), {"query": "tenant"})


@pytest.mark.parametrize(
    ("cookies", "wanted"),
    [
        (["tenant=acme"], "acme"),
        (["a=b; tenant=acme; c"], "acme"),
        (["a=b", "tenant=acme"], "acme"),
        (['tenant="acme"'], "acme"),
        (["tenant=acme; tenant=acme"], "acme"),
        (["tenant="], None),
        (["xtenant=acme; tenantx=acme"], None),
        ([], None),
    ],
)
async def test_a_cookie_names_the_tenant(cookies: list[str], wanted: str | None) -> None:
    request = scope("/", *(("cookie", text) for text in cookies))
    assert await name(request, {"cookie": "tenant"}) == wanted


async def test_a_cookie_with_two_values_is_ambiguous() -> None:
    await refusal(scope("/", ("cookie", "tenant=acme; tenant=globex")), {"cookie": "tenant"})


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        (SimpleNamespace(tenant_id="acme"), "acme"),
        ({"tenant_id": "acme"}, "acme"),
        (SimpleNamespace(tenant_id=42), "42"),
        (SimpleNamespace(tenant_id=UUID(int=1)), "00000000-0000-0000-0000-000000000001"),
        (SimpleNamespace(tenant_id=None), None),
        (SimpleNamespace(), None),
        (None, None),
    ],
)
async def test_another_middlewares_word_names_the_tenant(user: object, wanted: str | None) -> None:
    assert await name(scope(user=user), {"scope": "user.tenant_id"}) == wanted
    assert await name(scope(), {"scope": "user.tenant_id"}) is None


@pytest.mark.parametrize("value", [True, 1.5, ["acme"], b"acme"])
async def test_what_cannot_be_a_name_in_the_scope_is_a_defect_of_the_application(value: object) -> None:
    with pytest.raises(DataError) as caught:
        await name(scope(tenant=value), {"scope": "tenant"})
    assert caught.value.kind is DataErrorKind.CONFIG


def at_once(request: Any) -> object:
    """A resolver that need not be waited for; it answers what the header asks it to."""
    said = dict(request["headers"]).get(b"x-say", b"").decode()
    return {"number": 7, "nothing": None}.get(said, said)


@pytest.mark.parametrize(("said", "wanted"), [("acme", "acme"), ("", None), ("nothing", None)])
async def test_a_function_of_the_applications_names_the_tenant(said: str, wanted: str | None) -> None:
    ways = ({"callable": "tests.tenancy.test_resolvers:at_once"},)
    assert await name(scope("/", ("X-Say", said)), *ways) == wanted


async def test_a_function_that_answers_no_name_is_a_defect_of_the_application() -> None:
    with pytest.raises(DataError, match="answered a int; return a str or None") as caught:
        await name(scope("/", ("X-Say", "number")), {"callable": "tests.tenancy.test_resolvers:at_once"})
    assert caught.value.kind is DataErrorKind.CONFIG


async def test_a_fixed_tenant_is_the_last_word() -> None:
    ways = ({"header": "X-Tenant"}, {"fixed": "acme"})
    assert await name(scope(), *ways) == "acme"
    assert await name(scope("/", ("X-Tenant", "globex")), *ways) == "globex"


# -- hosts


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("acme.app.test", "acme"),
        ("ACME.App.Test", "acme"),
        ("acme.app.test:8443", "acme"),
        ("acme.app.test.", "acme"),
        ("acme.app.test.:80", "acme"),
        ("acme.app.test..", None),
        ("a.acme.app.test", None),
        ("app.test", None),
        ("acmeapp.test", None),
        ("acme.app.test.evil.test", None),
        ("acme.app.test@evil.test", None),
        ("acme.app.test/x", None),
        ("acme.app.test:port", None),
        ("acme.app.test:123456", None),
        ("[::1]:80", None),
        ("127.0.0.1", None),
        ("", None),
        (" acme.app.test ", "acme"),
        ("a" * 64 + ".app.test", None),
        ("\u212acme.app.test", "kcme"),
        ("acme\u3002app.test", "acme"),
        ("acme\x00.app.test", None),
        ("ac me.app.test", None),
    ],
)
async def test_the_label_in_front_of_a_domain_names_the_tenant(host: str, wanted: str | None) -> None:
    assert await name(scope(host=host), {"subdomain_of": "app.test"}) == wanted


async def test_a_domain_of_another_script_is_known_in_both_spellings() -> None:
    for host in ("acme.b\u00fccher.test", "acme.xn--bcher-kva.test", "acme.B\u00dcCHER.test"):
        assert await name(scope(host=host), {"subdomain_of": "b\u00fccher.test"}) == "acme"


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("globex.test", "globex"),
        ("GLOBEX.test.:80", "globex"),
        ("shop.acme.test", "acme"),
        ("b\u00fccher.example", "acme"),
        ("xn--bcher-kva.example", "acme"),
        ("www.globex.test", None),
        ("acme", None),
        # An alias is a name, and no host.
        ("old.acme.test", None),
    ],
)
async def test_a_domain_of_its_own_names_the_tenant(host: str, wanted: str | None) -> None:
    assert await name(scope(host=host), {"domain": {"globex.test": "globex"}}) == wanted


async def test_an_alias_is_another_name_of_the_tenant() -> None:
    found = registry({"header": "X-Tenant"})
    assert found.tenant("acme-inc") is found.tenant("acme")
    # A domain is a host, and no name.
    for host in ("shop.acme.test", "single"):
        with pytest.raises(DataError):
            found.tenant(host)
    assert [tenant.name async for tenant in found.tenants()] == ["acme", "globex"]


async def test_two_host_headers_are_ambiguous() -> None:
    await refusal(scope("/", ("Host", "globex.app.test"), host="acme.app.test"), {"subdomain_of": "app.test"})


BOTH = ["forwarded", "x-forwarded-host"]
PROXIES = ["10.0.0.0/8", "fd00::/8", "192.0.2.7"]


@pytest.mark.parametrize(
    ("client", "headers", "wanted"),
    [
        # Headers from other addresses are ignored.
        (("192.0.2.1", 1), [("X-Forwarded-Host", "globex.app.test")], "acme"),
        (("192.0.2.1", 1), [("Forwarded", "host=globex.app.test")], "acme"),
        (None, [("X-Forwarded-Host", "globex.app.test")], "acme"),
        (("testclient", 1), [("X-Forwarded-Host", "globex.app.test")], "acme"),
        # From a known proxy they count.
        (("10.1.2.3", 1), [("X-Forwarded-Host", "globex.app.test")], "globex"),
        (("::ffff:10.1.2.3", 1), [("X-Forwarded-Host", "globex.app.test")], "globex"),
        (("fd00::1", 1), [("X-Forwarded-Host", "Globex.app.test:443")], "globex"),
        (("192.0.2.7", 1), [("Forwarded", "for=192.0.2.60;proto=http;host=globex.app.test")], "globex"),
        (("192.0.2.7", 1), [("Forwarded", 'For="[2001:db8::17]:4711";HOST="globex.app.test:80"')], "globex"),
        (("192.0.2.7", 1), [("Forwarded", 'host="glo\\bex.app.test"')], "globex"),
        (("10.1.2.3", 1), [], "acme"),
        # A known proxy behind a known proxy: what the outer one was asked for.
        (
            ("10.1.2.3", 1),
            [("Forwarded", "for=192.0.2.60;host=globex.app.test, for=10.9.9.9;host=inner.test")],
            "globex",
        ),
        # What the client itself has put in front is not to be believed.
        (("10.1.2.3", 1), [("Forwarded", "host=acme.app.test, for=192.0.2.60;host=globex.app.test")], "globex"),
        (("10.1.2.3", 1), [("Forwarded", "host=acme.app.test, for=unknown;host=globex.app.test")], "globex"),
        (("10.1.2.3", 1), [("Forwarded", "for=192.0.2.60")], "acme"),
        # Both headers, and they agree.
        (
            ("10.1.2.3", 1),
            [("Forwarded", "host=globex.app.test"), ("X-Forwarded-Host", "GLOBEX.app.test:443")],
            "globex",
        ),
    ],
)
async def test_forwarded_hosts_count_from_trusted_proxies_only(
    client: tuple[str, int] | None, headers: list[tuple[str, str]], wanted: str
) -> None:
    request = scope("/", *headers, host="acme.app.test", client=client)
    assert await name(request, {"subdomain_of": "app.test"}, trusted_proxies=PROXIES, trusted_headers=BOTH) == wanted


async def test_whoever_connects_through_a_unix_socket_can_be_a_trusted_proxy() -> None:
    for client in (None, ("", 0)):
        request = scope("/", ("X-Forwarded-Host", "globex.app.test"), host="acme.app.test", client=client)
        tenancy = {"trusted_proxies": ["unix"], "trusted_headers": BOTH}
        assert await name(request, {"subdomain_of": "app.test"}, **tenancy) == "globex"


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Forwarded-Host", "acme.app.test, globex.app.test")],
        [("X-Forwarded-Host", "acme.app.test"), ("X-Forwarded-Host", "globex.app.test")],
        [("X-Forwarded-Host", "acme.app.test"), ("Forwarded", "host=globex.app.test")],
    ],
)
async def test_proxies_that_name_two_hosts_are_ambiguous(headers: list[tuple[str, str]]) -> None:
    request = scope("/", *headers, host="acme.app.test", client=("10.0.0.1", 1))
    await refusal(request, {"subdomain_of": "app.test"}, trusted_proxies=PROXIES, trusted_headers=BOTH)


ACME = ", for=198.51.100.7;host=acme.app.test"
"""What the proxy appends to what a client has sent."""


@pytest.mark.parametrize(
    "sent",
    [
        # An open quote would swallow what the proxy has appended.
        'for=9.9.9.9;host=globex.app.test;x="',
        'host=globex.app.test;x="\\',
        'host="globex.app.test',
        "host=globex.app.test;x=a b",
        "host = globex.app.test",
        "host=globex.app.test; for=9.9.9.9",
        "host=globex.app.test;host=acme.app.test",
        "host=globex.app.test;HOST=globex.app.test",
        "host",
        "host=",
        "=globex.app.test",
        "host=glo/bex.app.test",
        'host="globex.app.test/x"',
        "for=10.0.0.1:80;host=globex.app.test",
        "for=2001:db8::1",
        'for="2001:db8::1"',
        "for=10.0.0.256",
        "for=10.0.0",
        'for="[::1"',
        "for=nobody",
        'for=""',
        'by="10.0.0.1:123456"',
        "proto=1http",
        "host=globex.app.test\x00",
        "(comment)",
    ],
)
async def test_a_forwarded_header_is_read_whole_or_not_at_all(sent: str) -> None:
    for headers in ([("Forwarded", sent + ACME)], [("Forwarded", sent), ("Forwarded", ACME[2:])]):
        request = scope("/", *headers, host="acme.app.test", client=("10.1.2.3", 1))
        error = await refusal(
            request, {"subdomain_of": "app.test"}, trusted_proxies=PROXIES, trusted_headers=["forwarded"]
        )
        assert "not what RFC 7239 allows" in error.message


@pytest.mark.parametrize(
    "sent",
    [
        "for=9.9.9.9;host=globex.app.test",
        "",
        ",,",
        ";;, ;",
        "for=unknown",
        "for=_hidden;by=_proxy.1",
        'for="_hidden:_port"',
        'for="[2001:db8::1]:80";proto=https',
        'x="a, \\" host=globex.app.test"',
        'x="\xe9\t"',
        " \tfor=9.9.9.9 \t",
    ],
)
async def test_what_a_client_has_sent_does_not_change_what_the_proxy_appends(sent: str) -> None:
    for headers in ([("Forwarded", sent + ACME)], [("Forwarded", sent), ("Forwarded", ACME[2:])]):
        request = scope("/", *headers, host="inner.test", client=("10.1.2.3", 1))
        tenancy = {"trusted_proxies": PROXIES, "trusted_headers": ["forwarded"]}
        assert await name(request, {"subdomain_of": "app.test"}, **tenancy) == "acme"


async def test_an_element_that_names_nobody_ends_what_is_believed() -> None:
    for appended in ("", "proto=https", ";"):
        request = scope(
            "/", ("Forwarded", f"host=globex.app.test,{appended}"), host="acme.app.test", client=("10.1.2.3", 1)
        )
        tenancy = {"trusted_proxies": PROXIES, "trusted_headers": ["forwarded"]}
        assert await name(request, {"subdomain_of": "app.test"}, **tenancy) == "acme"


async def test_a_header_that_a_proxy_passes_on_is_not_believed() -> None:
    headers = [("Forwarded", "host=globex.app.test"), ("X-Forwarded-Host", "initech.app.test")]
    request = scope("/", *headers, host="acme.app.test", client=("10.1.2.3", 1))
    wanted = {"forwarded": "globex", "x-forwarded-host": "initech", "none": "acme"}
    for header, tenant in wanted.items():
        tenancy = {"trusted_proxies": PROXIES, "trusted_headers": [header]}
        assert await name(request, {"subdomain_of": "app.test"}, **tenancy) == tenant
    assert await name(request, {"subdomain_of": "app.test"}, trusted_proxies=PROXIES) == "acme"
    # A header that does not count is not parsed either.
    request = scope("/", ("Forwarded", 'x="'), host="acme.app.test", client=("10.1.2.3", 1))
    assert await name(request, {"subdomain_of": "app.test"}, trusted_proxies=PROXIES) == "acme"


@pytest.mark.parametrize("host", ["app.test", "acme.app.test", "globex.test", "shop.acme.test", "APP.test:80"])
async def test_trusted_hosts_and_the_tenants_own_domains_are_served(host: str) -> None:
    ways = ({"domain": {"globex.test": "globex"}}, {"fixed": "acme"})
    assert await name(scope(host=host), *ways, trusted_hosts=["app.test", "*.app.test"])


@pytest.mark.parametrize("host", ["evil.test", "evilapp.test", "127.0.0.1", "", None, "app.test.evil.test"])
async def test_other_hosts_are_refused_before_anybody_is_asked(host: str | None) -> None:
    ways = ({"domain": {"globex.test": "globex"}}, {"fixed": "acme"})
    error = await refusal(scope(host=host), *ways, trusted_hosts=["app.test", "*.app.test"])
    assert "not one that is served here" in error.message


async def test_a_host_that_is_no_name_opens_nothing() -> None:
    for entry in ("*.", ""):
        assert not TrustedHosts([entry]).serves("evil.test")


async def test_a_prefix_that_begins_like_the_root_path_is_found() -> None:
    request = scope("/apidocs/acme/x", root_path="/api")
    assert await name(request, {"path_prefix": "/apidocs"}) == "acme"
    assert await name(scope("/api/apidocs/acme", root_path="/api"), {"path_prefix": "/apidocs"}) == "acme"


# -- together


async def test_the_first_answer_wins() -> None:
    ways = ({"header": "X-Tenant"}, {"subdomain_of": "app.test"})
    request = scope("/", ("X-Tenant", "globex"), host="acme.app.test")
    assert await name(request, *ways) == "globex"


@pytest.mark.parametrize(
    ("header", "host", "wanted"),
    [
        ("acme", "acme.app.test", "acme"),
        ("acme-inc", "acme.app.test", "acme-inc"),
        ("acme", "elsewhere.test", "acme"),
        (None, "acme.app.test", "acme"),
        (None, "elsewhere.test", None),
    ],
)
async def test_ways_that_agree(header: str | None, host: str, wanted: str | None) -> None:
    ways = ({"header": "X-Tenant"}, {"subdomain_of": "app.test"}, {"callable": "tests.tenancy.test_resolvers:later"})
    request = scope("/", *([] if header is None else [("X-Tenant", header)]), host=host)
    assert await name(request, *ways, agree=True) == wanted


@pytest.mark.parametrize(
    ("path", "headers", "host"),
    [
        ("/", [("X-Tenant", "globex")], "acme.app.test"),
        ("/t/globex/", [("X-Tenant", "acme")], "elsewhere.test"),
        ("/", [("X-Later", "globex")], "acme.app.test"),
    ],
)
async def test_ways_that_disagree_are_ambiguous(path: str, headers: list[tuple[str, str]], host: str) -> None:
    ways = (
        {"header": "X-Tenant"},
        {"callable": "tests.tenancy.test_resolvers:later"},
        {"subdomain_of": "app.test"},
        {"path_prefix": "/t"},
    )
    error = await refusal(scope(path, *headers, host=host), *ways, agree=True)
    assert "more than one tenant" in error.message


async def test_ways_that_agree_still_move_the_path() -> None:
    found = registry({"header": "X-Tenant"}, {"path_prefix": "/t"}, agree=True)
    answer = found.compiled.resolution()(scope("/t/acme/x", ("X-Tenant", "acme")))
    assert getattr(answer, "prefix", None) == "/t/acme"


@pytest.mark.parametrize("first", [0, 1])
async def test_ways_that_agree_see_the_path_that_the_routes_see(first: int) -> None:
    ways = [{"path_prefix": "/t"}, {"header": "X-Tenant", "paths": ["/api"]}]
    ways = [ways[first], ways[1 - first]]
    for path, header, wanted in (
        ("/t/acme/api/x", "acme", "acme"),
        ("/t/acme/api", "acme", "acme"),
        # The header is for other paths only.
        ("/t/acme/other", "globex", "acme"),
        ("/t/acme/apix", "globex", "acme"),
        ("/api/x", "globex", "globex"),
        ("/other", "globex", None),
    ):
        assert await name(scope(path, ("X-Tenant", header)), *ways, agree=True) == wanted, path
    for root in ("", "/mounted"):
        request = scope("/t/acme/api/x", ("X-Tenant", "globex"), root_path=root)
        error = await refusal(request, *ways, agree=True)
        assert "more than one tenant" in error.message


async def test_a_way_that_moves_the_path_may_be_for_some_paths_only() -> None:
    ways = [{"header": "X-Tenant", "paths": ["/api"]}, {"path_prefix": "/t", "paths": ["/t/acme"]}]
    assert await name(scope("/t/globex/api", ("X-Tenant", "acme")), *ways, agree=True) is None
    await refusal(scope("/t/acme/api", ("X-Tenant", "globex")), *ways, agree=True)


async def test_a_resolver_from_code_that_moves_the_path_moves_it_for_those_behind_it() -> None:
    async def moves(request: Any) -> Resolution:
        return Resolution("acme", prefix="/x/acme")

    found = registry({"header": "X-Tenant", "paths": ["/api"]}, agree=True).compiled.resolution([moves])
    assert await ask(found, scope("/x/acme/api", ("X-Tenant", "acme"))) == "acme"
    with pytest.raises(DataError, match="more than one tenant"):
        await ask(found, scope("/x/acme/api", ("X-Tenant", "globex")))


async def later(request: Any) -> str | None:
    """A resolver that has to be waited for."""
    return dict(request["headers"]).get(b"x-later", b"").decode() or None


@pytest.mark.parametrize(
    ("path", "wanted"), [("/api", "globex"), ("/api/x", "globex"), ("/apix", "acme"), ("/", "acme")]
)
async def test_a_way_may_be_for_some_paths_only(path: str, wanted: str) -> None:
    ways = ({"header": "X-Tenant", "paths": ["/api"]}, {"fixed": "acme"})
    assert await name(scope(path, ("X-Tenant", "globex")), *ways) == wanted
