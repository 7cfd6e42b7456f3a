"""`scripts/demo --smoke`: sends requests to the running desk, stops its servers, and checks every response.

The checks use HTTP like any client, and compare the contents of tables with queries on the primary.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import httpx

from asgi_datasource.testing import EmbeddedCluster, Node
from examples.starlette_app.fleet import Fleet
from examples.starlette_app.load import Place, places
from examples.starlette_app.relays import NAMES

if TYPE_CHECKING:
    from examples.starlette_app.demo import Console

BY_NAME: Final = {place.carrier.lower(): place for place in places()}
DAY: Final = "2013-08-28"
"""A day in the week that is always loaded, on which all sixteen airlines fly."""


TOKEN: Final = "X-Datasource-Token"  # noqa: S105
"""The header with the client's position, by datasource.yaml."""


class CheckFailed(AssertionError):
    """Raised when a check fails."""


def expect(condition: object, text: str) -> None:
    """Raise CheckFailed with this text unless the condition holds."""
    if not condition:
        raise CheckFailed(text)


async def until(condition: Callable[[], bool | Awaitable[bool]], timeout_s: float, text: str) -> None:
    """Poll until the result is true.

    Raises:
        CheckFailed: It is not true in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer if isinstance(answer, bool) else await answer:
            return
        expect(time.monotonic() < deadline, f"{text} within {timeout_s:.0f} s")
        await asyncio.sleep(0.02)


class Smoke:
    """The checks; each restores the state of the servers."""

    def __init__(self, client: httpx.AsyncClient, cluster: EmbeddedCluster, flights: int, fleet: Fleet | None) -> None:
        self._client = client
        self._cluster = cluster
        self._flights = flights
        self._fleet = fleet

    # -- tools

    async def ask(self, tenant: str | None, method: str, path: str, body: object = None) -> httpx.Response:
        """One request as a tenant."""
        headers = {} if tenant is None else {"X-Tenant": tenant}
        return await self._client.request(method, path, headers=headers, json=body)

    async def ok(self, tenant: str, method: str, path: str, body: object = None) -> httpx.Response:
        """One request that must be answered with 2xx."""
        answer = await self.ask(tenant, method, path, body)
        expect(answer.is_success, f"{tenant} {method} {path}: {answer.status_code} {answer.text[:200]}")
        return answer

    async def flights(self, tenant: str) -> list[dict[str, Any]]:
        """The airline's flights of the day."""
        found: list[dict[str, Any]] = (await self.ok(tenant, "GET", f"/flights?date={DAY}&limit=500")).json()
        expect(found, f"{tenant} has no flights on {DAY}")
        return found

    async def stored(self, tenant: str, query: str, *parameters: object, node: Node | None = None) -> Any:
        """One value from the airline's tables, read directly on the primary without row security."""
        place: Place = BY_NAME[tenant]
        server = node or self._cluster.primary
        rows = await server.sql(query.format(place.schema), list(parameters), dbname=place.datasource)
        return rows[0][0]

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Pause the replay of both replicas: later writes are on the primary only."""
        replicas = self._cluster.replicas.values()
        await asyncio.gather(*(node.pause_replay() for node in replicas))
        try:
            yield
        finally:
            await asyncio.gather(*(node.resume_replay() for node in replicas))
            await self._cluster.caught_up()

    @asynccontextmanager
    async def stopped(self, *nodes: Node) -> AsyncIterator[None]:
        """Stop these servers during the block."""
        await asyncio.gather(*(node.stop() for node in nodes))
        try:
            yield
        finally:
            await asyncio.gather(*(node.start() for node in nodes))

    async def served_by(self, tenant: str, requests: int) -> Counter[str]:
        """Count the servers that answer this airline's reports, over a number of requests."""
        answers = [await self.ok(tenant, "GET", "/reports/airports") for _ in range(requests)]
        return Counter(answer.headers["x-served-by"] for answer in answers)

    # -- checks

    async def page(self) -> str:
        """The page and its files."""
        page = await self._client.get("/ui/")
        expect(page.status_code == 200 and "asgi-datasource" in page.text, f"the page: {page.status_code}")
        for name in ("desk.css", "desk.js"):
            part = await self._client.get(f"/ui/static/{name}")
            expect(part.status_code == 200 and f"/ui/static/{name}" in page.text, f"{name}: {part.status_code}")
        for name in ("common.js", "contests.js", "detail.js"):
            part = await self._client.get(f"/ui/static/{name}")
            expect(part.status_code == 200, f"{name}: {part.status_code}")
        airlines = (await self._client.get("/ui/airlines")).json()
        expect(len(airlines) == len(BY_NAME), f"{len(airlines)} airlines")
        kinds = Counter(airline["isolation"] for airline in airlines)
        return ", ".join(f"{count} by {kind}" for kind, count in kinds.items())

    async def reads(self) -> str:
        """Reads alternate between the replicas; none goes to the primary."""
        served = await self.served_by("dl", 40) + await self.served_by("ua", 20)
        expect(set(served) == {"r1 (balanced)", "r2 (balanced)"}, f"served by {dict(served)}")
        expect(served["r1 (balanced)"] == served["r2 (balanced)"], f"not balanced: {dict(served)}")
        return ", ".join(f"{server} {count}" for server, count in sorted(served.items()))

    async def one_server(self) -> str:
        """Three reads of one request go to one server."""
        flight = (await self.flights("b6"))[0]
        for _ in range(4):
            answer = await self.ok("b6", "GET", f"/flights/{flight['id']}")
            steps = [step.split()[0] for step in answer.headers["x-served-by"].split(", ")]
            expect(len(steps) == 3 and len(set(steps)) == 1, f"served by {answer.headers['x-served-by']}")
        return str(answer.headers["x-served-by"])

    async def search(self) -> str:
        """A POST with read intent by the configuration."""
        answer = await self.ok("9e", "POST", "/flights/search", {"date": DAY, "limit": 3})
        served = answer.headers["x-served-by"]
        expect(served in ("r1 (balanced)", "r2 (balanced)"), f"served by {served}")
        return f"POST /flights/search: {served}"

    async def named(self) -> str:
        """The airline in the header, the path or the host gives the same response."""
        wish = {"date": DAY, "limit": 3}
        by_header = await self.ok("9e", "POST", "/flights/search", wish)
        by_path = await self._client.post("/t/9e/flights/search", json=wish)
        by_host = await self._client.post("/flights/search", json=wish, headers={"Host": "9e.localhost"})
        for way, answer in (("path", by_path), ("host", by_host)):
            expect(answer.text == by_header.text, f"by {way}: {answer.status_code} {answer.text[:100]}")
            served = answer.headers["x-served-by"]
            expect(served.endswith("(balanced)"), f"by {way}: served by {served}")
        return "9e by X-Tenant, /t/9e and 9e.localhost"

    async def writes(self) -> str:
        """Read, write, read: replica, primary, primary; for each kind of isolation."""
        for tenant in ("ua", "dl", "mq"):
            flight, body = (await self.flights(tenant))[0], f"smoke {uuid4()}"
            answer = await self.ok(tenant, "POST", f"/flights/{flight['id']}/notes", {"body": body})
            served = answer.headers["x-served-by"]
            expect(answer.status_code == 201, f"{answer.status_code}")
            expect(served.endswith("(balanced), primary (write), primary (pinned)"), f"served by {served}")
            count = await self.stored(tenant, "select count(*) from {}.notes where body = %s", body)
            expect(count == 1, f"{count} notes stored for {tenant}")
        return str(served)

    async def own_writes(self) -> str:
        """With both replicas paused, a request still reads its own write."""
        flight, body = (await self.flights("aa"))[0], f"smoke {uuid4()}"
        await self._cluster.caught_up()
        async with self.paused():
            answer = await self.ok("aa", "POST", f"/flights/{flight['id']}/notes", {"body": body})
            expect(body in answer.text, "the request did not see its own note")
            for node in self._cluster.replicas.values():
                count = await self.stored("aa", "select count(*) from {}.notes where body = %s", body, node=node)
                expect(count == 0, f"{node.name} has the note: the check proves nothing")
        later = await self.ok("aa", "GET", f"/flights/{flight['id']}")
        expect(body in later.text, "the note has not reached the replicas")
        return "seen at once on the primary, on the replicas after they went on"

    async def token(self) -> str:
        """With both replicas paused, the client's next requests read its own write; those of other clients may not."""
        flight, body = (await self.flights("dl"))[0], f"smoke {uuid4()}"
        path = f"/flights/{flight['id']}"
        await self._cluster.caught_up()
        async with self.paused():
            written = await self.ok("dl", "POST", f"{path}/notes", {"body": body})
            token = written.headers.get(TOKEN, "")
            expect(token, f"the answer to a write has no header {TOKEN}")
            mine = await self._with_token(token, path)
            expect(body in mine.text, "a later request of the client did not see its note")
            behind = mine.headers["x-served-by"]
            # Replicas that were asked first have not proved that they have the note.
            expect("primary (behind)" in behind, f"served by {behind}")
            other = await self.ok("dl", "GET", path)
            expect(body not in other.text, "a request without the token has the note: the check proves nothing")
            expect("primary" not in other.headers["x-served-by"], f"served by {other.headers['x-served-by']}")
        proved = ""

        async def is_proved() -> bool:
            nonlocal proved
            later = await self._with_token(token, path)
            expect(body in later.text, "a later request of the client did not see its note")
            proved = later.headers["x-served-by"].split(", ")[0]
            return proved in ("r1 (proved)", "r2 (proved)")

        await until(is_proved, 30, "no replica has proved that it has the note")
        return f"primary (behind) while they lag, then {proved}"

    async def _with_token(self, token: str, path: str) -> httpx.Response:
        answer = await self._client.get(path, headers={"X-Tenant": "dl", TOKEN: token})
        expect(answer.status_code == 200, f"GET {path}: {answer.status_code}")
        return answer

    async def apart(self) -> str:
        """Requests of all airlines at once, over the same few connections: each sees exactly its own flights."""

        async def look(tenant: str) -> int:
            flights = await self.flights(tenant)
            strangers = {flight["carrier"] for flight in flights} - {tenant.upper()}
            expect(not strangers, f"{tenant} sees flights of {strangers}")
            rows = (await self.ok(tenant, "GET", "/reports/airports")).json()
            return sum(row["flights"] for row in rows)

        for _ in range(3):
            total = sum(await asyncio.gather(*map(look, BY_NAME)))
            expect(total == self._flights, f"{total:,} flights seen, {self._flights:,} loaded")
        return f"16 airlines, {total:,} flights, nobody else's"

    async def strangers(self) -> str:
        """Another airline's flight can be neither found, read nor changed, and no rebooking can name it."""
        tried = 0
        for owner in ("ua", "dl", "mq", "us"):
            theirs = (await self.flights(owner))[0]
            flight, wish = theirs["id"], {"date": DAY, "flight_no": theirs["flight_no"], "limit": 500}
            before = await self._traces(owner, flight)
            for other in ("ua", "aa", "mq", "9e"):
                if other == owner:
                    continue
                tried += 1
                mine = (await self.flights(other))[0]["id"]
                found = (await self.ok(other, "POST", "/flights/search", wish)).json()
                expect(flight not in [one["id"] for one in found], f"{other} finds a flight of {owner}")
                answers = [
                    await self.ask(other, "GET", f"/flights/{flight}"),
                    await self.ask(other, "POST", f"/flights/{flight}/notes", {"body": "mine"}),
                    await self.ask(other, "POST", f"/flights/{flight}/cancel", {"reason": "mine"}),
                    await self.ask(other, "POST", f"/flights/{flight}/rebook", {"to": mine, "passengers": 1}),
                    await self.ask(other, "POST", f"/flights/{mine}/rebook", {"to": flight, "passengers": 1}),
                ]
                statuses = [answer.status_code for answer in answers]
                expect(statuses == [404, 404, 409, 409, 409], f"{other} on a flight of {owner}: {statuses}")
            after = await self._traces(owner, flight)
            expect(before == after, f"flight {flight} of {owner}: {before} has become {after}")
        return f"{tried} pairs, 6 ways each: nothing found, read or changed"

    async def _traces(self, tenant: str, flight: int) -> tuple[int, int, str]:
        """What others could have changed on a flight: notes, rebookings, its status; as the superuser sees it."""
        queries = (
            "select count(*) from {}.notes where flight_id = %s",
            "select count(*) from {}.rebookings where %s in (from_flight, to_flight)",
            "select status from {}.flights where id = %s",
        )
        notes, rebookings, status = [await self.stored(tenant, query, flight) for query in queries]
        return notes, rebookings, status

    async def refused(self) -> str:
        """Without a tenant, and for unknown or malicious names, the response is a problem document, without a query."""
        hostile = [
            'dl"; drop schema dl; --',
            "dl'",
            "../ua",
            "dl,ua",
            "x" * 10_000,
            "DĽ",
            "%64%6c",
            "dl ua",
            "*",
            "${HOME}",
        ]
        answers = [(None, await self.ask(None, "GET", "/flights")), ("zz", await self.ask("zz", "GET", "/flights"))]
        for name in hostile:
            headers = {b"x-tenant": name.encode()}
            answers.append((name, await self._client.get("/flights", headers=headers)))
        twice = await self._client.get("/flights", headers=[("X-Tenant", "dl"), ("X-Tenant", "ua")])
        answers.append(("twice", twice))
        for name, answer in answers:
            wanted = {None: 400, "zz": 404}.get(name, 400)
            expect(answer.status_code == wanted, f"{str(name)[:20]!r}: {answer.status_code} instead of {wanted}")
            kind = answer.headers["content-type"]
            expect(kind == "application/problem+json", f"{str(name)[:20]!r}: answered with {kind}")
            expect(answer.headers["x-served-by"] == "nobody", f"{name}: {answer.headers['x-served-by']}")
        return f"400 without, 404 unknown, {len(hostile) + 1} hostile ones 400"

    async def taken_back(self) -> str:
        """A 409 after two writes rolls both back."""
        flights = await self.flights("ev")
        other = next(flight for flight in flights if flight["dest"] != flights[0]["dest"])
        text = f"1 passengers rebooked to flight {other['id']}"
        answer = await self.ask(
            "ev", "POST", f"/flights/{flights[0]['id']}/rebook", {"to": other["id"], "passengers": 1}
        )
        expect(answer.status_code == 409, f"{answer.status_code} {answer.text[:100]}")
        notes = await self.stored("ev", "select count(*) from {}.notes where body = %s", text)
        bookings = await self.stored("ev", "select count(*) from {}.rebookings where to_flight = %s", other["id"])
        expect((notes, bookings) == (0, 0), f"{notes} notes and {bookings} rebookings were left")
        return "409, no row left"

    async def failing_commit(self) -> str:
        """Every statement succeeds and COMMIT fails: the client never gets a 2xx."""
        for tenant in ("ua", "b6", "us"):
            flights = await self.flights(tenant)
            pairs = ((one, two) for one in flights for two in flights if one["id"] != two["id"])
            one, two = next((a, b) for a, b in pairs if (a["origin"], a["dest"]) == (b["origin"], b["dest"]))
            path, count = f"/flights/{one['id']}/rebook", "select count(*) from {}.rebookings where to_flight = %s"
            fits = await self.ok(tenant, "POST", path, {"to": two["id"], "passengers": 2})
            expect(fits.status_code == 201, f"{fits.status_code}")
            over = await self.ask(tenant, "POST", path, {"to": two["id"], "passengers": 400})
            expect(over.status_code == 422, f"{tenant}: {over.status_code} {over.text[:100]}")
            expect(over.headers["content-type"] == "application/problem+json", over.headers["content-type"])
            rows = await self.stored(tenant, count, two["id"])
            expect(rows == 1, f"{rows} rebookings of {tenant} instead of the one that fits")
            record = (await self._client.get("/ui/requests?limit=1")).json()["requests"][-1]
            expect(record["outcome"] == "rolled_back", f"the trace says {record['outcome']}")
        return "422 instead of 201, only what fits is stored"

    async def changes(self) -> str:
        """What changes arrives, in the order of each flight, at once; what is rolled back does not."""
        one, two = await self._same_route("fl")
        over = await self.ask("fl", "POST", f"/flights/{one}/rebook", {"to": two, "passengers": 400})
        expect(over.status_code == 422, f"{over.status_code}")
        arrived = await self._change(5)
        board = (await self._client.get("/ui/changes?after=-1")).json()["changes"]
        undone = [change for change in board if (change["topic"], change["flight"]) == ("flights.rebooked", one)]
        expect(not undone, "a change that was rolled back has arrived")
        times = sorted(change["ms"] for change in arrived)
        middle = times[len(times) // 2]
        expect(middle < 1000, f"half of them took {middle:.0f} ms")
        return f"{len(arrived)} changes in order, half of them within {middle:.0f} ms"

    async def relay_is_killed(self) -> str:
        """A relay is killed meanwhile: another one takes its flights over, nothing is lost or out of order."""
        if self._fleet is None or (relays := self._fleet.relays) is None:
            raise CheckFailed("there is no relay to kill")
        started = time.monotonic()
        arrived = await self._change(20, meanwhile=relays.kill(NAMES[0]))
        took = time.monotonic() - started
        await relays.start(NAMES[0])
        board = (await self._client.get("/ui/changes?after=0")).json()
        expect(board["out_of_order"] == 0, f"{board['out_of_order']} changes out of order")
        return f"{len(arrived)} changes in order after {took:.1f} s, {board['repeated']} came again"

    async def _same_route(self, tenant: str) -> tuple[int, int]:
        flights = await self.flights(tenant)
        pairs = ((one, two) for one in flights for two in flights if one["id"] != two["id"])
        one, two = next((a, b) for a, b in pairs if (a["origin"], a["dest"]) == (b["origin"], b["dest"]))
        return one["id"], two["id"]

    async def _change(self, count: int, meanwhile: Awaitable[None] | None = None) -> list[dict[str, Any]]:
        """Add notes to flights of three airlines, one after the other to each; returns them as they arrive."""
        mark = str(uuid4())
        wanted = {
            (tenant, flight["id"]): [f"{mark} {number}" for number in range(count)]
            for tenant in ("ua", "dl", "mq")
            for flight in (await self.flights(tenant))[:4]
        }
        is_under_way = asyncio.Event()

        async def add(tenant: str, flight: int) -> None:
            for number, body in enumerate(wanted[tenant, flight]):
                await self._note(tenant, flight, body)
                if number == count // 4:
                    is_under_way.set()

        async def disturb() -> None:
            await is_under_way.wait()
            if meanwhile is not None:
                await meanwhile

        after = await self._last_change()
        await asyncio.gather(disturb(), *(add(*place) for place in wanted))
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + 30
        while len(found) < count * len(wanted):
            expect(time.monotonic() < deadline, f"{len(found)} of {count * len(wanted)} changes within 30 s")
            board = (await self._client.get(f"/ui/changes?after={after}")).json()
            after = board["last"]
            found += [change for change in board["changes"] if mark in str(change["data"].get("body"))]
        for tenant, flight in wanted:
            bodies = [one["data"]["body"] for one in found if (one["tenant"], one["flight"]) == (tenant, flight)]
            expect(bodies == wanted[tenant, flight], f"{tenant} {flight}: {bodies}")
        return found

    async def _note(self, tenant: str, flight: int, body: str) -> None:
        """Add a note. On a busy machine the pool may be at its limit for a moment: 503, and nothing has changed."""
        while True:
            answer = await self.ask(tenant, "POST", f"/flights/{flight}/notes", {"body": body})
            if answer.status_code != 503:
                expect(answer.status_code == 201, f"{tenant} {flight}: {answer.status_code} {answer.text[:200]}")
                return

    async def _last_change(self) -> int:
        last: int = (await self._client.get("/ui/changes?after=-1")).json()["last"]
        return last

    async def replica_stops(self) -> str:
        """A replica stops under load and returns, without an error for clients."""
        r1 = self._cluster.replicas["r1"]
        statuses: Counter[str] = Counter()
        servers: Counter[str] = Counter()
        is_over = asyncio.Event()

        async def load(tenant: str) -> None:
            while not is_over.is_set():
                try:
                    answer = await self.ask(tenant, "GET", "/reports/airports")
                except httpx.HTTPError as error:
                    statuses[type(error).__name__] += 1
                    continue
                statuses[str(answer.status_code)] += 1
                servers[answer.headers.get("x-served-by", "nobody ()").split()[-2]] += 1

        async def r1_serves() -> bool:
            return any(server.startswith("r1") for server in await self.served_by("dl", 4))

        workers = [asyncio.create_task(load(tenant)) for tenant in ("ua", "dl", "aa", "mq", "us", "b6")]
        try:
            await until(lambda: statuses.total() > 50, 60, "no load")
            before = statuses.total()
            await r1.stop()
            await until(lambda: statuses.total() > before + 100, 60, "no load while r1 was down")
            servers.clear()
            await until(lambda: servers.total() > 50, 60, "no load while r1 was down")
            expect(set(servers) == {"r2"}, f"with r1 down served by {dict(servers)}")
            await r1.start()
            await until(r1_serves, 60, "r1 did not serve again")
        finally:
            is_over.set()
            await asyncio.gather(*workers)
            await r1.start() if r1.pid is None else None
        expect(set(statuses) == {"200"}, f"answers {dict(statuses)}")
        return f"{statuses.total()} reads, all answered 200; r1 serves again"

    async def no_replica(self) -> str:
        """Without replicas, the primary answers reads, READ ONLY."""
        async with self.stopped(*self._cluster.replicas.values()):
            await self.ok("dl", "GET", "/reports/airports")
            served = (await self.ok("dl", "GET", "/reports/airports")).headers["x-served-by"]
            expect(served == "primary (unhealthy)", f"served by {served}")

        async def both_serve() -> bool:
            return {"r1 (balanced)", "r2 (balanced)"} <= set(await self.served_by("dl", 4))

        await until(both_serve, 60, "the replicas did not serve again")
        return f"{served}, then the replicas again"

    async def no_primary(self) -> str:
        """Without the primary, reads succeed and writes fail in time; writes recover automatically."""
        flight = (await self.flights("dl"))[0]["id"]
        note = {"body": "smoke: recovery"}
        async with self.stopped(self._cluster.primary):
            served = (await self.ok("dl", "GET", f"/flights/{flight}")).headers["x-served-by"]
            started = time.monotonic()
            refused = await self.ask("dl", "POST", f"/flights/{flight}/notes", note)
            waited = time.monotonic() - started
            expect(refused.status_code == 503, f"a write without a primary: {refused.status_code} {refused.text[:100]}")
            expect(waited < 4, f"refused after {waited:.1f} s; the pool's acquire_timeout is 3 s")
            expect("primary" not in served, f"read served by {served}")

        async def is_written() -> bool:
            answer = await self.ask("dl", "POST", f"/flights/{flight}/notes", note)
            expect(answer.status_code in (201, 503), f"{answer.status_code}")
            return answer.status_code == 201

        await until(is_written, 60, "writes did not work again")
        await self._cluster.caught_up()
        return f"reads 200, writes 503 after {waited:.2f} s, then 201 again"

    async def failover(self) -> str:
        """A replica is promoted under load: writes go on there with nothing lost; then back to the first primary."""
        fleet = self._fleet
        if fleet is None:
            raise CheckFailed("there are no servers to promote")
        first = fleet.leader.name
        flight = (await self.flights("dl"))[0]["id"]
        mark, written, refused = str(uuid4()), 0, 0

        async def is_written() -> bool:
            nonlocal written, refused
            answer = await self.ask("dl", "POST", f"/flights/{flight}/notes", {"body": f"{mark} {written}"})
            expect(answer.status_code in (201, 503), f"a write: {answer.status_code} {answer.text[:100]}")
            written += answer.status_code == 201
            refused += answer.status_code == 503
            return answer.status_code == 201

        for name in ("r1", first):
            former = fleet.leader.name
            await until(is_written, 30, "no write before the failover")
            promotion = asyncio.create_task(fleet.obey("promote", name))
            while not promotion.done():
                await is_written()
            told = await promotion
            expect("error" not in told, str(told.get("error")))
            await until(is_written, 30, f"no write after the promotion of {name}")
            # The former primary returns as a standby.
            await fleet.obey("start", former)
        await self._cluster.caught_up()
        query = "select count(*) from {}.notes where body like %s"
        for node in self._cluster.nodes.values():
            count = await self.stored("dl", query, f"{mark}%", node=node)
            expect(count == written, f"{count} of {written} notes on {node.name}")

        async def both_serve() -> bool:
            return {"r1 (balanced)", "r2 (balanced)"} <= set(await self.served_by("dl", 4))

        await until(both_serve, 60, "the replicas did not serve again")
        return f"r1, then {first} again: {written} writes kept, {refused} refused with 503"

    async def nothing_held(self) -> str:
        """No backend is left in a transaction."""
        # A relay may run a statement at this moment; nothing waits inside of a transaction.
        query = "select count(*) from pg_stat_activity where usename = 'app' and state like 'idle in transaction%'"
        for node in self._cluster.nodes.values():
            count = await node.value(query)
            expect(count == 0, f"{count} sessions in a transaction on {node.name}")
        return "on any of the three servers"

    CHECKS: Final = (
        ("the page", page),
        ("reads take turns on the replicas", reads),
        ("one request, one replica", one_server),
        ("a POST that reads", search),
        ("an airline by header, path or host", named),
        ("writes go to the primary", writes),
        ("a request sees its own writes", own_writes),
        ("so do the client's next requests", token),
        ("airlines apart, under load", apart),
        ("another airline's flight", strangers),
        ("no tenant, hostile tenants", refused),
        ("409 takes everything back", taken_back),
        ("a failing COMMIT is never a 2xx", failing_commit),
        ("changes arrive on the page", changes),
        ("a relay is killed", relay_is_killed),
        ("a replica stops under load", replica_stops),
        ("no replica at all", no_replica),
        ("no primary", no_primary),
        ("a failover, and back", failover),
        ("nothing is left in a transaction", nothing_held),
    )


async def check_all(
    address: str, cluster: EmbeddedCluster, flights: int, console: Console, fleet: Fleet | None = None
) -> int:
    """Run the checks and print one line for each.

    Returns:
        0 when all checks pass, otherwise 1.
    """
    console.say()
    failures = 0
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=address, timeout=30, limits=limits) as client:
        smoke = Smoke(client, cluster, flights, fleet)
        for title, check in Smoke.CHECKS:
            started = time.monotonic()
            try:
                told, is_good = await check(smoke), True
            except Exception as error:  # noqa: BLE001  # any error fails this check; the next check runs
                told = str(error) if isinstance(error, CheckFailed) else f"{type(error).__name__}: {error}"
                is_good = False
                failures += 1
            spent = time.monotonic() - started
            console.say(f"  {console.good_or_bad(is_good)} {title:<35} {told:<66} {spent:5.1f} s")
    console.say(f"\n  {len(Smoke.CHECKS) - failures} of {len(Smoke.CHECKS)} checks passed")
    return 1 if failures else 0
