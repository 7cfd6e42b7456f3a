"""`asgi-datasource outbox ...`: runs a relay, and handles what could not be delivered."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID

from ...config import Config
from ...errors import DataError
from ...outbox.operate import DeadEvent, Operations, Status, operate
from ...registry.outbox import relay_sites
from ...registry.registry import compile as compile_registry
from ..command import CannotRun, Clean, ExitCode, Result, offer_formats
from ..console import Console, Style
from ..sources import (
    environment,
    examine_file,
    find_application,
    load_or_refuse,
    named_file,
    offer_config,
    offer_environment,
    offer_file,
    offer_overlays,
)

T = TypeVar("T")

PARALLEL: Final = 8
"""Databases that are asked at a time."""


@dataclass(frozen=True, slots=True)
class Relayed(Clean):
    """A relay that was stopped."""

    published: int

    def render(self, form: str, style: Style) -> str:
        """How much it has delivered."""
        if form == "json":
            return json.dumps({"version": 1, "published": self.published})
        return f"stopped; {self.published} events were published"


@dataclass(frozen=True, slots=True)
class Statuses:
    """How much each database has to do."""

    databases: tuple[Status, ...]
    warn_age_s: float

    @property
    def exit_code(self) -> ExitCode:
        """1 while an event is dead, or older than outbox.warn_age."""
        is_well = all(one.dead == 0 and one.oldest_s <= self.warn_age_s for one in self.databases)
        return ExitCode.CLEAN if is_well else ExitCode.FINDINGS

    def render(self, form: str, style: Style) -> str:
        """A table, or JSON."""
        if form == "json":
            return json.dumps({"version": 1, "databases": [asdict(one) for one in self.databases]}, indent=2)
        rows = [("DATABASE", "BACKLOG", "OLDEST", "HELD", "DEAD", "LANES", "RELAYS")]
        rows += [
            (
                one.database,
                str(one.backlog),
                f"{one.oldest_s:.1f} s" if one.backlog else "-",
                str(one.held),
                str(one.dead),
                f"{one.lanes} of 32",
                str(one.relays),
            )
            for one in self.databases
        ]
        return _table(rows, style)


@dataclass(frozen=True, slots=True)
class DeadList:
    """Events that were refused too often."""

    events: tuple[DeadEvent, ...]

    @property
    def exit_code(self) -> ExitCode:
        """1 when there are any."""
        return ExitCode.FINDINGS if self.events else ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """A table, or JSON; never a payload."""
        if form == "json":
            events = [
                {**asdict(one), "event_id": str(one.event_id), "created_at": one.created_at.isoformat()}
                for one in self.events
            ]
            return json.dumps({"version": 1, "dead": events}, indent=2, ensure_ascii=False)
        if not self.events:
            return "no event is dead"
        rows = [("EVENT", "DATABASE", "TENANT", "TOPIC", "KEY", "ATTEMPTS", "ERROR")]
        rows += [
            (
                str(one.event_id),
                one.database,
                one.tenant or "-",
                one.topic,
                one.key,
                str(one.attempts),
                (one.error or "-").splitlines()[0][:80],
            )
            for one in self.events
        ]
        return _table(rows, style)


@dataclass(frozen=True, slots=True)
class Changed(Clean):
    """Dead events that are tried again, or were deleted."""

    action: str
    ids: tuple[UUID, ...]

    def render(self, form: str, style: Style) -> str:
        """How many, or JSON with their ids."""
        if form == "json":
            return json.dumps({"version": 1, "action": self.action, "events": [str(one) for one in self.ids]})
        done = "will be tried again" if self.action == "replay" else "discarded"
        return f"{len(self.ids)} events: {style.green(done)}"


def _table(rows: Sequence[tuple[str, ...]], style: Style) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([style.bold(lines[0]), *lines[1:]])


def configure(parser: ArgumentParser) -> None:
    """Add a subcommand for each operation."""
    commands = parser.add_subparsers(title="operations", metavar="OPERATION", required=True, dest="operation")

    def add(to: Any, name: str, summary: str, *, events: bool = False) -> ArgumentParser:
        made: ArgumentParser = to.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
        if events:
            made.add_argument(
                "events", nargs="*", metavar="EVENT", help="the ids, as `outbox dead list` shows them; then FILE"
            )
            made.set_defaults(file=None)
            offer_config(made)
        else:
            offer_file(made)
        offer_overlays(made)
        offer_environment(made)
        return made

    relay = add(commands, "relay", "deliver events until SIGTERM or Ctrl-C; several relays share the work")
    status = add(commands, "status", "show how much waits in each database; exit code 1 when something needs a look")
    for made in (relay, status):
        offer_formats(made, "text", "json")
    dead = commands.add_parser(
        "dead", help="list, replay or discard events that were refused too often", description="Handle dead events."
    )
    inner = dead.add_subparsers(title="operations", metavar="OPERATION", required=True, dest="dead")
    listing = add(inner, "list", "list dead events, without their payloads")
    listing.add_argument("--limit", type=int, default=100, metavar="COUNT", help="most of each database; default: 100")
    replay = add(inner, "replay", "try dead events again; their ids stay", events=True)
    discard = add(inner, "discard", "delete dead events", events=True)
    for made in (replay, discard):
        made.add_argument("--all", action="store_true", help="all dead events of all databases")
    for made in (listing, replay, discard):
        offer_formats(made, "text", "json")


def run(options: Namespace, console: Console) -> Result:
    """Run the operation."""
    if getattr(options, "events", None) and Path(options.events[-1]).suffix:
        # argparse gives the last argument to EVENT as well: an id has no suffix.
        options.file = options.events.pop()
    find_application()
    file = named_file(options)
    findings = examine_file(file, options, environment(options), needs_resolver=False)
    config = load_or_refuse(findings)
    operation = options.operation if options.operation != "dead" else f"dead {options.dead}"
    try:
        return asyncio.run(_OPERATIONS[operation](config, options, console))
    except DataError as error:
        raise CannotRun(error.located_message, "Fix that and run it again.") from None


async def _relay(config: Config, _: Namespace, console: Console) -> Result:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with compile_registry(config).relaying() as relay:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        console.progress(f"outbox relay {relay.owner}: {len(relay.stats)} databases")
        await stopped.wait()
        console.progress("outbox relay: stopping")
    return Relayed(sum(stats.published for stats in relay.stats.values()))


async def _status(config: Config, _: Namespace, __: Console) -> Result:
    found = await _of_each(config, lambda outbox: outbox.status())
    return Statuses(tuple(found), 60.0 if config.outbox is None else config.outbox.warn_age_s)


async def _list_dead(config: Config, options: Namespace, _: Console) -> Result:
    found = await _of_each(config, lambda outbox: outbox.dead(limit=options.limit))
    return DeadList(tuple(event for events in found for event in events))


async def _replay(config: Config, options: Namespace, _: Console) -> Result:
    ids = _ids(options)
    return _changed("replay", ids, await _of_each(config, lambda outbox: outbox.replay(ids)))


async def _discard(config: Config, options: Namespace, _: Console) -> Result:
    ids = _ids(options)
    return _changed("discard", ids, await _of_each(config, lambda outbox: outbox.discard(ids)))


def _ids(options: Namespace) -> list[UUID] | None:
    if bool(options.events) == options.all:
        raise CannotRun("no event is named", "Name the ids that `outbox dead list` shows, or add --all.")
    try:
        return None if options.all else [UUID(text) for text in options.events]
    except ValueError:
        raise CannotRun("an event's id is a UUID", "Name the ids that `outbox dead list` shows.") from None


def _changed(action: str, wanted: list[UUID] | None, found: Sequence[Sequence[UUID]]) -> Changed:
    ids = tuple(one for ids in found for one in ids)
    lacking = [str(one) for one in wanted or () if one not in ids]
    if lacking and not ids:
        raise CannotRun(f"no dead event has the id {lacking[0]}", "See `asgi-datasource outbox dead list`.")
    return Changed(action, ids)


async def _of_each(config: Config, ask: Callable[[Operations], Awaitable[T]]) -> list[T]:
    """The answers of all databases, a few of which are asked at a time."""
    registry = compile_registry(config)
    slots = asyncio.Semaphore(PARALLEL)

    async with registry.tenants_loaded():

        async def one(site: Any) -> T:
            async with slots, operate(site) as outbox:
                return await ask(outbox)

        return list(await asyncio.gather(*(one(site) for site in relay_sites(registry.compiled).values())))


_OPERATIONS: Final[dict[str, Callable[[Config, Namespace, Console], Coroutine[Any, Any, Result]]]] = {
    "relay": _relay,
    "status": _status,
    "dead list": _list_dead,
    "dead replay": _replay,
    "dead discard": _discard,
}
