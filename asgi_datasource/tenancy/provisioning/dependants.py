"""Objects outside a tenant's schema that DROP ... CASCADE would drop: views, columns, foreign keys.

Follows `pg_depend` as the server does for CASCADE (PostgreSQL source, `findDependentObjects` in dependency.c): from an
object to those that depend on it, and from a part to the whole that it belongs to, such as from the rule of a view to
the view, or from a type to the extension that has brought it.
"""

from __future__ import annotations

from typing import Final, LiteralString

from ...drivers.control import ControlConnection

_OUTSIDE: Final[LiteralString] = """
with recursive place as (
    select oid, nspname from pg_namespace where nspname = %s
), doomed (classid, objid, objsubid) as (
    select 'pg_namespace'::regclass::oid, oid, 0 from place
    union
    select next.* from doomed, lateral (
        select d.classid, d.objid, d.objsubid from pg_depend d
        where d.refclassid = doomed.classid and d.refobjid = doomed.objid
        and (doomed.objsubid = 0 or d.refobjsubid = doomed.objsubid)
        union all
        select d.refclassid, d.refobjid, d.refobjsubid from pg_depend d
        where d.classid = doomed.classid and d.objid = doomed.objid and d.objsubid = doomed.objsubid
        and d.deptype in ('i', 'e')
    ) next
), relations as (
    select c.oid from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'f')
)
select pg_describe_object(o.classid, o.objid, o.objsubid)
from doomed o cross join lateral pg_identify_object(o.classid, o.objid, o.objsubid) found
where found.schema is distinct from (select quote_ident(nspname) from place)
and (o.classid, o.objid) <> ('pg_namespace'::regclass, (select oid from place))
and not (o.classid = 'pg_extension'::regclass
         and o.objid in (select e.oid from pg_extension e join place on place.oid = e.extnamespace))
-- Parts of an object are not listed beside it; a partition in another schema is.
and (
    (o.classid = 'pg_class'::regclass and o.objsubid = 0 and o.objid in (select oid from relations))
    or not exists (
        select from pg_depend d join doomed whole on whole.classid = d.refclassid and whole.objid = d.refobjid
        and (whole.objsubid = 0 or whole.objsubid = d.refobjsubid)
        where d.classid = o.classid and d.objid = o.objid and d.objsubid = o.objsubid and d.deptype <> 'n'
    )
)
and not (o.objsubid <> 0 and (o.classid, o.objid, 0) in (select * from doomed))
-- A cast goes with one of its types, wherever the other one is.
and not (o.classid = 'pg_cast'::regclass and exists (
    select from pg_cast c join pg_type t on t.oid in (c.castsource, c.casttarget)
    join place on place.oid = t.typnamespace where c.oid = o.objid
))
order by 1
"""

_OWNED: Final[LiteralString] = """
with asked (role, schema) as (values (%s::text, %s::text))
select pg_describe_object(s.classid, s.objid, s.objsubid)
from asked join pg_roles r on r.rolname = asked.role
join pg_shdepend s on s.refclassid = 'pg_authid'::regclass and s.refobjid = r.oid and s.deptype = 'o'
join pg_database d on d.oid = s.dbid and d.datname = current_database()
cross join lateral pg_identify_object(s.classid, s.objid, s.objsubid) found
where found.schema is distinct from quote_ident(asked.schema)
and (s.classid, s.objid) not in (select 'pg_namespace'::regclass, oid from pg_namespace where nspname = asked.schema)
and not exists (select from pg_depend e where e.classid = s.classid and e.objid = s.objid and e.deptype in ('i', 'a'))
order by 1
"""


async def dependants(admin: ControlConnection, schema: str) -> list[str]:
    """Objects outside a schema that depend on objects in it, as the server describes them: `view public.all_docs`."""
    return [str(found) for [found] in await admin.rows(_OUTSIDE, schema)]


async def owned(admin: ControlConnection, role: str, schema: str | None) -> list[str]:
    """The objects that a role owns in this database outside of a schema."""
    return [str(found) for [found] in await admin.rows(_OWNED, role, schema)]
