"""The types of a datasource (`datasources.X.types`): enums, composites, ranges and those of extensions.

A name such as `color` may be another type for each tenant, with an OID of its own: names are resolved with the tenant's
own settings, when a connection is lent to the tenant, and each connection has adapters for each of its tenants.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from psycopg.adapt import AdaptersMap
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.hstore import register_hstore
from psycopg.types.range import RangeInfo, register_range

from ...errors import ConfigError
from .. import import_object
from ..protocol import Connection, TenantIdentity
from ..settings import TypeName
from ..statements import Settings, Statement

if TYPE_CHECKING:
    from psycopg import AsyncConnection

logger = logging.getLogger("asgi_datasource.server")

KEPT_S: Final = 60.0
"""Seconds after which the types of a tenant are looked up again: a migration may have changed them."""

MISSING_KEPT_S: Final = 2.0
"""The same while a type does not exist."""

MAX_KNOWN: Final = 10_000
"""Tenants whose types are remembered."""

_QUESTION: Final = (
    "select n.place, t.typname::pg_catalog.text as name, t.oid as oid, t.typarray as array_oid,"
    " t.oid::pg_catalog.regtype::pg_catalog.text as regtype,"
    " array(select e.enumlabel::pg_catalog.text from pg_catalog.pg_enum e"
    " where e.enumtypid operator(pg_catalog.=) t.oid order by e.enumsortorder) as labels,"
    " array(select a.attname::pg_catalog.text from pg_catalog.pg_attribute a where a.attrelid operator(pg_catalog.=)"
    " t.typrelid and a.attnum operator(pg_catalog.>) 0 and not a.attisdropped order by a.attnum) as field_names,"
    " array(select a.atttypid from pg_catalog.pg_attribute a where a.attrelid operator(pg_catalog.=)"
    " t.typrelid and a.attnum operator(pg_catalog.>) 0 and not a.attisdropped order by a.attnum) as field_types,"
    " (select r.rngsubtype from pg_catalog.pg_range r where r.rngtypid operator(pg_catalog.=) t.oid) as subtype_oid,"
    " t.typtype::pg_catalog.text as kind"
    " from rows from (pg_catalog.unnest(%s::pg_catalog.text[])) with ordinality as n(name, place)"
    " join pg_catalog.pg_type t on t.oid operator(pg_catalog.=) pg_catalog.to_regtype(n.name)::pg_catalog.oid"
)

_KINDS: Final = {"enum": "e", "composite": "c", "range": "r"}
"""`pg_type.typtype` of the kinds that have one."""


class TypeContext:
    """What psycopg registers adapters in, and makes a transformer of."""

    def __init__(self, adapters: AdaptersMap, connection: AsyncConnection[Any] | None = None) -> None:
        self.adapters = adapters
        self.connection = connection


class TenantTypes:
    """The types of one tenant, resolved. Compared by identity.

    Args:
        specs: The types of the datasource.
        rows: What the server knows of them, by the place of the type.
        expires_at: Event-loop time after which they are looked up again.
    """

    def __init__(self, specs: Sequence[TypeName], rows: Mapping[int, Mapping[str, Any]], expires_at: float) -> None:
        self.rows = rows
        self.expires_at = expires_at
        self._specs = specs

    def adapters(self, base: AdaptersMap) -> AdaptersMap:
        """The adapters of a connection, and those of the types."""
        context = TypeContext(AdaptersMap(base))
        for place, spec in enumerate(self._specs, 1):
            row = self.rows.get(place)
            if row is not None:
                _register(spec, row, context)
        return context.adapters


class TypeRegistry:
    """Resolves the types of a datasource for its tenants, on one server.

    Args:
        specs: The types.
        label: Names the server.
    """

    def __init__(self, specs: Sequence[TypeName], label: str) -> None:
        self._specs = specs
        self._label = label
        self._known: dict[tuple[tuple[str, str], ...], TenantTypes] = {}
        self._is_reported: set[str] = set()

    def known(self, tenant: TenantIdentity | None) -> TenantTypes | None:
        """The types of a tenant; None if they are to be looked up."""
        found = self._known.get(_key(tenant))
        if found is None or found.expires_at <= asyncio.get_running_loop().time():
            return None
        return found

    def forget(self) -> None:
        """The schema has changed: look all of them up again."""
        for types in self._known.values():
            types.expires_at = 0.0

    async def learn(
        self, connection: Connection, tenant: TenantIdentity | None, deadline: float | None
    ) -> TenantTypes | None:
        """Look the types of a tenant up on a connection that was lent to it: one round trip.

        Returns:
            The types; None if they could not be read, for a reason that the tenant's next statement will report.
        """
        settings = () if tenant is None else tenant.settings
        names = [spec.name for spec in self._specs]
        exchange = await connection.exchange(
            (Settings(settings, is_read=True, deadline=deadline), Statement(_QUESTION, [names])), deadline=deadline
        )
        if exchange.error is not None:
            return None
        answer = exchange.answers(1, 1)[0]
        rows = {row["place"]: row for row in answer.rows() if self._fits(row)}
        is_complete = len(rows) == len(names)
        expires_at = asyncio.get_running_loop().time() + (KEPT_S if is_complete else MISSING_KEPT_S)
        key = _key(tenant)
        before = self._known.get(key)
        if before is not None and before.rows == rows:
            before.expires_at = expires_at
            return before
        for place, spec in enumerate(self._specs, 1):
            if place not in rows and spec.name not in self._is_reported:
                self._is_reported.add(spec.name)
                logger.warning(
                    "%s: a tenant has no type %s %s (datasources.*.types): its values are plain text there",
                    self._label,
                    spec.kind,
                    spec.name,
                )
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        found = self._known[key] = TenantTypes(self._specs, rows, expires_at)
        return found

    def _fits(self, row: Mapping[str, Any]) -> bool:
        spec: TypeName = self._specs[int(row["place"]) - 1]
        wanted = _KINDS.get(spec.kind)
        return wanted is None or row["kind"] == wanted


def _key(tenant: TenantIdentity | None) -> tuple[tuple[str, str], ...]:
    """What decides which type a name is: tenants under row security in one schema share their types."""
    if tenant is None:
        return ()
    return tuple([pair for pair in tenant.settings if pair[0] in ("search_path", "role")])


def load_python_class(path: str) -> type[Any]:
    """The class at `package.module:Class`.

    Raises:
        ConfigError: It cannot be imported, or is no class.
    """
    try:
        found = import_object(path)
    except ImportError as error:
        raise ConfigError(f"types: the class {path!r} cannot be imported: {error}") from error
    if not isinstance(found, type):
        raise ConfigError(f"types: {path!r} is not a class")
    return found


def check_types(specs: Sequence[TypeName]) -> None:
    """Check what the types need of Python.

    Raises:
        ConfigError: A class cannot be imported or is no Enum, or pgvector is not installed.
    """
    for spec in specs:
        cls = None if spec.python is None else load_python_class(spec.python)
        if spec.kind == "enum" and cls is not None and not issubclass(cls, Enum):
            raise ConfigError(f"types: {spec.python!r} is not an Enum, as 'enum {spec.name}' needs")
        if spec.kind in _PGVECTOR:
            _pgvector(spec.kind)


def _register(spec: TypeName, row: Mapping[str, Any], context: TypeContext) -> None:
    cls = None if spec.python is None else load_python_class(spec.python)
    common = {name: row[name] for name in ("name", "oid", "array_oid", "regtype")}
    adapters: Any = context
    if spec.kind == "enum":
        if cls is None:
            # Labels are text, which needs no loader; the type is known for arrays.
            TypeInfo(**common).register(adapters)
        else:
            enum_info = EnumInfo(labels=row["labels"], **common)
            register_enum(enum_info, adapters, cls, mapping=_labels(cls, row["labels"]))
    elif spec.kind == "composite":
        composite = CompositeInfo(field_names=row["field_names"], field_types=row["field_types"], **common)
        if cls is None:
            register_composite(composite, adapters)
        else:
            register_composite(composite, adapters, cls, make_object=_maker(cls), make_sequence=_fields)
    elif spec.kind == "range":
        register_range(RangeInfo(subtype_oid=row["subtype_oid"], **common), adapters)
    elif spec.kind == "hstore":
        register_hstore(TypeInfo(**common), adapters)
    else:
        _pgvector(spec.kind)(adapters, TypeInfo(**common))


_PGVECTOR: Final = ("vector", "halfvec", "sparsevec")


def _pgvector(kind: str) -> Callable[[Any, TypeInfo], None]:
    """The function of pgvector that registers a type."""
    try:
        module: Any = import_module(f"pgvector.psycopg.{kind}")
    except ImportError as error:
        raise ConfigError(f"types: {kind} needs pgvector: pip install 'asgi-datasource[pgvector]'") from error
    return cast("Callable[[Any, TypeInfo], None]", getattr(module, f"register_{kind}_info"))


def _labels(cls: type[Enum], labels: Sequence[str]) -> dict[Enum, str]:
    """The label of each member: its value if that is a label, or else its name."""
    known = set(labels)
    found = {member: member.value if member.value in known else member.name for member in cls}
    return {member: label for member, label in found.items() if label in known}


_makers: dict[type[Any], Callable[[Sequence[Any], CompositeInfo], Any]] = {}


def _maker(cls: type[Any]) -> Callable[[Sequence[Any], CompositeInfo], Any]:
    """What makes objects of a class of a composite's fields; one function a class, because psycopg caches by it."""
    found = _makers.get(cls)
    if found is not None:
        return found

    def make(values: Sequence[Any], info: CompositeInfo) -> Any:
        return cls(**dict(zip(info.field_names, values, strict=True)))

    _makers[cls] = make
    return make


def _fields(value: Any, info: CompositeInfo) -> Sequence[Any]:
    return [getattr(value, name) for name in info.field_names]
