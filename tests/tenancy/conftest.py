"""What the tests of this folder share."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_datasource.testing import EmbeddedCluster
from asgi_datasource.testing.binaries import find_binaries
from tests.tenancy.provisioning_site import FILES, Site


@pytest.fixture(scope="module")
def databases(cluster: EmbeddedCluster) -> Iterator[str]:
    """The control database and two for schemas, for all tests: each begins with what `site` has swept away."""
    prefix = f"site_{os.getpid()}"
    for name in ("control", "one", "two"):
        cluster.make_database(f"{prefix}_{name}")
    yield prefix
    for name in ("control", "one", "two"):
        cluster.remove_database(f"{prefix}_{name}")


SWEEP = """
do $$ declare name text; begin
    for name in select nspname from pg_namespace where nspname !~ '^(pg_|public$|information_schema$)'
    loop execute format('drop schema %I cascade', name); end loop;
    for name in select c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
    loop execute format('drop table %I cascade', name); end loop;
end $$"""


@pytest.fixture
async def site(cluster: EmbeddedCluster, databases: str, tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(cluster, tmp_path, databases)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    node = cluster.nodes["primary"]

    def server(dbname: str, user: str) -> dict[str, str]:
        return {"url": node.url(dbname=f"{databases}_{dbname}", user=user)}

    def place(dbname: str) -> dict[str, Any]:
        return {"primary": server(dbname, "app"), "admin": server(dbname, "postgres")}

    own = node.url(dbname="PLACE").replace("PLACE", f"{databases}_{{tenant}}")
    document = {
        "version": 1,
        "datasources": {
            **{name: place(name) for name in ("control", "one", "two")},
            "own": {"primary": {"url": own}, "admin": {"url": node.url(dbname="postgres", user="postgres")}},
        },
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants_from": {"datasource": "control", "defaults": {"datasource": "one", "schema": "t_{tenant}"}},
        "provisioning": {
            "set_up": ["tables.sql", "tests.tenancy.commands:seed", "more.sql"],
            "dump_folder": str(tmp_path / "dumps"),
            "programs": str(find_binaries(18).bin_dir),
        },
    }
    made.config.write_text(json.dumps(document))
    yield made
    for name in ("control", "one", "two"):
        await made.sql(SWEEP, name)
    others = f"select datname from pg_database where datname like '{databases}!_%' escape '!'"
    for [dbname] in await made.sql(others):
        if dbname.removeprefix(f"{databases}_") not in ("control", "one", "two"):
            await cluster.drop_database(dbname)
    for [role] in await made.sql("select rolname from pg_roles where rolname like 'asgi!_datasource!_%' escape '!'"):
        await made.drop_role(role)
