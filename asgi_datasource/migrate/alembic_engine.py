"""`engine: alembic`: Alembic's own environment, for every tenant, with the plan, fan-out and report of `migrate`.

Alembic keeps what it works on in the module `alembic.context`, so one process can migrate one schema at a time: the
work is done by processes. Each gets a connection inside a transaction, with the lock of the schema and its
`search_path`; `env.py` finds it in `config.attributes["connection"]`, as in Alembic's cookbook, "Sharing a Connection".
What a schema has is what its own table `alembic_version` says.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, Final, LiteralString, cast

from ..drivers.control import ControlConnection, control_driver
from ..errors import ConfigError, DataError, DataErrorKind
from ..tenancy import quote_identifier
from .directives import Directives
from .files import Folder, Kind, Migration, Problem, Scope
from .fleet import Database, Target
from .ledger import Entry, EntryState, ScopeState, lock_key
from .sql_tokens import Statement

TABLE: Final = "alembic_version"
_SCHEMAS_A_QUERY: Final = 500


@dataclass(frozen=True)
class AlembicMigration(Migration):
    """One revision; its version is its place in the order of all."""

    @property
    def revision(self) -> str:
        """Alembic's id of it."""
        return self.text

    @property
    def label(self) -> str:
        """`ae1027a6acf_add_orders`."""
        return f"{self.text}_{self.name}" if self.name else self.text

    @property
    def is_python(self) -> bool:
        """It is Alembic's own step."""
        return False

    @cached_property
    def statements(self) -> tuple[Statement, ...]:
        """None: Alembic runs it."""
        return ()

    @cached_property
    def checksum(self) -> bytes:
        """Of its id: Alembic does not notice a changed file."""
        return hashlib.sha256(self.text.encode()).digest()


@dataclass(frozen=True)
class AlembicFolder(Folder):
    """The revisions of one or two Alembic environments.

    Attributes:
        ancestors: By revision, itself and all before it.
    """

    ancestors: Mapping[str, frozenset[str]] = field(default_factory=dict[str, "frozenset[str]"], repr=False)

    def home(self, scope: Scope) -> Path:
        """The script location of a scope."""
        inner = self.path / scope.value
        return inner if (inner / "env.py").is_file() else self.path


def read_scripts(path: Path) -> AlembicFolder:
    """Read the revisions of a script location, or of `shared/` and `tenant/` in it, each with an `env.py`.

    Raises:
        ConfigError: Alembic is not installed.
        Problem: There is no environment, or its revisions do not fit together.
    """
    ancestors: dict[str, frozenset[str]] = {}
    found: dict[Scope, tuple[Migration, ...]] = {}
    has_both = any((path / scope.value / "env.py").is_file() for scope in Scope)
    for scope in Scope:
        home = path / scope.value if has_both else path
        if (home / "env.py").is_file():
            found[scope] = tuple(_revisions(home, scope, ancestors))
    if not found:
        raise Problem(path, "there is no env.py", fix="Set migrate.script_location to Alembic's script_location.")
    return AlembicFolder(path, found.get(Scope.SHARED, ()), found.get(Scope.TENANT, ()), ancestors=ancestors)


def serves(folder: Folder, database: Database, target: Target) -> bool:
    """Whether a schema has revisions: one environment is for the tenants, or where there are none, for the database."""
    if not isinstance(folder, AlembicFolder) or folder.home(Scope.TENANT) != folder.home(Scope.SHARED):
        return folder.has(target.kind)
    return bool(target.tenants) or not database.targets


def _revisions(home: Path, scope: Scope, ancestors: dict[str, frozenset[str]]) -> Iterable[Migration]:
    try:
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError
    except ImportError:
        raise ConfigError("migrate.engine: alembic needs Alembic: pip install alembic sqlalchemy") from None
    config = Config()
    config.set_main_option("script_location", str(home).replace("%", "%%"))
    try:
        scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    except CommandError as error:
        raise Problem(home, str(error), fix="Fix the revisions: see alembic history.") from None
    for number, script in enumerate(reversed(scripts), start=1):
        before = [*_names(script.down_revision), *_names(script.dependencies)]
        ancestors[script.revision] = frozenset({script.revision}).union(
            *(ancestors.get(revision, frozenset()) for revision in before)
        )
        name = (script.doc or "").strip().lower().replace(" ", "_")[:60]
        yield AlembicMigration(Path(script.path), scope, Kind.VERSIONED, number, name, script.revision, Directives())


def _names(given: object) -> tuple[str, ...]:
    """Revisions as Alembic has them: None, one of them, or several."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(map(str, cast("Iterable[object]", given)))


# -- what schemas have -------------------------------------------------------------------------------------------------

_SCHEMAS: Final[LiteralString] = """
select wanted.name, n.oid::int8,
    exists (select from pg_class v where v.relnamespace = n.oid and v.relname = 'alembic_version' and v.relkind = 'r')
from unnest(%s::text[]) wanted (name) left join pg_namespace n on n.nspname = wanted.name
"""


async def read_revisions(
    admin: ControlConnection, folder: AlembicFolder, targets: Sequence[Target]
) -> dict[str, ScopeState]:
    """What a database says of schemas, in a few statements for all of them.

    Args:
        admin: A connection to the database.
        folder: The revisions.
        targets: The schemas.

    Raises:
        DataError: The server refused it, or cannot be reached.
    """
    by_schema = {target.schema: target for target in targets}
    rows = await admin.rows(_SCHEMAS, list(by_schema))
    known = {str(schema): oid for schema, oid, _ in rows}
    versions: dict[str, list[str]] = {}
    with_table = [str(schema) for schema, _, has_table in rows if has_table]
    for start in range(0, len(with_table), _SCHEMAS_A_QUERY):
        part = with_table[start : start + _SCHEMAS_A_QUERY]
        queries = [
            admin.compose("select {schema} as schema, version_num::text from {}", (schema, TABLE), schema=schema)
            for schema in part
        ]
        [found] = await admin.batch(" union all ".join(queries))
        for schema, revision in found:
            versions.setdefault(str(schema), []).append(str(revision))
    states: dict[str, ScopeState] = {}
    for schema, target in by_schema.items():
        entries = tuple(_entries(folder, target.kind, versions.get(schema, [])))
        states[target.scope] = ScopeState(known[schema] if target.scope else 0, entries=entries)
    return states


def _entries(folder: AlembicFolder, scope: Scope, heads: Sequence[str]) -> Iterable[Entry]:
    done: set[str] = set()
    for head in heads:
        ancestors = folder.ancestors.get(head)
        if ancestors is None:
            # Not among the files: as a row without a file, it is reported.
            yield Entry(2**62, Kind.VERSIONED, head, EntryState.APPLIED, b"")
        else:
            done |= ancestors
    for file in folder.versioned(scope):
        if isinstance(file, AlembicMigration) and file.revision in done:
            yield Entry(file.version, Kind.VERSIONED, file.name, EntryState.APPLIED, file.checksum)


# -- upgrades ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What a process does: one schema to the given revisions.

    Attributes:
        home: The script location.
        url: The connection string.
        dbname: The database, where the connection string names another one.
        schema: The schema.
        search_path: Its search path, as a setting.
        tenants: The tenants of the schema.
        key: What the advisory lock is taken on.
        revisions: Where it goes: the last of what is pending, or `heads`.
        lock_timeout_ms: Longest wait for a lock.
    """

    home: str
    url: str = field(repr=False)
    dbname: str | None
    schema: str
    search_path: str
    tenants: tuple[str, ...]
    key: str
    revision: str
    lock_timeout_ms: int


class Upgrades:
    """Runs Alembic in processes of its own.

    Args:
        processes: How many.
    """

    def __init__(self, processes: int) -> None:
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        context = get_context(method)
        # Imported once, in the process that the others are forked off.
        context.set_forkserver_preload(
            [__name__, "alembic.command", "alembic.autogenerate", "sqlalchemy.dialects.postgresql"]
        )
        self._pool = ProcessPoolExecutor(processes, mp_context=context)

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(
        self, folder: AlembicFolder, database: Database, target: Target, revision: str, lock_timeout_s: float
    ) -> bool:
        """Upgrade one schema, in one transaction.

        Returns:
            False where another process migrates the schema now.

        Raises:
            DataError: Alembic or the server refused it.
        """
        upgrade = Upgrade(
            str(folder.home(target.kind)),
            database.url,
            database.dbname,
            target.schema,
            ", ".join(map(quote_identifier, target.search_path)),
            target.tenants,
            lock_key(target.scope),
            revision,
            round(lock_timeout_s * 1000),
        )
        outcome = await asyncio.get_running_loop().run_in_executor(self._pool, upgrade_schema, upgrade)
        if isinstance(outcome, bool):
            return outcome
        message, sqlstate, is_lost = outcome
        raise DataError(DataErrorKind.CONNECTION if is_lost else DataErrorKind.QUERY, message, sqlstate=sqlstate)


def upgrade_schema(upgrade: Upgrade) -> bool | tuple[str, str | None, bool]:
    """Upgrade one schema; runs in a process of its own.

    Returns:
        True when it is done, False where another process migrates the schema; else why it failed, the SQLSTATE, and
        whether the connection was lost.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", upgrade.home.replace("%", "%%"))

    def connect() -> Any:
        return control_driver().connect_blocking(upgrade.url, dbname=upgrade.dbname)

    engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            settings = text(
                "select set_config('lock_timeout', :lock, true), pg_try_advisory_xact_lock(hashtextextended(:key, 0)),"
                " set_config('search_path', :path, true)"
            )
            parameters = {"lock": str(upgrade.lock_timeout_ms), "key": upgrade.key, "path": upgrade.search_path}
            if not connection.execute(settings, parameters).one()[1]:
                connection.rollback()
                return False
            config.attributes.update(connection=connection, schema=upgrade.schema, tenants=upgrade.tenants)
            command.upgrade(config, upgrade.revision)
            quoted = quote_identifier(upgrade.schema)
            there = connection.execute(text("select to_regclass(:name)"), {"name": f"{quoted}.{TABLE}"}).scalar()
            if there is None:
                connection.rollback()
                return f"{upgrade.home}/env.py does not use config.attributes['connection']", None, False
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        return control_driver().refusal_text(error.orig), state, error.connection_invalidated
    except CommandError as error:
        return str(error), None, False
    except Exception as error:  # noqa: BLE001 - it is a revision's own; its text may quote rows
        return f"a revision raised {type(error).__name__}", None, False
    finally:
        engine.dispose()
    return True
