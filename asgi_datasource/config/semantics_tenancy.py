"""Checks of tenants: their names, and how requests name them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Final

from .diagnostics import Code, Diagnostic, Edit, EditKind, Path, Suggestions, show
from .hostnames import normalize_host
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
    meant = suggestions.find(name, config.datasources)
    fix = f"Did you mean {meant!r}?" if meant else f"There are: {', '.join(islice(config.datasources, 10))}."
    edit = Edit(EditKind.REPLACE, path, meant or next(iter(config.datasources)), is_safe=meant is not None)
    return Diagnostic(Code.UNKNOWN_DATASOURCE, path, "names a datasource that is not there", fix, edit=edit)


def check_tenancy(config: Config) -> Iterator[Diagnostic]:
    """Mistakes in the section `tenancy`."""
    yield from _addresses(config)
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
    """Aliases and hosts that name two tenants."""
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
            spelled = normalize_host(alias) or alias
            other = alias if alias in config.tenants else owner.setdefault(spelled, name)
            if other != name or owner.get(spelled, name) != name:
                path: Path = ("tenants", name, "aliases", index)
                message = f"{show(alias)} is also a name of the tenant {show(other)}"
                fix = "Take it out of one of them: a name stands for one tenant."
                related: tuple[Path, ...] = (("tenants", other),)
                yield Diagnostic(
                    Code.SHARED_NAME, path, message, fix, related=related, edit=Edit(EditKind.REMOVE, path)
                )
            elif spelled in hosts and hosts[spelled][0] not in (name, *tenant.aliases):
                named, first = hosts[spelled]
                path = ("tenants", name, "aliases", index)
                message = f"{show(alias)} is also a host of the tenant {show(named)}"
                fix = "Take it out of one of them: a host stands for one tenant."
                yield Diagnostic(
                    Code.SHARED_NAME, path, message, fix, related=(first,), edit=Edit(EditKind.REMOVE, path)
                )


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
