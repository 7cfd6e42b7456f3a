"""The operations on tenants. Whoever runs one again after it was cut short goes on where it stopped."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID, uuid4

from ...config import EVERY_OTHER, PLACEHOLDER
from ...errors import DataError, DataErrorKind
from .. import Tenant
from .ledger import Ledger, Operation, Placement, Record, StepEntry, StepState
from .operation import Notes, Step, run
from .plan import ProvisioningPlan, Site, step_name
from .programs import Programs, check_dump_folder, partials_of
from .tenant_site import Place
from .transfer import check_dumpable, copy, dump
from .trust import check_reserved, login_of, open_admin

logger = logging.getLogger("asgi_datasource.provisioning")

_PLAIN_NAME: Final = re.compile(r"[^\x00-\x1f\x7f*{}]{1,255}")


class Provisioner:
    """Makes, moves and takes away tenants whose rows are in the table that it keeps.

    Args:
        plan: What the configuration says.
        tell: Is told of each step as it begins.
    """

    def __init__(self, plan: ProvisioningPlan, *, tell: Callable[[str], None] = logger.info) -> None:
        self._plan = plan
        self._tell = tell
        self._programs = Programs(plan.programs)

    # -- the operations

    async def create(self, name: str, *, adopt: bool = False, **placed: Any) -> Tenant:
        """Create a tenant: its schema or database, its role and grants, then the set-up; it is served when all is done.

        Args:
            name: Its name; has to match `tenancy.pattern`.
            adopt: Take over a schema, database or role that is there already. It stays when the tenant is dropped.
            placed: `datasource`, `schema`, `role`, `database`, `row_security`, `max_connections`, `aliases`; those that
                are not given are taken from `tenants_from.defaults`. `{tenant}` in them is the name.

        Raises:
            DataError: It could not be finished; run it again. CONFLICT: there is one of that name, in another place; or
                one in that place; or something is there that was not created for it. TENANT: the name, or that of its
                place, cannot be a tenant's.
        """
        self._check_name(name)
        placement = self._placement(name, placed)
        async with self._records() as records, records.alone(name):
            await self._check_free(records, name, Operation.CREATE)
            async with records.registering():
                if await records.find(name) is None:
                    await self._check_apart(records, name, placement)
                    await self._check_unused(placement, name, adopt=adopt)
                    await records.register(name, placement)
            record = await self._known(records, name)
            if record.placement != placement and placed:
                raise DataError(DataErrorKind.CONFLICT, f"there is a tenant {name!r} already, in another place")
            place = await self._place(records, record, adopt=adopt)
            tenant = self._tenant(record)
            if record.is_ready:
                return tenant
            steps = [
                Step("place", lambda _: place.make(lambda part, is_made: records.note_made(name, part, is_made))),
                Step("grants", lambda _: place.grant()),
                *(Step(f"set-up {step_name(step)}", _set_up(place, step, tenant)) for step in self._plan.set_up),
                # What the set-up has created is granted as well.
                Step("grants after set-up", lambda _: place.grant()),
                Step("activate", lambda _: records.activate(name), ends=True),
            ]
            await run(records, name, Operation.CREATE, steps, tell=self._tell)
            return tenant

    async def drop(self, name: str, *, keep_dump: bool = False, cascade: bool = False) -> Path | None:
        """Drop a tenant, with all that was created for it and that no other tenant has as well.

        Args:
            name: Its name.
            keep_dump: Keep a dump of it in the configured folder first.
            cascade: Drop what depends on its objects as well, such as a view elsewhere that reads its tables.

        Returns:
            The dump, where one was kept.

        Raises:
            DataError: TENANT: there is none. CONFLICT: something depends on its objects, and `cascade` is not set. Or
                it could not be finished; run it again.
        """
        async with self._records() as records, records.alone(name):
            record = await self._known(records, name)
            await self._check_free(records, name, Operation.DROP)
            place = await self._place(records, record)
            taken = await place.dependants()
            if not cascade:
                place.refuse(taken)
            for what in taken:
                self._tell(f"drop {name}: takes with it: {what}")
            begun = await records.steps(name, Operation.DROP)
            file = self._kept_dump(begun.get("dump"), record, wanted=keep_dump)
            if keep_dump:
                check_dumpable(place)
                self._programs.find("pg_dump")

            async def keep(notes: Notes) -> None:
                if file is not None:
                    await notes.keep(file=str(file))
                    await dump(place, file, self._programs)

            async def take_away(_: Notes) -> None:
                for what in await place.drop(cascade=cascade):
                    self._tell(f"drop {name}: stays: {what}")

            steps = [
                Step("stop serving", lambda _: records.change(name, state="suspended", is_ready=False)),
                Step("dump", keep),
                Step("take away", take_away),
                Step("forget", lambda _: records.forget(record), ends=True),
            ]
            if place.is_shared:
                self._tell(f"drop {name}: it has no database or schema of its own making; its rows stay where they are")
            await run(records, name, Operation.DROP, steps, tell=self._tell)
            return file

    async def move(self, name: str, datasource: str) -> None:
        """Move a tenant with a schema or database of its own to another datasource; reads are served all the while.

        What it leaves behind stays where it was, for reading alone, until somebody drops it.

        Raises:
            DataError: TENANT: there is none. Or it could not be finished; run it again.
        """
        async with self._records() as records, records.alone(name):
            record = await self._known(records, name)
            await self._check_free(records, name, Operation.MOVE)
            begun = await records.steps(name, Operation.MOVE)
            if record.placement.datasource == datasource:
                return
            if not record.is_ready:
                raise DataError(DataErrorKind.CONFLICT, f"the tenant {name!r} is not ready yet")
            if datasource not in self._plan.sites:
                raise DataError(DataErrorKind.CONFIG, f"there is no datasource {datasource!r}")
            source = await self._place(records, record)
            target_record = replace(record, placement=replace(record.placement, datasource=datasource))
            # What was created for it is created there; not what others have there as well.
            wanted = record.made & {"schema", "database"}
            shared = await self._shared(records, name, target_record.placement)
            target = self._at(
                self._plan.sites[datasource], target_record.placement, name, record.id, own=wanted - shared
            )
            if source.is_shared or source.site.has_databases != target.site.has_databases:
                raise DataError(
                    DataErrorKind.QUERY,
                    "only a schema or database of the tenant's own can be moved, a schema to where schemas are, and a"
                    f" database to where databases are: {name!r} cannot go from {source.site.name!r} to {datasource!r}",
                )
            left = await records.left_behind(target_record, self._plan.twins(datasource))
            if wanted & shared or ("copy" not in begun and not wanted <= left and await target.is_there()):
                raise DataError(
                    DataErrorKind.CONFLICT,
                    f"where {name!r} would live on {datasource!r}, somebody else's tables are: move those first",
                )
            if "copy" not in begun:
                target.refuse(await target.dependants())
            await run(records, name, Operation.MOVE, self._moving(records, record, source, target), tell=self._tell)

    def _moving(self, records: Ledger, record: Record, source: Place, target: Place) -> Sequence[Step]:
        name = record.name

        async def stop_writes(notes: Notes) -> None:
            if notes["state"] is None:
                await notes.keep(state=record.state)
            await records.change(name, state="moving")

        async def copied(notes: Notes) -> None:
            await copy(source, target, self._programs)
            await target.grant()

        async def compare(_: Notes) -> None:
            before, after = await source.counts(), await target.counts()
            if before != after:
                different = sorted(table for table in {*before, *after} if before.get(table) != after.get(table))
                told = ", ".join(different[:5])
                raise DataError(DataErrorKind.QUERY, f"the copy differs from the original in {told}")

        async def switch(_: Notes) -> None:
            begun = await records.steps(name, Operation.MOVE)
            state = begun["stop writes"].kept["state"]
            await records.take_back(replace(record, placement=target.placement), self._plan.twins(target.site.name))
            await records.switch(record, target.site.name, state=state, made=sorted(record.made))

        return [
            Step("stop writes", stop_writes),
            Step("fence", lambda _: source.fence()),
            Step("copy", copied),
            Step("compare", compare),
            Step("switch", switch, ends=True),
        ]

    async def rename(self, name: str, new: str) -> None:
        """Give a tenant another name. Nothing of it moves, and the old name stays an alias.

        Raises:
            DataError: TENANT: there is none. CONFLICT: the new name is taken, or something is under way.
        """
        self._check_name(new)
        async with self._records() as records, records.alone(name), records.alone(new):
            found = await records.find(new)
            if found is not None and name in found.placement.aliases and await records.find(name) is None:
                return
            record = await self._known(records, name)
            if record.under_way is not None:
                raise DataError(DataErrorKind.CONFLICT, f"{record.under_way} of {name!r} is under way")
            async with records.registering():
                if self._plan.lists(new) or await records.claimed_by(name, [new]) is not None:
                    raise DataError(DataErrorKind.CONFLICT, f"the name {new!r} is taken")
                await records.rename(name, new)

    async def suspend(self, name: str) -> None:
        """Serve a tenant no more, until `resume`."""
        await self._set_state(name, "suspended")

    async def resume(self, name: str) -> None:
        """Serve a tenant again."""
        await self._set_state(name, "active")

    async def list(self) -> list[Record]:
        """Every tenant of the table, by name."""
        async with self._records() as records:
            return await records.all()

    # -- inside

    async def _set_state(self, name: str, state: str) -> None:
        async with self._records() as records, records.alone(name):
            record = await self._known(records, name)
            if record.under_way is not None:
                raise DataError(DataErrorKind.CONFLICT, f"{record.under_way} of {name!r} is under way")
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
            await records.prepare(login_of(site.url), where=f"datasource {home!r}")
            yield records

    async def _known(self, records: Ledger, name: str) -> Record:
        record = await records.find(name)
        if record is None:
            raise DataError(DataErrorKind.TENANT, f"there is no tenant {name!r}", http_status=404)
        return record

    async def _check_free(self, records: Ledger, name: str, operation: Operation) -> None:
        other = await records.other_operation(name, operation)
        # A tenant that could not be made can be dropped all the same.
        if other is not None and not (other == Operation.CREATE and operation is Operation.DROP):
            raise DataError(DataErrorKind.CONFLICT, f"{other} of {name!r} is under way: finish that first")

    def _placement(self, name: str, placed: Mapping[str, Any]) -> Placement:
        known = {**self._plan.defaults, **{key: value for key, value in placed.items() if value is not None}}
        datasource = known.get("datasource")
        if not isinstance(datasource, str) or datasource not in self._plan.sites:
            raise DataError(DataErrorKind.CONFIG, f"the tenant {name!r} needs a datasource of the document")
        limits = cast("Mapping[str, int]", known.get("limits") or {})
        limit = cast("int | None", known.get("max_connections", limits.get("max_connections")))
        settings = cast("Mapping[str, str] | None", known.get("row_security"))
        has_databases = self._plan.sites[datasource].has_databases
        return Placement(
            datasource,
            _filled(known.get("schema"), name),
            _filled(known.get("role"), name),
            (_filled(known.get("database"), name) or name) if has_databases else None,
            None if settings is None else {key: value.replace(PLACEHOLDER, name) for key, value in settings.items()},
            limit,
            tuple(cast("Sequence[str]", known.get("aliases", ()))),
        )

    async def _check_apart(self, records: Ledger, name: str, placement: Placement) -> None:
        """Refuse a name that is somebody's, and a place where nothing would keep the tenant and another one apart.

        Raises:
            DataError: CONFLICT: it is.
        """
        names = [name, *placement.aliases]
        other = await records.claimed_by(name, names)
        is_listed = any(map(self._plan.lists, names))
        if other is not None or is_listed:
            whose = "the document" if other is None else f"the tenant {other!r}"
            raise DataError(DataErrorKind.CONFLICT, f"{whose} has the name, or an alias, of {name!r} already")
        twins = self._plan.twins(placement.datasource)
        other = await records.same_place(name, placement, twins)
        if other is None:
            alike = replace(placement, max_connections=None, aliases=())
            there = (
                (known, place, replace(alike, datasource=place.datasource)) for known, place in self._listed(twins)
            )
            other = next((known for known, place, wanted in there if place == wanted), None)
        if other is not None:
            raise DataError(
                DataErrorKind.CONFLICT,
                f"the tenant {other!r} lives in the same place, and nothing would keep the two apart: give {name!r} a"
                " schema, a database, a role or row_security settings of its own",
            )

    async def _check_unused(self, placement: Placement, name: str, *, adopt: bool) -> None:
        """Refuse a place that has a reserved name, or that is there already.

        Raises:
            DataError: TENANT: a name is reserved. CONFLICT: something is there, and `adopt` is not set.
        """
        site = self._plan.sites[placement.datasource]
        place = self._at(site, placement, name, UUID(int=0), own=frozenset(), adopt=adopt)
        names = {"schema": placement.schema, "role": placement.role, "database": place.database}
        for part, given in names.items():
            # `public`, for tenants that share its tables: the document's choice, not that of whoever names a tenant.
            if given is not None and not (given == "public" and self._plan.documents(part, given)):
                taken = {"role": (place.app_role,), "database": self._plan.databases}.get(part, ())
                check_reserved(part, given, taken)
        for part, given in await place.found():
            if part == "role":
                await place.check_role()
            if self._plan.documents(part, given):
                continue
            if not adopt:
                raise place.refusal(part, given)
            self._tell(f"create {name}: takes over the {part} {given!r} as it is; it stays when the tenant is dropped")

    def _listed(self, datasources: Sequence[str]) -> Iterator[tuple[str, Placement]]:
        """The tenants of the document that live on these datasources."""
        return ((name, there) for name, there in self._plan.listed_places() if there.datasource in datasources)

    async def _shared(self, records: Ledger, name: str, placement: Placement) -> frozenset[str]:
        """What of `schema`, `role` and `database` other tenants have as well, those of the document included."""
        twins = self._plan.twins(placement.datasource)
        shared = set(await records.shared(name, placement, twins))
        for _, there in self._listed(twins):
            if there.database == placement.database:
                shared |= {"database"} if there.database is not None else set()
                shared |= {"schema"} if there.schema == placement.schema is not None else set()
        if any(there.role == placement.role is not None for _, there in self._plan.listed_places()):
            shared.add("role")
        return frozenset(shared)

    async def _place(self, records: Ledger, record: Record, *, adopt: bool = False) -> Place:
        site = self._plan.sites.get(record.placement.datasource)
        if site is None:
            raise DataError(
                DataErrorKind.CONFIG, f"the datasource {record.placement.datasource!r} is not in the document any more"
            )
        own = record.made - await self._shared(records, record.name, record.placement)
        return self._at(site, record.placement, record.name, record.id, own=own, adopt=adopt)

    def _at(
        self, site: Site, placement: Placement, name: str, tenant_id: UUID, *, own: frozenset[str], adopt: bool = False
    ) -> Place:
        names = {"schema": placement.schema, "role": placement.role, "database": placement.database}
        may_be_there = frozenset(part for part, given in names.items() if adopt or self._plan.documents(part, given))
        return Place(self._plan, site, placement, tenant=name, tenant_id=tenant_id, own=own, may_be_there=may_be_there)

    def _tenant(self, record: Record) -> Tenant:
        placement = record.placement
        try:
            return self._plan.compiler.make(
                record.name,
                placement.datasource,
                schema=placement.schema,
                row_security=placement.row_security,
                role=placement.role,
                max_connections=placement.max_connections,
                database=placement.database,
            )
        except ValueError as error:
            raise DataError(DataErrorKind.CONFIG, f"the tenant {record.name!r}: {error}") from None

    def _check_name(self, name: str) -> None:
        if name == EVERY_OTHER or _PLAIN_NAME.fullmatch(name) is None or not re.fullmatch(self._plan.pattern, name):
            raise DataError(
                DataErrorKind.TENANT, f"{name!r} cannot be a tenant's name: see tenancy.pattern", http_status=400
            )

    def _kept_dump(self, entry: StepEntry | None, record: Record, *, wanted: bool) -> Path | None:
        """The file of a dump: the one that is whole, or else the one to be written."""
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


def _filled(text: object, name: str) -> str | None:
    if not isinstance(text, str):
        return None
    filled = text.replace(PLACEHOLDER, name)
    if len(filled.encode("utf-8", "surrogatepass")) > 63:
        raise DataError(DataErrorKind.TENANT, f"{filled!r} is too long for a name in the database", http_status=400)
    return filled


def _set_up(place: Place, step: str, tenant: Tenant) -> Callable[[Notes], Awaitable[None]]:
    return lambda _: place.set_up(step, tenant)
