"""`explain`: which server a request goes to, and why not to another; from files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from asgi_datasource import ConfigError
from asgi_datasource.config import read_state
from tests.cli.run import call

ROOT = Path(__file__).parent.parent.parent
PASSWORD = "hunter2-Tr0ub4dor"
CONFIG = """\
version: 1
datasources:
  orders:
    primary: {url: "${ORDERS_PRIMARY_URL}"}
    replicas:
      r1: {url: "${ORDERS_R1_URL}"}
      r2: {url: "${ORDERS_R2_URL}"}
    routing: {max_lag: 5s}
tenancy: {resolve: [{header: X-Tenant}, {path_prefix: /t}], exempt: [/healthz]}
tenants: {acme: {datasource: orders, schema: acme}}
routes:
  - {match: "GET /reports/**", max_lag: 60s, priority: low, max_in_flight: 10}
consistency: {token: header, secret: {file: secret}}
"""
STATE: dict[str, Any] = {
    "version": 1,
    "datasources": {
        "orders": {
            "turn": 1,
            "forks": [{"timeline": 2, "lsn": "0/3100000"}],
            "servers": {
                "primary": {"role": "primary", "breaker": "closed"},
                "r1": {"role": "replica", "lag_s": 7.2, "age_s": 7.9, "timeline": 1, "lsn": "0/3000148"},
                "r2": {"role": "replica", "lag_s": 0.01, "age_s": 0.3, "timeline": 2, "lsn": "0/3200000"},
            },
        }
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "datasource.yaml").write_text(CONFIG)
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    (tmp_path / "secret").write_text(PASSWORD)
    return tmp_path


def explained(folder: Path, *arguments: str) -> Any:
    done = call("explain", "datasource.yaml", *arguments, "--format", "json", cwd=folder)
    assert done.code in (0, 1), done.err
    assert PASSWORD not in done.out + done.err
    found = json.loads(done.out)
    Draft202012Validator(json.loads((ROOT / "schemas" / "explain" / "v1.json").read_text())).validate(found)
    assert done.code == (1 if found["outcome"] == "refused" else 0)
    return found


def verdicts(found: Any) -> dict[str, str]:
    return {server["node"]: server["verdict"] for server in found["servers"]}


def test_the_explanation_as_text(folder: Path) -> None:
    done = call(
        "explain", "--tenant", "acme", "--path", "/orders", "--state", "state.json", "--token", "1:0/3000200",
        cwd=folder,
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "GET /orders → r2 (proved)\n"
        "  tenant    acme, on orders (schema, active)\n"
        "  rule      none\n"
        "  asks for  read, consistency token, max_lag 5 s\n"
        "  runs      by itself, READ ONLY, in one round trip\n"
        "  token     the client has seen 1:0/3000200\n"
        "\n"
        "  r1       lagging  its data may be 7.9 s old, and 5 s are allowed\n"
        "  r2       chosen   it shows, in the read's own round trip, that it has what the client has seen\n"
        "  primary  spared   a replica may answer, so it is left to the writes\n"
    )


def test_a_refusal_as_text(folder: Path) -> None:
    done = call("explain", "--path", "/orders", "--header", "X-Tenant: globex", cwd=folder)
    assert (done.code, done.out) == (
        1, "GET /orders: refused with 404 (tenant): there is no such tenant\n",
    )  # fmt: skip
    done = call("explain", "--path", "/healthz", cwd=folder)
    assert (done.code, done.out) == (0, "GET /healthz: exempt, it has no session\n")


def test_the_request_and_the_servers_decide(folder: Path) -> None:
    state = ("--state", "state.json")
    assert explained(folder, "--path", "/t/acme/orders", *state)["route"]["node"] == "r2"
    report = explained(folder, "--path", "/t/acme/reports/x?y=1", *state)
    assert report["rule"] == {"index": 0, "match": "GET /reports/**"}
    assert (report["plan"]["max_lag_s"], report["plan"]["priority"], report["plan"]["max_in_flight"]) == (60, "low", 10)
    assert verdicts(report) == {"r1": "not_its_turn", "r2": "chosen", "primary": "spared"}
    sticky = explained(folder, "--path", "/reports/x", "--tenant", "acme", "--sticky", "r1", *state)
    assert verdicts(sticky) == {"r1": "chosen", "r2": "other_replica", "primary": "spared"}
    written = explained(folder, "--tenant", "acme", "--pinned", *state)
    assert written["route"] == {"node": "primary", "role": "primary", "reason": "pinned"}
    assert explained(folder, "--tenant", "acme", "--method", "post", *state)["route"]["reason"] == "write"
    assert explained(folder, "--tenant", "acme", "--intent", "write", *state)["route"]["reason"] == "write"
    # A position on the old timeline after the fork is not on the new one.
    behind = explained(folder, "--tenant", "acme", "--token", "1:0/3150000", *state)
    assert behind["route"]["reason"] == "behind"
    assert verdicts(behind) == {"r1": "lagging", "r2": "behind", "primary": "chosen"}


def test_without_a_state_all_servers_are_assumed_current(folder: Path) -> None:
    found = explained(folder, "--tenant", "acme")
    assert (found["assumed"], found["route"]["reason"]) == (True, "balanced")
    assert "every server is taken to be up and current" in call("explain", "--tenant", "acme", cwd=folder).out


def test_a_token_is_checked_with_the_secret(folder: Path) -> None:
    from asgi_datasource.routing import Position
    from asgi_datasource.routing.consistency.token import Mark, Token, TokenSigner, scope_of

    mark = Mark(scope_of("acme", "orders"), Position(1, 0x3000148), 2**32 - 1)
    token = TokenSigner([PASSWORD], ttl_s=30).sign(Token((mark,)))
    urls = {f"ORDERS_{name}_URL": f"postgresql://{name}/orders" for name in ("PRIMARY", "R1", "R2")}
    (folder / "urls.env").write_text("\n".join(f"{name}={url}" for name, url in urls.items()))
    token_plan = explained(folder, "--tenant", "acme", "--token", token, "--env-file", "urls.env")["token"]
    assert token_plan["why"].startswith("it is of another tenant or datasource, or older than")
    token_plan = explained(folder, "--tenant", "acme", "--token", "x" + token, "--env-file", "urls.env")["token"]
    assert token_plan["why"] == "none of the secrets has signed it: it is ignored"
    done = call("explain", "--tenant", "acme", "--token", token, cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert "consistency.secret is not looked up. Add --environment or --env-file" in done.err


def test_tenants_of_a_table_without_defaults_are_unknown_offline(folder: Path) -> None:
    (folder / "datasource.yaml").write_text(CONFIG + "tenants_from: {datasource: orders, query: select 1 as name}\n")
    done = call("explain", "--tenant", "globex", cwd=folder)
    assert done.code == 1
    assert "The tenants of tenants_from are in a table, which is read with --environment only." in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--state", "nowhere.json"], "nowhere.json cannot be read: No such file or directory"),
        (["--state", "datasource.yaml"], "datasource.yaml is not JSON"),
        (["--state", "other.json"], "the state names a server 'r9' of 'orders'"),
        (["--state", "wrong.json"], "wrong.json is no state of servers (schemas/state/v1.json):"),
        (["--sticky", "r9"], "'orders' has no replica 'r9'; it has r1, r2"),
        (["--header", "X-Tenant"], "'X-Tenant' is no header. Write it as NAME:VALUE."),
    ],
)
def test_unusable_input_is_reported(arguments: list[str], says: str, folder: Path) -> None:
    (folder / "other.json").write_text('{"version": 1, "datasources": {"orders": {"servers": {"r9": {}}}}}')
    (folder / "wrong.json").write_text('{"version": 2}')
    done = call("explain", "--tenant", "acme", *arguments, cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


WRONG = [
    ({"version": 2, "datasources": {}}, "version: "),
    ({"version": 1}, "datasources: Field required"),
    ({"version": 1, "datasources": {}, "servers": {}}, "servers: Extra inputs are not permitted"),
    ({"version": 1, "datasources": {"o": {"servers": {"r1": {"lag_s": -1}}}}}, "datasources.o.servers.r1.lag_s: "),
    ({"version": 1, "datasources": {"o": {"servers": {"r1": {"lag_s": "1"}}}}}, "datasources.o.servers.r1.lag_s: "),
    ({"version": 1, "datasources": {"o": {"servers": {"r1": {"lsn": "3000148"}}}}}, "datasources.o.servers.r1.lsn: "),
    ({"version": 1, "datasources": {"o": {"servers": {"r1": {"breaker": "shut"}}}}}, "servers.r1.breaker: "),
    ({"version": 1, "datasources": {"o": {"forks": [{"timeline": 2}]}}}, "datasources.o.forks.0.lsn: Field required"),
]


@pytest.mark.parametrize(("document", "says"), WRONG)
def test_a_state_is_validated_against_its_schema(document: dict[str, Any], says: str) -> None:
    validator = Draft202012Validator(json.loads((ROOT / "schemas" / "state" / "v1.json").read_text()))
    assert not validator.is_valid(document)
    with pytest.raises(ConfigError) as caught:
        read_state(document)
    assert says in str(caught.value)


def test_the_state_of_the_tests_is_valid() -> None:
    Draft202012Validator(json.loads((ROOT / "schemas" / "state" / "v1.json").read_text())).validate(STATE)
    assert read_state(STATE).datasources["orders"].turn == 1
