"""The tenant of the running code: of a request, a session or a `tenant_context`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Protocol

from .tenant import Tenant


class TenantHolder(Protocol):
    """A request or a session."""

    @property
    def tenant(self) -> Tenant:
        """Its tenant."""
        ...


current_holder: ContextVar[TenantHolder | None] = ContextVar("asgi_datasource_session", default=None)
"""The current request or `registry.session()` block; child tasks inherit it."""


@dataclass(frozen=True, slots=True)
class _Entered:
    """A `tenant_context`.

    Attributes:
        name: The tenant's name.
        inside: The request or session at its start. A different one is nested in this block and takes precedence.
    """

    name: str
    inside: TenantHolder | None


_entered: ContextVar[_Entered | None] = ContextVar("asgi_datasource_tenant", default=None)


@contextmanager
def tenant_context(name: str) -> Generator[None]:
    """Make a tenant the current one in the block: `registry.session()` without a name opens a session of it.

    Tasks started in the block inherit it, also if they outlive the block; threads inherit it with the context, as by
    `asyncio.to_thread`. FastAPI runs a dependency that is not `async` in a copy of the context: it applies only there.

    Args:
        name: The tenant's name. It is looked up when a session is opened.
    """
    entered = _Entered(name, current_holder.get())
    token = _entered.set(entered)
    try:
        yield
    finally:
        try:
            _entered.reset(token)
        except ValueError:
            # Exited in a different context, for example a copy of the one of `__enter__`.
            if _entered.get() is entered:
                _entered.set(None if token.old_value is Token.MISSING else token.old_value)


def current_tenant() -> str | None:
    """The name of the current tenant: of the innermost `tenant_context`, session or request.

    Hooks and tasks of a request have the request's tenant. None outside of these, and in a request that is served
    without a tenant.
    """
    holder, entered = current_holder.get(), _entered.get()
    if entered is not None and entered.inside is holder:
        return entered.name
    return None if holder is None else holder.tenant.name
