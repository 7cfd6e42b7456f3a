"""Context variables: the innermost annotated function or block, and the current session."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

from ..routing import AccessIntent
from ..tenancy import Tenant
from ..tenancy.current_tenant import current_holder


@dataclass(frozen=True, slots=True)
class Frame:
    """A running annotated function, or an open transaction block.

    Attributes:
        intent: Intent of statements without an explicit one; None uses the request's.
        reads_only: Writes are refused.
        is_transactional: It runs in a transaction.
        deadline: Event-loop time of its deadline; None without a limit.
    """

    intent: AccessIntent | None
    reads_only: bool
    is_transactional: bool
    deadline: float | None


current_frame: ContextVar[Frame | None] = ContextVar("asgi_datasource_frame", default=None)


class SessionRunner(Protocol):
    """The value of `current_runner`: holds the session, or creates it on first access."""

    @property
    def session(self) -> Any:
        """The session, a `SessionCore`."""
        ...

    @property
    def tenant(self) -> Tenant:
        """The tenant of the session; available without creating a session."""
        ...


# The variable that `current_tenant()` reads; it is defined there because `tenancy` is on a lower floor.
current_runner = cast("ContextVar[SessionRunner | None]", current_holder)
"""The session of the running request or block. Child tasks inherit it; its state lives on the session."""
