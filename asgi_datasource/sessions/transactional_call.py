"""Running an annotated route or service function, with retries after conflicts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

from ..observability import names
from ..observability.decision_log import log_decision
from ..routing import AccessIntent
from ..transaction import (
    BARE,
    Propagation,
    PropagationAction,
    SurroundingTransaction,
    TransactionOptions,
    backoff_s,
    is_conflict,
)
from .context import Frame, current_frame
from .core import SessionCore
from .transaction_block import TransactionBlock, refused

R = TypeVar("R")

logger = logging.getLogger("asgi_datasource.transaction")


def block(session: SessionCore, options: TransactionOptions) -> TransactionBlock:
    """A transaction block with these options."""
    deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
    return TransactionBlock(session, options, is_exclusive=False, demotes=True, deadline=deadline)


async def run(session: SessionCore, options: TransactionOptions, invoke: Callable[[], Awaitable[R]]) -> R:
    """Run an annotated async function.

    Args:
        session: The session.
        options: The options of its annotation.
        invoke: Calls the function; called again for each retry.
    """
    if not session.is_open:
        # The function need not use the session; if it does, it gets SessionClosed.
        return await invoke()
    if session.is_route(options) and not session.is_in_route:
        with _route(session, options):
            return await invoke()
    if not options.retry:
        async with block(session, options):
            return await invoke()
    try:
        result = await _run_with_retries(session, options, invoke, options.retry)
    except Exception:
        await session.run_due_hooks()
        raise
    await session.run_due_hooks()
    return result


async def _run_with_retries(
    session: SessionCore, options: TransactionOptions, invoke: Callable[[], Awaitable[R]], retries: int
) -> R:
    """Run a function in a transaction of its own, and again after each conflict, at most `retries` times."""
    deadline = None if options.timeout_s is None else time.monotonic() + options.timeout_s
    attempt = 0
    while True:
        attempt += 1
        block = TransactionBlock(
            session, options, is_exclusive=False, demotes=True, deadline=deadline, runs_hooks=False
        )
        block.attempt = attempt
        hooks, commits = session.due_hooks, session.commits
        try:
            async with block:
                return await invoke()
        except Exception as error:
            conflict = block.lost_by or (error if is_conflict(error) else None)
            if conflict is None or block.action is not PropagationAction.OWN:
                raise
            if attempt > retries:
                session.note_event(names.RETRY_GIVEN_UP, {names.RETRY_ATTEMPT: attempt})
                if retries:
                    log_decision(
                        logger,
                        logging.WARNING,
                        "retry_exhausted",
                        "a function has failed %d times with a conflict: %s. The last error is raised",
                        attempt,
                        conflict.sqlstate,
                        fields={names.RETRY_ATTEMPT: attempt, names.DB_STATUS_CODE: conflict.sqlstate or ""},
                        once_for=("retry_exhausted", conflict.sqlstate, id(options)),
                    )
                raise
            if session.commits != commits:
                logger.warning("not retried after a conflict: a part of it had been committed already")
                raise
            delay_s = backoff_s(attempt)
            limit = session.deadline() if deadline is None else deadline
            if limit is not None and time.monotonic() + delay_s >= limit:
                raise
            session.forget_due_hooks(hooks)
            with session.waiting_to_retry(attempt, delay_s, conflict):
                await asyncio.sleep(delay_s)


def run_sync(session: SessionCore, options: TransactionOptions, invoke: Callable[[], R]) -> R:
    """Run an annotated sync function in the surrounding transaction.

    Raises:
        DataError: QUERY: its propagation would open a transaction, and it runs in the thread of the event loop.
    """
    if not session.is_open:
        return invoke()
    if session.is_route(options) and not session.is_in_route:
        with _route(session, options):
            return invoke()
    with TransactionBlock(session, options, is_exclusive=False, demotes=True).joined():
        return invoke()


@contextmanager
def _route(session: SessionCore, options: TransactionOptions) -> Generator[None]:
    """Mark the matched endpoint as running; its annotation applies to the whole request."""
    if options.propagation is Propagation.MANDATORY:
        raise refused(Propagation.MANDATORY, SurroundingTransaction.NOTHING)
    outer = current_frame.get()
    token = None
    if outer is not None:
        # An annotated function has called the application: the route's annotation takes precedence over it.
        intent = AccessIntent.READ if options.read_only else None if options.propagation in BARE else AccessIntent.WRITE
        frame = Frame(intent, options.read_only, options.propagation not in BARE, outer.deadline)
        token = current_frame.set(frame)
    session.is_in_route = True
    try:
        yield
    except BaseException as error:
        session.note_failure(options, error)
        raise
    finally:
        session.is_in_route = False
        if token is not None:
            current_frame.reset(token)
