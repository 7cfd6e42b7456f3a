"""Steps in Python: `async def up(db)`, for what SQL cannot say, such as values that a program computes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..drivers.control import ControlConnection
from ..errors import DataError, DataErrorKind
from .files import Migration
from .fleet import Target


class MigrationDatabase:
    """What a Python step gets: one schema, inside the transaction of its step.

    Attributes:
        tenants: The tenants of the schema; none for a shared migration.
        schema: The schema.
        connection: The driver's own connection (psycopg's `AsyncConnection`).
    """

    def __init__(self, admin: ControlConnection, target: Target) -> None:
        self._admin = admin
        self.tenants = target.tenants
        self.schema = target.schema
        self.connection: Any = admin.connection

    async def execute(self, statement: str, values: Sequence[object] = ()) -> int:
        """Run a statement with `%s` for each value; returns the number of rows that it has changed."""
        cursor = await self.connection.execute(statement, values or None)
        return int(cursor.rowcount)

    async def fetch_all(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        cursor = await self.connection.execute(query, values or None)
        return list(await cursor.fetchall())

    async def fetch_value(self, query: str, values: Sequence[object] = ()) -> Any:
        """The first column of the first row; None where there is no row."""
        rows = await self.fetch_all(query, values)
        return rows[0][0] if rows else None


async def run_python(migration: Migration, function: str, admin: ControlConnection, target: Target) -> None:
    """Run a function of a Python step.

    Args:
        migration: The step.
        function: `up` or `down`.
        admin: A connection to the database; a transactional step has begun its transaction.
        target: The schema.

    Raises:
        DataError: It raised an error, or the server refused a statement; the message has no values.
    """
    module = load_python(migration.path, migration.text)
    step = getattr(module, function, None)
    if not callable(step):
        raise DataError(DataErrorKind.CONFIG, f"{migration.path} has no async def {function}(db)")
    database = MigrationDatabase(admin, target)
    try:
        async with admin.translated():
            outcome = step(database)
            if inspect.isawaitable(outcome):
                await outcome
    except DataError:
        raise
    except Exception as error:
        # Its text may quote rows.
        where = _line_of(error, migration.path)
        raise DataError(DataErrorKind.OTHER, f"{migration.path.name} raised {type(error).__name__}{where}") from error


def load_python(path: Path, text: str) -> ModuleType:
    """The module of a Python step, which is in no package.

    Raises:
        DataError: CONFIG: it cannot be imported.
    """
    module = ModuleType(f"asgi_datasource_migration_{path.stem}")
    module.__file__ = str(path)
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102 - the application's own file
    except Exception as error:
        message = f"{path} cannot be imported: {type(error).__name__}{_line_of(error, path)}"
        raise DataError(DataErrorKind.CONFIG, message) from error
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """Where in the file an error was raised: `, line 12`."""
    found, here = "", error.__traceback__
    while here is not None:
        if here.tb_frame.f_code.co_filename == str(path):
            found = f", line {here.tb_lineno}"
        here = here.tb_next
    return found
