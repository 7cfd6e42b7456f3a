"""Resolvers by header, path, query parameter, cookie, scope entry, constant and function.

Resolvers by host are in `domains.py`, the one by signed token is in `tokens.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Final, cast
from urllib.parse import parse_qsl
from uuid import UUID

from starlette.types import Scope

from ..errors import DataError, DataErrorKind
from .resolution import ANYTHING, NOTHING, Answer, Reads, Resolution, bad_request, duplicate_header

MAX_QUERY_FIELDS: Final = 1000
"""Most parameters of a query string; with more the request is refused."""


class HeaderResolver:
    """The tenant is the value of a request header."""

    __slots__ = ("_name", "reads")

    def __init__(self, name: str) -> None:
        self._name = name.lower().encode("latin-1")
        self.reads = Reads((name,))

    def __call__(self, scope: Scope, /) -> str | None:
        # Inlined `single_header`: this runs for every request.
        name = self._name
        found: bytes | None = None
        for key, value in scope["headers"]:
            if key == name:
                if found is not None:
                    raise duplicate_header(name)
                found = value
        return found.decode("latin-1").strip() if found else None


class PathPrefixResolver:
    """The tenant is the path segment after a prefix; prefix and segment move to `root_path`."""

    __slots__ = ("_prefix",)

    reads: ClassVar = NOTHING
    moves_path: ClassVar = True

    def __init__(self, prefix: str) -> None:
        self._prefix = "/" + prefix.strip("/") + "/" if prefix.strip("/") else "/"

    def __call__(self, scope: Scope, /) -> Resolution | None:
        path: str = scope["path"]
        # Since ASGI spec version 2.3 `path` holds `root_path` as well; servers that predate it leave it off.
        root: str = scope.get("root_path", "")
        start = len(root) if root and path.startswith(root + "/") else 0
        if not path.startswith(self._prefix, start):
            return None
        begin = start + len(self._prefix)
        end = path.find("/", begin)
        name = path[begin:] if end < 0 else path[begin:end]
        if not name:
            return None
        return Resolution(name, prefix=path[start : begin + len(name)])


class QueryResolver:
    """The tenant is a parameter of the query string."""

    __slots__ = ("_name", "_needle")

    reads: ClassVar = NOTHING

    def __init__(self, name: str) -> None:
        self._name = name
        self._needle = name.encode()

    def __call__(self, scope: Scope, /) -> str | None:
        query: bytes = scope.get("query_string", b"")
        if not query or (self._needle not in query and b"%" not in query):
            return None
        try:
            # Bytes that are not UTF-8 become U+FFFD, which no valid tenant name contains.
            pairs = parse_qsl(query.decode("latin-1"), errors="replace", max_num_fields=MAX_QUERY_FIELDS)
        except ValueError:
            raise bad_request("the query string has too many parameters") from None
        found = {value for name, value in pairs if name == self._name}
        if len(found) > 1:
            raise bad_request(f"the query parameter {self._name!r} is there with several values; send one")
        return found.pop() if found else None


class CookieResolver:
    """The tenant is the value of a cookie."""

    __slots__ = ("_name",)

    reads: ClassVar = Reads(("Cookie",))

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, scope: Scope, /) -> str | None:
        return cookie(scope, self._name)


def cookie(scope: Scope, name: str) -> str | None:
    """The value of a cookie; HTTP/2 may send cookies in several header lines (RFC 9113, section 8.2.3).

    Raises:
        DataError: TENANT (400): the cookie has several values, of different paths or domains.
    """
    found: set[str] = set()
    for key, value in scope["headers"]:
        if key == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                written, equals, text = pair.partition("=")
                if equals and written.strip() == name and (text := text.strip().strip('"')):
                    found.add(text)
    if len(found) > 1:
        raise bad_request(f"the cookie {name!r} is there with several values")
    return found.pop() if found else None


class ScopeResolver:
    """The tenant is a value that another middleware has put into the scope: `user.tenant_id`."""

    __slots__ = ("_path", "_steps")

    reads: ClassVar = ANYTHING

    def __init__(self, path: str) -> None:
        self._path = path
        self._steps = path.split(".")

    def __call__(self, scope: Scope, /) -> str | None:
        found: Any = scope
        for step in self._steps:
            if isinstance(found, Mapping):
                found = cast("Mapping[str, Any]", found).get(step)
            else:
                found = getattr(found, step, None)
            if found is None:
                return None
        return as_name(found, of=f"the scope's {self._path}")


class FixedResolver:
    """The tenant is always the same: for a deployment that serves one."""

    __slots__ = ("_name",)

    reads: ClassVar = NOTHING

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, scope: Scope, /) -> str:
        return self._name


TenantFunction = Callable[[Scope], str | None | Awaitable[str | None]]
"""A function of the application, sync or async, that returns the tenant's name for a scope."""


class CallableResolver:
    """The tenant is the result of a function of the application, sync or async, for the scope."""

    __slots__ = ("_function", "_name")

    reads: ClassVar = ANYTHING

    def __init__(self, function: TenantFunction, *, name: str) -> None:
        self._function = function
        self._name = name

    def __call__(self, scope: Scope, /) -> Answer | Awaitable[Answer]:
        answer = self._function(scope)
        if inspect.isawaitable(answer):
            return self._wait(answer)
        return self._checked(answer)

    async def _wait(self, answer: Awaitable[str | None]) -> str | None:
        return self._checked(await answer)

    def _checked(self, answer: object) -> str | None:
        if answer is None or answer == "":
            return None
        if not isinstance(answer, str):
            raise DataError(
                DataErrorKind.CONFIG,
                f"the tenant resolver {self._name} answered a {type(answer).__name__}; return a str or None",
            )
        return answer


def as_name(value: object, *, of: str) -> str | None:
    """Convert a value of the application or of a token to a tenant's name; numbers and UUIDs are accepted.

    Raises:
        DataError: CONFIG: the value has another type.
    """
    if isinstance(value, str):
        return value or None
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        return str(value)
    raise DataError(DataErrorKind.CONFIG, f"{of} is a {type(value).__name__}, which cannot be a tenant's name")
