"""Storage and lookup of the options of an annotated function."""

from __future__ import annotations

import functools
from typing import Final, cast

from ..transaction import TransactionOptions

ATTRIBUTE: Final = "__asgi_datasource_transactional__"
"""Name of the attribute of an annotated function or class."""


def options_of(endpoint: object, method: str) -> TransactionOptions | None:
    """The options of a matched endpoint: a function, a partial of one, a class, or a method of a class."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    if isinstance(endpoint, type):
        name = method.lower()
        # For a class without `head`, Starlette calls `get`.
        handler = getattr(endpoint, name, None) or (getattr(endpoint, "get", None) if name == "head" else None)
        found = getattr(handler, ATTRIBUTE, None)
        if found is not None:
            return cast("TransactionOptions", found)
    return cast("TransactionOptions | None", getattr(endpoint, ATTRIBUTE, None))
