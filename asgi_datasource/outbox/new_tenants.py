"""A tenant that moves leaves no event behind, and takes along which events it has processed."""

from __future__ import annotations

import asyncio
import time
from typing import Final, LiteralString

from ..config import Config
from ..drivers.control import ControlConnection
from ..errors import DataError, DataErrorKind
from ..tenancy import Tenant
from ..tenancy.provisioning.trust import open_admin
from .sites import OutboxSite, site_of

DRAIN_LIMIT_S: Final = 30.0
"""Seconds that relays have to deliver what a tenant has published before it moves."""
_PAUSE_S: Final = 0.2

_LEFT: Final = (
    "select (select count(*) from (select from asgi_datasource.outbox limit 100000) waiting)"
    " + (select count(*) from asgi_datasource.outbox_held)"
)


_HAS_TABLES: Final[LiteralString] = "select to_regclass('asgi_datasource.inbox') is not null"

_ROWS_A_QUERY: Final = 5_000

_PROCESSED: Final[LiteralString] = (
    "select consumer, event_id, tenant, processed_at from asgi_datasource.inbox"
    " where (%s or tenant = %s) and (consumer, event_id) > (%s, %s::uuid) order by consumer, event_id limit %s"
)
"""The next rows of a tenant: all of its own database, where those of code without a tenant are its as well."""

_NOTE: Final[LiteralString] = (
    "insert into asgi_datasource.inbox (consumer, event_id, tenant, processed_at)"
    " select * from unnest(%s::text[], %s::uuid[], %s::text[], %s::timestamptz[]) on conflict do nothing"
)


class TenantOutbox:
    """Looks after the events of tenants that move.

    Args:
        config: A checked configuration with a section `outbox`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    async def drain(self, tenant: Tenant) -> None:
        """Wait until what a tenant has published is delivered, where its database, and its outbox with it, is left.

        Raises:
            DataError: CONFLICT: events still wait, are held, or are dead. The database cannot be reached.
        """
        site = site_of(self._config, tenant)
        if site is None or not site.is_of_a_tenant:
            return
        async with open_admin(site, dbname=site.dbname) as admin:
            if not await _has_tables(admin):
                return
            give_up_at = time.monotonic() + DRAIN_LIMIT_S
            while left := await _left(admin):
                if time.monotonic() >= give_up_at:
                    raise _undelivered(site, left)
                await asyncio.sleep(_PAUSE_S)

    async def carry(self, source: Tenant, target: Tenant) -> None:
        """Note at a tenant's new place which events it has processed at its old one; can be repeated.

        Otherwise an event that is delivered again after the move would be processed a second time.

        Raises:
            DataError: One of the databases cannot be reached.
        """
        old, new = site_of(self._config, source), site_of(self._config, target)
        if old is None or new is None:
            return
        async with open_admin(old, dbname=old.dbname) as admin, open_admin(new, dbname=new.dbname) as other:
            if not (await _has_tables(admin) and await _has_tables(other)):
                return
            after: tuple[str, str] = ("", "00000000-0000-0000-0000-000000000000")
            while True:
                rows = await admin.rows(_PROCESSED, old.is_of_a_tenant, source.name, *after, _ROWS_A_QUERY)
                if not rows:
                    return
                await other.rows(_NOTE, *(list(column) for column in zip(*rows, strict=True)))
                after = (str(rows[-1][0]), str(rows[-1][1]))


async def _has_tables(admin: ControlConnection) -> bool:
    [[found]] = await admin.rows(_HAS_TABLES)
    return bool(found)


async def _left(admin: ControlConnection) -> int:
    [[count]] = await admin.rows(_LEFT)
    return int(count)


def _undelivered(site: OutboxSite, left: int) -> DataError:
    return DataError(
        DataErrorKind.CONFLICT,
        f"{site.name}: {left} events are not delivered, and relays do not visit this database after the move: let a"
        " relay run, replay or discard dead events (`asgi-datasource outbox dead list`), and run the move again",
    )
