"""The sections `tenancy` and `tenants`: resolvers, and each tenant's datasource and isolation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationInfo, ValidatorFunctionWrapHandler, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from .diagnostics import Path
from .durations import parse_duration
from .hostnames import normalize_host
from .kinds import (
    PATH_PREFIX,
    CallablePath,
    ClaimName,
    ClaimValue,
    CookieName,
    DatasourceName,
    DomainName,
    Duration,
    ExemptPreset,
    FilePath,
    FixedTenant,
    Flag,
    HeaderName,
    HostName,
    HostPattern,
    NamePattern,
    PathPrefix,
    PoolSize,
    ProxyAddress,
    QueryName,
    RefusalStatus,
    ScopePath,
    SecretText,
    SettingName,
    SettingValue,
    TenantIdentifier,
    TenantPathPrefix,
    TenantStateWord,
    TokenAlgorithm,
    TrustedHeader,
    is_tenant_name,
)
from .sections import OMISSIBLE, ListForm, Section
from .shapes import is_mapping


class TokenConfig(Section):
    """A signed token (JWT), and the claim that names the tenant."""

    claim: ClaimName = Field(
        title="Claim",
        description=(
            "The claim that names the tenant: the claim of exactly this name, else a path of names such as org.id."
        ),
        examples=["tenant_id", "https://example.com/tenant"],
    )
    algorithms: tuple[TokenAlgorithm, ...] = Field(
        min_length=1,
        title="Algorithms",
        description="The accepted signature algorithms. With key, all of one kind: HS*, RS* and PS*, ES* or EdDSA.",
        examples=[["RS256"]],
    )
    key: Annotated[SecretText | None, OMISSIBLE] = Field(
        default=None,
        title="Key",
        description="The shared secret for HS*, the public key in PEM for the others. Either key or jwks.",
        examples=["${TOKEN_KEY}", {"file": "/run/secrets/token_key.pem"}],
    )
    jwks: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="Key set",
        description="A JWKS file with the keys; it is read again after a change. Nothing is fetched.",
        examples=["/etc/shop/jwks.json"],
    )
    audience: tuple[ClaimValue, ...] = Field(
        default=(),
        title="Audience",
        description="The token's aud must contain one of these. Without it, aud is not checked.",
        examples=[["shop"]],
    )
    issuer: Annotated[ClaimValue | None, OMISSIBLE] = Field(
        default=None,
        title="Issuer",
        description="The required value of the token's iss.",
        examples=["https://login.example.com/"],
    )
    leeway_s: Duration = Field(
        default=parse_duration("30s"),
        alias="leeway",
        json_schema_extra={"default": "30s"},
        title="Leeway",
        description="How far the clocks of the token's issuer and of this server may differ.",
        examples=["10s"],
    )
    required: tuple[ClaimName, ...] = Field(
        default=("exp",),
        title="Required claims",
        description="Required claims. Tokens that never expire are refused unless exp is removed from here.",
        examples=[["exp", "iat"]],
    )
    header: HeaderName = Field(
        default="Authorization",
        title="Header",
        description="The header that carries the token; in Authorization it follows the word Bearer.",
        examples=["X-Token"],
    )
    cookie: Annotated[CookieName | None, OMISSIBLE] = Field(
        default=None,
        title="Cookie",
        description="The cookie that carries the token, instead of a header.",
        examples=["session"],
    )


ResolverKind = Literal[
    "header",
    "subdomain_of",
    "domain",
    "path_prefix",
    "query",
    "cookie",
    "jwt_claim",
    "scope",
    "callable",
    "fixed",
]
WAYS: Final[tuple[ResolverKind, ...]] = get_args(ResolverKind)
"""The keys of resolvers; each resolver has exactly one of them."""


class ResolverConfig(Section):
    """A resolver finds the tenant of a request: exactly one of these keys, and optionally paths."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [way]} for way in WAYS]})

    header: Annotated[HeaderName | None, OMISSIBLE] = Field(
        default=None,
        title="Header",
        description="The tenant is the value of this request header.",
        examples=["X-Tenant"],
    )
    subdomain_of: Annotated[DomainName | None, OMISSIBLE] = Field(
        default=None,
        title="Subdomain of",
        description="The tenant is the label before this domain: acme in acme.app.example.com.",
        examples=["app.example.com"],
    )
    domain: Annotated[dict[HostName, FixedTenant] | None, OMISSIBLE] = Field(
        default=None,
        title="Domain",
        description=(
            "The tenant is what this map has for the request's host, or the tenant with the host among its domains; {}"
            " uses the domains alone."
        ),
        examples=[{"shop.acme.example": "acme"}],
    )
    path_prefix: Annotated[TenantPathPrefix | None, OMISSIBLE] = Field(
        default=None,
        title="Path prefix",
        description="The tenant is the segment of the path after this prefix; both move to root_path.",
        examples=["/t"],
    )
    query: Annotated[QueryName | None, OMISSIBLE] = Field(
        default=None,
        title="Query parameter",
        description="The tenant is the value of this parameter of the query string.",
        examples=["tenant"],
    )
    cookie: Annotated[CookieName | None, OMISSIBLE] = Field(
        default=None,
        title="Cookie",
        description="The tenant is the value of this cookie.",
        examples=["tenant"],
    )
    jwt_claim: Annotated[TokenConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Claim of a token",
        description="The tenant is a claim of a signed token; an invalid token is answered with 401.",
        examples=[{"claim": "tenant_id", "algorithms": ["RS256"], "jwks": "/etc/shop/jwks.json"}],
    )
    scope: Annotated[ScopePath | None, OMISSIBLE] = Field(
        default=None,
        title="Scope",
        description=(
            "The tenant is a value in the ASGI scope that another middleware has set; the path consists of keys and"
            " attributes."
        ),
        examples=["user.tenant_id"],
    )
    callable: Annotated[CallablePath | None, OMISSIBLE] = Field(
        default=None,
        title="Callable",
        description=(
            "The tenant is what this function returns for the ASGI scope; it may be async, and None means that the"
            " next resolver is tried."
        ),
        examples=["shop.tenants:resolve"],
    )
    fixed: Annotated[FixedTenant | None, OMISSIBLE] = Field(
        default=None,
        title="Fixed",
        description="The tenant is always this one: for a deployment with one tenant, or as the last resolver.",
        examples=["acme"],
    )
    paths: tuple[PathPrefix, ...] = Field(
        default=(),
        title="Paths",
        description="The resolver applies only to these paths and everything below them; without it, to all paths.",
        examples=[["/api"]],
    )

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if len(self.model_fields_set - {"paths"}) != 1:
            raise PydanticCustomError("one_key", "expected exactly one key, beside paths")
        return self

    @property
    def kind(self) -> ResolverKind:
        """The resolver's key."""
        return next(way for way in WAYS if way in self.model_fields_set)

    @property
    def argument(self) -> object:
        """The value of that key: the header's name, the domain, the prefix, the token's settings."""
        return getattr(self, self.kind)


class ExemptConfig(Section):
    """Paths without tenant and session."""

    preset: Annotated[ExemptPreset | None, OMISSIBLE] = Field(
        default=None,
        title="Preset",
        description=(
            "The pages that a framework adds by itself, each path alone. fastapi: /docs, /docs/oauth2-redirect, /redoc"
            " and /openapi.json."
        ),
        examples=["fastapi"],
    )
    paths: tuple[PathPrefix, ...] = Field(
        default=(),
        title="Paths",
        description="Further paths, together with everything below them.",
        examples=[["/healthz"]],
    )

    @property
    def pages(self) -> tuple[str, ...]:
        """The paths of the preset."""
        return () if self.preset is None else EXEMPT_PAGES[self.preset]

    def place(self, index: int) -> Path:
        """The path of an entry of `paths` below this section, as the document has it."""
        return ("paths", index)


class ExemptList(ExemptConfig):
    """The same, written as a list of paths."""

    def place(self, index: int) -> Path:
        """The path of an entry below the list."""
        return (index,)


EXEMPT_PAGES: Final[dict[str, tuple[str, ...]]] = {
    "fastapi": ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
}
"""The paths of each preset. Source: FastAPI's defaults of `docs_url`, `swagger_ui_oauth2_redirect_url`, ..."""


class TenancyConfig(Section):
    """How requests name their tenant, and how requests without a tenant are answered."""

    resolve: tuple[ResolverConfig, ...] = Field(
        default=(),
        title="Resolvers",
        description="Resolvers find the tenant of a request. They are tried in order; the first answer applies.",
        examples=[[{"header": "X-Tenant"}, {"subdomain_of": "app.example.com"}]],
    )
    agree: Flag = Field(
        default=False,
        title="Agreement",
        description="true: all resolvers are tried, and a request that names two tenants is answered with 400.",
        examples=[True],
    )
    authorize: Annotated[CallablePath | None, OMISSIBLE] = Field(
        default=None,
        title="Authorize",
        description=(
            "A function, async or not, that takes the ASGI scope and the tenant's name, and returns whether the"
            " request may act for that tenant; if not, it is answered with 403."
        ),
        examples=["shop.tenants:may_act"],
    )
    hide_unknown: Flag = Field(
        default=False,
        title="Hide unknown tenants",
        description=(
            "true: requests for a tenant that they may not act for get the same answer as for one that does not exist,"
            " after the same call of authorize."
        ),
        examples=[True],
    )
    trusted_hosts: tuple[HostPattern, ...] = Field(
        default=(),
        title="Trusted hosts",
        description=(
            "Requests for other hosts are answered with 400; the hosts of domain resolvers and tenants' domains are"
            " always served. Without it, every host is served."
        ),
        examples=[["app.example.com", "*.app.example.com"]],
    )
    trusted_proxies: tuple[ProxyAddress, ...] = Field(
        default=(),
        title="Trusted proxies",
        description=(
            "Peers whose forwarding headers are trusted, as far as trusted_headers names them: addresses, networks, or"
            " unix."
        ),
        examples=[["10.0.0.0/8", "unix"]],
    )
    trusted_headers: tuple[TrustedHeader, ...] = Field(
        default=("none",),
        min_length=1,
        title="Trusted headers",
        description=(
            "Headers that every trusted proxy sets itself. Do not name a header that a proxy passes on: the client"
            " controls it. forwarded: each proxy appends its own element (RFC 7239). x-forwarded-host: each proxy"
            " overwrites or removes it. none: only Host counts."
        ),
        examples=[["x-forwarded-host"], ["forwarded"]],
    )
    missing: RefusalStatus = Field(
        default=400,
        title="Status for no tenant",
        description="The status for requests that name no tenant.",
        examples=[400],
    )
    missing_page: Flag = Field(
        default=True,
        title="Page for no tenant",
        description=(
            "Whether a browser that names no tenant gets a page with the ways to name one, instead of a problem"
            " document. With hide_unknown it never does."
        ),
        examples=[False],
    )
    unknown: RefusalStatus = Field(
        default=404,
        title="Status for an unknown tenant",
        description="The status for requests with an unknown tenant.",
        examples=[404],
    )
    exempt: Annotated[ExemptConfig, ListForm(ExemptList, "paths", PATH_PREFIX)] = Field(
        default=ExemptList(),
        json_schema_extra={"default": []},
        title="Exempt paths",
        description=(
            "Paths without tenant and session, together with everything below them: /docs covers /docs and /docs/x,"
            " but not /docsx. A list, or a section with a preset."
        ),
        examples=[["/healthz", "/docs"], {"preset": "fastapi", "paths": ["/healthz"]}],
    )
    pattern: NamePattern = Field(
        default="^[a-z0-9][a-z0-9_-]{0,62}$",
        title="Pattern of tenant names",
        description=(
            "Regular expression that the whole name of a tenant must match before the name is used. Look-around and"
            " back-references are not supported, so that matching takes linear time."
        ),
        examples=["^[a-z]{2,16}$"],
    )
    default: Annotated[DatasourceName | None, OMISSIBLE] = Field(
        default=None,
        title="Default datasource",
        description="The datasource for requests with an unknown tenant or none; without it such requests are refused.",
        examples=["shared"],
    )

    @property
    def own_hosts(self) -> frozenset[str]:
        """The application's own domains: no tenant may have one of them or one below."""
        below = (way.subdomain_of for way in self.resolve if way.subdomain_of is not None)
        names = (*below, *(host.removeprefix("*.") for host in self.trusted_hosts))
        return frozenset(filter(None, map(normalize_host, names)))


class LimitsConfig(Section):
    """A tenant's limits on shared resources."""

    max_connections: Annotated[PoolSize | None, OMISSIBLE] = Field(
        default=None,
        title="Most connections",
        description=(
            "Most connections of each server's pool that the tenant may use at a time, in each process; further"
            " statements wait, and are answered with 503 when that takes too long."
        ),
        examples=[5],
    )


class PlaceConfig(Section):
    """A tenant's isolation on another datasource than its own; {} is none."""

    schema_name: Annotated[TenantIdentifier | None, OMISSIBLE] = Field(
        default=None,
        alias="schema",
        title="Schema",
        description="The tenant's own schema there. {tenant} is its name.",
        examples=["acme"],
    )
    row_security: Annotated[dict[SettingName, SettingValue] | None, OMISSIBLE] = Field(
        default=None,
        min_length=1,
        title="Row security settings",
        description="Custom settings that policies read there. {tenant} is the tenant's name.",
        examples=[{"app.tenant": "42"}],
    )
    role: Annotated[TenantIdentifier | None, OMISSIBLE] = Field(
        default=None,
        title="Role",
        description="The role that the tenant's transactions run as there. {tenant} is its name.",
        examples=["tenant_reader"],
    )
    database: Annotated[TenantIdentifier | None, OMISSIBLE] = Field(
        default=None,
        title="Database",
        description="The value of {tenant} in that datasource's URL, where it is not the tenant's name.",
        examples=["acme_2019"],
    )


@dataclass(frozen=True, slots=True, repr=False, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class TenantConfig:
    """A tenant's datasource, and its isolation there."""

    # A dataclass with slots instead of a model: there may be 100,000, and a model takes three times the memory.
    planned: ClassVar[dict[str, str]] = {}

    datasource: Annotated[
        DatasourceName,
        Field(
            title="Datasource",
            description="The name of the tenant's datasource.",
            examples=["orders"],
        ),
    ]
    schema_name: Annotated[
        TenantIdentifier | None,
        OMISSIBLE,
        Field(
            alias="schema",
            title="Schema",
            description="The tenant's own schema: first in the search_path of its transactions. {tenant} is its name.",
            examples=["acme"],
        ),
    ] = None
    row_security: Annotated[
        dict[SettingName, SettingValue] | None,
        OMISSIBLE,
        Field(
            min_length=1,
            title="Row security settings",
            description=(
                "Custom settings that policies read with current_setting(); they are set in every transaction."
                " {tenant} is the tenant's name."
            ),
            examples=[{"app.tenant": "42"}],
        ),
    ] = None
    role: Annotated[
        TenantIdentifier | None,
        OMISSIBLE,
        Field(
            title="Role",
            description="The role that the tenant's transactions run as (SET LOCAL ROLE). {tenant} is its name.",
            examples=["tenant_reader"],
        ),
    ] = None

    state: Annotated[
        TenantStateWord,
        Field(
            title="State",
            description=(
                "active; read_only: writes are answered with 403; suspended: everything is answered with 403; moving:"
                " writes are answered with 503 and Retry-After."
            ),
            examples=["active"],
        ),
    ] = "active"
    aliases: Annotated[
        tuple[FixedTenant, ...],
        Field(
            title="Aliases",
            description="Other names of the tenant, such as former names. Hosts belong to domains.",
            examples=[["acme-inc"]],
        ),
    ] = ()
    domains: Annotated[
        tuple[DomainName, ...],
        Field(
            title="Domains",
            description=(
                "Hosts of the tenant, for domain resolvers only. A domain must not be, or lie below, a domain of"
                " subdomain_of or one of trusted_hosts."
            ),
            examples=[["shop.acme.example"]],
        ),
    ] = ()

    limits: Annotated[
        LimitsConfig | None,
        OMISSIBLE,
        Field(
            title="Limits",
            description="Limits on shared resources.",
            examples=[{"max_connections": 5}],
        ),
    ] = None
    database: Annotated[
        TenantIdentifier | None,
        OMISSIBLE,
        Field(
            title="Database",
            description="The value of {tenant} in the datasource's URL, where it is not the tenant's name.",
            examples=["acme_2019"],
        ),
    ] = None

    datasources: Annotated[
        dict[DatasourceName, PlaceConfig] | None,
        OMISSIBLE,
        Field(
            title="Other datasources",
            description=(
                "Datasources that the tenant has besides its own, for db.using(NAME) and routes[].datasource, each with"
                ' its isolation there. Not for the tenants of "*" and of tenants_from.'
            ),
            examples=[{"analytics": {"schema": "acme"}}],
        ),
    ] = None

    @property
    def schema(self) -> str | None:
        """The tenant's own schema, by the name of its key."""
        return self.schema_name

    def __repr__(self) -> str:
        # The values of the settings identify customers.
        settings = None if self.row_security is None else list(self.row_security)
        place = f"datasource={self.datasource!r}, schema={self.schema_name!r}, role={self.role!r}"
        return f"TenantConfig({place}, row_security={settings})"


OWNED: Final = "owned"
"""The context of a validation that may take parts of the document, because nothing else refers to it."""


def keep_compact(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Keep a mapping of tenants that are already validated; it is not copied."""
    if info.context == OWNED and is_mapping(value) and {TenantConfig}.issuperset(map(type, value.values())):
        return value if all(map(is_tenant_name, value)) else check(value)
    return check(value)
