"""Checks of tenants: their names, and how requests name them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Final

from .diagnostics import Code, Diagnostic, Edit, EditKind, Path, Severity, Suggestions, show
from .hostnames import lies_within, normalize_host
from .kinds import EVERY_OTHER
from .models import Config
from .tenants import TokenConfig
from .url import PLACEHOLDER

_HMAC: Final = "HS"
_KEY_KINDS: Final = {"HS": "HS", "RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "EdDSA"}


def absent_datasource(path: Path, name: str, config: Config, suggestions: Suggestions) -> Diagnostic:
    """The problem of a name that is not a datasource.

    The message does not contain the name, because it may come from the environment.
    """
    meant, is_certain = suggestions.weigh(name, config.datasources)
    fix = f"Did you mean {meant!r}?" if meant else f"There are: {', '.join(islice(config.datasources, 10))}."
    edit = Edit(EditKind.REPLACE, path, meant or next(iter(config.datasources)), is_safe=is_certain)
    return Diagnostic(Code.UNKNOWN_DATASOURCE, path, "names a datasource that is not there", fix, edit=edit)


def check_tenancy(config: Config) -> Iterator[Diagnostic]:
    """Mistakes in the section `tenancy`."""
    yield from _addresses(config)
    yield from _proxies(config)
    tenants = _NamedTenants(config)
    for index, way in enumerate(config.tenancy.resolve):
        path: Path = ("tenancy", "resolve", index)
        if way.jwt_claim is not None:
            yield from _token(way.jwt_claim, (*path, "jwt_claim"))
        for host, tenant in (way.domain or {}).items():
            if normalize_host(host) is None:
                yield _no_host((*path, "domain", host), is_about_key=True)
            yield from tenants.check(tenant, (*path, "domain", host))
        if way.subdomain_of is not None and normalize_host(way.subdomain_of) is None:
            yield _no_host((*path, "subdomain_of"))
        if way.fixed is not None:
            yield from tenants.check(way.fixed, (*path, "fixed"))


def check_catalog(config: Config) -> Iterator[Diagnostic]:
    """Mistakes in the section `tenants_from`."""
    catalog = config.tenants_from
    if catalog is None:
        return
    for path, name in (
        (("tenants_from", "datasource"), catalog.datasource),
        (("tenants_from", "defaults", "datasource"), catalog.defaults.datasource),
    ):
        if name is not None and name not in config.datasources:
            yield absent_datasource(path, name, config, Suggestions())
    own = config.datasources.get(catalog.datasource)
    if own is not None and PLACEHOLDER in own.primary.url.get_secret_value():
        message = "this datasource has a database for each tenant: which of them would know all tenants?"
        yield Diagnostic(Code.CONTRADICTION, ("tenants_from", "datasource"), message, "Name another datasource.")
    if own is not None and own.driver is not None:
        message = f"the table of tenants is read from PostgreSQL, and this datasource has the driver {own.driver}"
        yield Diagnostic(Code.CONTRADICTION, ("tenants_from", "datasource"), message, "Name another datasource.")


def check_aliases(config: Config) -> Iterator[Diagnostic]:
    """Aliases, domains and hosts that name two tenants."""
    hosts: dict[str, tuple[str, Path]] = {}
    for number, way in enumerate(config.tenancy.resolve):
        for host, wanted in (way.domain or {}).items():
            here: Path = ("tenancy", "resolve", number, "domain", host)
            named, first = hosts.setdefault(normalize_host(host) or host, (wanted, here))
            if named != wanted:
                message = f"{show(host)} is also a host of the tenant {show(named)}"
                fix = "Take it out of one of them: a host stands for one tenant."
                yield Diagnostic(
                    Code.SHARED_NAME, here, message, fix, True, related=(first,), edit=Edit(EditKind.REMOVE, here)
                )
    owner: dict[str, str] = {}
    for name, tenant in config.tenants.items():
        for index, alias in enumerate(tenant.aliases):
            other = alias if alias in config.tenants else owner.setdefault(alias, name)
            if other != name:
                path: Path = ("tenants", name, "aliases", index)
                message = f"{show(alias)} is also a name of the tenant {show(other)}"
                fix = "Take it out of one of them: a name stands for one tenant."
                related: tuple[Path, ...] = (("tenants", other),)
                yield Diagnostic(
                    Code.SHARED_NAME, path, message, fix, related=related, edit=Edit(EditKind.REMOVE, path)
                )
    yield from _domains(config, hosts)


def _domains(config: Config, hosts: dict[str, tuple[str, Path]]) -> Iterator[Diagnostic]:
    """Tenants' domains that are not hosts, belong to another tenant, or are the application's own."""
    own = config.tenancy.own_hosts
    owner: dict[str, tuple[str, Path]] = {}
    for name, tenant in config.tenants.items():
        for index, domain in enumerate(tenant.domains):
            path: Path = ("tenants", name, "domains", index)
            edit = Edit(EditKind.REMOVE, path)
            host = normalize_host(domain)
            if host is None:
                yield _no_host(path)
                continue
            if lies_within(host, own):
                message = f"{show(domain)} is, or lies below, a domain of the application's own"
                fix = (
                    "Remove it, or name it in the map of a domain resolver. Tenants' domains are served without being"
                    " listed in trusted_hosts."
                )
                related: tuple[Path, ...] = (("tenancy",),)
                yield Diagnostic(Code.CONTRADICTION, path, message, fix, related=related, edit=edit)
                continue
            found = hosts.get(host)
            if found is None or found[0] in (name, *tenant.aliases):
                found = owner.setdefault(host, (name, path))
            if found[0] not in (name, *tenant.aliases):
                message = f"{show(domain)} is also a host of the tenant {show(found[0])}"
                fix = "Take it out of one of them: a host stands for one tenant."
                yield Diagnostic(Code.SHARED_NAME, path, message, fix, related=found[1:], edit=edit)


def _addresses(config: Config) -> Iterator[Diagnostic]:
    for index, entry in enumerate(config.tenancy.trusted_proxies):
        if entry != "unix":
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError:
                path: Path = ("tenancy", "trusted_proxies", index)
                fix = "Write 10.0.0.7, 10.0.0.0/8, fd00::/8 or unix."
                yield Diagnostic(Code.ADDRESS, path, "neither an address nor a network", fix)
    for index, host in enumerate(config.tenancy.trusted_hosts):
        if normalize_host(host.removeprefix("*.")) is None:
            yield _no_host(("tenancy", "trusted_hosts", index))


def _proxies(config: Config) -> Iterator[Diagnostic]:
    """Trusted proxies without a trusted header, and trusted headers without a proxy."""
    tenancy = config.tenancy
    path: Path = ("tenancy", "trusted_headers")
    is_none = "none" in tenancy.trusted_headers
    if is_none and len(tenancy.trusted_headers) > 1:
        here = (*path, tenancy.trusted_headers.index("none"))
        message, fix = "'none' beside other headers", "Keep none alone, or the others."
        yield Diagnostic(Code.CONTRADICTION, here, message, fix, edit=Edit(EditKind.REMOVE, here))
    elif tenancy.trusted_proxies and "trusted_headers" not in tenancy.model_fields_set:
        message = "proxies are trusted, but none of their headers: the host is that of the proxies' own requests"
        fix = "Name the headers that every proxy sets itself: [x-forwarded-host] or [forwarded]; or write [none]."
        related: tuple[Path, ...] = (("tenancy", "trusted_proxies"),)
        edit = Edit(EditKind.ADD, path, ["none"])
        yield Diagnostic(Code.CONTRADICTION, path, message, fix, severity=Severity.WARNING, related=related, edit=edit)
    elif not is_none and not tenancy.trusted_proxies:
        message = "headers are trusted, but no proxy that may send them"
        fix = "Add trusted_proxies, or leave this out."
        edit = Edit(EditKind.REMOVE, path)
        yield Diagnostic(Code.CONTRADICTION, path, message, fix, severity=Severity.WARNING, edit=edit)


def _no_host(path: Path, *, is_about_key: bool = False) -> Diagnostic:
    fix = "Write it as it stands in an address: shop.example.com."
    return Diagnostic(Code.ADDRESS, path, "not the name of a host", fix, is_about_key=is_about_key)


def _token(config: TokenConfig, path: Path) -> Iterator[Diagnostic]:
    if (config.key is None) == (config.jwks is None):
        what = "neither key nor jwks: no token could be verified" if config.key is None else "both key and jwks"
        yield Diagnostic(Code.UNVERIFIABLE, path, what, "Give one of the two.")
    if config.key is not None:
        kinds = list(dict.fromkeys(_KEY_KINDS[algorithm[:2]] for algorithm in config.algorithms))
        if len(kinds) > 1:
            message = f"one key cannot serve {kinds[0]} and {kinds[1]}: a public key would pass for a shared secret"
            if _HMAC not in kinds:
                message = f"one key cannot serve {kinds[0]} and {kinds[1]}"
            fix = "Name algorithms of one kind, or give the keys as jwks."
            yield Diagnostic(Code.UNVERIFIABLE, (*path, "algorithms"), message, fix)


class _NamedTenants:
    """The names that resolvers may yield, where the document lists all tenants."""

    def __init__(self, config: Config) -> None:
        self._tenants = config.tenants
        self._lists_all = config.tenants_from is None and EVERY_OTHER not in config.tenants
        self._names = {*config.tenants, *chain.from_iterable(tenant.aliases for tenant in config.tenants.values())}
        self._suggestions = Suggestions()

    def check(self, name: str, path: Path) -> Iterable[Diagnostic]:
        """A problem when no tenant has this name."""
        if self._lists_all and name not in self._names:
            meant = self._suggestions.find(name, self._tenants)
            fix = f"Did you mean {meant!r}?" if meant else "Add it to tenants."
            message = "names a tenant that is not there"
            yield Diagnostic(Code.UNKNOWN_TENANT, path, message, fix, related=(("tenants",),))
