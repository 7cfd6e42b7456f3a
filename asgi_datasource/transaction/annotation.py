"""`@transactional`: the options of a route or of a service function, written where it is defined."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, Protocol, TypeVar, cast, overload

from .options import Isolation, OutcomeEntry, OutcomeRule, TransactionOptions, parse_isolation

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

_ATTRIBUTE: Final = "__asgi_datasource_transactional__"


@dataclass(frozen=True, slots=True)
class Frame:
    """A running function that carries an annotation.

    Attributes:
        options: What the annotation says.
        function: The annotated function, as it can be found in `scope["endpoint"]`.
        deadline: `time.monotonic()` at which its time is up; None when it has no timeout.
    """

    options: TransactionOptions
    function: object
    deadline: float | None


current_frame: ContextVar[Frame | None] = ContextVar("asgi_datasource_frame", default=None)


class AnnotatedRunner(Protocol):
    """What runs an annotated service function inside its transaction: the session."""

    async def run_annotated(self, frame: Frame, call: Callable[[], Awaitable[R]], /) -> R:
        """Call and await; the transaction around it is used, or one of its own is opened and ended."""
        ...

    def note_failure(self, frame: Frame, error: Exception, /) -> None:
        """An exception leaves an annotated function."""
        ...


current_runner: ContextVar[AnnotatedRunner | None] = ContextVar("asgi_datasource_session", default=None)
"""The session of the request or block that runs here. Child tasks inherit it; the state itself lives on the session."""


@overload
def transactional(function: F, /) -> F: ...


@overload
def transactional(
    *,
    read_only: bool = ...,
    isolation: Isolation | str | None = ...,
    timeout: float | None = ...,
    commit_on: Iterable[OutcomeEntry] = ...,
    rollback_on: Iterable[OutcomeEntry] = ...,
) -> Callable[[F], F]: ...


def transactional(
    function: Callable[..., Any] | None = None,
    /,
    *,
    read_only: bool = False,
    isolation: Isolation | str | None = None,
    timeout: float | None = None,
    commit_on: Iterable[OutcomeEntry] = (),
    rollback_on: Iterable[OutcomeEntry] = (),
) -> Any:
    """Run a route or a service function inside a transaction, with these options.

    On a route nothing is opened until its first statement, and the transaction ends when its response starts. On an
    `async` service function, the one transaction around it is used; where there is none (outside a managed request),
    it gets one of its own that ends when it returns or raises.

    Args:
        read_only: One READ ONLY transaction for all its reads, on one replica: a snapshot.
        isolation: "read committed", "repeatable read" or "serializable"; None leaves it to the server, and means
            "repeatable read" together with `read_only`.
        timeout: Seconds from the request's start (for a service function: from its call) to the end of COMMIT.
            It can only shorten the time that is left.
        commit_on: Statuses (409), classes of statuses ("4xx") or exception classes after which to commit all the same.
        rollback_on: Statuses, classes of statuses or exception classes after which to roll back all the same.

    Returns:
        The function with its signature kept; for a class (an `HTTPEndpoint`), the class itself.

    Raises:
        TypeError: It is an async generator, whose end nobody can tell; open `async with db.transaction():` inside.
        ValueError: An option is none of the values above.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout: {timeout!r} is not a positive number of seconds")
    options = TransactionOptions(
        read_only=read_only,
        isolation=parse_isolation(isolation),
        timeout_s=timeout,
        commit_on=OutcomeRule.of(commit_on, where="commit_on"),
        rollback_on=OutcomeRule.of(rollback_on, where="rollback_on"),
    )
    return _annotate(function, options) if function is not None else functools.partial(_annotate, options=options)


def _annotate(function: Callable[..., Any], options: TransactionOptions) -> Any:
    if isinstance(function, type):
        setattr(function, _ATTRIBUTE, options)
        return function
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"@transactional on {function.__qualname__}: a generator has no end that a transaction could wait for;"
            " open `async with db.transaction():` inside it, or annotate the function that consumes it"
        )
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            frame = _frame(options, run_async)
            runner = current_runner.get()

            async def call() -> Any:
                token = current_frame.set(frame)
                try:
                    return await function(*args, **kwargs)
                except Exception as error:
                    if runner is not None:
                        runner.note_failure(frame, error)
                    raise
                finally:
                    current_frame.reset(token)

            # What surrounds the call is decided by what holds outside of it.
            return await (call() if runner is None else runner.run_annotated(frame, call))

        setattr(run_async, _ATTRIBUTE, options)
        return run_async

    @functools.wraps(function)
    def run_sync(*args: Any, **kwargs: Any) -> Any:
        frame = _frame(options, run_sync)
        token = current_frame.set(frame)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            runner = current_runner.get()
            if runner is not None:
                runner.note_failure(frame, error)
            raise
        finally:
            current_frame.reset(token)

    setattr(run_sync, _ATTRIBUTE, options)
    return run_sync


def _frame(options: TransactionOptions, function: object) -> Frame:
    """The frame of a call that starts now; its deadline never lies behind the one of the call around it."""
    outer = current_frame.get()
    deadline = None if outer is None else outer.deadline
    if options.timeout_s is not None:
        own = time.monotonic() + options.timeout_s
        deadline = own if deadline is None else min(own, deadline)
    return Frame(options, function, deadline)


def options_of(endpoint: object, method: str) -> TransactionOptions | None:
    """The options of a matched endpoint: a function, a partial of one, a class, or a method of a class."""
    while isinstance(endpoint, functools.partial):
        endpoint = endpoint.func
    if isinstance(endpoint, type):
        handler = getattr(endpoint, method.lower(), None)
        found = getattr(handler, _ATTRIBUTE, None)
        if found is not None:
            return cast("TransactionOptions", found)
    return cast("TransactionOptions | None", getattr(endpoint, _ATTRIBUTE, None))
