"""The outbox of a registry: what a session's `db.outbox` is made of, and the databases that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, cast

from ..config import OutboxConfig, PublisherConfig
from ..config.outbox import KafkaPublisher as KafkaSection
from ..config.outbox import NatsPublisher as NatsSection
from ..config.outbox import RabbitmqPublisher as RabbitmqSection
from ..config.outbox import RedisPublisher as RedisSection
from ..config.outbox import WebhookPublisher as WebhookSection
from ..datasource.database_fleet import Fleet
from ..drivers.protocol import Connection, Exchange, Server
from ..errors import ConfigError, DataError, DataErrorKind
from ..outbox.database_relay import RelaySettings
from ..outbox.health import OutboxHealth, ask_health
from ..outbox.inbox import SessionInbox
from ..outbox.lanes import Site
from ..outbox.notifier import Notifier
from ..outbox.protocols import OutboxPublisher
from ..outbox.publishers.function import load_publisher
from ..outbox.relay import Relay
from ..outbox.writer import OutboxWriter, SessionOutbox, explain_missing
from ..sessions.core import SessionCore
from ..tenancy import Tenant
from .runtime_config import RuntimeConfig

DatabaseKey = tuple[str, str | None]
"""A datasource, and the tenant's database where each tenant has one."""


def database_of(tenant: Tenant, compiled: RuntimeConfig) -> DatabaseKey:
    """The database that a tenant's events are written to."""
    has_databases = tenant.datasource in compiled.fleets
    return tenant.datasource, (tenant.database or tenant.name) if has_databases else None


class Outboxes:
    """Makes `db.outbox` and `db.inbox` of sessions, and keeps the relay of this process.

    Args:
        current: The current configuration.
    """

    def __init__(self, current: Callable[[], RuntimeConfig]) -> None:
        self._current = current
        self._writers: dict[DatabaseKey, OutboxWriter] = {}
        self._notifiers: dict[DatabaseKey, Notifier] = {}
        self._relayed: OutboxConfig | None = None
        self.relay: Relay | None = None
        """Delivers events; None where this process has no relay."""

    def make_outbox(self, session: SessionCore) -> SessionOutbox:
        """`db.outbox`.

        Raises:
            DataError: CONFIG: the configuration has no section `outbox`.
        """
        compiled = self._current()
        config = compiled.outbox
        if config is None:
            raise DataError(
                DataErrorKind.CONFIG,
                "db.outbox needs the section outbox in the configuration: add `outbox: {relay: off}`, or name a"
                " publisher there",
            )
        key = database_of(session.tenant, compiled)
        writer = self._writers.get(key)
        if writer is None:
            writer = self._writers[key] = OutboxWriter(partial(self._committed, key))
        return SessionOutbox(session, writer, config.max_payload)

    def make_inbox(self, session: SessionCore) -> SessionInbox:
        """`db.inbox`."""
        return SessionInbox(session)

    def _committed(self, key: DatabaseKey) -> None:
        if self.relay is not None:
            self.relay.hint(key)
        compiled = self._current()
        if compiled.outbox is not None and compiled.outbox.notify == "coalesced":
            notifier = self._notifiers.get(key)
            if notifier is None:
                site = relay_sites(compiled).get(key)
                if site is None:
                    return
                notifier = self._notifiers[key] = Notifier(site)
            notifier.hint()

    async def health(self) -> OutboxHealth | None:
        """How the outbox is: by the numbers of this process's relay, or by asking the databases; None without one."""
        if self.relay is not None:
            return self.relay.health()
        compiled = self._current()
        if compiled.outbox is None:
            return None
        return await ask_health(relay_sites(compiled).values(), warn_age_s=compiled.outbox.warn_age_s)

    # -- the relay of this process

    async def start_relay(self) -> Relay:
        """Begin to deliver.

        Raises:
            ConfigError: The configuration names no publisher, or its extra is not installed.
        """
        if self.relay is None:
            config = self._current().outbox
            policy = self._current().policy
            self.relay = make_relay(
                config,
                lambda: relay_sites(self._current()),
                is_measured=policy.metrics is not None,
                is_traced=policy.is_traced,
            )
            self._relayed = config
            await self.relay.start()
        return self.relay

    async def adopt(self) -> None:
        """Another configuration is current: a relay goes on with what that says."""
        if self.relay is not None and self._relayed != self._current().outbox:
            await self.stop_relay()
            config = self._current().outbox
            if config is not None and config.publisher is not None:
                await self.start_relay()

    async def stop_relay(self) -> None:
        """Deliver what is under way, and end."""
        relay, self.relay = self.relay, None
        if relay is not None:
            await relay.stop()

    async def close(self) -> None:
        """End what runs."""
        await self.stop_relay()
        notifiers = list(self._notifiers.values())
        self._notifiers.clear()
        for notifier in notifiers:
            await notifier.close()


def make_relay(
    config: OutboxConfig | None,
    sites: Callable[[], Mapping[DatabaseKey, Site]],
    *,
    is_measured: bool = False,
    is_traced: bool = False,
) -> Relay:
    """The relay of a configuration, not started yet.

    Raises:
        ConfigError: It names no publisher, or the publisher's extra is not installed.
    """
    if config is None or config.publisher is None:
        raise ConfigError("a relay needs outbox.publisher: nats, kafka, rabbitmq, redis, webhook or callable")
    settings = RelaySettings(
        lease_s=(lease_s := float(config.lease[:-1])),
        renew_s=lease_s / 3,
        max_attempts=config.max_attempts,
        holds_dead=config.on_dead == "hold",
        keep_days=None if config.keep is None else int(config.keep[:-1]),
        listens=config.notify == "coalesced",
        connections=config.connections,
        is_traced=is_traced,
    )
    return Relay(
        sites,
        make_publisher(config.publisher),
        settings=settings,
        warn_age_s=config.warn_age_s,
        is_measured=is_measured,
    )


def make_publisher(config: PublisherConfig) -> OutboxPublisher:
    """The publisher of a configuration; nothing is connected yet.

    Raises:
        ConfigError: Its extra is not installed, or its function is not there.
    """
    if config.callable is not None:
        return load_publisher(config.callable)
    try:
        return _PUBLISHERS[config.kind](config)
    except ImportError as error:
        raise ConfigError(
            f"outbox.publisher.{config.kind} needs the extra of that name:"
            f" pip install 'asgi-datasource[{config.kind}]' ({error})"
        ) from error


def _make_nats(config: PublisherConfig) -> OutboxPublisher:
    from ..outbox.publishers.nats import NatsPublisher

    found = cast("NatsSection", config.nats)
    return NatsPublisher(found.url.get_secret_value())


def _make_kafka(config: PublisherConfig) -> OutboxPublisher:
    from ..outbox.publishers.kafka import KafkaPublisher

    found = cast("KafkaSection", config.kafka)
    user, password = [None if text is None else text.get_secret_value() for text in (found.user, found.password)]
    return KafkaPublisher(found.servers, user=user, password=password)


def _make_rabbitmq(config: PublisherConfig) -> OutboxPublisher:
    from ..outbox.publishers.rabbitmq import RabbitmqPublisher

    found = cast("RabbitmqSection", config.rabbitmq)
    return RabbitmqPublisher(found.url.get_secret_value(), exchange=found.exchange)


def _make_redis(config: PublisherConfig) -> OutboxPublisher:
    from ..outbox.publishers.redis import RedisPublisher

    found = cast("RedisSection", config.redis)
    return RedisPublisher(found.url.get_secret_value(), max_length=found.max_length)


def _make_webhook(config: PublisherConfig) -> OutboxPublisher:
    from ..outbox.publishers.webhook import WebhookPublisher

    found = cast("WebhookSection", config.webhook)
    return WebhookPublisher(
        found.url.get_secret_value(),
        found.secret.get_secret_value(),
        allow_private=found.allow_private,
        timeout_s=found.timeout_s,
    )


_PUBLISHERS: Final[Mapping[str, Callable[[PublisherConfig], OutboxPublisher]]] = {
    "nats": _make_nats,
    "kafka": _make_kafka,
    "rabbitmq": _make_rabbitmq,
    "redis": _make_redis,
    "webhook": _make_webhook,
}
"""Each imports its client when it is asked for."""


FACADES: Final[Mapping[str, Callable[[Outboxes, SessionCore], Any]]] = {
    "outbox": Outboxes.make_outbox,
    "inbox": Outboxes.make_inbox,
}
"""The attributes of a session that the outbox is behind."""


def relay_sites(compiled: RuntimeConfig) -> dict[DatabaseKey, Site]:
    """Every database that relays deliver from, of datasources with the default driver."""
    config = compiled.outbox
    source = None if config is None else config.source

    def site(key: DatabaseKey, primary: Callable[[], Server]) -> Site:
        datasource, database = key
        made: list[Server] = []

        async def connect(deadline: float) -> Connection:
            if not made:
                made.append(primary())
            return await made[0].connect_apart(deadline=deadline, purpose="outbox relay")

        def error_of(exchange: Exchange) -> DataError:
            return explain_missing(made[0].error_of(exchange, is_write=True))

        return Site(
            name=datasource if database is None else f"{datasource}/{database}",
            datasource=datasource,
            source=source or f"urn:asgi-datasource:{datasource}",
            connect=connect,
            error_of=error_of,
        )

    found: dict[DatabaseKey, Site] = {}
    for name, datasource in compiled.datasources.items():
        if name in compiled.audits:
            found[name, None] = site((name, None), partial(datasource.servers.__getitem__, "primary"))
    for tenant in compiled.admission.directory.map.names.values():
        fleet = compiled.fleets.get(tenant.datasource)
        if fleet is not None and tenant.datasource in compiled.audits:
            key = database_of(tenant, compiled)
            found[key] = site(key, partial(_primary_of, fleet, key[1] or ""))
    return found


def _primary_of(fleet: Fleet, database: str) -> Server:
    return fleet.detached(database).servers["primary"]
