"""Maps psycopg's errors to `DataError`: kind, message and hint."""

from __future__ import annotations

from typing import Final

from psycopg import DataError as ClientDataError
from psycopg import Error, InterfaceError, OperationalError, ProgrammingError

from ...errors import NO_PLACE, DataError, DataErrorKind, ErrorDetail, classify
from .pipeline import Pipeline
from .refusals import request_refusal_text

READ_ONLY_HINT: Final = (
    "; this statement ran with read intent: give its route @transactional, or use `db.write` for it alone"
)

SEVERAL_STATEMENTS_HINT: Final = (
    "; the text has several statements: send each in a call of its own, inside `async with db.transaction():` if they"
    " belong together, or a whole script as it is:"
    " `async with db.connection() as connection: await connection.execute(script)`"
)


def to_data_error(
    error: BaseException,
    *,
    where: str,
    server: str,
    is_broken: bool,
    timed_out: bool,
    in_recovery: bool,
    is_write: bool,
    statement: str | None = None,
) -> DataError:
    """Classify a failed statement.

    The server's message and its details may contain bound values and rows: they stay in the cause's `diag`.

    Args:
        error: As psycopg raises it.
        where: Names the server.
        server: Its address.
        is_broken: The connection is lost.
        timed_out: The caller's deadline has passed.
        in_recovery: The server is a hot standby.
        is_write: The statement had write intent.
        statement: Its text with placeholders; None if that is not known.
    """
    sqlstate = error.sqlstate if isinstance(error, Error) else None
    if timed_out:
        return DataError(
            DataErrorKind.TIMEOUT,
            f"{where}: the deadline passed before the statement ended"
            + (", and the server did not answer any more" if is_broken else "; it was stopped")
            + ". Give the route a longer `timeout`, or make the statement faster",
            sqlstate=sqlstate,
            is_retryable=False,
            server=server,
        )
    if sqlstate == "08P01" and not is_broken:
        # A `$1` in the text without parameters: a mistake in the statement, not a failure of the connection.
        sqlstate = "42P02"
    found = classify(ErrorDetail(sqlstate=sqlstate, is_broken=is_broken, in_recovery=in_recovery, is_write=is_write))
    diagnostics = error.diag if isinstance(error, Error) else None
    if sqlstate == "3F000" and diagnostics is not None and NO_PLACE in (diagnostics.message_primary or ""):
        return DataError(DataErrorKind.TENANT, "there is no such tenant", sqlstate=sqlstate, http_status=404)
    if sqlstate is None or not isinstance(error, Error):
        text = _first_line(error)
    else:
        text = request_refusal_text(error, sqlstate, statement)
        # Tracebacks print the cause with psycopg's whole text; `diag` keeps it.
        error.args = (text,)
    message = f"{where}: {text}"
    if found.kind is DataErrorKind.READ_ONLY:
        message += READ_ONLY_HINT
    elif sqlstate == "42601" and diagnostics is not None and diagnostics.source_function == "exec_parse_message":
        # The only syntax error that this function of the server reports.
        message += SEVERAL_STATEMENTS_HINT
    return DataError(
        found.kind,
        message,
        sqlstate=sqlstate,
        http_status=found.http_status,
        is_retryable=found.is_retryable,
        constraint=None if diagnostics is None else diagnostics.constraint_name,
        table=None if diagnostics is None else diagnostics.table_name,
        column=None if diagnostics is None else diagnostics.column_name,
        server=server,
    )


def of_exchange(exchange: Pipeline, *, where: str, server: str, in_recovery: bool, is_write: bool) -> DataError:
    """Classify the error of an exchange."""
    error = exchange.error
    if error is None:
        raise ValueError("the exchange has not failed")
    return to_data_error(
        error,
        where=where,
        server=server,
        is_broken=exchange.is_lost,
        timed_out=exchange.timed_out,
        in_recovery=in_recovery,
        is_write=is_write,
        statement=exchange.failed_text,
    )


def of_mistake(error: Exception, *, where: str, server: str) -> DataError:
    """What psycopg, or an adapter, has refused on the client: the server has seen nothing of it.

    psycopg's own refusals name types and placeholders. What others raise, and errors about a single value, may quote
    the value: their class is told, and the values are taken out of the cause, which every traceback prints.
    """
    kind = DataErrorKind.QUERY
    if isinstance(error, ProgrammingError | InterfaceError | TypeError) or (
        isinstance(error, OperationalError) and error.sqlstate is None
    ):
        text = _first_line(error)
    elif isinstance(error, UnicodeError):
        kind = DataErrorKind.VALUE
        text = "a text cannot be encoded for the server: it holds a lone surrogate, or what its encoding does not have"
        if isinstance(error, UnicodeEncodeError):
            error.object = ""
    else:
        text = f"a parameter could not be adapted ({type(error).__name__})"
        if isinstance(error, ClientDataError | OverflowError):
            kind = DataErrorKind.VALUE
            if "NUL" in str(error):
                text = "PostgreSQL text holds no NUL (0x00)"
            error.args = (text,)
    return DataError(kind, f"{where}: {text}", server=server)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
