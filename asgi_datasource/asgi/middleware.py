"""The ASGI edge: a scope comes in, its tenant is found, and a guard stands between the server and the application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..concurrency.limits import Gate
from ..config import Config, ConfigFile
from ..errors import ConfigError, DataError
from ..registry.registry import DataSourceRegistry, compile
from ..registry.runtime_config import RuntimeConfig
from ..sessions.context import current_runner
from ..sessions.decorator import retrying
from ..sessions.session import DataSession
from ..tenancy import Answer, Resolution, Tenant, TenantResolver, TenantState
from ..tenancy.path_prefix import route_path
from .current_session import SCOPE_KEY, SessionHolder
from .lifespan import Lifespan
from .problem_details import ProblemDetails
from .request_replay import RequestReplay
from .response_guard import GuardState, ResponseGuard

logger = logging.getLogger("asgi_datasource.middleware")

# Looking a member up on an enumeration costs as much as a call; these are read for every request.
_ENDED: Final = GuardState.ENDED
_ACTIVE: Final = TenantState.ACTIVE


class DataSourceMiddleware:
    """Give every request its tenant's session, and end its transaction before the first byte of the response leaves.

    Args:
        app: The ASGI application.
        config: A path to a YAML, TOML or JSON document, a `ConfigFile`, a mapping, or a `Config`. One of `config` and
            `registry`.
        registry: A registry that is compiled already; its owner opens and closes it, or leaves that to the middleware.
        resolvers: Asked for the tenant before those of the configuration.

    Raises:
        ConfigError: The configuration is wrong; every problem is listed.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: str | Path | ConfigFile | Mapping[str, Any] | Config | None = None,
        *,
        registry: DataSourceRegistry | None = None,
        resolvers: tuple[TenantResolver, ...] | list[TenantResolver] = (),
    ) -> None:
        if registry is None:
            if config is None:
                raise ConfigError("DataSourceMiddleware takes config= or registry=")
            registry = compile(config, needs_resolver=not resolvers)
        elif config is not None:
            raise ConfigError("DataSourceMiddleware takes config= or registry=, not both")
        self.app = app
        self.registry = registry
        self._resolvers = tuple(resolvers)
        self._adopt(registry.compiled)

    def _adopt(self, compiled: RuntimeConfig) -> None:
        """Look up in this one from now on: a configuration was loaded."""
        self._compiled = compiled
        # A bound method: calling it costs less than calling an object that has `__call__`.
        self._resolve = compiled.resolution(self._resolvers).__call__
        self._directory = compiled.admission.directory
        self._admission = compiled.admission
        self._retries = compiled.may_retry
        self._exempt = compiled.exempt if compiled.exempt else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind != "http":
            await self._other(kind, scope, receive, send)
            return
        # Every request pays for this path, also one that runs no SQL: nothing is made here that it does not need.
        started = monotonic()
        registry = self.registry
        compiled = registry.compiled
        if compiled is not self._compiled:
            self._adopt(compiled)
        outer: SessionHolder | None = scope.get(SCOPE_KEY)
        if (outer is not None and outer.registry is registry) or (
            self._exempt is not None and self._exempt.matches(route_path(scope))
        ):
            # Exempt, or the same middleware a second time: the session that is there already is the right one.
            await self.app(scope, receive, send)
            return
        if not registry.is_open:
            await registry.open()
        try:
            answer = self._resolve(scope)
            # What is no name is no key either: an answer that has to be awaited, or with a path.
            tenant = self._directory.map.names.get(answer)
            if tenant is None or self._admission.asks or tenant.state is not _ACTIVE:
                tenant, scope = await self._resolve_slowly(answer, scope, compiled)
            gate: Gate | None = None
            if compiled.rules.have_gates:
                gate = compiled.rules.match(scope["method"], route_path(scope)).gate
                if gate is not None:
                    gate.enter()
        except DataError as error:
            await ProblemDetails(compiled.errors).send(error, scope, send)
            return
        if outer is not None:
            scope = dict(scope)
            # What the framework below writes into the copy, its route and its handlers, holds for both.
            outer.session.scope = scope
        guard = ResponseGuard(registry, compiled, tenant, scope, receive, send, started, outer)
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
                        guard.let_go()
                if guard.runs_again_after is None:
                    break
                guard, scope = await self._again(guard)
        finally:
            if gate is not None:
                gate.leave()
            if guard.replay is not None:
                guard.end_attempts()

    @staticmethod
    async def _again(guard: ResponseGuard) -> tuple[ResponseGuard, Scope]:
        """The request has lost against another one: wait a moment, and make it anew."""
        replay = cast("RequestReplay", guard.replay)
        await asyncio.sleep(guard.runs_again_after or 0.0)
        replay.attempt += 1
        scope = replay.fresh_scope()
        return guard.again(scope), scope

    @staticmethod
    async def _resolve_slowly(
        answer: Answer | Awaitable[Answer], scope: Scope, compiled: RuntimeConfig
    ) -> tuple[Tenant, Scope]:
        """The tenant where there is more to do than a look-up: the resolver waits, or the path changes."""
        if answer is not None and not isinstance(answer, str | Resolution):
            answer = await answer
        if not isinstance(answer, Resolution):
            return await compiled.admission.admit(scope, answer), scope
        tenant = await compiled.admission.admit(scope, answer.name)
        root: str = scope.get("root_path", "")
        path: str = scope["path"]
        if not path.startswith(root):
            # A server that predates version 2.3 of the ASGI specification leaves it off; with the prefix it is needed.
            path = root + path
        return tenant, {**scope, "root_path": root + answer.prefix, "path": path}

    async def _other(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        if kind == "websocket":
            await self._websocket(scope, receive, send)
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
        if (outer is not None and outer.registry is registry) or (
            self._exempt is not None and self._exempt.matches(route_path(scope))
        ):
            await self.app(scope, receive, send)
            return
        if not registry.is_open:
            await registry.open()
        try:
            tenant, scope = await self._resolve_slowly(self._resolve(scope), scope, compiled)
        except DataError as error:
            logger.info("websocket refused: %s", error)
            # Before it is accepted, a close is answered with 403 by the server (ASGI specification, "Close").
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
                raise
            logger.info("websocket closed: %s", session.tenant_error)
            if not is_over:
                await send({"type": "websocket.close", "code": 1008, "reason": "tenant"})
        finally:
            current_runner.reset(token)
            await registry.background.run(_end_websocket(session))


def _is_about(error: BaseException, reason: DataError | None) -> bool:
    """Whether an application has ended by this error, alone or in a group of its tasks' errors."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_about(one, reason) for one in error.exceptions)
    return reason is not None and error is reason


async def _end_websocket(session: DataSession) -> None:
    try:
        await session.complete()
    finally:
        await session.run_due_hooks()
        session.let_go()
