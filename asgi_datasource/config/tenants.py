"""The tenants in the document: how they are told from requests, where they live, what keeps them apart."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, ValidatorFunctionWrapHandler, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from .kinds import (
    CallablePath,
    DatabaseIdentifier,
    DatasourceName,
    DomainName,
    HeaderName,
    NamePattern,
    PathPrefix,
    RefusalStatus,
    SettingName,
    SettingValue,
    TenantPathPrefix,
    is_tenant_name,
)
from .sections import OMISSIBLE, Section
from .shapes import is_mapping


class ResolverConfig(Section):
    """One way to tell the tenant from a request: exactly one of these keys."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    planned: ClassVar[dict[str, str]] = dict.fromkeys(
        ("domain", "query", "cookie", "jwt_claim", "scope", "fixed"),
        "use header, subdomain_of, path_prefix or callable",
    )

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
    path_prefix: Annotated[TenantPathPrefix | None, OMISSIBLE] = Field(
        default=None,
        title="Path prefix",
        description="The tenant is the segment of the path behind this prefix; both move to root_path.",
        examples=["/t"],
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

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise PydanticCustomError("one_key", "expected exactly one key")
        return self

    @property
    def kind(self) -> Literal["header", "subdomain_of", "path_prefix", "callable"]:
        """Which of the ways this is."""
        if self.header is not None:
            return "header"
        if self.subdomain_of is not None:
            return "subdomain_of"
        return "path_prefix" if self.path_prefix is not None else "callable"

    @property
    def argument(self) -> str:
        """What stands behind the key: the header's name, the domain, the prefix or the function."""
        return self.header or self.subdomain_of or self.path_prefix or self.callable or ""


class TenancyConfig(Section):
    """How the tenant is told from a request, and how requests without one are answered."""

    planned: ClassVar[dict[str, str]] = {
        "trusted_hosts": "let the proxy in front check them",
        "trusted_proxies": "leave it out: forwarded headers are not read",
        "authorize": "check it in the application",
        "hide_unknown": "set unknown to the status that you want",
        "tenants_from": "list the tenants under tenants",
    }

    resolve: tuple[ResolverConfig, ...] = Field(
        default=(),
        title="Resolvers",
        description="Ways to tell the tenant from a request, tried in order; the first answer wins.",
        examples=[[{"header": "X-Tenant"}, {"subdomain_of": "app.example.com"}]],
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
        description="Python regular expression that a tenant's name must match as a whole before it is used anywhere.",
        examples=["^[a-z]{2,16}$"],
    )
    default: Annotated[DatasourceName | None, OMISSIBLE] = Field(
        default=None,
        title="Default datasource",
        description="The datasource that an unknown or absent tenant gets; without it such requests are refused.",
        examples=["shared"],
    )


@dataclass(frozen=True, slots=True, repr=False, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class TenantConfig:
    """Where a tenant lives and what keeps it apart there."""

    # A dataclass with slots, not a model: there may be 100,000, and a model takes three times the memory.
    planned: ClassVar[dict[str, str]] = {
        "limits": "leave it out: the limits of the datasource's pool apply",
        "state": "leave it out: every tenant is active",
        "datasources": "name one datasource",
        "aliases": "give the tenant a second entry",
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
        DatabaseIdentifier | None,
        OMISSIBLE,
        Field(
            alias="schema",
            title="Schema",
            description="The tenant's own schema: first in the search_path of its transactions.",
            examples=["acme"],
        ),
    ] = None
    row_security: Annotated[
        dict[SettingName, SettingValue] | None,
        OMISSIBLE,
        Field(
            min_length=1,
            title="Row security settings",
            description="Custom settings that the policies read with current_setting(); set in every transaction.",
            examples=[{"app.tenant": "42"}],
        ),
    ] = None
    role: Annotated[
        DatabaseIdentifier | None,
        OMISSIBLE,
        Field(
            title="Role",
            description="Role that the tenant's transactions run as (SET LOCAL ROLE).",
            examples=["tenant_reader"],
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
