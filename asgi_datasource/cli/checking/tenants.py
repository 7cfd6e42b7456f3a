"""Who is looked at: the tenants of the document, and of a table as many as can be asked for in a moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...config import CatalogConfig, Code, Config, Diagnostic, Severity
from ...drivers.psycopg import open_control
from ...errors import DataError, DataErrorKind
from ...registry.compiler import endpoint_settings
from ...tenancy import TABLE_QUERY, RowReader, Tenant, TenantCompiler, TenantMap, compile_tenants

MOST_OF_TABLE: Final = 1000
"""How many tenants of a table are looked at."""

_SAMPLE: Final = """
select t.*, count(*) over () as asgi_datasource_count from ({}) t order by md5(t.name::text), t.name limit {}"""
"""Spread over the table, and the same ones each time."""


@dataclass(frozen=True, slots=True)
class Population:
    """The tenants that are looked at.

    Attributes:
        tenants: By name; those of the document go before those of the table.
        notes: What has been left out.
        problems: Why the table's are not known.
    """

    tenants: tuple[Tenant, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[Diagnostic, ...] = ()


async def find_tenants(config: Config) -> Population:
    """The tenants of a configuration; asks its catalog, where it has one."""
    fixed = compile_tenants(config).names
    catalog = config.tenants_from
    if catalog is None:
        return Population(tuple(fixed.values()))
    try:
        found, count, total = await _ask(config, catalog)
    except DataError as error:
        unknown = "the tenants of tenants_from are not known, and were not looked at"
        if error.kind is DataErrorKind.CONNECTION:
            # That its server does not answer is told anyway.
            return Population(tuple(fixed.values()), (unknown,))
        message = f"{unknown}: {error.message}"
        mend = "Make its table or mend its query, and let the login read it."
        problem = Diagnostic(Code.CANNOT_TELL, ("tenants_from",), message, mend, severity=Severity.WARNING)
        return Population(tuple(fixed.values()), (), (problem,))
    notes = () if count == total else (f"{count:,} of the {total:,} tenants of tenants_from were looked at",)
    return Population(tuple({**found.names, **fixed}.values()), notes)


async def _ask(config: Config, catalog: CatalogConfig) -> tuple[TenantMap, int, int]:
    """Some tenants of the table, how many rows these were, and how many there are."""
    datasource = config.datasources[catalog.datasource]
    settings = endpoint_settings(datasource.pool, datasource.primary.url.get_secret_value())
    async with open_control(settings, where=f"datasource {catalog.datasource!r}") as probe:
        columns, rows = await probe.table(_SAMPLE.format(catalog.query or TABLE_QUERY, MOST_OF_TABLE))
    try:
        reader = RowReader(columns, TenantCompiler(config.datasources), catalog.defaults)
    except ValueError as error:
        raise DataError(DataErrorKind.CONFIG, str(error)) from None
    reader.add(rows)
    return reader.map(), len(rows), int(rows[0][columns.index("asgi_datasource_count")]) if rows else 0
