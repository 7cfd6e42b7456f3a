"""`@transactional`: the transaction options of a route, a service function or a block."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, TypeVar, cast, overload

from ..errors import DataError, DataErrorKind
from ..transaction.options import (
    Isolation,
    OutcomeEntry,
    OutcomeRule,
    TransactionOptions,
    parse_isolation,
    parse_propagation,
)
from ..transaction.propagation import Propagation
from . import transactional_call
from .context import current_runner
from .options import ATTRIBUTE
from .session import DataSession


class _Retrying:
    """Whether any annotation sets `retry`; otherwise request bodies are not kept for a retry."""

    is_asked_for = False


retrying: Final = _Retrying()

F = TypeVar("F", bound=Callable[..., Any])


class Transactional:
    """The result of `transactional(...)`: a decorator, and an async context manager for one use at a time."""

    __slots__ = ("_block", "_options")

    def __init__(self, options: TransactionOptions) -> None:
        self._options = options
        self._block: AbstractAsyncContextManager[DataSession] | None = None

    def __repr__(self) -> str:
        return f"<transactional {self._options.propagation.value}>"

    def __call__(self, function: F) -> F:
        """Annotate a function, a method, or a class of endpoints."""
        return _annotate(function, self._options)

    async def __aenter__(self) -> DataSession:
        if self._block is not None:
            raise RuntimeError("this block is open already; write `async with transactional(...)` for each")
        if self._options.retry or self._options.stream:
            raise ValueError("retry and stream: a block cannot be run again, nor outlive itself; annotate a function")
        runner = current_runner.get()
        if runner is None:
            raise no_session()
        block = self._block = transactional_call.block(runner.session, self._options)
        try:
            db: DataSession = await block.__aenter__()
            return db
        except BaseException:
            self._block = None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block, self._block = self._block, None
        if block is not None:
            await block.__aexit__(kind, error, traceback)


@overload
def transactional(function: F, /) -> F: ...


@overload
def transactional(
    *,
    read_only: bool = ...,
    isolation: Isolation | str | None = ...,
    propagation: Propagation | str = ...,
    timeout: float | None = ...,
    retry: int | None = ...,
    deferrable: bool = ...,
    stream: bool = ...,
    commit_on: Iterable[OutcomeEntry] = ...,
    rollback_on: Iterable[OutcomeEntry] = ...,
) -> Transactional: ...


def transactional(
    function: Callable[..., Any] | None = None,
    /,
    *,
    read_only: bool = False,
    isolation: Isolation | str | None = None,
    propagation: Propagation | str = Propagation.REQUIRED,
    timeout: float | None = None,
    retry: int | None = None,
    deferrable: bool = False,
    stream: bool = False,
    commit_on: Iterable[OutcomeEntry] = (),
    rollback_on: Iterable[OutcomeEntry] = (),
) -> Any:
    """Run a route, a service function or a block inside a transaction, with these options.

    `@transactional` and `@transactional(...)` annotate; `async with transactional(...) as db:` is a block.

    On a route the first statement opens the transaction, which ends when the response starts. Elsewhere the surrounding
    transaction is joined; without one (outside a managed request), the function gets its own, which ends when it
    returns or raises. An exception that leaves a joined function or block marks the surrounding transaction
    rollback-only, even if a caller catches the exception: the commit then raises `UnexpectedRollback`. Use "nested" for
    a part that may fail alone.

    Args:
        read_only: One READ ONLY transaction for all its reads, on one replica: a snapshot.
        isolation: "read committed", "repeatable read" or "serializable"; None leaves it to the server, and means
            "repeatable read" together with `read_only`. Refused inside a transaction of another isolation.
        propagation: "required"; "requires_new", which takes a second connection beside that of the transaction around
            it, so that a pool of one is refused; "nested", a savepoint; "mandatory", "supports", "not_supported" or
            "never".
        timeout: Seconds from the request's start (for a function or block: from its call) to the end of COMMIT.
            It can only shorten the time that is left.
        retry: Retries after a serialization failure or a deadlock (40001, 40P01): of the whole request, with the same
            body; of a function if it has its own transaction.
        deferrable: With `read_only` and "serializable": waits for a snapshot that can neither fail with nor cause a
            serialization failure.
        stream: With `read_only`, on a route: the transaction lasts until the end of the response's body.
        commit_on: Statuses (409), classes of statuses ("4xx") or exception classes that commit although the default is
            to roll back.
        rollback_on: Statuses, classes of statuses or exception classes that roll back although the default is to
            commit.

    Returns:
        The function with its signature kept; for a class (an `HTTPEndpoint`), the class itself.

    Raises:
        TypeError: It is a generator, whose end cannot be observed; open a block inside.
        ValueError: An option is none of the values above.
    """
    if retry:
        retrying.is_asked_for = True
    options = TransactionOptions(
        read_only=read_only,
        isolation=parse_isolation(isolation),
        propagation=parse_propagation(propagation),
        timeout_s=timeout,
        retry=retry,
        deferrable=deferrable,
        stream=stream,
        commit_on=OutcomeRule.of(commit_on, where="commit_on"),
        rollback_on=OutcomeRule.of(rollback_on, where="rollback_on"),
    )
    return Transactional(options) if function is None else _annotate(function, options)


def _annotate(function: F, options: TransactionOptions) -> F:
    if isinstance(function, type):
        if not any(hasattr(function, name) for name in ("dispatch", "__await__")):
            raise TypeError(
                f"@transactional on the class {function.__qualname__}, which is no HTTPEndpoint or WebSocketEndpoint:"
                " annotate its methods"
            )
        setattr(function, ATTRIBUTE, options)
        dispatch = getattr(function, "dispatch", None)
        if dispatch is not None:
            cast("Any", function).dispatch = _run_endpoint(dispatch, options)
        return cast("F", function)
    if isinstance(function, staticmethod | classmethod):
        raise TypeError("@transactional: write it below @staticmethod or @classmethod, next to the function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"@transactional on {function.__qualname__}: a generator has no end that a transaction could wait for;"
            " write `async with transactional(...) as db:` inside it, or annotate the function that consumes it"
        )
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

        @functools.wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            runner = current_runner.get()
            if runner is None:
                return await function(*args, **kwargs)
            return await transactional_call.run(runner.session, options, functools.partial(function, *args, **kwargs))

        setattr(run_async, ATTRIBUTE, options)
        return cast("F", run_async)

    @functools.wraps(function)
    def run_sync(*args: Any, **kwargs: Any) -> Any:
        runner = current_runner.get()
        if runner is None:
            return function(*args, **kwargs)
        result = transactional_call.run_sync(runner.session, options, functools.partial(function, *args, **kwargs))
        if inspect.iscoroutine(result):
            # An async function wrapped by a sync one: its coroutine has not started yet.
            return transactional_call.run(runner.session, options, lambda: result)
        return result

    setattr(run_sync, ATTRIBUTE, options)
    return cast("F", run_sync)


def _run_endpoint(dispatch: Callable[..., Any], options: TransactionOptions) -> Callable[..., Any]:
    """Wrap the `dispatch` of an annotated class, for methods without an annotation of their own."""

    @functools.wraps(dispatch)
    async def run_endpoint(*args: Any) -> Any:
        runner = current_runner.get()
        if runner is None or not runner.session.is_route(options):
            return await dispatch(*args)
        return await transactional_call.run(runner.session, options, functools.partial(dispatch, *args))

    return run_endpoint


def no_session() -> DataError:
    """The error of a call that needs a session, outside of any."""
    return DataError(
        DataErrorKind.QUERY,
        "no session here: call this inside a request behind DataSourceMiddleware, or inside"
        " `async with registry.session(tenant=...)`",
    )
