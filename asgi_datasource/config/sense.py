"""The second stage of checking: does the document make sense? What a JSON Schema cannot ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from pydantic import SecretStr

from .coverage import covers
from .diagnostics import Code, Diagnostic, Edit, Fix, Path, Severity, did_you_mean, show
from .kinds import EVERY_OTHER
from .limits import MAX_DIAGNOSTICS
from .models import Config, RouteRule, TenantConfig
from .name_pattern import compile_name_pattern
from .sense_resolvers import check_resolvers
from .sense_servers import check_budget, check_lags, check_servers
from .sense_tenancy import check_aliases, check_catalog, check_tenancy
from .tenant_places import Sites, TemplateReach, place_of
from .url import PLACEHOLDER

MAX_NAME_BYTES: Final = 63
"""PostgreSQL cuts longer names off (PostgreSQL manual, "Lexical Structure", NAMEDATALEN)."""


def check_sense(config: Config, *, needs_resolver: bool = True) -> list[Diagnostic]:
    """Everything in a well-formed document that cannot be meant.

    Args:
        config: The document.
        needs_resolver: Whether the document alone must be able to tell tenants from requests.

    Returns:
        Problems, each kind of them up to a bound.
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
        _metrics,
    ]
    if needs_resolver:
        checks += [_resolvers, check_resolvers]
    return [problem for check in checks for problem in islice(check(config), MAX_DIAGNOSTICS)]


def _absent(path: Path, name: str, config: Config) -> Diagnostic:
    meant = did_you_mean(name, config.datasources)
    mend = f"Did you mean {meant!r}?" if meant else f"There are: {', '.join(islice(config.datasources, 10))}."
    # The name itself may have come from the environment, where anything may stand.
    fix = Fix(Edit.REPLACE, path, meant or next(iter(config.datasources)), is_safe=meant is not None)
    return Diagnostic(Code.UNKNOWN_DATASOURCE, path, "names a datasource that is not there", mend, fix=fix)


def _default(config: Config) -> Iterator[Diagnostic]:
    default = config.tenancy.default
    path: Path = ("tenancy", "default")
    if default is None:
        return
    if default not in config.datasources:
        yield _absent(path, default, config)
    elif PLACEHOLDER in config.datasources[default].primary.url.get_secret_value():
        message = "this datasource has a database for each tenant, and whoever gets the default has no name"
        fix = Fix(Edit.REMOVE, path)
        yield Diagnostic(Code.CONTRADICTION, path, message, "Name another datasource, or none.", fix=fix)


def _tenant_datasources(config: Config) -> Iterator[Diagnostic]:
    known = config.datasources
    for name, tenant in config.tenants.items():
        if tenant.datasource not in known:
            yield _absent(("tenants", name, "datasource"), tenant.datasource, config)


def _tenant_names(config: Config) -> Iterator[Diagnostic]:
    path: Path = ("tenancy", "pattern")
    try:
        matches = compile_name_pattern(config.tenancy.pattern)
    except ValueError as error:
        message = f"not a regular expression that can be matched in bounded time: {error}"
        mend = "See Python's re module, and write it without look-around and back-references."
        yield Diagnostic(Code.PATTERN, path, message, mend, fix=Fix(Edit.REMOVE, path))
        return
    for name in config.tenants:
        if name != EVERY_OTHER and not matches(name):
            message = "no request can name this tenant: the name does not match tenancy.pattern"
            mend = "Rename the tenant, or widen the pattern."
            here = ("tenants", name)
            fix = Fix(Edit.REMOVE, here)
            yield Diagnostic(Code.TENANT_NAME, here, message, mend, is_about_key=True, related=(path,), fix=fix)


def _tenants_apart(config: Config) -> Iterator[Diagnostic]:
    """Tenants that nothing keeps apart: the same place, the same role, the same settings."""
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


def _others(tenant: TenantConfig, config: Config) -> Iterator[Diagnostic]:
    """What stands for all tenants that are not listed has to tell them apart."""
    datasource = config.datasources.get(tenant.datasource)
    if datasource is None or PLACEHOLDER in datasource.primary.url.get_secret_value():
        return
    written = (tenant.schema_name, tenant.role, *(tenant.row_security or {}).values())
    if not any(PLACEHOLDER in value for value in written if value is not None):
        path: Path = ("tenants", EVERY_OTHER)
        message = f"nothing keeps these tenants apart from each other: {PLACEHOLDER} stands nowhere"
        mend = f"Write schema: '{PLACEHOLDER}', a row_security setting with it, or put it into the datasource's URL."
        fix = Fix(Edit.ADD, (*path, "schema"), PLACEHOLDER)
        yield Diagnostic(Code.SHARED_PLACE, path, message, mend, is_about_key=True, fix=fix)


def _reaches(others: TenantConfig, config: Config) -> Iterator[Diagnostic]:
    """A name that is not listed must not lead to where a listed tenant lives."""
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
        for led in reach.leads(*place_of(name, tenant, sites)):
            if led not in known and matches(led):
                path: Path = ("tenants", name)
                message = f"a request for {show(led)}, which is not listed, would be served where this tenant lives"
                mend = (
                    f"Give '*' places that no other tenant has, such as 't_{PLACEHOLDER}', or name {show(led)} among"
                    " the aliases of this one."
                )
                related: tuple[Path, ...] = (("tenants", EVERY_OTHER),)
                fix = Fix(Edit.ADD, (*path, "aliases"), [*tenant.aliases, led])
                # A database in which something else keeps the tenant apart is its place in part.
                is_whole = (
                    not reach.takes_databases or (tenant.schema_name, tenant.role, tenant.row_security) == (None,) * 3
                )
                severity = Severity.ERROR if is_whole else Severity.WARNING
                if not is_whole:
                    message = (
                        f"a request for {show(led)}, which is not listed, would be served in this tenant's database"
                    )
                yield Diagnostic(
                    Code.SHARED_PLACE, path, message, mend, True, severity=severity, related=related, fix=fix
                )
                break


def _place(name: str, tenant: TenantConfig, *, has_database: bool) -> tuple[object, object]:
    """What keeps a tenant apart on its servers, as a kind and a value: both are equal for tenants that nothing does.

    The usual values are strings that are there already: with 100,000 tenants, tuples would double the peak.
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


def _together(name: str, other: str, tenant: TenantConfig) -> Diagnostic:
    path: Path = ("tenants", name)
    related: tuple[Path, ...] = (("tenants", other),)
    mend = "Give each a schema, row_security settings or a datasource of its own."
    if tenant.schema_name is None and tenant.row_security is None:
        message = f"nothing keeps this tenant apart from {show(other)}"
        fix = Fix(Edit.ADD, (*path, "schema"), name)
        severity = Severity.WARNING
        return Diagnostic(Code.SHARED_PLACE, path, message, mend, True, None, severity, related, fix=fix)
    what = "schema" if tenant.row_security is None else "row_security"
    message = f"the same {what} as tenant {show(other)}, and nothing else keeps the two apart"
    fix = Fix(Edit.REPLACE, (*path, what), name if what == "schema" else {"app.tenant": name})
    return Diagnostic(Code.SHARED_PLACE, (*path, what), message, mend, related=related, fix=fix)


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
    return Diagnostic(Code.NAME_TOO_LONG, path, message, "Shorten it.", fix=Fix(Edit.REMOVE, path))


def _routes(config: Config) -> Iterator[Diagnostic]:
    for index, rule in enumerate(config.routes):
        path: Path = ("routes", index)
        if rule.read_only and rule.intent == "write":
            message, mend = "read_only: true contradicts intent: write", "Keep one of them."
            here, related = (*path, "read_only"), ((*path, "intent"),)
            yield Diagnostic(Code.CONTRADICTION, here, message, mend, related=related, fix=Fix(Edit.REMOVE, here))
        if rule.stream and not rule.read_only:
            message = "stream: true is for snapshots: a transaction that writes has to end before the response starts"
            here = (*path, "stream")
            yield Diagnostic(Code.CONTRADICTION, here, message, "Add read_only: true.", fix=Fix(Edit.REMOVE, here))
        if rule.deferrable and not (rule.read_only and rule.isolation == "serializable"):
            message = "deferrable: true is for read-only serializable transactions"
            mend, here = "Add read_only: true and isolation: serializable.", (*path, "deferrable")
            yield Diagnostic(Code.CONTRADICTION, here, message, mend, fix=Fix(Edit.REMOVE, here))
        if rule.propagation == "not_supported":
            yield from _without_transaction(path, rule)
        for entry in rule.commit_on:
            if entry in rule.rollback_on:
                message, mend = f"{entry} stands in commit_on and in rollback_on", "Keep it in one of them."
                here, related = (*path, "commit_on"), ((*path, "rollback_on"),)
                yield Diagnostic(Code.CONTRADICTION, here, message, mend, related=related, fix=Fix(Edit.REMOVE, here))
        yield from _unreachable(config.routes, index, rule)


def _metrics(config: Config) -> Iterator[Diagnostic]:
    if config.telemetry.metric_tenants and not config.telemetry.metrics:
        path: Path = ("telemetry", "metric_tenants")
        message, mend = "there are no metrics that could name tenants", "Add metrics: true, or leave this out."
        fix = Fix(Edit.REMOVE, path)
        yield Diagnostic(Code.CONTRADICTION, path, message, mend, severity=Severity.WARNING, fix=fix)


MIN_SECRET_LENGTH: Final = 16
"""Characters; fewer can be tried out by whoever has got one token."""


def _tokens(config: Config) -> Iterator[Diagnostic]:
    consistency = config.consistency
    secrets: list[tuple[Path, SecretStr]] = [
        (("consistency", "old_secrets", index), secret) for index, secret in enumerate(consistency.old_secrets)
    ]
    if consistency.secret is not None:
        secrets.insert(0, (("consistency", "secret"), consistency.secret))
    elif consistency.token != "off":  # noqa: S105 - a word of the configuration
        message, mend = "tokens are to be signed, but with what?", "Add secret: {file: path} or secret: ${NAME}."
        here: Path = ("consistency", "secret")
        related: tuple[Path, ...] = (("consistency", "token"),)
        yield Diagnostic(Code.MISSING_KEY, here, message, mend, related=related)
    for where, secret in secrets:
        if len(secret.get_secret_value()) < MIN_SECRET_LENGTH:
            mend = f"Use {MIN_SECRET_LENGTH} characters or more, of a random one."
            yield Diagnostic(Code.WRONG_VALUE, where, "too short for a secret that signs", mend)
    if consistency.token != "off":  # noqa: S105 - a word of the configuration
        return
    if consistency.monotonic:
        where = ("consistency", "monotonic")
        message = "monotonic reads take a token, and clients carry none"
        mend = "Set token: cookie and a secret, or leave this out."
        related = (("consistency", "token"),)
        yield Diagnostic(Code.CONTRADICTION, where, message, mend, related=related, fix=Fix(Edit.REMOVE, where))
    for index, rule in enumerate(config.routes):
        if rule.consistency in ("session", "token"):
            where = ("routes", index, "consistency")
            message = f"consistency: {rule.consistency} takes a token, and clients carry none"
            mend = "Set consistency: {token: cookie, secret: ...}, or leave this out."
            related = (("consistency", "token"),)
            yield Diagnostic(Code.CONTRADICTION, where, message, mend, related=related, fix=Fix(Edit.REMOVE, where))


def _without_transaction(path: Path, rule: RouteRule) -> Iterator[Diagnostic]:
    for key in ("read_only", "stream", "retry"):
        if getattr(rule, key):
            message = f"{key} is about the transaction that propagation: not_supported does without"
            here, related = (*path, key), ((*path, "propagation"),)
            fix = Fix(Edit.REMOVE, here)
            yield Diagnostic(Code.CONTRADICTION, here, message, "Keep one of them.", related=related, fix=fix)


def _unreachable(rules: tuple[RouteRule, ...], index: int, rule: RouteRule) -> Iterator[Diagnostic]:
    for earlier, other in enumerate(rules[:index]):
        if covers(other.match, rule.match):
            message = f"this rule never comes to its turn: routes[{earlier}] matches all that it matches"
            yield Diagnostic(
                Code.UNREACHABLE,
                ("routes", index, "match"),
                message,
                "Move it in front of that rule.",
                related=(("routes", earlier, "match"),),
                severity=Severity.WARNING,
                fix=Fix(Edit.REMOVE, ("routes", index)),
            )
            return


def _resolvers(config: Config) -> Iterator[Diagnostic]:
    resolve = config.tenancy.resolve
    path: Path = ("tenancy", "resolve")
    if (config.tenants or config.tenants_from) and not resolve:
        message = "there are tenants, but no way to tell them from requests"
        mend = "Add one, such as resolve: [{header: X-Tenant}]."
        fix = Fix(Edit.ADD, path, [{"header": "X-Tenant"}])
        yield Diagnostic(Code.NO_RESOLVER, path, message, mend, related=(("tenants",),), fix=fix)
    if not config.tenants and config.tenants_from is None and config.tenancy.default is None:
        message = "no request will be served: there are no tenants and no default datasource"
        mend = "Add tenants, or name a datasource in tenancy.default."
        yield Diagnostic(
            Code.NO_RESOLVER,
            ("tenants",),
            message,
            mend,
            related=(("tenancy", "default"),),
            severity=Severity.WARNING,
            fix=Fix(Edit.ADD, ("tenancy", "default"), next(iter(config.datasources))),
        )
    for index, way in enumerate(resolve):
        if way in resolve[:index]:
            message, mend = "the same way stands in front of it", "Remove it."
            here, fix = (*path, index), Fix(Edit.REMOVE, (*path, index))
            yield Diagnostic(Code.UNREACHABLE, here, message, mend, severity=Severity.WARNING, fix=fix)
