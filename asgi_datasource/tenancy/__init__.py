"""Who is asking, and what keeps that tenant apart from the others."""

from .isolation import quote_identifier, tenant_settings
from .resolvers import (
    MAX_NAME_LENGTH,
    Answer,
    CallableResolver,
    HeaderResolver,
    PathPrefixResolver,
    Resolution,
    SubdomainResolver,
    TenantFunction,
    TenantResolver,
    chain,
)
from .tenant import Strategy, Tenant

__all__ = [
    "MAX_NAME_LENGTH",
    "Answer",
    "CallableResolver",
    "HeaderResolver",
    "PathPrefixResolver",
    "Resolution",
    "Strategy",
    "SubdomainResolver",
    "Tenant",
    "TenantFunction",
    "TenantResolver",
    "chain",
    "quote_identifier",
    "tenant_settings",
]
