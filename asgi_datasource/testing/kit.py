"""What a test of an application holds: its registry, session and client, and statements about routes and faults."""

from __future__ import annotations

import asyncio
import functools
import inspect
import unittest
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from starlette.types import ASGIApp

from ..asgi.middleware import DataSourceMiddleware
from ..config import Config
from ..observability.activity import Activity, ActivityRecorder, SessionActivity
from ..observability.names import AttributeValue
from ..observability.recording import Recorder
from ..registry.registry import DataSourceRegistry
from ..registry.registry import compile as compile_registry
from ..routing import parse_lsn
from ..sessions.session import DataSession
from .app_client import AppClient
from .cluster import EmbeddedCluster
from .network import Network
from .user_config import UserConfig
from .user_databases import UserDatabases

_CATCH_UP_TIMEOUT_S: Final = 30.0
_LOOK_AGAIN_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class SeenRoute:
    """The choice of a server for one statement.

    Attributes:
        datasource, node: The server: `orders`, `r1`.
        reason: Why, as `db.last_route` and the spans say: `balanced`, `proved`, `write`.
    """

    datasource: str
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.datasource}.{self.node} ({self.reason})"


class TestKit:
    """Everything of one test; closed in the test's event loop when the test ends.

    Args:
        databases: The test's databases.
        user: The configuration.
        network: Proxies in front of the servers; None connects directly.
        tenant: The tenant of the session, and of requests that name none.

    Attributes:
        databases: The test's databases.
        routes: The servers that were chosen, in order, for the session and for requests.
    """

    __test__ = False

    def __init__(
        self, databases: UserDatabases, user: UserConfig, network: Network | None, *, tenant: str | None = None
    ) -> None:
        self.databases = databases
        self.routes: list[SeenRoute] = []
        self._network = network
        self._tenant = tenant
        self._paused: list[str] = []
        self._client: AppClient | None = None
        self.config: Config = user.load(self._urls(user.config))
        """The configuration with the test's servers."""
        self.registry: DataSourceRegistry = compile_registry(self.config)
        """The compiled configuration."""
        self.registry.observe(_RouteLog(self.routes))
        self.session = SessionOfTest()

    @property
    def cluster(self) -> EmbeddedCluster:
        """The servers."""
        return self.databases.cluster

    def _urls(self, config: Config) -> Mapping[str, Mapping[str, str]]:
        found = self.databases.config_urls(config)
        network = self._network
        if network is None:
            return found
        return {
            datasource: {
                server: url
                if server == "admin"
                else network.proxies[self.databases.node_of(datasource, server)].through(url)
                for server, url in urls.items()
            }
            for datasource, urls in found.items()
        }

    def client(self, app: ASGIApp) -> AppClient:
        """The client of an application, which is shut down at the end of the test."""
        self._client = AppClient(app, self.config, tenant=self._tenant)
        return self._client

    # -- statements about a test

    def assert_route(self, *, reason: str | None = None, node: str | None = None) -> None:
        """Check the server of the last statement.

        Args:
            reason: Why it was chosen: `balanced`, `proved`, `write`; None accepts all.
            node: Its name, as in the configuration: `r1`, `primary`; None accepts all.

        Raises:
            AssertionError: It was another one, or no statement has run; the message has the last routes.
        """
        __tracebackhide__ = True
        if not self.routes:
            raise AssertionError("no statement has run yet")
        last = self.routes[-1]
        if reason not in (None, last.reason) or node not in (None, last.node):
            wanted = ", ".join(
                f"{name}={value}" for name, value in (("reason", reason), ("node", node)) if value is not None
            )
            before = "; ".join(map(str, self.routes[-6:-1])) or "none"
            raise AssertionError(f"the last statement went to {last}, not to {wanted}; those before: {before}")

    @contextmanager
    def assert_round_trips(self, count: int) -> Generator[None, None, None]:
        """Check how often the block waits for a server; the library's polls and new connections do not count.

        Raises:
            AssertionError: It was another number.
        """
        __tracebackhide__ = True
        network = self._of_network()
        before = network.round_trips()
        yield
        found = sum(count - before.get(link, 0) for link, count in network.round_trips().items())
        if found != count:
            raise AssertionError(f"{found} round trips, not {count}")

    # -- faults

    def fail_commit(self, *, applied: bool = False, datasource: str | None = None) -> AbstractContextManager[None]:
        """Lose the connection at the next COMMIT within the block.

        Args:
            applied: The server commits, and only its answer is lost; otherwise nothing is committed.
            datasource: The datasource whose primary it is; None is the first. All are the same server here.

        Raises:
            AssertionError: Nothing was committed within the block.
        """
        return self._of_network().cutting("primary", b"commit", is_answer=applied)

    @contextmanager
    def pause_replay(self, *replicas: str) -> Generator[None, None, None]:
        """Stop replicas from replaying within the block: their data is stale.

        Args:
            replicas: Their names in the cluster; none is all.
        """
        names = replicas or tuple(self.cluster.replicas)
        self._paused += names
        for name in names:
            self.cluster.nodes[name].blocking.pause_replay()
        try:
            yield
        finally:
            self.resume_replay()

    def resume_replay(self) -> None:
        """Let all replicas replay again."""
        while self._paused:
            self.cluster.nodes[self._paused.pop()].blocking.resume_replay()

    async def catch_up(self) -> None:
        """Wait until every replica has replayed what was committed, and until the registry knows that.

        A test without an event loop calls `cluster.wait_caught_up()`.

        Raises:
            ClusterError: A replica has not after 30 s: its replay is paused.
        """
        written = parse_lsn(await asyncio.to_thread(self.cluster.primary.blocking.wal_position))
        await self.cluster.caught_up()
        if not self.registry.is_open:
            return
        async with asyncio.timeout(_CATCH_UP_TIMEOUT_S):
            while not self._knows(written):
                await asyncio.sleep(_LOOK_AGAIN_S)

    def _knows(self, written: int) -> bool:
        replicas = [node for each in self.registry for node in each.topology.replicas]
        return all(node.position is not None and node.position.lsn >= written for node in replicas)

    def _of_network(self) -> Network:
        if self._network is None:
            raise RuntimeError("this needs the fixture `ads` in the test's own arguments")
        return self._network

    # -- the test's event loop

    @asynccontextmanager
    async def running(self, *, opens_session: bool) -> AsyncGenerator[None]:
        """The event loop of the test: the session is open within the block, and everything is closed after it."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.registry.close)
            if self._client is not None:
                await stack.enter_async_context(self._client)
            if opens_session:
                await stack.enter_async_context(self.session.opened(self.registry, self._tenant))
            yield

    def attach(self, item: Any) -> None:
        """Have an async test run within `running`, whichever plugin runs it.

        Args:
            item: The test of pytest.
        """
        running = functools.partial(self.running, opens_session="ads_session" in item.fixturenames)
        case = getattr(item, "instance", None)
        if isinstance(case, unittest.IsolatedAsyncioTestCase):
            _attach_case(case, running)
        elif inspect.iscoroutinefunction(item.obj):
            item.obj = _within(item.obj, running)


class SessionOfTest:
    """The session of one test: a `DataSession` whose attributes are read through this object while the test runs."""

    def __init__(self) -> None:
        self._session: DataSession | None = None

    def __getattr__(self, name: str) -> Any:
        session = self.__dict__.get("_session")
        if session is None:
            raise RuntimeError(
                "ads_session is open while an async test runs: in a fixture, use `async with ads_registry.session(...)`"
            )
        return getattr(session, name)

    @asynccontextmanager
    async def opened(self, registry: DataSourceRegistry, tenant: str | None) -> AsyncGenerator[None]:
        """Open it for the block, and roll back its transaction."""
        await registry.open()
        with suppress(_RollBack):
            async with registry.session(tenant) as self._session:
                try:
                    yield
                finally:
                    raise _RollBack
        self._session = None


class _RollBack(Exception):
    """Ends the session of a test."""


Running = Callable[[], Any]


def _within(test: Callable[..., Awaitable[Any]], running: Running) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(test)
    async def within(*arguments: Any, **fixtures: Any) -> Any:
        async with running():
            return await test(*arguments, **fixtures)

    return within


def _attach_case(case: unittest.IsolatedAsyncioTestCase, running: Running) -> None:
    set_up = case.asyncSetUp

    async def set_up_within() -> None:
        await case.enterAsyncContext(running())
        await set_up()

    setattr(case, "asyncSetUp", set_up_within)  # noqa: B010 - mypy refuses the assignment to a method


class _RouteLog(Activity):
    """Records each decision of each session."""

    def __init__(self, routes: list[SeenRoute]) -> None:
        super().__init__()
        self.routes = routes

    def recorder(self, metrics: Recorder | None) -> ActivityRecorder:
        """A recorder that writes each decision down."""
        return _RouteRecorder(self, metrics)


class _RouteRecorder(ActivityRecorder):
    def measure(self, tenant: str | None, scope: Mapping[str, Any] | None = None) -> SessionActivity:
        metrics = self._metrics
        activity = cast("_RouteLog", self.activity)
        return _SessionRoutes(activity, tenant, scope, None if metrics is None else metrics.measure(tenant))


class _SessionRoutes(SessionActivity):
    __slots__ = ()

    def chose(self, decision: Mapping[str, AttributeValue]) -> None:
        super().chose(decision)
        datasource, node, *_, reason = decision.values()
        cast("_RouteLog", self.activity).routes.append(SeenRoute(str(datasource), str(node), str(reason)))


def adapt_app(app: Any, registry: DataSourceRegistry) -> tuple[ASGIApp, Callable[[], None]]:
    """An application with the registry of a test.

    Args:
        app: An application, or a function that makes one; a parameter `registry` gets the registry. An application with
            `DataSourceMiddleware` around it, or as Starlette's and FastAPI's middleware, gets it there.
        registry: The registry.

    Returns:
        The application, and a function that takes the registry out of it again.

    Raises:
        TypeError: It has no `DataSourceMiddleware`.
    """
    if inspect.isfunction(app):
        parameters = inspect.signature(app).parameters
        if "registry" in parameters and not inspect.iscoroutinefunction(app):
            return app(registry=registry), lambda: None
        if not any(one.default is one.empty for one in parameters.values()):
            return adapt_app(app(), registry)
    if isinstance(app, DataSourceMiddleware):
        return DataSourceMiddleware(app.app, registry=registry), lambda: None
    for entry in getattr(app, "user_middleware", ()):
        if entry.cls is DataSourceMiddleware:
            return _with_middleware(app, entry, registry)
    raise TypeError(
        f"{app!r} has no DataSourceMiddleware that a test can give its registry to: override the fixture ads_app"
    )


def _with_middleware(app: Any, entry: Any, registry: DataSourceRegistry) -> tuple[ASGIApp, Callable[[], None]]:
    arguments, options, stack = entry.args, entry.kwargs, app.middleware_stack
    kept = {name: value for name, value in options.items() if name == "resolvers"}
    entry.args, entry.kwargs, app.middleware_stack = (), {**kept, "registry": registry}, None

    def restore() -> None:
        entry.args, entry.kwargs, app.middleware_stack = arguments, options, stack

    return cast("ASGIApp", app), restore
