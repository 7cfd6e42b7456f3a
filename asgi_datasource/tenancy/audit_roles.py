"""Audit of roles: which bypass policies, and which schemas they may use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .audit_findings import MOST_ROLES, MOST_SCHEMAS, Ask, Finding, Hole, Home, quoted, sample

# Every name in these statements is qualified: the search_path of the login, or of a tenant's role, may contain
# functions and operators of other roles.

_LOGIN_QUERY: Final = """
select session_user::pg_catalog.text, current_user::pg_catalog.text,
    pg_catalog.current_schemas(false)::pg_catalog.text[],
    pg_catalog.current_setting('server_version_num')::int,
    array(select r.rolname::pg_catalog.text from pg_catalog.pg_roles r where r.rolsuper
        and ((r.rolname operator(pg_catalog.=) any(%s::pg_catalog.text[])
                and pg_catalog.pg_has_role(session_user, r.oid, 'member'))
            or r.rolname operator(pg_catalog.=) session_user or r.rolname operator(pg_catalog.=) current_user)
        order by 1),
    array(select r.rolname::pg_catalog.text from pg_catalog.pg_roles r where r.rolbypassrls and not r.rolsuper
        and ((r.rolname operator(pg_catalog.=) any(%s::pg_catalog.text[])
                and pg_catalog.pg_has_role(session_user, r.oid, 'member'))
            or r.rolname operator(pg_catalog.=) session_user or r.rolname operator(pg_catalog.=) current_user)
        order by 1)"""


@dataclass(frozen=True, slots=True)
class AuditLogin:
    """The login of the audit, and its facts about roles.

    Attributes:
        login: `session_user`.
        user: `current_user`.
        path: Its own search_path.
        version: The server's version number.
        supers, bypassing: Roles, among the login and the tenants' roles, that bypass policies.
    """

    login: str
    user: str
    path: list[str]
    version: int
    supers: list[str]
    bypassing: list[str]

    def role_of(self, home: Home) -> str:
        """The role of a tenant's transactions; empty if it is not known yet."""
        return self.user if home.role is None else home.role

    @property
    def membership(self) -> str:
        """The privilege that allows SET ROLE; before PostgreSQL 16 membership did."""
        return "SET" if self.version >= 160000 else "MEMBER"


async def query_login(ask: Ask, roles: list[str]) -> AuditLogin:
    [[login, user, path, version, supers, bypassing]] = await ask(_LOGIN_QUERY, roles, roles)
    return AuditLogin(str(login), str(user), list(path), int(version), list(supers), list(bypassing))


def find_bypassing(audit_login: AuditLogin, guarded: Sequence[Home]) -> list[Finding]:
    found: list[Finding] = []
    runs_as = {audit_login.role_of(home) for home in guarded}
    for name in dict.fromkeys((*audit_login.supers, *audit_login.bypassing)):
        is_super = name in audit_login.supers
        why = "is a superuser" if is_super else "has BYPASSRLS"
        fix = "Log in as an ordinary role." if is_super else f"Take it away: alter role {quoted(name)} nobypassrls."
        message = f"the role {name} {why}: no policy holds for it, and each tenant sees all rows"
        if name not in runs_as and name in (audit_login.login, audit_login.user):
            message = f"the role {name} {why}, and logs in: a statement of any tenant's may become it again (set role)"
        found.append(Finding(Hole.ROLE_BYPASSES, name, message, fix))
    return found


def places_of(homes: Iterable[Home], audit_login: AuditLogin, shared_schemas: Sequence[str]) -> list[tuple[str, str]]:
    """Roles, each with the schemas of its search_path."""
    found: dict[tuple[str, str], None] = {}
    for home in homes:
        role = audit_login.role_of(home)
        path = [*([home.schema] if home.schema else []), *shared_schemas] or (
            [] if home.schema == "" else audit_login.path
        )
        for schema in path if role else ():
            found[role, schema] = None
    roles = set(sample(sorted({role for role, _ in found}), MOST_ROLES))
    return sample(sorted(place for place in found if place[0] in roles), MOST_SCHEMAS)


_PLACES: Final = """
select h.schema, h.role, n.oid is null, r.oid is null,
    coalesce(not pg_catalog.pg_has_role(session_user, r.oid, %s), false)
from rows from (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])) h(schema, role)
left join pg_catalog.pg_namespace n on n.nspname operator(pg_catalog.=) h.schema
left join pg_catalog.pg_roles r on r.rolname operator(pg_catalog.=) h.role
where (h.schema is not null and n.oid is null)
    or (h.role is not null and (r.oid is null or not pg_catalog.pg_has_role(session_user, r.oid, %s)))
    or (n.oid is not null and (h.role is null or r.oid is not null)
        and not pg_catalog.has_schema_privilege(coalesce(r.rolname, current_user), n.oid, 'usage'))"""


async def find_missing(ask: Ask, homes: Sequence[Home], audit_login: AuditLogin) -> list[Finding]:
    places: dict[tuple[str | None, str | None], str] = {}
    for home in homes:
        if home.schema or home.role:
            places.setdefault((home.schema or None, home.role or None), home.name)
    if not places:
        return []
    schemas, roles = [place[0] for place in places], [place[1] for place in places]
    found: dict[tuple[Hole, str], Finding] = {}
    for schema, role, no_schema, no_role, not_member in await ask(
        _PLACES, audit_login.membership, schemas, roles, audit_login.membership
    ):
        tenant = places[schema, role]
        if schema is not None and no_schema:
            message = f"the schema {schema} is not there: its tenant is answered with 404"
            fix = f"Create it: create schema {quoted(schema)}."
            found.setdefault((Hole.MISSING_SCHEMA, schema), Finding(Hole.MISSING_SCHEMA, schema, message, fix, tenant))
        if role is not None and (no_role or not_member):
            message = f"the role {role} is not there" if no_role else f"the login may not become the role {role}"
            grant = f"Grant it: grant {quoted(role)} to the login."
            fix = "Create it, and grant it to the login." if no_role else grant
            found.setdefault((Hole.MISSING_ROLE, role), Finding(Hole.MISSING_ROLE, role, message, fix, tenant))
        elif schema is not None and not no_schema:
            user = role or audit_login.user
            message = f"the role {user} may not use the schema {schema}: its tenant is answered with 404"
            fix = f"Grant it: grant usage on schema {quoted(schema)} to {quoted(user)}."
            found.setdefault((Hole.MISSING_SCHEMA, schema), Finding(Hole.MISSING_SCHEMA, schema, message, fix, tenant))
    return list(found.values())


_USED: Final = """
select r.rolname::pg_catalog.text, pg_catalog.array_agg(n.nspname::pg_catalog.text order by n.nspname)
from pg_catalog.pg_roles r, pg_catalog.pg_namespace n
where r.rolname operator(pg_catalog.=) any(%s::pg_catalog.text[])
    and n.nspname operator(pg_catalog.=) any(%s::pg_catalog.text[])
    and pg_catalog.has_schema_privilege(r.oid, n.oid, 'usage')
group by 1"""


async def find_shared_roles(ask: Ask, apart: Sequence[Home], audit_login: AuditLogin) -> list[Finding]:
    """Roles that may use the schemas of several tenants that only their schemas isolate: qualified names reach them."""
    own: dict[str, set[str]] = {}
    for home in apart:
        if home.role != "":
            own.setdefault(audit_login.role_of(home), set()).add(str(home.schema))
    schemas = sample(sorted({str(home.schema) for home in apart}), MOST_SCHEMAS)
    found: list[Finding] = []
    for role, usable in await ask(_USED, sample(sorted(own), MOST_ROLES), schemas) if len(schemas) > 1 else ():
        shared = sorted(own[role].intersection(usable))
        # The login may have more rights than tenants need; a tenants' role exists only for them.
        others = [] if role == audit_login.user else sorted(set(usable) - own[role])
        if len(shared) < 2 and not others:
            continue
        names = [*shared, *others]
        told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        message = (
            f"the role {role} may use the schemas of {len(names)} tenants ({told}): a name with its schema reaches each"
        )
        fix = "Give each tenant a role that may use its own schema alone, or name this one in audit.allow_roles."
        found.append(Finding(Hole.SHARED_ROLE, role, message, fix))
    return found


_SHADOWED: Final = """
select s.nspname::pg_catalog.text, c.relname::pg_catalog.text, pg_catalog.min(t.nspname)::pg_catalog.text,
    pg_catalog.count(*)
from pg_catalog.pg_class c
join pg_catalog.pg_namespace s on s.oid operator(pg_catalog.=) c.relnamespace
    and s.nspname operator(pg_catalog.=) any(%s::pg_catalog.text[])
join pg_catalog.pg_class d on d.relname operator(pg_catalog.=) c.relname
    and d.relkind operator(pg_catalog.=) any('{r,p,v,m}'::pg_catalog."char"[])
join pg_catalog.pg_namespace t on t.oid operator(pg_catalog.=) d.relnamespace
    and t.nspname operator(pg_catalog.=) any(%s::pg_catalog.text[])
where c.relkind operator(pg_catalog.=) any('{r,p,v,m}'::pg_catalog."char"[])
    and exists (select from pg_catalog.pg_roles r where r.rolname operator(pg_catalog.=) any(%s::pg_catalog.text[])
        and pg_catalog.has_table_privilege(r.oid, c.oid, 'select, insert, update, delete'))
group by 1, 2 order by 1, 2"""


async def find_shadowed(ask: Ask, apart: Sequence[Home], audit_login: AuditLogin, shared: list[str]) -> list[Finding]:
    schemas = sorted({str(home.schema) for home in apart})
    roles = sample(sorted({role for home in apart if (role := audit_login.role_of(home))}), MOST_ROLES)
    found: list[Finding] = []
    for schema, table, tenant_schema, count in await ask(_SHADOWED, shared, schemas, roles):
        name = f"{schema}.{table}"
        message = (
            f"the table {name} has the name of one in {count} tenants' schemas ({tenant_schema}): where a tenant's is"
            " missing, this one is used"
        )
        fix = f"Drop it, rename it, or take {schema} out of search_path."
        found.append(Finding(Hole.SEARCH_PATH, name, message, fix))
    return found
