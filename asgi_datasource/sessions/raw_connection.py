"""The driver's own connection, lent to the application for the duration of a block."""

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
    """Lend the driver's own connection, with the tenant's settings and in a transaction, until the block ends."""
    session.check_open()
    is_read = (intent or session.intent) is AccessIntent.READ
    # In a writing transaction READ ONLY is set inside a savepoint, whose release restores the mode.
    propagation = Propagation.NESTED if is_read and session.is_writing else Propagation.REQUIRED
    options = TransactionOptions(read_only=is_read, propagation=propagation)
    async with TransactionBlock(session, options, dooms=False):
        await session.run((RAW_SAVEPOINT,), AccessIntent.READ if is_read else None)
        transaction = cast("Transaction", session.transaction_in_use)
        borrowed = transaction.server.lend(transaction.connection)
        span = None if transaction.trace is None else transaction.trace.borrowed()
        try:
            yield borrowed.connection
        except BaseException as error:
            if span is not None and transaction.trace is not None:
                transaction.trace.session.fail(span, error)
                span.end()
            borrowed.expire(_OUTLIVED)
            # The block's exception takes precedence; the transaction raises this one at its next statement.
            with contextlib.suppress(DataError):
                await transaction.take_back(borrowed.refusal)
            raise
        if span is not None:
            span.end()
        borrowed.expire(_OUTLIVED)
        await transaction.take_back(borrowed.refusal)
