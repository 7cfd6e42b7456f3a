"""The scalars of the document by name, each in its form."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema

from ..errors import DataErrorKind
from . import values
from .url import DatabaseUrl

_NAME: Final = "a name of letters, digits, '_' and '-' that starts with a letter or digit"
_NAME_PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9_-]*"
_IDENTIFIER: Final = "[A-Za-z_][A-Za-z0-9_]*"
_DOTTED: Final = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
_SEGMENT: Final = r"[^/*?#{}\x00-\x20\x7f]+"
_GLOB: Final = rf"(?:\*|{_SEGMENT})"

DatasourceName = Annotated[str, values.text("DatasourceName", _NAME, _NAME_PATTERN, maximum=63)]
ReplicaName = Annotated[
    str,
    values.text(
        "ReplicaName",
        f"{_NAME}, and is not 'primary'",
        _NAME_PATTERN,
        maximum=63,
        reserved="primary",
        takes_reference=False,
    ),
]
_TENANT_NAME: Final = r"[^\x00-\x1f\x7f*{}]+"
TenantName = Annotated[
    str,
    values.text(
        "TenantName",
        "a tenant name: 1 to 255 characters, without '*', braces and control characters",
        _TENANT_NAME,
        takes_reference=False,
    ),
]
is_tenant_name: Final = re.compile(rf"(?=.{{1,255}}\Z){_TENANT_NAME}").fullmatch
"""The same check, for names whose tenants have been checked already."""
DatabaseIdentifier = Annotated[
    str,
    values.text(
        "DatabaseIdentifier",
        "a name in the database: 1 to 63 characters, without braces and control characters",
        r"[^\x00-\x1f\x7f{}]+",
        maximum=63,
    ),
]
SettingName = Annotated[
    str,
    values.text(
        "SettingName",
        "the name of a custom setting, with a dot in it: app.tenant",
        rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})+",
        maximum=127,
        takes_reference=False,
    ),
]
SettingValue = Annotated[
    str,
    values.text(
        "SettingValue",
        "a string of at most 1000 characters, without braces and control characters",
        r"[^\x00-\x1f\x7f{}]*",
        minimum=0,
        maximum=1000,
    ),
]
PathPrefix = Annotated[
    str,
    values.text("PathPrefix", "a path such as /docs, without '*', '?' and '#'", rf"(?:/{_SEGMENT})+/?", maximum=1000),
]
TenantPathPrefix = Annotated[
    str,
    values.text(
        "TenantPathPrefix", "a path such as /t, or / alone", rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*/?)?", maximum=1000
    ),
]
RouteMatch = Annotated[
    str,
    values.text(
        "RouteMatch",
        "a method and a path such as 'GET /reports/**': '*' is one segment, '**' at the end is the rest",
        rf"(?:(?:[A-Z]+|\*) )?/(?:{_GLOB}(?:/{_GLOB})*(?:/\*\*|/)?|\*\*)?",
        maximum=1000,
    ),
]
HeaderName = Annotated[
    str, values.text("HeaderName", "the name of a header, such as X-Tenant", "[A-Za-z][A-Za-z0-9_-]*", maximum=64)
]
DomainName = Annotated[
    str,
    values.text(
        "DomainName",
        "a domain such as app.example.com, without scheme, port and dot in front",
        r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*",
        maximum=253,
    ),
]
CallablePath = Annotated[
    str, values.text("CallablePath", "a function as package.module:function", rf"{_DOTTED}:{_DOTTED}")
]
NamePattern = Annotated[
    str,
    values.text(
        "NamePattern",
        "a regular expression, without control characters",
        r"[^\x00-\x1f\x7f]+",
        maximum=None,
        is_free=True,
    ),
]
Url = Annotated[DatabaseUrl, values.database_url("DatabaseUrl")]

Duration = Annotated[float, values.duration("Duration")]
WholeSeconds = Annotated[float, values.duration("WholeSeconds", whole_seconds=True)]
Flag = Annotated[bool, values.flag("Flag")]
Version = Annotated[Literal[1], values.constant("Version", 1, takes_reference=False)]
PoolMinimum = Annotated[int, values.integer("PoolMinimum", 0, 10_000)]
PoolSize = Annotated[int, values.integer("PoolSize", 1, 10_000)]
QueueLength = Annotated[int, values.integer("QueueLength", 0, 1_000_000)]
ProbeCount = Annotated[int, values.integer("ProbeCount", 1, 127)]
RefusalStatus = Annotated[int, values.integer("RefusalStatus", 400, 499, what="an HTTP status")]
ErrorStatus = Annotated[int, values.integer("ErrorStatus", 400, 599, what="an HTTP status")]
Outcome = Annotated[int | str, values.outcome("Outcome")]
ErrorKind = Annotated[
    DataErrorKind,
    values.word(
        "ErrorKind", *(kind.value for kind in DataErrorKind if kind is not DataErrorKind.CONFIG), read=DataErrorKind
    ),
]
IsolationLevel = Annotated[
    Literal["read committed", "repeatable read", "serializable"],
    values.word("IsolationLevel", "read committed", "repeatable read", "serializable"),
]


class Omissible:
    """Marks a key that may be left out, but not be written as `null` instead: `None` is only its default."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if schema["type"] != "nullable":
            raise TypeError("Omissible goes first behind `X | None`")
        inner: CoreSchema = schema["schema"]
        return inner
