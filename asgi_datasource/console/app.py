"""The console as an ASGI application: pages, their data, and actions, all behind the guard of the application."""

from __future__ import annotations

import inspect
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, cast
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import ConfigError, DataError
from ..registry.registry import DataSourceRegistry
from ..tenancy.path_prefix import route_path
from .actions import Actions, Outcome
from .forgery import COOKIE, ForgeryGuard, cookie_of
from .pages import Forms, render_comparison, render_fragment, render_message, render_page
from .state import StateCollector

logger = logging.getLogger("asgi_datasource.console")

Guard = Callable[[Scope], "bool | ASGIApp | Awaitable[bool | ASGIApp]"]
"""Decides whether a request may see the console: True, or False for 403, or an ASGI response such as a redirect."""

MOST_BYTES: Final = 16_384
"""Largest body of a form."""

_FORM: Final = "application/x-www-form-urlencoded"
_PAGES: Final = frozenset({"", "fragment", "state.json"})


class Console:
    """Pages of operations for this process, wherever they are mounted: `Mount("/ops", Console(registry, guard=...))`.

    With a tenant resolver, exempt the path of the mount: `tenancy: {exempt: [/ops]}`.

    Args:
        registry: The registry of the middleware.
        guard: Called with the scope of every request, before anything else; sync or async. True lets it pass, False
            refuses it with 403, and an ASGI application (a response, such as a redirect to a login) answers it.
        read_only: Without actions: nothing can be drained, reloaded or looked up.
        origins: Origins of the page, such as `https://ops.example.com`, if a proxy changes the header `Host`.

    Raises:
        ConfigError: There is no guard.
    """

    def __init__(
        self,
        registry: DataSourceRegistry,
        *,
        guard: Guard | None = None,
        read_only: bool = False,
        origins: Collection[str] = (),
    ) -> None:
        if not callable(guard):
            raise ConfigError(
                "the console shows tenants and can drain servers, so it needs a guard: give Console(guard=...)"
                " a function of the ASGI scope, sync or async, that returns True for requests of operators"
            )
        self._guard = guard
        self._forgery = ForgeryGuard(origins)
        self._collector = StateCollector(registry)
        self._actions = None if read_only else Actions(registry, self._collector)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the console answers http requests only, not {scope['type']}: mount it")
        allowed: object = self._guard(scope)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if allowed is True:
            await self._answer(scope, receive, send)
        elif callable(allowed):
            await cast("ASGIApp", allowed)(scope, receive, send)
        else:
            await _send(send, scope, 403, b"forbidden", "text/plain; charset=utf-8")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)
        name = path.removeprefix("/")
        method = scope["method"]
        if name in _PAGES:
            if method not in ("GET", "HEAD"):
                await self._message(scope, send, 405, "This address is for reading.", allow="GET, HEAD")
            elif not scope["path"].endswith("/") and not name:
                await _send(send, scope, 307, b"", "text/plain", location=f"{scope['path'].rpartition('/')[2]}/")
            else:
                await self._show(name, scope, send)
        elif self._actions is not None and name in self._actions.names:
            if method == "POST":
                await self._act(self._actions, name, scope, receive, send)
            else:
                await self._message(scope, send, 405, "This address takes the console's forms.", allow="POST")
        else:
            await self._message(scope, send, 404, "There is no such page.")

    # -- reading

    async def _show(self, name: str, scope: Scope, send: Send) -> None:
        state = await self._collector.collect()
        if name == "state.json":
            await _send(send, scope, 200, json.dumps(state).encode(), "application/json")
            return
        forms, cookies = self._forms(scope)
        if name == "fragment":
            body = render_fragment(state, forms).encode()
            await _send(send, scope, 200, body, _HTML, cookies=cookies)
            return
        nonce = secrets.token_urlsafe(16)
        body = render_page(state, forms, nonce=nonce).encode()
        await _send(send, scope, 200, body, _HTML, nonce=nonce, cookies=cookies)

    def _forms(self, scope: Scope) -> tuple[Forms, list[str]]:
        """What forms need, and the cookie that goes with it, where the browser has none yet."""
        cookie = cookie_of(_headers(scope))
        cookies: list[str] = []
        if cookie is None:
            cookie = self._forgery.new_cookie()
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            root = scope.get("root_path", "") or "/"
            cookies = [f"{COOKIE}={cookie}; Path={root}; HttpOnly; SameSite=Strict{secure}"]
        actions = self._actions
        return Forms(self._forgery.token(cookie), None if actions is None else actions.log()), cookies

    # -- acting

    async def _act(self, actions: Actions, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            await self._message(scope, send, 415, f"An action is a form: {_FORM}.")
            return
        body = await _read(receive)
        if body is None:
            await self._message(scope, send, 413, f"A form has at most {MOST_BYTES} bytes.")
            return
        fields = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        refusal = self._forgery.refusal(headers, fields)
        if refusal is not None:
            await self._message(scope, send, 403, f"Nothing was changed: {refusal}.")
            return
        try:
            outcome = await actions.run(name, fields)
        except DataError as error:
            await self._message(scope, send, 409, f"Nothing was changed: {error.message}")
            return
        await self._report(outcome, scope, send)

    async def _report(self, outcome: Outcome, scope: Scope, send: Send) -> None:
        if outcome.preview is None:
            logger.warning("console: %s", outcome.done)
            await _send(send, scope, 303, b"", "text/plain", location="./")
            return
        forms, cookies = self._forms(scope)
        nonce = secrets.token_urlsafe(16)
        body = render_comparison(outcome.preview, outcome.reference, forms, nonce=nonce).encode()
        await _send(send, scope, 200, body, _HTML, nonce=nonce, cookies=cookies)

    async def _message(self, scope: Scope, send: Send, status: int, text: str, *, allow: str | None = None) -> None:
        nonce = secrets.token_urlsafe(16)
        body = render_message(status, text, nonce=nonce).encode()
        await _send(send, scope, status, body, _HTML, nonce=nonce, allow=allow)


_HTML: Final = "text/html; charset=utf-8"


def _headers(scope: Scope) -> dict[str, str]:
    """The headers by lower-case name; cookies that come in several headers are joined."""
    found: dict[str, str] = {}
    for key, value in scope["headers"]:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}; {text}" if name == "cookie" and name in found else text
    return found


async def _read(receive: Receive) -> bytes | None:
    """The body; None if it is larger than a form of the console."""
    body = bytearray()
    while True:
        message: Any = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            return None
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


async def _send(
    send: Send,
    scope: Scope,
    status: int,
    body: bytes,
    kind: str,
    *,
    nonce: str | None = None,
    location: str | None = None,
    allow: str | None = None,
    cookies: Collection[str] = (),
) -> None:
    only = "'none'" if nonce is None else f"'nonce-{nonce}'"
    policy = (
        f"default-src 'none'; script-src {only}; style-src {only}; connect-src 'self'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'none'"
    )
    fields: list[tuple[str, str | None]] = [
        ("content-type", kind),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("content-security-policy", policy),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "same-origin"),  # with no-referrer, the Origin of a form would be null
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("location", location),
        ("allow", allow),
        *(("set-cookie", cookie) for cookie in cookies),
    ]
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields if value is not None]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
