"""The operations of `asgi-datasource migrate`, for commands, the start of the application and provisioning."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from time import perf_counter
from typing import Final, LiteralString

from ..config import Config
from ..drivers.control import ControlConnection
from ..errors import DataError, DataErrorKind
from .fan_out import Events, FanOut
from .files import Kind, Migration, Problem, Scope
from .fleet import Database, Fleet, find_fleet
from .ledger import WRITE, EntryState, lock_key, row_values
from .own_tables import own_tables
from .plan import Trouble, first_contract
from .report import MigrationReport
from .steps import Outcome, Run, StepFailed, open_worker, take_back
from .survey import Folders, Progress, survey, unknown_tenants

MOST_ROUNDS: Final = 100
"""How often the tenants are read again for those that were created meanwhile."""


def has_migrations(config: Config) -> bool:
    """Whether a document has anything to migrate: files of the application, or own tables."""
    return config.migrate is not None or bool(own_tables(config))


class Migrator:
    """Plans and applies the migrations of a document.

    Args:
        config: A checked configuration with a section `migrate`, or one that needs own tables, such as `outbox`.
        events: What is told while a run lasts.
    """

    def __init__(self, config: Config, *, events: Events | None = None) -> None:
        self._config = config
        self._events = events or Events()
        self._folders = Folders("sql" if config.migrate is None else config.migrate.engine)

    async def plan(self, *, tenants: Collection[str] | None = None, command: str = "plan") -> MigrationReport:
        """How far every schema is. Changes nothing.

        Args:
            tenants: Look at these only; None is all, and the shared parts.
            command: The name in the report.

        Raises:
            Problem: A folder cannot be used.
            DataError: A database cannot be reached; TENANT: there is no such tenant.
        """
        began = perf_counter()
        _, found = await self._survey(tenants)
        return MigrationReport(command, None, perf_counter() - began, tuple(one for one in found if one.is_selected))

    async def apply(
        self,
        *,
        tenants: Collection[str] | None = None,
        concurrency: int | None = None,
        expand_only: bool = False,
        up_to: int | None = None,
    ) -> MigrationReport:
        """Apply what is pending. Cut short, it goes on where it stopped when it is called again.

        Args:
            tenants: These only; None is all, and the shared parts.
            concurrency: Tenants of a datasource at a time; None takes the configuration's.
            expand_only: Stop before the first migration of the contract phase.
            up_to: Leave out versions above.

        Raises:
            Problem: A folder cannot be used.
            DataError: A database cannot be reached; TENANT: there is no such tenant. What fails in a schema stands in
                the report.
        """
        began = perf_counter()
        skipped: set[int] = set()

        def wanted(one: Progress) -> list[Migration]:
            pending = one.pending
            if expand_only and (contract := first_contract(pending)) is not None:
                # What is behind it runs behind it: a version is never run below one that has run.
                pending = pending[: pending.index(contract)]
            # The versions of own tables are not those of the application's files.
            return [file for file in pending if up_to is None or one.target.own is not None or file.version <= up_to]

        fleet, everything = await self._survey(tenants, prepare=True)
        run = Run(fleet.migrate.lock_timeout_s, self._events.told)

        async def look_again(absent: Sequence[Progress]) -> None:
            for one, found in await self._survey_again(fleet, absent):
                one.version, one.from_version, one.findings = found.version, found.version, found.findings
                one.pending = found.pending
                one.pending = wanted(one)

        for _ in range(MOST_ROUNDS):
            _leave_out(everything, wanted, skipped)
            self._events.began(sum(1 for one in everything if one.is_selected and one.pending))
            await self._fan_out(run, fleet, everything, concurrency, look_again).go()
            if tenants is not None:
                break
            fleet, more = await self._newcomers(everything)
            if not any(one.pending for one in more):
                everything += more
                break
            everything += more
        found = tuple(one for one in everything if one.is_selected)
        return MigrationReport("apply", run.id, perf_counter() - began, found)

    async def _survey_again(self, fleet: Fleet, members: Sequence[Progress]) -> list[tuple[Progress, Progress]]:
        """How far some schemas are now, each with what was known of it."""
        pairs: list[tuple[Progress, Progress]] = []
        for database, of_database in _by_database(members):
            part = replace(database, own=(), targets=tuple(one.target for one in of_database))
            found = await survey(Fleet(fleet.config, fleet.migrate, (part,)), self._folders, prepare=True)
            now = {one.target.scope: one for one in found if one.target.tenants}
            pairs += [(one, now[one.target.scope]) for one in of_database]
        return pairs

    def _fan_out(
        self,
        run: Run,
        fleet: Fleet,
        everything: list[Progress],
        concurrency: int | None,
        look_again: Callable[[Sequence[Progress]], Awaitable[None]],
    ) -> FanOut:
        migrate = fleet.migrate
        return FanOut(
            run,
            everything,
            concurrency=concurrency or migrate.concurrency,
            stops_at_error=migrate.on_error == "stop",
            max_failures=migrate.max_failures,
            stages=migrate.stages,
            events=self._events,
            look_again=look_again,
        )

    async def _survey(self, tenants: Collection[str] | None, *, prepare: bool = False) -> tuple[Fleet, list[Progress]]:
        fleet = await find_fleet(self._config)
        found = await survey(fleet, self._folders, tenants=tenants, prepare=prepare)
        absent = unknown_tenants(found, fleet, tenants or ())
        if absent:
            raise DataError(
                DataErrorKind.TENANT,
                f"there is no tenant {absent[0]!r} with a schema or database of its own",
                http_status=404,
            )
        return fleet, found

    async def _newcomers(self, everything: Sequence[Progress]) -> tuple[Fleet, list[Progress]]:
        """Tenants that were created while the run lasted."""
        fleet = await find_fleet(self._config)
        known = {(one.database.url, one.database.dbname, one.target.scope) for one in everything}
        new = tuple(
            database
            for database in fleet.databases
            if any(
                (database.url, database.dbname, target.scope) not in known
                for target in (*database.own, *database.targets)
            )
        )
        if not new:
            return fleet, []
        partial = Fleet(fleet.config, fleet.migrate, new)
        skip = [(one.database, one.target.scope) for one in everything]
        return fleet, await survey(partial, self._folders, prepare=True, skip=skip)

    async def down(
        self, to: int, *, scope: Scope = Scope.TENANT, tenants: Collection[str] | None = None, plans_only: bool = False
    ) -> list[Progress]:
        """Take migrations back, the highest first, each with its row in one transaction.

        Args:
            to: The version that stays the highest.
            scope: Which migrations.
            tenants: These only; None is all.
            plans_only: Only say what would be taken back, in `applied` of the result.

        Returns:
            The schemas that have something to take back. The first failure ends it.

        Raises:
            Problem: A migration has nothing that takes it back.
            DataError: One of them failed; those before are taken back.
        """
        self._refuse_alembic("alembic downgrade")
        fleet, everything = await self._survey(tenants, prepare=not plans_only)
        found: list[tuple[Progress, list[Migration]]] = []
        for one in everything:
            if one.is_selected and one.target.kind is scope and one.target.own is None:
                _refuse_findings(one)
                files = [file for file in reversed(one.folder.versioned(scope)) if to < file.version <= one.version]
                back = [file for file in files if file not in one.pending]
                for file in back:
                    if file.down is None and not file.is_python:
                        fix = f"Write {file.path.with_suffix('').name}.down.sql."
                        raise Problem(file.path, "nothing takes it back", fix=fix)
                if back:
                    found.append((one, back))
        if not plans_only:
            await self._take_back(Run(fleet.migrate.lock_timeout_s, self._events.told), found)
        else:
            for one, back in found:
                one.applied = [file.label for file in back]
        return [one for one, _ in found]

    @staticmethod
    async def _take_back(run: Run, found: Sequence[tuple[Progress, list[Migration]]]) -> None:
        for one, back in found:
            async with open_worker(run, one.database) as worker:
                for file in back:
                    try:
                        outcome = await take_back(worker, one.target, file)
                    except StepFailed as failure:
                        raise DataError(DataErrorKind.QUERY, f"{one.name}: {failure}") from failure
                    if outcome is Outcome.BUSY:
                        raise DataError(DataErrorKind.CONFLICT, f"{one.name}: another process migrates it now")
                    one.applied.append(file.label)

    def _refuse_alembic(self, command: str) -> None:
        if self._config.migrate is not None and self._config.migrate.engine == "alembic":
            raise DataError(DataErrorKind.CONFIG, f"with engine: alembic, this is what {command} does")

    # -- the ledger by hand

    async def baseline(self, version: int, *, tenants: Collection[str] | None = None) -> list[Progress]:
        """Have schemas that were never migrated count as having all versions up to one; nothing runs.

        Args:
            version: That version.
            tenants: These only; None is all, and the shared parts.

        Returns:
            The schemas that were written down.
        """
        self._refuse_alembic("alembic stamp")
        _, everything = await self._survey(tenants, prepare=True)
        found = [one for one in everything if one.is_selected and one.target.own is None and one.version == 0]
        for one in found:
            if any(finding.trouble is Trouble.ABSENT for finding in one.findings):
                raise DataError(DataErrorKind.CONFIG, f"{one.name}: there is no schema {one.target.schema!r}")
            versions = {file.version: file for file in one.folder.versioned(one.target.kind)}
            if versions and version > max(versions):
                raise DataError(
                    DataErrorKind.CONFIG,
                    f"there is no version {version} in {one.folder.path}/{one.target.kind.value}: the highest is"
                    f" {max(versions)}",
                )
        run = Run()
        for database, members in _by_database(found):
            async with database.open() as admin:
                for one in members:
                    await self._write_baseline(admin, one, version, run)
        return found

    @staticmethod
    async def _write_baseline(admin: ControlConnection, one: Progress, version: int, run: Run) -> None:
        scope = one.target.scope
        async with _under_lock(admin, scope):
            oid = await _oid(admin, one)
            entry = {
                "version": version,
                "repeatable": "",
                "kind": Kind.BASELINE.value,
                "name": "baseline",
                "oid": oid,
                "state": EntryState.BASELINED.value,
                "checksum": b"",
                "raw_checksum": b"",
                "run_id": str(run.id),
            }
            await admin.batch(admin.compose(WRITE, **row_values(scope, entry)))

    async def repair(
        self,
        *,
        tenants: Collection[str] | None = None,
        accept: bool = False,
        adopt: bool = False,
        forget: bool = False,
    ) -> list[str]:
        """Put the ledger right. What it said before is kept in its column `note`.

        Args:
            tenants: These only; None is all, and the shared parts.
            accept: Take the present files for those that have run.
            adopt: Take schemas that were restored or created again for those that were migrated.
            forget: Delete the rows of schemas that were created again, empty.

        Returns:
            What was changed, a line each.
        """
        self._refuse_alembic("alembic stamp")
        _, everything = await self._survey(tenants, prepare=True)
        lines: list[str] = []
        for database, members in _by_database([one for one in everything if one.is_selected and one.findings]):
            async with database.open() as admin:
                for one in members:
                    for finding in one.findings:
                        if finding.trouble is Trouble.DRIFT and accept:
                            lines += await self._accept(admin, one, finding.label)
                    is_foreign = one.version == 0 and any(
                        finding.trouble is Trouble.UNKNOWN for finding in one.findings
                    )
                    if is_foreign and (adopt or forget):
                        lines += await self._take(admin, one, forget=forget)
        return lines

    @staticmethod
    async def _accept(admin: ControlConnection, one: Progress, label: str) -> list[str]:
        [file] = [file for file in one.folder if file.label == label and file.scope is one.target.kind]
        async with _under_lock(admin, one.target.scope):
            await admin.rows(
                "update asgi_datasource.migration set checksum = %s, raw_checksum = %s,"
                " note = concat_ws('; ', note, 'accepted ' || now()::date || ' instead of ' || encode(checksum, 'hex'))"
                " where scope = %s and version = %s and kind = %s",
                file.checksum,
                file.raw_checksum,
                one.target.scope,
                file.version,
                file.kind.value,
            )
        return [f"{one.name}: {label}: the present file counts as the one that has run"]

    @staticmethod
    async def _take(admin: ControlConnection, one: Progress, *, forget: bool) -> list[str]:
        async with _under_lock(admin, one.target.scope):
            if forget:
                rows = await admin.rows(
                    "delete from asgi_datasource.migration where scope = %s returning 1", one.target.scope
                )
                return [f"{one.name}: {len(rows)} rows deleted"] if rows else []
            rows = await admin.rows(
                "update asgi_datasource.migration set nsp = %s,"
                " note = concat_ws('; ', note, 'adopted ' || now()::date || ' from oid ' || nsp)"
                " where scope = %s returning 1",
                await _oid(admin, one),
                one.target.scope,
            )
        return [f"{one.name}: counts as the schema that was migrated ({len(rows)} rows)"] if rows else []


def _refuse_findings(one: Progress) -> None:
    for finding in one.findings:
        if finding.trouble in (Trouble.UNKNOWN, Trouble.ABSENT):
            raise DataError(DataErrorKind.CONFLICT, f"{one.name}: {finding.message}. {finding.fix}")


def _leave_out(
    everything: Sequence[Progress], wanted: Callable[[Progress], list[Migration]], skipped: set[int]
) -> None:
    """Take out of what is pending what is not to be run in this run."""
    for one in everything:
        if id(one) not in skipped:
            skipped.add(id(one))
            one.pending = wanted(one)


_LOCK: Final[LiteralString] = "select pg_advisory_xact_lock(hashtextextended(%s, 0))"


@asynccontextmanager
async def _under_lock(admin: ControlConnection, scope: str) -> AsyncGenerator[None]:
    """A transaction in which no step of the scope runs."""
    async with admin.transaction():
        await admin.rows(
            "select set_config('search_path', 'pg_catalog', true), set_config('lock_timeout', '30s', true)"
        )
        await admin.rows(_LOCK, lock_key(scope))
        yield


async def _oid(admin: ControlConnection, one: Progress) -> int:
    if not one.target.tenants:
        return 0
    rows = await admin.rows("select oid::int8 from pg_namespace where nspname = %s", one.target.schema)
    if not rows:
        raise DataError(DataErrorKind.CONFIG, f"{one.name}: there is no schema {one.target.schema!r}")
    return int(rows[0][0])


def _by_database(members: Sequence[Progress]) -> list[tuple[Database, list[Progress]]]:
    found: dict[int, tuple[Database, list[Progress]]] = {}
    for one in members:
        found.setdefault(id(one.database), (one.database, []))[1].append(one)
    return list(found.values())
