"""The registry: the compiled configuration, its pools, and reloads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from ..concurrency.deferred_calls import DeferredCalls
from ..concurrency.tasks import BackgroundTasks
from ..config import Config, ConfigFile, Origins, load, read_state
from ..datasource.database_fleet import Fleet
from ..datasource.datasource import DataSource
from ..db import make_engine, make_facade
from ..drivers.protocol import Server
from ..drivers.raw import RawConnection
from ..errors import ConfigError, DataError, DataErrorKind
from ..migrate import NewTenants, SkewWatch
from ..observability.activity import Activity
from ..observability.metrics import unwatch, watch
from ..outbox.health import OutboxHealth
from ..outbox.new_tenants import TenantOutbox
from ..outbox.relay import Relay
from ..routing import AccessIntent, ReadAfterWritePin
from ..routing.consistency.token import Token
from ..sessions.base import SessionBase, SessionOwner
from ..sessions.context import current_frame, current_runner
from ..sessions.core import SessionCore
from ..sessions.policy import NO_RULE, CommitScope, RouteRule, SessionPolicy
from ..sessions.session import DataSession
from ..tenancy import Catalog, Tenant, current_tenant
from ..tenancy.provisioning import Provisioner
from ..transaction import TransactionOptions
from .compiler import compile_config
from .config_watcher import ConfigWatcher
from .drains import drain, undrain
from .explain import Explanation, Question, describe_state, explain
from .health import Health, TenantCount, describe_health
from .outbox import FACADES as OUTBOX_FACADES
from .outbox import Outboxes
from .reload import Reloaded, ReloadPreview, compare_servers, preview_of
from .runtime_config import RuntimeConfig
from .startup_audit import StartupAudit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

logger = logging.getLogger("asgi_datasource.registry")

ConfigureT = TypeVar("ConfigureT", bound=Callable[[Any], Any])

ConfigSource = str | Path | ConfigFile | Mapping[str, Any] | Config
"""A path to a YAML, TOML or JSON document, a `ConfigFile` with overlays, a mapping, or a loaded `Config`."""

_NO_LOOP: Final = object()
"""Differs from every event loop, and from None, which stands for none."""

WATCH_AFTER_S: Final = 0.1
"""Seconds from a request's first statement to the start of its disconnect watcher; most requests end before."""

CLOSE_TIMEOUT_S: Final = 10.0
"""Seconds that closing may take: one half for background tasks, the other for the pools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The source of a registry's configuration, and how to read it.

    Attributes:
        path: The document, with its overlays; None if it did not come from a file.
        environ: Values of `${NAME}`; None uses the environment of the process.
        needs_resolver: Whether tenants without a resolver are an error.
        files: The files that were read last, even if their content was refused.
    """

    path: Path | ConfigFile | None = None
    environ: Mapping[str, str] | None = None
    needs_resolver: bool = False
    files: Origins = field(default_factory=Origins)

    def moved_to(self, source: ConfigSource) -> Origin:
        """The origin with another source; a source that is not a file leaves the path unchanged."""
        if isinstance(source, ConfigFile):
            return replace(self, path=source)
        return replace(self, path=Path(source)) if isinstance(source, str | Path) else self


class DataSourceRegistry:
    """The tenants and datasources of a configuration, with their pools; created by `compile`.

    The compiled configuration is one frozen value, which a reload replaces. Iterating yields the datasources.

    Args:
        compiled: The compiled configuration.
        origin: Its source, for `reload`.
    """

    def __init__(self, compiled: RuntimeConfig, *, origin: Origin | None = None) -> None:
        self.compiled = compiled
        """The current compiled configuration. A request reads it once, and uses the same one until its end."""
        self.background = BackgroundTasks()
        self.deferred_calls = DeferredCalls(WATCH_AFTER_S)
        """Starts the watchers of requests that run longer than `WATCH_AFTER_S`."""
        self._outboxes = Outboxes(lambda: self.compiled)
        self._tenant_count = TenantCount()
        self._configurers: tuple[Callable[[Any], Any], ...] = ()
        self._origin = origin or Origin()
        self._reloader = ConfigWatcher(self.reload, lambda: self._origin.files)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reloading: asyncio.Lock | None = None
        self._leaving: set[DataSource] = set()
        self._retired: set[Server] = set()
        self._retired_fleets: set[Fleet] = set()
        self.is_open = False
        """Whether its pools are open."""
        self.open_in: object = _NO_LOOP
        """The event loop in which its pools are open; a placeholder while they are not."""
        self._startup_audit: StartupAudit | None = None
        self.skew: SkewWatch | None = None
        """Holds back tenants whose schema is behind, while the registry is open; None without migrations."""
        self.catalog: Catalog | None = None
        """Refreshes the tenants of `tenants_from` while the registry is open."""
        self.activity: Activity | None = None
        """What sessions do, for a console; None, and nothing is recorded, until `observe` is called."""

    def observe(self, activity: Activity | None = None) -> Activity:
        """Record from now on what sessions do: decisions, the load of tenants, connections in use.

        The first console calls it. Sessions that began before are not recorded.

        Args:
            activity: Where it is recorded, unless something records already; None makes a new one.
        """
        if self.activity is None:
            self.activity = activity or Activity()
            self.compiled = self._observed(self.compiled)
        return self.activity

    def _observed(self, compiled: RuntimeConfig) -> RuntimeConfig:
        """The configuration with recorders for a console, if there is one."""
        if self.activity is None:
            return compiled
        policy = compiled.policy
        return replace(compiled, policy=replace(policy, recorder=self.activity.recorder(policy.metrics)))

    # -- read by metrics, from another thread

    def open_pools(self) -> list[Server]:
        """The open pools that are measured."""
        compiled = self.compiled
        kept = [server for fleet in compiled.fleets.values() for server in fleet.open_servers]
        return [*(server for server in compiled.servers if server.is_open), *kept]

    def open_databases(self) -> dict[str, int]:
        """The number of open pools of each datasource with a database per tenant."""
        return {name: fleet.open_pools for name, fleet in self.compiled.fleets.items()}

    def lags(self) -> list[tuple[str, str, float]]:
        """Datasource, replica and replication lag in seconds, for the replicas whose lag is known."""
        return [
            (name, node.name, node.lag_s)
            for name, datasource in self.compiled.datasources.items()
            for node in datasource.topology.replicas
            if node.lag_s is not None
        ]

    def _measure(self, compiled: RuntimeConfig) -> None:
        """Start or stop measuring the pools, as the configuration says."""
        found = compiled.policy.metrics
        for server in compiled.servers:
            server.metrics = found
            server.configurers = self._configurers
        for fleet in compiled.fleets.values():
            fleet.metrics = found
            fleet.configurers = self._configurers
        if found is None:
            unwatch(self)
        else:
            watch(self)

    # -- look-ups

    def __iter__(self) -> Iterator[DataSource]:
        return iter(self.compiled.datasources.values())

    def __len__(self) -> int:
        return len(self.compiled.datasources)

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<DataSourceRegistry {state}, {len(self)} datasources, {len(self.known_tenants)} tenants>"

    @property
    def known_tenants(self) -> Mapping[str, Tenant]:
        """The tenants known now, by name; an immutable snapshot."""
        return MappingProxyType(self.compiled.admission.directory.map.names)

    async def tenants(self) -> AsyncIterator[Tenant]:
        """Every tenant, in the order of their names: `async for tenant in registry.tenants()`.

        Iterates over a snapshot: tenants that are added or removed meanwhile have no effect.
        """
        if not self.is_open and self.compiled.catalog is not None:
            await self.open()
        names = self.compiled.admission.directory.map.names
        for name in sorted(names):
            yield names[name]

    @property
    def datasources(self) -> Mapping[str, DataSource]:
        """The datasources by name."""
        return self.compiled.datasources

    def tenant(self, name: str | None) -> Tenant:
        """The tenant of a name, as given by a request; None is a request without a tenant.

        Raises:
            DataError: TENANT: there is no such tenant, and no default.
        """
        return self.compiled.tenant(name)

    def for_tenant(self, name: str | None) -> DataSource:
        """The datasource of a tenant; an unknown or absent tenant gets the default, if one is configured.

        Raises:
            DataError: TENANT: there is no such tenant, and no default.
        """
        compiled = self.compiled
        return compiled.datasource_of(compiled.tenant(name))

    def make_session(
        self,
        tenant: Tenant,
        *,
        compiled: RuntimeConfig,
        policy: SessionPolicy,
        scope: MutableMapping[str, Any] | None = None,
        method: str = "POST",
        path: str | None = None,
        started: float | None = None,
        owner: SessionOwner | None = None,
        outer: SessionCore | None = None,
        pin: ReadAfterWritePin | None = None,
        datasource: DataSource | None = None,
        rule: RouteRule = NO_RULE,
        token: Token | None = None,
    ) -> DataSession:
        """Create a session; the caller must end it.

        Args:
            tenant: The tenant.
            compiled: The configuration that was current when the request began.
            policy: The settings of the session.
            scope: The request's ASGI scope.
            method, path: Matched against the rules of `routes`.
            started: Event-loop time at which the request began.
            owner: Notified at the session's first statement.
            outer: The session of an outer application in the same request, from another registry.
            pin: The read-after-write pin of the caller.
            datasource: The datasource; None uses the tenant's.
            token: The causal-consistency token of the client; None reads it from the scope.
            rule: The rule to use without a path.
        """
        found_rule = rule if path is None else compiled.rules.match(method, path)
        own = tenant
        if found_rule.datasource is not None:
            name = found_rule.datasource
            tenant = compiled.default_on(name) if tenant.name is None else tenant.on(name)
        session = DataSession(
            self,
            datasource or compiled.datasources.get(tenant.datasource) or compiled.datasource_of(tenant),
            tenant,
            policy=policy,
            scope=scope,
            method=method,
            rule=found_rule,
            started=started,
            owner=owner,
            pin=pin,
            token=token,
        )
        if tenant is not own:
            session.serve_instead_of(own)
        if outer is not None:
            session.share_writers(outer)
        return session

    def make_sibling(self, session: DataSession, datasource: str) -> DataSession:
        """A session of the same request on another of the tenant's datasources; called by the session.

        Raises:
            DataError: CONFIG: the tenant has no datasource of this name.
        """
        compiled, own = self.compiled, session.own_tenant
        tenant = compiled.default_on(datasource) if own.name is None else own.on(datasource)
        sibling = session.make_like(tenant, compiled.datasource_of(tenant))
        session.add_sibling(sibling)
        return sibling

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it is open in."""
        return self._loop

    def make_facade(self, name: str, session: SessionBase) -> Any:
        """Create the object behind an attribute such as `DataSession.sqlalchemy`; called by the session.

        Raises:
            ConfigError: The library that it is for is not installed.
            DataError: CONFIG: the configuration has no section for it.
        """
        make = OUTBOX_FACADES.get(name)
        core = cast("SessionCore", session)
        return make_facade(name, core) if make is None else make(self._outboxes, core)

    def configure(self, function: ConfigureT) -> ConfigureT:
        """Run a function for each new connection of a pool, before it is lent: to register adapters.

        It is called with the driver's connection (`psycopg.AsyncConnection`), outside of any transaction and tenant,
        also after a reconnect and a reload. Types that differ between tenants belong into `datasources.X.types`, and
        settings of the session into the URL: those are cleared between tenants.

        Args:
            function: Sync or async. Its failure is logged, and fails the connection.

        Returns:
            The function, so that it can be a decorator: `@registry.configure`.

        Raises:
            ConfigError: The registry is open already.
        """
        if self._loop is not None:
            raise ConfigError("configure() comes too late: the registry is open, and has connections without it")
        self._configurers = (*self._configurers, function)
        return function

    # -- opening and closing

    async def open(self) -> None:
        """Open the pools. Does not wait for servers that are down: connections are opened in the background.

        Raises:
            DataError: CONFIG: it is open in another event loop, or there is no event loop of asyncio.
        """
        loop = asyncio._get_running_loop()
        if loop is None:
            raise ConfigError(
                "asgi-datasource needs asyncio, and there is no asyncio event loop here: run the application with a"
                " server, or a worker class, that uses asyncio"
            )
        if self._loop is not None and self._loop is not loop:
            if not self._loop.is_closed():
                raise ConfigError(
                    "the registry is open in another event loop, and its connections belong to that one: compile a"
                    " registry for each event loop, or close it (`await registry.close()`) before it is used in another"
                )
            self._abandon_loop()
        if self._loop is not loop:
            self._loop = loop
            self._reloading = None
            self.is_open = False
            self._opening = loop.create_task(self._open_servers())
            self._keeper = loop.create_task(self._close_with_the_loop())
            # Collected together with the registry, it closes the registry: nothing to warn of (as in asyncio's gather).
            self._keeper._log_destroy_pending = False  # type: ignore[attr-defined]
        if self._opening is not None:
            await asyncio.shield(self._opening)

    async def _open_servers(self) -> None:
        self._measure(self.compiled)
        for fleet in self.compiled.fleets.values():
            fleet.open()
        for datasource in self:
            await datasource.open()
        self.catalog = await self._start_catalog(self.compiled)
        self._startup_audit = audit = StartupAudit(self.compiled, self.catalog)
        try:
            await audit.run()
            self.skew = await self._start_skew(self.compiled)
        except ConfigError:
            # Close again, so that a later call can retry.
            self.is_open = True
            await self.close()
            raise
        self.is_open = True
        self.open_in = self._loop
        self._opening = None
        self._reloader.adopt(self.compiled.reload)

    def _abandon_loop(self) -> None:
        """The event loop was closed before `close` was called: close the connections, and start anew."""
        self.is_open = False
        self.open_in = _NO_LOOP
        unwatch(self)
        for datasource in (*self, *self._leaving):
            datasource.abandon()
        for server in self._retired:
            server.abandon()
        for fleet in (*self.compiled.fleets.values(), *self._retired_fleets):
            fleet.abandon()
        self._leaving.clear()
        self._retired.clear()
        self._retired_fleets.clear()
        self.background = BackgroundTasks()
        self.deferred_calls = DeferredCalls(WATCH_AFTER_S)
        self._reloader = ConfigWatcher(self.reload, lambda: self._origin.files)
        self._loop = self._opening = self._keeper = self._startup_audit = self.catalog = None

    async def _start_catalog(self, compiled: RuntimeConfig) -> Catalog | None:
        """Load the tenants of `tenants_from`, or their last snapshot."""
        plan = compiled.catalog
        if plan is None:
            return None
        primary = compiled.datasources[plan.config.datasource].servers["primary"]
        catalog = Catalog(plan, compiled.admission.directory, primary)
        await catalog.open()
        return catalog

    @staticmethod
    async def _start_skew(compiled: RuntimeConfig) -> SkewWatch | None:
        """Check the schemas, or migrate them, and watch them."""
        if compiled.migrating is None:
            return None
        skew = SkewWatch(compiled.migrating, compiled.admission)
        await skew.start()
        return skew

    async def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait for background tasks, then close the pools, in bounded time.

        Args:
            timeout_s: Most seconds to wait.
        """
        if not self.is_open:
            return
        if self._loop is not None and self._loop.is_closed():
            self._abandon_loop()
            return
        self.is_open = False
        self.open_in = _NO_LOOP
        unwatch(self)
        self._reloader.stop()
        if self._keeper is not None and self._keeper is not asyncio.current_task():
            self._keeper.cancel()
        catalog, self.catalog = self.catalog, None
        if catalog is not None:
            await catalog.close()
        if self._startup_audit is not None:
            await self._startup_audit.stop()
        skew, self.skew = self.skew, None
        if skew is not None:
            await skew.stop()
        await self._outboxes.close()
        await self.background.drain(timeout_s / 2)
        self.deferred_calls.close()
        for datasource in (*self, *self._leaving):
            datasource.stop()
        servers = {*self.compiled.servers, *self._retired}
        fleets = {*self.compiled.fleets.values(), *self._retired_fleets}
        self._retired.clear()
        self._leaving.clear()
        self._retired_fleets.clear()
        outcomes = await asyncio.gather(
            *(server.close(timeout_s=timeout_s / 2) for server in servers),
            *(fleet.close(timeout_s=timeout_s / 2) for fleet in fleets),
            return_exceptions=True,
        )
        self._loop = None
        for outcome in outcomes:
            # A cancellation is that of a task of the pool, at the end of the event loop.
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _close_with_the_loop(self) -> None:
        """Close when the event loop ends before `close` was called: a server without lifespan sends no shutdown.

        Otherwise the task of a pool that is connecting would treat the cancellation as a failed attempt and retry, and
        the end of the loop would wait for it forever.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.create_future()
        except GeneratorExit:
            # Nothing refers to the registry any more, while the event loop goes on: close in a task.
            if self.is_open and not loop.is_closed():
                loop.call_soon_threadsafe(_close_in_a_task, self)
            raise
        except asyncio.CancelledError:
            if self.is_open:
                await self.close()
            raise

    async def __aenter__(self) -> DataSourceRegistry:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- reload

    async def preview_reload(self, source: ConfigSource | None = None) -> ReloadPreview:
        """Read and check a configuration as `reload` does, and tell what it would change; nothing is changed.

        Args:
            source: As of `reload`.

        Raises:
            ConfigError: As of `reload`.
        """
        origin = self._origin
        previous = self.compiled
        found = self._source_to_read(source, origin)
        compiled = await asyncio.to_thread(_compile, found, origin, previous, Origins())
        return preview_of(previous, compiled)

    @staticmethod
    def _source_to_read(source: ConfigSource | None, origin: Origin) -> ConfigSource:
        """The source of a reload.

        Raises:
            ConfigError: None is given, and the registry was not compiled from a file.
        """
        found = origin.path if source is None else source
        if found is None:
            raise ConfigError("reload() needs a configuration: the registry was not compiled from a file")
        return found

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the configuration was read from; empty if it did not come from files."""
        return tuple(self._origin.files.files)

    async def reload(self, source: ConfigSource | None = None, *, expected: Config | None = None) -> Reloaded:
        """Switch to another configuration; sessions that began with the present one end with it.

        The whole configuration is checked first, in a thread; if it is wrong, nothing changes. Servers with unchanged
        settings keep their pools. The pools of the others are closed when no session can use them any more.

        Args:
            source: A path, a `ConfigFile`, a mapping or a `Config`; None reads the registry's own file again.
            expected: The document of a preview: another one is refused, such as that of files changed since.

        Raises:
            ConfigError: The configuration is wrong, every problem is listed; or there is no file to read again.
        """
        # In a background task: a cancelled reload would leave pools behind that are never closed.
        return await self.background.run(self._reload(source, expected))

    async def _reload(self, source: ConfigSource | None, expected: Config | None = None) -> Reloaded:
        if self._reloading is None:
            self._reloading = asyncio.Lock()
        async with self._reloading:
            origin = self._origin
            source = self._source_to_read(source, origin)
            files = Origins()
            try:
                compiled = await asyncio.to_thread(_compile, source, origin, self.compiled, files)
                if expected is not None and compiled.document != expected:
                    raise ConfigError(
                        "the configuration is not the one that was shown: its files have changed since. Compare again"
                    )
                reloaded = await self._swap(compiled)
            except BaseException:
                if files and source is origin.path:
                    # A refused configuration is not read again until its files change.
                    self._origin = replace(origin, files=files)
                raise
            self._origin = replace(origin.moved_to(source), files=files or origin.files)
            if self.is_open:
                self._reloader.adopt(compiled.reload)
                await self._outboxes.adopt()
        logger.info("the configuration was reloaded; %s", reloaded)
        return reloaded

    async def _swap(self, compiled: RuntimeConfig) -> Reloaded:
        previous = self.compiled
        compiled = self._observed(compiled)
        before, after = previous.servers, compiled.servers
        opened = [server for server in after if server not in before]
        if self.is_open:
            for server in opened:
                server.configurers = self._configurers
            for name, datasource in compiled.datasources.items():
                predecessor = previous.datasources.get(name)
                if predecessor is not datasource:
                    await datasource.open(predecessor)
            for fleet in compiled.fleets.values():
                fleet.open()
            catalog = await self._start_catalog(compiled)
            audit = StartupAudit(compiled, catalog)
            try:
                await audit.run()
                skew = await self._start_skew(compiled)
            except BaseException:
                await self._abandon(compiled, opened, catalog)
                raise
            if self._startup_audit is not None:
                await self._startup_audit.stop()
            self._startup_audit = audit
            if self.skew is not None:
                await self.skew.stop()
            self.skew = skew
            previous_catalog, self.catalog = self.catalog, catalog
            if previous_catalog is not None:
                if catalog is not None:
                    catalog.take_over(previous_catalog)
                await previous_catalog.close()
        self.compiled = compiled
        if self.is_open:
            self._measure(compiled)
        for name, fleet in previous.fleets.items():
            if compiled.fleets.get(name) is not fleet:
                self._retired_fleets.add(fleet)
                fleet.retire()
        retired = [server for server in before if server not in after]
        self._retired.update(retired)
        leaving = [ds for name, ds in previous.datasources.items() if compiled.datasources.get(name) is not ds]
        self._leaving.update(leaving)
        for datasource in leaving:
            datasource.retire(partial(self._left, datasource))
        for server in retired:
            server.retire()
        return compare_servers(previous, compiled)

    async def _abandon(self, compiled: RuntimeConfig, opened: list[Server], catalog: Catalog | None) -> None:
        """Close what was opened for a configuration that is not used after all."""
        if catalog is not None:
            await catalog.close()
        for name, datasource in compiled.datasources.items():
            if self.compiled.datasources.get(name) is not datasource:
                datasource.stop()
        for server in opened:
            await server.close(timeout_s=CLOSE_TIMEOUT_S / 2)

    def _left(self, datasource: DataSource) -> None:
        """Close the pools that only this retired datasource has used; called when its last session has ended."""
        self._leaving.discard(datasource)
        unused = self._retired.difference(*(still.servers.values() for still in self._leaving))
        self._retired -= unused
        for server in unused if self.is_open else ():
            self.background.spawn(server.close(timeout_s=CLOSE_TIMEOUT_S / 2))

    def known_tenant(self, name: str) -> Tenant | None:
        """The listed and served tenant of a name; None if it has to be searched."""
        admission = self.compiled.admission
        tenant = admission.directory.map.names.get(name)
        return tenant if tenant is not None and admission.serves(tenant) else None

    async def find_tenant(self, name: str) -> Tenant:
        """The current tenant of a name.

        Raises:
            DataError: TENANT: there is none, or it is suspended. CONFIG: its datasource does not isolate tenants.
        """
        admission = self.compiled.admission
        found = await admission.find(name)
        admission.check_served(found)
        return found

    def successor(self, datasource: DataSource) -> DataSource:
        """The datasource of the current configuration with the name of one from before a reload.

        Raises:
            DataError: CONNECTION: there is none.
        """
        found = self.compiled.datasources.get(datasource.name)
        if found is None:
            raise DataError(
                DataErrorKind.CONNECTION, f"the datasource {datasource.name!r} is not in the configuration any more"
            )
        return found

    # -- the outbox

    @property
    def relay(self) -> Relay | None:
        """The relay of this process, with its health and statistics; None without one."""
        return self._outboxes.relay

    async def start_relay(self) -> Relay:
        """Deliver the events of all databases in this process, until the registry is closed.

        The lifespan of an application starts it with `outbox: {relay: embedded}`.

        Raises:
            ConfigError: The configuration names no publisher, or the publisher's extra is not installed.
        """
        return await self._outboxes.start_relay()

    @asynccontextmanager
    async def relaying(self) -> AsyncGenerator[Relay]:
        """Deliver the events of all databases without opening pools: for a process that does nothing else."""
        async with self.tenants_loaded():
            try:
                yield await self._outboxes.start_relay()
            finally:
                await self._outboxes.close()

    @asynccontextmanager
    async def tenants_loaded(self) -> AsyncGenerator[None]:
        """Load the tenants of `tenants_from` without opening pools: for commands."""
        catalog = self.catalog = await self._start_catalog(self.compiled)
        try:
            yield
        finally:
            self.catalog = None
            if catalog is not None:
                await catalog.close()

    # -- operations

    def drain(self, datasource: str, server: str) -> None:
        """Give a replica no new reads; those that run there end there. A reload keeps it drained.

        Raises:
            ConfigError: There is no such server; it is the primary; or no server would be left for reads.
        """
        drain(self.compiled, datasource, server)

    def undrain(self, datasource: str, server: str) -> None:
        """Give a replica reads again.

        Raises:
            ConfigError: There is no such replica.
        """
        undrain(self.compiled, datasource, server)

    async def outbox_health(self) -> OutboxHealth | None:
        """How the outbox is: by the numbers of this process's relay, or by asking the databases; None without one."""
        return await self._outboxes.health()

    # -- health

    def health(self) -> Health:
        """The health of this process: whether it is ready for requests, and which server fails, why and since when.

        It tells what the process knows of its servers, and asks none. `HealthApp` (`asgi_datasource.health`) answers
        probes with it.
        """
        relay = self.relay
        outbox = None if relay is None else relay.health().as_json()
        return describe_health(self.compiled, self._tenant_count, is_open=self.is_open, outbox=outbox)

    # -- explaining routes

    async def explain(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        tenant: str | None = None,
        headers: Mapping[str, str] | None = None,
        intent: AccessIntent | None = None,
        token: str | None = None,
        is_pinned: bool = False,
        sticky: str | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Explanation:
        """Explain to which server a request's first statement would be routed, and why; nothing is sent.

        The annotation of the route is not known here: pass its intent as `intent`.

        Args:
            method, path: Those of the request.
            tenant: The tenant's name; None uses the resolvers, with path and headers.
            headers: Those of the request.
            intent: The intent of the statement; None uses that of the rule or the method.
            token: The client's token, or a position as `timeline:lsn`.
            is_pinned: The request has written already.
            sticky: Name of the replica that it has read from already.
            state: A state of the servers from `state()`; None uses the present one of this process.

        Raises:
            ConfigError: The state is not valid, or is about other servers.
        """
        question = Question(
            method=method,
            path=path,
            tenant=tenant,
            headers=tuple((headers or {}).items()),
            intent=intent,
            tokens=() if token is None else (token,),
            is_pinned=is_pinned,
            sticky=sticky,
        )
        return await explain(self.compiled, question, None if state is None else read_state(state))

    def state(self) -> dict[str, Any]:
        """The state of the servers as this process sees it, for a later `explain` (`schemas/state/v1.json`).

        Datasources with a database per tenant are not included.
        """
        return describe_state(self.compiled)

    # -- provisioning

    async def provision(self, name: str, **placed: Any) -> Tenant:
        """Create a tenant in the table of `tenants_from`, with its database or schema, grants and set-up.

        After an interruption, another call continues where it stopped.

        Args:
            name: Its name.
            placed: `datasource`, `schema`, `role`, `database`, `row_security`, `max_connections`, `aliases`; the
                defaults are those of `tenants_from.defaults`. `adopt=True` takes over objects that exist already.

        Raises:
            DataError: It could not be finished; call it again. CONFLICT: the name exists in another place.
        """
        plan = self.compiled.provisioning
        if plan is None:
            raise ConfigError("this registry was not compiled from a document")
        publishing = self.compiled.publishing
        config = self.compiled.migrating or publishing
        migrations = None if config is None else NewTenants(config)
        events = None if publishing is None else TenantOutbox(publishing)
        tenant = await Provisioner(plan, migrations=migrations, events=events).create(name, **placed)
        if self.catalog is not None:
            await self.catalog.refresh()
        return tenant

    # -- use outside requests

    @asynccontextmanager
    async def session(
        self,
        tenant: str | None = None,
        *,
        read_only: bool = False,
        timeout: float | None = None,
        token: str | None = None,
    ) -> AsyncGenerator[DataSession]:
        """A session outside a request: for workers, scripts, background tasks and tests.

        Its writes are one transaction, committed at the end of the block, or rolled back when an exception leaves it.

        Args:
            tenant: The tenant's name; None uses `current_tenant()` of the surrounding `tenant_context` or request, or
                else the default datasource.
            read_only: Writes are refused; all reads see one snapshot, on one replica.
            timeout: Seconds for the whole block, COMMIT included.
            token: The `token` of a session of this or another service, whose writes the reads must see.

        Raises:
            DataError: TENANT: there is no such tenant; or the commit failed.
        """
        db = await self._make_block_session(
            current_tenant() if tenant is None else tenant,
            _block_rule(read_only, timeout),
            started=asyncio.get_running_loop().time(),
            token=token,
        )
        db.outlives_requests = True
        # Surrounding annotated functions, such as those of a request, do not apply to the block.
        frame_token = current_frame.set(None)
        runner_token = current_runner.set(db)
        try:
            try:
                yield db
            except BaseException as error:
                await self.background.run(db.end(commit=False, reason=type(error).__name__))
                raise
            await db.complete()
        finally:
            # A fixture, or an async generator that another task closes, ends in another context.
            with suppress(ValueError):
                current_runner.reset(runner_token)
                current_frame.reset(frame_token)
            if db.has_due_hooks:
                await self.background.run(db.run_due_hooks())
            db.release_references()

    async def _make_block_session(
        self, tenant: str | None, rule: RouteRule, *, started: float | None = None, token: str | None = None
    ) -> DataSession:
        """Make a session of a tenant outside a request; the caller ends it."""
        if self.open_in is not asyncio._get_running_loop():
            await self.open()
        compiled = self.compiled
        if tenant is None and compiled.admission.default is None:
            raise DataError(
                DataErrorKind.TENANT,
                "this session has no tenant: give it one, as in registry.session(tenant=...), or with"
                " `with tenant_context(...)` around it, or set tenancy.default",
            )
        found = await compiled.admission.find(tenant)
        compiled.admission.check_served(found)
        return self.make_session(
            found,
            compiled=compiled,
            policy=compiled.block_policy,
            rule=rule,
            started=started,
            token=compiled.seen([] if token is None else [token]),
        )

    def sqlalchemy_engine(self, tenant: str | None = None, *, read_only: bool = False, **options: Any) -> AsyncEngine:
        """SQLAlchemy's `AsyncEngine` on a tenant's data, for scripts and Alembic; a request has `db.sqlalchemy`.

        Each of its connections is a session of its own, as of `session()`: inside the tenant, with the registry's
        pools. Its transactions end by SQLAlchemy's rules: what was not committed is rolled back.

        Args:
            tenant: The tenant's name; None takes the default datasource.
            read_only: Nothing may write, and a replica may answer.
            options: More of `create_async_engine`: `echo`, `execution_options`, ...

        Raises:
            ConfigError: SQLAlchemy is not installed.
        """
        engine: AsyncEngine = make_engine(
            partial(self._make_block_session, tenant, _block_rule(read_only, None)), options
        )
        return engine

    @asynccontextmanager
    async def acquire(
        self,
        datasource: DataSource,
        intent: AccessIntent,
        pin: ReadAfterWritePin | None = None,
        *,
        tenant: Tenant | None = None,
    ) -> AsyncGenerator[RawConnection]:
        """A routed connection, in a transaction that ends with the block.

        Args:
            datasource: A datasource of this registry.
            intent: READ runs READ ONLY, on a replica if there is one; WRITE sets the pin.
            pin: The caller's read-after-write pin; once it is set, reads go to the primary.
            tenant: Applied inside the transaction; None applies nothing.

        Raises:
            DataError: No connection could be borrowed, or the commit failed.
        """
        if self.open_in is not asyncio._get_running_loop():
            await self.open()
        compiled = self.compiled
        db = self.make_session(
            tenant or Tenant(None, datasource.name),
            compiled=compiled,
            datasource=datasource,
            policy=replace(compiled.policy, commit_scope=CommitScope.SESSION),
            pin=pin,
        )
        try:
            async with db.connection(intent) as connection:
                yield connection
        except BaseException as error:
            await self.background.run(db.end(commit=False, reason=type(error).__name__))
            raise
        else:
            await db.end(commit=True, reason="end of the block")
        finally:
            db.release_references()


_closing: Final[set[asyncio.Task[None]]] = set()
"""Keeps the tasks of `_close_in_a_task` alive."""


def _close_in_a_task(registry: DataSourceRegistry) -> None:
    task = asyncio.get_running_loop().create_task(registry.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


@lru_cache(maxsize=256)
def _block_rule(read_only: bool, timeout_s: float | None) -> RouteRule:
    """The options of a block of `registry.session()`."""
    return RouteRule(TransactionOptions(read_only=read_only, timeout_s=timeout_s), is_transactional=True)


def compile(
    source: ConfigSource,
    *,
    environ: Mapping[str, str] | None = None,
    needs_resolver: bool = False,
) -> DataSourceRegistry:
    """Compile a configuration into a registry. Opens nothing.

    Args:
        source: A path to a YAML, TOML or JSON document, a `ConfigFile` with overlays, a mapping, or a loaded `Config`.
        environ: Values of `${NAME}`; None uses the environment of the process.
        needs_resolver: Whether tenants without a resolver are an error; workers and scripts pass the tenant themselves.

    Raises:
        ConfigError: The configuration is wrong; every problem is listed.
    """
    origin = Origin(environ=environ, needs_resolver=needs_resolver).moved_to(source)
    return DataSourceRegistry(_compile(source, origin, None, origin.files), origin=origin)


def _compile(source: ConfigSource, origin: Origin, previous: RuntimeConfig | None, files: Origins) -> RuntimeConfig:
    config = load(source, environ=origin.environ, needs_resolver=origin.needs_resolver, origins=files)
    return compile_config(config, previous=previous)
