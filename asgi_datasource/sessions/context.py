"""What is in force where the code runs, and the session that runs there."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

from ..routing import AccessIntent
from ..tenancy import Tenant
from ..tenancy.current_tenant import current_holder


@dataclass(frozen=True, slots=True)
class Frame:
    """A running function that carries an annotation, or a block that the code is inside of.

    Attributes:
        intent: Of statements that say nothing themselves; None leaves that to what is around.
        reads_only: Nothing may write.
        is_transactional: It has asked for a transaction, and runs in one.
        deadline: Event-loop time at which its time is up; None when it has no limit.
    """

    intent: AccessIntent | None
    reads_only: bool
    is_transactional: bool
    deadline: float | None


current_frame: ContextVar[Frame | None] = ContextVar("asgi_datasource_frame", default=None)


class SessionRunner(Protocol):
    """What stands in the context: has the session, or makes it when it is first asked for."""

    @property
    def session(self) -> Any:
        """The session, a `SessionCore`."""
        ...

    @property
    def tenant(self) -> Tenant:
        """Whose it is; known without making a session."""
        ...


# The variable that `current_tenant()` looks at, which stands below sessions.
current_runner = cast("ContextVar[SessionRunner | None]", current_holder)
"""The session of the request or block that runs here. Child tasks inherit it; the state itself lives on the session."""
