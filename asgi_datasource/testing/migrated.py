"""A database that is migrated once for a test run, and cloned for each test in milliseconds."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

import psycopg
from psycopg import sql

from ..config import Config, load
from ..migrate import MigrationReport, Migrator, Verdict
from .binaries import ClusterError
from .cluster import EmbeddedCluster
from .template import ORDINARY_ROLE

_DATASOURCE: Final = "main"


class MigrationOptions(TypedDict):
    """What is migrated.

    Attributes:
        folder: The folder of migrations.
        tenants: Schemas by the names of their tenants; each is created and migrated.
        search_path: Schemas that are searched after a tenant's own, as `search_path` of the datasource.
        role: The role that migrates and owns the tables: `app` by default, `postgres` where a superuser is needed.
    """

    folder: str | Path
    tenants: NotRequired[Mapping[str, str]]
    search_path: NotRequired[list[str]]
    role: NotRequired[str]


class MigratedTemplate:
    """A database at the head of its migrations, and its copies.

    Args:
        cluster: Where it is.
        options: What is migrated.
        name: Its name.
    """

    def __init__(self, cluster: EmbeddedCluster, options: MigrationOptions, *, name: str = "migrated") -> None:
        self.cluster = cluster
        self.name = name
        self._options = options
        self._numbers = itertools.count(1)

    def document(self, dbname: str) -> dict[str, Any]:
        """The configuration that leads to the template, or to one of its copies."""
        options = self._options
        url = self.cluster.primary.url(dbname, options.get("role", ORDINARY_ROLE))
        datasource: dict[str, Any] = {"primary": {"url": url}}
        if "search_path" in options:
            datasource["search_path"] = options["search_path"]
        return {
            "version": 1,
            "datasources": {_DATASOURCE: datasource},
            "tenants": {
                name: {"datasource": _DATASOURCE, "schema": schema}
                for name, schema in options.get("tenants", {}).items()
            },
            "migrate": {"folder": str(Path(options["folder"]).absolute())},
        }

    def make(self) -> None:
        """Create it, and apply all migrations.

        Raises:
            ClusterError: A migration failed; the message says which one and why.
        """
        self.cluster.make_database(self.name)
        for schema in dict.fromkeys(self._options.get("tenants", {}).values()):
            statement = sql.SQL("create schema {} authorization {}")
            role = sql.Identifier(self._options.get("role", ORDINARY_ROLE))
            self._sql(statement.format(sql.Identifier(schema), role))
        migrate_apart(load(self.document(self.name), needs_resolver=False), str(self._options["folder"]))

    def clone(self) -> str:
        """Copy it; returns the name of the copy."""
        name = f"{self.name}_{next(self._numbers)}"
        # Copying files takes a tenth of the time that the default takes, which writes every page to the WAL.
        statement = sql.SQL("create database {} owner {} template {} strategy file_copy")
        owner = sql.Identifier(ORDINARY_ROLE)
        self.cluster.primary.blocking.sql(statement.format(sql.Identifier(name), owner, sql.Identifier(self.name)))
        return name

    def _sql(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.cluster.primary.url(self.name, "postgres"), autocommit=True) as connection:
            connection.execute(statement)


def migrate_apart(config: Config, where: str) -> None:
    """Apply all migrations.

    Args:
        config: The configuration.
        where: Their folder or document, for the message.

    Raises:
        ClusterError: A migration failed; the message says which one and why.
    """
    report = _run(config)
    if report.verdict is not Verdict.AT_HEAD:
        reasons = [f"{one.name}: {one.failed or ''} {one.error or ''}".strip() for one in report.schemas]
        wrong = [finding.message for one in report.schemas for finding in one.findings]
        raise ClusterError(f"the migrations of {where} failed: {'; '.join(wrong or reasons)}")


def _run(config: Config) -> MigrationReport:
    """Apply in a thread of its own: a test's event loop may be running in this one."""
    outcome: list[MigrationReport | BaseException] = []

    def apply() -> None:
        try:
            outcome.append(asyncio.run(Migrator(config).apply()))
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            outcome.append(error)

    thread = threading.Thread(target=apply)
    thread.start()
    thread.join()
    [found] = outcome
    if isinstance(found, BaseException):
        raise found
    return found
