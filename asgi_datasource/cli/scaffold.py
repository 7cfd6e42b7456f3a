"""Makes a first configuration from a project's settings: its servers, without their passwords."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import quote, unquote

from ..config import mask_url
from ..drivers import import_application_module
from .command import CannotRun


@dataclass(frozen=True, slots=True)
class Server:
    """A server.

    Attributes:
        datasource: The datasource it belongs to.
        node: `primary`, or the replica's name.
        variable: The environment variable of its URL.
        shown: Its masked URL.
    """

    datasource: str
    node: str
    variable: str
    shown: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a configuration.

    Attributes:
        source: A description; empty when there is none.
        servers: The servers; each primary is followed by its replicas.
    """

    source: str
    servers: tuple[Server, ...]


_SQLALCHEMY: Final = re.compile(r"^(postgres(?:ql)?)\+[a-z0-9_]+://")
_NAME: Final = re.compile(r"[^A-Za-z0-9_-]+")


def plain_url(url: str) -> str:
    """A SQLAlchemy URL without the driver's name, as libpq reads it.

    Raises:
        CannotRun: It is not a PostgreSQL URL.
    """
    found = _SQLALCHEMY.sub(r"\1://", url)
    if not found.startswith(("postgresql://", "postgres://")):
        scheme = found.partition(":")[0] if "://" in found else "no URL"
        raise CannotRun(f"this is not PostgreSQL: {scheme[:20]}", "Only PostgreSQL is supported.")
    return found


def from_url(url: str, name: str, variable: str) -> Origin:
    """The server of a URL.

    Args:
        url: A PostgreSQL or SQLAlchemy URL.
        name: The datasource's name; empty takes the database's name.
        variable: The environment variable of the URL.
    """
    plain = plain_url(url)
    shown = mask_url(plain)
    database = re.sub(r"\?.*", "", plain).rpartition("/")[2]
    named = name or _clean(unquote(database)) or "orders"
    if plain != url:
        # libpq cannot read a URL with a driver's name, so the configuration needs another variable.
        variable = f"{named.upper().replace('-', '_')}_PRIMARY_URL"
    return Origin("a connection URL", (Server(named, "primary", variable, shown),))


def _clean(name: str) -> str:
    return _NAME.sub("-", name).strip("-_")[:63]


def from_object(path: str, name: str) -> Origin:
    """The server of an object with a URL.

    Args:
        path: `module:name`; an advanced-alchemy config, a SQLAlchemy engine, a URL or a string.
        name: The datasource's name.
    """
    module, _, attribute = path.partition(":")
    found: Any = _imported(module)
    for part in filter(None, attribute.split(".")):
        found = getattr(found, part, None)
    for key in ("connection_string", "url", "sync_engine"):
        inner = getattr(found, key, None)
        if inner is not None and not isinstance(found, str):
            found = getattr(inner, "url", inner)
            break
    render = getattr(found, "render_as_string", None)
    url = render(hide_password=False) if callable(render) else found
    if not isinstance(url, str):
        raise CannotRun(f"{path} holds no connection string", "Name a config, an engine, or a URL.")
    origin = from_url(url, name, "DATABASE_URL")
    return Origin(path, origin.servers)


def _imported(module: str) -> Any:
    try:
        return import_application_module(module)
    except ImportError as error:
        raise CannotRun(f"{module} cannot be imported: {error}", "Run it in the folder of the application.") from None


def from_django(module: str) -> Origin:
    """The servers of Django's `DATABASES`.

    A database is a replica of another one if it is its test mirror, or has its name with a suffix such as `_replica`.

    Args:
        module: The settings module.
    """
    databases: object = getattr(_imported(module), "DATABASES", None)
    if not isinstance(databases, Mapping) or not databases:
        raise CannotRun(f"{module} has no DATABASES", "Name Django's settings.")
    entries: dict[str, Mapping[str, Any]] = {
        str(alias): cast("Mapping[str, Any]", entry)
        for alias, entry in cast("Mapping[object, object]", databases).items()
        if isinstance(entry, Mapping) and "postg" in str(cast("Mapping[str, Any]", entry).get("ENGINE", ""))
    }
    if not entries:
        raise CannotRun(f"{module} has no PostgreSQL database in DATABASES", "Only PostgreSQL is supported.")
    servers: list[Server] = []
    primaries = [alias for alias in entries if _primary_of(alias, entries) is None]
    for alias in primaries:
        name = _clean(str(entries[alias].get("NAME") or alias)) or "orders"
        servers.append(_django_server(name, "primary", entries[alias]))
        servers += [
            _django_server(name, _clean(other), entries[other])
            for other in entries
            if _primary_of(other, entries) == alias
        ]
    return Origin(f"DATABASES of {module}", tuple(servers))


_REPLICA: Final = re.compile(r"(?:^|_)(?:replica|read|readonly|ro|slave|standby)\w*\Z", re.IGNORECASE)


def _primary_of(alias: str, entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The primary of a replica; None for a primary."""
    test: object = entries[alias].get("TEST") or {}
    mirror = cast("Mapping[str, Any]", test).get("MIRROR") if isinstance(test, Mapping) else None
    if isinstance(mirror, str) and mirror in entries:
        return mirror
    front = _REPLICA.sub("", alias)
    if front == alias:
        return None
    return front if front in entries else "default" if "default" in entries and alias != "default" else None


def _django_server(name: str, node: str, entry: Mapping[str, Any]) -> Server:
    variable = f"{name}_{node}_URL".upper().replace("-", "_")
    host = str(entry.get("HOST") or "localhost")
    port = f":{entry['PORT']}" if entry.get("PORT") else ""
    return Server(name, node, variable, f"postgresql://{host}{port}/{quote(str(entry.get('NAME') or ''))}")


SCHEMA_FILE: Final = "datasource.schema.json"
"""The JSON Schema that a first configuration names, in its folder."""

_HEAD: Final = """\
# yaml-language-server: $schema=./datasource.schema.json
# It completes and checks this file in your editor; after an upgrade, write it again:
#   asgi-datasource schema --output datasource.schema.json
# asgi-datasource validate checks it without a database, asgi-datasource check compares it with the servers.
version: 1

# The databases. Keep passwords out of this file: ${NAME} is an environment variable, {file: path} a file's content.
datasources:
"""
_TAIL: Final = """\

# How requests name their tenant: resolvers are tried in order, the first answer applies.
tenancy:
  resolve:
    - {header: X-Tenant}
    # - {subdomain_of: app.example.com}
  exempt: [/healthz]                  # paths without tenant and database

# The tenants, each with its datasource and its isolation: a schema, row security, or a datasource of its own.
tenants:
  example: {datasource: NAME, schema: example}
  # another: {datasource: NAME, row_security: {app.tenant: another}}

# For routes without an annotation of their own; the first match applies.
# routes:
#   - {match: "POST /search", intent: read}

transactions:
  deadline: 30s                       # from the first byte of a request to the end of COMMIT
  rollback_on: [4xx, 5xx]

# How many connections the processes may open; check compares it with the servers' limits.
budget: {processes: 1, reserve: 10}
"""


def render_config(origin: Origin) -> str:
    """The configuration as commented YAML."""
    lines: list[str] = []
    last = ""
    for server in origin.servers:
        if server.datasource != last:
            last = server.datasource
            lines.append(f"  {last}:")
            lines.append(f'    primary: {{url: "${{{server.variable}}}"}}      # {server.shown}')
            if not any(other.datasource == last and other.node != "primary" for other in origin.servers):
                variable = f"{last.upper().replace('-', '_')}_R1_URL"
                lines += ["    # replicas:                       # streaming replicas: reads go there"]
                lines += [f'    #   r1: {{url: "${{{variable}}}"}}']
            else:
                lines.append("    replicas:")
        else:
            lines.append(f'      {server.node}: {{url: "${{{server.variable}}}"}}      # {server.shown}')
    # The pool follows the servers of each datasource.
    text = "\n".join(lines)
    blocks = re.split(r"(?m)^(?=  \S)", text)
    pooled = "".join(
        f"{block.rstrip()}\n    pool: {{min_size: 1, max_size: 10}}\n" for block in blocks if block.strip()
    )
    return f"{_HEAD}{pooled}{_TAIL.replace('NAME', origin.servers[0].datasource)}"
