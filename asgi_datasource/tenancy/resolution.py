"""The interface of resolvers: their answers, and how they refuse a request.

A resolver returns a name, or None if the request does not contain one; the next resolver runs then. Names are checked
against the configured pattern before any other use, and never appear in a response.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.types import Scope

from ..errors import DataError, DataErrorKind

MAX_NAME_LENGTH: Final = 255
"""Characters of the longest name; a longer one is refused without matching the pattern."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A resolver's answer.

    Attributes:
        name: The tenant's name as the request gave it, not yet checked.
        prefix: The part of the path that named the tenant, to be moved to `root_path`; may be empty.
    """

    name: str
    prefix: str = ""


Answer = str | Resolution | None
"""A name, a name with a path prefix, or None if the request does not contain one."""


@dataclass(frozen=True, slots=True)
class Reads:
    """The inputs of a resolver besides the URL and `Host`, which are part of a cache's key already.

    Attributes:
        headers: Names of request headers.
        is_known: Whether the list is complete; it is not if code of the application decides.
    """

    headers: tuple[str, ...] = ()
    is_known: bool = True

    def __or__(self, other: Reads) -> Reads:
        """The union, without duplicate headers."""
        names = {name.lower(): name for name in (*other.headers, *self.headers)}
        ordered = dict.fromkeys(name.lower() for name in (*self.headers, *other.headers))
        return Reads(tuple(names[name] for name in ordered), self.is_known and other.is_known)


NOTHING: Final = Reads()
ANYTHING: Final = Reads(is_known=False)


def reads_of(resolver: object) -> Reads:
    """The inputs of a resolver: its attribute `reads`, or `ANYTHING` without one."""
    found = getattr(resolver, "reads", None)
    return found if isinstance(found, Reads) else ANYTHING


def all_reads(resolvers: Iterable[object]) -> Reads:
    """The inputs of several resolvers."""
    found = NOTHING
    for resolver in resolvers:
        found |= reads_of(resolver)
    return found


class TenantResolver(Protocol):
    """Finds the tenant's name in a request.

    The attribute `reads`, a `Reads`, declares its inputs. The responses of a resolver without it are `private`.
    """

    def __call__(self, scope: Scope, /) -> Answer | Awaitable[Answer]:
        """Find the name in the scope; None continues with the next resolver."""
        ...


def bad_request(message: str) -> DataError:
    """The error (400) for a request whose tenant is ambiguous or malformed."""
    return DataError(DataErrorKind.TENANT, message, http_status=400)


def duplicate_header(name: bytes) -> DataError:
    """The error for a header that must not be repeated."""
    return bad_request(f"the header {name.decode('latin-1')!r} is there more than once; send it once")


def single_header(scope: Scope, name: bytes) -> str | None:
    """The value of a header that must not be repeated.

    Raises:
        DataError: TENANT (400): the header is repeated, so that it is unknown which value a proxy has checked.
    """
    found: bytes | None = None
    for key, value in scope["headers"]:
        if key == name:
            if found is not None:
                raise duplicate_header(name)
            found = value
    return None if found is None else found.decode("latin-1").strip()


def header_values(scope: Scope, name: bytes) -> list[str]:
    """The values of a header, one for each line of it."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def header_text(value: str) -> str:
    """A header's value as text; non-ASCII bytes are decoded as UTF-8."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return "\x00"
