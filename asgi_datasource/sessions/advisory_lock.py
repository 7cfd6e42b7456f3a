"""Advisory locks that last as long as the transaction that takes them.

Source: PostgreSQL manual, "Advisory Locks" and "Advisory Lock Functions".
"""

from __future__ import annotations

from typing import Final

from ..drivers.statements import AuxiliaryStatement, Statement
from ..errors import DataError, DataErrorKind
from ..routing import AccessIntent
from ..transaction import Propagation, SurroundingTransaction, TransactionOptions
from .core import SessionCore
from .transaction_block import TransactionBlock

LockKey = str | int | tuple[int, int]
"""A string, scoped to the tenant; or one or two integers as in `pg_advisory_xact_lock`, shared by all tenants."""

LOCK_NOT_AVAILABLE: Final = "55P03"

_NAME: Final = (
    "pg_catalog.hashtextextended(%s::pg_catalog.text operator(pg_catalog.||) pg_catalog.chr(31)"
    " operator(pg_catalog.||) %s::pg_catalog.text, 0)"
)
"""Hashes the tenant together with the key: advisory locks are per database, which several tenants may share."""

_LOCK: Final = "select from pg_catalog.pg_advisory_xact_lock"
_TRY_LOCK: Final = "select * from pg_catalog.pg_try_advisory_xact_lock"

_KEEP_TIMEOUT: Final = AuxiliaryStatement(
    "select pg_catalog.set_config('ads.lock_timeout',before,true)"
    " from pg_catalog.current_setting('lock_timeout') as before"
)
_RESTORE_TIMEOUT: Final = AuxiliaryStatement(
    "select pg_catalog.set_config('lock_timeout',before,true)"
    " from pg_catalog.current_setting('ads.lock_timeout') as before"
)


async def take_lock(session: SessionCore, key: LockKey, timeout_s: float | None) -> None:
    """Acquire a lock until the transaction ends, in one round trip."""
    session.check_open()
    around = session.surroundings()
    if around is SurroundingTransaction.NOTHING:
        raise DataError(
            DataErrorKind.QUERY,
            "a lock ends with its transaction, and there is none here: annotate the function with @transactional, or"
            " open `async with db.transaction():` around it",
        )
    if around is SurroundingTransaction.READ_ONLY:
        raise DataError(DataErrorKind.READ_ONLY, "a lock was asked for in a read-only transaction, which needs none")
    arguments, params = _arguments(session, key)
    if timeout_s is None:
        await session.run((Statement(f"{_LOCK}({arguments})", params),), AccessIntent.WRITE)
    elif timeout_s > 0:
        milliseconds = str(max(1, round(timeout_s * 1000)))
        batch = (
            _KEEP_TIMEOUT,
            AuxiliaryStatement("select pg_catalog.set_config('lock_timeout',%s,true)", [milliseconds]),
            Statement(f"{_LOCK}({arguments})", params),
            _RESTORE_TIMEOUT,
        )
        try:
            # A savepoint keeps the transaction usable after a lock timeout; RELEASE is sent with the next statement.
            async with TransactionBlock(session, TransactionOptions(propagation=Propagation.NESTED)):
                await session.run(batch, AccessIntent.WRITE)
        except DataError as error:
            if error.sqlstate == LOCK_NOT_AVAILABLE:
                raise _not_available(timeout_s) from error
            raise
    else:
        query = Statement(f"{_TRY_LOCK}({arguments})", params)
        if not (await session.run((query,), AccessIntent.WRITE))[0].scalar():
            raise _not_available(0)


def _arguments(session: SessionCore, key: LockKey) -> tuple[str, list[object]]:
    if isinstance(key, str):
        return _NAME, [session.tenant.name or "", key]
    if isinstance(key, int) and not isinstance(key, bool):
        return "%s::bigint", [key]
    if isinstance(key, tuple) and len(key) == 2 and all(type(part) is int for part in key):
        return "%s::int,%s::int", list(key)
    raise TypeError("db.lock(): the key is a string, an integer, or a pair of integers")


def _not_available(timeout_s: float) -> DataError:
    waited = f"within {timeout_s:g} s" if timeout_s else "at once"
    return DataError(
        DataErrorKind.CONFLICT,
        f"the lock was not available {waited}; another session holds it",
        sqlstate=LOCK_NOT_AVAILABLE,
    )
