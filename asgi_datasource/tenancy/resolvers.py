"""Who is asking: from the ASGI scope to a tenant's name.

A resolver answers with a name, or None when the request says nothing to it; the next one is asked then. Names are
checked against the configured pattern before they are used anywhere, and are never echoed in an answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.types import Scope

from ..errors import DataError, DataErrorKind

MAX_NAME_LENGTH: Final = 255
"""Longest name, in characters, that is matched against the pattern at all."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A resolver's answer.

    Attributes:
        name: The tenant's name as the request gave it, not yet checked.
        prefix: The part of the path that named the tenant; it moves to `root_path`. Empty where nothing moves.
    """

    name: str
    prefix: str = ""


Answer = str | Resolution | None
"""A name, a name that also changes the path, or None: this resolver cannot tell."""


class TenantResolver(Protocol):
    """One way to tell the tenant from the request."""

    def __call__(self, scope: Scope, /) -> Answer | Awaitable[Answer]:
        """Answer from the scope alone; None leaves it to the next resolver."""
        ...


def bad_request(message: str) -> DataError:
    """The error for a request whose tenant cannot be told: answered with 400."""
    return DataError(DataErrorKind.TENANT, message, http_status=400)


def duplicate_header(name: bytes) -> DataError:
    """The error for a header that may be there once at most and is there twice."""
    return bad_request(f"the header {name.decode('latin-1')!r} is there more than once; send it once")


def single_header(scope: Scope, name: bytes) -> str | None:
    """The value of a header that may be there once at most.

    Raises:
        DataError: TENANT (400) when the header is there twice: which one a proxy in front has checked is unknowable.
    """
    found: bytes | None = None
    for key, value in scope["headers"]:
        if key == name:
            if found is not None:
                raise duplicate_header(name)
            found = value
    return None if found is None else found.decode("latin-1").strip()


class HeaderResolver:
    """The tenant is the value of a request header."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name.lower().encode("latin-1")

    def __call__(self, scope: Scope, /) -> str | None:
        # Every request comes through here: the loop of `single_header`, without the call.
        name = self._name
        found: bytes | None = None
        for key, value in scope["headers"]:
            if key == name:
                if found is not None:
                    raise duplicate_header(name)
                found = value
        return found.decode("latin-1").strip() if found else None


class SubdomainResolver:
    """The tenant is the label in front of a domain: `acme` in `acme.app.example.com`."""

    __slots__ = ("_suffix",)

    def __init__(self, domain: str) -> None:
        self._suffix = "." + domain.lower().strip(".")

    def __call__(self, scope: Scope, /) -> str | None:
        host = single_header(scope, b"host")
        if not host:
            return None
        # RFC 9110, section 7.2: Host = uri-host [ ":" port ]; host names know no case and may end in a dot.
        host = host.lower()
        if not host.startswith("["):
            host = host.partition(":")[0].rstrip(".")
        if not host.endswith(self._suffix):
            return None
        label = host[: -len(self._suffix)]
        return label if label and "." not in label else None


class PathPrefixResolver:
    """The tenant is the path's segment behind a prefix; prefix and segment move to `root_path`."""

    __slots__ = ("_prefix",)

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


TenantFunction = Callable[[Scope], str | None | Awaitable[str | None]]
"""A function of the application's that tells the tenant from the scope; `async` or not."""


class CallableResolver:
    """The tenant is what a function of the application's says, `async` or not, given the scope."""

    __slots__ = ("_function", "_name")

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


def chain(resolvers: Sequence[TenantResolver]) -> TenantResolver:
    """Resolvers asked in order; the first answer wins.

    Returns:
        One resolver; what it answers is a name as the request gave it, not yet checked.
    """
    if len(resolvers) == 1:
        return resolvers[0]
    asked = tuple(resolvers)

    def resolve(scope: Scope, /) -> Answer | Awaitable[Answer]:
        for index, resolver in enumerate(asked):
            answer = resolver(scope)
            if answer is None:
                continue
            if isinstance(answer, str | Resolution):
                return answer
            return resolve_later(answer, index + 1, scope)
        return None

    async def resolve_later(waiting: Awaitable[Answer], following: int, scope: Scope) -> Answer:
        answer = await waiting
        while answer is None and following < len(asked):
            given = asked[following](scope)
            answer = given if given is None or isinstance(given, str | Resolution) else await given
            following += 1
        return answer

    return resolve
