"""The contract tests of `drivers/protocol.py`, run on the default driver and on the example driver for SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from asgi_datasource.drivers import load_driver
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.testing.driver_contract import DriverContract, DriverSite, Part
from tests.drivers import sqlite_driver


class TestPsycopg(DriverContract):
    @pytest.fixture
    def site(self, url: str, is_short_way: bool) -> DriverSite:
        return DriverSite(
            driver=load_driver(),
            conninfo=url,
            unreachable="postgresql://app:not-to-be-told@127.0.0.1:1/app",
            slow=Statement("select pg_sleep(20)"),
            setting="app.tenant",
            read_setting="select current_setting('app.tenant', true)",
            lacks=frozenset() if is_short_way else frozenset({Part.SAME_ROUND_TRIP}),
        )


class TestSqlite(DriverContract):
    @pytest.fixture
    def site(self, tmp_path: Path) -> DriverSite:
        return DriverSite(
            driver=sqlite_driver.DRIVER,
            conninfo=f"sqlite://{tmp_path}/app.db",
            unreachable=f"sqlite://{tmp_path}/nowhere/app.db",
            slow=Statement(
                "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000000)"
                " select count(*) from n"
            ),
            lacks=frozenset({Part.SETTINGS, Part.IDENTITY, Part.POSITIONS, Part.SAME_ROUND_TRIP}),
        )
