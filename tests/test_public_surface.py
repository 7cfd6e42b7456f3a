"""The public names: a change to the public surface is a change to these lists."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import asgi_datasource

PACKAGE = {
    "AccessIntent",
    "ClientDisconnected",
    "CommitUnknown",
    "Config",
    "ConfigError",
    "ConfigFile",
    "DataError",
    "DataErrorKind",
    "DataSession",
    "DataSource",
    "DataSourceMiddleware",
    "DataSourceRegistry",
    "Explanation",
    "Isolation",
    "Params",
    "Problem",
    "Propagation",
    "Query",
    "ReadAfterWritePin",
    "Reason",
    "Resolution",
    "Role",
    "Route",
    "Row",
    "RowFactory",
    "SessionClosed",
    "Tenant",
    "TenantResolver",
    "TenantState",
    "TxState",
    "UnexpectedRollback",
    "compile",
    "current_session",
    "current_tenant",
    "in_transaction",
    "json_schema",
    "load",
    "session",
    "tenant_context",
    "transactional",
}


SESSION = {
    "after_commit",
    "after_rollback",
    "autocommit",
    "before_commit",
    "blocking",
    "commit",
    "connection",
    "datasource",
    "execute",
    "execute_and_commit",
    "executemany",
    "fetch_all",
    "fetch_one",
    "fetch_value",
    "in_transaction",
    "inbox",
    "last_route",
    "listen",
    "lock",
    "outbox",
    "pin",
    "read",
    "registry",
    "rollback",
    "set_rollback_only",
    "sqlalchemy",
    "sqlalchemy_connection",
    "state",
    "stream",
    "tenant",
    "token",
    "transaction",
    "using",
    "write",
}


async def test_dir_of_a_session_lists_its_public_names() -> None:
    registry = asgi_datasource.compile(
        {"version": 1, "datasources": {"orders": {"primary": {"url": "host=db"}}}, **DEFAULT}
    )
    made = registry.make_session(registry.tenant(None), compiled=registry.compiled, policy=registry.compiled.policy)
    assert set(dir(made)) == SESSION
    for name in SESSION - {"state"}:
        documented = inspect.getattr_static(type(made), name)
        assert inspect.getdoc(documented), f"DataSession.{name} has no docstring"


DEFAULT = {"tenancy": {"default": "orders"}}


def test_dir_of_the_package_lists_its_public_names() -> None:
    assert set(asgi_datasource.__all__) == PACKAGE
    assert set(dir(asgi_datasource)) == PACKAGE


def test_type_checkers_see_the_same_names_as_the_interpreter() -> None:
    tree = ast.parse(Path(asgi_datasource.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    homes = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert homes == asgi_datasource._HOMES
    assert set(homes) == PACKAGE


@pytest.mark.parametrize(
    "first",
    [
        "import asgi_datasource.sessions.session",
        "import asgi_datasource.asgi.middleware",
        "from asgi_datasource import session",
        "from asgi_datasource import *",
        "from asgi_datasource.transaction import transaction",
        "import asgi_datasource.config; from asgi_datasource import load",
    ],
)
def test_public_names_are_the_same_whatever_is_imported_first(first: str) -> None:
    code = (
        f"{first}\nimport asgi_datasource\n"
        "names = {name: getattr(asgi_datasource, name) for name in asgi_datasource.__all__}\n"
        "import asgi_datasource.asgi.current_session as home\n"
        "assert asgi_datasource.session is home.session and callable(home.session)\n"
        "from types import ModuleType\n"
        "assert not [name for name, value in names.items() if isinstance(value, ModuleType)]\n"
        f"assert sorted(dir(asgi_datasource)) == {sorted(PACKAGE)}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'asgi_datasource' has no attribute 'nothing'"):
        _ = asgi_datasource.nothing  # type: ignore[attr-defined]
