"""Blocks writes to a tenant's tables while they are copied, and counts the rows of both copies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, LiteralString

from ...errors import DataError, DataErrorKind
from .tenant_site import LOCK_LIMIT, Place

FENCE: Final = "asgi_datasource_fence"
"""The trigger on each table of a tenant that is moving, or has moved away."""

Grants = Sequence[Sequence[object]]
"""Rights on sequences: schema, name, role (empty: PUBLIC), privilege, whether the role may pass it on."""

_GRANTS: Final[LiteralString] = """
select n.nspname::text, c.relname::text, coalesce(r.rolname::text, ''), g.privilege_type, g.is_grantable
from pg_class c join pg_namespace n on n.oid = c.relnamespace
cross join lateral aclexplode(coalesce(c.relacl, acldefault('s', c.relowner))) g
left join pg_roles r on r.oid = g.grantee
where c.relkind = 'S' and g.privilege_type in ('USAGE', 'UPDATE') and r.rolname is distinct from current_user
and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'asgi_datasource') and (%s or n.nspname = %s)
order by 1, 2, 3, 4
"""

_SEQUENCES: Final[LiteralString] = """
select n.nspname::text, c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'S'
"""

_FENCED: Final[LiteralString] = """
select n.nspname::text, c.relname::text
from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace
where t.tgname = %s and (%s or n.nspname = %s)
"""

_GRANT: Final[Mapping[tuple[str, bool, bool], LiteralString]] = {
    ("USAGE", True, False): "grant usage on sequence {} to {}",
    ("USAGE", True, True): "grant usage on sequence {} to {} with grant option",
    ("USAGE", False, False): "grant usage on sequence {} to public",
    ("UPDATE", True, False): "grant update on sequence {} to {}",
    ("UPDATE", True, True): "grant update on sequence {} to {} with grant option",
    ("UPDATE", False, False): "grant update on sequence {} to public",
}
"""By privilege, whether it is a role's and not PUBLIC's, and whether the role may pass it on."""


async def raise_fence(place: Place, keep: Callable[[Grants], Awaitable[None]]) -> None:
    """Block all writes to a place from now on, and wait for those in progress; reads continue.

    A trigger on each table refuses every statement that writes, also the owner's and those of functions that run with
    their owner's rights. No right on a table is revoked, so none can get lost. Sequences have no triggers: there, the
    rights to draw numbers are revoked.

    Args:
        place: The place of the tenant.
        keep: Records the rights on sequences before they are revoked, for `lift_fence`.
    """
    async with place.inside() as admin:
        await place.ensure_store(admin)
        grants = await admin.rows(_GRANTS, place.owns_database, place.schema)
        await keep(grants)
        async with admin.transaction():
            await admin.rows("select set_config('lock_timeout', %s, true)", LOCK_LIMIT)
            for table in await place.tables(admin, kinds="rpf"):
                # Its lock waits for the transactions that have written to the table.
                await admin.command(
                    "create or replace trigger asgi_datasource_fence before insert or update or delete or truncate"
                    " on {} for each statement execute function asgi_datasource.refuse_write()",
                    table,
                )
            for schema, name, role in dict.fromkeys((row[0], row[1], row[2]) for row in grants):
                if role:
                    await admin.command("revoke usage, update on sequence {} from {} cascade", (schema, name), role)
                else:
                    await admin.command("revoke usage, update on sequence {} from public cascade", (schema, name))


async def lift_fence(place: Place, grants: Grants) -> None:
    """Allow writes again.

    Args:
        place: The place of the tenant.
        grants: The rights on sequences that `raise_fence` has recorded.
    """
    async with place.inside() as admin, admin.transaction():
        await admin.rows("select set_config('lock_timeout', %s, true)", LOCK_LIMIT)
        for schema, name in await admin.rows(_FENCED, FENCE, place.owns_database, place.schema):
            await admin.command("drop trigger asgi_datasource_fence on {}", (schema, name))
        sequences = {(str(schema), str(name)) for schema, name in await admin.rows(_SEQUENCES)}
        roles = {str(role) for [role] in await admin.rows("select rolname::text from pg_roles")}
        for schema, name, role, privilege, is_grantable in grants:
            sequence, to = (str(schema), str(name)), str(role)
            if sequence in sequences and (not to or to in roles):
                command = _GRANT[str(privilege), bool(to), bool(is_grantable)]
                await admin.command(command, sequence, *([to] if to else []))


async def count_rows(place: Place) -> dict[str, int]:
    """The number of rows of each table of a place.

    Raises:
        DataError: CONFLICT: tables are being replaced meanwhile.
    """
    async with place.inside() as admin, admin.transaction():
        # An error instead of policies, whose functions would run as this role, where it does not bypass them.
        await admin.rows("select set_config('row_security', 'off', true)")
        tables = await place.tables(admin)
        for table in tables:
            await admin.command("lock table only {} in access share mode", table)
        if tables != await place.tables(admin):
            # A view in a table's place would run functions of the role that has put it there.
            raise DataError(DataErrorKind.CONFLICT, f"{place.where}: the tables of {place.tenant!r} are being changed")
        counts: dict[str, int] = {}
        for table in tables:
            [[count]] = await admin.command("select count(*) from only {}", table)
            counts[".".join(table)] = int(count)
        return counts
