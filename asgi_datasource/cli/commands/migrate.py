"""`asgi-datasource migrate ...`: plans, applies and checks the migrations of every datasource and tenant."""

from __future__ import annotations

import asyncio
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Final

from ...config import Config
from ...errors import DataError
from ...migrate import MigrationReport, Migrator, Problem, Scope, has_migrations
from ..command import CannotRun, Result, offer_formats
from ..console import Console
from ..rendering import FORMATS
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
from .migrate_lint import lint_folders
from .migrate_new import write_next
from .migrate_output import Changed, Planned, Status
from .migrate_progress import open_progress


def configure(parser: ArgumentParser) -> None:
    """Add a subcommand for each operation."""
    commands = parser.add_subparsers(title="operations", metavar="OPERATION", required=True, dest="operation")

    def add(name: str, summary: str, *, tenants: bool = True) -> ArgumentParser:
        made = commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
        if name == "new":
            made.add_argument("name", metavar="NAME", help="what it does: add_orders")
        offer_file(made)
        if tenants:
            made.add_argument(
                "--tenant", action="append", metavar="NAME", help="this tenant only; repeatable; default: everything"
            )
        offer_overlays(made)
        offer_environment(made)
        return made

    plan = add("plan", "print what would be applied where; exits with 3 when something is pending")
    plan.add_argument("--sql", action="store_true", help="print the statements as well")
    check = add(
        "check", "exit with 0 when every schema is at its head, with 3 when not, with 1 when something is wrong"
    )
    status = add("status", "print which versions the schemas are at, and what is running or has failed")
    apply = add("apply", "apply what is pending; the same command continues after a failure")
    apply.add_argument("--concurrency", type=int, metavar="COUNT", help="tenants at a time; default: the document's")
    apply.add_argument("--to", type=int, metavar="VERSION", help="leave out versions above")
    apply.add_argument(
        "--phase", choices=("all", "expand"), default="all", help="expand: stop before the contract phase"
    )
    baseline = add("baseline", "have schemas that were never migrated count as being at a version")
    baseline.add_argument("--version", type=int, required=True, metavar="VERSION", help="the version that they are at")
    repair = add("repair", "put the ledger right")
    what = repair.add_mutually_exclusive_group(required=True)
    what.add_argument("--accept", action="store_true", help="take the present files for those that have run")
    what.add_argument("--adopt", action="store_true", help="take restored schemas for those that were migrated")
    what.add_argument("--forget", action="store_true", help="forget what has run in schemas that were created again")
    down = add("down", "take migrations back by their .down.sql; asks first")
    down.add_argument("--to", type=int, required=True, metavar="VERSION", help="the version that stays the highest")
    down.add_argument("--scope", choices=("tenant", "shared"), default="tenant", help="default: tenant")
    down.add_argument("--yes", action="store_true", help="do not ask")
    new = add("new", "write the next file", tenants=False)
    new.add_argument("--scope", choices=("tenant", "shared"), default="tenant", help="default: tenant")
    new.add_argument("--python", action="store_true", help="a Python step")
    new.add_argument("--down", action="store_true", help="with a file that takes it back")
    new.add_argument("--timestamp", action="store_true", help="a timestamp as the version, not the next number")
    for made in (plan, check, status, apply, baseline, repair, down, new):
        offer_formats(made, "text", "json")
    lint = add("lint", "find unsafe DDL: what stops the site, or breaks the running version", tenants=False)
    lint.add_argument("--strict", action="store_true", help="exit with 1 on warnings as well")
    lint.add_argument("--since", type=int, metavar="VERSION", help="only versions above, such as those of a branch")
    offer_formats(lint, *FORMATS)


def run(options: Namespace, console: Console) -> Result:
    """Run the operation."""
    find_application()
    file = named_file(options)
    findings = examine_file(file, options, environment(options), needs_resolver=False)
    config = load_or_refuse(findings)
    if not (config.migrate or (has_migrations(config) and options.operation in _WITHOUT_FILES)):
        raise CannotRun(f"{file} has no section migrate", "Add it: migrate: {folder: migrations}.")
    try:
        return _OPERATIONS[options.operation](config, options, console)
    except Problem as error:
        raise CannotRun(f"{error.file}{f':{error.line}' if error.line else ''}: {error.message}", error.fix) from None
    except DataError as error:
        raise CannotRun(error.located_message, "Nothing was lost: run it again after the fix.") from None


def _plan(config: Config, options: Namespace, console: Console) -> Result:
    return Planned(_survey(config, options, "plan"), has_sql=options.sql)


def _check(config: Config, options: Namespace, console: Console) -> Result:
    return Planned(_survey(config, options, "check"), is_short=True)


def _status(config: Config, options: Namespace, console: Console) -> Result:
    return Status(_survey(config, options, "status"))


def _survey(config: Config, options: Namespace, command: str) -> MigrationReport:
    return asyncio.run(Migrator(config).plan(tenants=options.tenant, command=command))


def _apply(config: Config, options: Namespace, console: Console) -> Result:
    with open_progress(console) as events:
        migrator = Migrator(config, events=events)
        report = asyncio.run(
            migrator.apply(
                tenants=options.tenant,
                concurrency=options.concurrency,
                expand_only=options.phase == "expand",
                up_to=options.to,
            )
        )
    return Planned(report)


def _baseline(config: Config, options: Namespace, console: Console) -> Result:
    found = asyncio.run(Migrator(config).baseline(options.version, tenants=options.tenant))
    return Changed("baseline", tuple(f"{one.name}: counts as being at version {options.version}" for one in found))


def _repair(config: Config, options: Namespace, console: Console) -> Result:
    lines = asyncio.run(
        Migrator(config).repair(
            tenants=options.tenant, accept=options.accept, adopt=options.adopt, forget=options.forget
        )
    )
    return Changed("repair", tuple(lines))


def _down(config: Config, options: Namespace, console: Console) -> Result:
    scope = Scope(options.scope)
    planned = asyncio.run(Migrator(config).down(options.to, scope=scope, tenants=options.tenant, plans_only=True))
    lines = tuple(f"{one.name}: {', '.join(one.applied)}" for one in planned)
    if planned and not options.yes:
        for line in lines:
            console.progress(f"would take back {line}")
        if not console.confirm("What they have added is lost, with its rows. Take them back?"):
            raise CannotRun("nothing was taken back", "If that is meant, answer yes, or add --yes.")
    done = asyncio.run(Migrator(config).down(options.to, scope=scope, tenants=options.tenant))
    return Changed("down", tuple(f"{one.name}: took back {', '.join(one.applied)}" for one in done))


def _lint(config: Config, options: Namespace, console: Console) -> Result:
    return lint_folders(config, is_strict=options.strict, since=options.since)


def _new(config: Config, options: Namespace, console: Console) -> Result:
    return write_next(config, options, console)


_WITHOUT_FILES: Final = ("plan", "check", "status", "apply", "repair")
"""What can be done in a document with own tables only, such as those of `outbox`."""

_OPERATIONS: Final[dict[str, Callable[[Config, Namespace, Console], Result]]] = {
    "plan": _plan,
    "check": _check,
    "status": _status,
    "apply": _apply,
    "baseline": _baseline,
    "repair": _repair,
    "new": _new,
    "lint": _lint,
    "down": _down,
}
