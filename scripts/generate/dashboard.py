"""The Grafana dashboard of `deploy/`, from a table of panels.

The metrics have the names that Prometheus gives to OTLP metrics: `.` becomes `_`, the unit follows (`_seconds`), and
counters end with `_total`.
"""

from __future__ import annotations

from typing import Any, Final

Target = tuple[str, str]
"""A query in PromQL, and the legend of its series."""

_POOL: Final = "db_client_connection_pool_name"
_JOB: Final = 'job=~"$job"'
_OF: Final = f'{_JOB}, asgi_datasource_datasource=~"$datasource"'
_USED: Final = 'db_client_connection_state="used"'
_OF_POOL: Final = f'{_JOB}, {_POOL}=~"($datasource)[.].*"'
_RATE: Final = "[$__rate_interval]"

_DURATION: Final = "db_client_operation_duration_seconds"
_OUTBOX: Final = "asgi_datasource_outbox"


def _quantiles(metric: str, by: str, of: str) -> list[Target]:
    """The median and the 99th percentile of a histogram."""
    return [
        (f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{{of}}}{_RATE})))", f"{{{{{by}}}}} {name}")
        for q, name in ((0.5, "p50"), (0.99, "p99"))
    ]


def _rate(metric: str, by: str, of: str = _OF) -> str:
    return f"sum by ({by}) (rate({metric}{{{of}}}{_RATE}))"


ROWS: Final[list[tuple[str, list[tuple[str, str, str, list[Target]]]]]] = [
    (
        "Is it well?",
        [
            (
                "Operations that failed, by cause",
                "ops",
                "SQLSTATE, deadline, client_disconnected, or the kind of the error",
                [(_rate(f"{_DURATION}_count", "error_type", f'{_OF}, error_type!=""'), "{{error_type}}")],
            ),
            (
                "Transactions, by outcome",
                "ops",
                "unknown: the connection was lost during COMMIT, and the outcome could not be looked up",
                [
                    (
                        _rate("asgi_datasource_transaction_outcomes_total", "asgi_datasource_transaction_outcome"),
                        "{{asgi_datasource_transaction_outcome}}",
                    )
                ],
            ),
            (
                "Servers that are up",
                "none",
                "Of all processes, the lowest: 0 where one process holds the server for down",
                [
                    (
                        "min by (asgi_datasource_datasource, asgi_datasource_node)"
                        f" (asgi_datasource_servers_up{{{_OF}}})",
                        "{{asgi_datasource_datasource}}.{{asgi_datasource_node}}",
                    )
                ],
            ),
        ],
    ),
    (
        "Statements",
        [
            ("Duration, by server", "s", "", _quantiles(_DURATION, "asgi_datasource_node", _OF)),
            (
                "Time spent, by statement",
                "percentunit",
                "Seconds a second: the ten statements that take most of the servers' time",
                [(f"topk(10, {_rate(f'{_DURATION}_sum', 'db_query_summary')})", "{{db_query_summary}}")],
            ),
            (
                "Rows of a query",
                "none",
                "The 99th percentile: a statement without LIMIT shows here first",
                [
                    (
                        "topk(10, histogram_quantile(0.99, sum by (le, db_query_summary)"
                        f" (rate(db_client_response_returned_rows_bucket{{{_OF}}}{_RATE}))))",
                        "{{db_query_summary}}",
                    )
                ],
            ),
        ],
    ),
    (
        "Routing",
        [
            (
                "Servers chosen, by reason",
                "ops",
                "docs/telemetry.md has the reasons; failover, unhealthy and lagging are the ones to look at",
                [
                    (
                        _rate("asgi_datasource_route_decisions_total", "asgi_datasource_node, asgi_datasource_reason"),
                        "{{asgi_datasource_node}} {{asgi_datasource_reason}}",
                    )
                ],
            ),
            (
                "Lag of the replicas",
                "s",
                "",
                [
                    (
                        "max by (asgi_datasource_datasource, asgi_datasource_node)"
                        f" (asgi_datasource_replica_lag_seconds{{{_OF}}})",
                        "{{asgi_datasource_datasource}}.{{asgi_datasource_node}}",
                    )
                ],
            ),
        ],
    ),
    (
        "Pools",
        [
            (
                "Connections in use, of the most",
                "percentunit",
                "",
                [
                    (
                        f"sum by ({_POOL}) (db_client_connection_count{{{_OF_POOL}, {_USED}}})"
                        f" / sum by ({_POOL}) (db_client_connection_max{{{_OF_POOL}}})",
                        f"{{{{{_POOL}}}}}",
                    )
                ],
            ),
            (
                "Requests that wait for a connection",
                "none",
                "",
                [
                    (
                        f"sum by ({_POOL}) (db_client_connection_pending_requests{{{_OF_POOL}}})",
                        f"{{{{{_POOL}}}}} waiting",
                    ),
                    (
                        _rate("db_client_connection_timeouts_total", _POOL, _OF_POOL),
                        f"{{{{{_POOL}}}}} refused a second",
                    ),
                ],
            ),
            (
                "Wait for a connection, and its use",
                "s",
                "The 99th percentile",
                [
                    _quantiles("db_client_connection_wait_time_seconds", _POOL, _OF_POOL)[1],
                    (
                        _quantiles("db_client_connection_use_time_seconds", _POOL, _OF_POOL)[1][0],
                        f"{{{{{_POOL}}}}} use",
                    ),
                ],
            ),
        ],
    ),
    (
        "Outbox",
        [
            (
                "Events that wait",
                "none",
                "Each relay reads these numbers of the whole outbox: the highest counts",
                [
                    (f"max by (asgi_datasource_datasource) ({_OUTBOX}_{name}{{{_OF}}})", name)
                    for name in ("backlog", "held", "dead")
                ],
            ),
            (
                "Age of the oldest event, and of the oldest snapshot",
                "s",
                "",
                [
                    (f"max by (asgi_datasource_datasource) ({_OUTBOX}_{name}_seconds{{{_OF}}})", name)
                    for name in ("oldest", "snapshot")
                ],
            ),
            (
                "Messages sent, by destination and failure",
                "ops",
                "",
                [
                    (
                        _rate(
                            "messaging_client_sent_messages_total",
                            "messaging_system, messaging_destination_name, error_type",
                            _JOB,
                        ),
                        "{{messaging_system}} {{messaging_destination_name}} {{error_type}}",
                    )
                ],
            ),
        ],
    ),
]
"""The rows with their panels: title, unit, description, queries."""

_WIDTH: Final = 24
_HEIGHT: Final = 8


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    at = 0
    for title, charts in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": at, "w": _WIDTH, "h": 1},
            }
        )
        width = _WIDTH // len(charts)
        for number, chart in enumerate(charts):
            place = {"x": number * width, "y": at + 1, "w": width, "h": _HEIGHT}
            panels.append(_panel(len(panels) + 1, place, *chart))
        at += 1 + _HEIGHT
    return {
        "uid": "asgi-datasource",
        "title": "asgi-datasource",
        "description": "PostgreSQL behind asgi-datasource: errors, statements, routing, pools, outbox",
        "tags": ["asgi-datasource", "postgresql"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"name": "prometheus", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("job", "Service", "label_values(db_client_connection_max, job)"),
                _variable(
                    "datasource",
                    "Datasource",
                    "label_values(asgi_datasource_servers_up{" + _JOB + "}, asgi_datasource_datasource)",
                ),
            ]
        },
        "panels": panels,
    }


_SOURCE: Final = {"type": "prometheus", "uid": "${prometheus}"}


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(
    number: int, place: dict[str, int], title: str, unit: str, description: str, targets: list[Target]
) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10, "showPoints": "never"}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(targets)
        ],
    }
