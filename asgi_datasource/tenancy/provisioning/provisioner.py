"""The operations on tenants. After an interruption, another call resumes an operation where it stopped."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from ...drivers.control import control_driver
from ...errors import DataError, DataErrorKind
from .. import Tenant
from .fence import Grants, count_rows, lift_fence, raise_fence
from .ledger import Ledger, Operation, Record, StepEntry, StepState
from .operation import Notes, Run, Step
from .placing import Placing
from .plan import ProvisioningPlan, step_name
from .programs import Programs, check_dump_folder, partials_of
from .tenant_site import Place
from .transfer import check_dumpable, copy, dump
from .trust import open_admin

logger = logging.getLogger("asgi_datasource.provisioning")


class TenantMigrations(Protocol):
    """What brings the schema of a tenant to the version of the application's files, before its set-up.

    It also creates the library's own tables in a tenant's database, and lets the tenant's role use them.
    """

    async def bring_up(self, tenant: Tenant) -> None:
        """Apply every migration to a new tenant's schema or database; can be repeated.

        Raises:
            DataError: One of them failed, or the shared part of the database is not at its head.
        """
        ...

    async def carry(self, source: Tenant, target: Tenant) -> None:
        """Write down at a tenant's new place what has run at its old one, and create own tables; can be repeated.

        Raises:
            DataError: One of the databases cannot be reached.
        """
        ...


class TenantEvents(Protocol):
    """What looks after the events of tenants that move."""

    async def drain(self, tenant: Tenant) -> None:
        """Wait until what a tenant has published is delivered, where it leaves its database.

        Raises:
            DataError: CONFLICT: events are not delivered. The database cannot be reached.
        """
        ...

    async def carry(self, source: Tenant, target: Tenant) -> None:
        """Note at a tenant's new place which events it has processed at its old one; can be repeated.

        Raises:
            DataError: One of the databases cannot be reached.
        """
        ...


class Provisioner:
    """Creates, moves and drops the tenants in the table `asgi_datasource.tenants`.

    Args:
        plan: The configuration.
        tell: Called with each step as it begins.
        migrations: Migrates new tenants; None if the document has neither migrations nor own tables.
        events: Looks after the events of tenants that move; None if the document has no outbox.

    Attributes:
        has_begun: A step has begun: a failure after that leaves an unfinished operation.
    """

    def __init__(
        self,
        plan: ProvisioningPlan,
        *,
        tell: Callable[[str], None] = logger.info,
        migrations: TenantMigrations | None = None,
        events: TenantEvents | None = None,
    ) -> None:
        self._plan = plan
        self._events = events
        self._migrations = migrations
        self._tell = tell
        self.has_begun = False
        self._programs = Programs(plan.programs)

    # -- the operations

    async def create(self, name: str, *, adopt: bool = False, **placed: Any) -> Tenant:
        """Create a tenant: its schema or database, its role and grants, then the set-up; it is served when all is done.

        Args:
            name: Its name; has to match `tenancy.pattern`.
            adopt: Take over a schema, database or role that is there already. It stays when the tenant is dropped.
            placed: `datasource`, `schema`, `role`, `database`, `row_security`, `max_connections`, `aliases`, `domains`;
                those that are not given are taken from `tenants_from.defaults`. `{tenant}` in them is the name.

        Raises:
            DataError: It could not be finished; run it again. CONFLICT: the name exists in another place; or the place
                is another tenant's; or an object exists that was not created for it. TENANT: the name, or a name of its
                place, is not allowed for a tenant.
        """
        async with self._records() as records, records.alone(name):
            placing = Placing(self._plan, records)
            placing.check_name(name)
            placement = placing.wanted(name, placed)
            async with records.registering():
                if await records.find(name) is None:
                    await placing.check_apart(name, placement)
                    await placing.check_unused(placement, name, adopt=adopt, tell=self._tell)
                    await records.register(name, placement)
            record = await self._known(records, name)
            if record.placement != placement and placed:
                raise DataError(DataErrorKind.CONFLICT, f"there is a tenant {name!r} already, in another place")
            tenant = placing.tenant(record)
            if record.is_ready:
                return tenant
            self._check_free(record, Operation.CREATE)
            await records.open(name, Operation.CREATE)
            place = await placing.of(record, adopt=adopt)
            steps = [
                Step("place", lambda _: place.make(lambda part, is_made: records.note_made(name, part, is_made))),
                Step("grants", lambda _: place.grant()),
                *self._migrating(tenant),
                *(Step(f"set-up {step_name(step)}", _set_up(place, step, tenant)) for step in self._plan.set_up),
                # What the set-up has created is granted as well.
                Step("grants after set-up", lambda _: place.grant()),
                Step("activate", lambda _: records.activate(name), ends=True),
            ]
            await Run(records, name, Operation.CREATE, steps, self._step).go_on()
            return tenant

    def _migrating(self, tenant: Tenant) -> Sequence[Step]:
        migrations = self._migrations
        return [] if migrations is None else [Step("migrate", lambda _: migrations.bring_up(tenant))]

    async def drop(self, name: str, *, keep_dump: bool = False, cascade: bool = False) -> Path | None:
        """Drop a tenant, with all objects that were created for it and that no other tenant shares.

        Args:
            name: Its name.
            keep_dump: Keep a dump of it in the configured folder first.
            cascade: Drop what depends on its objects as well, such as a view elsewhere that reads its tables.

        Returns:
            The dump, if one was kept.

        Raises:
            DataError: TENANT: there is none. CONFLICT: something depends on its objects, and `cascade` is not set. Or
                it could not be finished; run it again.
        """
        async with self._records() as records, records.alone(name):
            placing = Placing(self._plan, records)
            record = await self._known(records, name)
            self._check_free(record, Operation.DROP)
            place = await placing.of(record)
            taken = await place.dependants()
            if not cascade:
                place.refuse(taken)
            begun = await records.steps(name, Operation.DROP)
            file = self._kept_dump(begun.get("dump"), record, wanted=keep_dump)
            if keep_dump:
                check_dumpable(place)
                self._programs.find("pg_dump")
            for what in taken:
                self._tell(f"drop {name}: takes with it: {what}")
            for what in await records.all_left_behind(record):
                self._tell(f"drop {name}: stays: {what}, which a move has left behind")
            if place.is_shared:
                self._tell(f"drop {name}: it has no database or schema of its own; its rows stay where they are")
            await records.open(name, Operation.DROP)
            steps = self._dropping(records, record, place, file, cascade=cascade)
            await Run(records, name, Operation.DROP, steps, self._step).go_on()
            return file

    def _dropping(
        self, records: Ledger, record: Record, place: Place, file: Path | None, *, cascade: bool
    ) -> Sequence[Step]:
        name = record.name

        async def stop_serving(notes: Notes) -> None:
            if notes["state"] is None:
                await notes.keep(state=record.state, is_ready=record.is_ready)
            await records.change(name, state="suspended", is_ready=False)

        async def serve_again(notes: Notes) -> None:
            if notes["state"] is not None:
                await records.change(name, state=notes["state"], is_ready=notes["is_ready"])

        async def keep(notes: Notes) -> None:
            if file is not None:
                await notes.keep(file=str(file))
                await dump(place, file, self._programs)

        async def take_away(_: Notes) -> None:
            for what in await place.drop(cascade=cascade):
                self._tell(f"drop {name}: stays: {what}")

        return [
            Step("stop serving", stop_serving, serve_again),
            Step("dump", keep),
            Step("drop objects", take_away, undo=None),
            Step("delete row", lambda _: records.forget(record), undo=None, ends=True),
        ]

    async def move(self, name: str, datasource: str) -> None:
        """Move a tenant with a schema or database of its own to another datasource; reads are served all the while.

        The old objects stay, read-only. A move that failed can be repeated, or undone with `cancel`.

        Raises:
            DataError: TENANT: there is none. CONFLICT: another move is under way. Or it could not be finished.
        """
        async with self._records() as records, records.alone(name):
            placing = Placing(self._plan, records)
            record = await self._known(records, name)
            self._check_free(record, Operation.MOVE, datasource)
            if record.placement.datasource == datasource:
                return
            if not record.is_ready:
                raise DataError(DataErrorKind.CONFLICT, f"the tenant {name!r} is not ready yet")
            source, target = await placing.of(record), await placing.target(record, datasource)
            if source.is_shared or source.site.has_databases != target.site.has_databases:
                raise DataError(
                    DataErrorKind.QUERY,
                    "only a schema or database of the tenant's own can be moved, a schema to where schemas are, and a"
                    f" database to where databases are: {name!r} cannot go from {source.site.name!r} to {datasource!r}",
                )
            if record.under_way is None:
                await self._check_target(placing, record, target)
                for program in ("pg_dump", "pg_restore"):
                    self._programs.find(program)
            await records.open(name, Operation.MOVE, datasource)
            steps = self._moving(records, placing, record, source, target)
            await Run(records, name, Operation.MOVE, steps, self._step).go_on()

    async def _check_target(self, placing: Placing, record: Record, target: Place) -> None:
        """Refuse a place with objects that the tenant has not left behind, or on which other objects depend."""
        if not await placing.left_behind(record, target):
            if await target.is_there():
                raise placing.taken(record, target.site.name)
        else:
            target.refuse(await target.dependants())

    def _moving(
        self, records: Ledger, placing: Placing, record: Record, source: Place, target: Place
    ) -> Sequence[Step]:
        name = record.name

        async def stop_writes(notes: Notes) -> None:
            if notes["state"] is None:
                await notes.keep(state=record.state)
            if notes["state"] != "suspended":
                await records.change(name, state="moving")

        async def let_write(notes: Notes) -> None:
            if notes["state"] is not None:
                await records.change(name, state=notes["state"])

        async def fence(notes: Notes) -> None:
            async def keep(grants: Grants) -> None:
                # After an interruption the revoked rights are no longer visible: keep those recorded before.
                known: Grants = notes["grants"] or []
                await notes.keep(grants=[*known, *(row for row in map(list, grants) if row not in known)])

            await raise_fence(source, keep)
            if self._events is not None:
                await self._events.drain(placing.tenant(record))

        async def unfence(notes: Notes) -> None:
            await lift_fence(source, notes["grants"] or [])

        async def copied(notes: Notes) -> None:
            async def note(part: str, is_made: bool) -> None:
                await notes.keep(made=[part] if is_made else [])

            if not notes["is_claimed"]:
                await self._check_target(placing, record, target)
                await notes.keep(is_claimed=True)
            await copy(source, target, self._programs, note)
            await target.grant()
            moved = placing.tenant(replace(record, placement=target.placement))
            if self._migrations is not None:
                await self._migrations.carry(placing.tenant(record), moved)
            if self._events is not None:
                await self._events.carry(placing.tenant(record), moved)

        async def uncopied(notes: Notes) -> None:
            if notes["is_claimed"]:
                # The role is the source's as well, but for one that was created here.
                await target.owning({*(target.own - {"role"}), *(notes["made"] or [])}).drop()
                await placing.take_back(record, target)

        async def compare(_: Notes) -> None:
            before, after = await count_rows(source), await count_rows(target)
            if before != after:
                different = sorted(table for table in {*before, *after} if before.get(table) != after.get(table))
                told = ", ".join(different[:5])
                raise DataError(DataErrorKind.QUERY, f"the copy differs from the original in {told}")

        async def switch(_: Notes) -> None:
            begun = await records.steps(name, Operation.MOVE)
            created: list[str] = begun["copy"].kept.get("made") or []
            made = {*target.own, *created}
            await placing.take_back(record, target)
            state = begun["stop writes"].kept["state"]
            await records.switch(record, target.site.name, state=state, made=sorted(made))

        return [
            Step("stop writes", stop_writes, let_write),
            Step("fence", fence, unfence),
            Step("copy", copied, uncopied),
            Step("compare", compare),
            Step("switch", switch, ends=True),
        ]

    async def cancel(self, name: str, operation: Operation) -> None:
        """Undo an unfinished move or drop, step by step: the tenant is as it was before.

        After an interruption, another call resumes it. A drop cannot be undone once it drops objects.

        Args:
            name: The tenant's name.
            operation: The operation to undo.

        Raises:
            DataError: TENANT: there is no such tenant. CONFLICT: there is nothing to undo, or it cannot be undone. Or
                it could not be finished.
        """
        async with self._records() as records, records.alone(name):
            placing = Placing(self._plan, records)
            record = await self._known(records, name)
            under_way = record.under_way
            if under_way is None or under_way.operation is not operation:
                raise DataError(DataErrorKind.CONFLICT, f"no {operation.value} of {name!r} is under way")
            if operation is Operation.CREATE:
                raise under_way.refusal(name)
            source = await placing.of(record)
            if operation is Operation.MOVE:
                target = await placing.target(record, under_way.target or "")
                steps = self._moving(records, placing, record, source, target)
            else:
                steps = self._dropping(records, record, source, None, cascade=False)
            await Run(records, name, operation, steps, self._step).take_back()

    async def rename(self, name: str, new: str) -> None:
        """Give a tenant another name. Nothing of it moves, and the old name stays an alias.

        Raises:
            DataError: TENANT: there is none. CONFLICT: the new name is taken, or an operation is under way.
        """
        # Both names are locked: a tenant of the new name may be about to be created.
        async with self._records() as records, records.alone(name), records.alone(new):
            Placing(self._plan, records).check_name(new)
            found = await records.find(new)
            if found is not None and name in found.placement.aliases and await records.find(name) is None:
                return
            record = await self._known(records, name)
            if record.under_way is not None:
                raise record.under_way.refusal(name)
            async with records.registering():
                if self._plan.lists(new) or await records.claimed_by(name, [new]) is not None:
                    raise DataError(DataErrorKind.CONFLICT, f"the name {new!r} is taken")
                await records.rename(name, new)

    async def suspend(self, name: str) -> None:
        """Stop serving a tenant, until `resume`."""
        await self._set_state(name, "suspended")

    async def resume(self, name: str) -> None:
        """Serve a tenant again."""
        await self._set_state(name, "active")

    async def list(self) -> list[Record]:
        """Every tenant of the table, by name."""
        async with self._records() as records:
            return await records.all()

    # -- internals

    def _step(self, text: str) -> None:
        self.has_begun = True
        self._tell(text)

    async def _set_state(self, name: str, state: str) -> None:
        async with self._records() as records, records.alone(name):
            record = await self._known(records, name)
            if record.under_way is not None:
                raise record.under_way.refusal(name)
            await records.change(name, state=state)

    @asynccontextmanager
    async def _records(self) -> AsyncGenerator[Ledger]:
        home = self._plan.home
        if home is None:
            raise DataError(
                DataErrorKind.CONFIG,
                "tenants can be made, moved and dropped where the document reads them from the table that is kept here:"
                " set tenants_from.datasource, and leave tenants_from.query out",
            )
        site = self._plan.sites[home]
        async with open_admin(site) as admin:
            records = Ledger(admin)
            await records.prepare(control_driver().login_of(site.url), where=f"datasource {home!r}")
            yield records

    async def _known(self, records: Ledger, name: str) -> Record:
        record = await records.find(name)
        if record is None:
            raise DataError(DataErrorKind.TENANT, f"there is no tenant {name!r}", http_status=404)
        return record

    @staticmethod
    def _check_free(record: Record, operation: Operation, target: str | None = None) -> None:
        """Refuse an operation while another one, or the same one with another target, is unfinished.

        Raises:
            DataError: CONFLICT: one is.
        """
        other = record.under_way
        if other is None or (other.operation, other.target, other.is_cancelled) == (operation, target, False):
            return
        # A tenant that could not be created can be dropped.
        if other.operation is not Operation.CREATE or operation is not Operation.DROP:
            raise other.refusal(record.name)

    def _kept_dump(self, entry: StepEntry | None, record: Record, *, wanted: bool) -> Path | None:
        """The file of a dump: the complete one, or else the one to be written."""
        noted = None if entry is None else entry.kept.get("file")
        if noted is not None and entry is not None and entry.state is StepState.DONE:
            return Path(noted)
        if not wanted:
            return None
        folder = self._plan.dump_folder
        if folder is None:
            raise DataError(DataErrorKind.CONFIG, "a dump needs a folder: set provisioning.dump_folder")
        check_dump_folder(folder)
        if noted is not None:
            # The process that wrote it has died.
            file = Path(noted)
            for partial in partials_of(file):
                partial.unlink(missing_ok=True)
            file.unlink(missing_ok=True)
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", record.name)
        return folder / f"{plain}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid4().hex[:8]}.dump"


def _set_up(place: Place, step: str, tenant: Tenant) -> Callable[[Notes], Awaitable[None]]:
    return lambda _: place.set_up(step, tenant)
