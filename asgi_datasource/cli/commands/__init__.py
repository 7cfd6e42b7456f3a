"""The commands by name. Only the one that is run is imported, so that none makes the others slow to start."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from ..command import Command


@dataclass(frozen=True, slots=True)
class Entry:
    """One command.

    Attributes:
        summary: What it does, in one line of the help.
        module: The name of its module here.
    """

    summary: str
    module: str

    def load(self) -> Command:
        """The command itself."""
        return cast("Command", import_module(f".{self.module}", __name__))


COMMANDS: Final[dict[str, Entry]] = {
    "validate": Entry("check configuration files: every problem, with its place and its fix", "validate"),
    "check": Entry("ask the servers whether a configuration is true", "check"),
    "explain": Entry("tell which server a request would go to, and why not to another", "explain"),
    "diff": Entry("tell what a change means for the tenants", "diff"),
    "show": Entry("print the document as it counts, with where each value comes from", "show"),
    "init": Entry("write a commented first configuration", "init"),
    "rule": Entry("explain a code such as ADS041", "rule"),
    "schema": Entry("print the JSON Schema of the configuration", "schema"),
    "completion": Entry("print a completion script for bash, zsh or fish", "completion"),
    "tenants": Entry("make, list, change, move and drop tenants; print the SQL of policies", "tenants"),
}
"""Every command, in the order of the help."""
