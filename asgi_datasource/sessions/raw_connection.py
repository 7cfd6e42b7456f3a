"""What holds a connection for longer than a statement: streams, and psycopg's connection on loan."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

from ..drivers.psycopg import Params, Query, RawConnection, RowFactory, Statement
from ..errors import DataError
from ..routing import AccessIntent
from ..transaction import LOAN, Propagation, Transaction, TransactionOptions
from .transaction_block import TransactionBlock

if TYPE_CHECKING:
    from .session import DataSession

_OUTLIVED: Final = (
    "the borrowed connection was used after its `async with db.connection()` block; borrow it again, or use it inside"
)


async def stream(
    session: DataSession,
    intent: AccessIntent | None,
    query: Query,
    params: Params | None,
    row_factory: RowFactory[Any] | None,
    size: int,
) -> AsyncGenerator[Any]:
    """Fetch a cursor's rows step by step; with None, the intent is the one that holds here."""
    if size < 1:
        raise ValueError(f"size: {size!r} is not a positive number of rows")
    session.check_open()
    name = session.next_savepoint()
    declare = Statement.declare_cursor(name, query, params)
    fetch = Statement(f"fetch forward {size} from {name}", prepare=False)
    intent, snapshot = await session.begin_stream(intent)
    try:
        rows = (await session.run((declare, fetch), intent))[1].rows(row_factory)
        while True:
            for row in rows:
                yield row
            if len(rows) < size:
                break
            rows = (await session.run((fetch,), intent))[0].rows(row_factory)
        if snapshot is None:
            await session.run((Statement(f"close {name}", prepare=False),), intent)
    finally:
        if snapshot is not None:
            await session.end_stream(snapshot)


@asynccontextmanager
async def lend(session: DataSession, intent: AccessIntent | None) -> AsyncGenerator[RawConnection]:
    """Hand out psycopg's own connection, inside the tenant and a transaction, for as long as the block lasts."""
    session.check_open()
    is_read = (intent or session.intent) is AccessIntent.READ
    # In a transaction that writes, READ ONLY needs a savepoint to end with.
    propagation = Propagation.NESTED if is_read and session.is_writing else Propagation.REQUIRED
    options = TransactionOptions(read_only=is_read, propagation=propagation)
    async with TransactionBlock(session, options, dooms=False):
        await session.run((LOAN,), AccessIntent.READ if is_read else None)
        transaction = cast("Transaction", session.transaction_in_use)
        view = transaction.connection.view()
        try:
            yield view
        except BaseException:
            view.expire(_OUTLIVED)
            # What it has to say is in the way of nothing: the transaction says it to whoever goes on with it.
            with contextlib.suppress(DataError):
                await transaction.take_back()
            raise
        view.expire(_OUTLIVED)
        await transaction.take_back()
