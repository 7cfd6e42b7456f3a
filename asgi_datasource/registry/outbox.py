"""The outbox of a registry: what a session's `db.outbox` is made of, and the databases that have one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from ..config import PLACEHOLDER, Config
from ..drivers.control import control_driver
from ..errors import DataError, DataErrorKind
from ..outbox.inbox import SessionInbox
from ..outbox.install import InstallSite
from ..outbox.writer import OutboxSettings, OutboxWriter, SessionOutbox
from ..sessions.core import SessionCore
from ..tenancy import Tenant, compile_tenants
from .runtime_config import RuntimeConfig

DatabaseKey = tuple[str, str | None]
"""A datasource, and the tenant's database where each tenant has one."""


def database_of(tenant: Tenant, compiled: RuntimeConfig) -> DatabaseKey:
    """The database that a tenant's events are written to."""
    has_databases = tenant.datasource in compiled.fleets
    return tenant.datasource, (tenant.database or tenant.name) if has_databases else None


class Outboxes:
    """Makes `db.outbox` and `db.inbox` of sessions.

    Args:
        current: The current configuration.
    """

    def __init__(self, current: Callable[[], RuntimeConfig]) -> None:
        self._current = current
        self._writers: dict[DatabaseKey, OutboxWriter] = {}
        self.hint: Callable[[DatabaseKey], None] | None = None
        """Is told of each commit with events; None where this process has no relay."""

    def capability(self, name: str, session: SessionCore) -> Any:
        """`outbox` or `inbox` of a session.

        Raises:
            DataError: CONFIG: the configuration has no section `outbox`.
        """
        return _MAKERS[name](self, session)

    def make_outbox(self, session: SessionCore) -> SessionOutbox:
        """`db.outbox`."""
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
            writer = self._writers[key] = OutboxWriter(lambda: self._committed(key))
        return SessionOutbox(session, writer, OutboxSettings(config.max_payload))

    def make_inbox(self, session: SessionCore) -> SessionInbox:
        """`db.inbox`."""
        return SessionInbox(session)

    def _committed(self, key: DatabaseKey) -> None:
        if self.hint is not None:
            self.hint(key)


_MAKERS: Final[Mapping[str, Callable[[Outboxes, SessionCore], Any]]] = {
    "outbox": Outboxes.make_outbox,
    "inbox": Outboxes.make_inbox,
}


def install_sites(config: Config) -> Iterator[InstallSite]:
    """Every database of a document's datasources and listed tenants, for the installation of the tables."""
    roles: dict[str, list[str]] = {}
    databases: dict[str, list[str]] = {}
    for tenant in compile_tenants(config).names.values():
        roles.setdefault(tenant.datasource, []).extend(value for name, value in tenant.settings if name == "role")
        databases.setdefault(tenant.datasource, []).append(tenant.database or tenant.name or "")
    for name, datasource in config.datasources.items():
        if datasource.driver is not None:
            continue
        url = datasource.primary.url.get_secret_value()
        admin_url = (datasource.admin or datasource.primary).url.get_secret_value()
        own = tuple(dict.fromkeys(roles.get(name, ())))
        if PLACEHOLDER not in url:
            yield InstallSite(name, admin_url, url, roles=own)
            continue
        template = control_driver().make_template(url, where=f"datasources.{name}, server 'primary'")
        for database in dict.fromkeys(databases.get(name, ())):
            filled = template.fill(database)
            admin = filled if datasource.admin is None else admin_url
            yield InstallSite(f"{name}, tenant {database}", admin, filled, dbname=template.dbname(database), roles=own)
