"""Selects the tenants to check: those of the document, and a sample of those in the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...config import CatalogConfig, Code, Config, Diagnostic, Severity
from ...drivers.control import open_control
from ...errors import DataError, DataErrorKind
from ...registry.compiler import server_settings
from ...tenancy import TABLE_QUERY, RowReader, Tenant, TenantCompiler, TenantMap, compile_tenants

MOST_OF_TABLE: Final = 1000
"""Most tenants of a table that are checked."""

_SAMPLE: Final = """
select t.*, count(*) over () as asgi_datasource_count from ({}) t order by md5(t.name::text), t.name limit {}"""
"""A deterministic sample, spread over the table."""


@dataclass(frozen=True, slots=True)
class Population:
    """The tenants to check.

    Attributes:
        tenants: The tenants; those of the document take precedence over those of the table.
        notes: What was left out.
        problems: Why the tenants of the table are unknown.
    """

    tenants: tuple[Tenant, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[Diagnostic, ...] = ()


async def find_tenants(config: Config) -> Population:
    """The tenants of a configuration, including those of its table."""
    fixed = compile_tenants(config).names
    catalog = config.tenants_from
    if catalog is None:
        return Population(tuple(fixed.values()))
    try:
        found, count, total = await _ask(config, catalog)
    except DataError as error:
        unknown = "the tenants of tenants_from are unknown and were not checked"
        if error.kind is DataErrorKind.CONNECTION:
            # The query of the server itself reports that it does not answer.
            return Population(tuple(fixed.values()), (unknown,))
        message = f"{unknown}: {error.message}"
        fix = "Create its table or fix its query, and grant the login access."
        problem = Diagnostic(Code.CANNOT_TELL, ("tenants_from",), message, fix, severity=Severity.WARNING)
        return Population(tuple(fixed.values()), (), (problem,))
    notes = () if count == total else (f"{count:,} of the {total:,} tenants of tenants_from were checked",)
    return Population(tuple({**found.names, **fixed}.values()), notes)


async def _ask(config: Config, catalog: CatalogConfig) -> tuple[TenantMap, int, int]:
    """A sample of the table's tenants, its number of rows, and the number of all rows."""
    datasource = config.datasources[catalog.datasource]
    settings = server_settings(datasource.pool, datasource.primary.url.get_secret_value())
    async with open_control(settings, where=f"datasource {catalog.datasource!r}") as probe:
        columns, rows = await probe.table(_SAMPLE.format(catalog.query or TABLE_QUERY, MOST_OF_TABLE))
    try:
        reader = RowReader(columns, TenantCompiler(config.datasources), catalog.defaults)
    except ValueError as error:
        raise DataError(DataErrorKind.CONFIG, str(error)) from None
    reader.add(rows)
    return reader.map(), len(rows), int(rows[0][columns.index("asgi_datasource_count")]) if rows else 0
