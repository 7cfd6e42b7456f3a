"""Does what the document says of tenants make sense: their names, and how requests name them?"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

from .diagnostics import Code, Diagnostic, Edit, Fix, Path, Severity, did_you_mean, show
from .hostnames import lies_within, normalize_host
from .kinds import EVERY_OTHER
from .models import Config
from .tenants import TokenConfig
from .url import PLACEHOLDER

_HMAC: Final = "HS"
_KEY_KINDS: Final = {"HS": "HS", "RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "EdDSA"}


def check_tenancy(config: Config) -> Iterator[Diagnostic]:
    """What cannot be meant about telling tenants from requests."""
    yield from _addresses(config)
    yield from _proxies(config)
    for index, way in enumerate(config.tenancy.resolve):
        path: Path = ("tenancy", "resolve", index)
        if way.jwt_claim is not None:
            yield from _token(way.jwt_claim, (*path, "jwt_claim"))
        for host, tenant in (way.domain or {}).items():
            if normalize_host(host) is None:
                yield _no_host((*path, "domain", host), is_about_key=True)
            yield from _absent(config, tenant, (*path, "domain", host))
        if way.subdomain_of is not None and normalize_host(way.subdomain_of) is None:
            yield _no_host((*path, "subdomain_of"))
        if way.fixed is not None:
            yield from _absent(config, way.fixed, (*path, "fixed"))


def check_catalog(config: Config) -> Iterator[Diagnostic]:
    """What cannot be meant about tenants from a table."""
    catalog = config.tenants_from
    if catalog is None:
        return
    for path, name in (
        (("tenants_from", "datasource"), catalog.datasource),
        (("tenants_from", "defaults", "datasource"), catalog.defaults.datasource),
    ):
        if name is not None and name not in config.datasources:
            meant = did_you_mean(name, config.datasources)
            mend = f"Did you mean {meant!r}?" if meant else f"There are: {', '.join(list(config.datasources)[:10])}."
            fix = Fix(Edit.REPLACE, path, meant or next(iter(config.datasources)))
            yield Diagnostic(Code.UNKNOWN_DATASOURCE, path, "names a datasource that is not there", mend, fix=fix)
    own = config.datasources.get(catalog.datasource)
    if own is not None and PLACEHOLDER in own.primary.url.get_secret_value():
        message = "this datasource has a database for each tenant: which of them would know all tenants?"
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
                mend = "Take it out of one of them: a host stands for one tenant."
                yield Diagnostic(
                    Code.SHARED_NAME, here, message, mend, True, related=(first,), fix=Fix(Edit.REMOVE, here)
                )
    owner: dict[str, str] = {}
    for name, tenant in config.tenants.items():
        for index, alias in enumerate(tenant.aliases):
            other = alias if alias in config.tenants else owner.setdefault(alias, name)
            if other != name:
                path: Path = ("tenants", name, "aliases", index)
                message = f"{show(alias)} is also a name of the tenant {show(other)}"
                mend = "Take it out of one of them: a name stands for one tenant."
                related: tuple[Path, ...] = (("tenants", other),)
                yield Diagnostic(Code.SHARED_NAME, path, message, mend, related=related, fix=Fix(Edit.REMOVE, path))
    yield from _domains(config, hosts)


def _domains(config: Config, hosts: dict[str, tuple[str, Path]]) -> Iterator[Diagnostic]:
    """Domains of tenants that are none, somebody else's, or the application's own."""
    own = config.tenancy.own_hosts
    owner: dict[str, tuple[str, Path]] = {}
    for name, tenant in config.tenants.items():
        for index, domain in enumerate(tenant.domains):
            path: Path = ("tenants", name, "domains", index)
            host = normalize_host(domain)
            if host is None:
                yield _no_host(path)
                continue
            if lies_within(host, own):
                message = f"{show(domain)} is, or lies below, a domain of the application's own"
                mend = (
                    "Remove it; where it is meant, name it in the map of a domain resolver. Customers' domains are"
                    " served without standing in trusted_hosts."
                )
                related: tuple[Path, ...] = (("tenancy",),)
                yield Diagnostic(Code.CONTRADICTION, path, message, mend, related=related, fix=Fix(Edit.REMOVE, path))
                continue
            found = hosts.get(host)
            if found is None or found[0] in (name, *tenant.aliases):
                found = owner.setdefault(host, (name, path))
            if found[0] not in (name, *tenant.aliases):
                message = f"{show(domain)} is also a host of the tenant {show(found[0])}"
                mend = "Take it out of one of them: a host stands for one tenant."
                yield Diagnostic(Code.SHARED_NAME, path, message, mend, related=found[1:], fix=Fix(Edit.REMOVE, path))


def _addresses(config: Config) -> Iterator[Diagnostic]:
    for index, entry in enumerate(config.tenancy.trusted_proxies):
        if entry != "unix":
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError:
                path: Path = ("tenancy", "trusted_proxies", index)
                mend = "Write 10.0.0.7, 10.0.0.0/8, fd00::/8 or unix."
                yield Diagnostic(Code.ADDRESS, path, "neither an address nor a network", mend)
    for index, host in enumerate(config.tenancy.trusted_hosts):
        if normalize_host(host.removeprefix("*.")) is None:
            yield _no_host(("tenancy", "trusted_hosts", index))


def _proxies(config: Config) -> Iterator[Diagnostic]:
    """Proxies whose headers do not count, and headers that nobody's word makes count."""
    tenancy = config.tenancy
    path: Path = ("tenancy", "trusted_headers")
    is_none = "none" in tenancy.trusted_headers
    if is_none and len(tenancy.trusted_headers) > 1:
        here = (*path, tenancy.trusted_headers.index("none"))
        message, mend = "'none' beside other headers", "Keep none alone, or the others."
        yield Diagnostic(Code.CONTRADICTION, here, message, mend, fix=Fix(Edit.REMOVE, here))
    elif tenancy.trusted_proxies and "trusted_headers" not in tenancy.model_fields_set:
        message = "proxies are trusted, but none of their headers: the host is that of the proxies' own requests"
        mend = "Name the headers that each of them sets itself: [x-forwarded-host] or [forwarded]; or write [none]."
        related: tuple[Path, ...] = (("tenancy", "trusted_proxies"),)
        fix = Fix(Edit.ADD, path, ["none"])
        yield Diagnostic(Code.CONTRADICTION, path, message, mend, severity=Severity.WARNING, related=related, fix=fix)
    elif not is_none and not tenancy.trusted_proxies:
        message = "headers are trusted, but no proxy that may send them"
        mend = "Add trusted_proxies, or leave this out."
        fix = Fix(Edit.REMOVE, path)
        yield Diagnostic(Code.CONTRADICTION, path, message, mend, severity=Severity.WARNING, fix=fix)


def _no_host(path: Path, *, is_about_key: bool = False) -> Diagnostic:
    mend = "Write it as it stands in an address: shop.example.com."
    return Diagnostic(Code.ADDRESS, path, "not the name of a host", mend, is_about_key=is_about_key)


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
            mend = "Name algorithms of one kind, or give the keys as jwks."
            yield Diagnostic(Code.UNVERIFIABLE, (*path, "algorithms"), message, mend)


def _absent(config: Config, tenant: str, path: Path) -> Iterable[Diagnostic]:
    """A tenant that is named and not there, where the document lists all of them."""
    if config.tenants_from is not None or EVERY_OTHER in config.tenants:
        return
    if tenant in config.tenants or any(tenant in other.aliases for other in config.tenants.values()):
        return
    meant = did_you_mean(tenant, config.tenants)
    mend = f"Did you mean {meant!r}?" if meant else "Add it to tenants."
    message = "names a tenant that is not there"
    yield Diagnostic(Code.UNKNOWN_TENANT, path, message, mend, related=(("tenants",),))
