"""Where the public names come from; each is imported from `asgi_datasource` itself, which lists them."""

from .config import (
    Config as Config,
    ConfigFile as ConfigFile,
    json_schema as json_schema,
    load as load,
)
from .datasource import DataSource as DataSource
from .drivers.psycopg import (
    Params as Params,
    Query as Query,
    RowFactory as RowFactory,
)
from .errors import (
    ClientDisconnected as ClientDisconnected,
    CommitUnknown as CommitUnknown,
    ConfigError as ConfigError,
    DataError as DataError,
    DataErrorKind as DataErrorKind,
    SessionClosed as SessionClosed,
    UnexpectedRollback as UnexpectedRollback,
)
from .explanation import Explanation as Explanation
from .lookup import (
    current_session as current_session,
    in_transaction as in_transaction,
    session as session,
)
from .middleware import DataSourceMiddleware as DataSourceMiddleware
from .registry import (
    DataSourceRegistry as DataSourceRegistry,
    compile as compile,
)
from .routing import (
    AccessIntent as AccessIntent,
    ReadAfterWritePin as ReadAfterWritePin,
    Reason as Reason,
    Role as Role,
    Route as Route,
)
from .session import DataSession as DataSession
from .statements import Row as Row
from .tenancy import (
    Resolution as Resolution,
    Tenant as Tenant,
    TenantResolver as TenantResolver,
    TenantState as TenantState,
    current_tenant as current_tenant,
    tenant_context as tenant_context,
)
from .transaction import (
    Isolation as Isolation,
    Propagation as Propagation,
    TxState as TxState,
    transactional as transactional,
)
