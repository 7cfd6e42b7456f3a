"""Whether the schemas are as far as the files of this application, at its start and while it runs.

A request pays nothing for it: what is behind is read in the background, and requests of those tenants are refused by a
look-up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ..config import Config
from ..errors import ConfigError, DataError
from ..tenancy import Admission
from .directives import Phase
from .files import Kind, Problem
from .migrator import Migrator
from .plan import Trouble
from .report import MigrationReport, named
from .survey import Progress, Standing

logger = logging.getLogger("asgi_datasource.migrate")

LOOK_EVERY_S: Final = 60.0
"""Pause between two looks while every schema is at its head."""
LOOK_AGAIN_S: Final = 5.0
"""Pause while one is behind, or a server does not answer."""

MOST_LISTED: Final = 50
"""Most schemas that a look keeps by name."""


@dataclass(frozen=True, slots=True)
class SchemaState:
    """A schema that is not at its head.

    Attributes:
        name: Its tenants, or the datasource and `shared`.
        standing: Where it stands.
        version, head: The version that it has, and that of the files.
        reason: What failed, or what has to be put right first; None while it only lacks something.
    """

    name: str
    standing: Standing
    version: int
    head: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Look:
    """What the last look at the schemas has found.

    Attributes:
        at: When it ended.
        counts: The number of schemas by where they stand.
        schemas: Those that are not at their head, at most `MOST_LISTED`.
        failure: Why the schemas could not be looked at; None if they could.
    """

    at: datetime
    counts: Counter[Standing]
    schemas: tuple[SchemaState, ...] = ()
    failure: str | None = None


_BEHIND: Final = frozenset({Trouble.UNKNOWN, Trouble.ABSENT, Trouble.OUT_OF_ORDER})


class SkewWatch:
    """Checks the schemas at the start, and holds back tenants that are behind.

    Args:
        config: A checked configuration with a section `migrate`.
        admission: Refuses requests of tenants that are behind.
    """

    def __init__(self, config: Config, admission: Admission) -> None:
        if config.migrate is None:
            raise ConfigError("there is no section migrate in the document")
        self._config = config
        self._at_startup = config.migrate.at_startup
        self._refuses = config.migrate.behind == "refuse"
        self._admission = admission
        self._task: asyncio.Task[None] | None = None
        self.looks = 0
        """How often the schemas were looked at."""
        self.last: Look | None = None
        """What the last look has found; None before the first."""

    async def start(self) -> None:
        """Check, or apply, what is pending; then watch, where tenants behind are refused.

        Raises:
            ConfigError: Migrations are pending that the application needs, or one has failed.
        """
        report = None if self._at_startup == "off" and not self._refuses else await self._first()
        if report is not None and self._at_startup != "off":
            blocking = self._blocking(report.schemas)
            if blocking:
                raise ConfigError(_refusal(blocking))
        if self._refuses:
            self._task = asyncio.get_running_loop().create_task(self._watch(is_well=self._take(report)))

    async def stop(self) -> None:
        """Watch no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=1.0)

    async def refresh(self) -> bool:
        """Look at the schemas now; returns whether all are at their head.

        Raises:
            DataError: A database cannot be reached.
        """
        report = await self._look()
        if not self._refuses:
            return not any(map(is_behind, report.schemas))
        return self._take(report)

    async def _first(self) -> MigrationReport | None:
        try:
            if self._at_startup == "apply":
                report = await Migrator(self._config).apply()
                if report.applied:
                    logger.info("%d migrations applied in %.1f s", report.applied, report.seconds)
                self.looks += 1
                self.last = _look_of(report)
                return report
            return await self._look()
        except Problem as problem:
            raise ConfigError(f"migrate: {problem}") from None
        except DataError as error:
            self.last = _failed_look(error)
            logger.warning("the schemas could not be checked for pending migrations: %s", error)
            return None

    async def _look(self) -> MigrationReport:
        self.looks += 1
        try:
            report = await Migrator(self._config).plan()
        except Problem as problem:
            raise ConfigError(f"migrate: {problem}") from None
        self.last = _look_of(report)
        return report

    def _blocking(self, schemas: Sequence[Progress]) -> list[Progress]:
        """What keeps the application from starting: tenants do not where they are refused one by one."""
        return [one for one in schemas if is_behind(one) and not (self._refuses and one.target.tenants)]

    async def _watch(self, *, is_well: bool) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S if is_well else LOOK_AGAIN_S)
            try:
                is_well = await self.refresh()
            except (DataError, ConfigError) as error:
                is_well = False
                self.last = _failed_look(error)
                logger.warning("the versions of the schemas could not be read: %s", error)

    def _take(self, report: MigrationReport | None) -> bool:
        """Hold back who is behind; returns whether nothing is."""
        if report is None:
            return False
        behind = [one for one in report.schemas if is_behind(one)]
        tenants = {name: _reason(one) for one in behind for name in one.target.tenants}
        datasources = {
            name: _reason(one) for one in behind if not one.target.tenants for name in one.database.datasources
        }
        self._admission.hold_back(tenants, datasources)
        return not behind


def is_behind(one: Progress) -> bool:
    """Whether a schema lacks what the application needs; migrations of the contract phase are not needed."""
    if one.standing is Standing.MOVING:
        return False
    if any(finding.trouble in _BEHIND for finding in one.findings):
        return True
    for file in one.pending:
        if file.directives.phase is Phase.CONTRACT:
            return False
        if file.kind is not Kind.REPEATABLE or not one.version:
            return True
    return False


def _look_of(report: MigrationReport) -> Look:
    others = [one for one in report.schemas if one.standing is not Standing.AT_HEAD]
    return Look(
        datetime.now(UTC),
        Counter(one.standing for one in report.schemas),
        tuple([_state_of(one) for one in others[:MOST_LISTED]]),
    )


def _state_of(one: Progress) -> SchemaState:
    reason = one.error if one.failed is None else f"{one.failed} failed: {one.error}"
    if reason is None and one.findings:
        reason = one.findings[0].message
    return SchemaState(one.name, one.standing, one.version, one.folder.head(one.target.kind), reason)


def _failed_look(error: DataError) -> Look:
    return Look(datetime.now(UTC), Counter(), failure=error.message)


def _reason(one: Progress) -> str:
    head = one.folder.head(one.target.kind)
    return f"the schema is at version {one.version}, and this application needs {head}; try again later"


def _refusal(blocking: Sequence[Progress]) -> str:
    failed = [one for one in blocking if one.standing is Standing.FAILED]
    if failed:
        return f"migrate: {failed[0].failed} failed for {failed[0].name}: {failed[0].error}"
    return (
        f"migrate: {len(blocking)} schemas are behind the files of this application: {named(blocking)}. Run"
        " asgi-datasource migrate apply before it starts; or set migrate.at_startup: apply"
    )
