"""The desk's handlers: the same plain SQL for every airline, whatever its kind of isolation.

No handler names a tenant, a schema or a server. GET reads from a replica. The first write of a request opens its
transaction on the primary, where all later reads of the request run. A 4xx or 5xx response rolls the transaction back.
Changes of flights are events: they leave with COMMIT, and with it alone.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asgi_datasource import session, transactional

Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00]*$")]
Code = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,9}$")]


class Filter(BaseModel):
    """Filters for flights; None does not restrict."""

    model_config = ConfigDict(extra="forbid")

    date: dt.date | None = None
    origin: Code | None = None
    dest: Code | None = None
    flight_no: int | None = Field(None, ge=0, le=99999)
    status: Code | None = None
    limit: int = Field(50, ge=1, le=500)


class Period(BaseModel):
    """The days that a report covers; all of them by default."""

    model_config = ConfigDict(extra="forbid")

    first: dt.date | None = None
    last: dt.date | None = None


class NewNote(BaseModel):
    """A note for the next shift."""

    body: Text


class Cancellation(BaseModel):
    """The reason for cancelling a flight."""

    reason: Text


class Rebooking(BaseModel):
    """Passengers to move to another flight."""

    to: int = Field(ge=1, le=2**63 - 1)
    passengers: int = Field(ge=1, le=500)


class AircraftChange(BaseModel):
    """The new plane of a flight."""

    tailnum: Code


class DeskJSON(JSONResponse):
    """JSON with dates and times as ISO 8601."""

    def render(self, content: object) -> bytes:
        return json.dumps(content, default=str, separators=(",", ":")).encode()


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], given: bytes | dict[str, str]) -> Model:
    """Parse the body as a model.

    Raises:
        HTTPException: 400, with the first invalid field.
    """
    try:
        return model.model_validate_json(given) if isinstance(given, bytes) else model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise HTTPException(400, f"{where}: {first['msg']}") from None


def flight_of(request: Request) -> int:
    """The flight in the path.

    Raises:
        HTTPException: 404, for an impossible number.
    """
    number: int = request.path_params["id"]
    if number >= 2**63:
        raise HTTPException(404, "no such flight")
    return number


FLIGHT: Final = """
    f.id, f.carrier, f.flight_no, f.flight_date, f.sched_dep, f.origin, f.dest, a.name as destination, f.tailnum,
    f.dep_delay, f.arr_delay, f.distance, f.status, f.changed_at
"""

FLIGHTS: Final = f"""
    select {FLIGHT}
    from flights f left join ref.airports a on a.faa = f.dest
    where (%(date)s::date is null or f.flight_date = %(date)s)
      and (%(origin)s::text is null or f.origin = %(origin)s)
      and (%(dest)s::text is null or f.dest = %(dest)s)
      and (%(flight_no)s::int is null or f.flight_no = %(flight_no)s)
      and (%(status)s::text is null or f.status = %(status)s)
    order by f.sched_dep, f.id
    limit %(limit)s
"""


async def list_flights(request: Request) -> DeskJSON:
    """GET: one read, on a replica."""
    wanted = checked(Filter, dict(request.query_params))
    return DeskJSON(await session(request).fetch_all(FLIGHTS, wanted.model_dump()))


async def search_flights(request: Request) -> DeskJSON:
    """POST that only reads: a rule in datasource.yaml gives it read intent, so a replica answers."""
    wanted = checked(Filter, await request.body())
    return DeskJSON(await session(request).fetch_all(FLIGHTS, wanted.model_dump()))


async def show_flight(request: Request) -> DeskJSON:
    """Three reads of one request, all from the replica of the first."""
    db, flight_id = session(request), flight_of(request)
    flight = await db.fetch_one(
        f"""
        select {FLIGHT}, p.manufacturer, p.model, p.seats, free_seats(f.id)
        from flights f left join ref.airports a on a.faa = f.dest left join ref.planes p using (tailnum)
        where f.id = %s
        """,
        [flight_id],
    )
    if flight is None:
        raise HTTPException(404, "no such flight")
    notes = await db.fetch_all("select body, created_at from notes where flight_id = %s order by id", [flight_id])
    rebookings = await db.fetch_all(
        "select from_flight, to_flight, passengers, created_at from rebookings where %s in (from_flight, to_flight)",
        [flight_id],
    )
    return DeskJSON({**flight, "notes": notes, "rebookings": rebookings})


async def add_note(request: Request) -> DeskJSON:
    """Read, write, read: the first on a replica, the write and the last read on the primary."""
    db, flight_id = session(request), flight_of(request)
    note = checked(NewNote, await request.body())
    if await db.read.fetch_value("select 1 from flights where id = %s", [flight_id]) is None:
        raise HTTPException(404, "no such flight")
    await db.execute("insert into notes (flight_id, body) values (%s, %s)", [flight_id, note.body])
    notes = await db.read.fetch_all("select body, created_at from notes where flight_id = %s order by id", [flight_id])
    await db.outbox.publish("flights.note_added", key=str(flight_id), payload=note)
    return DeskJSON({"flight": flight_id, "notes": notes}, status_code=201)


async def cancel_flight(request: Request) -> DeskJSON:
    """Two writes in one transaction."""
    db, flight_id = session(request), flight_of(request)
    cancellation = checked(Cancellation, await request.body())
    flight = await db.fetch_one(
        """
        update flights set status = 'cancelled', dep_delay = null, arr_delay = null, changed_at = now()
        where id = %s and status <> 'cancelled' returning id, carrier, flight_no, status, changed_at
        """,
        [flight_id],
    )
    if flight is None:
        raise HTTPException(409, "no such flight, or cancelled already")
    await db.execute(
        "insert into notes (flight_id, body) values (%s, %s)", [flight_id, f"Cancelled: {cancellation.reason}"]
    )
    await db.outbox.publish("flights.cancelled", key=str(flight_id), payload=cancellation)
    return DeskJSON(flight)


async def rebook(request: Request) -> DeskJSON:
    """Writes before its checks: a 409 response, or a failed COMMIT, rolls the writes back."""
    db, flight_id = session(request), flight_of(request)
    wish = checked(Rebooking, await request.body())
    rebooking = await db.fetch_one(
        "insert into rebookings (from_flight, to_flight, passengers) values (%s, %s, %s) returning *",
        [flight_id, wish.to, wish.passengers],
    )
    await db.execute(
        "insert into notes (flight_id, body) values (%s, %s)",
        [flight_id, f"{wish.passengers} passengers rebooked to flight {wish.to}"],
    )
    routes = await db.fetch_all("select origin, dest, status from flights where id in (%s, %s)", [flight_id, wish.to])
    # A foreign key does not obey row security: another airline's flight satisfies it, but is not seen here.
    if len(routes) != 2:
        raise HTTPException(409, "no such flight")
    if len({(row["origin"], row["dest"]) for row in routes}) > 1:
        raise HTTPException(409, "the two flights do not fly the same route")
    await db.outbox.publish("flights.rebooked", key=str(flight_id), payload=wish)
    # The database checks at COMMIT that enough seats are free (flights_not_overbooked in migrations/tenant).
    return DeskJSON(rebooking, status_code=201)


async def change_aircraft(request: Request) -> DeskJSON:
    """Change the plane, if it is in the airline's data."""
    db, flight_id = session(request), flight_of(request)
    change = checked(AircraftChange, await request.body())
    flight = await db.fetch_one(
        """
        update flights set tailnum = p.tailnum, changed_at = now() from ref.planes p
        where id = %s and p.tailnum = %s returning id, p.tailnum, p.model, p.seats
        """,
        [flight_id, change.tailnum],
    )
    if flight is None:
        raise HTTPException(409, "no such flight, or no such plane")
    await db.outbox.publish("flights.aircraft_changed", key=str(flight_id), payload=change)
    return DeskJSON(flight)


DELAYS: Final = """
    count(*) as flights,
    count(*) filter (where status = 'cancelled') as cancelled,
    round(avg(dep_delay), 1)::float8 as mean_dep_delay,
    round(avg(arr_delay), 1)::float8 as mean_arr_delay,
    round(100.0 * count(*) filter (where arr_delay < 15) / nullif(count(arr_delay), 0), 1)::float8 as on_time_pct
"""
IN_PERIOD: Final = """
    (%(first)s::date is null or flight_date >= %(first)s) and (%(last)s::date is null or flight_date <= %(last)s)
"""
REPORTS: Final = {
    "hours": ("extract(hour from sched_dep)::int as hour", "1", "1"),
    "weekdays": ("extract(isodow from flight_date)::int as weekday", "1", "1"),
    "airports": ("origin", "1", "1"),
    "routes": ("origin, dest", "1, 2", "flights desc, 1, 2 limit 25"),
}
"""The columns, grouping and order of each report."""


async def report(request: Request) -> DeskJSON:
    """Delays by hour, weekday, airport or route."""
    if (wanted := REPORTS.get(request.path_params["by"])) is None:
        raise HTTPException(404, f"no such report; there are {', '.join(REPORTS)} and summary")
    period = checked(Period, dict(request.query_params))
    columns, groups, order = wanted
    query = f"select {columns}, {DELAYS} from flights where {IN_PERIOD} group by {groups} order by {order}"
    return DeskJSON(await session(request).fetch_all(query, period.model_dump()))


@transactional(read_only=True)
async def summary(request: Request) -> DeskJSON:
    """Two statements on one snapshot: their numbers are consistent despite concurrent writes."""
    db = session(request)
    period = checked(Period, dict(request.query_params)).model_dump()
    totals = await db.fetch_one(f"select {DELAYS} from flights where {IN_PERIOD}", period)
    worst = await db.fetch_all(
        f"""
        select {FLIGHT} from flights f left join ref.airports a on a.faa = f.dest
        where {IN_PERIOD} and dep_delay is not null order by dep_delay desc limit 5
        """,
        period,
    )
    return DeskJSON({"totals": totals, "worst": worst})


async def explain_refusal(request: Request, error: Exception) -> JSONResponse:
    """The desk's own errors as problem documents (RFC 9457), like those of the library."""
    refusal: Any = error
    return JSONResponse(
        {"title": refusal.detail, "status": refusal.status_code},
        status_code=refusal.status_code,
        media_type="application/problem+json",
    )


routes: Final = [
    Route("/flights", list_flights),
    Route("/flights/search", search_flights, methods=["POST"]),
    Route("/flights/{id:int}", show_flight),
    Route("/flights/{id:int}", change_aircraft, methods=["PATCH"]),
    Route("/flights/{id:int}/notes", add_note, methods=["POST"]),
    Route("/flights/{id:int}/cancel", cancel_flight, methods=["POST"]),
    Route("/flights/{id:int}/rebook", rebook, methods=["POST"]),
    Route("/reports/summary", summary),
    Route("/reports/{by}", report),
]
