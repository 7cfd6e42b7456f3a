"""Documents of several files: merging, positions, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asgi_datasource import DataSourceMiddleware, compile
from asgi_datasource.config import Code, Config, ConfigFile, Findings, InvalidConfig, Severity, examine, load

MAIN = """\
version: 1
include: [tenants/*.yaml, rules.toml]
datasources:
  orders: {primary: {url: host=db}, pool: {min_size: 2, max_size: 20}}
tenancy: {resolve: [{header: X-Tenant}]}
routes:
  - {match: "GET /first", intent: read}
transactions: {deadline: 10s}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tenants").mkdir()
    write("datasource.yaml", MAIN)
    write("tenants/acme.yaml", "tenants:\n  acme: {datasource: orders, schema: acme}\n")
    write("tenants/globex.yaml", "tenants:\n  globex: {datasource: orders, schema: globex}\n")
    write("rules.toml", '[[routes]]\nmatch = "GET /second"\nintent = "read"\n')
    return tmp_path


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


def listed(findings: Findings) -> list[tuple[str, str, str]]:
    """Code, position and key of each problem."""
    return [(problem.code.value, str(problem.position), problem.key) for problem in findings.diagnostics]


def merged(*overlays: str) -> Config:
    return load(ConfigFile("datasource.yaml", overlays))


@pytest.mark.usefixtures("folder")
def test_included_files_are_part_of_the_document() -> None:
    config = load("datasource.yaml")
    assert list(config.tenants) == ["acme", "globex"]
    assert [rule.match for rule in config.routes] == ["GET /first", "GET /second"]


def test_paths_start_at_the_including_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    write("deep/more.yaml", 'include: ["er/*.json"]\ntelemetry: {spans: false}\n')
    write("deep/er/last.json", json.dumps({"tenants": {"initech": {"datasource": "orders", "schema": "initech"}}}))
    write("datasource.yaml", MAIN.replace("rules.toml", "deep/more.yaml"))
    monkeypatch.chdir("/")
    config = load(folder / "datasource.yaml")
    assert list(config.tenants) == ["acme", "globex", "initech"]
    assert config.telemetry.spans is False


@pytest.mark.usefixtures("folder")
def test_a_problem_has_its_position_in_its_own_file() -> None:
    write("tenants/globex.yaml", "tenants:\n  globex: {datasource: order, shema: globex}\n")
    write("rules.toml", '[[routes]]\nmatch = "GET /first"\n\n[[routes]]\nmatch = "GET /x"\nintent = "raed"\n')
    assert listed(examine("datasource.yaml")) == [
        ("ADS040", "tenants/globex.yaml:2:24", "tenants.globex.datasource"),
        ("ADS020", "tenants/globex.yaml:2:31", "tenants.globex.shema"),
        ("ADS048", "rules.toml:2:9", "routes[1].match"),
        ("ADS023", "rules.toml:6:10", "routes[2].intent"),
    ]
    [unreachable] = [each for each in examine("datasource.yaml").diagnostics if each.code is Code.UNREACHABLE]
    assert [str(position) for position in unreachable.related_positions] == ["datasource.yaml:7:6"]


@pytest.mark.usefixtures("folder")
def test_a_key_in_two_files_is_an_error_in_the_second() -> None:
    write("tenants/globex.yaml", "tenants:\n  acme: {datasource: orders}\ntransactions:\n  deadline: 3s\nversion: 1\n")
    assert listed(examine("datasource.yaml")) == [
        ("ADS009", "tenants/globex.yaml:2:3", "tenants.acme"),
        ("ADS009", "tenants/globex.yaml:4:3", "transactions.deadline"),
    ]


@pytest.mark.parametrize(
    ("main", "others", "code", "says", "severity"),
    [
        ("include: [nope.yaml]\n", {}, Code.INCLUDE, "there is no such file", Severity.ERROR),
        ("include: [nope/*.yaml]\n", {}, Code.INCLUDE, "no file matches", Severity.WARNING),
        ("include: [datasource.yaml]\n", {}, Code.INCLUDE, "includes itself", Severity.ERROR),
        ("include: [a.yaml]\n", {"a.yaml": "include: [b.yaml]\n", "b.yaml": "include: [./a.yaml]\n"}, Code.INCLUDE,
         "'a.yaml' includes itself in the end", Severity.ERROR),
        ("include: [a.yaml, ./a.yaml]\n", {"a.yaml": "telemetry: {}\n"}, Code.INCLUDE, "part of the document already",
         Severity.ERROR),
        ("include: [a.yaml]\n", {"a.yaml": "- x\n"}, Code.INCLUDE, "a part of a document is a mapping", Severity.ERROR),
        ("include: [a.yaml]\n", {"a.yaml": "a: [\n"}, Code.SYNTAX, "not YAML", Severity.ERROR),
        ("include: [a.txt]\n", {"a.txt": ""}, Code.INCLUDE, "does not tell its format", Severity.ERROR),
        ("include: [1]\n", {}, Code.WRONG_TYPE, "expected the path of a file", Severity.ERROR),
        ("include: a.yaml\n", {}, Code.WRONG_TYPE, "expected a list", Severity.ERROR),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("folder")
def test_includes_that_are_refused(
    main: str, others: dict[str, str], code: Code, says: str, severity: Severity
) -> None:
    write(
        "datasource.yaml",
        f"version: 1\ndatasources: {{orders: {{primary: {{url: host=db}}}}}}\n{main}tenancy: {{default: orders}}\n",
    )
    for name, text in others.items():
        write(name, text)
    [problem] = examine("datasource.yaml").diagnostics
    assert (problem.code, problem.severity) == (code, severity)
    assert says in problem.message
    assert problem.position is not None
    assert problem.position.line is not None


@pytest.mark.usefixtures("folder")
def test_a_link_to_itself_is_not_a_file() -> None:
    Path("tenants/loop.yaml").symlink_to("loop.yaml")
    [problem] = examine("datasource.yaml").errors
    assert problem.code is Code.INCLUDE
    assert "the file cannot be read" in problem.message


def test_only_files_can_include() -> None:
    document = {"version": 1, "datasources": {"a": {"primary": {"url": "host=db"}}}, "tenancy": {"default": "a"}}
    [problem] = examine({**document, "include": ["x.yaml"]}).errors
    assert (problem.code, problem.key) == (Code.INCLUDE, "include")


@pytest.mark.usefixtures("folder")
def test_an_overlay_is_a_merge_patch() -> None:
    write("prod.yaml", "datasources: {orders: {pool: {max_size: 50}}}\nroutes: [{match: /only}]\ntransactions: null\n")
    config = merged("prod.yaml")
    pool = config.datasources["orders"].pool
    assert (pool.min_size, pool.max_size) == (2, 50)
    assert [rule.match for rule in config.routes] == ["/only"]
    assert config.transactions.deadline_s == 30
    assert list(config.tenants) == ["acme", "globex"]


@pytest.mark.usefixtures("folder")
def test_an_overlay_keeps_what_it_does_not_name_of_a_tenant_whatever_that_is_called() -> None:
    write(
        "tenants/acme.yaml", "tenants:\n  version: {datasource: orders, schema: v}\n  include: {datasource: orders}\n"
    )
    write(
        "prod.yaml",
        "version: 1\ntenants:\n  version: {datasource: orders, state: suspended}\n"
        "  include: {datasource: orders, schema: i}\n",
    )
    tenants = merged("prod.yaml").tenants
    assert (tenants["version"].schema_name, tenants["version"].state) == ("v", "suspended")
    assert tenants["include"].schema_name == "i"


@pytest.mark.usefixtures("folder")
def test_files_of_different_versions_are_not_one_document() -> None:
    write("tenants/globex.yaml", "version: 2\n")
    assert listed(examine("datasource.yaml")) == [("ADS009", "tenants/globex.yaml:1:1", "version")]


@pytest.mark.usefixtures("folder")
def test_null_is_kept_as_a_value_if_it_is_allowed() -> None:
    write("prod.yaml", "transactions: {deadline: null}\ntenants: {acme: null}\n")
    config = merged("prod.yaml")
    assert config.transactions.deadline_s is None
    assert list(config.tenants) == ["globex"]


@pytest.mark.usefixtures("folder")
def test_overlays_apply_in_order_and_may_include() -> None:
    write("prod.yaml", "include: [prod-rules.yaml]\ntransactions: {deadline: 20s}\n")
    write("prod-rules.yaml", "routes: [{match: /prod}]\n")
    write("eu.toml", 'transactions = {deadline = "25s"}\n')
    config = merged("prod.yaml", "eu.toml")
    assert config.transactions.deadline_s == 25
    assert [rule.match for rule in config.routes] == ["/prod"]


@pytest.mark.usefixtures("folder")
def test_positions_belong_to_the_file_with_the_value() -> None:
    write("prod.yaml", "datasources:\n  orders:\n    pool: {min_size: 30}\nroutes:\n  - {match: nonsense}\n")
    findings = examine(ConfigFile("datasource.yaml", ("prod.yaml",)))
    assert listed(findings) == [
        ("ADS042", "prod.yaml:3:22", "datasources.orders.pool.min_size"),
        ("ADS023", "prod.yaml:5:13", "routes[0].match"),
    ]
    assert [str(position) for position in findings.diagnostics[0].related_positions] == ["datasource.yaml:4:57"]


@pytest.mark.usefixtures("folder")
def test_what_is_wrong_in_routes_that_are_no_list_has_its_position() -> None:
    routes = ' {first: {match: "${NOT_SET}"}}'
    write("datasource.yaml", MAIN.replace('\n  - {match: "GET /first", intent: read}', routes))
    write("rules.toml", "")
    found = listed(examine("datasource.yaml"))
    assert [problem[1:] for problem in found] == [
        ("datasource.yaml:6:9", "routes"),
        ("datasource.yaml:6:25", "routes.first.match"),
    ]


@pytest.mark.usefixtures("folder")
def test_a_missing_key_has_the_position_of_its_section() -> None:
    write("prod.yaml", "datasources: {orders: {primary: {url: null}}}\n")
    [problem] = examine(ConfigFile("datasource.yaml", ("prod.yaml",))).errors
    assert problem.code is Code.MISSING_KEY
    assert str(problem.position).startswith(("prod.yaml:1:", "datasource.yaml:4:"))


@pytest.mark.usefixtures("folder")
def test_a_missing_overlay_is_reported() -> None:
    with pytest.raises(InvalidConfig) as caught:
        merged("prod.yaml")
    assert [problem.code for problem in caught.value.diagnostics] == [Code.NOT_READABLE]


@pytest.mark.usefixtures("folder")
def test_a_secret_path_is_relative_to_the_file_with_the_reference() -> None:
    Path("secrets").mkdir()
    write("secrets/prod.yaml", "datasources: {orders: {primary: {url: {file: url}}}}\n")
    write("secrets/url", "host=prod\n")
    assert merged("secrets/prod.yaml").datasources["orders"].primary.url.get_secret_value() == "host=prod"


@pytest.mark.usefixtures("folder")
def test_a_variable_replaced_by_an_overlay_need_not_be_set() -> None:
    write("datasource.yaml", MAIN.replace("url: host=db", 'url: "${DEV_URL}"'))
    write("prod.yaml", "datasources: {orders: {primary: {url: host=prod}}}\n")
    config = load(ConfigFile("datasource.yaml", ("prod.yaml",)), environ={})
    assert config.datasources["orders"].primary.url.get_secret_value() == "host=prod"


@pytest.mark.usefixtures("folder")
def test_each_file_ignores_its_own_warnings() -> None:
    write("tenants/acme.yaml", "tenants:\n  acme: {datasource: orders}\n")
    write("tenants/globex.yaml", "tenants:\n  globex: {datasource: orders}  # ads: ignore[ADS041] filtered\n")
    findings = examine("datasource.yaml")
    assert findings.diagnostics == ()
    assert [ignored.reason for ignored in findings.suppressed] == ["filtered"]


@pytest.mark.usefixtures("folder")
async def test_a_registry_keeps_its_overlays_when_it_is_reloaded() -> None:
    write("prod.yaml", "tenants: {acme: {schema: acme_prod}}\n")
    source = ConfigFile("datasource.yaml", ("prod.yaml",))
    registry = compile(source)
    assert DataSourceMiddleware(bare, config=source).registry.compiled.policy == registry.compiled.policy
    assert registry.tenant("acme").settings == (("search_path", '"acme_prod"'),)
    write("prod.yaml", "tenants: {acme: {schema: acme_next}}\n")
    await registry.reload()
    assert registry.tenant("acme").settings == (("search_path", '"acme_next"'),)
    await registry.close()


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """An application without responses."""


def test_many_files_are_merged_as_one(tmp_path: Path) -> None:
    parts: dict[str, Any] = {}
    for number in range(200):
        parts[f"t{number}"] = {"datasource": "orders", "schema": f"t{number}"}
        (tmp_path / f"t{number}.json").write_text(json.dumps({"tenants": {f"t{number}": parts[f"t{number}"]}}))
    main: dict[str, Any] = {
        "version": 1,
        "datasources": {"orders": {"primary": {"url": "host=db"}}},
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
    }
    path = tmp_path / "datasource.yaml"
    path.write_text(json.dumps({**main, "include": ["t*.json"]}))
    assert load(path).tenants == load({**main, "tenants": parts}).tenants
    (tmp_path / "t77.json").write_text(json.dumps({"tenants": {"t77": {"datasource": "order"}}}))
    [problem] = examine(path).errors
    assert problem.position is not None
    assert problem.position.file.endswith("t77.json")


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_datasource.config.layers.MAX_FILES", 3)
    for number in range(5):
        (tmp_path / f"p{number}.yaml").write_text("telemetry: {}\n")
    path = tmp_path / "datasource.yaml"
    path.write_text("version: 1\ninclude: ['p*.yaml']\n")
    assert Code.TOO_LARGE in {problem.code for problem in examine(path).errors}


@pytest.mark.usefixtures("folder")
def test_every_definition_of_a_repeated_file_is_reported() -> None:
    names = [f"tenant-{number}" for number in range(2_000)]
    tenants = "tenants:\n" + "".join(f"  {name}: {{datasource: orders, schema: {name}}}\n" for name in names)
    write("tenants/acme.yaml", tenants)
    write("tenants/globex.yaml", "# again\n" + tenants)
    twice = [problem for problem in examine("datasource.yaml").diagnostics if problem.code is Code.DEFINED_TWICE]
    assert [(problem.key, str(problem.position)) for problem in twice] == [
        (f"tenants.{name}", f"tenants/globex.yaml:{line}:3") for line, name in enumerate(names, 3)
    ]
