"""The transport of tokens: found in requests, and added to responses with correct cache headers."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_datasource.routing.consistency.token_transport import TokenTransport

COOKIE = TokenTransport(cookie="ads_token", header=None, max_age_s=30)
HEADER = TokenTransport(cookie=None, header="X-Token", max_age_s=30)
BOTH = TokenTransport(cookie="ads_token", header="X-Token", max_age_s=30)

Headers = list[tuple[bytes, bytes]]


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


def all_of(message: dict[str, Any], name: bytes) -> list[str]:
    return [value.decode() for key, value in message["headers"] if key == name]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"ads_token=abc", ["abc"]),
        (b"a=1; ads_token=abc; b=2", ["abc"]),
        (b"a=1;ads_token=abc", ["abc"]),
        (b'ads_token="abc"', ["abc"]),
        (b"ads_token=one; ads_token=two", ["one", "two"]),
        (b"xads_token=abc; ads_token_=abc; a=ads_token=abc", []),
        (b"ads_token", []),
        (b"ads_token=", []),
        (b"", []),
        (b"\xff\xfe; ads_token=abc", ["abc"]),
    ],
)
def test_tokens_are_found_in_cookies(header: bytes, found: list[str]) -> None:
    assert COOKIE.find({"headers": [(b"host", b"x"), (b"cookie", header)]}) == found


def test_http_2_may_split_the_cookie_header() -> None:
    headers = [(b"cookie", b"a=1"), (b"cookie", b"ads_token=abc")]
    assert COOKIE.find({"headers": headers}) == ["abc"]


def test_tokens_are_found_in_headers_with_those_of_several_services() -> None:
    headers = [(b"x-token", b"one, two"), (b"x-token", b"three"), (b"cookie", b"ads_token=abc")]
    assert HEADER.find({"headers": headers}) == ["one", "two", "three"]
    assert BOTH.find({"headers": headers}) == ["one", "two", "three", "abc"]


def test_the_cookie_is_limited_to_the_application() -> None:
    message = start()
    message = COOKIE.give(message, "abc", is_secure=False)
    assert all_of(message, b"set-cookie") == ["ads_token=abc; Path=/; Max-Age=30; HttpOnly; SameSite=Lax"]


def test_the_cookie_is_secure_over_tls() -> None:
    message = start((b"set-cookie", b"mine=1"))
    message = COOKIE.give(message, "abc", is_secure=True)
    assert all_of(message, b"set-cookie") == [
        "mine=1",
        "ads_token=abc; Path=/; Max-Age=30; HttpOnly; SameSite=Lax; Secure",
    ]


def test_the_response_has_the_header() -> None:
    message = start()
    message = BOTH.give(message, "abc", is_secure=False)
    assert all_of(message, b"x-token") == ["abc"]
    assert len(all_of(message, b"set-cookie")) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["private"]),
        ([b"no-store"], ["no-store"]),
        ([b"private, max-age=60"], ["private, max-age=60"]),
        ([b"public, max-age=60"], ["private, max-age=60"]),
        ([b"max-age=60, s-maxage=600, must-revalidate"], ["private, max-age=60, must-revalidate"]),
        ([b'public, no-cache="set-cookie, x"'], ['private, no-cache="set-cookie, x"']),
        ([b"public", b"max-age=60"], ["private, max-age=60"]),
        ([b"Max-Age=60, PUBLIC"], ["private, Max-Age=60"]),
    ],
)
def test_a_response_with_a_token_is_not_stored_by_shared_caches(before: list[bytes], after: list[str]) -> None:
    message = start(*((b"cache-control", value) for value in before))
    message = COOKIE.give(message, "abc", is_secure=False)
    assert all_of(message, b"cache-control") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["Cookie, X-Token"]),
        ([b"Accept"], ["Accept", "Cookie, X-Token"]),
        ([b"accept, cookie"], ["accept, cookie", "X-Token"]),
        ([b"Cookie", b"x-token"], ["Cookie", "x-token"]),
        ([b"*"], ["*"]),
    ],
)
def test_a_response_that_depends_on_the_token_has_vary(before: list[bytes], after: list[str]) -> None:
    message = start(*((b"vary", value) for value in before))
    message = BOTH.give(message, None, is_secure=False)
    assert all_of(message, b"vary") == after
