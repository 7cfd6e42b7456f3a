"""Holds the first byte of a response until the outcome of the transaction is known.

Each request has a `ResponseGuard` between server and application, with these states:

    OPEN ──────────────▶ ENDING ─▶ ENDED        the application's response starts: commit or roll back, then pass it on
      │                       └──▶ REPLACED     the commit failed: send another response, or retry the request
      ├─▶ DOOMED ──────────▶ ENDING             the deadline has passed, or the client has disconnected: roll back
      └─▶ STREAMING ───────▶ ENDED              a snapshot that lasts until the end of the body
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, MutableMapping
from enum import StrEnum
from typing import Any, Final, cast
from urllib.parse import quote

from opentelemetry.trace import Span
from starlette.types import Message, Receive, Send

from ..drivers.protocol import Exchange
from ..errors import ClientDisconnected, DataError, DataErrorKind
from ..observability import names, tracing
from ..observability.decision_log import log_decision
from ..observability.tracing import reason_of
from ..registry.registry import DataSourceRegistry
from ..registry.runtime_config import RuntimeConfig
from ..routing.consistency.client_history import ClientHistory
from ..sessions.base import SessionBase
from ..sessions.core import SessionCore
from ..sessions.session import DataSession
from ..sessions.unit_of_work import deadline_passed
from ..tenancy import Tenant
from ..tenancy.path_prefix import route_path
from ..transaction import TransactionOptions
from . import outcome
from .cache_headers import CacheHeaders
from .current_session import SessionHolder
from .exception_handlers import find_handler
from .outcome import Attempt, Outcome
from .problem_details import ProblemDetails
from .receive_buffer import ReceiveBuffer
from .request_replay import RequestReplay

logger = logging.getLogger("asgi_datasource.middleware")

_NO_SCOPE: Final[MutableMapping[str, Any]] = {"method": "GET", "path": "/"}
"""Replaces the scope once the call has ended."""

CLIENT_LEFT: Final = "the client left; its transaction was rolled back"

DEADLINE_RETRY_S: Final = 1.0
"""Seconds after which a request that ignores its deadline is interrupted again."""


class GuardState(StrEnum):
    """The states of a request."""

    OPEN = "open"
    STREAMING = "streaming"
    """The response has started, and its body is read from a snapshot that is still open."""
    DOOMED = "doomed"
    ENDING = "ending"
    ENDED = "ended"
    REPLACED = "replaced"
    """Another response was sent, or the request is retried; further messages of the application are discarded."""


# Looking a member up on an enumeration costs as much as a call; these are read for every message.
_OPEN: Final = GuardState.OPEN
_STREAMING: Final = GuardState.STREAMING
_DOOMED: Final = GuardState.DOOMED
_ENDING: Final = GuardState.ENDING
_ENDED: Final = GuardState.ENDED
_REPLACED: Final = GuardState.REPLACED


class ResponseReplaced(BaseException):
    """Raised by `send` to end the application's call after its response was replaced.

    A BaseException, so that no `except Exception` of a framework renders it as an error.
    """


class ResponseGuard:
    """The guard of one request: holds the response until the outcome of the transaction is known.

    The session is created on first access.
    """

    # Slots for the attributes that every request sets; class-level defaults for the others, whose first assignment
    # creates the dictionary.
    __slots__ = (
        "__dict__",
        "_config",
        "_raw_receive",
        "_raw_send",
        "_started",
        "_tenant",
        "caching",
        "registry",
        "scope",
        "state",
    )
    _outer: SessionHolder | None = None
    _root = ""
    is_used = False
    """Whether `leave` has anything to clean up."""
    _session: DataSession | None = None
    _received: ReceiveBuffer | None = None
    _ending: asyncio.Task[None] | None = None
    _hooks: asyncio.Task[None] | None = None
    """Runs the hooks that were due when the response had started."""
    _is_decided: asyncio.Event | None = None
    _stopped_by: DataError | None = None
    _task: asyncio.Task[Any] | None = None
    _cancellations = 0
    _is_armed = False
    _deadline: float | None = None
    _timer: asyncio.TimerHandle | None = None
    _watch: asyncio.Task[None] | None = None
    _has_started = False
    """Whether a streamed response had started when it was interrupted."""
    _is_committing = False
    """COMMIT was sent, and its result is not read yet."""
    _failure: BaseException | None = None
    """Raised by the middleware in place of the exception that ended the application's call."""
    replay: RequestReplay | None = None
    """The original request; None if it is never retried."""
    request_span: Span | None = None
    """The request's span; None where it does not record."""
    lost_by: DataError | None = None
    """The conflict that it is retried for."""
    runs_again_after: float | None = None
    """Seconds until the request is retried; None if it is not."""

    def __init__(
        self,
        registry: DataSourceRegistry,
        config: RuntimeConfig,
        tenant: Tenant,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        started: float,
        outer: SessionHolder | None,
        caching: CacheHeaders | None,
    ) -> None:
        self.registry = registry
        self._config = config
        self._tenant = tenant
        self.scope = scope
        self._raw_receive = receive
        self._raw_send = send
        self._started = started
        self.state: GuardState = _OPEN
        self.caching = caching
        """Adds `Vary` and `Cache-Control`; None if the URL alone names the tenant."""
        if outer is not None:
            self._outer = outer
        if config.rules.rules:
            # Routers that mount an application extend the scope's `root_path`.
            self._root = scope.get("root_path", "")

    def __deepcopy__(self, memo: dict[int, Any]) -> ResponseGuard:
        """A copy of the scope belongs to the same request."""
        return self

    @property
    def tenant(self) -> Tenant:
        """The tenant of the request."""
        return self._tenant

    @property
    def session(self) -> DataSession:
        """The request's session; closed if its first access comes after the start of the response."""
        session = self._session
        if session is None:
            scope, config = self.scope, self._config
            self.is_used = True
            # FastAPI calls sync functions in a thread, which has no task.
            self._task = None if asyncio._get_running_loop() is None else asyncio.current_task()
            session = self._session = self.registry.make_session(
                self._tenant,
                compiled=config,
                scope=scope,
                method=scope["method"],
                policy=config.policy,
                path=route_path(scope, self._root) if config.rules.rules else None,
                started=self._started,
                owner=self,
                outer=None if self._outer is None else self._outer.session,
            )
            if self.state in (_ENDED, _REPLACED):
                session.close_unused()
        return session

    def tolerates(self, error: BaseException, options: TransactionOptions) -> bool:
        """Whether an exception becomes a response whose status commits, such as a redirect."""
        session = self._session
        rollback_on = self._config.policy.rollback_on
        return session is not None and outcome.tolerates(error, options, session.lane(), rollback_on)

    @property
    def is_traced(self) -> bool:
        """Whether tracing is enabled."""
        return self._config.policy.is_traced

    @property
    def attempt(self) -> int:
        """Number of the request's attempt."""
        return 1 if self.replay is None else self.replay.attempt

    def _commits(self, session: SessionCore, status: int) -> bool:
        """Whether a response of this status commits."""
        if session.rollback_reason is not None:
            return False
        if session.verdict is not None:
            return session.verdict
        lane = session.lane()
        commits = lane.outcomes.get(status)
        if commits is None:
            decided = outcome.decide(lane, self._config.policy.rollback_on, status=status)
            commits = lane.outcomes[status] = decided is Outcome.COMMIT
        return commits

    def _commits_after(self, session: SessionCore, error: BaseException) -> bool:
        """Whether the transaction is committed although this exception has left the application."""
        decided = outcome.decide(
            session.lane(),
            self._config.policy.rollback_on,
            error=error,
            is_rollback_only=session.rollback_reason is not None,
        )
        return decided is Outcome.COMMIT

    def end_attempts(self) -> None:
        """End the last attempt: record on the current span the number of attempts, and whether the last one failed."""
        # If the request was cancelled during the back-off, the receive buffer is still reading.
        self.stop_reading()
        self.release_references()
        attempts = 1 if self.replay is None else self.replay.attempt
        if attempts > 1 and self.request_span is not None and self.request_span.is_recording():
            # Where the last attempt has not used its session, nothing has described it yet.
            has_lost = self._session is not None and self._session.lost_by is not None
            tracing.note_attempts(self.request_span, attempts, "given_up" if has_lost else "settled")

    async def returned(self) -> None:
        """Handle the application's return without a response, or after its response was replaced."""
        if self.state is not _REPLACED:
            # No response claims success: roll back.
            self._disarm()
            if self._session is not None:
                await self.registry.background.run(self._session.end(commit=False, reason="no response"))
            self.state = _ENDED

    async def leave(self) -> None:
        """End the call: cancel the watchers, run the due hooks, and release references."""
        if self._is_armed or self._timer is not None or self._watch is not None:
            self._disarm()
        if self._cancellations:
            self._take_back_cancellation()
        if self._received is not None and self.runs_again_after is None:
            self.stop_reading()
        session, ending = self._session, self._ending
        if session is not None:
            if session.has_due_hooks or self._hooks is not None or (ending is not None and not ending.done()):
                await self.registry.background.run(_run_hooks(session, ending, self._hooks))
            session.release_references()
        # Break reference cycles: tracebacks and the contexts of tasks refer to this guard.
        if self.runs_again_after is None:
            self.lost_by = None
        self._task = self._ending = self._hooks = self._failure = self._stopped_by = None
        if self.runs_again_after is None:
            self.scope, self._received = _NO_SCOPE, None
            self._raw_receive, self._raw_send = _receive_nothing, _send_nothing

    def release_references(self) -> None:
        """Drop the scope and the server's callables: the scope refers to this guard, a cycle for each request."""
        self.scope = _NO_SCOPE
        self._raw_receive, self._raw_send = _receive_nothing, _send_nothing
        if self._received is not None:
            self._received = None

    def stop_reading(self) -> None:
        """Close the receive buffer."""
        if self._received is not None:
            self._received.close()

    # -- receive and send of the application

    def receive(self) -> Awaitable[Message]:
        """The next message of the request."""
        received = self._received
        if received is None:
            received = self._make_received()
            self.is_used = True
        return received.receive()

    def _make_received(self) -> ReceiveBuffer:
        recorder = None if self.replay is None else self.replay.recording
        self._received = ReceiveBuffer(
            self._raw_receive,
            reads_first=not _expects_continue(self.scope),
            disconnect_after=self._is_decided,
            recorder=recorder,
        )
        return self._received

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message on, once the outcome of the transaction is known."""
        # Not a coroutine itself, which saves a frame for each message.
        if self.state is _ENDED:
            if self._received is not None and self._received.stash and _ends_response(message):
                self._received.drop_request()
            return self._raw_send(message)
        if self.state is _OPEN and message["type"] == "http.response.start":
            session = self._session
            if session is None:
                # Informational responses (1xx) do not end the transaction.
                if message["status"] >= 200:
                    self.state = _ENDED
                    if self.caching is not None:
                        message = self.caching.add_to(message)
                return self._raw_send(message)
            if message["status"] >= 200 and self._outer is None and session.end_idle():
                if self._timer is not None or self._watch is not None:
                    self._disarm()
                elif self._is_armed:
                    self._is_armed = False
                    self.registry.deferred_calls.due.pop(self._start_watching, None)
                self.state = _ENDED
                client_history = session.client_history
                if client_history is not None:
                    message = self._with_token(message, client_history)
                elif self.caching is not None:
                    message = self.caching.add_to(message)
                return self._raw_send(message)
        return self._send_held(message)

    async def _send_held(self, message: Message) -> None:
        if self.state is _REPLACED:
            raise ResponseReplaced
        session = self._session
        if self.state is _STREAMING:
            if session is not None and _ends_response(message):
                await self._end_stream(session)
                if self._received is not None:
                    self._received.drop_request()
            await self._raw_send(message)
            if session is not None and session.ended_hooks is not None:
                self._start_hooks(session)
            return
        status = message["status"] if message["type"] == "http.response.start" else _status_started_by(message)
        if status is not None and status >= 200:
            exchange = None if session is None or self.state is not _OPEN else self._send_commit(session, status)
            if exchange is not None and session is not None:
                try:
                    await exchange.waiter
                except asyncio.CancelledError:
                    self._finish_commit(session)
                    raise
            if exchange is None or session is None or not self._take_commit(session):
                await self._end(session, status)
            if session is not None and session.client_history is not None:
                message = self._with_token(message, session.client_history)
            elif self.caching is not None:
                message = self.caching.add_to(message)
        await self._raw_send(message)
        if session is not None and session.ended_hooks is not None:
            self._start_hooks(session)

    def _start_hooks(self, session: SessionCore) -> None:
        """Run the hooks beside the rest of the call: a long body, or a background task, does not delay them."""
        if session.has_due_hooks and self._hooks is None:
            self._hooks = self.registry.background.spawn(session.run_due_hooks())

    def _send_commit(self, session: SessionCore, status: int) -> Exchange | None:
        """Send COMMIT if that needs no waiting; otherwise return None, and `_end` does everything.

        COMMIT gets a task of its own only if this call is cancelled, or another task also waits for the outcome.
        """
        lane = session.lane()
        commits = lane.outcomes.get(status)
        if commits is None:
            commits = self._commits(session, status)
        if not commits or session.verdict is not None or lane.streams:
            return None
        exchange = session.send_commit()
        if exchange is None:
            return None
        if self._is_armed:
            self._disarm()
        self.state = _ENDING
        self._is_committing = True
        if self._received is not None:
            # Withhold `http.disconnect` until the outcome is known: applications cancel their work on it.
            self._received.disconnect_after = self._is_decided = asyncio.Event()
        return exchange

    def _take_commit(self, session: SessionCore) -> bool:
        """Read the result of COMMIT: True if it succeeded; otherwise `_end` continues."""
        if self._ending is not None or not session.take_commit():
            return False
        self._is_committing = False
        if self._is_decided is not None:
            self._is_decided.set()
        self.state = _ENDED
        if self._outer is not None:
            self._add_commits(session)
        return True

    def _finish_commit(self, session: SessionCore) -> None:
        """Determine the outcome of COMMIT in a background task, which a cancellation of the call does not reach."""
        if self._ending is None:
            self._ending = self.registry.background.spawn(session.finish_commit())

    async def _end_stream(self, session: SessionCore) -> None:
        """End the snapshot after the last message of a streamed body."""
        await session.run_before_commit()
        self._disarm()
        self.state = _ENDING
        await self._end_session(session, commit=session.rollback_reason is None, reason="end of the stream")
        self.state = _ENDED

    def _streams(self, session: SessionCore, status: int) -> bool:
        """Whether the response may start while the snapshot of its route is still open."""
        return session.lane().streams and session.is_open and self._commits(session, status)

    def _with_token(self, message: Message, client_history: ClientHistory) -> Message:
        """The start of a response with the causal-consistency token added."""
        tokens = self._config.policy.tokens
        if tokens is None:
            return message
        token = client_history.token()
        text = None if token is None else tokens.signer.sign(token)
        caching, transport = self.caching, tokens.transport
        if caching is not None and caching.transport is not None:
            transport = caching.transport
        message = transport.give(message, text, is_secure=self.scope.get("scheme") == "https")
        return caching.add_to(message) if caching is not None and caching.is_private else message

    async def _send_in_place(self, message: Message) -> None:
        """Send a message of the response that replaces the application's."""
        session = self._session
        if session is not None and session.client_history is not None and message["type"] == "http.response.start":
            message = self._with_token(message, session.client_history)
        elif self.caching is not None:
            message = self.caching.add_to(message)
        await self._raw_send(message)

    async def _end(self, session: SessionCore | None, status: int) -> None:
        """Commit or roll back at the start of the response.

        Another task of the application may start a response meanwhile: it gets the same outcome.

        Raises:
            ResponseReplaced: The commit failed and another response was sent, or the request is retried.
        """
        if session is not None and self._streams(session, status):
            await self._or_fail(session, session.open_for_token())
            self.state = _STREAMING
            return
        if session is None or session.is_unused:
            if session is not None:
                session.close_unused()
            self.state = _ENDED
            return
        if self.state is _OPEN and session.end_idle():
            self._disarm()
            self.state = _ENDED
            self._add_commits(session)
            return
        commit = self._commits(session, status)
        if commit and self.state is _OPEN and session.has_hooks_before_commit:
            # The watchers stay armed: the deadline or a disconnect interrupts the hooks.
            await self._run_before_commit(session)
            commit = self._commits(session, status)
        self._disarm()
        self.state = _ENDING
        try:
            await self._end_session(session, commit=commit, reason=f"status {status}")
        except DataError as error:
            if self._runs_again(session):
                raise ResponseReplaced from error
            # An error response stays correct, even if the rollback failed.
            if commit:
                await self._replace(error)
                raise ResponseReplaced from error
        else:
            # The application may have answered a conflict with an error response: retry all the same.
            if not commit and self._runs_again(session):
                raise ResponseReplaced
        finally:
            if self._is_decided is not None:
                self._is_decided.set()
        self.state = _ENDED
        self._add_commits(session)

    def _add_commits(self, session: SessionCore) -> None:
        """Count the commits for the outer session, too: a request with commits cannot be retried."""
        if self._outer is not None:
            self._outer.session.commits += session.commits

    async def _run_before_commit(self, session: SessionCore) -> None:
        await self._or_fail(session, session.run_before_commit())

    async def _or_fail(self, session: SessionCore, work: Awaitable[None]) -> None:
        """Await work that must succeed before the response starts; its failure fails the request."""
        try:
            await work
        except Exception as error:
            self._disarm()
            self.state = _ENDING
            await self.registry.background.run(session.end(commit=False, reason=reason_of(error)))
            if self._runs_again(session):
                raise ResponseReplaced from error
            await self._fail(error)
            raise ResponseReplaced from error

    async def _end_session(self, session: SessionCore, *, commit: bool, reason: str) -> None:
        if self._is_committing:
            self._finish_commit(session)
        if self._ending is None:
            if session.is_at_rest:
                await session.end(commit=commit, reason=reason)
                return
            # In a background task, so that a cancellation of the call does not leave the outcome unknown. Withhold
            # `http.disconnect` until the outcome is known: applications cancel their work on it.
            self._is_decided = asyncio.Event()
            if self._received is not None:
                self._received.disconnect_after = self._is_decided
            outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._ending = self.registry.background.spawn(
                session.end(commit=commit, reason=reason, is_apart=True), waiter=outcome
            )
        else:
            outcome = asyncio.shield(self._ending)
        try:
            await outcome
        except asyncio.CancelledError:
            # COMMIT is not sent any more, unless it was sent already.
            session.stop(DataError(DataErrorKind.TIMEOUT, "the request was cancelled; nothing was committed"))
            raise

    # -- exceptions, replaced responses and retries

    async def failed(self, error: BaseException) -> bool:
        """Handle an exception that has left the application.

        Returns:
            Whether it was handled; otherwise the caller raises it.
        """
        if self.state is _REPLACED:
            return self._ends_replaced(error)
        session = self._session
        if self.state in (_ENDING, _ENDED) or session is None:
            return False
        if self.state is _OPEN and session.has_hooks_before_commit and self._commits_after(session, error):
            try:
                await self._run_before_commit(session)
            except BaseException as failure:
                # A failed hook was answered already; the deadline or a cancellation can interrupt one as well.
                if await self.failed(failure):
                    return True
                raise
        self._disarm()
        if self.state is _STREAMING or (self.state is _DOOMED and self._has_started):
            await self._break_off(session, error)
            return False
        if self._commits_after(session, error):
            try:
                await self._end_session(session, commit=True, reason="")
            except DataError as commit_error:
                await self._replace(commit_error)
                return True
            return False
        reason = reason_of(self._stopped_by or error)
        try:
            await self.registry.background.run(session.end(commit=False, reason=reason))
        except asyncio.CancelledError:
            is_answered = isinstance(error, DataError) or session.lost_by is not None or self._stopped_by is not None
            if isinstance(error, Exception) and not is_answered:
                # The rollback goes on. As without this middleware, what the application has raised comes out.
                return False
            raise
        stopped_by = self._stopped_by
        if stopped_by is None and isinstance(error, Exception) and self._runs_again(session):
            return True
        if stopped_by is not None:
            # A framework may turn the interruption into another exception: report the cause of the interruption.
            is_ours = self._take_back_cancellation() or not isinstance(error, asyncio.CancelledError)
            if is_ours and isinstance(error, asyncio.CancelledError | Exception):
                error = stopped_by
        if isinstance(error, ClientDisconnected):
            logger.info(CLIENT_LEFT)
            self.state = _ENDED
            return True
        if isinstance(error, DataError) and ProblemDetails(self._config.errors).answers(error):
            await self._replace(error, has_passed=error is not stopped_by)
            return True
        return False

    def _ends_replaced(self, error: BaseException) -> bool:
        """Whether an exception is what has become of the interruption by which the response was replaced.

        A framework may have put others beside it, in a group. Where the request runs again, whatever this attempt has
        ended with is dropped with it: its client has been sent nothing.
        """
        is_ours = _holds(error, ResponseReplaced)
        if self.runs_again_after is not None:
            is_ours = is_ours or isinstance(error, Exception)
        if is_ours and not isinstance(error, ResponseReplaced):
            logger.info("beside the end of a response that was replaced, the application raised", exc_info=error)
        if is_ours and self._failure is not None:
            raise self._failure
        return is_ours

    async def _break_off(self, session: SessionCore, error: BaseException) -> None:
        """Roll back in the middle of a body; the server closes the connection, so that the client sees it truncated.

        Raises:
            DataError: The deadline has passed, or the client has disconnected.
        """
        await self.registry.background.run(session.end(commit=False, reason=reason_of(self._stopped_by or error)))
        self.state = _ENDED
        if self._stopped_by is not None and (
            self._take_back_cancellation() or not isinstance(error, asyncio.CancelledError)
        ):
            raise self._stopped_by from error

    def _runs_again(self, session: SessionCore) -> bool:
        """Whether the request is retried after a conflict; decided once, after its session has ended."""
        replay = self.replay
        if self.state is _REPLACED or replay is None or session.lost_by is None or self._stopped_by is not None:
            return self.runs_again_after is not None
        delay_s = replay.next_delay_s()
        deadline = session.deadline()
        attempt = Attempt(
            replay.attempt,
            session.lane().retries,
            has_committed=bool(session.commits) or (self._outer is not None and not self._outer.session.is_unused),
            is_body_too_large=replay.recording.is_too_large,
            is_client_gone=self._received is not None and self._received.is_gone,
            is_late=deadline is not None and asyncio.get_running_loop().time() + delay_s >= deadline,
        )
        if attempt.is_exhausted:
            if attempt.retries:
                session.note_event(names.RETRY_GIVEN_UP, {names.RETRY_ATTEMPT: attempt.number})
                if self.request_span is not None and attempt.number > 1:
                    tracing.note_attempts(self.request_span, attempt.number, "given_up")
                log_decision(
                    logger,
                    logging.WARNING,
                    "retry_exhausted",
                    "%s %s has failed %d times with a conflict: %s. The last error is the answer",
                    self.scope["method"],
                    quote(self.scope["path"]),  # it may contain line breaks
                    attempt.number,
                    session.lost_by.sqlstate,
                    fields={names.RETRY_ATTEMPT: attempt.number, names.DB_STATUS_CODE: session.lost_by.sqlstate or ""},
                    once_for=("retry_exhausted", session.lost_by.sqlstate, self.scope["method"]),
                )
            return False
        if attempt.obstacle is not None:
            logger.warning("a request is not retried after a conflict: %s", attempt.obstacle)
            return False
        session.forget_due_hooks()
        self.state = _REPLACED
        self.runs_again_after = delay_s
        self.lost_by = session.lost_by
        return True

    def again(self, scope: MutableMapping[str, Any]) -> ResponseGuard:
        """The guard of the next attempt.

        Args:
            scope: The original scope.
        """
        guard = ResponseGuard(
            self.registry,
            self._config,
            self._tenant,
            scope,
            self._raw_receive,
            self._raw_send,
            self._started,
            self._outer,
            self.caching,
        )
        guard.replay = self.replay
        if self.request_span is not None:
            guard.request_span = self.request_span
        if self._received is not None:
            self._received.rewind()
            guard._received = self._received
            guard.is_used = True
        self.release_references()
        return guard

    async def _fail(self, error: Exception) -> None:
        """Fail the request after a failed before-commit hook, as if the route had raised the error."""
        if isinstance(error, DataError):
            await self._replace(error)
            return
        self.state = _REPLACED
        if not await self._render(error):
            # The layers around the middleware render and report it.
            self._failure = error

    async def _replace(self, error: DataError, *, has_passed: bool = False) -> None:
        """Send another response in place of the application's, once for all of its tasks.

        Args:
            error: The error that it answers.
            has_passed: The error has left the application, so that handlers of its class were tried.
        """
        if self.state is _REPLACED:
            return
        self.state = _REPLACED
        if isinstance(error, ClientDisconnected):
            logger.info(CLIENT_LEFT)
            return
        if self.request_span is not None:
            tracing.note_problem(self.request_span, error)
        if await self._render(error, has_passed=has_passed):
            return
        await self.send_problem(error, self.receive, self._send_in_place)

    async def send_problem(self, error: DataError, receive: Receive, send: Send) -> None:
        """Answer an error inside of the application, for a framework whose handlers take all errors.

        Args:
            error: The error.
            receive, send: The framework's.
        """
        is_partial = self._session is not None and self._session.commits > 0
        problems = ProblemDetails(self._config.errors)
        await problems.send(error, self.scope, receive, send, is_partial=is_partial, span=self.request_span)

    async def _render(self, error: Exception, *, has_passed: bool = False) -> bool:
        """Answer with the application's exception handler for this error; False if there is none.

        Raising from `send` would not reach the handlers: for the framework the response has started.

        Args:
            error: The error.
            has_passed: It has left the application: handlers of its class were tried.
        """
        seen = None if self._session is None else self._session.scope
        problems = ProblemDetails(self._config.errors)
        handler = find_handler(error, problems, seen, self.scope, has_passed=has_passed)
        return handler is not None and await handler.answer(self.scope, self.receive, self._send_in_place)

    # -- deadline and disconnect

    def first_statement(self, session: SessionBase) -> None:
        """Arm the deadline and disconnect watchers at the session's first statement."""
        if self._is_armed or self._timer is not None or self._watch is not None:
            # Another session of the request has run a statement before.
            return
        loop = asyncio.get_running_loop()
        self._task = self._task or asyncio.current_task()
        self._is_armed = True
        deferred_calls = self.registry.deferred_calls
        now = loop.time()
        self._deadline = deadline = session.request_deadline
        if deadline is not None and deadline < now + deferred_calls.after_s:
            self._timer = loop.call_at(deadline, self._deadline_passed)
        deferred_calls.add(self._start_watching, now)

    def _deadline_passed(self) -> None:
        if self.state in (_OPEN, _STREAMING, _DOOMED):
            self._interrupt(deadline_passed())
            self._timer = asyncio.get_running_loop().call_later(DEADLINE_RETRY_S, self._deadline_passed)

    def _interrupt(self, error: DataError) -> None:
        """Doom the request: interrupt its statement or, at a timeout without one, cancel the application's task."""
        session = cast("SessionCore", self._session)
        self._has_started = self._has_started or self.state is _STREAMING
        self.state = _DOOMED
        self._stopped_by = session.stop(error)
        if not session.interrupt() and self._task is not None and self._stopped_by.kind is DataErrorKind.TIMEOUT:
            self._cancellations += 1
            self._task.cancel()

    def _take_back_cancellation(self) -> bool:
        """Undo the guard's cancellations of the application's task; False if the task has another one."""
        task = self._task
        while task is not None and self._cancellations > 0:
            self._cancellations -= 1
            task.uncancel()
        return task is None or task.cancelling() == 0

    def _start_watching(self) -> None:
        """Start the deadline timer and the disconnect watcher of a request that has not ended quickly."""
        if self._deadline is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._deadline, self._deadline_passed)
        if self.state in (_OPEN, _STREAMING):
            received = self._received or self._make_received()
            self._watch = asyncio.get_running_loop().create_task(self._watch_client(received))

    async def _watch_client(self, received: ReceiveBuffer) -> None:
        if await received.wait_for_disconnect() and self.state in (_OPEN, _STREAMING):
            self._interrupt(ClientDisconnected())

    def _disarm(self) -> None:
        if self._is_armed:
            self._is_armed = False
            self.registry.deferred_calls.due.pop(self._start_watching, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


async def _receive_nothing() -> Message:
    return {"type": "http.disconnect"}


async def _send_nothing(message: Message) -> None:
    raise RuntimeError(f"{message['type']!r} was sent after the application had returned")


async def _run_hooks(session: SessionCore, *earlier: asyncio.Task[None] | None) -> None:
    tasks = [task for task in earlier if task is not None]
    if tasks:
        await asyncio.wait(tasks)
    await session.run_due_hooks()


def _expects_continue(scope: MutableMapping[str, Any]) -> bool:
    """Whether the client waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1)."""
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope.get("headers", ()))


def _status_started_by(message: Message) -> int | None:
    """The status of the response that a message starts; None for a message that starts none."""
    kind = message["type"]
    if kind == "http.response.start":
        # Informational responses (1xx) start no final response.
        status: int = message["status"]
        return status if status >= 200 else None
    # Hypercorn treats trailers without a start as a whole response: 200, as gRPC's "trailers-only".
    return 200 if kind == "http.response.trailers" else None


def _ends_response(message: Message) -> bool:
    """Whether this is the last message of a response, trailers aside."""
    kind = message["type"]
    if kind == "http.response.body":
        return not message.get("more_body", False)
    return kind in ("http.response.pathsend", "http.response.trailers")


def _holds(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an exception is of this kind, or a group with one of this kind in it."""
    if isinstance(error, BaseExceptionGroup):
        return any(_holds(one, kind) for one in cast("BaseExceptionGroup[BaseException]", error).exceptions)
    return isinstance(error, kind)
