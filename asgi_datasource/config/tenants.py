"""The tenants in the document: how they are told from requests, where they live, what keeps them apart."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args

from pydantic import ConfigDict, Field, ValidationInfo, ValidatorFunctionWrapHandler, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from .durations import parse_duration
from .hostnames import normalize_host
from .kinds import (
    CallablePath,
    ClaimName,
    ClaimValue,
    CookieName,
    DatasourceName,
    DomainName,
    Duration,
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
from .sections import OMISSIBLE, Section
from .shapes import is_mapping


class TokenConfig(Section):
    """A signed token (JWT), and the claim of it that names the tenant."""

    claim: ClaimName = Field(
        title="Claim",
        description="The claim that names the tenant: its name as it is, or else a path of names: org.id.",
        examples=["tenant_id", "https://example.com/tenant"],
    )
    algorithms: tuple[TokenAlgorithm, ...] = Field(
        min_length=1,
        title="Algorithms",
        description="What may have signed the token. With key, all of one kind: HS*, RS* and PS*, ES* or EdDSA.",
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
        description="A JWKS file with the keys; it is read again when it has changed. Nothing is fetched.",
        examples=["/etc/shop/jwks.json"],
    )
    audience: tuple[ClaimValue, ...] = Field(
        default=(),
        title="Audience",
        description="One of these has to be in the token's aud. Without it, aud is not looked at.",
        examples=[["shop"]],
    )
    issuer: Annotated[ClaimValue | None, OMISSIBLE] = Field(
        default=None,
        title="Issuer",
        description="What the token's iss has to be.",
        examples=["https://login.example.com/"],
    )
    leeway_s: Duration = Field(
        default=parse_duration("30s"),
        alias="leeway",
        json_schema_extra={"default": "30s"},
        title="Leeway",
        description="By how much the clocks of whoever made the token and of this server may differ.",
        examples=["10s"],
    )
    required: tuple[ClaimName, ...] = Field(
        default=("exp",),
        title="Required claims",
        description="Claims that have to be there. Tokens that never expire are refused unless exp is taken out.",
        examples=[["exp", "iat"]],
    )
    header: HeaderName = Field(
        default="Authorization",
        title="Header",
        description="The header that carries the token; in Authorization the word Bearer stands in front of it.",
        examples=["X-Token"],
    )
    cookie: Annotated[CookieName | None, OMISSIBLE] = Field(
        default=None,
        title="Cookie",
        description="The cookie that carries the token, in place of a header.",
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
"""The keys of which a resolver has exactly one."""


class ResolverConfig(Section):
    """One way to tell the tenant from a request: exactly one of these keys, and paths where it is for some only."""

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
        description="The tenant is the label in front of this domain: acme in acme.app.example.com.",
        examples=["app.example.com"],
    )
    domain: Annotated[dict[HostName, FixedTenant] | None, OMISSIBLE] = Field(
        default=None,
        title="Domain",
        description=(
            "The tenant is the one that this map names for the request's host, or that lists the host under its"
            " domains; {} leaves it to the domains alone."
        ),
        examples=[{"shop.acme.example": "acme"}],
    )
    path_prefix: Annotated[TenantPathPrefix | None, OMISSIBLE] = Field(
        default=None,
        title="Path prefix",
        description="The tenant is the segment of the path behind this prefix; both move to root_path.",
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
        description="The tenant is a claim of a signed token; a token that does not count is answered with 401.",
        examples=[{"claim": "tenant_id", "algorithms": ["RS256"], "jwks": "/etc/shop/jwks.json"}],
    )
    scope: Annotated[ScopePath | None, OMISSIBLE] = Field(
        default=None,
        title="Scope",
        description="The tenant is what another middleware has put there in the ASGI scope, by keys or attributes.",
        examples=["user.tenant_id"],
    )
    callable: Annotated[CallablePath | None, OMISSIBLE] = Field(
        default=None,
        title="Callable",
        description=(
            "The tenant is what this function returns for the ASGI scope; it may be async, and None leaves it to the"
            " next way."
        ),
        examples=["shop.tenants:resolve"],
    )
    fixed: Annotated[FixedTenant | None, OMISSIBLE] = Field(
        default=None,
        title="Fixed",
        description="The tenant is always this one: for a deployment that serves one, or as the last way.",
        examples=["acme"],
    )
    paths: tuple[PathPrefix, ...] = Field(
        default=(),
        title="Paths",
        description="Ask this way only for these paths and everything below them; without it, for all.",
        examples=[["/api"]],
    )

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if len(self.model_fields_set - {"paths"}) != 1:
            raise PydanticCustomError("one_key", "expected exactly one key, beside paths")
        return self

    @property
    def kind(self) -> ResolverKind:
        """Which of the ways this is."""
        return next(way for way in WAYS if way in self.model_fields_set)

    @property
    def argument(self) -> object:
        """What stands behind that key: the header's name, the domain, the prefix, the rules for a token."""
        return getattr(self, self.kind)


class TenancyConfig(Section):
    """How the tenant is told from a request, and how requests without one are answered."""

    resolve: tuple[ResolverConfig, ...] = Field(
        default=(),
        title="Resolvers",
        description="Ways to tell the tenant from a request, tried in order; the first answer wins.",
        examples=[[{"header": "X-Tenant"}, {"subdomain_of": "app.example.com"}]],
    )
    agree: Flag = Field(
        default=False,
        title="All have to agree",
        description="true: all ways are asked, and a request that names two tenants is answered with 400.",
        examples=[True],
    )
    authorize: Annotated[CallablePath | None, OMISSIBLE] = Field(
        default=None,
        title="Authorize",
        description=(
            "A function, async or not, that is given the ASGI scope and the tenant's name, and says whether this"
            " request may act for that tenant; if not, it is answered with 403."
        ),
        examples=["shop.tenants:may_act"],
    )
    hide_unknown: Flag = Field(
        default=False,
        title="Hide unknown tenants",
        description=(
            "true: a tenant that the request may not act for is answered as one that does not exist, in the same words"
            " and after the same question to authorize."
        ),
        examples=[True],
    )
    trusted_hosts: tuple[HostPattern, ...] = Field(
        default=(),
        title="Trusted hosts",
        description=(
            "Requests for other hosts are answered with 400; hosts of domain resolvers and tenants' domains are served"
            " as well. Without it, every host is served."
        ),
        examples=[["app.example.com", "*.app.example.com"]],
    )
    trusted_proxies: tuple[ProxyAddress, ...] = Field(
        default=(),
        title="Trusted proxies",
        description=(
            "The proxies in front: addresses, networks, or unix. What they say of the host that they were asked for is"
            " believed as far as trusted_headers goes."
        ),
        examples=[["10.0.0.0/8", "unix"]],
    )
    trusted_headers: tuple[TrustedHeader, ...] = Field(
        default=("none",),
        min_length=1,
        title="Trusted headers",
        description=(
            "The headers that each of the trusted proxies sets itself, whatever it was sent; one that a proxy merely"
            " passes on is its client's own word. forwarded: each appends an element of its own (RFC 7239)."
            " x-forwarded-host: each overwrites it, or takes it away. none: Host alone counts."
        ),
        examples=[["x-forwarded-host"], ["forwarded"]],
    )
    missing: RefusalStatus = Field(
        default=400,
        title="Status for no tenant",
        description="The status that answers a request which names no tenant.",
        examples=[400],
    )
    unknown: RefusalStatus = Field(
        default=404,
        title="Status for an unknown tenant",
        description="The status that answers a request whose tenant is not known here.",
        examples=[404],
    )
    exempt: tuple[PathPrefix, ...] = Field(
        default=(),
        title="Exempt paths",
        description=(
            "Paths that pass straight through, without tenant and session, with everything below them: /docs covers"
            " /docs and /docs/x, but not /docsx."
        ),
        examples=[["/healthz", "/docs"]],
    )
    pattern: NamePattern = Field(
        default="^[a-z0-9][a-z0-9_-]{0,62}$",
        title="Pattern of tenant names",
        description=(
            "Regular expression that a tenant's name must match as a whole before it is used anywhere; without"
            " look-around and back-references, so that no name takes long to match."
        ),
        examples=["^[a-z]{2,16}$"],
    )
    default: Annotated[DatasourceName | None, OMISSIBLE] = Field(
        default=None,
        title="Default datasource",
        description="The datasource that an unknown or absent tenant gets; without it such requests are refused.",
        examples=["shared"],
    )

    @property
    def own_hosts(self) -> frozenset[str]:
        """The domains that are the application's own: no tenant may have one of them, nor one below it."""
        below = (way.subdomain_of for way in self.resolve if way.subdomain_of is not None)
        names = (*below, *(host.removeprefix("*.") for host in self.trusted_hosts))
        return frozenset(filter(None, map(normalize_host, names)))


class LimitsConfig(Section):
    """How much of what it shares with others a tenant may have."""

    max_connections: Annotated[PoolSize | None, OMISSIBLE] = Field(
        default=None,
        title="Most connections",
        description=(
            "Most connections of each server's pool that the tenant may have at a time, in each process; more of them"
            " wait, and are answered with 503 when that takes too long."
        ),
        examples=[5],
    )


@dataclass(frozen=True, slots=True, repr=False, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class TenantConfig:
    """Where a tenant lives and what keeps it apart there."""

    # A dataclass with slots, not a model: there may be 100,000, and a model takes three times the memory.
    planned: ClassVar[dict[str, str]] = {
        "datasources": "name one datasource",
    }

    datasource: Annotated[
        DatasourceName,
        Field(
            title="Datasource",
            description="Name of the datasource that the tenant lives on.",
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
                "Custom settings that the policies read with current_setting(); set in every transaction. {tenant} is"
                " the tenant's name."
            ),
            examples=[{"app.tenant": "42"}],
        ),
    ] = None
    role: Annotated[
        TenantIdentifier | None,
        OMISSIBLE,
        Field(
            title="Role",
            description="Role that the tenant's transactions run as (SET LOCAL ROLE). {tenant} is its name.",
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
            description="Other names of the tenant, such as those that it had before. For hosts, see domains.",
            examples=[["acme-inc"]],
        ),
    ] = ()
    domains: Annotated[
        tuple[DomainName, ...],
        Field(
            title="Domains",
            description=(
                "Hosts of the tenant's own, for domain resolvers and for nothing else. None may be, or lie below, a"
                " domain of subdomain_of or one of trusted_hosts."
            ),
            examples=[["shop.acme.example"]],
        ),
    ] = ()

    limits: Annotated[
        LimitsConfig | None,
        OMISSIBLE,
        Field(
            title="Limits",
            description="How much of what it shares with others the tenant may have.",
            examples=[{"max_connections": 5}],
        ),
    ] = None
    database: Annotated[
        TenantIdentifier | None,
        OMISSIBLE,
        Field(
            title="Database",
            description="What stands for {tenant} in the datasource's URL, where that is not the tenant's name.",
            examples=["acme_2019"],
        ),
    ] = None

    def __repr__(self) -> str:
        # The values of the settings identify customers and are nobody else's business.
        settings = None if self.row_security is None else list(self.row_security)
        place = f"datasource={self.datasource!r}, schema={self.schema_name!r}, role={self.role!r}"
        return f"TenantConfig({place}, row_security={settings})"


OWNED: Final = "owned"
"""In the context of a validation: the document belongs to nobody else, so that parts of it may become the config's."""


def keep_compact(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Take tenants that a reader has made compact as they are: the mapping is not built a second time."""
    if info.context == OWNED and is_mapping(value) and {TenantConfig}.issuperset(map(type, value.values())):
        return value if all(map(is_tenant_name, value)) else check(value)
    return check(value)
