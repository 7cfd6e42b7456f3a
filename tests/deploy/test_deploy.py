"""The dashboard and the alerts name only what is really emitted; the files that compose.yaml mounts are there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from asgi_datasource.testing import EmbeddedCluster
from tests.observability.emitted import Emitted, emit_everything
from tests.outbox.tables import install_tables
from tests.world import World

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
PROMETHEUS: Final = DEPLOY / "prometheus"

UNITS: Final = {"s": "seconds", "By": "bytes", "ms": "milliseconds"}
FROM_RESOURCE: Final = {"job", "instance"}
WORDS: Final = frozenset(
    {"sum", "max", "min", "by", "on", "and", "or", "unless", "rate", "increase", "topk", "histogram_quantile", "le"}
)

SELECTOR: Final = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}|([a-zA-Z_:][\w:]*)")
GROUPING: Final = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
MATCHER: Final = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"(?:[^"\\]|\\.)*"')


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    async with World.create(cluster) as made:
        await install_tables(made)
        yield made


def series_of(emitted: Mapping[str, Emitted]) -> dict[str, set[str]]:
    """The series that Prometheus makes of OTLP metrics, with their labels.

    Source: OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility".
    """
    found: dict[str, set[str]] = {}
    for name, metric in emitted.items():
        base = re.sub(r"\W", "_", name)
        if metric.unit in UNITS and not base.endswith(UNITS[metric.unit]):
            base += f"_{UNITS[metric.unit]}"
        labels = {re.sub(r"\W", "_", attribute) for attribute in metric.attributes} | FROM_RESOURCE
        if metric.kind == "histogram":
            found |= {f"{base}_bucket": labels | {"le"}, f"{base}_count": labels, f"{base}_sum": labels}
        else:
            found[f"{base}_total" if metric.kind == "counter" else base] = labels
    return found


def check_query(query: str, series: Mapping[str, set[str]]) -> set[str]:
    """Check each metric and label of a query in PromQL; returns the metrics."""
    without_strings = re.sub(r"\[[^\]]*\]", "", query)
    groupings = {label.strip() for found in GROUPING.findall(without_strings) for label in found.split(",")}
    rest = GROUPING.sub(" ", without_strings)
    metrics: set[str] = set()
    labels: set[str] = set()
    for name, matchers, bare in SELECTOR.findall(rest):
        used = name or bare
        if used in WORDS or re.fullmatch(r"[\d.e]+", used):
            continue
        assert used in series, f"{used}: not emitted; in {query}"
        metrics.add(used)
        matched = {match.group(1) for match in MATCHER.finditer(matchers)}
        assert matched <= series[used], f"{used}: no label {matched - series[used]}; in {query}"
        labels |= series[used]
    assert groupings <= labels, f"no label {groupings - labels}; in {query}"
    return metrics


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/asgi-datasource.json").read_text(encoding="utf-8"))
    return found


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


async def test_the_dashboard_and_the_alerts_name_what_is_emitted(
    world: World, metric_reader: InMemoryMetricReader
) -> None:
    series = series_of(await emit_everything(world, metric_reader))
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    used: set[str] = set()
    for panel in panels:
        for target in panel["targets"]:
            metrics = check_query(target["expr"], series)
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= set().union(*(series[name] for name in metrics)), panel["title"]
            used |= metrics
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert inner is not None
            [metric] = check_query(inner[1], series)
            assert inner[2] in series[metric]
    series |= {rule["record"]: {"job", "asgi_datasource_datasource"} for rule in rules() if "record" in rule}
    for rule in rules():
        metrics = check_query(rule["expr"], series)
        shown = set(re.findall(r"\$labels\.(\w+)", str(rule.get("annotations", ""))))
        assert shown <= set().union(*(series[name] for name in metrics)), rule
        used |= metrics
    for name in ("messaging_client_sent_messages_total", "asgi_datasource_replica_lag_seconds"):
        assert name in used
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {"DatasourceErrorBudgetBurnsFast", "DatasourceReplicaLags", "DatasourcePoolSaturated"} <= alerts
    assert "OutboxIsNotDelivered" in alerts


def test_a_name_that_is_not_emitted_is_found() -> None:
    series = {"up_total": {"job"}}
    assert check_query('sum by (job) (rate(up_total{job=~"a|b"}[5m])) > 0', series) == {"up_total"}
    for wrong in ("rate(up[5m])", 'up_total{node="1"}', "sum by (node) (up_total)"):
        with pytest.raises(AssertionError):
            check_query(wrong, series)


def test_promtool_accepts_the_rules_and_their_tests() -> None:
    document = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text(encoding="utf-8"))
    tested = {test["alertname"] for part in document["tests"] for test in part["alert_rule_test"]}
    assert tested <= {rule.get("alert") for rule in rules()}
    promtool = shutil.which("promtool")
    if promtool is None:
        # Debian: `apt-get install prometheus`. The names are tested without it.
        return
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        ran = subprocess.run([promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_compose_is_valid_and_its_files_are_there() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(schema).validate(document)
    services = document["services"]
    assert set(services) == {"desk", "jaeger", "prometheus", "grafana"}
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            assert (DEPLOY / volume.partition(":")[0]).exists(), (name, volume)
        assert set(service.get("depends_on", ())) <= set(services)
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
        if "image" in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]
    environment = services["desk"]["environment"]
    for address in environment.values():
        assert re.fullmatch(r"http://(\w+):\d+.*", address)[1] in services
    provisioning = DEPLOY / "grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/datasources.yaml").read_text(encoding="utf-8"))
    assert {re.fullmatch(r"http://(\w+):\d+", one["url"])[1] for one in sources["datasources"]} <= set(services)
    [provider] = yaml.safe_load((provisioning / "dashboards/dashboards.yaml").read_text(encoding="utf-8"))["providers"]
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
    [rule_file] = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text(encoding="utf-8"))["rule_files"]
    assert f"./prometheus/{rule_file}:/etc/prometheus/{rule_file}:ro" in services["prometheus"]["volumes"]
    assert "--web.enable-otlp-receiver" in services["prometheus"]["command"]
