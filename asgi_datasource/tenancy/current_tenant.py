"""Which tenant the code that runs here works for: a request's, a job's, that of a block."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Protocol

from .tenant import Tenant


class TenantHolder(Protocol):
    """A request, or a session, and whose it is."""

    @property
    def tenant(self) -> Tenant:
        """Its tenant."""
        ...


current_holder: ContextVar[TenantHolder | None] = ContextVar("asgi_datasource_session", default=None)
"""The request, or `registry.session()` block, that runs here; child tasks inherit it."""


@dataclass(frozen=True, slots=True)
class _Entered:
    """A `tenant_context`.

    Attributes:
        name: Of the tenant.
        inside: What ran where it was entered: a request or session that began inside of it is nearer.
    """

    name: str
    inside: TenantHolder | None


_entered: ContextVar[_Entered | None] = ContextVar("asgi_datasource_tenant", default=None)


@contextmanager
def tenant_context(name: str) -> Generator[None]:
    """Work for a tenant inside the block: `registry.session()` without a name is that tenant's.

    It follows the context: tasks that are started inside belong to it, also when they outlive the block; threads do
    when they are given the context (`asyncio.to_thread` does so). Entered in a context of its own, as in a dependency
    of FastAPI that is not `async`, it holds there alone.

    Args:
        name: The tenant's name. Whether there is such a tenant is asked when a session is opened.
    """
    entered = _Entered(name, current_holder.get())
    token = _entered.set(entered)
    try:
        yield
    finally:
        try:
            _entered.reset(token)
        except ValueError:
            # It is left in another context than it was entered in; a copy of that one still has it.
            if _entered.get() is entered:
                _entered.set(None if token.old_value is Token.MISSING else token.old_value)


def current_tenant() -> str | None:
    """The name of the tenant that the code here works for.

    That is the tenant of the innermost `tenant_context`, request or session around it, hooks and tasks of a request
    included; None where there is none, or where requests without a tenant are served and this is one.
    """
    holder, entered = current_holder.get(), _entered.get()
    if entered is not None and entered.inside is holder:
        return entered.name
    return None if holder is None else holder.tenant.name
