"""What a schema lacks, and what is wrong with it: files minus ledger, without I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from .directives import Phase
from .files import Folder, Kind, Migration, Scope
from .ledger import Entry, EntryState, ScopeState, done_versions


class Trouble(StrEnum):
    """Why a schema is not migrated."""

    DRIFT = "drift"
    """A file is another one than the one that has run."""
    OUT_OF_ORDER = "out_of_order"
    """A file below the highest version that has run has not run: it was merged late."""
    MISSING = "missing"
    """A version has run whose file is not there."""
    UNKNOWN = "unknown"
    """The schema is another one than the one that was migrated, or has tables and was never migrated."""
    ABSENT = "absent"
    """There is no such schema."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that has to be put right before a schema is migrated.

    Attributes:
        trouble: The kind.
        label: The file or version; empty where it is about the schema.
        message: What is wrong.
        fix: What to do.
    """

    trouble: Trouble
    label: str
    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class ScopePlan:
    """What one schema lacks.

    Attributes:
        version: The highest version that it has.
        pending: What it lacks, in the order in which it is run.
        findings: What keeps it from being migrated.
    """

    version: int = 0
    pending: tuple[Migration, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def is_at_head(self) -> bool:
        """Whether nothing is missing and nothing is wrong."""
        return not self.pending and not self.findings


@dataclass(frozen=True, slots=True)
class Rules:
    """What the configuration says of the order of migrations.

    Attributes:
        allows_out_of_order: Run migrations below the highest one that has run.
        ignores_missing: Accept versions without a file.
    """

    allows_out_of_order: bool = False
    ignores_missing: bool = False


_UNKNOWN: Final = Finding(
    Trouble.UNKNOWN,
    "",
    "the schema is not the one that was migrated: it was dropped and created again, or restored from a dump",
    "If it has all that the ledger says, run migrate repair --adopt for it; if it is empty, migrate repair --forget.",
)
_STRANGE: Final = Finding(
    Trouble.UNKNOWN,
    "",
    "the schema has tables, and the ledger knows nothing of it",
    "Run migrate baseline --version N for the version that its tables are at.",
)
_ABSENT: Final = Finding(
    Trouble.ABSENT,
    "",
    "there is no such schema",
    "Create the tenant with asgi-datasource tenants create, or take it out of the document.",
)


def plan_scope(folder: Folder, scope: Scope, state: ScopeState, rules: Rules) -> ScopePlan:
    """What a schema lacks.

    Args:
        folder: The files.
        scope: Which of them.
        state: What the database says.
        rules: What the configuration says.
    """
    if state.oid is None:
        return ScopePlan(findings=(_ABSENT,))
    if state.is_foreign:
        return ScopePlan(findings=(_UNKNOWN,))
    if scope is Scope.TENANT and not state.entries and state.has_objects and folder.has(scope):
        return ScopePlan(findings=(_STRANGE,))
    return _plan_entries(_Key(folder), scope, state.entries, rules)


@dataclass(frozen=True, slots=True, eq=False)
class _Key:
    """A folder as the key of a cache: by identity, since comparing files would read them all."""

    folder: Folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.folder is self.folder

    def __hash__(self) -> int:
        return id(self.folder)


@lru_cache(maxsize=512)
def _plan_entries(key: _Key, scope: Scope, entries: tuple[Entry, ...], rules: Rules) -> ScopePlan:
    """The plan of all schemas with the same rows, which are most of them."""
    folder = key.folder
    files = folder.versioned(scope)
    covered, done = done_versions(entries)
    findings = [*_drift(folder, scope, entries)]
    if not rules.ignores_missing:
        findings += _missing(folder, scope, entries)
    pending: list[Migration] = []
    baseline = folder.baseline(scope)
    if baseline is not None and not entries:
        pending.append(baseline)
        covered = baseline.version
    pending += [file for file in files if file.version > covered and file.version not in done]
    highest = max(covered if entries else 0, *done, 0)
    if not rules.allows_out_of_order:
        findings += [_late(file, highest) for file in pending if 0 < file.version < highest]
    known = {entry.name: entry for entry in entries if entry.kind is Kind.REPEATABLE}
    for file in folder.repeatable(scope):
        entry = known.get(file.name)
        if entry is None or entry.checksum != file.checksum or not entry.is_done:
            pending.append(file)
    return ScopePlan(highest, tuple(pending), tuple(findings))


def _drift(folder: Folder, scope: Scope, entries: Sequence[Entry]) -> Iterator[Finding]:
    files = {
        (file.kind, file.version): file for file in (*folder.versioned(scope), *folder.baselines) if file.scope is scope
    }
    for entry in entries:
        file = files.get((entry.kind, entry.version))
        if file is None or entry.state is EntryState.BASELINED or file.checksum == entry.checksum:
            continue
        if entry.state is EntryState.FAILED and not file.directives.is_transactional:
            # It has stopped half way; what was wrong in it has been put right.
            continue
        yield Finding(
            Trouble.DRIFT,
            file.label,
            f"{file.path} is not what has run as version {entry.version}: its statements have changed since",
            "Take the change back and write it as a new migration; or, where the schemas have it already, record it"
            " with migrate repair --accept.",
        )


def _missing(folder: Folder, scope: Scope, entries: Sequence[Entry]) -> Iterator[Finding]:
    there = {file.version for file in folder.versioned(scope)}
    baseline = folder.baseline(scope)
    oldest = 0 if baseline is None else baseline.version
    for entry in entries:
        if entry.kind is Kind.VERSIONED and entry.version not in there and entry.version > oldest:
            yield Finding(
                Trouble.MISSING,
                f"{entry.version}_{entry.name}",
                f"version {entry.version} ({entry.name}) has run and has no file in {folder.path}/{scope.value}",
                "Deploy the version of the application that has it; or set migrate.missing: ignore.",
            )


def _late(file: Migration, highest: int) -> Finding:
    return Finding(
        Trouble.OUT_OF_ORDER,
        file.label,
        f"{file.path} is below version {highest}, which has run already: it was merged late",
        "Give it the next version (migrate new NAME); or set migrate.out_of_order: allow.",
    )


def first_contract(pending: Sequence[Migration]) -> Migration | None:
    """The first pending migration that waits for all other tenants."""
    return next((file for file in pending if file.directives.phase is Phase.CONTRACT), None)
