"""Before tenants are trusted to a database: does it keep them apart?

A role that bypasses row security keeps the application from starting. A server that is down does not: it is asked again
until it answers, and when the role turns out to be such a one then, tenants there are refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final, LiteralString

from .background import BackgroundTasks
from .compiled import Compiled
from .drivers.psycopg import Statement
from .errors import ConfigError, DataError, DataErrorKind
from .tenancy import Finding, Hole, find_holes

logger = logging.getLogger("asgi_datasource.tenancy")

START_LIMIT_S: Final = 1.0
"""Seconds that the start waits for an answer; whoever takes longer is asked again while the application runs."""

RETRY_S: Final = 2.0
"""Seconds between two attempts to ask a server that did not answer at the start."""

_NO_ANSWER: Final = frozenset({DataErrorKind.CONNECTION, DataErrorKind.TIMEOUT, DataErrorKind.RESOURCE})


class Vetting:
    """Vets the datasources of one configuration."""

    def __init__(self, compiled: Compiled, background: BackgroundTasks) -> None:
        self._compiled = compiled
        self._background = background
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Ask every server that has tenants under row security or in schemas.

        Raises:
            ConfigError: Tenants run as a role that bypasses row security, and the configuration does not allow that.
        """
        names = [name for name, config in self._compiled.audits.items() if config.on_start != "off"]
        names = [name for name in names if name in self._compiled.datasources]
        outcomes = await asyncio.gather(*(self._ask(name) for name in names))
        refusals = [refusal for refusal in outcomes if refusal is not None]
        if refusals:
            await self.stop()
            raise ConfigError("\n".join(refusals))

    async def stop(self) -> None:
        """Ask no more."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    async def _ask(self, name: str) -> str | None:
        """Why tenants cannot be trusted to this datasource; None when they can, or when nobody answers."""
        if not any(home.has_row_security or home.schema for home in self._compiled.homes(name)):
            return None
        try:
            findings = await self._audit(name)
        except DataError as error:
            if error.kind not in _NO_ANSWER:
                logger.warning("%s: tenants could not be vetted: %s", name, error)
                return None
            logger.warning("%s: tenants are served without having been vetted: %s", name, error)
            self._tasks.append(asyncio.get_running_loop().create_task(self._ask_later(name)))
            return None
        return self._judge(name, findings)

    async def _ask_later(self, name: str) -> None:
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
        compiled = self._compiled
        primary = compiled.datasources[name].endpoints["primary"]
        deadline = asyncio.get_running_loop().time() + START_LIMIT_S
        connection = await primary.connect_apart(deadline=deadline)

        async def ask(sql: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
            exchange = await connection.exchange([Statement(sql, parameters, prepare=False)], deadline=deadline)
            if exchange.error is not None:
                raise primary.error_of(exchange, is_write=False) from exchange.error
            return exchange.answers(0, 1)[0].tuples()

        allowed = compiled.audits[name]
        try:
            return await find_holes(
                ask,
                compiled.homes(name),
                shared_schemas=compiled.shared_schemas[name],
                allowed_roles=allowed.allow_roles,
                shared_tables=allowed.shared_tables,
            )
        finally:
            connection.cut("the audit is over")

    def _judge(self, name: str, findings: Iterable[Finding]) -> str | None:
        refuses = self._compiled.audits[name].on_start == "refuse"
        reasons: list[str] = []
        for finding in findings:
            told = f"datasource {name}: {finding.message}. {finding.mend}"
            if finding.hole is Hole.ROLE_BYPASSES and refuses:
                reasons.append(f"{told} Or name the role in datasources.{name}.audit.allow_roles.")
            else:
                logger.warning("%s", told)
        return "\n".join(reasons) or None
