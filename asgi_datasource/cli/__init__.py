"""The command line `asgi-datasource`."""

from .command import CannotRun, Command, ExitCode, Result, offer_formats
from .console import Console, Style
from .program import main

__all__ = ["CannotRun", "Command", "Console", "ExitCode", "Result", "Style", "main", "offer_formats"]
