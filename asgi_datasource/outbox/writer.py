"""`db.outbox`: buffers events, which COMMIT's own round trip inserts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

from opentelemetry import propagate

from ..drivers.statements import Statement
from ..errors import DataError, DataErrorKind
from ..sessions.advisory_lock import take_lock
from ..sessions.core import SessionCore
from .entry import MAX_KEY, Draft, check_name, encode_payload, new_id

_COLUMNS: Final = "event_id, tenant, topic, key, data, data_bin, headers"

_JSON, _BYTES = "%s::pg_catalog.json", "%s::pg_catalog.bytea"

INSERT_ONE: Final = (
    f"insert into asgi_datasource.outbox ({_COLUMNS}) values (%s, %s, %s, %s, {_JSON}, {_BYTES}, {_JSON})"  # noqa: S608
)
_ARRAYS: Final = ", ".join(
    f"pg_catalog.unnest(%s::pg_catalog.{kind}[])" for kind in ("uuid", "text", "text", "text", "text", "bytea", "text")
)
INSERT_MANY: Final = (
    f"insert into asgi_datasource.outbox ({_COLUMNS})"  # noqa: S608 - constants
    " select e, t, o, k, d::pg_catalog.json, b, h::pg_catalog.json"
    f" from rows from ({_ARRAYS}) with ordinality as event(e, t, o, k, d, b, h, n) order by n"
)
"""One statement for any number of rows, so that it is prepared once; the identity numbers rows in this order."""

_APPLY: Final = "run `asgi-datasource migrate apply --config FILE`, with a section outbox in the document"


def explain_missing(error: DataError) -> DataError:
    """Say what is missing in the database, where that is what an error is about."""
    if error.sqlstate in ("42P01", "3F000") and "asgi_datasource" in error.message:
        message = f"the tables of the outbox are not in this database; {_APPLY}"
    elif error.sqlstate == "42501" and any(name in error.message for name in ("outbox", "inbox", "asgi_datasource")):
        message = f"the role of this transaction may not write to the outbox; {_APPLY}: it grants that"
    else:
        return error
    return DataError(DataErrorKind.CONFIG, message, sqlstate=error.sqlstate)


class OutboxWriter:
    """Inserts the events of transactions into one database.

    Args:
        wake: Called when events were committed: a relay in this process has something to do.
    """

    __slots__ = ("_wake",)

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        self._wake = wake

    def statements(self, items: Sequence[Draft]) -> Sequence[Statement]:
        """One INSERT for all events of a transaction."""
        if len(items) == 1:
            return (Statement(INSERT_ONE, tuple(items[0])),)
        return (Statement(INSERT_MANY, [list(column) for column in zip(*items, strict=True)]),)

    def committed(self, items: Sequence[Draft]) -> None:
        """The events are there for the relay."""
        if self._wake is not None:
            self._wake()

    def explain(self, error: DataError) -> DataError:
        """Say what is missing, where the outbox could not be written to."""
        return explain_missing(error)


class SessionOutbox:
    """`db.outbox` of one session; see `sessions.capabilities.EventOutbox`.

    Args:
        session: The session.
        writer: Inserts its events.
        max_payload: Most bytes of a payload.
    """

    __slots__ = ("_max_payload", "_session", "_writer")

    def __init__(self, session: SessionCore, writer: OutboxWriter, max_payload: int) -> None:
        self._session = session
        self._writer = writer
        self._max_payload = max_payload

    async def publish(
        self,
        topic: str,
        *,
        key: str | None = None,
        payload: object = None,
        headers: Mapping[str, str] | None = None,
        id: UUID | str | None = None,
        ordered: bool = False,
    ) -> UUID:
        """Publish an event with the transaction around; see `sessions.capabilities.EventOutbox`."""
        session = self._session
        event_id = new_id() if id is None else read_id(id)
        check_name(topic, what="topic")
        if key is not None:
            check_name(key, what="key", maximum=MAX_KEY)
        elif ordered:
            raise DataError(DataErrorKind.QUERY, "publish(ordered=True) orders the events of a key: give it a key")
        data, data_bin = encode_payload(payload, topic=topic, max_bytes=self._max_payload)
        draft = Draft(
            event_id,
            session.tenant.name,
            topic,
            str(event_id) if key is None else key,
            data,
            data_bin,
            _write_headers(headers),
        )
        if ordered:
            await take_lock(session, f"outbox {key}", None)
        session.defer(self._writer, draft, what="db.outbox.publish()")
        return event_id


def read_id(value: UUID | str) -> UUID:
    """The id of an event; raises `DataError` (QUERY) where it is none."""
    try:
        return value if isinstance(value, UUID) else UUID(value)
    except ValueError:
        raise DataError(DataErrorKind.QUERY, "the id of an event is a UUID") from None


def _write_headers(headers: Mapping[str, str] | None) -> str | None:
    """The headers with the trace context of this moment, as JSON; None where there are none."""
    carrier: dict[str, str] = {}
    for name, value in (headers or {}).items():
        check_name(name, what="header name")
        if not isinstance(value, str) or (value and not value.isprintable()):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(DataErrorKind.QUERY, f"the header {name!r} of an event is a text of printable characters")
        carrier[name.lower()] = value
    propagate.inject(carrier)
    return json.dumps(carrier) if carrier else None
