"""The middleware: resolves the tenant of a request, and puts a `ResponseGuard` between server and application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..concurrency.limits import ConcurrencyLimit
from ..config import Config, ConfigFile
from ..errors import ConfigError, DataError, DataErrorKind
from ..observability import tracing
from ..registry.registry import DataSourceRegistry, compile
from ..registry.runtime_config import RuntimeConfig
from ..sessions.context import current_frame, current_runner
from ..sessions.decorator import retrying
from ..sessions.scope import current_scope
from ..sessions.session import DataSession
from ..tenancy import ANYTHING, Answer, Resolution, Tenant, TenantResolver, TenantState, reads_of
from ..tenancy.path_prefix import move_path, route_path
from ..tenancy.preflight import is_preflight
from .cache_headers import NEVER_STORED, CacheHeaders
from .current_session import SCOPE_KEY, SessionHolder
from .exception_handlers import find_application, find_handler
from .lifespan import Lifespan, refuse_start
from .problem_details import ProblemDetails
from .request_replay import RequestReplay
from .response_guard import GuardState, ResponseGuard

logger = logging.getLogger("asgi_datasource.middleware")

# Looking a member up on an enumeration costs as much as a call; these are read for every request.
_ENDED: Final = GuardState.ENDED
_get_running_loop: Final = asyncio._get_running_loop
_ACTIVE: Final = TenantState.ACTIVE
_TENANT: Final = DataErrorKind.TENANT

_MADE_OF_REGISTRY: Final = frozenset(
    {"registry", "_compiled", "_resolve", "_directory", "_admission", "_retries", "_exempt", "_is_traced"}
)
"""Attributes that are missing where the configuration is wrong."""


class DataSourceMiddleware:
    """Give every request its tenant's session, and end its transaction before the first byte of the response leaves.

    Args:
        app: The ASGI application.
        config: A path to a YAML, TOML or JSON document, a `ConfigFile`, a mapping, or a `Config`. One of `config` and
            `registry`.
        registry: A compiled registry; the middleware opens and closes it, unless its owner has opened it before.
        resolvers: Tenant resolvers that run before those of the configuration.

    A configuration that is wrong raises nothing here: frameworks make their middleware inside the first call, where
    servers take any exception for an application without lifespan, and serve it. It is kept in `failure` in place of
    the registry, and refuses the start with `lifespan.startup.failed`, every problem listed; where there is no
    lifespan, each request raises it.
    """

    registry: DataSourceRegistry
    failure: Exception | None = None
    """Why there is no registry: as a rule a `ConfigError`."""

    def __init__(
        self,
        app: ASGIApp,
        config: str | Path | ConfigFile | Mapping[str, Any] | Config | None = None,
        *,
        registry: DataSourceRegistry | None = None,
        resolvers: tuple[TenantResolver, ...] | list[TenantResolver] = (),
    ) -> None:
        self.app = app
        self._resolvers = tuple(resolvers)
        try:
            if registry is None:
                if config is None:
                    raise ConfigError("DataSourceMiddleware takes config= or registry=")
                registry = compile(config, needs_resolver=not resolvers)
            elif config is not None:
                raise ConfigError("DataSourceMiddleware takes config= or registry=, not both")
            self._adopt(registry.compiled)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing but errors could be served
            self.failure = error
        else:
            self.registry = registry

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Only what is missing comes here, so that requests do not pay for it.
            failure = self.__dict__.get("failure")
            if failure is not None and name in _MADE_OF_REGISTRY:
                raise failure.with_traceback(None)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _adopt(self, compiled: RuntimeConfig) -> None:
        """Switch to a configuration that was loaded."""
        self._compiled = compiled
        resolve = compiled.resolution(self._resolvers)
        # A bound method: calling it costs less than calling an object that has `__call__`.
        self._resolve = resolve.__call__
        reads = reads_of(resolve)
        # The library cannot know which parts of the request `authorize` reads.
        if compiled.admission.authorizes:
            reads |= ANYTHING
        tokens = compiled.policy.tokens
        self._caching = CacheHeaders.of(reads, None if tokens is None else tokens.transport)
        self._directory = compiled.admission.directory
        self._admission = compiled.admission
        self._retries = compiled.may_retry
        self._is_traced = compiled.policy.is_traced
        self._exempt = compiled.exempt if compiled.exempt else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http":
            await self._other(kind, scope, receive, send)
            return
        # Every request takes this path, including those without SQL: create nothing here that is not always needed.
        started = monotonic()
        registry = self.registry
        compiled = registry.compiled
        if compiled is not self._compiled:
            self._adopt(compiled)
        outer: SessionHolder | None = scope.get(SCOPE_KEY)
        if outer is None and current_runner.get() is not None:
            await self._call_apart(scope, receive, send)
            return
        if (outer is not None and outer.registry is registry) or (
            self._exempt is not None and self._exempt.matches(route_path(scope))
        ):
            # Exempt, or the same middleware nested in itself: the existing session stays in use.
            await self.app(scope, receive, send)
            return
        if registry.open_in is not _get_running_loop():
            await registry.open()
        try:
            answer = self._resolve(scope)
            # None for an unknown name, and for an answer that is no name: an awaitable, or a `Resolution` with a path.
            tenant = self._directory.map.names.get(answer)
            if tenant is None or self._admission.asks or tenant.state is not _ACTIVE:
                tenant, scope = await self._resolve_slowly(answer, scope, compiled)
            limit: ConcurrencyLimit | None = None
            if compiled.rules.have_limits:
                limit = compiled.rules.match(scope["method"], route_path(scope)).concurrency_limit
                if limit is not None:
                    limit.enter()
        except DataError as error:
            if error.kind is _TENANT and is_preflight(scope):
                await self.app(scope, receive, send)
                return
            await self._refuse(error, compiled, scope, receive, send)
            return
        if outer is not None:
            scope = dict(scope)
            # The inner framework writes its route and exception handlers into the copy; the outer session needs them.
            outer.session.scope = scope
        caching = self._caching
        if caching is not None and scope["method"] in NEVER_STORED:
            caching = None
        guard = ResponseGuard(registry, compiled, tenant, scope, receive, send, started, outer, caching)
        if self._is_traced and tracing.has_provider():
            span = tracing.recording_span()
            if span is not None:
                guard.request_span = span
        if self._retries or retrying.is_asked_for:
            guard.replay = RequestReplay(scope, compiled.policy.retry_body_limit)
        try:
            while True:
                scope[SCOPE_KEY] = guard
                token = current_runner.set(guard)
                try:
                    await self.app(scope, guard.receive, guard.send)
                except BaseException as error:
                    if not await guard.failed(error):
                        raise
                else:
                    if guard.state is not _ENDED:
                        await guard.returned()
                finally:
                    current_runner.reset(token)
                    if guard.is_used:
                        await guard.leave()
                    else:
                        guard.release_references()
                if guard.runs_again_after is None:
                    break
                guard, scope = await self._again(guard)
        finally:
            if limit is not None:
                limit.leave()
            if guard.replay is not None:
                guard.end_attempts()

    async def _refuse(
        self, error: DataError, compiled: RuntimeConfig, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request that does not reach the application: by its exception handlers, or by a problem document."""
        span = tracing.recording_span() if self._is_traced else None
        caching = self._caching
        if caching is not None and scope["method"] not in NEVER_STORED:
            send = _adding(caching, send)
        problems = ProblemDetails(compiled.errors)
        app = find_application(scope, self.app)
        handler = find_handler(error, problems, scope, app=app)
        if handler is not None:
            if span is not None:
                tracing.note_problem(span, error)
            if app is not None:
                # For `request.app`, as the application sets it.
                scope = {**scope, "app": app}
            if await handler.answer(scope, receive, send):
                return
        await problems.send(error, scope, receive, send, span=span)

    async def _call_apart(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that starts in the context of another request, with that context's variables reset.

        A server starts a pipelined request in the context of the request whose response was sent before it; an
        application may call itself.
        """
        runner, frame, block = current_runner.set(None), current_frame.set(None), current_scope.set(None)
        try:
            await self(scope, receive, send)
        finally:
            current_scope.reset(block)
            current_frame.reset(frame)
            current_runner.reset(runner)

    @staticmethod
    async def _again(guard: ResponseGuard) -> tuple[ResponseGuard, Scope]:
        """Wait for the back-off, and create the guard and scope of the next attempt."""
        replay, delay_s = cast("RequestReplay", guard.replay), guard.runs_again_after or 0.0
        conflict, guard.lost_by = cast("DataError", guard.lost_by), None
        with tracing.retry_span(replay.attempt, delay_s, conflict, is_traced=guard.is_traced):
            await asyncio.sleep(delay_s)
        del conflict
        replay.attempt += 1
        scope = replay.fresh_scope()
        return guard.again(scope), scope

    @staticmethod
    async def _resolve_slowly(
        answer: Answer | Awaitable[Answer], scope: Scope, compiled: RuntimeConfig
    ) -> tuple[Tenant, Scope]:
        """Resolve the tenant if that takes more than a look-up: an async resolver, admission, or a path prefix."""
        if answer is not None and not isinstance(answer, str | Resolution):
            answer = await answer
        if not isinstance(answer, Resolution):
            return await compiled.admission.admit(scope, answer), scope
        tenant = await compiled.admission.admit(scope, answer.name)
        return tenant, move_path(scope, answer.prefix)

    async def _other(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        if kind == "websocket":
            await self._websocket(scope, receive, send)
        elif kind == "lifespan" and self.failure is not None:
            await refuse_start(self.failure, receive, send)
        elif kind == "lifespan":
            await Lifespan(self.app, self.registry).run(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        registry = self.registry
        compiled = registry.compiled
        if compiled is not self._compiled:
            self._adopt(compiled)
        outer: SessionHolder | None = scope.get(SCOPE_KEY)
        if outer is None and current_runner.get() is not None:
            await self._call_apart(scope, receive, send)
            return
        if (outer is not None and outer.registry is registry) or (
            self._exempt is not None and self._exempt.matches(route_path(scope))
        ):
            await self.app(scope, receive, send)
            return
        if registry.open_in is not _get_running_loop():
            await registry.open()
        try:
            tenant, scope = await self._resolve_slowly(self._resolve(scope), scope, compiled)
        except DataError as error:
            logger.info("websocket refused: %s", error)
            # The server answers a close before acceptance with 403 (ASGI specification, "Close").
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "tenant"})
            return
        scope = dict(scope)
        session = registry.make_session(
            tenant,
            compiled=compiled,
            scope=scope,
            method="WEBSOCKET",
            policy=compiled.statement_policy,
            path=route_path(scope),
        )
        session.outlives_requests = True
        scope[SCOPE_KEY] = session
        token = current_runner.set(session)
        is_over = False
        raised: Exception | None = None

        async def receive_and_note() -> Message:
            nonlocal is_over
            message = await receive()
            is_over = is_over or message["type"] == "websocket.disconnect"
            return message

        async def send_and_note(message: Message) -> None:
            nonlocal is_over
            is_over = is_over or message["type"] == "websocket.close"
            await send(message)

        try:
            await self.app(scope, receive_and_note, send_and_note)
        except BaseException as error:
            if not _is_about(error, session.tenant_error):
                raised = error if isinstance(error, Exception) else None
                raise
            logger.info("websocket closed: %s", session.tenant_error)
            if not is_over:
                await send({"type": "websocket.close", "code": 1008, "reason": "tenant"})
        finally:
            current_runner.reset(token)
            try:
                await registry.background.run(_end_websocket(session))
            except asyncio.CancelledError:
                # The session ends all the same. As without this middleware, what the application has raised comes out.
                if raised is None:
                    raise


def _adding(caching: CacheHeaders, send: Send) -> Send:
    """A `send` that adds the headers for caches, since another tenant's request may have another answer."""

    async def send_with_headers(message: Message) -> None:
        await send(caching.add_to(message))

    return send_with_headers


def _is_about(error: BaseException, reason: DataError | None) -> bool:
    """Whether an application has ended by this error, alone or in a group of its tasks' errors."""
    if isinstance(error, BaseExceptionGroup):
        errors = cast("BaseExceptionGroup[BaseException]", error).exceptions
        return any(_is_about(one, reason) for one in errors)
    return reason is not None and error is reason


async def _end_websocket(session: DataSession) -> None:
    try:
        await session.complete()
    finally:
        await session.run_due_hooks()
        session.release_references()
