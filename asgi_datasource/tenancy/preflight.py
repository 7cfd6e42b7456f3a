"""CORS preflights, which need no tenant."""

from __future__ import annotations

from starlette.types import Scope


def is_preflight(scope: Scope) -> bool:
    """Whether a browser asks if it may send a request: without credentials, so often without what names the tenant.

    Source: Fetch standard, "CORS-preflight request".
    """
    if scope["method"] != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names
