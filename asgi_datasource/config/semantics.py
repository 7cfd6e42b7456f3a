"""The second stage of the validation: whether the document makes sense. A JSON Schema cannot check this."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from pydantic import SecretStr

from .coverage import Coverage
from .diagnostics import Code, Diagnostic, Edit, EditKind, Path, Severity, Suggestions, show
from .kinds import EVERY_OTHER
from .limits import MAX_DIAGNOSTICS
from .models import Config, PlaceConfig, RouteRule, TenantConfig
from .name_pattern import compile_name_pattern
from .sections import Section
from .semantics_migrate import check_migrate
from .semantics_resolvers import check_resolvers
from .semantics_servers import check_budget, check_lags, check_servers
from .semantics_tenancy import absent_datasource, check_aliases, check_catalog, check_tenancy
from .shapes import is_mapping
from .tenant_places import Sites, TemplateReach, place_of
from .url import PLACEHOLDER

MAX_NAME_BYTES: Final = 63
"""PostgreSQL truncates longer names (PostgreSQL manual, "Lexical Structure", NAMEDATALEN)."""


def check_semantics(config: Config, *, needs_resolver: bool = True) -> list[Diagnostic]:
    """Find mistakes in a well-formed document.

    Args:
        config: The document.
        needs_resolver: Whether tenants without `tenancy.resolve` are an error.

    Returns:
        The problems, up to a bound for each check.
    """
    checks: list[Callable[[Config], Iterator[Diagnostic]]] = [
        check_servers,
        check_budget,
        check_lags,
        _default,
        _tenant_datasources,
        _tenant_names,
        _tenants_apart,
        _long_names,
        _routes,
        _tokens,
        check_tenancy,
        check_catalog,
        check_aliases,
        check_migrate,
        _metrics,
        _outbox,
    ]
    if needs_resolver:
        checks += [_resolvers, check_resolvers]
    return [problem for check in checks for problem in islice(check(config), MAX_DIAGNOSTICS)]


def _default(config: Config) -> Iterator[Diagnostic]:
    default = config.tenancy.default
    path: Path = ("tenancy", "default")
    if default is None:
        return
    if default not in config.datasources:
        yield absent_datasource(path, default, config, Suggestions())
    elif PLACEHOLDER in config.datasources[default].primary.url.get_secret_value():
        message = (
            "this datasource has a database for each tenant, and a request that gets the default has no tenant name"
        )
        edit = Edit(EditKind.REMOVE, path)
        yield Diagnostic(Code.CONTRADICTION, path, message, "Name another datasource, or none.", edit=edit)


def _tenant_datasources(config: Config) -> Iterator[Diagnostic]:
    suggestions = Suggestions()
    for name, tenant in config.tenants.items():
        if tenant.datasource not in config.datasources:
            yield absent_datasource(("tenants", name, "datasource"), tenant.datasource, config, suggestions)
        if tenant.datasources:
            yield from _other_datasources(name, tenant, config, suggestions)
    for index, rule in enumerate(config.routes):
        if rule.datasource is not None and rule.datasource not in config.datasources:
            yield absent_datasource(("routes", index, "datasource"), rule.datasource, config, suggestions)


def _other_datasources(
    name: str, tenant: TenantConfig, config: Config, suggestions: Suggestions
) -> Iterator[Diagnostic]:
    """The datasources that a tenant has besides its own."""
    path: Path = ("tenants", name, "datasources")
    if name == EVERY_OTHER:
        message = (
            "only listed tenants have other datasources: a name from a request could lead to a listed tenant's data"
        )
        yield Diagnostic(
            Code.CONTRADICTION, path, message, "Take it out.", is_about_key=True, edit=Edit(EditKind.REMOVE, path)
        )
        return
    for other in tenant.datasources or ():
        here = (*path, other)
        if other not in config.datasources:
            meant, is_certain = suggestions.weigh(other, config.datasources)
            fix = f"Did you mean {meant!r}?" if meant else f"There are: {', '.join(islice(config.datasources, 10))}."
            edit = Edit(EditKind.RENAME, here, meant, is_safe=is_certain) if meant else Edit(EditKind.REMOVE, here)
            message = "names a datasource that is not there"
            yield Diagnostic(Code.UNKNOWN_DATASOURCE, here, message, fix, is_about_key=True, edit=edit)
        elif other == tenant.datasource:
            message = "this is the tenant's own datasource, whose isolation stands beside datasource"
            yield Diagnostic(
                Code.CONTRADICTION, here, message, "Take it out.", is_about_key=True, edit=Edit(EditKind.REMOVE, here)
            )


def _tenant_names(config: Config) -> Iterator[Diagnostic]:
    path: Path = ("tenancy", "pattern")
    try:
        matches = compile_name_pattern(config.tenancy.pattern)
    except ValueError as error:
        message = f"not a regular expression that can be matched in linear time: {error}"
        fix = "See Python's re module, and use no look-around and no back-references."
        yield Diagnostic(Code.PATTERN, path, message, fix, edit=Edit(EditKind.REMOVE, path))
        return
    for name in config.tenants:
        if name != EVERY_OTHER and not matches(name):
            message = "no request can name this tenant: the name does not match tenancy.pattern"
            fix = "Rename the tenant, or widen the pattern."
            here = ("tenants", name)
            edit = Edit(EditKind.REMOVE, here)
            yield Diagnostic(Code.TENANT_NAME, here, message, fix, is_about_key=True, related=(path,), edit=edit)


def _tenants_apart(config: Config) -> Iterator[Diagnostic]:
    """Tenants that are not isolated: on the same servers, with the same schema, role and settings."""
    servers: dict[str, int] = {}
    home: dict[str, int] = {}
    for name, datasource in config.datasources.items():
        home[name] = servers.setdefault(datasource.primary.url.get_secret_value(), len(servers))
    templates = {number for url, number in servers.items() if PLACEHOLDER in url}
    first: dict[object, dict[object, str]] = {}
    for name, tenant in config.tenants.items():
        if name == EVERY_OTHER:
            yield from _others(tenant, config)
            yield from _reaches(tenant, config)
        elif tenant.datasource in home:
            kind, place = _place(name, tenant, has_database=home[tenant.datasource] in templates)
            other = first.setdefault((home[tenant.datasource], kind), {}).setdefault(place, name)
            if other is not name:
                yield _together(name, other, tenant)
        for besides, there in (tenant.datasources or {}).items() if name != EVERY_OTHER else ():
            if besides in home and besides != tenant.datasource:
                kind, place = _place(name, there, has_database=home[besides] in templates)
                other = first.setdefault((home[besides], kind), {}).setdefault(place, name)
                if other is not name:
                    yield _together(name, other, there, within=("datasources", besides))


def _others(tenant: TenantConfig, config: Config) -> Iterator[Diagnostic]:
    """The tenants that are not listed must be isolated from each other by `{tenant}`."""
    datasource = config.datasources.get(tenant.datasource)
    if datasource is None or PLACEHOLDER in datasource.primary.url.get_secret_value():
        return
    written = (tenant.schema_name, tenant.role, *(tenant.row_security or {}).values())
    if not any(PLACEHOLDER in value for value in written if value is not None):
        path: Path = ("tenants", EVERY_OTHER)
        message = f"nothing keeps these tenants apart from each other: {PLACEHOLDER} stands nowhere"
        fix = f"Write schema: '{PLACEHOLDER}', a row_security setting with it, or put it into the datasource's URL."
        edit = Edit(EditKind.ADD, (*path, "schema"), PLACEHOLDER)
        yield Diagnostic(Code.SHARED_PLACE, path, message, fix, is_about_key=True, edit=edit)


def _reaches(others: TenantConfig, config: Config) -> Iterator[Diagnostic]:
    """Listed tenants whose place `"*"` assigns to a name that is not listed."""
    if others.datasource not in config.datasources:
        return
    try:
        matches = compile_name_pattern(config.tenancy.pattern)
    except ValueError:
        return
    sites = Sites(config)
    reach = TemplateReach(others.datasource, others, database=others.database, sites=sites)
    known = {*config.tenants, *(alias for tenant in config.tenants.values() for alias in tenant.aliases)}
    for name, tenant in config.tenants.items():
        if name == EVERY_OTHER:
            continue
        for other in reach.names_into(*place_of(name, tenant, sites)):
            if other not in known and matches(other):
                yield _reached(name, tenant, other, is_whole_database=reach.takes_databases)
                break


def _reached(name: str, tenant: TenantConfig, other: str, *, is_whole_database: bool) -> Diagnostic:
    path: Path = ("tenants", name)
    severity = Severity.ERROR
    message = f"a request for {show(other)}, which is not listed, would be served where this tenant lives"
    if is_whole_database and (tenant.schema_name, tenant.role, tenant.row_security) != (None, None, None):
        # Something else isolates the tenant inside the database.
        severity = Severity.WARNING
        message = f"a request for {show(other)}, which is not listed, would be served in this tenant's database"
    fix = (
        f"Give '*' places that no other tenant has, such as 't_{PLACEHOLDER}', or add {show(other)} to the aliases of"
        " this tenant."
    )
    related: tuple[Path, ...] = (("tenants", EVERY_OTHER),)
    edit = Edit(EditKind.ADD, (*path, "aliases"), [*tenant.aliases, other])
    return Diagnostic(Code.SHARED_PLACE, path, message, fix, True, severity=severity, related=related, edit=edit)


def _place(name: str, tenant: TenantConfig | PlaceConfig, *, has_database: bool) -> tuple[object, object]:
    """What isolates a tenant on its servers, as a kind and a value; both are equal for tenants that are not isolated.

    The usual values are existing strings: with 100,000 tenants, tuples would double the peak of memory.
    """
    schema, settings = tenant.schema_name, tenant.row_security
    database = (tenant.database or name).replace(PLACEHOLDER, name) if has_database else None
    if database is not None and schema is None and tenant.role is None and settings is None:
        return "database", database
    if schema is not None and PLACEHOLDER in schema:
        schema = schema.replace(PLACEHOLDER, name)
    if database is not None:
        return "all", (database, schema, tenant.role, *sorted((settings or {}).items()))
    if tenant.role is None:
        if settings is None:
            return "schema", schema
        if schema is None and len(settings) == 1:
            key, value = next(iter(settings.items()))
            return key, value.replace(PLACEHOLDER, name) if PLACEHOLDER in value else value
    return "all", (schema, tenant.role, *sorted((settings or {}).items()))


def _together(name: str, other: str, tenant: TenantConfig | PlaceConfig, *, within: Path = ()) -> Diagnostic:
    path: Path = ("tenants", name, *within)
    related: tuple[Path, ...] = (("tenants", other),)
    fix = "Give each a schema, row_security settings or a datasource of its own."
    if tenant.schema_name is None and tenant.row_security is None:
        message = f"nothing keeps this tenant apart from {show(other)}"
        edit = Edit(EditKind.ADD, (*path, "schema"), name)
        severity = Severity.WARNING
        return Diagnostic(Code.SHARED_PLACE, path, message, fix, True, None, severity, related, edit=edit)
    what = "schema" if tenant.row_security is None else "row_security"
    message = f"the same {what} as tenant {show(other)}, and nothing else keeps the two apart"
    edit = Edit(EditKind.REPLACE, (*path, what), name if what == "schema" else {"app.tenant": name})
    return Diagnostic(Code.SHARED_PLACE, (*path, what), message, fix, related=related, edit=edit)


def _long_names(config: Config) -> Iterator[Diagnostic]:
    for name, tenant in config.tenants.items():
        for key, written in (("schema", tenant.schema_name), ("role", tenant.role)):
            if written is not None and not written.isascii() and len(written.encode()) > MAX_NAME_BYTES:
                yield _too_long(("tenants", name, key))
    for name, datasource in config.datasources.items():
        for index, schema in enumerate(datasource.search_path):
            if len(schema.encode()) > MAX_NAME_BYTES:
                yield _too_long(("datasources", name, "search_path", index))


def _too_long(path: Path) -> Diagnostic:
    message = f"the name is longer than {MAX_NAME_BYTES} bytes, and PostgreSQL would cut it off"
    return Diagnostic(Code.NAME_TOO_LONG, path, message, "Shorten it.", edit=Edit(EditKind.REMOVE, path))


def _routes(config: Config) -> Iterator[Diagnostic]:
    earlier = Coverage()
    for index, rule in enumerate(config.routes):
        path: Path = ("routes", index)
        if rule.read_only and rule.intent == "write":
            message, fix = "read_only: true contradicts intent: write", "Keep one of them."
            here, related = (*path, "read_only"), ((*path, "intent"),)
            yield Diagnostic(Code.CONTRADICTION, here, message, fix, related=related, edit=Edit(EditKind.REMOVE, here))
        if rule.stream and not rule.read_only:
            message = "stream: true is for snapshots: a transaction that writes has to end before the response starts"
            here = (*path, "stream")
            yield Diagnostic(
                Code.CONTRADICTION, here, message, "Add read_only: true.", edit=Edit(EditKind.REMOVE, here)
            )
        if rule.deferrable and not (rule.read_only and rule.isolation == "serializable"):
            message = "deferrable: true is for read-only serializable transactions"
            fix, here = "Add read_only: true and isolation: serializable.", (*path, "deferrable")
            yield Diagnostic(Code.CONTRADICTION, here, message, fix, edit=Edit(EditKind.REMOVE, here))
        if rule.propagation == "not_supported":
            yield from _without_transaction(path, rule)
        rolls_back = frozenset(rule.rollback_on)
        for entry in rule.commit_on:
            if entry in rolls_back:
                message, fix = f"{entry} stands in commit_on and in rollback_on", "Keep it in one of them."
                here, related = (*path, "commit_on"), ((*path, "rollback_on"),)
                yield Diagnostic(
                    Code.CONTRADICTION, here, message, fix, related=related, edit=Edit(EditKind.REMOVE, here)
                )
        yield from _unreachable(index, earlier.find(rule.match))
        earlier.add(rule.match, index)


def _metrics(config: Config) -> Iterator[Diagnostic]:
    if config.telemetry.metric_tenants and not config.telemetry.metrics:
        path: Path = ("telemetry", "metric_tenants")
        message, fix = "there are no metrics that could name tenants", "Add metrics: true, or leave this out."
        edit = Edit(EditKind.REMOVE, path)
        yield Diagnostic(Code.CONTRADICTION, path, message, fix, severity=Severity.WARNING, edit=edit)


def _outbox(config: Config) -> Iterator[Diagnostic]:
    outbox = config.outbox
    if outbox is None:
        return
    if outbox.relay == "embedded" and outbox.publisher is None:
        message, fix = "the relay has nowhere to deliver events to", "Add publisher, or set relay: off."
        here: Path = ("outbox", "publisher")
        yield Diagnostic(Code.MISSING_KEY, here, message, fix, related=(("outbox", "relay"),))
    kafka = None if outbox.publisher is None else outbox.publisher.kafka
    if kafka is not None and (kafka.user is None) != (kafka.password is None):
        lacking = "user" if kafka.user is None else "password"
        here = ("outbox", "publisher", "kafka", lacking)
        yield Diagnostic(Code.MISSING_KEY, here, "user and password belong together", f"Add {lacking}.")


MIN_SECRET_LENGTH: Final = 16
"""Characters; a shorter secret could be found by brute force from one token."""


def _tokens(config: Config) -> Iterator[Diagnostic]:
    consistency = config.consistency
    secrets: list[tuple[Path, SecretStr]] = [
        (("consistency", "old_secrets", index), secret) for index, secret in enumerate(consistency.old_secrets)
    ]
    if consistency.secret is not None:
        secrets.insert(0, (("consistency", "secret"), consistency.secret))
    elif consistency.token != "off":  # noqa: S105 - a word of the configuration
        message, fix = "tokens are to be signed, but with what?", "Add secret: {file: path} or secret: ${NAME}."
        here: Path = ("consistency", "secret")
        related: tuple[Path, ...] = (("consistency", "token"),)
        yield Diagnostic(Code.MISSING_KEY, here, message, fix, related=related)
    for where, secret in secrets:
        if len(secret.get_secret_value()) < MIN_SECRET_LENGTH:
            fix = f"Use {MIN_SECRET_LENGTH} characters or more, of a random one."
            yield Diagnostic(Code.WRONG_VALUE, where, "too short for a secret that signs", fix)
    if consistency.token != "off":  # noqa: S105 - a word of the configuration
        return
    if consistency.monotonic:
        where = ("consistency", "monotonic")
        message = "monotonic reads take a token, and clients carry none"
        fix = "Set token: cookie and a secret, or leave this out."
        related = (("consistency", "token"),)
        yield Diagnostic(Code.CONTRADICTION, where, message, fix, related=related, edit=Edit(EditKind.REMOVE, where))
    for index, rule in enumerate(config.routes):
        if rule.consistency in ("session", "token"):
            where = ("routes", index, "consistency")
            message = f"consistency: {rule.consistency} takes a token, and clients carry none"
            fix = "Set consistency: {token: cookie, secret: ...}, or leave this out."
            related = (("consistency", "token"),)
            yield Diagnostic(
                Code.CONTRADICTION, where, message, fix, related=related, edit=Edit(EditKind.REMOVE, where)
            )


def _without_transaction(path: Path, rule: RouteRule) -> Iterator[Diagnostic]:
    for key in ("read_only", "stream", "retry"):
        if getattr(rule, key):
            message = f"{key} is about the transaction that propagation: not_supported does without"
            here, related = (*path, key), ((*path, "propagation"),)
            edit = Edit(EditKind.REMOVE, here)
            yield Diagnostic(Code.CONTRADICTION, here, message, "Keep one of them.", related=related, edit=edit)


def _unreachable(index: int, earlier: int | None) -> Iterator[Diagnostic]:
    if earlier is not None:
        message = f"this rule never comes to its turn: routes[{earlier}] matches all that it matches"
        yield Diagnostic(
            Code.UNREACHABLE,
            ("routes", index, "match"),
            message,
            "Move it in front of that rule.",
            related=(("routes", earlier, "match"),),
            severity=Severity.WARNING,
            edit=Edit(EditKind.REMOVE, ("routes", index)),
        )


def _resolvers(config: Config) -> Iterator[Diagnostic]:
    resolve = config.tenancy.resolve
    path: Path = ("tenancy", "resolve")
    if (config.tenants or config.tenants_from) and not resolve:
        message = "there are tenants, but no way to tell them from requests"
        fix = "Add one, such as resolve: [{header: X-Tenant}]."
        edit = Edit(EditKind.ADD, path, [{"header": "X-Tenant"}])
        yield Diagnostic(Code.NO_RESOLVER, path, message, fix, related=(("tenants",),), edit=edit)
    if not config.tenants and config.tenants_from is None and config.tenancy.default is None:
        message = "no request will be served: there are no tenants and no default datasource"
        fix = "Add tenants, or name a datasource in tenancy.default."
        yield Diagnostic(
            Code.NO_RESOLVER,
            ("tenants",),
            message,
            fix,
            related=(("tenancy", "default"),),
            severity=Severity.WARNING,
            edit=Edit(EditKind.ADD, ("tenancy", "default"), next(iter(config.datasources))),
        )
    seen: set[object] = set()
    for index, way in enumerate(resolve):
        content = _content(way)
        if content in seen:
            message, fix = "the same way stands in front of it", "Remove it."
            here, edit = (*path, index), Edit(EditKind.REMOVE, (*path, index))
            yield Diagnostic(Code.UNREACHABLE, here, message, fix, severity=Severity.WARNING, edit=edit)
        seen.add(content)


def _content(value: object) -> object:
    """A hashable form of a value; sections and mappings are not hashable."""
    if isinstance(value, Section):
        return tuple(map(_content, value.__dict__.values()))
    return frozenset(value.items()) if is_mapping(value) else value
