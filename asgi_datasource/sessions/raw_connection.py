"""The driver's own connection, lent to the user for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from ..errors import DataError
from ..routing import AccessIntent
from ..transaction import RAW_SAVEPOINT, Propagation, Transaction, TransactionOptions
from .core import SessionCore
from .transaction_block import TransactionBlock

_OUTLIVED: Final = (
    "the borrowed connection was used after its `async with db.connection()` block; borrow it again, or use it inside"
)


@asynccontextmanager
async def lend(session: SessionCore, intent: AccessIntent | None) -> AsyncGenerator[Any]:
    """Hand out the driver's own connection, inside the tenant and a transaction, for as long as the block lasts."""
    session.check_open()
    is_read = (intent or session.intent) is AccessIntent.READ
    # In a transaction that writes, READ ONLY needs a savepoint to end with.
    propagation = Propagation.NESTED if is_read and session.is_writing else Propagation.REQUIRED
    options = TransactionOptions(read_only=is_read, propagation=propagation)
    async with TransactionBlock(session, options, dooms=False):
        await session.run((RAW_SAVEPOINT,), AccessIntent.READ if is_read else None)
        transaction = cast("Transaction", session.transaction_in_use)
        loan = transaction.server.lend(transaction.connection)
        try:
            yield loan.connection
        except BaseException:
            loan.expire(_OUTLIVED)
            # What it has to say is in the way of nothing: the transaction says it to whoever goes on with it.
            with contextlib.suppress(DataError):
                await transaction.take_back()
            raise
        loan.expire(_OUTLIVED)
        await transaction.take_back()
