"""`asgi-datasource tenants ...`: creates, lists, changes, moves and drops tenants; prints the SQL of policies."""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from ...migrate import NewTenants, has_migrations
from ...outbox.new_tenants import TenantOutbox
from ...tenancy import PolicyRules, policy_sql
from ...tenancy.provisioning import Operation, Provisioner, Record, UnderWay, compile_provisioning
from ..command import CannotRun, Clean, ExitCode, Printed, offer_formats
from ..console import Console, Style
from ..sources import (
    environment,
    examine_file,
    find_application,
    load_or_refuse,
    named_file,
    offer_environment,
    offer_file,
    offer_overlays,
)


@dataclass(frozen=True, slots=True)
class Done(Clean):
    """A completed operation on a tenant.

    Attributes:
        action: The operation.
        tenant: The tenant's name.
        detail: The outcome in words.
    """

    action: str
    tenant: str
    detail: str

    def render(self, form: str, style: Style) -> str:
        """The outcome as one line or JSON."""
        if form == "json":
            document = {"version": 1, "action": self.action, "tenant": self.tenant, "detail": self.detail}
            return json.dumps(document, ensure_ascii=False)
        return f"{self.tenant}: {style.green(self.detail)}"


@dataclass(frozen=True, slots=True)
class Listing:
    """All tenants of the table."""

    records: tuple[Record, ...]

    @property
    def exit_code(self) -> ExitCode:
        """1 when an operation is unfinished."""
        is_at_rest = all(record.under_way is None for record in self.records)
        return ExitCode.CLEAN if is_at_rest else ExitCode.FINDINGS

    def render(self, form: str, style: Style) -> str:
        """The tenants as a table or JSON."""
        if form == "json":
            document = {"version": 1, "tenants": [_as_json(record) for record in self.records]}
            return json.dumps(document, indent=2, ensure_ascii=False)
        rows = [("TENANT", "DATASOURCE", "PLACE", "STATE", "UNDER WAY")]
        for record in self.records:
            place = record.placement
            where = place.database or place.schema or ("row security" if place.row_security else "-")
            state = record.state if record.is_ready else "not ready"
            rows.append((record.name, place.datasource, where, state, _progress(record.under_way)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        failures = [
            f"{record.name}: {record.under_way.operation.value} failed: {record.under_way.failure}"
            for record in self.records
            if record.under_way is not None and record.under_way.failure is not None
        ]
        return "\n".join([style.bold(lines[0]), *lines[1:], *failures])


def _progress(under_way: UnderWay | None) -> str:
    if under_way is None:
        return "-"
    to = "" if under_way.target is None else f" to {under_way.target}"
    return f"{'cancel ' if under_way.is_cancelled else ''}{under_way.operation.value}{to}"


def _as_json(record: Record) -> dict[str, Any]:
    place, under_way = record.placement, record.under_way
    return {
        "name": record.name,
        "datasource": place.datasource,
        "schema": place.schema,
        "database": place.database,
        "role": place.role,
        "state": record.state,
        "is_ready": record.is_ready,
        "aliases": list(place.aliases),
        "domains": list(place.domains),
        "under_way": None if under_way is None else under_way.operation.value,
        "under_way_to": None if under_way is None else under_way.target,
        "is_cancelled": under_way is not None and under_way.is_cancelled,
        "failure": None if under_way is None else under_way.failure,
    }


def configure(parser: ArgumentParser) -> None:
    """Add a subcommand for each operation."""
    commands = parser.add_subparsers(title="operations", metavar="OPERATION", required=True, dest="operation")

    def add(name: str, summary: str, *names: str) -> ArgumentParser:
        made = commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
        for given in names:
            made.add_argument(given, metavar=given.upper())
        offer_file(made)
        offer_overlays(made)
        offer_environment(made)
        return made

    create = add("create", "create a tenant; run it again to continue where it stopped", "name")
    for option, text in (
        ("datasource", "its datasource; default: tenants_from.defaults"),
        ("schema", "its schema"),
        ("database", "its database"),
        ("role", "the role of its transactions"),
    ):
        create.add_argument(f"--{option}", help=text)
    create.add_argument("--alias", action="append", default=[], metavar="NAME", help="another name; repeatable")
    create.add_argument("--domain", action="append", default=[], metavar="HOST", help="its own host; repeatable")
    create.add_argument("--max-connections", type=int, metavar="COUNT", help="most connections of each server's pool")
    create.add_argument("--adopt", action="store_true", help="take over a schema, database or role that exists already")
    rename = add("rename", "rename a tenant; the old name stays an alias", "name", "new")
    suspend = add("suspend", "stop serving a tenant", "name")
    resume = add("resume", "serve a tenant again", "name")
    move = add("move", "move a tenant to another datasource", "name")
    where = move.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="DATASOURCE", help="the new datasource")
    where.add_argument("--cancel", action="store_true", help="take back a move that has not ended")
    drop = add("drop", "delete a tenant permanently", "name")
    drop.add_argument("--cancel", action="store_true", help="take back a drop that has not dropped objects yet")
    drop.add_argument("--yes", metavar="NAME", help="the tenant's name again: this cannot be undone")
    drop.add_argument("--keep-dump", action="store_true", help="keep a dump in provisioning.dump_folder")
    drop.add_argument("--cascade", action="store_true", help="drop what depends on its objects as well")
    listing = add("list", "list the tenants of the table")
    for made in (create, rename, suspend, resume, move, drop, listing):
        offer_formats(made, "text", "json")
    sql = commands.add_parser(
        "sql", help="print the SQL that puts tables under row security", description="Print DDL for a migration."
    )
    sql.add_argument("tables", nargs="+", metavar="TABLE", help="orders, or shop.orders")
    sql.add_argument("--setting", default="app.tenant", help="the custom setting of row_security; default: app.tenant")
    sql.add_argument("--column", default="tenant", help="the column with the tenant; default: tenant")
    sql.add_argument("--type", default="text", help="the column's type: text, uuid, bigint or integer")
    offer_formats(sql, "text")


def run(options: Namespace, console: Console) -> Done | Listing | Printed:
    """Run the operation."""
    if options.operation == "sql":
        try:
            rules = PolicyRules(setting=options.setting, column=options.column, type=options.type)
            return Printed(policy_sql(options.tables, rules))
        except ValueError as error:
            raise CannotRun(str(error), "See asgi-datasource tenants sql --help.") from None
    if options.operation == "drop" and not options.cancel and options.yes != options.name:
        raise CannotRun(
            f"dropping {options.name!r} drops all that it has", f"If that is meant, add --yes {options.name}."
        )
    find_application()
    file = named_file(options)
    findings = examine_file(file, options, environment(options), needs_resolver=False)
    config = load_or_refuse(findings)
    migrations = NewTenants(config, tell=console.progress) if has_migrations(config) else None
    events = None if config.outbox is None else TenantOutbox(config)
    provisioner = Provisioner(compile_provisioning(config), tell=console.progress, migrations=migrations, events=events)
    try:
        return asyncio.run(_OPERATIONS[options.operation](provisioner, options))
    except DataError as error:
        raise CannotRun(error.located_message, _fix(options, has_begun=provisioner.has_begun)) from None


def _fix(options: Namespace, *, has_begun: bool) -> str:
    if not has_begun:
        return "Nothing was done."
    again = "Fix that and run it again: it goes on where it stopped."
    if options.operation == "create" or options.cancel:
        return again
    return f"{again} Or take it back: tenants {options.operation} {options.name} --cancel."


async def _create(provisioner: Provisioner, options: Namespace) -> Done:
    aliases: Sequence[str] = options.alias
    domains: Sequence[str] = options.domain
    await provisioner.create(
        options.name,
        adopt=options.adopt,
        datasource=options.datasource,
        schema=options.schema,
        database=options.database,
        role=options.role,
        max_connections=options.max_connections,
        aliases=aliases or None,
        domains=domains or None,
    )
    return Done("create", options.name, "ready")


async def _rename(provisioner: Provisioner, options: Namespace) -> Done:
    await provisioner.rename(options.name, options.new)
    return Done("rename", options.name, f"is called {options.new} now")


async def _suspend(provisioner: Provisioner, options: Namespace) -> Done:
    await provisioner.suspend(options.name)
    return Done("suspend", options.name, "suspended")


async def _resume(provisioner: Provisioner, options: Namespace) -> Done:
    await provisioner.resume(options.name)
    return Done("resume", options.name, "served again")


async def _move(provisioner: Provisioner, options: Namespace) -> Done:
    if options.cancel:
        await provisioner.cancel(options.name, Operation.MOVE)
        return Done("move", options.name, "lives where it lived; the move has been taken back")
    await provisioner.move(options.name, options.to)
    return Done("move", options.name, f"lives on {options.to} now; what it left behind is still there")


async def _drop(provisioner: Provisioner, options: Namespace) -> Done:
    if options.cancel:
        await provisioner.cancel(options.name, Operation.DROP)
        return Done("drop", options.name, "served as before; the drop has been taken back")
    kept = await provisioner.drop(options.name, keep_dump=options.keep_dump, cascade=options.cascade)
    return Done("drop", options.name, "gone" if kept is None else f"gone; its dump is {kept}")


async def _list(provisioner: Provisioner, options: Namespace) -> Listing:
    return Listing(tuple(await provisioner.list()))


_OPERATIONS: dict[str, Callable[[Provisioner, Namespace], Coroutine[Any, Any, Done | Listing]]] = {
    "create": _create,
    "rename": _rename,
    "suspend": _suspend,
    "resume": _resume,
    "move": _move,
    "drop": _drop,
    "list": _list,
}
