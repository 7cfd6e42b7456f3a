"""SQLAlchemy's own suite for dialects, against the dialect whose cursors run through a session.

The suite is a pytest plugin that takes over the process, so it has one of its own. `docs/sqlalchemy.md` has its numbers
and what is left out.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Final

import psycopg
import pytest

from asgi_datasource.testing import EmbeddedCluster
from tests.db.compliance.requirements import DESELECTED, EXCLUDED

FOLDER: Final = Path(__file__).parent / "compliance"
ROOT: Final = Path(__file__).parent.parent.parent
DBNAME: Final = "compliance"

SAMPLE: Final = "Isolation or ServerSide or RowCount"
"""Of the whole, what is about connections, transactions, cursors and results."""

PASSED_AT_LEAST: Final = {False: 50, True: 1700}
"""How many tests have to pass, so that a suite that finds none does not count: of the sample, and of the whole."""


@pytest.mark.timeout(900)
async def test_the_dialect_passes_sqlalchemys_suite(cluster: EmbeddedCluster, whole: bool) -> None:
    await cluster.create_database(DBNAME)
    try:
        url = cluster.nodes["primary"].url(dbname=DBNAME)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            for schema in ("test_schema", "test_schema_2"):
                await connection.execute(f"create schema {schema}".encode())
        arguments = ["-c", "setup.cfg", "--rootdir=.", "-q", "-o", "python_files=suite.py", "-p", "no:cacheprovider"]
        for plugin in ("asgi_datasource.testing.plugin", "asyncio", "xdist"):
            arguments += ["-p", f"no:{plugin}"]
        names = " and ".join(f"not {name.partition('::')[2]}" for name in DESELECTED)
        arguments += ["-k", names if whole else f"({SAMPLE}) and {names}"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "pytest", *arguments, "--dburi", "postgresql+asgi_datasource://session/suite", "suite.py"),
            cwd=FOLDER,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COMPLIANCE_URL": url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
    finally:
        await cluster.drop_database(DBNAME)
    assert process.returncode == 0, output[-20_000:]
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None, output[-2000:]
    assert int(passed[1]) >= PASSED_AT_LEAST[whole], output[-2000:]


def test_what_is_left_out_is_documented_with_its_reason() -> None:
    page = (ROOT / "docs" / "sqlalchemy.md").read_text(encoding="utf-8")
    for name in (*EXCLUDED, *DESELECTED):
        assert f"`{name}`" in page, f"docs/sqlalchemy.md does not name {name}"
