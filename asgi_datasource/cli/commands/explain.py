"""`asgi-datasource explain FILE`: which server a request goes to, and why not to another.

It connects to no server, except for the tenants of `tenants_from` when references are resolved.
"""

from __future__ import annotations

import asyncio
import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from ..command import CannotRun, ExitCode, offer_formats
from ..console import Console, Style
from ..sources import (
    environment_on_request,
    find_application,
    load_config,
    named_file,
    offer_environment,
    offer_file,
    offer_overlays,
)

if TYPE_CHECKING:
    from ...config import StateDocument
    from ...registry.explain import Explanation, Question
    from ...registry.registry import DataSourceRegistry


@dataclass(frozen=True, slots=True)
class Explained:
    """The explanation of one request.

    Attributes:
        file: The configuration.
        explanation: The routing of the request.
        is_assumed: Whether every server was assumed to be up and current, because no state was given.
        has_table: Whether there are further tenants in a table, which was not read.
        assumed_tenants: Names that were taken to be in that table.
    """

    file: str
    explanation: Explanation
    is_assumed: bool
    has_table: bool = False
    assumed_tenants: tuple[str, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """1 when the request would be refused."""
        return ExitCode.FINDINGS if self.explanation.refusal is not None else ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The explanation as text or as JSON."""
        document = self.explanation.document()
        if form == "json":
            assumed = {"assumed": self.is_assumed, "assumed_tenants": list(self.assumed_tenants)}
            return json.dumps({"file": self.file, **document, **assumed}, indent=2, ensure_ascii=False)
        return "\n".join(
            [_title(document, style), *_facts(document, style), *_servers(document, style), *self._notes()]
        )

    def _notes(self) -> list[str]:
        notes: list[str] = []
        if self.assumed_tenants:
            notes.append(
                f"The tenant {self.assumed_tenants[0]!r} is taken to be in the table of tenants_from, with the defaults"
                " there; with --environment, the table is read."
            )
        elif self.has_table and self.explanation.tenant is None and not self.explanation.is_exempt:
            notes.append("The tenants of tenants_from are in a table, which is read with --environment only.")
        if self.is_assumed and self.explanation.servers:
            notes.append("No --state was given: every server is taken to be up and current, at a position not known.")
        return ["", *notes] if notes else []


def _title(document: dict[str, Any], style: Style) -> str:
    request, route = document["request"], document["route"]
    target = f"{request['method']} {request['path']}"
    if route is not None:
        return f"{target} → {style.green(route['node'])} ({route['reason']})"
    if document["outcome"] == "exempt":
        return f"{target}: {style.green('exempt')}, it has no session"
    refusal = document["refusal"]
    refused = style.red(f"refused with {refusal['status']}")
    return f"{target}: {refused} ({refusal['kind']}): {refusal['message']}"


def _facts(document: dict[str, Any], style: Style) -> list[str]:
    facts: list[tuple[str, str]] = []
    tenant, plan, rule, token = document["tenant"], document["plan"], document["rule"], document["token"]
    if tenant is not None:
        name = "the default's" if tenant["name"] is None else tenant["name"]
        facts.append(("tenant", f"{name}, on {tenant['datasource']} ({tenant['strategy']}, {tenant['state']})"))
        facts.append(("rule", "none" if rule is None else f"routes[{rule['index']}] ({rule['match']})"))
    if plan is not None:
        facts.append(("asks for", _wants(plan)))
        facts.append(("runs", plan["runs"]))
    if token is not None:
        facts.append(("token", token["why"]))
    return [f"  {style.faint(f'{name:9}')} {text}" for name, text in facts]


def _wants(plan: dict[str, Any]) -> str:
    words = [f"{plan['intent']}"]
    words += [f"consistency {plan['consistency']}"] if plan["consistency"] else []
    words += [f"max_lag {plan['max_lag_s']:g} s"] if plan["max_lag_s"] is not None else []
    words += [f"priority {plan['priority']}"] if plan["priority"] != "normal" else []
    words += [f"at most {plan['max_in_flight']} in flight"] if plan["max_in_flight"] else []
    return ", ".join(words)


def _servers(document: dict[str, Any], style: Style) -> list[str]:
    servers = document["servers"]
    width = max((len(server["node"]) for server in servers), default=0)
    longest = max((len(server["verdict"]) for server in servers), default=0)
    lines: list[str] = []
    for server in servers:
        is_chosen = server["verdict"] == "chosen"
        verdict = f"{server['verdict']:{longest}}"
        painted = style.green(verdict) if is_chosen else style.yellow(verdict)
        node = style.bold(f"{server['node']:{width}}")
        lines.append(f"  {node}  {painted}  {server['why']}")
    return ["", *lines] if lines else []


def configure(parser: ArgumentParser) -> None:
    """Add the file, the request and the servers' state."""
    offer_file(parser)
    request = parser.add_argument_group("the request")
    request.add_argument("--method", default="GET", metavar="METHOD", help="default: GET")
    request.add_argument("--path", default="/", metavar="PATH", help="with its query string; default: /")
    request.add_argument("--tenant", metavar="NAME", help="the tenant; without it, the resolvers find it")
    request.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="a header; repeatable")
    request.add_argument(
        "--intent", choices=("read", "write"), help="the intent of the statement, when the code sets one"
    )
    request.add_argument(
        "--token",
        action="append",
        default=[],
        metavar="TOKEN",
        help="the client's token, or a position such as 1:0/3000148; repeatable",
    )
    request.add_argument("--pinned", action="store_true", help="the request has already written")
    request.add_argument("--sticky", metavar="REPLICA", help="the replica that the request has already read from")
    parser.add_argument("--state", metavar="FILE", help="the servers' state: JSON as returned by registry.state()")
    parser.add_argument(
        "--down",
        action="append",
        default=[],
        metavar="SERVER",
        help="a server that is down: r1 or orders.r1; repeatable",
    )
    parser.add_argument(
        "--lag", action="append", default=[], metavar="SERVER=TIME", help="a replica's lag: r1=3s; repeatable"
    )
    offer_overlays(parser)
    offer_environment(parser, is_optional=True)
    offer_formats(parser, "text", "json")


def run(options: Namespace, console: Console) -> Explained:
    """Compile the configuration and explain the request."""
    # Imported here because they import the driver, which `--help` does not need.
    from pydantic import SecretStr

    from ...config import read_state
    from ...errors import ConfigError, DataError
    from ...registry.explain import Question, as_position, explain
    from ...registry.registry import compile as compile_registry
    from ...routing import AccessIntent
    from ..assumptions import AssumedTenants, assume_state

    find_application()
    file = named_file(options)
    variables = environment_on_request(options)
    config = load_config(file, options, variables)
    consistency = config.consistency
    if consistency.token != "off" and consistency.secret is None:  # noqa: S105 - a word of the configuration
        if any(as_position(text) is None for text in options.token):
            raise CannotRun(
                "who has signed the token is not known: consistency.secret is not looked up",
                "Add --environment or --env-file, or give the position itself, as --token 1:0/3000148.",
            )
        stand_in = consistency.model_copy(update={"secret": SecretStr(token_hex(16))})
        config = config.model_copy(update={"consistency": stand_in})
    question = Question(
        method=options.method,
        path=options.path,
        tenant=options.tenant,
        headers=[_header(text) for text in options.header],
        intent=None if options.intent is None else AccessIntent(options.intent),
        tokens=options.token,
        is_pinned=options.pinned,
        sticky=options.sticky,
    )
    try:
        given = None if options.state is None else read_state(options.state)
        registry = compile_registry(config)
        compiled = registry.compiled
        state = assume_state(compiled, given, down=_names(options.down), lags=_names(options.lag))
        assumed = None
        if variables is None and config.tenants_from is not None:
            directory = compiled.admission.directory
            assumed = AssumedTenants(config, config.tenants_from, directory)
            directory.learn_from(assumed)
            explanation = asyncio.run(explain(compiled, question, state))
        else:
            explanation = asyncio.run(_explain(registry, question, state))
    except ConfigError as error:
        raise CannotRun(str(error), "Fix that first.") from None
    except DataError as error:
        fix = "Start the server of tenants_from, or leave out --environment: its defaults are then taken."
        raise CannotRun(error.located_message, fix) from None
    return Explained(
        file,
        explanation,
        is_assumed=given is None and not options.down and not options.lag,
        has_table=variables is None and config.tenants_from is not None,
        assumed_tenants=() if assumed is None else tuple(assumed.names),
    )


async def _explain(registry: DataSourceRegistry, question: Question, state: StateDocument) -> Explanation:
    from ...registry.explain import explain

    async with registry.tenants_loaded():
        return await explain(registry.compiled, question, state)


def _names(given: list[str]) -> list[str]:
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip().isascii():
        raise CannotRun(f"{text!r} is no header", "Write it as NAME:VALUE.")
    return name.strip(), value.strip()
