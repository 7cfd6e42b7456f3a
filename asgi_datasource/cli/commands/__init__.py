"""The commands by name; only the one that runs is imported, which keeps the start-up fast."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from ..command import Command


@dataclass(frozen=True, slots=True)
class Entry:
    """A command.

    Attributes:
        summary: Its line of the help.
        module: The name of its module in this package.
    """

    summary: str
    module: str

    def load(self) -> Command:
        """Import the command."""
        return cast("Command", import_module(f".{self.module}", __name__))


COMMANDS: Final[dict[str, Entry]] = {
    "validate": Entry("check configuration files: every problem, with its place and its fix", "validate"),
    "check": Entry("compare a configuration with its servers", "check"),
    "explain": Entry("explain which server a request goes to, and why not to another", "explain"),
    "diff": Entry("explain what a change means for the tenants", "diff"),
    "show": Entry("print the effective document, with the origin of each value", "show"),
    "init": Entry("write a commented first configuration", "init"),
    "rule": Entry("explain a code such as ADS041", "rule"),
    "schema": Entry("print the JSON Schema of the configuration", "schema"),
    "completion": Entry("print a completion script for bash, zsh or fish", "completion"),
    "tenants": Entry("create, list, change, move and drop tenants; print the SQL of policies", "tenants"),
    "migrate": Entry("plan, apply and check the migrations of every datasource and tenant", "migrate"),
    "top": Entry("show what a running process does, by its console", "top"),
    "trace": Entry("print the traces of a file, with the answers about routing in words", "trace"),
    "outbox": Entry("install the outbox, run a relay, show what waits, handle dead events", "outbox"),
}
"""All commands, in the order of the help."""
