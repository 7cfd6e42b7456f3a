"""The same service with asgi_datasource: the middleware provides tenant, pool, transaction and COMMIT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from asgi_datasource import DataSourceMiddleware, session
from benchmarks.sides.asgi import TENANT, TENANT_HEADER, TENANT_SETTING, ASGIApp, Row, Scope, service
from benchmarks.sides.statements import READ, WRITE


def config(url: str, pool_size: int) -> dict[str, Any]:
    """The configuration document of the service."""
    return {
        "version": 1,
        "datasources": {
            "main": {
                "primary": {"url": url},
                "pool": {"min_size": pool_size, "max_size": pool_size},
            }
        },
        "tenancy": {"resolve": [{"header": TENANT_HEADER.decode("ascii")}]},
        "tenants": {TENANT: {"datasource": "main", "row_security": {TENANT_SETTING: TENANT}}},
    }


class _Session:
    async def open(self) -> None:
        """Do nothing: the middleware opens the pool."""

    async def close(self) -> None:
        """Do nothing: the middleware closes the pool."""

    async def read(self, scope: Scope, item: int) -> Row:
        return _found(await session(scope).fetch_one(READ, [item]))

    async def write(self, scope: Scope, item: int) -> Row:
        return _found(await session(scope).fetch_one(WRITE, [item]))

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        db = session(scope)
        count = 0
        for item in items:
            await db.execute(WRITE, [item])
            count += 1
        return {"count": count}


def _found(row: Mapping[str, Any] | None) -> Row:
    if row is None:
        raise LookupError("no such item")
    return row


def application() -> ASGIApp:
    """The service without its middleware."""
    return service(_Session())


def plain(url: str, pool_size: int) -> ASGIApp:
    return DataSourceMiddleware(application(), config=config(url, pool_size))
