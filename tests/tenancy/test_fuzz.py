"""Any host, header, cookie, query, path and token: a known tenant that the request names, or a refusal; never a 500."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_datasource import DataSourceMiddleware, compile, session
from tests.asgi_call import Call
from tests.sampling import many
from tests.tenancy.test_tokens import SECRET, token

HOSTILE = [
    *("acme", "globex", "ACME", "acme ", "acme\x00", "acme'; drop schema acme; --", 'acme", "public', "{tenant}", "*"),
    *("../acme", "acme/globex", "%61cme", "acme%00", "", " ", "null", "undefined", "a" * 300, "acme\nglobex", "\u00e4"),
    *(
        "initech",
        "postgres",
        "pg_catalog",
        "$user",
        "acme,globex",
        "acme;globex",
        "xn--acme",
        "\u202eemca",
        "__proto__",
    ),
]
HOSTS = [
    *("acme.app.test", "globex.app.test:443", "ACME.APP.TEST.", "shop.acme.test", "app.test", "evil.test", "[::1]", ""),
    *("acme.app.test@evil.test", "acme.app.test.evil.test", "a.acme.app.test", "acme.app.test..", "acme\x00.app.test"),
    *("\uff41cme.app.test", "acme\u3002app.test", "xn--.app.test", ":80", "acme.app.test:99999999", "-.app.test"),
]


def config() -> dict[str, Any]:
    """Every way at once; the server is nowhere: a request that ran SQL would be answered with 503."""
    claim = {"claim": "tenant", "algorithms": ["HS256"], "key": SECRET}
    return {
        "version": 1,
        "datasources": {
            "shop": {"primary": {"url": "postgresql://app@127.0.0.1:1/shop"}, "audit": {"on_start": "off"}}
        },
        "tenancy": {
            "resolve": [
                {"header": "X-Tenant"},
                {"jwt_claim": claim},
                {"domain": {"globex.test": "globex"}},
                {"subdomain_of": "app.test"},
                {"path_prefix": "/t"},
                {"query": "tenant"},
                {"cookie": "tenant"},
            ],
            "trusted_proxies": ["192.0.2.0/24"],
            "trusted_headers": ["forwarded", "x-forwarded-host"],
        },
        "tenants": {
            "acme": {"datasource": "shop", "schema": "acme", "domains": ["shop.acme.test"]},
            "globex": {"datasource": "shop", "schema": "globex"},
            "initech": {"datasource": "shop", "schema": "initech", "state": "suspended"},
        },
    }


async def who(scope: Any, receive: Any, send: Any) -> None:
    body = json.dumps(session(scope).tenant.name).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


APP = DataSourceMiddleware(who, registry=compile(config()))

_text = st.one_of(
    st.sampled_from(HOSTILE), st.sampled_from(HOSTS), st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
)
_bytes = st.one_of(_text.map(lambda text: text.encode("utf-8")), st.binary(max_size=40))
_tokens = st.one_of(
    st.sampled_from([token(), token(tenant="globex"), token(exp=1), token(tenant=None)]).map(str.encode), _bytes
)
_headers = st.lists(
    st.one_of(
        st.tuples(st.just(b"x-tenant"), _bytes),
        st.tuples(st.just(b"host"), st.one_of(st.sampled_from(HOSTS).map(lambda host: host.encode("utf-8")), _bytes)),
        st.tuples(st.just(b"authorization"), _tokens.map(lambda text: b"Bearer " + text)),
        st.tuples(st.sampled_from([b"forwarded", b"x-forwarded-host"]), _bytes),
        st.tuples(st.just(b"forwarded"), _bytes.map(lambda text: b'for="_x";host="' + text + b'"')),
        st.tuples(st.just(b"cookie"), _bytes.map(lambda text: b"tenant=" + text)),
        st.tuples(st.just(b"cookie"), _bytes),
    ),
    max_size=4,
)


@settings(max_examples=many(1_500), deadline=None, derandomize=True)
@given(
    headers=_headers,
    path=st.one_of(st.just("/"), _text.map(lambda text: f"/t/{text}"), _text.map(lambda text: f"/{text}")),
    query=st.one_of(st.just(b""), _bytes.map(lambda text: b"tenant=" + text), _bytes),
    client=st.sampled_from([("192.0.2.9", 1), ("203.0.113.1", 1), ("", 0), None]),
)
def test_any_request_is_a_known_tenants_or_is_refused(
    headers: list[tuple[bytes, bytes]], path: str, query: bytes, client: Any
) -> None:
    async def send() -> Call:
        call = Call("GET", path, headers=headers, query_string=query, client=client)
        return await call.run(APP)

    call = asyncio.run(send())
    said = json.loads(call.body)
    if call.status == 200:
        # The name is in the request, in one spelling or another.
        assert said in ("acme", "globex")
        everything = repr((headers, path, query)).lower()
        is_spelled = said in everything or "cme" in everything or "eyj" in everything or "%" in everything
        assert is_spelled, everything
    else:
        assert call.status in (400, 401, 403, 404)
        assert said["kind"] == "tenant"
        assert set(said) <= {"type", "title", "status", "kind", "retryable", "reference", "detail"}
