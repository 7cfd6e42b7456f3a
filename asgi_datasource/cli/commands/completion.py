"""`asgi-datasource completion SHELL`: completes commands, options and their values in bash, zsh and fish."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from ..command import ExitCode, offer_formats
from ..console import Console, Style
from ..shells import SHELLS, write_script


@dataclass(frozen=True, slots=True)
class Script:
    """A shell's completion script."""

    content: str

    @property
    def exit_code(self) -> ExitCode:
        """There is nothing to find."""
        return ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The script itself."""
        return self.content.rstrip("\n")


def configure(parser: ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=SHELLS, help="the shell to complete in")
    parser.epilog = (
        'bash: eval "$(asgi-datasource completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc, behind compinit;'
        " fish: asgi-datasource completion fish > ~/.config/fish/completions/asgi-datasource.fish"
    )
    offer_formats(parser, "script")


def run(options: Namespace, console: Console) -> Script:
    """Write the script from the commands' own parsers."""
    return Script(write_script(options.shell))
