"""How far every schema is: one connection and at most a few statements for each database."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from ..drivers.control import ControlConnection
from .alembic_engine import AlembicFolder, read_revisions, read_scripts, serves
from .directives import Phase
from .files import Folder, Kind, Migration, read_folder
from .fleet import Database, Fleet, Target
from .ledger import ScopeState, ensure_ledger, read_states
from .plan import Finding, Rules, ScopePlan, plan_scope

DATABASES_AT_A_TIME: Final = 8


class Standing(StrEnum):
    """Where a schema stands."""

    AT_HEAD = "at_head"
    """It has everything."""
    PENDING = "pending"
    """It lacks something, and nothing keeps it from being run."""
    WAITING = "waiting"
    """What it lacks is of the contract phase, and another tenant has not all migrations before."""
    REFUSED = "refused"
    """Something has to be put right first: a changed file, a late merge, an unknown schema."""
    FAILED = "failed"
    """A migration has failed there."""
    MOVING = "moving"
    """Its tenant is being moved to another datasource."""


@dataclass(slots=True, eq=False, repr=False)
class Progress:
    """One schema during a run.

    Attributes:
        database, target: The schema.
        folder: Its files.
        version: The highest version that it has.
        pending: What it lacks, in order; what has run is taken out.
        findings: What keeps it from being migrated.
        from_version: Its version at the beginning.
        applied: What this run has applied.
        failed: The migration that has failed.
        error: Why; or why nothing was tried.
        sqlstate: The server's code.
        waits_for: The schema that a contract migration waits for.
        seconds: How long it was worked on.
        is_selected: It belongs to the tenants that the command was called for.
    """

    database: Database
    target: Target
    folder: Folder
    version: int
    pending: list[Migration]
    findings: tuple[Finding, ...] = ()
    from_version: int = 0
    applied: list[str] = field(default_factory=list[str])
    failed: str | None = None
    error: str | None = None
    sqlstate: str | None = None
    waits_for: str | None = None
    seconds: float = 0.0
    is_selected: bool = True

    def __repr__(self) -> str:
        return f"<Progress {self.name}: {self.standing.value}, version {self.version}>"

    @property
    def name(self) -> str:
        """For messages: the tenants, or the datasource and the part of its database."""
        return ", ".join(self.target.tenants) or f"{self.database.datasources[0]} ({self.target.part})"

    @property
    def standing(self) -> Standing:
        """Where it stands now."""
        if self.failed is not None:
            return Standing.FAILED
        if self.findings:
            return Standing.REFUSED
        if not self.pending:
            return Standing.AT_HEAD
        if self.target.is_moving:
            return Standing.MOVING
        return Standing.WAITING if self.waits_for is not None else Standing.PENDING

    @property
    def next(self) -> Migration | None:
        """What runs next; None where nothing does."""
        return self.pending[0] if self.pending and self.standing in (Standing.PENDING, Standing.WAITING) else None

    def lacks_before(self, contract: Migration) -> bool:
        """Whether it lacks a migration before one of the contract phase."""
        if self.findings:
            return True
        return any(0 < file.version < contract.version and file.kind is Kind.VERSIONED for file in self.pending)

    def has_run(self, migration: Migration, *, by_us: bool) -> None:
        """Take the next migration out of what is pending."""
        self.pending.remove(migration)
        self.version = max(self.version, migration.version)
        if by_us:
            self.applied.append(migration.label)


class Folders:
    """Reads each folder of migrations once.

    Args:
        engine: `sql` or `alembic`.
    """

    def __init__(self, engine: str = "sql") -> None:
        self._read: dict[Path, Folder] = {}
        self._engine = engine

    def of(self, path: Path) -> Folder:
        """A folder.

        Raises:
            Problem: It cannot be used.
        """
        if path not in self._read:
            self._read[path] = read_folder(path) if self._engine == "sql" else read_scripts(path)
        return self._read[path]


async def survey(
    fleet: Fleet,
    folders: Folders,
    *,
    tenants: Collection[str] | None = None,
    prepare: bool = False,
    skip: Collection[tuple[Database, str]] = (),
) -> list[Progress]:
    """How far every schema is, databases in their order, the shared part of each first.

    Args:
        fleet: Everything that is migrated.
        folders: The files.
        tenants: Those that the command was called for; None is all, and the shared parts.
        prepare: Create the ledger where it is missing, and refuse a database whose schemas another role could use to
            run code with the rights of this one.
        skip: Schemas that are known already.

    Raises:
        Problem: A folder cannot be used.
        DataError: A database cannot be reached, or refuses.
    """
    # Alembic's graph says what is missing, whatever the order in which revisions were merged.
    is_graph = fleet.migrate.engine == "alembic"
    rules = Rules(is_graph or fleet.migrate.out_of_order == "allow", fleet.migrate.missing == "ignore")
    limit = asyncio.Semaphore(DATABASES_AT_A_TIME)
    known = {(database.url, database.dbname, scope) for database, scope in skip}

    async def look(database: Database) -> list[Progress]:
        wanted = [
            (target, folder)
            for target, folder in _with_folders(fleet, folders, database)
            if (database.url, database.dbname, target.scope) not in known
        ]
        if not wanted:
            return []
        async with limit, database.open() as admin:
            if prepare:
                await database.check_trust(admin, [target for target, _ in wanted])
                if any(not isinstance(folder, AlembicFolder) for _, folder in wanted):
                    await ensure_ledger(admin, where=database.where, reader=database.app)
            states = await _read_all(admin, wanted)
            plans = [(one, folder, plan_scope(folder, one.kind, states[one.scope], rules)) for one, folder in wanted]
            if prepare:
                for target, _, plan in plans:
                    if target.own is not None and plan.is_at_head:
                        await target.own.grant(admin, database.app, database.roles)
        return [_progress(database, target, folder, plan, tenants) for target, folder, plan in plans]

    found = await asyncio.gather(*(look(database) for database in fleet.databases), return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [progress for part in found if not isinstance(part, BaseException) for progress in part]


def _with_folders(fleet: Fleet, folders: Folders, database: Database) -> Iterator[tuple[Target, Folder]]:
    """What a database has migrated, with the files of each."""
    for target in database.own:
        if target.own is not None:
            yield target, target.own.folder
    if database.shared is not None:
        folder = folders.of(fleet.folder_of(database))
        for target in (database.shared, *database.targets):
            if serves(folder, database, target):
                yield target, folder


async def _read_all(admin: ControlConnection, wanted: Sequence[tuple[Target, Folder]]) -> dict[str, ScopeState]:
    """What a database says of its parts, by the ledger and by Alembic's tables."""
    states: dict[str, ScopeState] = {}
    by_alembic = {id(folder): folder for _, folder in wanted if isinstance(folder, AlembicFolder)}
    for folder in by_alembic.values():
        states |= await read_revisions(admin, folder, [target for target, served in wanted if served is folder])
    in_ledger = [target.scope for target, folder in wanted if not isinstance(folder, AlembicFolder)]
    if in_ledger:
        states |= await read_states(admin, in_ledger)
    return states


def _progress(
    database: Database,
    target: Target,
    folder: Folder,
    plan: ScopePlan,
    tenants: Collection[str] | None,
) -> Progress:
    is_selected = tenants is None or any(name in tenants for name in target.tenants)
    return Progress(
        database,
        target,
        folder,
        plan.version,
        list(plan.pending),
        plan.findings,
        plan.version,
        is_selected=is_selected,
    )


def waits_for(contract: Migration, progress: Progress, everything: Iterable[Progress]) -> str | None:
    """The schema that a contract migration has to wait for; None where it may run."""
    if contract.directives.phase is not Phase.CONTRACT:
        return None
    for other in everything:
        is_alike = other.folder is progress.folder and other.target.kind is progress.target.kind
        if is_alike and other is not progress and (other.lacks_before(contract) or other.failed is not None):
            return other.name
    return None


def unknown_tenants(everything: Iterable[Progress], fleet: Fleet, tenants: Collection[str]) -> list[str]:
    """Names that no tenant with a schema or database has."""
    known = set(fleet.tenants())
    return [name for name in tenants if name not in known]


def counts(everything: Iterable[Progress]) -> dict[Standing, int]:
    """How many schemas stand where."""
    found: dict[Standing, int] = {}
    for progress in everything:
        found[progress.standing] = found.get(progress.standing, 0) + 1
    return found
