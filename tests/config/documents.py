"""Documents for the tests: small and full ones, and strategies for valid documents and for mistakes in them."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from asgi_datasource.config.keys import sections
from asgi_datasource.config.values import VALUES

PASSWORD = "hunter2-Tr0ub4dor"
"""Planted in all fields that may contain a password; no message, repr or dump may contain it."""

SECRET_FILES = {"primary.url": f"postgresql://app:{PASSWORD}@db/orders\n", "replica.url": "host=r1 dbname=orders"}


def small(**changes: Any) -> dict[str, Any]:
    """The smallest useful document, with some of its sections replaced."""
    return {
        "version": 1,
        "datasources": {"orders": {"primary": {"url": "postgresql://app@db/orders"}}},
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": {"acme": {"datasource": "orders", "schema": "acme"}},
        **changes,
    }


def full() -> dict[str, Any]:
    """A document with every section."""
    return {
        "version": 1,
        "datasources": {
            "orders": {
                "primary": {"url": "postgresql://app@db/orders"},
                "admin": {"url": "postgresql://admin@db/orders"},
                "replicas": {"r1": {"url": "postgresql://app@r1/orders"}},
                "pool": {},
                "audit": {},
                "routing": {},
            },
            "analytics": {"primary": {"url": "postgresql://analytics/orders"}},
        },
        "tenancy": {
            "resolve": [
                {"header": "X-Tenant"},
                {"jwt_claim": {"claim": "tenant", "algorithms": ["RS256"], "jwks": "/etc/jwks.json"}},
            ],
            "exempt": {},
        },
        "tenants": {"acme": {"datasource": "orders", "schema": "acme", "limits": {}, "datasources": {"analytics": {}}}},
        "tenants_from": {"datasource": "orders", "defaults": {"limits": {}}},
        "provisioning": {},
        "migrate": {"folder": "migrations", "stages": [{"name": "canary", "tenants": ["acme"]}]},
        "routes": [{"match": "GET /reports/**"}],
        "transactions": {},
        "consistency": {},
        "budget": {},
        "outbox": {"publisher": {"callable": "shop.events:publish"}},
        "health": {},
        "reload": {},
        "telemetry": {},
        "errors": {},
    }


def full_with(section: tuple[str, ...]) -> dict[str, Any]:
    """The same with this section in it: of the publishers of the outbox a document has one."""
    document = full()
    if section == ("outbox", "publisher"):
        document["outbox"]["publisher"] = {}
    elif section[:2] == ("outbox", "publisher"):
        required = {
            name: field.examples[0] for name, field in sections()[section].fields.items() if field.is_required()
        }
        document["outbox"]["publisher"] = {section[2]: required}
    return document


def put(document: dict[str, Any], section: tuple[str, ...], key: str, value: object) -> dict[str, Any]:
    """The document with a key put into a section; `*` in its path is the first name or entry there."""
    here: Any = document
    for index, step in enumerate(section):
        here = _first(here, section[index + 1 :]) if step == "*" else here[step]
    here[key] = value
    return document


def _first(here: Any, following: tuple[str, ...]) -> Any:
    """The first name or entry, or the first that has the key which follows."""
    entries = list(here.values()) if isinstance(here, dict) else here
    return next((entry for entry in entries if following[:1] and following[0] in entry), entries[0])


@dataclass(frozen=True)
class Referred:
    """A value for the environment; the document refers to it."""

    value: Any


@dataclass
class Written:
    """A document, and the environment in which it is valid."""

    document: dict[str, Any]
    environ: dict[str, str]


def _referable(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, values, values, values.map(Referred))


_letters = "abcdefghijklmnopqrstuvwxyz"
_names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,8}\Z")
_replica_names = _names.filter(lambda name: name != "primary")
_tenant_names = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P"), exclude_characters="*{}"), min_size=1, max_size=9
)
_identifiers = st.one_of(
    st.text(
        st.characters(codec="utf-8", categories=("L", "N", "S", "Zs"), exclude_characters="{}"), min_size=1, max_size=9
    ),
    st.sampled_from(["acme", "a$b", "$user", "ä" * 63, "a" * 63, '"quoted"']),
)
_tenant_identifiers = st.one_of(_identifiers, st.sampled_from(["{tenant}", "t_{tenant}", "{tenant}{tenant}"]))
_settings = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,4}(\.[A-Za-z_][A-Za-z0-9_]{0,4}){1,2}\Z")
_setting_values = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="{}"), max_size=9
)
_durations = st.sampled_from(["1ms", "250ms", "999999999ms", "3s", "999999s", "10m", "9999m", "1h", "99h"])
_whole_seconds = st.sampled_from(["1s", "30s", "10m", "2h"])
_paths = st.sampled_from(["/docs", "/a/b", "/a/", "/ä/b-c", "/%20"])
_statuses = st.integers(200, 599)
_outcomes = st.one_of(st.sampled_from(["2xx", "3xx", "4xx", "5xx"]), _statuses, _statuses.map(float))
_urls = st.sampled_from(
    [
        "postgresql://app@db/orders",
        "postgres://db",
        "postgresql://a:1,b:2/orders?target_session_attrs=any",
        "host=db dbname=orders",
        "host = 'a b'",
        "postgresql://app:${'pw@db/o".replace("${", "$${"),
        "postgresql://",
        "postgresql://app@db/{tenant}",
    ]
)


def _integers(minimum: int, maximum: int) -> st.SearchStrategy[Any]:
    whole = st.integers(minimum, maximum)
    return _referable(st.one_of(whole, whole, whole.map(float)))


@st.composite
def _section(
    draw: st.DrawFn, required: dict[str, st.SearchStrategy[Any]], optional: dict[str, st.SearchStrategy[Any]]
) -> dict[str, Any]:
    """A mapping with some of its keys; few, so that documents are generated quickly."""
    keys = draw(st.lists(st.sampled_from(sorted(optional)), unique=True, max_size=4)) if optional else []
    return {name: draw(values) for name, values in (*required.items(), *((key, optional[key]) for key in keys))}


_flags = _referable(st.booleans())
_endpoint = _section(
    {
        "url": st.one_of(
            _referable(_urls),
            st.sampled_from([*({"file": name} for name in SECRET_FILES), {"command": ["vault", "read", "db"]}]),
        )
    },
    {},
)
_pool = _section(
    {},
    {
        "min_size": _integers(0, 10_000),
        "max_size": _integers(1, 10_000),
        "acquire_timeout": _referable(_durations),
        "max_waiting": _integers(0, 1_000_000),
        "connect_timeout": _referable(_whole_seconds),
        "reconnect_pause": _referable(_durations),
        "max_lifetime": _durations,
        "max_idle": _durations,
        "tcp_user_timeout": _durations,
        "keepalives_idle": _whole_seconds,
        "keepalives_interval": _whole_seconds,
        "keepalives_count": _integers(1, 127),
        "fair": _flags,
        "multiplex": _referable(st.sampled_from(["auto", "off"])),
        "max_depth": _integers(1, 64),
        "pooler": _referable(st.sampled_from(["none", "transaction"])),
        "reset": _referable(st.sampled_from(["on_tenant_change", "always", "never"])),
        "max_open_pools": _integers(1, 10_000),
        "close_idle_after": _referable(_durations),
    },
)
_zones = st.sampled_from(["eu-west-1a", "rack_7", "10.0:b"])
_replica = _section(
    {"url": _referable(_urls)}, {"weight": _integers(1, 100), "zone": _referable(_zones), "drain": _flags}
)
_datasource = _section(
    {"primary": _endpoint},
    {
        "admin": _endpoint,
        "replicas": st.dictionaries(_replica_names, _replica, max_size=2),
        "pool": _pool,
        "routing": _section(
            {},
            {
                "balance": _referable(st.sampled_from(["round_robin", "weighted", "least_busy", "nearest"])),
                "no_replica": st.sampled_from(["primary", "fail", "stale"]),
                "max_lag": _referable(_durations),
                "check_interval": _referable(_durations),
                "zone": _referable(_zones),
                "warmup": _referable(_durations),
            },
        ),
        "audit": _section(
            {},
            {
                "on_start": _referable(st.sampled_from(["refuse", "warn", "off"])),
                "allow_roles": st.lists(_identifiers, max_size=2),
                "shared_tables": st.lists(_referable(_identifiers), max_size=2),
            },
        ),
        "search_path": st.lists(_referable(_identifiers), max_size=2),
        "types": st.lists(
            _referable(
                st.sampled_from(["hstore", "vector", "enum shop.color", "composite point as shop.models:Point"])
            ),
            max_size=2,
        ),
        "max_in_flight": _integers(1, 1_000_000),
    },
)
_hosts = st.sampled_from(["shop.example.com", "acme.example", "b\u00fccher.example", "a_b.example."])
_token = _section(
    {
        "claim": _referable(st.sampled_from(["tenant_id", "org.id", "https://example.com/tenant"])),
        "algorithms": st.lists(_referable(st.sampled_from(["HS256", "RS256", "EdDSA"])), min_size=1, max_size=2),
    },
    {
        "key": st.one_of(_referable(st.just(PASSWORD)), st.just({"file": "primary.url"})),
        "jwks": st.just("/etc/jwks.json"),
        "audience": st.lists(_referable(st.just("shop")), max_size=2),
        "issuer": st.just("https://login.example.com/"),
        "leeway": _durations,
        "required": st.lists(st.just("exp"), max_size=1),
        "header": st.just("X-Token"),
        "cookie": st.just("__Host-session"),
    },
)
_paths_only = {"paths": st.lists(_paths, max_size=2)}
_resolver = st.one_of(
    _section({"header": _referable(st.sampled_from(["X-Tenant", "tenant_id"]))}, {}),
    _section({"subdomain_of": st.sampled_from(["app.example.com", "localhost"])}, {}),
    _section({"path_prefix": st.sampled_from(["/", "/t", "/a/b/"])}, {}),
    _section({"callable": st.sampled_from(["a:b", "shop.tenants:Resolver.of"])}, _paths_only),
    _section({"domain": st.dictionaries(_hosts, _referable(_tenant_names), max_size=2)}, _paths_only),
    _section({"query": _referable(st.just("tenant"))}, {}),
    _section({"cookie": st.just("tenant")}, {}),
    _section({"scope": st.sampled_from(["user.tenant_id", "tenant"])}, {}),
    _section({"fixed": _referable(_tenant_names)}, {}),
    _section({"jwt_claim": _token}, _paths_only),
)
_tenancy = _section(
    {},
    {
        "resolve": st.lists(_resolver, max_size=2),
        "missing": _integers(400, 499),
        "missing_page": _flags,
        "unknown": _integers(400, 499),
        "exempt": st.one_of(
            st.lists(_referable(_paths), max_size=2),
            _section({}, {"preset": _referable(st.just("fastapi")), "paths": st.lists(_referable(_paths), max_size=2)}),
        ),
        "pattern": st.sampled_from(["^[a-z]{2,9}$", ".*", "$${x}", "a$"]),
        "default": _referable(_names),
        "agree": _flags,
        "hide_unknown": _flags,
        "authorize": st.just("shop.tenants:may_act"),
        "trusted_hosts": st.lists(_referable(st.one_of(_hosts, st.just("*.example.com"))), max_size=2),
        "trusted_proxies": st.lists(_referable(st.sampled_from(["10.0.0.0/8", "::1", "unix"])), max_size=2),
        "trusted_headers": st.lists(st.sampled_from(["forwarded", "x-forwarded-host", "none"]), min_size=1, max_size=2),
    },
)
_tenant = _section(
    {"datasource": _referable(_names)},
    {
        "schema": _referable(_tenant_identifiers),
        "row_security": st.dictionaries(
            _settings, _referable(st.one_of(_setting_values, st.just("{tenant}"))), min_size=1, max_size=2
        ),
        "role": _tenant_identifiers,
        "database": _tenant_identifiers,
        "limits": _section({}, {"max_connections": _integers(1, 10_000)}),
        "datasources": st.dictionaries(
            _names,
            _section(
                {},
                {
                    "schema": _referable(_tenant_identifiers),
                    "row_security": st.dictionaries(_settings, _setting_values, min_size=1, max_size=1),
                    "role": _tenant_identifiers,
                    "database": _tenant_identifiers,
                },
            ),
            max_size=2,
        ),
        "state": _referable(st.sampled_from(["active", "read_only", "suspended", "moving"])),
        "aliases": st.lists(_referable(_tenant_names), max_size=2),
    },
)
_catalog = _section(
    {"datasource": _referable(_names)},
    {
        "query": _referable(st.just("select slug as name from customers where plan <> 'none'")),
        "defaults": _section(
            {},
            {
                "datasource": _names,
                "schema": _referable(_tenant_identifiers),
                "row_security": st.dictionaries(_settings, _setting_values, min_size=1, max_size=1),
                "role": _tenant_identifiers,
                "limits": _section({}, {"max_connections": _integers(1, 10_000)}),
            },
        ),
        "refresh": _referable(_durations),
        "notify": st.just("customers_changed"),
        "miss_interval": _durations,
        "timeout": _durations,
        "snapshot": _referable(st.just("/var/lib/shop/tenants.snapshot")),
    },
)
_route = _section(
    {
        "match": _referable(
            st.sampled_from(["/", "/**", "GET /a/*/b/**", "* /x/", "POST /search", "/*", "PROPFIND /dav/**"])
        )
    },
    {
        "datasource": _referable(_names),
        "intent": _referable(st.sampled_from(["read", "write"])),
        "consistency": st.sampled_from(["strong", "session", "token", "eventual"]),
        "max_lag": _referable(_durations),
        "timeout": _referable(_durations),
        "read_only": _flags,
        "isolation": st.sampled_from(["read committed", "repeatable read", "serializable"]),
        "deferrable": _flags,
        "stream": _flags,
        "propagation": _referable(st.sampled_from(["required", "not_supported"])),
        "retry": _integers(0, 20),
        "priority": _referable(st.sampled_from(["low", "normal", "high"])),
        "max_in_flight": _integers(1, 1_000_000),
        "commit_on": st.lists(_outcomes, max_size=2),
        "rollback_on": st.lists(_referable(_outcomes), max_size=2),
    },
)
_transactions = _section(
    {},
    {
        "default": st.sampled_from(["request", "annotated"]),
        "deadline": st.one_of(st.none(), _referable(_durations)),
        "rollback_on": st.lists(_outcomes, max_size=2),
        "on_disconnect": st.just("rollback"),
        "retry": _referable(st.sampled_from([0, 0.0, 3])),
        "retry_body_limit": _referable(st.sampled_from(["1B", "64KiB", "999MiB"])),
        "max_parallel": _integers(1, 100),
        "multiple_writers": st.sampled_from(["refuse", "allow"]),
    },
)
_budget = _section(
    {},
    {
        "processes": _integers(1, 100_000),
        "reserve": _integers(0, 10_000),
        "max_connections": _integers(1, 262_143),
    },
)
_secrets = st.sampled_from(["0123456789abcdef", "a secret of some length"])
_consistency = _section(
    {},
    {
        "token": _referable(st.sampled_from(["off", "cookie", "header", "both"])),
        "secret": _referable(_secrets),
        "old_secrets": st.lists(_secrets, max_size=2),
        "ttl": _referable(_durations),
        "wait": _referable(_durations),
        "monotonic": _flags,
        "cookie": st.sampled_from(["ads_token", "a.b-c"]),
        "header": _referable(st.sampled_from(["X-Token", "token_id"])),
    },
)
_telemetry = _section(
    {},
    {
        "spans": _flags,
        "metrics": _flags,
        "metric_tenants": _integers(0, 10_000),
        "tenant_attribute": _flags,
        "statements": st.sampled_from(["text", "summary", "off"]),
    },
)
_errors = _section(
    {},
    {
        "status": st.dictionaries(
            st.sampled_from(["conflict", "tenant", "commit_unknown"]), _integers(400, 599), max_size=2
        ),
        "handler": st.just("shop.errors:render"),
        "debug": _flags,
    },
)
_publisher = st.one_of(
    _section({"nats": _section({"url": _referable(st.just("nats://nats:4222"))}, {})}, {}),
    _section(
        {
            "kafka": _section(
                {"servers": _referable(st.sampled_from(["kafka:9092", "a:1,b:2"]))},
                {"user": _referable(st.just("app")), "password": st.just({"file": "primary.url"})},
            )
        },
        {},
    ),
    _section(
        {"rabbitmq": _section({"url": _referable(st.just("amqp://rabbitmq/"))}, {"exchange": _referable(_names)})}, {}
    ),
    _section(
        {"redis": _section({"url": _referable(st.just("redis://redis"))}, {"max_length": _integers(1, 10**9)})}, {}
    ),
    _section(
        {
            "webhook": _section(
                {"url": _referable(st.just("https://partner.example/")), "secret": _referable(st.just(PASSWORD))},
                {"allow_private": _flags, "timeout": _referable(_durations)},
            )
        },
        {},
    ),
    _section({"callable": st.sampled_from(["a:b", "shop.events:Publisher.of"])}, {}),
)
_outbox = _section(
    {},
    {
        "relay": _referable(st.sampled_from(["embedded", "off"])),
        "publisher": _publisher,
        "source": _referable(st.sampled_from(["https://shop.example/orders", "urn:shop"])),
        "max_payload": _referable(st.sampled_from(["1KiB", "256KiB"])),
        "keep": _referable(st.sampled_from(["1d", "7d"])),
        "notify": _referable(st.sampled_from(["off", "coalesced"])),
        "lease": _referable(st.sampled_from(["5s", "15s", "30s", "60s"])),
        "max_attempts": _integers(1, 1000),
        "on_dead": _referable(st.sampled_from(["skip", "hold"])),
        "connections": _integers(1, 1000),
        "warn_age": _referable(_durations),
    },
)
_documents = _section(
    {
        "version": st.sampled_from([1, 1, 1.0]),
        "datasources": st.dictionaries(_names, _datasource, min_size=1, max_size=2),
    },
    {
        "include": st.lists(st.sampled_from(["tenants/*.yaml", "../base.toml", "/etc/x y.json", "ä/**"]), max_size=2),
        "tenancy": _tenancy,
        "tenants": st.dictionaries(st.one_of(_tenant_names, st.just("*")), _tenant, max_size=2),
        "tenants_from": _catalog,
        "provisioning": _section(
            {},
            {
                "set_up": st.lists(_referable(st.sampled_from(["sql/tenant.sql", "shop.tenants:seed"])), max_size=2),
                "template": _identifiers,
                "dump_folder": st.just("/var/backups/tenants"),
                "programs": st.just("/usr/lib/postgresql/18/bin"),
            },
        ),
        "migrate": _section(
            {"folder": st.sampled_from(["migrations", "/srv/migrations"])},
            {
                "engine": st.just("sql"),
                "folders": st.just({}),
                "script_location": st.just("alembic"),
                "at_startup": _referable(st.sampled_from(["check", "apply", "off"])),
                "behind": st.sampled_from(["ignore", "refuse"]),
                "concurrency": _integers(1, 100),
                "lock_timeout": _referable(_durations),
                "on_error": st.sampled_from(["continue", "stop"]),
                "max_failures": _integers(1, 100),
                "out_of_order": st.sampled_from(["error", "allow"]),
                "missing": st.sampled_from(["error", "ignore"]),
                "stages": st.sampled_from([[], [{"name": "rest"}]]),
            },
        ),
        "routes": st.lists(_route, max_size=2),
        "transactions": _transactions,
        "consistency": _consistency,
        "budget": _budget,
        "outbox": _outbox,
        "health": _section(
            {},
            {
                "ready": st.sampled_from(["every_primary", "any_server", {"tenants": "90%"}]),
                "path": _referable(st.sampled_from(["/health", "/internal/health"])),
            },
        ),
        "reload": _section({}, {"on_sighup": _flags, "watch": _referable(_durations)}),
        "telemetry": _telemetry,
        "errors": _errors,
    },
)


@st.composite
def valid_documents(draw: st.DrawFn) -> Written:
    """A document with valid values, some of them references."""
    environ = {"EMPTY": ""}
    numbers = itertools.count()

    def write(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: write(child) for key, child in value.items()}
        if isinstance(value, list):
            return [write(child) for child in value]
        if not isinstance(value, Referred):
            return value
        text = _as_text(value.value)
        name = f"V{next(numbers)}"
        form = draw(st.sampled_from(["whole", "default", "part", "noise"]))
        if form == "default" and not set(text) & set("{}"):
            return f"${{{name}:-{text}}}"
        if form == "part" and text and not set(text) & set("${}"):
            environ[name] = text[1:]
            return f"{text[0]}${{{name}}}"
        environ[name] = text
        return f"${{{name}}}${{EMPTY}}" if form == "noise" else f"${{{name}}}"

    return Written(write(draw(_documents)), environ)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value))
    return str(value).replace("$${", "$(")


Place = tuple[Any, Any]
"""A container and the key or index of one of its values."""


def places(value: Any) -> list[Place]:
    """Every place of a value in a document."""
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    found: list[Place] = []
    for key, child in pairs:
        found.append((value, key))
        if isinstance(child, dict | list):
            found.extend(places(child))
    return found


_known_keys = sorted({key for place in sections().values() for key in (*place.fields, *place.planned)})
_planned_words = sorted({word for value in VALUES.values() for word in value.planned if word != "*"})
_junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 700),
    st.sampled_from([10**6, 10**9, -1, 1.5, 0.0, 3.0, 1e300, 2.5e9]),
    st.sampled_from(
        ["", " ", "x", "3", "yes", "true", "no", "3sec", "0s", "1.5s", "3 s", "100h", "3S", "*", "**", "/"]
    ),
    st.sampled_from(["GET", "get /x", "GET  /x", "/a*", "/**/a", "a.b", "a.", ".a", "1.a", "app.tenant", "primary"]),
    st.sampled_from(
        ["postgresql://{tenant}", "mysql://db", "host", "=", "a=b", "a\n", "\x00", "tab\t", "ü", "{tenant}"]
    ),
    st.sampled_from(
        ["${", "${}", "${1}", "${A B}", "${A", "$${", "$$${", "${A:-${B}}", "4XX", "6xx", "x" * 64, "x" * 256]
    ),
    st.sampled_from(_planned_words),
    st.sampled_from(
        [
            [],
            {},
            [1],
            {"a": 1},
            {"file": ""},
            {"file": 1},
            {"file": "x", "y": 1},
            {"command": []},
            {"command": "x"},
            {"command": [1]},
            {"command": [""]},
            [[]],
            {"": {}},
        ]
    ).map(copy.deepcopy),
)
_broken_endings = st.sampled_from(["\n", "\r", "\x7f", "${", "${}"])
_endings = st.sampled_from(["\n", "$${", "*", " ", "$", "$$", "}", "{tenant}", ":", "/", "x" * 300, "ß", "#"])


@st.composite
def mutated_documents(draw: st.DrawFn) -> Written:
    """A valid document with one to three mutations. Some mutations are no mistakes, which both sides must accept."""
    written = draw(valid_documents())
    document = copy.deepcopy(written.document)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        _mutate(draw, document)
    return Written(document, written.environ)


def _mutate(draw: st.DrawFn, document: dict[str, Any]) -> None:
    container, key = draw(st.sampled_from([*places(document), (document, "version")]))
    value = container.get(key) if isinstance(container, dict) else container[key]
    kind = draw(st.sampled_from(["junk", "junk", "delete", "key", "rename", "twist", "twist", "nest"]))
    if kind == "delete":
        if isinstance(container, dict):
            container.pop(key, None)
        else:
            del container[key]
    elif kind == "key":
        target = value if isinstance(value, dict) else container if isinstance(container, dict) else document
        new = st.one_of(st.sampled_from(_known_keys), st.sampled_from(["", "x", "<<", "${A}", "a\n", "*", "Version"]))
        target.setdefault(draw(new), draw(_junk))
    elif kind == "rename" and isinstance(container, dict) and "${" not in repr(value):
        # The value of a reference is valid at its own path only, so a value with a reference is not renamed.
        container[draw(st.sampled_from([*_known_keys, "*", "primary", "a b", "${A}", "x" * 64, "a{b}"]))] = value
        container.pop(key, None)
    elif kind == "nest":
        container[key] = draw(st.sampled_from([[value], {"a": value}, {"url": value}]))
    elif kind == "twist":
        container[key] = _twist(draw, value)
    else:
        container[key] = draw(_junk)


def _twist(draw: st.DrawFn, value: Any) -> Any:
    """The same value in another type or with a suffix."""
    if isinstance(value, bool):
        return draw(st.sampled_from([int(value), str(value).lower(), str(value)]))
    if isinstance(value, int | float):
        return draw(
            st.sampled_from([str(value), float(value), value + 0.5, -value, bool(value), value * 1000, [value]])
        )
    if isinstance(value, str):
        # The value of a reference is not part of the document, so a twist may only break the reference itself.
        return value + draw(_broken_endings if "${" in value else st.one_of(_broken_endings, _endings))
    return draw(_junk)
