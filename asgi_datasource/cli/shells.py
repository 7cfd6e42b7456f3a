"""Completion scripts, generated from the parsers of the commands."""

from __future__ import annotations

from argparse import Action, ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from .commands import COMMANDS

SHELLS: Final = ("bash", "zsh", "fish")
_PROGRAM: Final = "asgi-datasource"


@dataclass(frozen=True, slots=True)
class _Option:
    """An option, or a word of a positional argument."""

    names: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    takes_value: bool


def _commands() -> Iterator[tuple[str, str, list[_Option]]]:
    """Each command with its summary and options, including those of its subcommands."""
    for name, entry in COMMANDS.items():
        parser = ArgumentParser(prog=name, add_help=True)
        entry.load().configure(parser)
        yield name, entry.summary, list(_options(parser))


def _options(parser: ArgumentParser) -> Iterator[_Option]:
    for action in _actions(parser):
        raw: Any = action.choices
        if isinstance(raw, dict):
            # Subcommands.
            for inner, inner_parser in cast("dict[str, ArgumentParser]", raw).items():
                yield _Option((inner,), "", (), False)
                yield from (option for option in _options(inner_parser) if option.names[0].startswith("-"))
            continue
        choices = tuple(map(str, raw or ()))
        takes_value = action.nargs != 0
        if action.option_strings:
            yield _Option(tuple(action.option_strings), action.help or "", choices, takes_value)
        else:
            yield from (_Option((choice,), action.help or "", (), False) for choice in choices)


def _actions(parser: ArgumentParser) -> list[Action]:
    return list(parser._actions)  # pyright: ignore[reportPrivateUsage] - argparse has no other way


def write_script(shell: str) -> str:
    """The completion script of a shell.

    Args:
        shell: One of `SHELLS`.
    """
    commands = [*_commands()]
    if shell == "fish":
        return _fish(commands)
    script = _bash(commands)
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def _bash(commands: list[tuple[str, str, list[_Option]]]) -> str:
    """The script of bash; zsh runs it with bashcompinit."""
    lines = [
        "_asgi_datasource() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" before="" name="${COMP_WORDS[1]}"',
        "    COMPREPLY=()",
        '    if [ "$COMP_CWORD" -eq 1 ]; then',
        f'        COMPREPLY=($(compgen -W "{" ".join(name for name, _, _ in commands)} --help --version" -- "$word"))',
        "        return",
        "    fi",
        '    before="${COMP_WORDS[COMP_CWORD-1]}"',
        '    case "$name $before" in',
    ]
    for name, _, options in commands:
        for option in options:
            if option.choices:
                pattern = "|".join(f'"{name} {each}"' for each in option.names)
                lines.append(
                    f'        {pattern}) COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$word")); return ;;'
                )
    lines += ["    esac", '    case "$word" in', "        -*)", '            case "$name" in']
    for name, _, options in commands:
        words = " ".join(each for option in options for each in option.names if each.startswith("-"))
        lines.append(f'                {name}) COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;')
    lines += ["            esac", "            return ;;", "    esac", '    case "$name" in']
    for name, _, options in commands:
        words = " ".join(each for option in options for each in option.names if not each.startswith("-"))
        if words:
            lines.append(f'        {name}) COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;')
    lines += [
        "    esac",
        '    COMPREPLY+=($(compgen -f -- "$word"))',
        "}",
        f"complete -o filenames -F _asgi_datasource {_PROGRAM}",
        "",
    ]
    return "\n".join(lines)


def _fish(commands: list[tuple[str, str, list[_Option]]]) -> str:
    lines = [f"complete -c {_PROGRAM} -n __fish_use_subcommand -f"]
    for name, summary, options in commands:
        lines.append(f"complete -c {_PROGRAM} -n __fish_use_subcommand -f -a {name} -d {_quoted(summary)}")
        condition = f"-n '__fish_seen_subcommand_from {name}'"
        for option in options:
            if not option.names[0].startswith("-"):
                lines.append(f"complete -c {_PROGRAM} {condition} -a {option.names[0]}")
                continue
            flags = " ".join(f"-l {each[2:]}" if each.startswith("--") else f"-s {each[1:]}" for each in option.names)
            values = (
                f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else " -r" if option.takes_value else ""
            )
            lines.append(f"complete -c {_PROGRAM} {condition} {flags}{values} -d {_quoted(option.help)}")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
