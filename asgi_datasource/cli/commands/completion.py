"""`asgi-datasource completion SHELL`: completes commands, options and their values in bash, zsh and fish."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ..command import Printed, offer_formats
from ..console import Console
from ..shells import SHELLS, write_script


def configure(parser: ArgumentParser) -> None:
    """Add the shell."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.epilog = (
        'bash: eval "$(asgi-datasource completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc, behind compinit;'
        " fish: asgi-datasource completion fish > ~/.config/fish/completions/asgi-datasource.fish"
    )
    offer_formats(parser, "script")


def run(options: Namespace, console: Console) -> Printed:
    """Generate the script from the commands' parsers."""
    return Printed(write_script(options.shell))
