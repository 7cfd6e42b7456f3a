"""The places of tenants: isolated from all others, and only in objects that were created for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast
from uuid import UUID

from ...config import EVERY_OTHER, MAX_NAME_BYTES, PLACEHOLDER
from ...config.hostnames import lies_within, normalize_host
from ...config.name_pattern import compile_name_pattern
from ...errors import DataError, DataErrorKind
from .. import Tenant
from .ledger import Ledger, Placement, Record
from .plan import ProvisioningPlan, Site
from .tenant_site import Place
from .trust import check_reserved

_PLAIN_NAME: Final = re.compile(r"[^\x00-\x1f\x7f*{}]{1,255}")


class Placing:
    """Finds and checks the places of tenants.

    Args:
        plan: The configuration.
        records: The table of tenants.
    """

    def __init__(self, plan: ProvisioningPlan, records: Ledger) -> None:
        self._plan = plan
        self._records = records

    def wanted(self, name: str, placed: Mapping[str, Any]) -> Placement:
        """The place of a new tenant.

        Args:
            name: Its name.
            placed: The caller's values; the others are those of `tenants_from.defaults`.

        Raises:
            DataError: CONFIG: there is no such datasource. TENANT: a name is too long, or a domain is not one that a
                tenant may have.
        """
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
            tuple(map(self._domain, cast("Sequence[str]", known.get("domains", ())))),
        )

    def _domain(self, given: str) -> str:
        host = normalize_host(given)
        if host is None:
            raise DataError(DataErrorKind.TENANT, f"the domain {given!r} is not a host name")
        if lies_within(host, self._plan.own_hosts):
            raise DataError(
                DataErrorKind.TENANT,
                f"the domain {given!r} is one of the application's own (subdomain_of, trusted_hosts), or below one",
            )
        return host

    async def check_apart(self, name: str, placement: Placement) -> None:
        """Refuse a name that is taken, and a place that would not isolate the tenant from another one.

        Raises:
            DataError: CONFLICT: the name or the place is taken.
        """
        names = [name, *placement.aliases]
        other = await self._records.claimed_by(name, names, placement.domains)
        is_listed = any(map(self._plan.lists, names)) or any(map(self._plan.serves, placement.domains))
        if other is not None or is_listed:
            whose = "the document" if other is None else f"the tenant {other!r}"
            raise DataError(DataErrorKind.CONFLICT, f"{whose} has the name, or an alias or domain, of {name!r} already")
        twins = self._plan.twins(placement.datasource)
        other = await self._records.same_place(name, placement, twins)
        if other is None:
            alike = replace(placement, max_connections=None, aliases=(), domains=())
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

    async def check_unused(self, placement: Placement, name: str, *, adopt: bool, tell: Callable[[str], None]) -> None:
        """Refuse a place that has a reserved name, or that exists already.

        Raises:
            DataError: TENANT: a name is reserved. CONFLICT: an object exists, and `adopt` is not set.
        """
        site = self._plan.sites[placement.datasource]
        place = self._at(site, placement, name, UUID(int=0), own=frozenset(), adopt=adopt)
        names = {"schema": placement.schema, "role": placement.role, "database": place.database}
        taken: dict[str, Collection[str]] = {
            "schema": site.shared_schemas,
            "role": (place.app_role,),
            "database": self._plan.databases,
        }
        for part, given in names.items():
            # The document may choose `public`, for shared tables; a tenant's name may not.
            if given is not None and not (given == "public" and self._plan.documents(part, given)):
                check_reserved(part, given, taken[part])
        for part, given in await place.found():
            if part == "role":
                await place.check_role()
            if self._plan.documents(part, given):
                continue
            if not adopt:
                raise place.refusal(part, given)
            tell(f"create {name}: takes over the {part} {given!r} as it is; it stays when the tenant is dropped")

    async def of(self, record: Record, *, adopt: bool = False) -> Place:
        """The place of a tenant.

        Args:
            record: The tenant.
            adopt: Accept a place that was not created for it.
        """
        own = record.made - await self._shared(record.name, record.placement)
        return self._at(self._site(record.placement), record.placement, record.name, record.id, own=own, adopt=adopt)

    async def target(self, record: Record, datasource: str) -> Place:
        """The place that a tenant would have on another datasource.

        Raises:
            DataError: CONFIG: there is no such datasource. CONFLICT: another tenant has that place as well.
        """
        placement = replace(record.placement, datasource=datasource)
        site = self._site(placement)
        shared = await self._shared(record.name, placement)
        if record.made & {"schema", "database"} & shared:
            raise self.taken(record, datasource)
        # Roles are per server: on another server, a role of the same name is another role.
        has_role = self._plan.same_server(record.placement.datasource, datasource)
        own = record.made - shared - (frozenset() if has_role else {"role"})
        may_be_there = {"role"} if has_role else set[str]()
        return self._at(site, placement, record.name, record.id, own=own, may_be_there=may_be_there)

    def taken(self, record: Record, datasource: str) -> DataError:
        """The error that a tenant's place on another datasource is not free."""
        return DataError(
            DataErrorKind.CONFLICT,
            f"where {record.name!r} would live on {datasource!r}, tables of another owner exist: move those first",
        )

    async def left_behind(self, record: Record, target: Place) -> bool:
        """Whether a move has left behind what is at the target."""
        left = await self._records.left_behind(self._there(record, target), self._plan.twins(target.site.name))
        return record.made & {"schema", "database"} <= left

    async def take_back(self, record: Record, target: Place) -> None:
        """Forget that something was left behind at the target."""
        await self._records.take_back(self._there(record, target), self._plan.twins(target.site.name))

    @staticmethod
    def _there(record: Record, target: Place) -> Record:
        return replace(record, placement=target.placement)

    def tenant(self, record: Record) -> Tenant:
        """The compiled tenant, as the application uses it.

        Raises:
            DataError: CONFIG: its row does not match this configuration.
        """
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

    def check_name(self, name: str) -> None:
        """Refuse a name that no tenant can have.

        Raises:
            DataError: TENANT (400): it does not match the pattern, or holds control characters or a placeholder.
        """
        # The engine of the requests, so that a name that is served can be created, and the other way round.
        matches = compile_name_pattern(self._plan.pattern)
        if name == EVERY_OTHER or _PLAIN_NAME.fullmatch(name) is None or not matches(name):
            raise DataError(
                DataErrorKind.TENANT, f"{name!r} cannot be a tenant's name: see tenancy.pattern", http_status=400
            )

    # -- internals

    def _site(self, placement: Placement) -> Site:
        site = self._plan.sites.get(placement.datasource)
        if site is None:
            raise DataError(DataErrorKind.CONFIG, f"the document has no datasource {placement.datasource!r}")
        return site

    def _at(
        self,
        site: Site,
        placement: Placement,
        name: str,
        tenant_id: UUID,
        *,
        own: frozenset[str],
        may_be_there: Collection[str] = (),
        adopt: bool = False,
    ) -> Place:
        names = {"schema": placement.schema, "role": placement.role, "database": placement.database}
        known = {part for part, given in names.items() if adopt or self._plan.documents(part, given)}
        return Place(
            self._plan,
            site,
            placement,
            tenant=name,
            tenant_id=tenant_id,
            own=own,
            may_be_there=frozenset(known | set(may_be_there)),
        )

    def _listed(self, datasources: Sequence[str]) -> Iterator[tuple[str, Placement]]:
        """The tenants of the document on these datasources."""
        return ((name, there) for name, there in self._plan.listed_places() if there.datasource in datasources)

    async def _shared(self, name: str, placement: Placement) -> frozenset[str]:
        """The parts, of `schema`, `role` and `database`, that other tenants share, including those of the document."""
        twins = self._plan.twins(placement.datasource)
        shared = set(await self._records.shared(name, placement, twins))
        for _, there in self._listed(twins):
            if there.database == placement.database:
                shared |= {"database"} if there.database is not None else set()
                shared |= {"schema"} if there.schema == placement.schema is not None else set()
        if any(there.role == placement.role is not None for _, there in self._plan.listed_places()):
            shared.add("role")
        return frozenset(shared)


def _filled(text: object, name: str) -> str | None:
    if not isinstance(text, str):
        return None
    filled = text.replace(PLACEHOLDER, name)
    if len(filled.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise DataError(DataErrorKind.TENANT, f"{filled!r} is too long for a name in the database", http_status=400)
    return filled
