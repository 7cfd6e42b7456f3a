"""What a resolver is and answers, and how it refuses a request.

A resolver answers with a name, or None when the request says nothing to it; the next one is asked then. Names are
checked against the configured pattern before they are used anywhere, and are never echoed in an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
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


@dataclass(frozen=True, slots=True)
class Reads:
    """The inputs of a resolver besides the URL and `Host`, which are part of a cache's key already.

    Attributes:
        headers: Names of request headers.
        is_known: Whether the list is complete; it is not where the application's own code decides.
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
    """The inputs of a resolver: its attribute `reads`, or `ANYTHING` where it has none."""
    found = getattr(resolver, "reads", None)
    return found if isinstance(found, Reads) else ANYTHING


def all_reads(resolvers: Iterable[object]) -> Reads:
    """The inputs of several resolvers."""
    found = NOTHING
    for resolver in resolvers:
        found |= reads_of(resolver)
    return found


class TenantResolver(Protocol):
    """One way to tell the tenant from the request.

    The attribute `reads`, a `Reads`, declares its inputs. The responses of a resolver without it are `private`.
    """

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


def header_values(scope: Scope, name: bytes) -> list[str]:
    """The values of a header, one for each line of it."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def header_text(value: str) -> str:
    """A header's value as text: bytes beyond ASCII are UTF-8, where they are anything."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return "\x00"
