"""The registry: what a configuration compiled to, the pools behind it, and the change to another configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from ..concurrency.deferred_calls import DeferredCalls
from ..concurrency.tasks import BackgroundTasks
from ..config import Config, ConfigFile, Origins, load, read_state
from ..datasource.database_fleet import Fleet
from ..datasource.datasource import DataSource
from ..drivers.protocol import Server
from ..drivers.raw import RawConnection
from ..errors import ConfigError, DataError, DataErrorKind
from ..observability.metrics import unwatch, watch
from ..outbox.relay import Relay
from ..routing import AccessIntent, ReadAfterWritePin
from ..routing.consistency.token import Token
from ..sessions.context import current_frame, current_runner
from ..sessions.core import SessionCore, SessionOwner
from ..sessions.policy import NO_RULE, CommitScope, RouteRule, SessionPolicy
from ..sessions.session import DataSession
from ..tenancy import Catalog, Tenant, current_tenant
from ..tenancy.provisioning import Provisioner
from ..transaction import TransactionOptions
from .compiler import compile_config
from .config_watcher import ConfigWatcher
from .explain import Explanation, Question, describe_state, explain
from .outbox import Outboxes
from .runtime_config import RuntimeConfig
from .startup_audit import StartupAudit

logger = logging.getLogger("asgi_datasource.registry")

ConfigSource = str | Path | ConfigFile | Mapping[str, Any] | Config
"""A path to a YAML, TOML or JSON document, one with overlays, a mapping, or a `Config` that is loaded already."""

WATCH_AFTER_S: Final = 0.1
"""Seconds into its first statement after which a request watches for its client's leaving; most are done by then."""

CLOSE_TIMEOUT_S: Final = 10.0
"""Seconds that closing may take in all: clean-up tasks first, then the pools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a registry's configuration comes from, and how it is read.

    Attributes:
        path: The document, with its overlays; None where it did not come from a file.
        environ: Where `${NAME}` is looked up; None takes the process's environment.
        needs_resolver: Whether tenants without a way to tell them from requests are an error.
        files: What it was read from last, also where that was refused.
    """

    path: Path | ConfigFile | None = None
    environ: Mapping[str, str] | None = None
    needs_resolver: bool = False
    files: Origins = field(default_factory=Origins)

    def moved_to(self, source: ConfigSource) -> Origin:
        """The same for another source; one that is not a file leaves the file that there was."""
        if isinstance(source, ConfigFile):
            return replace(self, path=source)
        return replace(self, path=Path(source)) if isinstance(source, str | Path) else self


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did to the servers, each as `datasource.server`.

    Attributes:
        kept: Nothing was changed about them, and their pools are still those of before.
        opened: They are new, or something about them was changed.
        retired: Their pools are closed once the last session that began to use them has ended.
    """

    kept: tuple[str, ...]
    opened: tuple[str, ...]
    retired: tuple[str, ...]

    def __str__(self) -> str:
        return f"pools: {len(self.opened)} opened, {len(self.retired)} retired, {len(self.kept)} kept"


class DataSourceRegistry:
    """Every tenant and every datasource of a configuration; made by `compile`.

    What it was compiled to is one frozen value, which a reload replaces whole. Iterating gives the datasources.

    Args:
        compiled: What a configuration compiled to.
        origin: Where that came from, for `reload`.
    """

    def __init__(self, compiled: RuntimeConfig, *, origin: Origin | None = None) -> None:
        self.compiled = compiled
        """The current one. Read it once for a piece of work, and end with the one that it began with."""
        self.background = BackgroundTasks()
        self.overtime = DeferredCalls(WATCH_AFTER_S)
        """Calls requests back that are still there a while after their first statement."""
        self._outboxes = Outboxes(lambda: self.compiled)
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
        self._vetting: StartupAudit | None = None
        self.catalog: Catalog | None = None
        """Keeps the tenants that are in a table up to date, while the registry is open."""

    # -- what metrics read; from another thread

    def open_pools(self) -> list[Server]:
        """Every pool that is open and measured."""
        compiled = self.compiled
        kept = [server for fleet in compiled.fleets.values() for server in fleet.open_servers]
        return [*(server for server in compiled.servers if server.is_open), *kept]

    def open_databases(self) -> dict[str, int]:
        """How many pools each datasource has open that has a database for each tenant."""
        return {name: fleet.open_pools for name, fleet in self.compiled.fleets.items()}

    def lags(self) -> list[tuple[str, str, float]]:
        """Datasource, replica, and how many seconds it is behind, as far as that is known."""
        return [
            (name, node.name, node.lag_s)
            for name, datasource in self.compiled.datasources.items()
            for node in datasource.picture.replicas
            if node.lag_s is not None
        ]

    def _measure(self, compiled: RuntimeConfig) -> None:
        """Have this registry's pools measured, or not any more."""
        found = compiled.policy.metrics
        for server in compiled.servers:
            server.metrics = found
        for fleet in compiled.fleets.values():
            fleet.metrics = found
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
        """Every tenant that is known at this moment, by its name; a mapping that never changes."""
        return MappingProxyType(self.compiled.admission.directory.map.names)

    async def tenants(self) -> AsyncIterator[Tenant]:
        """Every tenant, in the order of their names: `async for tenant in registry.tenants()`.

        What is iterated over is the picture of one moment: a tenant that comes or goes meanwhile is not noticed.
        """
        if not self.is_open and self.compiled.catalog is not None:
            await self.open()
        names = self.compiled.admission.directory.map.names
        for name in sorted(names):
            yield names[name]

    @property
    def datasources(self) -> Mapping[str, DataSource]:
        """Every datasource by its name."""
        return self.compiled.datasources

    def tenant(self, name: str | None) -> Tenant:
        """The tenant of a name, as a request gave it; None for a request that names none.

        Raises:
            DataError: TENANT: there is no such tenant, and no default.
        """
        return self.compiled.tenant(name)

    def for_tenant(self, name: str | None) -> DataSource:
        """The datasource of a tenant; an unknown or absent one gets the default where the configuration names one.

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
        """Make a session; whoever calls this ends it.

        Args:
            tenant: Whose.
            compiled: What was current when the work began.
            policy: What the configuration says about it.
            scope: The request's ASGI scope.
            method, path: What the rules of `routes` are matched against.
            started: Event-loop time at which the request began.
            owner: Is told when the session comes into use.
            outer: A session that the request has already, of another registry.
            pin: The caller's own.
            datasource: Where the data is; None takes the tenant's.
            token: What its client has seen; None reads it off the scope.
            rule: What holds where there is no path.
        """
        session = DataSession(
            self,
            datasource or compiled.datasources.get(tenant.datasource) or compiled.datasource_of(tenant),
            tenant,
            policy=policy,
            scope=scope,
            method=method,
            rule=rule if path is None else compiled.rules.match(method, path),
            started=started,
            owner=owner,
            pin=pin,
            token=token,
        )
        if outer is not None:
            session.share_writers(outer)
        return session

    # -- life

    async def open(self) -> None:
        """Open the pools. Returns at once, also when a server is down: connections are made in the background.

        Raises:
            DataError: CONFIG: it is open in another event loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop and not self._loop.is_closed():
            raise DataError(DataErrorKind.CONFIG, "the registry is open in another event loop; compile one for each")
        if self._loop is not loop:
            self._loop = loop
            self._reloading = None
            self.is_open = False
            self._opening = loop.create_task(self._open_servers())
            self._keeper = loop.create_task(self._close_with_the_loop())
        if self._opening is not None:
            await asyncio.shield(self._opening)

    async def _open_servers(self) -> None:
        self._measure(self.compiled)
        for fleet in self.compiled.fleets.values():
            fleet.open()
        for datasource in self:
            await datasource.open()
        self.catalog = await self._start_catalog(self.compiled)
        self._vetting = vetting = StartupAudit(self.compiled, self.catalog)
        try:
            await vetting.run()
        except ConfigError:
            # As if it had never been opened: whoever has put it right may try again.
            self.is_open = True
            await self.close()
            raise
        self.is_open = True
        self._opening = None
        self._reloader.adopt(self.compiled.reload)

    async def _start_catalog(self, compiled: RuntimeConfig) -> Catalog | None:
        """Load the tenants that are in a table, or what there is in their place."""
        plan = compiled.catalog
        if plan is None:
            return None
        primary = compiled.datasources[plan.config.datasource].servers["primary"]
        catalog = Catalog(plan, compiled.admission.directory, primary)
        await catalog.open()
        return catalog

    async def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End what is still under way, then close the pools; bounded, whatever the servers do.

        Args:
            timeout_s: Seconds that it may take.
        """
        if not self.is_open:
            return
        self.is_open = False
        unwatch(self)
        self._reloader.stop()
        if self._keeper is not None and self._keeper is not asyncio.current_task():
            self._keeper.cancel()
        catalog, self.catalog = self.catalog, None
        if catalog is not None:
            await catalog.close()
        if self._vetting is not None:
            await self._vetting.stop()
        await self._outboxes.close()
        await self.background.drain(timeout_s / 2)
        self.overtime.close()
        for datasource in (*self, *self._leaving):
            datasource.stop()
        servers = {*self.compiled.servers, *self._retired}
        fleets = {*self.compiled.fleets.values(), *self._retired_fleets}
        self._retired.clear()
        self._leaving.clear()
        self._retired_fleets.clear()
        await asyncio.gather(
            *(server.close(timeout_s=timeout_s / 2) for server in servers),
            *(fleet.close(timeout_s=timeout_s / 2) for fleet in fleets),
        )
        self._loop = None

    async def _close_with_the_loop(self) -> None:
        """Close when the event loop ends and nobody has: a server without lifespan never says good-bye.

        Left to itself, the scheduler of a pool that just tries to connect takes the cancellation for a failed attempt
        and goes on, and the loop waits for it for ever.
        """
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self.is_open:
                await self.close()

    async def __aenter__(self) -> DataSourceRegistry:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- another configuration

    async def reload(self, source: ConfigSource | None = None) -> Reloaded:
        """Take another configuration from now on; whatever has begun with the present one ends with it.

        It is checked as a whole first, in a thread: where something is wrong with it, nothing changes. Servers about
        which it says the same keep their pools. The others' are closed once nobody can come back to them.

        Args:
            source: A path, a `ConfigFile`, a mapping or a `Config`; None reads the registry's own file again.

        Raises:
            ConfigError: The configuration is wrong, every problem is listed; or there is no file to read again.
        """
        # Out of reach of the caller's cancellation: half of it would be pools that nobody closes.
        return await self.background.run(self._reload(source))

    async def _reload(self, source: ConfigSource | None) -> Reloaded:
        if self._reloading is None:
            self._reloading = asyncio.Lock()
        async with self._reloading:
            origin = self._origin
            if source is None:
                if origin.path is None:
                    raise ConfigError("reload() needs a configuration: the registry was not compiled from a file")
                source = origin.path
            files = Origins()
            try:
                compiled = await asyncio.to_thread(_compile, source, origin, self.compiled, files)
                reloaded = await self._swap(compiled)
            except BaseException:
                if files and source is origin.path:
                    # What was refused once is not read again before it changes.
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
        before, after = previous.servers, compiled.servers
        opened = [server for server in after if server not in before]
        if self.is_open:
            for name, datasource in compiled.datasources.items():
                predecessor = previous.datasources.get(name)
                if predecessor is not datasource:
                    await datasource.open(predecessor)
            for fleet in compiled.fleets.values():
                fleet.open()
            catalog = await self._start_catalog(compiled)
            vetting = StartupAudit(compiled, catalog)
            try:
                await vetting.run()
            except BaseException:
                await self._abandon(compiled, opened, catalog)
                raise
            if self._vetting is not None:
                await self._vetting.stop()
            self._vetting = vetting
            before_it, self.catalog = self.catalog, catalog
            if before_it is not None:
                if catalog is not None:
                    catalog.take_over(before_it)
                await before_it.close()
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
        return Reloaded(
            kept=tuple([server.full_name for server in after if server in before]),
            opened=tuple([server.full_name for server in opened]),
            retired=tuple([server.full_name for server in retired]),
        )

    async def _abandon(self, compiled: RuntimeConfig, opened: list[Server], catalog: Catalog | None) -> None:
        """The next configuration is not to be used after all."""
        if catalog is not None:
            await catalog.close()
        for name, datasource in compiled.datasources.items():
            if self.compiled.datasources.get(name) is not datasource:
                datasource.stop()
        for server in opened:
            await server.close(timeout_s=CLOSE_TIMEOUT_S / 2)

    def _left(self, datasource: DataSource) -> None:
        """Nobody uses a retired datasource any more: close the pools that were its alone."""
        self._leaving.discard(datasource)
        unused = self._retired.difference(*(still.servers.values() for still in self._leaving))
        self._retired -= unused
        for server in unused if self.is_open else ():
            self.background.spawn(server.close(timeout_s=CLOSE_TIMEOUT_S / 2))

    def successor(self, datasource: DataSource) -> DataSource:
        """What has taken the place of a datasource that is not configured any more.

        Raises:
            DataError: CONNECTION: nothing has.
        """
        found = self.compiled.datasources.get(datasource.name)
        if found is None:
            raise DataError(
                DataErrorKind.CONNECTION, f"the datasource {datasource.name!r} is not in the configuration any more"
            )
        return found

    def capability(self, name: str, session: SessionCore) -> Any:
        """What a room above the sessions adds to one, by its attribute: `outbox`, `inbox`.

        Raises:
            DataError: CONFIG: the configuration has no section for it.
        """
        return self._outboxes.capability(name, session)

    # -- the outbox

    @property
    def relay(self) -> Relay | None:
        """The relay of this process, for its health and numbers; None where it has none."""
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
        """Deliver the events of all databases, without opening a pool: for a process that does nothing else."""
        async with self.tenants_loaded():
            try:
                yield await self._outboxes.start_relay()
            finally:
                await self._outboxes.close()

    @asynccontextmanager
    async def tenants_loaded(self) -> AsyncGenerator[None]:
        """Know the tenants that are in a table, without opening a pool: for commands."""
        catalog = self.catalog = await self._start_catalog(self.compiled)
        try:
            yield
        finally:
            self.catalog = None
            if catalog is not None:
                await catalog.close()

    # -- where requests would go

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
        """Tell where a request's first statement would go, and why not elsewhere; nothing is sent.

        An annotation of the route is not seen here: what it says of the intent, `intent` can say.

        Args:
            method, path: The request's.
            tenant: The tenant's name; None leaves it to the resolvers, which see path and headers.
            headers: The request's.
            intent: What the statement wants; None takes what holds for the route.
            token: What the client has seen: a token, or a position as `timeline:lsn`.
            is_pinned: The request has written already.
            sticky: Name of the replica that it has read from already.
            state: How the servers look, as `state()` tells it; None takes them as this process sees them.

        Raises:
            ConfigError: The state is none, or is about other servers.
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
        """How the servers look to this process now, for `explain` at another time and place (`schemas/state/v1.json`).

        Of a datasource with a database for each tenant, nothing is told.
        """
        return describe_state(self.compiled)

    # -- making tenants

    async def provision(self, name: str, **placed: Any) -> Tenant:
        """Make a tenant of the table that `tenants_from` reads: its place, its grants, the set-up; then it is served.

        Cut short, it goes on where it stopped when it is called again.

        Args:
            name: Its name.
            placed: `datasource`, `schema`, `role`, `database`, `row_security`, `max_connections`, `aliases`; what is
                not given is taken from `tenants_from.defaults`. `adopt=True` takes over what is there already.

        Raises:
            DataError: It could not be finished; call it again. CONFLICT: there is one of that name in another place.
        """
        plan = self.compiled.provisioning
        if plan is None:
            raise ConfigError("this registry was not compiled from a document")
        tenant = await Provisioner(plan).create(name, **placed)
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
            tenant: The tenant's name; None takes that of the `tenant_context` around, or else the default datasource.
            read_only: Nothing may write; all reads see one snapshot, on one replica.
            timeout: Seconds for the whole block, COMMIT included.
            token: The `token` of the session whose writes its reads must see, of this service or another one.

        Raises:
            DataError: TENANT: there is no such tenant. Or what became of the commit.
        """
        if not self.is_open:
            await self.open()
        compiled = self.compiled
        found = await compiled.admission.find(current_tenant() if tenant is None else tenant)
        compiled.admission.check_served(found)
        db = self.make_session(
            found,
            compiled=compiled,
            policy=compiled.block_policy,
            rule=_block_rule(read_only, timeout),
            started=asyncio.get_running_loop().time(),
            token=compiled.seen([] if token is None else [token]),
        )
        # What surrounds the block, such as an annotated function of a request, says nothing about it.
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
            current_runner.reset(runner_token)
            current_frame.reset(frame_token)
            if db.has_due_hooks:
                await self.background.run(db.run_due_hooks())
            db.let_go()

    @asynccontextmanager
    async def acquire(
        self,
        datasource: DataSource,
        intent: AccessIntent,
        pin: ReadAfterWritePin | None = None,
        *,
        tenant: Tenant | None = None,
    ) -> AsyncGenerator[RawConnection]:
        """A connection for an intent: routed, inside a transaction that ends with the block.

        Args:
            datasource: One of this registry's.
            intent: READ runs READ ONLY, on a replica where there is one; WRITE sets the pin.
            pin: The caller's; once it is set, reads go to the primary.
            tenant: Applied inside the transaction; None applies nothing.

        Raises:
            DataError: No connection could be had, or the commit failed.
        """
        if not self.is_open:
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
            db.let_go()


@lru_cache(maxsize=256)
def _block_rule(read_only: bool, timeout_s: float | None) -> RouteRule:
    """What holds in a block of `registry.session()`."""
    return RouteRule(TransactionOptions(read_only=read_only, timeout_s=timeout_s), is_transactional=True)


def compile(
    source: ConfigSource,
    *,
    environ: Mapping[str, str] | None = None,
    needs_resolver: bool = False,
) -> DataSourceRegistry:
    """Compile a configuration into a registry. Opens nothing.

    Args:
        source: A path to a YAML, TOML or JSON document, a `ConfigFile` with overlays, a mapping, or a `Config` that is
            loaded already.
        environ: Where `${NAME}` is looked up; None takes the process's environment.
        needs_resolver: Whether tenants without a way to tell them from requests are an error; workers and scripts name
            the tenant themselves.

    Raises:
        ConfigError: The configuration is wrong; every problem is listed.
    """
    origin = Origin(environ=environ, needs_resolver=needs_resolver).moved_to(source)
    return DataSourceRegistry(_compile(source, origin, None, origin.files), origin=origin)


def _compile(source: ConfigSource, origin: Origin, previous: RuntimeConfig | None, files: Origins) -> RuntimeConfig:
    config = load(source, environ=origin.environ, needs_resolver=origin.needs_resolver, origins=files)
    return compile_config(config, previous=previous)
