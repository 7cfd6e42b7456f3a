"""Random programs over a session, and a model that predicts their outcome.

A program is a tree of steps. `Model` runs it without a database, by the documented rules; `Machine` runs it with a
session. Both record what they observe; the model also predicts the rows in the table at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from hypothesis import strategies as st

from asgi_datasource import DataError, DataSession, Propagation, UnexpectedRollback, transactional
from asgi_datasource.transaction import SurroundingTransaction

# -- programs


@dataclass(frozen=True)
class Put:
    """Write this many rows; more than one with as many concurrent tasks."""

    count: int = 1


@dataclass(frozen=True)
class Count:
    """Read the number of visible rows."""


@dataclass(frozen=True)
class Fail:
    """Run a statement that fails on the server."""


@dataclass(frozen=True)
class Lose:
    """Run a statement that fails with a serialization failure this many times, and succeeds from then on."""

    times: int


@dataclass(frozen=True)
class Throw:
    """Raise an exception."""


@dataclass(frozen=True)
class Expire:
    """The innermost time limit expires during a wait; without a time limit nothing happens."""


@dataclass(frozen=True)
class Doom:
    """`db.set_rollback_only()`."""


@dataclass(frozen=True)
class End:
    """`db.commit()` or `db.rollback()`."""

    commit: bool


@dataclass(frozen=True)
class Catch:
    """An exception from the body is caught and recorded."""

    body: Program


@dataclass(frozen=True)
class Limit:
    """The body under `asyncio.timeout()`, whose TimeoutError is caught."""

    body: Program


@dataclass(frozen=True)
class Savepoint:
    """`async with db.transaction():`."""

    body: Program


@dataclass(frozen=True)
class Call:
    """An annotated function, or `async with transactional(...):`."""

    propagation: Propagation
    body: Program
    read_only: bool = False
    repeatable: bool = False
    tolerates: bool = False
    retry: int = 0
    is_block: bool = False


Step = Put | Count | Fail | Lose | Throw | Expire | Doom | End | Catch | Limit | Savepoint | Call
Program = tuple[Step, ...]
Root = Literal["post", "get", "annotated", "worker"]

_shared: list[st.SearchStrategy[Step]] = [
    st.builds(Put, st.integers(1, 3)),
    st.builds(Put),
    st.just(Count()),
    st.just(Fail()),
    st.builds(Lose, st.integers(1, 3)),
    st.just(Throw()),
    st.just(Expire()),
    st.just(Doom()),
]
_leaves: st.SearchStrategy[Step] = st.one_of(*_shared, st.builds(End, st.booleans()))


def _nest(steps: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
    body: st.SearchStrategy[Program] = st.lists(steps, min_size=1, max_size=4).map(tuple)
    return st.one_of(
        st.builds(Catch, body),
        st.builds(Limit, body),
        st.builds(Savepoint, body),
        st.builds(
            Call,
            st.sampled_from(Propagation),
            body,
            read_only=st.sampled_from([False, False, False, True]),
            repeatable=st.sampled_from([False, False, False, True]),
            tolerates=st.sampled_from([False, False, False, True]),
            retry=st.sampled_from([0, 0, 2]),
            is_block=st.booleans(),
        ),
    )


programs: st.SearchStrategy[Program] = st.lists(
    st.recursive(_leaves, _nest, max_leaves=12), min_size=1, max_size=5
).map(tuple)
tasks: st.SearchStrategy[list[Program]] = st.lists(
    st.lists(st.recursive(st.one_of(*_shared), _nest, max_leaves=6), min_size=1, max_size=3).map(tuple),
    min_size=2,
    max_size=3,
)
"""Programs for concurrent tasks. None of them ends the shared transaction: hooks that another task has added before its
statement would report the end of a transaction that does not contain the statement.
"""
roots: st.SearchStrategy[Root] = st.sampled_from(["post", "get", "annotated", "worker"])


# -- observations


class Boom(Exception):
    """What `Throw` raises."""


@dataclass
class Seen:
    """What a run has observed.

    Attributes:
        events: Row counts and classes of caught exceptions, in order.
        hooks: For each row written in a transaction, by number: the hooks that ran.
        error: The class of the exception that left the program; None without one.
    """

    events: list[int | str] = field(default_factory=list)
    hooks: dict[int, list[str]] = field(default_factory=dict)
    error: str | None = None


def name_of(error: BaseException) -> str:
    """The name of an error, the same for model and machine."""
    if isinstance(error, Boom):
        return "boom"
    return "unexpected rollback" if isinstance(error, UnexpectedRollback | Unexpected) else "error"


# -- the model


class Refused(Exception):
    """The model's `DataError`."""


class Lost(Refused):
    """The model's `DataError` of a serialization failure."""


class Unexpected(Refused):
    """The model's `UnexpectedRollback`."""


class Expired(BaseException):
    """The model's cancellation."""


@dataclass
class Scope:
    """A savepoint: rows after `start` are rolled back with it."""

    start: int
    hooks: int
    is_sent: bool = False
    is_doomed: bool = False
    reads_only: bool = False


@dataclass
class Unit:
    """A unit of work: a transaction, or autocommit."""

    is_shared: bool
    read_only: bool = False
    repeatable: bool = False
    is_demanded: bool = True
    is_open: bool = False
    has_failed: bool = False
    has_lost: bool = False
    is_doomed: bool = False
    gives_up: bool = False
    snapshot: list[int] | None = None
    rows: list[int] = field(default_factory=list)
    hooks: list[int] = field(default_factory=list)
    scopes: list[Scope] = field(default_factory=list)


_STEPS = {
    # As in Spring's manual: outside of a transaction, inside of one.
    Propagation.REQUIRED: ("own", "join"),
    Propagation.REQUIRES_NEW: ("own", "own"),
    Propagation.NESTED: ("own", "savepoint"),
    Propagation.MANDATORY: ("refuse", "join"),
    Propagation.SUPPORTS: ("as is", "join"),
    Propagation.NOT_SUPPORTED: ("as is", "alone"),
    Propagation.NEVER: ("as is", "refuse"),
}


class Model:
    """Runs a program without a database."""

    def __init__(self, root: Root) -> None:
        self.seen = Seen()
        self.committed: list[int] = []
        self._number = 0
        self._losses: dict[int, int] = {}
        self._root = root
        self._units = [Unit(is_shared=root != "annotated", is_demanded=root in ("post", "worker"))]
        self._frames: list[tuple[bool | None, bool]] = []
        """One entry per surrounding function: whether it is read only (None: inherited), and whether it is
        transactional.
        """
        self._blocks = 0
        self._limits = 0

    def run(self, program: Program) -> None:
        """Run the program, then end the open transaction."""
        try:
            self._steps(program)
        except (Boom, Refused) as error:
            self.seen.error = name_of(error)
            self._finish(commit=False)
            return
        try:
            self._finish(commit=not self._unit.gives_up)
        except Unexpected as error:
            self.seen.error = name_of(error)

    # -- position

    @property
    def _unit(self) -> Unit:
        return self._units[-1]

    @property
    def _reads_only(self) -> bool:
        return bool(self._frames) and bool(self._frames[-1][0])

    def _around(self) -> str:
        unit = self._unit
        if self._frames and self._frames[-1] == (True, True):
            return "read only"
        if not unit.is_shared:
            return "nothing"
        if unit.read_only:
            return "read only"
        if unit.is_open or unit.repeatable:
            return "open"
        asked = unit.is_demanded or (bool(self._frames) and self._frames[-1][1])
        return "pending" if asked else "offered"

    # -- steps

    def _steps(self, program: Program) -> None:
        for step in program:
            self._step(step)

    def _step(self, step: Step) -> None:
        match step:
            case Put(count):
                errors: list[Refused] = []
                for _ in range(count):
                    try:
                        self._put()
                    except Refused as error:
                        errors.append(error)
                if errors:
                    raise errors[0]
            case Count():
                self._count()
            case Fail():
                self._statement(fails=True)
            case Lose(times):
                lost = self._losses.get(id(step), 0)
                self._losses[id(step)] = lost + 1
                self._statement(fails=lost < times, loses=True)
            case Throw():
                raise Boom
            case Expire():
                if self._limits:
                    raise Expired
            case Doom():
                self._unit.gives_up = True
            case End(commit):
                self._end(commit=commit)
            case Catch(body):
                try:
                    self._steps(body)
                except (Boom, Refused) as error:
                    self.seen.events.append(name_of(error))
            case Limit(body):
                self._limits += 1
                try:
                    self._steps(body)
                except Expired:
                    self.seen.events.append("expired")
                finally:
                    self._limits -= 1
            case Savepoint(body):
                self._savepoint(body)
            case Call():
                self._call(step)

    def _put(self) -> None:
        self._number += 1
        number = self._number
        unit = self._unit
        if self._around() not in ("nothing", "read only"):
            unit.hooks.append(number)
            self.seen.hooks[number] = []
        self._statement(row=number)

    def _statement(self, *, fails: bool = False, loses: bool = False, row: int | None = None) -> None:
        """A statement with write intent."""
        unit = self._unit
        if self._reads_only or unit.read_only:
            raise Refused
        if not unit.is_shared:
            if fails:
                raise Lost if loses else Refused
            if unit.gives_up:
                raise Unexpected
            if row is not None:
                self.committed.append(row)
            return
        self._send(unit)
        if fails:
            unit.has_failed, unit.has_lost = True, loses
            raise Lost if loses else Refused
        if row is not None:
            unit.rows.append(row)

    def _send(self, unit: Unit) -> None:
        """Send a statement in the unit's transaction, which this may open."""
        if unit.has_failed:
            raise Refused
        if not unit.is_open:
            unit.is_open = True
            unit.snapshot = list(self.committed) if unit.read_only or unit.repeatable else None
        for scope in unit.scopes:
            scope.is_sent = True

    def _count(self) -> None:
        unit = self._unit
        if unit.is_shared and (unit.is_open or unit.read_only or unit.repeatable):
            self._send(unit)
            seen = self.committed if unit.snapshot is None else unit.snapshot
            self.seen.events.append(len(seen) + len(unit.rows))
        else:
            self.seen.events.append(len(self.committed))

    def _end(self, *, commit: bool) -> None:
        if self._blocks:
            raise Refused
        unit = self._unit
        try:
            self._finish(commit=commit)
        finally:
            if not commit:
                unit.gives_up = unit.is_doomed = False

    # -- functions and blocks

    def _savepoint(self, body: Program) -> None:
        around = self._around()
        if around == "read only":
            raise Refused
        self._blocks += 1
        try:
            if around == "nothing":
                self._in_own(Unit(is_shared=True), body, frame=(False, True))
            else:
                self._in_scope(Scope(len(self._unit.rows), len(self._unit.hooks)), body, frame=(False, True))
        finally:
            self._blocks -= 1

    def _call(self, call: Call) -> None:
        around = self._around()
        outside, inside = _STEPS[call.propagation]
        step = outside if around == "nothing" else inside
        if around == "offered":
            # A transaction is possible here, but nothing has required one.
            step = {
                Propagation.MANDATORY: "refuse",
                Propagation.SUPPORTS: "as is",
                Propagation.NEVER: "alone",
            }.get(call.propagation, step)
        if step == "refuse":
            raise Refused
        if call.read_only and around in ("offered", "pending") and step in ("join", "savepoint"):
            step = "own"
        reads_only = call.read_only or (step in ("join", "savepoint") and around == "read only")
        if step in ("join", "savepoint") and call.repeatable:
            self._agree(around)
        if step == "join":
            self._join(call, reads_only)
        elif step == "savepoint":
            self._blocks += 1
            try:
                scope = Scope(len(self._unit.rows), len(self._unit.hooks), reads_only=reads_only)
                self._in_scope(scope, call.body, frame=(reads_only, True), tolerates=call.tolerates)
            finally:
                self._blocks -= 1
        elif step == "as is":
            with self._frame((call.read_only or None, False)):
                self._steps(call.body)
        else:
            self._blocks += 1
            try:
                if step == "own":
                    self._own(call)
                else:
                    with self._unit_in_front(Unit(is_shared=False)), self._frame((call.read_only or None, False)):
                        self._steps(call.body)
            finally:
                self._blocks -= 1

    def _agree(self, around: str) -> None:
        unit = self._unit
        if unit.is_open:
            if not (unit.repeatable or unit.read_only):
                raise Refused
        elif not unit.read_only:
            unit.repeatable = True

    def _join(self, call: Call, reads_only: bool) -> None:
        unit = self._unit
        try:
            with self._frame((reads_only, True)):
                self._steps(call.body)
        except (Boom, Refused, Expired) as error:
            if not reads_only and not (call.tolerates and isinstance(error, Boom)):
                if unit.scopes:
                    unit.scopes[-1].is_doomed = True
                else:
                    unit.is_doomed = True
            raise

    def _own(self, call: Call) -> None:
        attempt = 0
        while True:
            attempt += 1
            unit = Unit(is_shared=True, read_only=call.read_only, repeatable=call.repeatable)
            committed = len(self.committed)
            ran = {number: list(events) for number, events in self.seen.hooks.items()}
            try:
                self._in_own(unit, call.body, frame=(call.read_only, True), tolerates=call.tolerates)
            except (Boom, Refused) as error:
                is_lost = unit.has_lost or isinstance(error, Lost)
                retries = 0 if call.is_block else call.retry
                if not is_lost or attempt > retries or len(self.committed) != committed:
                    raise
                # Hooks of an attempt that is retried do not run.
                for number, events in self.seen.hooks.items():
                    events[:] = ran.get(number, [])
                continue
            return

    def _in_own(self, unit: Unit, body: Program, *, frame: tuple[bool, bool], tolerates: bool = False) -> None:
        with self._unit_in_front(unit):
            try:
                with self._frame(frame):
                    self._steps(body)
            except (Boom, Refused, Expired) as error:
                keeps = tolerates and isinstance(error, Boom) and not unit.gives_up
                self._finish(commit=keeps)
                raise
            self._finish(commit=not unit.gives_up)

    def _in_scope(self, scope: Scope, body: Program, *, frame: tuple[bool, bool], tolerates: bool = False) -> None:
        unit = self._unit
        unit.scopes.append(scope)
        error: BaseException | None = None
        try:
            with self._frame(frame):
                self._steps(body)
        except (Boom, Refused, Expired) as raised:
            error = raised
        unit.scopes.pop()
        is_undone = scope.is_doomed or (error is not None and not (tolerates and isinstance(error, Boom)))
        if is_undone or (scope.is_sent and unit.has_failed):
            self._record(unit.hooks[scope.hooks :], committed=False)
            del unit.hooks[scope.hooks :]
            if scope.is_sent:
                del unit.rows[scope.start :]
                unit.has_failed = unit.has_lost = False
            if error is None:
                raise Unexpected
        if error is not None:
            raise error

    @contextmanager
    def _frame(self, frame: tuple[bool | None, bool]) -> Iterator[None]:
        self._frames.append(frame)
        try:
            yield
        finally:
            self._frames.pop()

    @contextmanager
    def _unit_in_front(self, unit: Unit) -> Iterator[None]:
        self._units.append(unit)
        try:
            yield
        finally:
            self._units.pop()

    # -- end of the transaction

    def _finish(self, *, commit: bool) -> None:
        unit = self._unit
        is_kept = commit and not (unit.gives_up or unit.is_doomed or unit.has_failed)
        if is_kept:
            self.committed += unit.rows
        self._record(unit.hooks, committed=is_kept)
        unit.rows, unit.hooks = [], []
        unit.is_open = unit.has_failed = False
        if len(self._units) == 1:
            unit.repeatable = False
        unit.snapshot = None
        if commit and not is_kept:
            raise Unexpected

    def _record(self, hooks: list[int], *, committed: bool) -> None:
        for number in hooks:
            self.seen.hooks[number] += ["before", "committed"] if committed else ["rolled back"]


# -- the machine


class Machine:
    """Runs a program with a session.

    Args:
        run: A number that identifies this run's rows.
    """

    def __init__(self, run: int) -> None:
        self.seen = Seen()
        self.written: set[int] = set()
        """The rows whose statement succeeded, whatever the outcome of their transaction."""
        self.run = run
        self._number = 0
        self._losses: dict[int, int] = {}
        self._limits: list[asyncio.Timeout] = []

    async def steps(self, db: DataSession, program: Program) -> None:
        """Run a program."""
        for step in program:
            await self._step(db, step)

    async def _step(self, db: DataSession, step: Step) -> None:
        match step:
            case Put(1):
                await self._put(db)
            case Put(count):
                results = await asyncio.gather(*(self._put(db) for _ in range(count)), return_exceptions=True)
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
            case Count():
                query = "select count(*) from things where run = %s"
                self.seen.events.append(await db.read.fetch_value(query, [self.run]))
            case Fail():
                await db.write.execute("select 1 / 0")
            case Lose(times):
                lost = self._losses.get(id(step), 0)
                self._losses[id(step)] = lost + 1
                state = "raise exception using errcode = '40001';" if lost < times else ""
                await db.write.execute(f"do $$ begin {state} end $$")
            case Throw():
                raise Boom
            case Expire():
                if self._limits:
                    self._limits[-1].reschedule(asyncio.get_running_loop().time())
                    await asyncio.Event().wait()
            case Doom():
                db.set_rollback_only("doomed")
            case End(commit):
                await (db.commit() if commit else db.rollback())
            case Catch(body):
                try:
                    await self.steps(db, body)
                except (Boom, DataError) as error:
                    self.seen.events.append(name_of(error))
            case Limit(body):
                await self._limit(db, body)
            case Savepoint(body):
                async with db.transaction():
                    await self.steps(db, body)
            case Call():
                await self._call(db, step)

    async def _put(self, db: DataSession) -> None:
        self._number += 1
        number = self._number
        if db.surroundings() not in (SurroundingTransaction.NOTHING, SurroundingTransaction.READ_ONLY):
            ran = self.seen.hooks[number] = []
            db.before_commit(lambda: ran.append("before"))
            db.after_commit(lambda: ran.append("committed"))
            db.after_rollback(lambda: ran.append("rolled back"))
        await db.write.execute("insert into things (run, number) values (%s, %s)", [self.run, number])
        self.written.add(number)

    async def _limit(self, db: DataSession, body: Program) -> None:
        try:
            async with asyncio.timeout(None) as limit:
                self._limits.append(limit)
                try:
                    await self.steps(db, body)
                finally:
                    self._limits.pop()
        except TimeoutError:
            self.seen.events.append("expired")

    async def _call(self, db: DataSession, call: Call) -> None:
        options: dict[str, Any] = {
            "propagation": call.propagation,
            "read_only": call.read_only,
            "isolation": "repeatable read" if call.repeatable else None,
            "commit_on": [Boom] if call.tolerates else [],
        }
        if call.is_block:
            async with transactional(**options):
                await self.steps(db, call.body)
            return

        @transactional(**options, retry=call.retry)
        async def function() -> None:
            await self.steps(db, call.body)

        await function()
