"""New tenants come up through the engine that migrates the others; tenants that move take their rows with them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final, LiteralString

from ..config import Config, MigrateConfig
from ..drivers.control import ControlConnection
from ..errors import DataError, DataErrorKind
from ..tenancy import Tenant
from .fan_out import Events, FanOut
from .files import Problem
from .fleet import Database, Fleet, Target, arrange
from .ledger import SHARED, ensure_ledger, read_states
from .steps import Run
from .survey import Folders, Progress, Standing, survey

logger = logging.getLogger("asgi_datasource.migrate")

_FORGET: Final[LiteralString] = (
    "delete from asgi_datasource.migration m where m.scope = %s"
    " and not exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = m.scope)"
)
"""Rows of a schema that was dropped, where a new one is empty."""


class NewTenants:
    """Migrates a tenant that is being created, and carries the rows of one that moves.

    Args:
        config: A checked configuration with a section `migrate`, or one that needs own tables, such as `outbox`.
        tell: Is called with what is worth knowing while it happens.
    """

    def __init__(self, config: Config, *, tell: Callable[[str], None] = logger.info) -> None:
        self._config = config
        self._migrate = config.migrate or MigrateConfig()
        self._tell = tell

    async def bring_up(self, tenant: Tenant) -> None:
        """Apply every migration to a new tenant's schema or database; can be repeated.

        Raises:
            DataError: One of them failed, or the shared part of the database is not at its head.
        """
        database = self._database(tenant)
        if database is None or not (database.own or database.targets):
            return
        if not database.targets:
            # Its rows are in shared tables, which are not its own to wait for.
            database = replace(database, shared=None)
        fleet = Fleet(self._config, self._migrate, (database,))
        try:
            async with database.open() as admin:
                await ensure_ledger(admin, where=database.where, reader=database.app)
                for target in database.targets:
                    await _forget_dropped(admin, target)
            found = await survey(fleet, Folders(self._migrate.engine), prepare=True)
        except Problem as problem:
            raise DataError(DataErrorKind.CONFIG, str(problem)) from None
        await self._apply(database, found)

    async def _apply(self, database: Database, found: list[Progress]) -> None:
        if database.name is None:
            # Other tenants live in this database: its shared part is theirs as well.
            for one in found:
                if not one.target.tenants and one.pending:
                    raise DataError(
                        DataErrorKind.CONFLICT,
                        f"{database.where}: its {one.target.part} part lacks {one.pending[0].label}: run migrate apply"
                        " first",
                    )
        run = Run(self._migrate.lock_timeout_s, self._tell)
        fan_out = FanOut(
            run,
            found,
            concurrency=1,
            stops_at_error=True,
            max_failures=1,
            stages=(),
            events=Events(told=self._tell),
        )
        await fan_out.go()
        for one in found:
            if one.standing is not Standing.AT_HEAD:
                raise DataError(DataErrorKind.QUERY, _why(one), sqlstate=one.sqlstate)

    async def carry(self, source: Tenant, target: Tenant) -> None:
        """Write down at a tenant's new place what has run at its old one, and create own tables; can be repeated.

        Raises:
            DataError: One of the databases cannot be reached.
        """
        old, new = self._database(source), self._database(target)
        if new is not None and new.own:
            own = replace(new, shared=None, targets=())
            await self._apply(own, await survey(Fleet(self._config, self._migrate, (own,)), Folders(), prepare=True))
        if old is None or new is None or not (old.targets and new.targets):
            return
        await self._carry_rows(old, new)

    @staticmethod
    async def _carry_rows(old_database: Database, new_database: Database) -> None:
        [old_target], [new_target] = old_database.targets, new_database.targets
        scopes = [old_target.scope] if new_database.name is None else [old_target.scope, SHARED]
        async with old_database.open() as admin:
            states = await read_states(admin, scopes)
            if not any(state.entries for state in states.values()):
                return
            rows = await admin.rows(
                "select scope, version, repeatable, kind, name, state, checksum, raw_checksum, run_id, step,"
                " started_at, ms, applied_by, tool, note from asgi_datasource.migration where scope = any(%s)",
                scopes,
            )
        async with new_database.open() as admin:
            await ensure_ledger(admin, where=new_database.where, reader=new_database.app)
            async with admin.transaction():
                await admin.rows("select set_config('search_path', 'pg_catalog', true)")
                await admin.rows("delete from asgi_datasource.migration where scope = any(%s)", scopes)
                for row in rows:
                    await admin.rows(
                        "insert into asgi_datasource.migration (nsp, scope, version, repeatable, kind, name, state,"
                        " checksum, raw_checksum, run_id, step, started_at, ms, applied_by, tool, note)"
                        " select coalesce((select oid from pg_namespace where nspname = nullif(%s, '')), 0),"
                        " %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s",
                        new_target.scope if row[0] else "",
                        *row,
                    )

    def _database(self, tenant: Tenant) -> Database | None:
        """The database of a tenant, with its schema alone; None where nothing is migrated there."""
        found = arrange(self._config, [tenant])
        return next((one for one in found if one.is_home_of(tenant)), None)


async def _forget_dropped(admin: ControlConnection, target: Target) -> None:
    async with admin.transaction():
        await admin.rows("select set_config('search_path', 'pg_catalog', true)")
        state = (await read_states(admin, [target.scope]))[target.scope]
        if state.is_foreign:
            await admin.rows(_FORGET, target.scope)


def _why(one: Progress) -> str:
    if one.findings:
        return f"{one.findings[0].message}. {one.findings[0].fix}"
    return f"{one.failed or one.pending[0].label}: {one.error or 'it was not applied'}"
