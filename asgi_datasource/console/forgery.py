"""Protection of actions against requests that another site makes with the browser of an operator.

An action needs both: the browser says that the request comes from the page itself, and the form has the token that
belongs to the browser's cookie. The token is derived with a key of the process, so that a form of another process, or
from before a restart, does not act on this one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import urlsplit

COOKIE: Final = "ads_console"
FIELD: Final = "token"
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


class ForgeryGuard:
    """Issues and checks the tokens of one console.

    Args:
        origins: Origins of the page besides the request's own `Host`, for a proxy that changes that.
    """

    def __init__(self, origins: Collection[str] = ()) -> None:
        self._key = secrets.token_bytes(32)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    @staticmethod
    def new_cookie() -> str:
        """The value of a browser's cookie."""
        return secrets.token_urlsafe(24)

    def token(self, cookie: str) -> str:
        """The token of the forms that a browser with this cookie gets."""
        return hmac.new(self._key, cookie.encode(), hashlib.sha256).hexdigest()

    def refusal(self, headers: Mapping[str, str], fields: Mapping[str, str]) -> str | None:
        """Why a form is not accepted; None if it is.

        Args:
            headers: The headers of the request by lower-case name.
            fields: The fields of the form.
        """
        if not self._is_same_origin(headers):
            return (
                "the request does not come from this page. If a proxy changes the header Host, name the page's origin:"
                " Console(..., origins=['https://ops.example.com'])"
            )
        cookie = cookie_of(headers)
        given = fields.get(FIELD, "")
        if cookie is None or not hmac.compare_digest(self.token(cookie).encode(), given.encode()):
            return (
                "the form belongs to another process, or to one from before a restart: go back and load the page again"
            )
        return None

    def _is_same_origin(self, headers: Mapping[str, str]) -> bool:
        site = headers.get("sec-fetch-site")
        if site is not None and site != "same-origin":
            return False
        origin = headers.get("origin")
        if origin is None:
            return site == "same-origin"
        if origin.lower() in self._origins:
            return True
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        default = _DEFAULT_PORTS.get(parts.scheme)
        if default is None or not parts.netloc:
            return False
        return parts.netloc.removesuffix(default) == headers.get("host", "").lower().removesuffix(default)


def cookie_of(headers: Mapping[str, str]) -> str | None:
    """The console's cookie of a request; None without one."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if found is None or not found.value else found.value
