"""The ways in which a request can name its tenant, in words for a person: without tenants, keys and import paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..config import ResolverConfig, TenancyConfig, TokenConfig


@dataclass(frozen=True, slots=True)
class Way:
    """One way to name a tenant.

    Attributes:
        text: What names it.
        example: How that is written, with NAME for the tenant's name; empty where there is nothing to show.
        paths: The paths below which it works; empty for all of them.
    """

    text: str
    example: str = ""
    paths: tuple[str, ...] = ()


def ways_to_name(config: TenancyConfig) -> tuple[Way, ...]:
    """The ways that the resolvers of the document offer, in their order."""
    return tuple(_ways(config))


def _ways(config: TenancyConfig) -> Iterator[Way]:
    for resolver in config.resolve:
        text, example = _way(resolver)
        yield Way(text, example, resolver.paths)


def _way(resolver: ResolverConfig) -> tuple[str, str]:
    argument = resolver.argument
    match resolver.kind:
        case "header":
            return "A request header", f"{argument}: NAME"
        case "subdomain_of":
            return "The host name", f"NAME.{argument}"
        case "domain":
            return "The tenant's own domain", ""
        case "path_prefix":
            return "The beginning of the path", f"/{str(argument).strip('/')}/NAME/".replace("//", "/")
        case "query":
            return "A parameter of the query string", f"?{argument}=NAME"
        case "cookie":
            return "A cookie", f"{argument}=NAME"
        case "jwt_claim":
            return _token(argument)
        case _:
            return "What the application knows of the request, such as the user who has signed in", ""


def _token(config: object) -> tuple[str, str]:
    if not isinstance(config, TokenConfig):
        raise TypeError(f"expected the settings of a token, not {type(config).__name__}")
    if config.cookie is not None:
        return "A signed token in a cookie", f"{config.cookie}=TOKEN"
    scheme = "Bearer " if config.header.lower() == "authorization" else ""
    return "A signed token in a request header", f"{config.header}: {scheme}TOKEN"
