"""Fill the databases: schemas, migrations, and the flights of each airline with COPY, as in datasource.yaml."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import yaml
from psycopg import sql
from psycopg.conninfo import make_conninfo

from asgi_datasource import load as load_config
from asgi_datasource.migrate import Migrator, Verdict
from examples.starlette_app.dataset import Dataset

HERE: Final = Path(__file__).parent
APP_ROLE: Final = "app"
OWN_DATABASE_SCHEMA: Final = "desk"
"""Schema of the tables in an airline's own database."""


@dataclass(frozen=True, slots=True)
class Place:
    """The database and schema of an airline.

    Attributes:
        carrier: The airline's code in the data set; the tenant's name is the same in lower case.
        datasource: Name of the datasource; the database on the embedded servers has the same name.
        schema: The schema of its tables.
        is_shared: It shares tables with other airlines, isolated by row security.
    """

    carrier: str
    datasource: str
    schema: str
    is_shared: bool

    @property
    def isolation(self) -> str:
        """The kind of isolation: `database`, `schema` or `rows`."""
        if self.is_shared:
            return "rows"
        return "database" if self.schema == OWN_DATABASE_SCHEMA else "schema"


def places() -> list[Place]:
    """Every tenant of datasource.yaml, in its order."""
    return [
        Place(
            carrier=str(name).upper(),
            datasource=tenant["datasource"],
            schema=tenant["schema"],
            is_shared="row_security" in tenant,
        )
        for name, tenant in _document()["tenants"].items()
    ]


def _document() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((HERE / "datasource.yaml").read_text(encoding="utf-8"))
    return document


async def migrate(urls: Mapping[str, str]) -> None:
    """Bring the schemas of all airlines to the version of the migrations, as `asgi-datasource migrate apply` does.

    Args:
        urls: For each datasource the URL of its database on the primary, for the role that owns the tables.
    """
    document = _document()
    for name, url in urls.items():
        # The migrations need the primary alone, and no login but the owner's.
        document["datasources"][name]["admin"] = {"url": url}
        document["datasources"][name].pop("replicas")
    document["migrate"]["folder"] = str(HERE / "migrations")
    environ = {f"{name.upper()}_PRIMARY_URL": make_conninfo(url, user=APP_ROLE) for name, url in urls.items()}
    # Where events go is nothing that tables depend on.
    document["outbox"] = {"relay": "off"}
    document.pop("consistency")
    config = load_config(document, environ=environ, needs_resolver=False)
    report = await Migrator(config).apply()
    if report.verdict is not Verdict.AT_HEAD:
        raise RuntimeError("; ".join(f"{one.name}: {one.failed}: {one.error}" for one in report.schemas if one.error))


async def load(dataset: Dataset, urls: Mapping[str, str], progress: Callable[[str], None] = lambda text: None) -> int:
    """Fill one empty database for each datasource, concurrently.

    Args:
        dataset: The flights to load.
        urls: For each datasource the URL of its database on the primary, for a role that may create schemas.
        progress: Called with a description of each completed step.

    Returns:
        The number of flights loaded.
    """
    homes: dict[str, list[Place]] = {name: [] for name in urls}
    for place in places():
        homes[place.datasource].append(place)
    await asyncio.gather(*(asyncio.to_thread(_make_schemas, urls[name], homes[name]) for name in urls))
    await migrate(urls)
    counts = await asyncio.gather(
        *(asyncio.to_thread(_fill, dataset, urls[name], homes[name], progress) for name in urls)
    )
    return sum(counts)


def _make_schemas(url: str, homes: list[Place]) -> None:
    with psycopg.connect(url) as conn:
        for schema in dict.fromkeys(place.schema for place in homes):
            name = sql.Identifier(schema)
            conn.execute(sql.SQL("create schema {}; grant usage on schema {} to app").format(name, name))


def _fill(dataset: Dataset, url: str, homes: list[Place], progress: Callable[[str], None]) -> int:
    """Fill one database; blocking, because COPY is a stream."""
    with psycopg.connect(url) as conn:
        _copy_reference(conn, dataset)
        _copy_staging(conn, dataset, {place.carrier for place in homes})
        total = 0
        for schema in dict.fromkeys(place.schema for place in homes):
            total += _fill_desk(conn, schema, [place for place in homes if place.schema == schema])
            progress(schema)
        conn.commit()
        conn.autocommit = True
        conn.execute("vacuum (analyze)")
    return total


def _copy_reference(conn: psycopg.Connection[tuple[object, ...]], dataset: Dataset) -> None:
    with conn.cursor() as cur:
        with cur.copy("copy ref.airlines from stdin") as copy:
            for row in dataset.rows("airlines.csv"):
                copy.write_row((row["carrier"], row["name"]))
        with cur.copy("copy ref.airports from stdin") as copy:
            for row in dataset.rows("airports.csv"):
                copy.write_row((row["faa"], row["name"], row["lat"], row["lon"]))
        with cur.copy("copy ref.planes from stdin") as copy:
            for row in dataset.rows("planes.csv"):
                built = None if row["year"] == "NA" else row["year"]
                copy.write_row((row["tailnum"], built, row["manufacturer"], row["model"], row["seats"]))


def _copy_staging(conn: psycopg.Connection[tuple[object, ...]], dataset: Dataset, carriers: set[str]) -> None:
    """Copy the lines of these carriers unchanged into a temporary table, which is not replicated."""
    conn.execute("""
        create temporary table staging (
          id bigint, year int, month int, day int, dep_time int, sched_dep_time int, dep_delay int, arr_time int,
          sched_arr_time int, arr_delay int, carrier text, flight int, tailnum text, origin text, dest text,
          air_time int, distance int, hour int, minute int, time_hour text
        ) on commit drop
    """)
    chunk: list[str] = []
    with conn.cursor() as cur, cur.copy("copy staging from stdin (format csv, null 'NA')") as copy:
        for number, carrier, line in dataset.flights():
            if carrier in carriers:
                chunk.append(f"{number},{line}")
                if len(chunk) == 2000:
                    copy.write("".join(chunk))
                    chunk.clear()
        copy.write("".join(chunk))


def _fill_desk(conn: psycopg.Connection[tuple[object, ...]], schema: str, homes: list[Place]) -> int:
    """Insert the flights of the airlines of one schema."""
    conn.execute(sql.SQL("set local search_path to {}, ref, pg_temp").format(sql.Identifier(schema)))
    total = 0
    for place in homes:
        if place.is_shared:
            # The default of the column tenant reads this setting.
            conn.execute("select set_config('app.tenant', %s, true)", [place.carrier.lower()])
        total += conn.execute(
            """
            insert into flights (id, carrier, flight_no, flight_date, sched_dep, origin, dest, tailnum,
                                 dep_delay, arr_delay, distance, status)
            select id, carrier, flight, make_date(year, month, day),
                   make_timestamp(year, month, day, hour, minute, 0), origin, dest, tailnum,
                   dep_delay, arr_delay, distance,
                   case when dep_time is null then 'cancelled' when arr_delay is null then 'diverted' else 'flown' end
            from staging where carrier = %s order by id
            """,
            [place.carrier],
        ).rowcount
    return total
