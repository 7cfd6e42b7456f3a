"""The models: their values, that they are frozen, and that every key is documented."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from asgi_datasource.config import Config, DatabaseUrl, ResolverConfig, TenantConfig, load
from asgi_datasource.config.durations import format_duration, parse_duration, suggest_duration
from asgi_datasource.config.keys import SectionInfo, sections
from asgi_datasource.config.structure import check_structure
from asgi_datasource.errors import DataErrorKind
from tests.config.documents import full, full_with, put, small

KEYS = [(place, key) for place in sections().values() for key in place.fields]


def test_every_section_of_the_document_is_known_by_its_path() -> None:
    assert list(sections()) == [
        (),
        ("datasources", "*"),
        ("datasources", "*", "primary"),
        ("datasources", "*", "admin"),
        ("datasources", "*", "replicas", "*"),
        ("datasources", "*", "pool"),
        ("datasources", "*", "routing"),
        ("datasources", "*", "audit"),
        ("tenancy",),
        ("tenancy", "resolve", "*"),
        ("tenancy", "resolve", "*", "jwt_claim"),
        ("tenancy", "exempt"),
        ("tenants", "*"),
        ("tenants", "*", "limits"),
        ("tenants", "*", "datasources", "*"),
        ("tenants_from",),
        ("tenants_from", "defaults"),
        ("tenants_from", "defaults", "limits"),
        ("provisioning",),
        ("migrate",),
        ("migrate", "stages", "*"),
        ("routes", "*"),
        ("transactions",),
        ("consistency",),
        ("budget",),
        ("outbox",),
        ("outbox", "publisher"),
        ("outbox", "publisher", "nats"),
        ("outbox", "publisher", "kafka"),
        ("outbox", "publisher", "rabbitmq"),
        ("outbox", "publisher", "redis"),
        ("outbox", "publisher", "webhook"),
        ("health",),
        ("reload",),
        ("telemetry",),
        ("errors",),
    ]


@pytest.mark.parametrize(("place", "key"), KEYS, ids=lambda part: part if isinstance(part, str) else part.title)
def test_every_key_has_title_description_and_valid_examples(place: SectionInfo, key: str) -> None:
    info = place.fields[key]
    assert info.title
    assert info.description
    assert info.description.endswith(".")
    assert info.examples
    assert place.description
    for example in info.examples:
        if isinstance(example, str) and "${" in example:
            continue  # the value of the reference is unknown
        document = put(full_with(place.path), place.path, key, example)
        if place.path == ("tenancy", "resolve", "*"):
            document["tenancy"]["resolve"] = [
                {"header": "X-Tenant", key: example} if key == "paths" else {key: example}
            ]
        _, problems = check_structure(without_references(document))
        assert problems == []


def without_references(value: Any) -> Any:
    if isinstance(value, dict):
        if list(value) == ["file"]:
            return "postgresql://app@db/orders"
        return {key: without_references(child) for key, child in value.items()}
    if isinstance(value, list):
        return [without_references(child) for child in value]
    return "postgresql://app@db/orders" if isinstance(value, str) and "${" in value else value


def test_defaults() -> None:
    config = load({"version": 1, "datasources": {"orders": {"primary": {"url": "postgresql://db/orders"}}}})
    pool = config.datasources["orders"].pool
    assert (pool.min_size, pool.max_size, pool.max_waiting) == (1, 10, 100)
    assert (pool.acquire_timeout_s, pool.connect_timeout_s) == (5.0, 3.0)
    assert (pool.max_lifetime_s, pool.max_idle_s, pool.tcp_user_timeout_s) == (3600.0, 600.0, 10.0)
    assert (config.tenancy.missing, config.tenancy.unknown, config.tenancy.default) == (400, 404, None)
    assert config.tenancy.pattern == "^[a-z0-9][a-z0-9_-]{0,62}$"
    assert (config.transactions.default, config.transactions.deadline_s) == ("request", 30.0)
    assert config.transactions.rollback_on == ("4xx", "5xx")
    assert config.telemetry.metrics is False
    assert config.errors.debug is False


def test_the_deadline_can_be_turned_off() -> None:
    assert load(small(transactions={"deadline": None})).transactions.deadline_s is None


def test_values_are_converted_to_their_types() -> None:
    config = load(
        small(
            datasources={
                "orders": {
                    "primary": {"url": "postgresql://app@db/orders"},
                    "pool": {"max_size": 20.0, "acquire_timeout": "250ms"},
                    "search_path": ["extensions"],
                }
            },
            tenancy={"resolve": [{"header": "X-Tenant"}, {"path_prefix": "/t"}]},
            routes=[{"match": "GET /reports/**", "timeout": "2m", "commit_on": [409, "5xx"]}],
            errors={"status": {"conflict": 503}},
        )
    )
    orders = config.datasources["orders"]
    assert orders.primary.url.get_secret_value() == "postgresql://app@db/orders"
    assert type(orders.pool.max_size) is int
    assert orders.pool.acquire_timeout_s == 0.25
    assert orders.search_path == ("extensions",)
    assert [(way.kind, way.argument) for way in config.tenancy.resolve] == [
        ("header", "X-Tenant"),
        ("path_prefix", "/t"),
    ]
    assert config.tenants["acme"] == TenantConfig(datasource="orders", schema="acme")
    assert config.routes[0].timeout_s == 120.0
    assert config.routes[0].commit_on == (409, "5xx")
    assert config.errors.status == {DataErrorKind.CONFLICT: 503}


@pytest.mark.parametrize("key", ["subdomain_of", "callable"])
def test_a_resolver_knows_its_kind(key: str) -> None:
    value = {"subdomain_of": "app.example.com", "callable": "shop.tenants:resolve"}[key]
    resolver = ResolverConfig.model_validate({key: value})
    assert (resolver.kind, resolver.argument) == (key, value)


@pytest.mark.parametrize("place", sections().values(), ids=lambda place: place.title)
def test_a_config_cannot_be_changed(place: SectionInfo) -> None:
    found: Any = load(without_references(full_with(place.path) if place.path[2:] else full()))
    for index, step in enumerate(place.path):
        if step == "*":
            entries = list(found) if isinstance(found, tuple) else list(found.values())
            following = place.path[index + 1 : index + 2]
            found = next(entry for entry in entries if not following or getattr(entry, following[0]) is not None)
        else:
            found = getattr(found, step)
    for name in [*type(found).__pydantic_fields__, "another"]:
        with pytest.raises((ValidationError, AttributeError, TypeError)):
            setattr(found, name, None)


def test_a_dump_is_a_document_again() -> None:
    config = load(full())
    document = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert document["datasources"]["orders"].pop("primary") == {"url": "postgresql://db/orders"}
    again = full()
    again["datasources"]["orders"].pop("primary")
    again["datasources"]["orders"]["admin"] = {"url": "postgresql://db/orders"}
    again["datasources"]["orders"]["replicas"]["r1"]["url"] = "postgresql://r1/orders"
    document["tenants"] = {
        "acme": {"datasource": "orders", "schema": "acme", "limits": {}, "datasources": {"analytics": {}}}
    }
    assert document == again


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("1ms", 0.001), ("250ms", 0.25), ("3s", 3.0), ("90s", 90.0), ("10m", 600.0), ("1h", 3600.0), ("99h", 356400.0)],
)
def test_durations(written: str, seconds: float) -> None:
    assert parse_duration(written) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    "written", ["", "3", "0s", "03s", "-3s", "1.5s", "3 s", "3S", "3sec", "100h", "1000000s", "3s\n"]
)
def test_invalid_durations_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "meant", "in_whole_seconds"),
    [
        ("3", "3s", "3s"),
        ("3sec", "3s", "3s"),
        (" 3 Seconds", "3s", "3s"),
        ("1.5s", "1500ms", None),
        ("1,5 min", "90s", "90s"),
        ("250 ms", "250ms", None),
        ("1 hour", "1h", "1h"),
        ("2d", "48h", "48h"),
        ("120 s", "2m", "2m"),
        ("0.0001s", None, None),
        ("0", None, None),
        ("3 weeks", None, None),
        ("soon", None, None),
        ("100d", None, None),
    ],
)
def test_a_similar_duration_is_suggested(written: str, meant: str | None, in_whole_seconds: str | None) -> None:
    assert suggest_duration(written) == meant
    assert suggest_duration(written, whole_seconds=True) == in_whole_seconds


def test_models_can_be_validated_on_their_own() -> None:
    assert issubclass(Config, BaseModel)
    config = Config.model_validate(small())
    assert isinstance(config.datasources["orders"].primary.url, DatabaseUrl)
    assert load(config) is config
