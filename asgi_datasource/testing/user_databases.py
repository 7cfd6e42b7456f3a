"""The databases of the user's configuration: migrated once for a test run, and cloned for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from ..config import EVERY_OTHER, PLACEHOLDER, Config
from ..migrate import has_migrations
from .binaries import ClusterError
from .cluster import EmbeddedCluster
from .migrated import migrate_apart
from .template import ORDINARY_ROLE, SUPERUSER
from .user_config import UserConfig

SchemaSource = str | Path | Callable[["UserDatabases"], None] | None
"""What makes tables besides migrations: SQL, a file of SQL, or a function of the databases."""

_NUMBERS: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class UserDatabases:
    """The databases of one test.

    Attributes:
        cluster: Their cluster.
        names: The database of each datasource.
        replicas: The names of each datasource's replicas, in the order of the cluster's nodes.
    """

    cluster: EmbeddedCluster
    names: dict[str, str]
    replicas: dict[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """The database of the first datasource."""
        return next(iter(self.names.values()))

    @property
    def url(self) -> str:
        """Connection string of the first datasource's database, as the role `app`."""
        return self.cluster.primary.url(self.name)

    @property
    def admin_url(self) -> str:
        """The same as the superuser."""
        return self.cluster.primary.url(self.name, SUPERUSER)

    def urls(self, datasource: str) -> dict[str, str]:
        """Connection strings of a datasource by its servers: `primary`, and each replica."""
        name = self.names[datasource]
        nodes = dict(zip(self.replicas[datasource], self.cluster.replicas.values(), strict=False))
        return {"primary": self.cluster.primary.url(name)} | {
            replica: node.url(name) for replica, node in nodes.items()
        }

    def node_of(self, datasource: str, server: str) -> str:
        """The name of the cluster's node that is a server of a datasource."""
        if server == "primary":
            return "primary"
        return list(self.cluster.replicas)[self.replicas[datasource].index(server)]

    def config_urls(self, config: Config) -> dict[str, dict[str, str]]:
        """The URLs of all servers, and those of `admin` where a datasource has one."""
        found = {name: self.urls(name) for name in self.names}
        for name, urls in found.items():
            if config.datasources[name].admin is not None:
                urls["admin"] = self.cluster.primary.url(self.names[name], SUPERUSER)
        return found

    def execute(self, statements: str, datasource: str | None = None) -> None:
        """Run SQL as the role `app`, outside of any tenant; for a test's data.

        Args:
            statements: One or several statements.
            datasource: Where; None is the first datasource.
        """
        name = self.name if datasource is None else self.names[datasource]
        with psycopg.connect(self.cluster.primary.url(name), autocommit=True) as connection:
            connection.execute(statements.encode())


class UserTemplate:
    """The databases of a configuration at the head of their migrations, and their copies.

    Args:
        cluster: Where they are.
        user: The configuration.
        schema: What makes tables besides migrations.
    """

    def __init__(self, cluster: EmbeddedCluster, user: UserConfig, schema: SchemaSource) -> None:
        self.cluster = cluster
        self.user = user
        self._schema = schema
        number = next(_NUMBERS)
        self._prefix = f"ads_{number}"
        self._clones = itertools.count(1)
        self.databases = self._named("")

    def _named(self, suffix: str) -> UserDatabases:
        places = self.user.places()
        order = list(dict.fromkeys(places.values()))
        names = {name: f"{self._prefix}_{order.index(place)}{suffix}" for name, place in places.items()}
        datasources = self.user.config.datasources
        return UserDatabases(self.cluster, names, {name: tuple(datasources[name].replicas) for name in names})

    def make(self) -> None:
        """Create the databases, the schemas and roles of tenants, and apply migrations and the schema.

        Raises:
            ClusterError: A datasource has a database for each tenant; or a migration failed, with the reason.
        """
        config = self.user.config
        for name, datasource in config.datasources.items():
            if PLACEHOLDER in datasource.primary.url.get_secret_value():
                raise ClusterError(f"datasource {name!r} has a database for each tenant: test it with pg_cluster")
        for name in dict.fromkeys(self.databases.names.values()):
            self.cluster.make_database(name)
        self._make_places(config)
        loaded = self.user.load(self.databases.config_urls(config))
        if isinstance(self._schema, Path):
            self.databases.execute(self._schema.read_text(encoding="utf-8"))
        elif isinstance(self._schema, str):
            self.databases.execute(self._schema)
        elif self._schema is not None:
            self._schema(self.databases)
        if has_migrations(loaded):
            migrate_apart(loaded, str(self.user.file))

    def _make_places(self, config: Config) -> None:
        owner = sql.Identifier(ORDINARY_ROLE)
        for name, tenant in config.tenants.items():
            if name == EVERY_OTHER:
                continue
            role, schema = (
                None if value is None else sql.Identifier(value.replace(PLACEHOLDER, name))
                for value in (tenant.role, tenant.schema_name)
            )
            url = self.cluster.primary.url(self.databases.names[tenant.datasource], SUPERUSER)
            with psycopg.connect(url, autocommit=True) as connection:
                if role is not None:
                    with suppress(psycopg.errors.DuplicateObject):
                        connection.execute(sql.SQL("create role {}").format(role))
                    connection.execute(sql.SQL("grant {} to {}").format(role, owner))
                if schema is not None:
                    statement = sql.SQL("create schema if not exists {} authorization {}")
                    connection.execute(statement.format(schema, owner))

    def clone(self) -> UserDatabases:
        """Copy the databases, and wait until every replica has the copies."""
        copy = self._named(f"_{next(self._clones)}")
        statement = sql.SQL("create database {} owner {} template {} strategy file_copy")
        owner = sql.Identifier(ORDINARY_ROLE)
        pairs = dict(zip(copy.names.values(), self.databases.names.values(), strict=True))
        for name, source in pairs.items():
            self.cluster.primary.blocking.sql(statement.format(sql.Identifier(name), owner, sql.Identifier(source)))
        self.cluster.wait_caught_up()
        return copy

    def remove(self, databases: UserDatabases) -> None:
        """Drop databases, ending the sessions in them."""
        for name in dict.fromkeys(databases.names.values()):
            self.cluster.remove_database(name)
