"""Databases that are used again: a test that changed only rows leaves its database to a later one.

CREATE DATABASE, its tables, their way to two replicas and DROP DATABASE cost a hundred milliseconds of processor time,
in more than a thousand tests; emptying the tables costs a tenth of that. A database whose catalogs differ from what
they were is dropped instead.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import psycopg

from asgi_datasource.testing import ClusterError, EmbeddedCluster

EMPTY: Final = "empty"
"""The kind of a database without tables."""

_CATALOGS: Final[tuple[LiteralString, ...]] = (
    "select oid, relname, relnamespace, relowner, relkind, relpersistence, relacl, reloptions, relnatts, relchecks,"
    " relhastriggers, relrowsecurity, relforcerowsecurity, relispartition from pg_class where oid >= 16384",
    "select attrelid, attname, atttypid, attacl, attoptions, attnotnull, atthasdef, attisdropped from pg_attribute"
    " where attrelid >= 16384",
    "select oid, nspname, nspowner, nspacl from pg_namespace where oid >= 16384 or nspname = 'public'",
    "select oid, proname, pronamespace, proowner, proacl, prosrc, prosecdef, proconfig from pg_proc where oid >= 16384",
    "select oid, typname, typnamespace, typacl from pg_type where oid >= 16384",
    "select oid, polname, polrelid, polcmd, polroles, polqual::text, polwithcheck::text from pg_policy",
    "select oid, conname, convalidated from pg_constraint where oid >= 16384",
    "select oid, tgname, tgenabled from pg_trigger where not tgisinternal",
    "select indexrelid, indisvalid from pg_index where indexrelid >= 16384",
    # A test may take rights on the system's own objects away.
    "select oid, relacl from pg_class where oid < 16384 and relacl is not null",
    "select oid, proacl from pg_proc where oid < 16384 and proacl is not null",
    "select oid, extname from pg_extension",
    "select oid, defaclacl from pg_default_acl",
    "select oid, lomacl from pg_largeobject_metadata",
    "select oid, evtname from pg_event_trigger",
    "select oid, pubname from pg_publication",
    "select setrole, setconfig from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase"
    " where d.datname = current_database()",
    "select datdba, datacl, datconnlimit, datallowconn from pg_database where datname = current_database()",
    "select gid from pg_prepared_xacts where database = current_database()",
    "select seqrelid, seqincrement, seqmin, seqmax, seqstart from pg_sequence",
)

_FINGERPRINT: Final[LiteralString] = "select " + ", ".join(
    f"(select md5(coalesce(string_agg(t::text, ';' order by t::text), '')) from ({c}) t)" for c in _CATALOGS
)
_EMPTY: Final = """
    do $$
    declare statements text;
    begin
        set local session_replication_role = replica;
        select string_agg(format('delete from %s', oid::regclass), '; ') into statements
        from pg_class where relkind = 'r' and oid >= 16384;
        if statements is not null then execute statements; end if;
        perform setval(seqrelid, seqstart, false) from pg_sequence;
    end $$
"""
_SWEEP: Final = """
    do $$
    declare name text;
    begin
        for name in select nspname from pg_namespace where nspname !~ '^(pg_|public$|information_schema$)' loop
            execute format('drop schema %I cascade', name);
        end loop;
        for name in
            select oid::regclass from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
        loop execute format('drop table if exists %s cascade', name); end loop;
        for name in select oid::regprocedure from pg_proc where pronamespace = 'public'::regnamespace loop
            execute format('drop routine if exists %s cascade', name);
        end loop;
        for name in
            select oid::regclass from pg_class where relnamespace = 'public'::regnamespace and relkind = 'S'
        loop execute format('drop sequence if exists %s cascade', name); end loop;
        for name in select oid::regtype from pg_type
            where typnamespace = 'public'::regnamespace and typtype in ('e', 'd', 'c') loop
            execute format('drop type if exists %s cascade', name);
        end loop;
    end $$
"""
"""Drops what tests make in an empty database; what else they made is found by the fingerprint."""

_END_SESSIONS: Final = (
    "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid()"
)


@dataclass(slots=True)
class KeptDatabases:
    """The databases of one cluster that wait for the next test, by kind."""

    cluster: EmbeddedCluster
    _waiting: dict[str, list[str]] = field(default_factory=dict)
    _fingerprints: dict[str, Any] = field(default_factory=dict)
    _connections: dict[tuple[str, str], psycopg.Connection[Any]] = field(default_factory=dict)
    """By database and node. They stay open: the catalog queries of a new connection take ten times as long."""

    async def take(self, kind: str) -> str | None:
        """A database of this kind as it was when `made` was called, or None if a new one is to be made."""
        waiting = self._waiting.get(kind)
        if not waiting:
            return None
        dbname = waiting.pop()
        await self._caught_up(dbname)
        return dbname

    def made(self, dbname: str) -> None:
        """Note the state in which later tests are to find a new database."""
        self._fingerprints[dbname] = _one(self._connection(dbname, "primary"), _FINGERPRINT)

    async def give_back(self, kind: str, dbname: str) -> None:
        """Empty the database for the next test, or drop it if more than its rows was changed."""
        try:
            is_kept = self._is_emptied(kind, dbname)
        except (psycopg.Error, ClusterError):  # A server that the test stopped.
            is_kept = False
        if is_kept:
            self._waiting.setdefault(kind, []).append(dbname)
            return
        self._fingerprints.pop(dbname, None)
        for place in [place for place in self._connections if place[0] == dbname]:
            self._connections.pop(place).close()
        await self.cluster.drop_database(dbname)

    def _is_emptied(self, kind: str, dbname: str) -> bool:
        for name, node in self.cluster.nodes.items():
            if node.pid is not None:
                self._connection(dbname, name).execute(_END_SESSIONS)
        primary = self._connection(dbname, "primary")
        if kind == EMPTY:
            primary.execute(_SWEEP)
        if _one(primary, _FINGERPRINT) != self._fingerprints[dbname]:
            return False
        primary.execute(_EMPTY)
        return True

    async def _caught_up(self, dbname: str) -> None:
        """As `EmbeddedCluster.caught_up`, without new connections while all is well."""
        (position,) = _one(self._connection(dbname, "primary"), "select pg_current_wal_flush_lsn()::text")
        replayed = f"select pg_last_wal_replay_lsn() >= '{position}'"
        for name, node in self.cluster.nodes.items():
            if node.upstream is None or node.pid is None:
                continue
            for _ in range(20):
                if _one(self._connection(dbname, name), replayed) == (True,):
                    break
                await asyncio.sleep(0.001)
            else:
                await self.cluster.caught_up()

    def _connection(self, dbname: str, node: str) -> psycopg.Connection[Any]:
        if (found := self._connections.get((dbname, node))) is None:
            url = self.cluster.nodes[node].url(dbname, "postgres")
            found = psycopg.connect(url, autocommit=True, connect_timeout=5)
            self._connections[dbname, node] = found
        return found


def _one(connection: psycopg.Connection[Any], statement: str) -> Any:
    return connection.execute(statement.encode()).fetchone()


_numbers = itertools.count(1)
_of_clusters: weakref.WeakKeyDictionary[EmbeddedCluster, KeptDatabases] = weakref.WeakKeyDictionary()


def kept(cluster: EmbeddedCluster) -> KeptDatabases:
    """The kept databases of this cluster."""
    if cluster not in _of_clusters:
        _of_clusters[cluster] = KeptDatabases(cluster)
    return _of_clusters[cluster]


@asynccontextmanager
async def empty_database(cluster: EmbeddedCluster) -> AsyncIterator[str]:
    """The name of a database of the role `app` without tables, on the shared cluster."""
    databases = kept(cluster)
    if (dbname := await databases.take(EMPTY)) is None:
        dbname = f"empty_{os.getpid()}_{next(_numbers)}"
        await cluster.create_database(dbname)
        databases.made(dbname)
    try:
        yield dbname
    finally:
        await databases.give_back(EMPTY, dbname)
