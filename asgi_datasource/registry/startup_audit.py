"""Start-up audit: whether the databases isolate the tenants.

A role that bypasses row security prevents the application from starting. A server that is down does not: it is audited
as soon as it answers, and if its role bypasses row security, its tenants are refused from then on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final, LiteralString

from ..datasource.database_fleet import Fleet
from ..datasource.datasource import DataSource
from ..drivers.statements import Statement
from ..errors import ConfigError, DataError, DataErrorKind
from ..tenancy import Catalog, CatalogState, Finding, Hole, Home, Tenant, by_database, find_holes, sample
from .runtime_config import RuntimeConfig

logger = logging.getLogger("asgi_datasource.tenancy")

START_LIMIT_S: Final = 1.0
"""Seconds that the start waits for the audit; slower servers are audited while the application runs."""

RETRY_S: Final = 2.0
"""Seconds between two attempts to audit a server that did not answer at the start."""

MOST_DATABASES: Final = 5
"""Most tenants' databases of one datasource that are audited at the start."""

MOST_LOGGED: Final = 20
"""Most findings of one datasource that are logged one by one."""

_NO_ANSWER: Final = frozenset({DataErrorKind.CONNECTION, DataErrorKind.TIMEOUT, DataErrorKind.RESOURCE})


class StartupAudit:
    """Audits the datasources of one configuration.

    Args:
        compiled: The configuration.
        catalog: The tenants of `tenants_from`.
    """

    def __init__(self, compiled: RuntimeConfig, catalog: Catalog | None) -> None:
        self._compiled = compiled
        self._catalog = catalog
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Audit every datasource that has tenants under row security or in schemas.

        Raises:
            ConfigError: Tenants run as a role that bypasses row security, and the configuration does not allow that.
        """
        names = [name for name, config in self._compiled.audits.items() if config.on_start != "off"]
        outcomes = await asyncio.gather(*(self._audit_at_start(name) for name in names))
        refusals = [refusal for refusal in outcomes if refusal is not None]
        if refusals:
            await self.stop()
            raise ConfigError("\n".join(refusals))

    async def stop(self) -> None:
        """Cancel the audits that are not finished."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    async def _audit_at_start(self, name: str) -> str | None:
        """Audit a datasource; returns why its tenants must be refused. None: they are served."""
        try:
            findings = await self._audit(name)
        except DataError as error:
            if error.kind not in _NO_ANSWER:
                logger.warning("%s: tenants could not be vetted: %s", name, error)
                return None
            logger.warning("%s: tenants are served without having been vetted: %s", name, error)
            self._tasks.append(asyncio.get_running_loop().create_task(self._audit_later(name)))
            return None
        return self._judge(name, findings)

    async def _audit_later(self, name: str) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                findings = await self._audit(name)
            except DataError:
                continue
            refusal = self._judge(name, findings)
            if refusal is not None:
                logger.critical("tenants of %s are refused from now on: %s", name, refusal)
                self._compiled.admission.refuse(name, refusal)
            return

    async def _audit(self, name: str) -> list[Finding]:
        """The findings of a datasource.

        Raises:
            DataError: CONNECTION, TIMEOUT or RESOURCE: no server answered. Others: the query failed.
        """
        if self._catalog is not None and self._catalog.state is CatalogState.UNKNOWN:
            raise DataError(DataErrorKind.CONNECTION, "those of the catalog are not known yet")
        compiled = self._compiled
        residents = compiled.residents(name)
        fleet = compiled.fleets.get(name)
        if fleet is not None:
            return await self._audit_some(name, fleet, residents)
        homes = compiled.homes(name, residents)
        if not _are_kept_apart_inside(homes):
            return []
        return await self._look_into(name, compiled.datasources[name], homes)

    async def _audit_some(self, name: str, fleet: Fleet, residents: Sequence[Tenant]) -> list[Finding]:
        """The findings of some of the databases, which mostly hold for all."""
        known = [
            (database, homes)
            for database, sharing in by_database(residents).items()
            if _are_kept_apart_inside(homes := self._compiled.homes(name, sharing))
        ]
        asked = sample(known, MOST_DATABASES)
        outcomes = await asyncio.gather(
            *(self._look_into(name, fleet.detached(database), homes) for database, homes in asked),
            return_exceptions=True,
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures and (len(failures) == len(asked) or not all(isinstance(each, DataError) for each in failures)):
            raise failures[0]
        if len(known) > len(asked) - len(failures):
            answered = len(asked) - len(failures)
            logger.info("%s: %d of its %d databases that are known were vetted", name, answered, len(known))
        # Findings about the login role, or from a template database, are the same in each.
        return list(dict.fromkeys(hole for each in outcomes if not isinstance(each, BaseException) for hole in each))

    async def _look_into(self, name: str, datasource: DataSource, homes: Sequence[Home]) -> list[Finding]:
        """The findings of one database."""
        primary = datasource.servers["primary"]
        deadline = asyncio.get_running_loop().time() + START_LIMIT_S
        connection = await primary.connect_apart(deadline=deadline)

        async def ask(sql: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
            exchange = await connection.exchange([Statement(sql, parameters, prepare=False)], deadline=deadline)
            if exchange.error is not None:
                raise primary.error_of(exchange, is_write=False) from exchange.error
            return exchange.answers(0, 1)[0].tuples()

        allowed = self._compiled.audits[name]
        try:
            return await find_holes(
                ask,
                homes,
                shared_schemas=self._compiled.shared_schemas[name],
                allowed_roles=allowed.allow_roles,
                shared_tables=allowed.shared_tables,
            )
        finally:
            connection.cut("the audit is over")

    def _judge(self, name: str, findings: Iterable[Finding]) -> str | None:
        refuses = self._compiled.audits[name].on_start == "refuse"
        reasons: list[str] = []
        others: list[str] = []
        for finding in findings:
            message = f"datasource {name}: {finding.message}. {finding.fix}"
            if finding.hole is Hole.ROLE_BYPASSES and refuses:
                reasons.append(f"{message} Or name the role in datasources.{name}.audit.allow_roles.")
            else:
                others.append(message)
        for message in others[:MOST_LOGGED]:
            logger.warning("%s", message)
        if len(others) > MOST_LOGGED:
            more = len(others) - MOST_LOGGED
            logger.warning("datasource %s: and %d more; `asgi-datasource check` lists them all", name, more)
        return "\n".join(reasons) or None


def _are_kept_apart_inside(homes: Iterable[Home]) -> bool:
    """Whether policies or schemas isolate the tenants inside a database."""
    return any(home.has_row_security or home.schema for home in homes)
