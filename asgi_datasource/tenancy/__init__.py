"""Who is asking, and what keeps that tenant apart from the others."""

from .isolation import quote_identifier, tenant_settings
from .resolvers import (
    CallableResolver,
    HeaderResolver,
    PathPrefixResolver,
    Resolution,
    SubdomainResolver,
    TenantResolution,
    TenantResolver,
)
from .tenant import Strategy, Tenant

__all__ = [
    "CallableResolver",
    "HeaderResolver",
    "PathPrefixResolver",
    "Resolution",
    "Strategy",
    "SubdomainResolver",
    "Tenant",
    "TenantResolution",
    "TenantResolver",
    "quote_identifier",
    "tenant_settings",
]
