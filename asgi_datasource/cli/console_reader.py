"""Reads the state of a running process from its console."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPMessage
from typing import IO, Any, Final, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .command import CannotRun
from .console import printable

LIMIT_S: Final = 10.0
"""Seconds that the process has to answer."""
MOST_BYTES: Final = 32 << 20
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would carry the token to another address."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


class ConsoleReader:
    """Reads `state.json` of a console.

    Args:
        url: The address of the console's page.
        headers: Sent with every request, for the guard.

    Raises:
        CannotRun: This is no address of a page.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CannotRun(f"{url} is no address of a console", "Give the address of its page: https://host/ops.")
        self.place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        """The address without a login."""
        self.is_exposed = parts.scheme == "http" and parts.hostname not in _LOCAL and bool(headers)
        """Whether the headers travel unencrypted to another machine."""
        self._headers = {"Accept": "application/json", "User-Agent": "asgi-datasource-top", **headers}
        self._opener = build_opener(_NoRedirects())

    def read(self) -> dict[str, Any]:
        """The state now.

        Raises:
            CannotRun: There is no answer, or not that of a console.
        """
        request = Request(f"{self.place}/state.json", headers=dict(self._headers))  # noqa: S310 - http and https only
        try:
            with self._opener.open(request, timeout=LIMIT_S) as answer:
                body = answer.read(MOST_BYTES)
        except HTTPError as error:
            error.close()
            raise self._refused(error.code) from None
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise CannotRun(f"{self.place} does not answer: {reason}", "Check the address, and the process.") from None
        try:
            state = json.loads(body)
        except ValueError:
            state = None
        found = cast("dict[str, Any]", state) if isinstance(state, dict) else {}
        if "datasources" not in found or found.get("version") != 1:
            raise CannotRun(f"{self.place} is no console of this version", "Give the address of the console's page.")
        return cast("dict[str, Any]", _printable(found))

    def _refused(self, status: int) -> CannotRun:
        if status in (401, 403) or 300 <= status < 400:
            fix = "Its guard wants more: give --token-env NAME, --token-file FILE, or --header 'NAME: VALUE'."
        elif status == 404:
            fix = "Give the address of the console's page, such as https://host/ops."
        elif status == 400:
            fix = "If the middleware wants a tenant there, exempt the path: tenancy: {exempt: [/ops]}."
        else:
            fix = "See the log of the process."
        return CannotRun(f"{self.place} answers {status}", fix)


def _printable(value: object) -> object:
    """The same without characters that a terminal takes for commands, such as in the name of another application."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {key: _printable(inner) for key, inner in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [_printable(inner) for inner in cast("list[object]", value)]
    return value
