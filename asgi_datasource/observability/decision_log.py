"""Log lines of notable decisions: each has a name and the attributes that spans have, and a storm of them is one line.

Every record of the library's loggers gets `trace_id` and `span_id` of the current span, unless something else has set
them: lines lead to their trace, with any handler and formatter.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Final

from opentelemetry import trace

from .names import EVENT, AttributeValue

INTERVAL_S: Final = 10.0
"""Seconds in which lines with the same key are one line; the others are logged at DEBUG, and counted."""

MAX_KEYS: Final = 1024
"""Keys that are remembered."""

AREAS: Final = (
    "background",
    "config",
    "console",
    "fleet",
    "litestar",
    "middleware",
    "migrate",
    "monitor",
    "outbox",
    "outbox.kafka",
    "problems",
    "provisioning",
    "registry",
    "saturation",
    "server",
    "session",
    "telemetry",
    "tenancy",
    "transaction",
)
"""The library's loggers are `asgi_datasource.<area>`."""

PACKAGE: Final = str(Path(__file__).parents[1])


class AddTrace(logging.Filter):
    """Adds the ids of the current span to a record; lets all records pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add `trace_id` and `span_id`, as lower-case hexadecimal digits."""
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.__dict__.setdefault("trace_id", trace.format_trace_id(context.trace_id))
            record.__dict__.setdefault("span_id", trace.format_span_id(context.span_id))
        return True


_add_trace: Final = AddTrace()
for _area in AREAS:
    logging.getLogger(f"asgi_datasource.{_area}").addFilter(_add_trace)


class _Repeated:
    """When a line was logged, and how many like it were not since."""

    __slots__ = ("logged_at", "more")

    def __init__(self, logged_at: float) -> None:
        self.logged_at = logged_at
        self.more = 0


_repeated: Final[dict[Hashable, _Repeated]] = {}


def log_decision(
    logger: logging.Logger,
    level: int,
    event: str,
    text: str,
    *args: object,
    fields: Mapping[str, AttributeValue],
    once_for: Hashable = None,
) -> None:
    """Log a notable decision.

    Args:
        logger: The logger of its area.
        level: Its level.
        event: Its name, constant: `server_down`.
        text, args: The line; nothing secret.
        fields: Attributes of the record, by the names that spans have for them.
        once_for: Lines with this key are one line in `INTERVAL_S`; None logs each.
    """
    if once_for is not None:
        more = _more(once_for)
        if more is None:
            level = logging.DEBUG
        elif more:
            text = f"{text} (and {more} more like it since the last such line)"
    if logger.isEnabledFor(level):
        logger.log(level, text, *args, extra={EVENT: event, **fields}, stacklevel=2)


def is_first(key: Hashable, interval_s: float) -> bool:
    """Whether a line with this key is the first one in an interval, in seconds."""
    return _more(key, interval_s) is not None


def _more(key: Hashable, interval_s: float = INTERVAL_S) -> int | None:
    """How many lines with this key were held back since the last one; None if this one is held back as well."""
    now = monotonic()
    repeated = _repeated.get(key)
    if repeated is not None and now - repeated.logged_at < interval_s:
        repeated.more += 1
        return None
    more = 0 if repeated is None else repeated.more
    if len(_repeated) >= MAX_KEYS:
        _repeated.clear()
    _repeated[key] = _Repeated(now)
    return more


def line_of_caller() -> str:
    """The line outside of the library that has led here: `/app/shop.py:41 in place_order`; empty if there is none."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(PACKAGE):
            return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""
