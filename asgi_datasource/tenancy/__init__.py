"""Tenants: resolution from requests, admission, isolation, and the catalog."""

from .admission import Admission, Authorize, TenantMissing
from .catalog import TABLE_QUERY, Catalog, CatalogPlan, CatalogState
from .catalog_rows import RowReader
from .compiler import (
    Resolvers,
    TenantCompiler,
    compile_admission,
    compile_tenants,
    homes_to_come,
    import_callable,
)
from .current_tenant import current_tenant, tenant_context
from .directory import TenantDirectory, TenantMap, TenantSource
from .domains import DomainResolver, SubdomainResolver, TrustedHostResolver
from .hosts import RequestHost, TrustedHosts
from .isolation import by_database, home_of, quote_identifier, tenant_settings
from .isolation_audit import Ask, Finding, Hole, Home, find_holes, sample
from .place_index import OtherTenants, PlaceIndex
from .resolution import ANYTHING, MAX_NAME_LENGTH, Answer, Reads, Resolution, TenantResolver, reads_of
from .resolver_chain import Agreement, PathRuleResolver, chain
from .resolvers import (
    CallableResolver,
    CookieResolver,
    FixedResolver,
    HeaderResolver,
    PathPrefixResolver,
    QueryResolver,
    ScopeResolver,
    TenantFunction,
)
from .row_security_ddl import PolicyRules, policy_sql
from .tenant import Strategy, Tenant, TenantState
from .tokens import FixedKey, KeySetFile, TokenResolver, TokenRules

__all__ = [
    "ANYTHING",
    "MAX_NAME_LENGTH",
    "TABLE_QUERY",
    "Admission",
    "Agreement",
    "Answer",
    "Ask",
    "Authorize",
    "CallableResolver",
    "Catalog",
    "CatalogPlan",
    "CatalogState",
    "CookieResolver",
    "DomainResolver",
    "Finding",
    "FixedKey",
    "FixedResolver",
    "HeaderResolver",
    "Hole",
    "Home",
    "KeySetFile",
    "OtherTenants",
    "PathPrefixResolver",
    "PathRuleResolver",
    "PlaceIndex",
    "PolicyRules",
    "QueryResolver",
    "Reads",
    "RequestHost",
    "Resolution",
    "Resolvers",
    "RowReader",
    "ScopeResolver",
    "Strategy",
    "SubdomainResolver",
    "Tenant",
    "TenantCompiler",
    "TenantDirectory",
    "TenantFunction",
    "TenantMap",
    "TenantMissing",
    "TenantResolver",
    "TenantSource",
    "TenantState",
    "TokenResolver",
    "TokenRules",
    "TrustedHostResolver",
    "TrustedHosts",
    "by_database",
    "chain",
    "compile_admission",
    "compile_tenants",
    "current_tenant",
    "find_holes",
    "home_of",
    "homes_to_come",
    "import_callable",
    "policy_sql",
    "quote_identifier",
    "reads_of",
    "sample",
    "tenant_context",
    "tenant_settings",
]
