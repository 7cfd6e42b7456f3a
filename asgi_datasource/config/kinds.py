"""The kinds of scalars in the document, each with its form."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import GetCoreSchemaHandler, SecretStr
from pydantic_core import CoreSchema

from ..errors import DataErrorKind
from . import values
from .url import DatabaseUrl

_NAME: Final = "a name of letters, digits, '_' and '-' that starts with a letter or digit"
_NAME_PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9_-]*"
_IDENTIFIER: Final = "[A-Za-z_][A-Za-z0-9_]*"
_DOTTED: Final = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
_SEGMENT: Final = r"[^/*?#{}\x00-\x20\x7f]+"
_LABEL: Final = r"[^\x00-,./:-@\[-\^`{-\x7f]+"
_HOST: Final = rf"{_LABEL}(?:\.{_LABEL})*\.?"
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
EVERY_OTHER: Final = "*"
"""Used as a tenant's name: all names that are not listed."""
TenantName = Annotated[
    str,
    values.text(
        "TenantName",
        "a tenant name: 1 to 255 characters, without '*', braces and control characters; or '*' alone for all others",
        rf"\*|{_TENANT_NAME}",
        takes_reference=False,
    ),
]
is_tenant_name: Final = re.compile(rf"(?=.{{1,255}}\Z)(?:\*|{_TENANT_NAME})").fullmatch
"""The same check, for names whose tenants are already validated."""
DatabaseIdentifier = Annotated[
    str,
    values.text(
        "DatabaseIdentifier",
        "a name in the database: 1 to 63 characters, without braces and control characters",
        r"[^\x00-\x1f\x7f{}]+",
        maximum=63,
    ),
]
_TENANT: Final = r"\{tenant\}"
TenantIdentifier = Annotated[
    str,
    values.text(
        "TenantIdentifier",
        "a name in the database: 1 to 63 characters, without control characters, and braces only as {tenant}",
        rf"(?:[^\x00-\x1f\x7f{{}}]|{_TENANT})+",
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
        "a string of at most 1000 characters, without control characters, and braces only as {tenant}",
        rf"(?:[^\x00-\x1f\x7f{{}}]|{_TENANT})*",
        minimum=0,
        maximum=1000,
        mask=values.hide,  # identifies the customer
    ),
]
ZoneName = Annotated[
    str,
    values.text(
        "ZoneName", "the name of a zone: 1 to 63 letters, digits, '_', '.', ':' and '-'", "[A-Za-z0-9_.:-]+", maximum=63
    ),
]
PATH_PREFIX: Final = values.text(
    "PathPrefix", "a path such as /docs, without '*', '?' and '#'", rf"(?:/{_SEGMENT})+/?", maximum=1000
)
PathPrefix = Annotated[str, PATH_PREFIX]
ExemptPreset = Annotated[Literal["fastapi"], values.word("ExemptPreset", "fastapi")]
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
        rf"{_LABEL}(?:\.{_LABEL})*",
        maximum=253,
    ),
]
HostName = Annotated[
    str,
    values.text(
        "HostName",
        "a host such as shop.example.com, without scheme and port",
        _HOST,
        maximum=254,
        takes_reference=False,
    ),
]
HostPattern = Annotated[
    str,
    values.text(
        "HostPattern",
        "a host such as shop.example.com, or *.example.com for all below it, without scheme and port",
        rf"(?:\*\.)?{_HOST}",
        maximum=256,
    ),
]
ProxyAddress = Annotated[
    str,
    values.text(
        "ProxyAddress",
        "an address such as 10.0.0.7, a network such as 10.0.0.0/8, or unix for a Unix socket",
        r"unix|[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?",
        maximum=64,
    ),
]
TrustedHeader = Annotated[
    Literal["forwarded", "x-forwarded-host", "none"],
    values.word("TrustedHeader", "forwarded", "x-forwarded-host", "none"),
]
QueryName = Annotated[
    str, values.text("QueryName", "the name of a query parameter, such as tenant", r"[A-Za-z0-9_.-]+", maximum=64)
]
CookieName = Annotated[
    str, values.text("CookieName", "the name of a cookie, such as tenant", r"[A-Za-z0-9_.-]+", maximum=64)
]
ScopePath = Annotated[
    str,
    values.text(
        "ScopePath",
        "a path into the ASGI scope such as user.tenant_id",
        r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z_][A-Za-z0-9_-]*)*",
    ),
]
ClaimName = Annotated[
    str,
    values.text("ClaimName", "the name of a claim, or a path of them such as org.id", r"[^\x00-\x20\x7f{}]+"),
]
ClaimValue = Annotated[
    str, values.text("ClaimValue", "a string without braces and control characters", r"[^\x00-\x1f\x7f{}]+")
]
TokenAlgorithm = Annotated[
    str,
    values.word(
        "TokenAlgorithm",
        *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        *("ES256", "ES384", "ES512", "EdDSA"),
    ),
]
FixedTenant = Annotated[
    str,
    values.text(
        "FixedTenant",
        "a tenant name: 1 to 255 characters, without '*', braces and control characters",
        _TENANT_NAME,
    ),
]
TenantStateWord = Annotated[
    Literal["active", "read_only", "suspended", "moving"],
    values.word("TenantState", "active", "read_only", "suspended", "moving"),
]
FilePath = Annotated[
    str,
    values.text(
        "FilePath",
        "the path of a file; a relative one starts at this document",
        r"[^\x00-\x1f\x7f]+",
        maximum=4096,
        is_free=True,
    ),
]
StageName = Annotated[str, values.text("StageName", _NAME, _NAME_PATTERN, maximum=63)]
SqlQuery = Annotated[
    str,
    values.text("SqlQuery", "a query in one line, without ';'", r"[^\x00-\x1f\x7f;]+", maximum=10_000, is_free=True),
]
ChannelName = Annotated[
    str, values.text("ChannelName", "the name of a channel: letters, digits and '_'", _IDENTIFIER, maximum=63)
]
SetUpStep = Annotated[
    str,
    values.text(
        "SetUpStep",
        "a file that ends in .sql, or a function as package.module:function",
        rf"[^\x00-\x1f\x7f:]+\.sql|{_DOTTED}:{_DOTTED}",
        maximum=4096,
    ),
]
SecretText = Annotated[SecretStr, values.secret_text("SecretText")]
ServiceUrl = Annotated[SecretStr, values.service_url("ServiceUrl")]
IncludePattern = Annotated[
    str,
    values.text(
        "IncludePattern",
        "the path of a file, with * and ** for any names",
        r"[^\x00-\x1f\x7f{}]+",
        maximum=1000,
        takes_reference=False,
    ),
]
CallablePath = Annotated[
    str, values.text("CallablePath", "a function as package.module:function", rf"{_DOTTED}:{_DOTTED}")
]
_TYPE: Final = r"[^\x00-\x20\x7f{}]+"
TypeSpecification = Annotated[
    str,
    values.text(
        "TypeSpecification",
        "hstore, vector, halfvec, sparsevec, or enum, composite or range with the type's name, and as"
        " package.module:Class behind it where wanted",
        rf"(?:hstore|vector|halfvec|sparsevec|range {_TYPE}"
        rf"|(?:enum|composite) {_TYPE}(?: as {_DOTTED}:{_DOTTED})?)",
    ),
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
DayCount = Annotated[
    str, values.text("DayCount", "a number of days from 1d to 9999d, such as 7d", "[1-9][0-9]{0,3}d", maximum=5)
]
KafkaServers = Annotated[
    str,
    values.text(
        "KafkaServers",
        "one or more host:port, separated by commas",
        r"[^\x00-\x20\x7f,:{}]+:[0-9]{1,5}(?:,[^\x00-\x20\x7f,:{}]+:[0-9]{1,5})*",
        maximum=1000,
    ),
]
ExchangeName = Annotated[
    str,
    values.text(
        "ExchangeName",
        "the name of an exchange: at most 127 letters, digits, '_', '.', ':' and '-'",
        "[A-Za-z0-9_.:-]*",
        minimum=0,
        maximum=127,
    ),
]
SourceUri = Annotated[
    str,
    values.text("SourceUri", "a URI, without spaces and braces", r"[^\x00-\x20\x7f{}]+", maximum=1000),
]
Url = Annotated[DatabaseUrl, values.database_url("DatabaseUrl")]

Duration = Annotated[float, values.duration("Duration")]
WholeSeconds = Annotated[float, values.duration("WholeSeconds", whole_seconds=True)]
Size = Annotated[int, values.size("Size")]
Retries = Annotated[int, values.integer("Retries", 0, 20)]
Parallel = Annotated[int, values.integer("Parallel", 1, 100)]
Flag = Annotated[bool, values.flag("Flag")]
Version = Annotated[Literal[1], values.constant("Version", 1, takes_reference=False)]
PoolMinimum = Annotated[int, values.integer("PoolMinimum", 0, 10_000)]
Depth = Annotated[int, values.integer("Depth", 1, 64)]
OpenPools = Annotated[int, values.integer("OpenPools", 1, 10_000)]
PoolSize = Annotated[int, values.integer("PoolSize", 1, 10_000)]
Weight = Annotated[int, values.integer("Weight", 1, 100)]
ProcessCount = Annotated[int, values.integer("ProcessCount", 1, 100_000)]
ReservedConnections = Annotated[int, values.integer("ReservedConnections", 0, 10_000)]
ConnectionLimit = Annotated[int, values.integer("ConnectionLimit", 1, 262_143)]
MetricTenants = Annotated[int, values.integer("MetricTenants", 0, 10_000)]
QueueLength = Annotated[int, values.integer("QueueLength", 0, 1_000_000)]
InFlightLimit = Annotated[int, values.integer("InFlightLimit", 1, 1_000_000)]
OutboxAttempts = Annotated[int, values.integer("OutboxAttempts", 1, 1000)]
OutboxConnections = Annotated[int, values.integer("OutboxConnections", 1, 1000)]
StreamLength = Annotated[int, values.integer("StreamLength", 1, 1_000_000_000)]
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
RoutePropagation = Annotated[
    Literal["required", "not_supported"], values.word("RoutePropagation", "required", "not_supported")
]
IsolationLevel = Annotated[
    Literal["read committed", "repeatable read", "serializable"],
    values.word("IsolationLevel", "read committed", "repeatable read", "serializable"),
]


class Omissible:
    """Marks a key that may be omitted but not be `null`: `None` is only its default."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if schema["type"] != "nullable":
            raise TypeError("Omissible goes first behind `X | None`")
        inner: CoreSchema = schema["schema"]
        return inner
