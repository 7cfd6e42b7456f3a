"""`asgi-datasource outbox ...`: installs the tables of the outbox."""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from ...config import Config
from ...errors import DataError
from ...outbox.install import install
from ...registry.outbox import install_sites
from ..command import CannotRun, Clean, offer_formats
from ..console import Console, Style
from ..sources import environment, examine_file, find_file, load_or_refuse, offer_environment, offer_overlays


@dataclass(frozen=True, slots=True)
class Installed(Clean):
    """The databases that have the tables now."""

    databases: tuple[str, ...]

    def render(self, form: str, style: Style) -> str:
        """A line a database, or JSON."""
        if form == "json":
            return json.dumps({"version": 1, "installed": list(self.databases)}, ensure_ascii=False)
        return "\n".join(f"{name}: {style.green('installed')}" for name in self.databases)


def configure(parser: ArgumentParser) -> None:
    """Add a subcommand for each operation."""
    commands = parser.add_subparsers(title="operations", metavar="OPERATION", required=True, dest="operation")

    def add(name: str, summary: str) -> ArgumentParser:
        made = commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}.")
        made.add_argument("--config", metavar="FILE", help="YAML, TOML or JSON; default: datasource.yaml")
        offer_overlays(made)
        offer_environment(made)
        return made

    offer_formats(
        add("install", "create the tables of the outbox in every database, as the admin login"), "text", "json"
    )


def run(options: Namespace, console: Console) -> Installed:
    """Run the operation."""
    file: str = options.config or find_file()
    findings = examine_file(file, options, environment(options), needs_resolver=False)
    config = load_or_refuse(findings)
    try:
        return asyncio.run(_install(config, console))
    except DataError as error:
        raise CannotRun(error.message, "Fix that and run it again: what is there already stays.") from None


async def _install(config: Config, console: Console) -> Installed:
    done: list[str] = []
    for site in install_sites(config):
        console.progress(f"outbox install: {site.name}")
        await install(site)
        done.append(site.name)
    return Installed(tuple(done))
