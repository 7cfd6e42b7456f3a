"""Which tenant the code that runs here works for, where there is no request that says so: jobs, commands, tests."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[str | None] = ContextVar("asgi_datasource_tenant", default=None)


@contextmanager
def tenant_context(name: str) -> Generator[None]:
    """Work for a tenant inside the block: `registry.session()` without a name is that tenant's.

    It follows the context: tasks that are started inside belong to it, also when they outlive the block; threads do
    when they are given the context (`asyncio.to_thread` does so).

    Args:
        name: The tenant's name. Whether there is such a tenant is asked when a session is opened.
    """
    token = _current.set(name)
    try:
        yield
    finally:
        _current.reset(token)


def current_tenant() -> str | None:
    """The name of the tenant that the code here works for; None outside of every `tenant_context`."""
    return _current.get()
