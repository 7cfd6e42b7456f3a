"""The report of a plan or a run: what stands where, as a document by `schemas/migration-report/v1.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final
from uuid import UUID

from .survey import Progress, Standing, counts


class Verdict(IntEnum):
    """What a plan or a run comes to, as the exit status of the command."""

    AT_HEAD = 0
    """Every schema has everything."""
    FAILED = 1
    """A schema has failed, or something has to be put right first."""
    PENDING = 3
    """Nothing has failed, and a schema lacks something."""


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """What a plan or a run has found and done.

    Attributes:
        command: `plan`, `check`, `status` or `apply`.
        run_id: The run, as the ledger has it; None for those that change nothing.
        seconds: How long it took.
        schemas: Every schema that was looked at.
    """

    command: str
    run_id: UUID | None
    seconds: float
    # asyncio.run calls repr() of the result of its task, of which there may be 100,000 schemas.
    schemas: tuple[Progress, ...] = field(repr=False)

    @property
    def verdict(self) -> Verdict:
        """What it comes to."""
        found = counts(self.schemas)
        if found.get(Standing.FAILED) or found.get(Standing.REFUSED):
            return Verdict.FAILED
        return Verdict.AT_HEAD if not set(found) - {Standing.AT_HEAD} else Verdict.PENDING

    @property
    def applied(self) -> int:
        """How many migrations were applied, over all schemas."""
        return sum(len(one.applied) for one in self.schemas)

    def standing(self, *standings: Standing) -> Sequence[Progress]:
        """The schemas that stand there."""
        return [one for one in self.schemas if one.standing in standings]

    def document(self) -> dict[str, Any]:
        """The report as a document."""
        found = counts(self.schemas)
        return {
            "version": 1,
            "command": self.command,
            "run_id": None if self.run_id is None else str(self.run_id),
            "seconds": round(self.seconds, 3),
            "exit_code": int(self.verdict),
            "counts": {standing.value: found.get(standing, 0) for standing in Standing},
            "schemas": [_document(one) for one in self.schemas],
        }


def _document(one: Progress) -> dict[str, Any]:
    return {
        "datasource": one.database.datasources[0],
        "database": one.database.name,
        "scope": one.target.kind.value,
        "schema": one.target.schema,
        "tenants": list(one.target.tenants),
        "standing": one.standing.value,
        "from_version": one.from_version,
        "to_version": one.version,
        "head": one.folder.head(one.target.kind),
        "applied": list(one.applied),
        "pending": [file.label for file in one.pending],
        "failed": one.failed,
        "error": one.error,
        "sqlstate": one.sqlstate,
        "waits_for": one.waits_for,
        "findings": [
            {"trouble": found.trouble.value, "label": found.label, "message": found.message, "fix": found.fix}
            for found in one.findings
        ],
        "seconds": round(one.seconds, 3),
    }


MOST_NAMED: Final = 5


def named(schemas: Sequence[Progress]) -> str:
    """The first of them, and how many more there are."""
    names = ", ".join(one.name for one in schemas[:MOST_NAMED])
    more = len(schemas) - MOST_NAMED
    return names + (f" and {more} more" if more > 0 else "")
