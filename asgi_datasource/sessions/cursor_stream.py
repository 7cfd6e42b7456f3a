"""Rows of a server-side cursor, fetched in batches: bounded memory for results of any size."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from ..drivers.statements import AuxiliaryStatement, CursorDeclaration, Params, Query, Statement
from ..observability.session_trace import StreamTrace
from ..routing import AccessIntent
from .core import SessionCore
from .row_classes import RowType
from .statement_api import rows_of


async def stream(
    session: SessionCore,
    intent: AccessIntent | None,
    query: Query,
    params: Params | None,
    row_factory: RowType[Any] | None,
    size: int,
) -> AsyncGenerator[Any]:
    """Fetch a cursor's rows in batches of `size`; None uses the intent in force."""
    if size < 1:
        raise ValueError(f"size: {size!r} is not a positive number of rows")
    session.check_open()
    name = session.next_savepoint()
    declare = CursorDeclaration(name, query, params)
    fetch = AuxiliaryStatement(f"fetch forward {size} from {name}", prepare=False)
    intent, snapshot = await session.begin_stream(intent)
    traced: StreamTrace | None = None
    failure: BaseException | None = None
    try:
        if session.transaction_in_use is not None and session.transaction_in_use.trace is not None:
            traced = session.transaction_in_use.trace.stream(Statement(query, params))
        rows = rows_of((await session.run((declare, fetch), intent))[1], row_factory)
        while True:
            if traced is not None:
                traced.fetched(len(rows))
            for row in rows:
                yield row
            if len(rows) < size:
                break
            rows = rows_of((await session.run((fetch,), intent))[0], row_factory)
        if snapshot is None:
            await session.run((AuxiliaryStatement(f"close {name}", prepare=False),), intent)
    except BaseException as error:
        failure = error
        raise
    finally:
        if traced is not None:
            traced.end(failure)
        del failure
        if snapshot is not None:
            await session.end_stream(snapshot)
