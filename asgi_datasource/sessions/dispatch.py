"""Where a statement runs: in the transaction that is open, in one that it opens, or by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..datasource.executor import Executor
from ..drivers.psycopg import Result, Statement
from ..errors import DataError, DataErrorKind
from ..routing import AccessIntent
from ..transaction import Isolation, Terms
from .policy import Plan, opening
from .unit_of_work import UnitOfWork

if TYPE_CHECKING:
    from .transaction_block import TransactionBlock


async def dispatch(
    work: UnitOfWork,
    executor: Executor,
    statements: Sequence[Statement],
    intent: AccessIntent,
    plan: Plan,
    block: TransactionBlock | None,
) -> list[Result]:
    """Run statements; the caller has the session to itself, or shares it with other reads.

    Args:
        work: What they belong to.
        executor: What runs them.
        statements: What to run.
        intent: What they want.
        plan: What holds for them.
        block: The innermost block around them.
    """
    is_write = intent is AccessIntent.WRITE
    if plan.reads_only and is_write:
        raise DataError(DataErrorKind.READ_ONLY, "the transaction is read only")
    transaction = work.transaction
    if transaction is None and work.snapshot is not None:
        if is_write:
            raise DataError(
                DataErrorKind.QUERY,
                "a write was sent while a stream holds a replica; end that first, or put"
                " `async with db.transaction():` around both, so that they share one connection",
            )
        transaction = work.snapshot
    if transaction is not None:
        if transaction.read_only and is_write:
            raise DataError(DataErrorKind.READ_ONLY, "the transaction is read only")
        executor.note_transaction(transaction, intent)
        return await transaction.run(
            statements,
            deadline=plan.deadline,
            as_read=not is_write,
            is_guarded=block is not None and block.is_guarded,
        )
    terms = work.terms or plan.terms
    if not is_write and not terms.opens_with_reads:
        return await executor.read(statements, deadline=plan.deadline, freshness=plan.freshness)
    if is_write:
        work.about_to_write()
    if terms.is_shared:
        return await open_transaction(work, executor, statements, plan, terms, block)
    # Nothing surrounds it: the statement is a transaction by itself.
    committed = False
    try:
        results = await open_transaction(work, executor, statements, plan, terms, block)
        committed = True
    finally:
        # The hooks that wait here wait for another end.
        await work.finish(commit=committed, reason="the statement failed", deadline=plan.deadline, takes_hooks=False)
    return results


async def open_transaction(
    work: UnitOfWork,
    executor: Executor,
    statements: Sequence[Statement],
    plan: Plan,
    terms: Terms,
    block: TransactionBlock | None,
    *,
    is_snapshot: bool = False,
) -> list[Result]:
    """Open a transaction, and the savepoints of the blocks that are open, in its first statements' round trip.

    Args:
        terms: What it is.
        is_snapshot: It belongs to a stream.
    """
    isolation = terms.isolation
    if terms.read_only and isolation is None:
        isolation = Isolation.REPEATABLE_READ
    intent, freshness = opening(terms, plan.freshness)
    opened = await executor.begin(
        statements,
        deadline=plan.deadline,
        intent=intent,
        isolation=isolation,
        is_deferrable=terms.deferrable,
        freshness=freshness,
        savepoints=[] if block is None else block.savepoints_to_send(),
    )
    if is_snapshot:
        work.snapshot = opened.transaction
    else:
        work.transaction = opened.transaction
    error = opened.error
    if error is not None:
        try:
            raise error from error.__cause__
        finally:
            # Its traceback leads to this frame, which must not lead back.
            del opened, error
    return opened.results
