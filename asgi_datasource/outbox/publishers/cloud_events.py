"""An event's attributes as CloudEvents 1.0 defines them, for messages in binary mode: the data stays as it is.

Source: CloudEvents 1.0.2, and its extensions "Distributed Tracing", "Partitioning" and "Sequence".
"""

from __future__ import annotations

from datetime import UTC
from typing import Final

from ..entry import OutboxEntry

TRACE_CONTEXT: Final = ("traceparent", "tracestate")


def attributes_of(entry: OutboxEntry) -> dict[str, str]:
    """The attributes of an event, without prefix; `datacontenttype` is the message's own content type."""
    attributes = {
        "specversion": "1.0",
        "id": entry.idempotency_key,
        "source": entry.source,
        "type": entry.topic,
        "subject": entry.key,
        "time": entry.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "partitionkey": entry.key,
        # Texts of one length sort as the numbers do.
        "sequence": f"{entry.seq:020d}",
    }
    if entry.tenant is not None:
        attributes["tenantid"] = entry.tenant
    for name in TRACE_CONTEXT:
        if name in entry.headers:
            attributes[name] = entry.headers[name]
    return attributes


def headers_of(entry: OutboxEntry, prefix: str) -> dict[str, str]:
    """The event's attributes with a prefix, and the headers of `publish` and the trace context as they are."""
    named = {f"{prefix}{name}": value for name, value in attributes_of(entry).items()}
    return {**entry.headers, **named}
