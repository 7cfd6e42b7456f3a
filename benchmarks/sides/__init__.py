"""The same small web service, written once for each way to reach PostgreSQL from an ASGI app.

Every side does the same work for a request: BEGIN, the tenant as a transaction-local setting (for row security),
the statement, COMMIT. Size of the pool, SQL and response are the same; other settings are the defaults.

`build(name, url, pool_size)` imports only the given side, so that a server process contains no other.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from benchmarks.sides.asgi import ASGIApp

OURS: Final = "asgi-datasource"
PSYCOPG: Final = "psycopg by hand"
PSYCOPG_NO_POOL: Final = "psycopg by hand, no pool"
ASYNCPG: Final = "asyncpg by hand"
SQLALCHEMY_ASYNCPG: Final = "SQLAlchemy + asyncpg"
SQLALCHEMY_PSYCOPG: Final = "SQLAlchemy + psycopg"
ORM_OURS: Final = "ORM on asgi-datasource"
ORM_ASYNCPG: Final = "ORM + asyncpg"
ORM_PSYCOPG: Final = "ORM + psycopg"
FASTAPI_DEPENDS: Final = "FastAPI Depends(yield)"
FASTAPI_PSYCOPG: Final = "FastAPI Depends(yield), psycopg"
LITESTAR: Final = "Litestar + advanced-alchemy"
SQLSPEC: Final = "SQLSpec + asyncpg"
PSQLPY: Final = "psqlpy by hand"
OURS_WITH_REPLICA: Final = "asgi-datasource with a replica"
FASTAPI_OURS: Final = "asgi-datasource in FastAPI"

_BUILDERS: Final = {
    OURS: "benchmarks.sides.ours:plain",
    PSYCOPG: "benchmarks.sides.psycopg_by_hand:pooled",
    PSYCOPG_NO_POOL: "benchmarks.sides.psycopg_by_hand:single",
    ASYNCPG: "benchmarks.sides.asyncpg_by_hand:pooled",
    SQLALCHEMY_ASYNCPG: "benchmarks.sides.sqlalchemy_session:on_asyncpg",
    SQLALCHEMY_PSYCOPG: "benchmarks.sides.sqlalchemy_session:on_psycopg",
    ORM_OURS: "benchmarks.sides.orm:on_ours",
    ORM_ASYNCPG: "benchmarks.sides.orm:on_asyncpg",
    ORM_PSYCOPG: "benchmarks.sides.orm:on_psycopg",
    FASTAPI_DEPENDS: "benchmarks.sides.fastapi_recipe:depends_yield",
    FASTAPI_PSYCOPG: "benchmarks.sides.fastapi_recipe:depends_yield_psycopg",
    LITESTAR: "benchmarks.sides.litestar_alchemy:app",
    SQLSPEC: "benchmarks.sides.sqlspec_session:on_asyncpg",
    PSQLPY: "benchmarks.sides.psqlpy_by_hand:pooled",
    OURS_WITH_REPLICA: "benchmarks.sides.ours:with_replica",
    FASTAPI_OURS: "benchmarks.sides.fastapi_recipe:ours",
}
NAMES: Final = tuple(_BUILDERS)


def build(name: str, url: str, pool_size: int) -> ASGIApp:
    """Build the side's application, which opens its pool at lifespan start-up."""
    module, _, function = _BUILDERS[name].partition(":")
    app: ASGIApp = getattr(import_module(module), function)(url, pool_size)
    return app
