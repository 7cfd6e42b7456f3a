"""Audit of tables: those that tenants' roles read, directly or through views and partitions, and their policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .audit_findings import Ask, Finding, Findings, Hole, Home, quoted
from .audit_roles import AuditLogin, places_of
from .policy_expression import is_open, settings_read

_REACHED: Final = """
with recursive
place as (
    select r.oid as role, n.oid as schema
    from rows from (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])) h(role, schema)
    join pg_catalog.pg_roles r on r.rolname operator(pg_catalog.=) h.role
    join pg_catalog.pg_namespace n on n.nspname operator(pg_catalog.=) h.schema
),
family(role, oid, root) as (
    select p.role, c.oid, c.oid
    from place p join pg_catalog.pg_class c on c.relnamespace operator(pg_catalog.=) p.schema
    where c.relkind operator(pg_catalog.=) any('{r,p,v,m,f}'::pg_catalog."char"[])
    union
    -- A partition, or a table that inherits, read by its own name: the policies are those of the table that is named.
    select f.role, i.inhrelid, f.root from family f join pg_catalog.pg_inherits i
        on i.inhparent operator(pg_catalog.=) f.oid
),
top as (
    select f.role, c.oid,
        coalesce(
            case when c.relispartition then pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid end,
            pg_catalog.min(f.root) filter (where f.root operator(pg_catalog.<>) c.oid)
        ) as root
    from family f join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) f.oid
    where pg_catalog.has_schema_privilege(f.role, c.relnamespace, 'usage')
        and (pg_catalog.has_table_privilege(f.role, c.oid, 'delete')
            or pg_catalog.has_any_column_privilege(f.role, c.oid, 'select, insert, update'))
    group by f.role, c.oid, c.relispartition
),
reach(role, top, root, oid, reader, store) as (
    select t.role, t.oid, t.root, t.oid, t.role, null::pg_catalog.oid from top t
    union
    -- A view reads as its owner unless it says security_invoker; what is stored was read as the owner.
    select r.role, r.top, r.root, t.oid,
        case when v.relkind operator(pg_catalog.=) 'v'
            and coalesce(v.reloptions::pg_catalog.text operator(pg_catalog.~) 'security_invoker=(true|on|1|yes)', false)
            then r.reader else v.relowner end,
        coalesce(r.store, case when v.relkind operator(pg_catalog.=) 'm' then v.oid end)
    from reach r
    join pg_catalog.pg_class v on v.oid operator(pg_catalog.=) r.oid
        and v.relkind operator(pg_catalog.=) any('{v,m}'::pg_catalog."char"[])
    join pg_catalog.pg_rewrite w on w.ev_class operator(pg_catalog.=) v.oid
    join pg_catalog.pg_depend d on d.classid operator(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass
        and d.objid operator(pg_catalog.=) w.oid
        and d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
        and d.refobjid operator(pg_catalog.<>) v.oid
    join pg_catalog.pg_class t on t.oid operator(pg_catalog.=) d.refobjid
        and t.relkind operator(pg_catalog.=) any('{r,p,v,m,f}'::pg_catalog."char"[])
)
select distinct role.rolname::pg_catalog.text as role, reader.rolname::pg_catalog.text as reader,
    topschema.nspname::pg_catalog.text as top_schema, top.relname::pg_catalog.text as top_name,
    top.relkind::pg_catalog.text as top_kind,
    schema.nspname::pg_catalog.text as schema, t.relname::pg_catalog.text as name, t.relkind::pg_catalog.text as kind,
    t.oid::bigint as oid, t.relrowsecurity, t.relforcerowsecurity,
    exists (select from pg_catalog.pg_policy p where p.polrelid operator(pg_catalog.=) t.oid) as has_policy,
    pg_catalog.pg_has_role(reader.oid, t.relowner, 'usage') as owns,
    pg_catalog.pg_has_role(session_user, t.relowner, 'usage') as login_owns,
    (reader.rolsuper or reader.rolbypassrls) as passes,
    rootschema.nspname::pg_catalog.text as root_schema, root.relname::pg_catalog.text as root_name,
    coalesce(root.relrowsecurity, false) as root_guarded, store.relname::pg_catalog.text as store,
    array(select p from pg_catalog.unnest('{select,insert,update,delete}'::pg_catalog.text[]) p
        where case when p operator(pg_catalog.=) 'delete' then pg_catalog.has_table_privilege(r.reader, t.oid, p)
            else pg_catalog.has_any_column_privilege(r.reader, t.oid, p) end) as may,
    coalesce(case when top.oid operator(pg_catalog.<>) t.oid then pg_catalog.pg_get_viewdef(top.oid)
        operator(pg_catalog.~*) 'current_setting|current_user|session_user' end, false) as filters
from reach r
join pg_catalog.pg_roles role on role.oid operator(pg_catalog.=) r.role
join pg_catalog.pg_roles reader on reader.oid operator(pg_catalog.=) r.reader
join pg_catalog.pg_class top on top.oid operator(pg_catalog.=) r.top
join pg_catalog.pg_namespace topschema on topschema.oid operator(pg_catalog.=) top.relnamespace
join pg_catalog.pg_class t on t.oid operator(pg_catalog.=) r.oid
join pg_catalog.pg_namespace schema on schema.oid operator(pg_catalog.=) t.relnamespace
left join pg_catalog.pg_class root on root.oid operator(pg_catalog.=) r.root
left join pg_catalog.pg_namespace rootschema on rootschema.oid operator(pg_catalog.=) root.relnamespace
left join pg_catalog.pg_class store on store.oid operator(pg_catalog.=) r.store
where t.relkind operator(pg_catalog.=) any('{r,p,f}'::pg_catalog."char"[])
    and schema.nspname operator(pg_catalog.<>) all('{information_schema,asgi_datasource}'::pg_catalog.text[])
    and topschema.nspname operator(pg_catalog.<>) all('{information_schema,asgi_datasource}'::pg_catalog.text[])
    and not schema.nspname operator(pg_catalog.~) '^pg_'
    and not exists (select from pg_catalog.pg_depend d
        where d.classid operator(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
            and d.objid operator(pg_catalog.=) any(array[r.top, r.oid]) and d.deptype operator(pg_catalog.=) 'e')
order by 3, 4, 6, 7, 1, 2"""


@dataclass(frozen=True, slots=True)
class _Reach:
    """A table that a role reaches, directly or through a view; the columns of `_REACHED`."""

    role: str
    reader: str
    top_schema: str
    top_name: str
    top_kind: str
    schema: str
    name: str
    kind: str
    oid: int
    is_guarded: bool
    is_forced: bool
    has_policy: bool
    owns: bool
    login_owns: bool
    passes: bool
    root_schema: str | None
    root_name: str | None
    root_is_guarded: bool
    store: str | None
    may: Sequence[str]
    filters: bool

    @property
    def top(self) -> str:
        """The relation that the statement names."""
        return f"{self.top_schema}.{self.top_name}"

    @property
    def table(self) -> str:
        """The table that is read in the end."""
        return f"{self.schema}.{self.name}"

    @property
    def written(self) -> str:
        """The table as a quoted SQL identifier."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"

    @property
    def root(self) -> str | None:
        """The table that this one is a partition of, or inherits from."""
        return None if self.root_name is None else f"{self.root_schema}.{self.root_name}"

    @property
    def is_direct(self) -> bool:
        """Whether the statement names the table itself."""
        return self.top == self.table

    @property
    def is_held(self) -> bool:
        """Whether its policies apply to the role that reads it."""
        return self.is_guarded and not self.passes and (self.is_forced or not self.owns)


async def find_unguarded(
    ask: Ask, guarded: Sequence[Home], audit_login: AuditLogin, shared_schemas: Sequence[str]
) -> list[Finding]:
    places = places_of(guarded, audit_login, shared_schemas)
    if not places:
        return []
    rows = await ask(_REACHED, [role for role, _ in places], [schema for _, schema in places])
    reached = [_Reach(*row) for row in rows]
    found = Findings()
    named = {(each.role, each.table) for each in reached if each.is_direct}
    partitions: dict[str, list[_Reach]] = {}
    for each in reached:
        if not each.is_direct:
            _judge_view(each, found, is_named=(each.role, each.table) in named)
        elif each.root is not None and not each.is_guarded:
            # If the parent is unguarded itself, report the parent.
            if each.root_is_guarded or (each.role, each.root) not in named:
                partitions.setdefault(each.root, []).append(each)
        else:
            _judge_table(each, found, audit_login)
    for root, parts in partitions.items():
        _judge_partitions(root, parts, found)
    settings: dict[str, set[str]] = {}
    for home in guarded:
        settings.setdefault(audit_login.role_of(home), set()).update(name.lower() for name in home.settings)
    await _judge_policies(ask, [each for each in reached if each.is_held and each.has_policy], settings, found)
    return found.all()


def _judge_table(each: _Reach, found: Findings, audit_login: AuditLogin) -> None:
    name, written = each.table, each.written
    if each.kind == "f":
        message = f"the table {name} has no row security, being a foreign one: each tenant sees all rows of it"
        fix = f"Take it from tenants: revoke all on {written} from {quoted(each.role)}."
        found.add(Hole.TABLE_WITHOUT_POLICY, name, message, fix)
    elif not each.is_guarded:
        message = f"the table {name} has no row security: each tenant sees all rows of it"
        fix = f"Write a policy, and alter table {written} enable row level security, force row level security."
        found.add(Hole.TABLE_WITHOUT_POLICY, name, message, fix)
    elif not each.is_forced and (each.owns or (each.login_owns and audit_login.login not in audit_login.supers)):
        owner = "login" if each.login_owns else f"role {each.role}"
        message = f"the {owner} owns the table {name}, and its policies do not hold for the owner"
        fix = f"Force them: alter table {written} force row level security."
        found.add(Hole.POLICY_NOT_FORCED, name, message, fix)
    elif not each.has_policy:
        message = f"the table {name} has row security and no policy: every tenant sees no rows"
        fix = f"Write one: create policy ... on {written} using (...)."
        found.add(Hole.TABLE_WITHOUT_POLICY, name, message, fix)


def _judge_partitions(root: str, parts: Sequence[_Reach], found: Findings) -> None:
    names = list(dict.fromkeys(each.table for each in parts))
    what = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    message = (
        f"the table {what}, a part of {root}, has no row security of its own: each tenant sees all rows by its name"
    )
    revoke = f"revoke all on {parts[0].written} from {quoted(parts[0].role)}"
    fix = f"Grant {root} alone: {revoke}; or enable row security there."
    found.add(Hole.TABLE_WITHOUT_POLICY, names[0] if len(names) == 1 else root, message, fix)


def _judge_view(each: _Reach, found: Findings, *, is_named: bool) -> None:
    view = each.top
    written = f"{quoted(each.top_schema)}.{quoted(each.top_name)}"
    if "select" not in each.may and each.store is None:
        # The statement would fail.
        return
    if each.store is not None and each.is_guarded:
        if each.top_kind == "m":
            message = f"the materialized view {view} holds rows of every tenant, and policies do not hold for it"
        else:
            message = f"the view {view} reads the materialized view {each.store}, which holds rows of every tenant"
        found.add(Hole.VIEW_OF_OWNER, view, message, "Keep it where tenants cannot read it.")
    elif each.is_guarded and not each.is_held:
        message = f"the view {view} reads with the rights of its owner, for whom the policies do not hold"
        fix = f"On PostgreSQL 15 or newer: alter view {written} set (security_invoker = on)."
        found.add(Hole.VIEW_OF_OWNER, view, message, fix)
    elif not each.is_guarded and each.store is None and not is_named and not each.filters:
        message = f"the view {view} shows the table {each.table}, which has no row security: each tenant sees all rows"
        fix = "Let it choose by current_setting(...), or keep it where tenants cannot read it."
        found.add(Hole.VIEW_OF_OWNER, view, message, fix)


_POLICIES: Final = """
select h.role, p.polrelid::bigint, p.polname::pg_catalog.text, p.polpermissive, p.polcmd::pg_catalog.text,
    pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)
from rows from (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::bigint[])) h(role, oid)
join pg_catalog.pg_roles r on r.rolname operator(pg_catalog.=) h.role
join pg_catalog.pg_policy p on p.polrelid operator(pg_catalog.=) h.oid::pg_catalog.oid
where exists (
    select from pg_catalog.unnest(p.polroles) granted
    where granted operator(pg_catalog.=) 0::pg_catalog.oid or pg_catalog.pg_has_role(r.oid, granted, 'usage'))
order by 1, 2, 3"""

_VERBS: Final = {"select": "see", "insert": "write", "update": "change", "delete": "delete"}
_COMMANDS: Final = {"select": "r", "insert": "a", "update": "w", "delete": "d"}


@dataclass(frozen=True, slots=True)
class _Policy:
    name: str
    is_permissive: bool
    command: str
    using: str | None
    check: str | None

    def expression(self, command: str) -> str | None:
        """The expression that decides about a row for a command; None if the policy has none."""
        return self.check if command == "insert" and self.check is not None else self.using

    def concerns(self, command: str) -> bool:
        return self.command in ("*", _COMMANDS[command])


async def _judge_policies(
    ask: Ask, held: Sequence[_Reach], settings: Mapping[str, Iterable[str]], found: Findings
) -> None:
    """Policies that pass every row, always or while no tenant is set; permissive policies are joined by OR."""
    asked = list(dict.fromkeys((each.reader, each.oid) for each in held))
    if not asked:
        return
    policies: dict[tuple[str, int], list[_Policy]] = {}
    for role, oid, *said in await ask(_POLICIES, [role for role, _ in asked], [oid for _, oid in asked]):
        policies.setdefault((role, oid), []).append(_Policy(*said))
    for each in held:
        known = policies.get((each.reader, each.oid), [])
        for command in each.may:
            if _judge_command(each, command, [policy for policy in known if policy.concerns(command)], found):
                break
        else:
            _judge_settings(each, known, frozenset(settings.get(each.role, ())), found)


def _judge_command(each: _Reach, command: str, policies: Sequence[_Policy], found: Findings) -> bool:
    """Whether the policies of a table allow each tenant a command on all rows."""
    for tenant, when in (("somebody", ""), ("", " where no tenant is set"), (None, " where no tenant is set")):
        open_ones = [policy for policy in policies if is_open(policy.expression(command), tenant=tenant)]
        permitting = [policy for policy in open_ones if policy.is_permissive]
        is_restricted = any(not policy.is_permissive and policy not in open_ones for policy in policies)
        if permitting and not is_restricted:
            policy, table = permitting[0], each.table
            beside = len([policy for policy in policies if policy.is_permissive]) > 1
            others = ", whatever the others say" if beside else ""
            what = f"lets each tenant {_VERBS[command]} all rows{when}{others}"
            message = f"the policy {policy.name} of the table {table} {what}"
            fix = f"Drop it (drop policy {quoted(policy.name)} on {each.written}), or make it restrictive."
            if when:
                fix = (
                    "Compare the tenant's column with nullif(current_setting(..., true), '') and let nothing else pass."
                )
            found.add(Hole.OPEN_POLICY, table, message, fix)
            return True
    return False


def _judge_settings(each: _Reach, policies: Sequence[_Policy], known: frozenset[str], found: Findings) -> None:
    """Whether the settings that the policies read are set by the configuration."""
    permitting = [policy for policy in policies if policy.is_permissive and policy.using is not None]
    read = [(policy, settings_read(policy.using or "")) for policy in permitting]
    names: frozenset[str] = frozenset(name for _, every in read for name in every)
    if known and names and not names & known and all(names for _, names in read):
        policy, first = read[0][0], sorted(names)[0]
        message = (
            f"the policy {policy.name} of the table {each.table} reads {first}, which no tenant sets: they set"
            f" {', '.join(sorted(known))}"
        )
        found.add(Hole.OPEN_POLICY, each.table, message, "Use one name in the policy and in row_security.")
