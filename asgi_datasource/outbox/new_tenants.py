"""New tenants may publish: their database gets the tables, and their role the rights; a move leaves no event behind."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from ..config import Config
from ..drivers.control import ControlConnection
from ..errors import DataError, DataErrorKind
from ..tenancy import Tenant
from ..tenancy.provisioning.trust import open_admin
from .install import InstallSite, grant_writers, has_tables, install
from .sites import site_of

DRAIN_LIMIT_S: Final = 30.0
"""Seconds that relays have to deliver what a tenant has published before it moves."""
_PAUSE_S: Final = 0.2

_LEFT: Final = (
    "select (select count(*) from (select from asgi_datasource.outbox limit 100000) waiting)"
    " + (select count(*) from asgi_datasource.outbox_held)"
)


class TenantOutbox:
    """Prepares the places of tenants for the outbox.

    Args:
        config: A checked configuration with a section `outbox`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    async def bring_up(self, tenant: Tenant) -> None:
        """Create the tables in the tenant's database where they are missing, and let its role write; can be repeated.

        Raises:
            DataError: The database cannot be reached, or the login may not do that.
        """
        site = site_of(self._config, tenant)
        if site is None:
            return
        async with open_admin(site, dbname=site.dbname) as admin:
            is_there = await has_tables(admin)
            if is_there:
                await grant_writers(admin, site.roles)
        if not is_there:
            await install(site)

    async def drain(self, tenant: Tenant) -> None:
        """Wait until what a tenant has published is delivered, where its database, and its outbox with it, is left.

        Raises:
            DataError: CONFLICT: events still wait, are held, or are dead. The database cannot be reached.
        """
        site = site_of(self._config, tenant)
        if site is None or not site.is_of_a_tenant:
            return
        async with open_admin(site, dbname=site.dbname) as admin:
            if not await has_tables(admin):
                return
            give_up_at = time.monotonic() + DRAIN_LIMIT_S
            while left := await _left(admin):
                if time.monotonic() >= give_up_at:
                    raise _undelivered(site, left)
                await asyncio.sleep(_PAUSE_S)


async def _left(admin: ControlConnection) -> int:
    [[count]] = await admin.rows(_LEFT)
    return int(count)


def _undelivered(site: InstallSite, left: int) -> DataError:
    return DataError(
        DataErrorKind.CONFLICT,
        f"{site.name}: {left} events are not delivered, and relays do not visit this database after the move: let a"
        " relay run, replay or discard dead events (`asgi-datasource outbox dead list`), and run the move again",
    )
