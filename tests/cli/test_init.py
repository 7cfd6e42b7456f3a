"""`init` writes a first configuration that is valid and contains no password."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asgi_datasource.config import load
from tests.cli.run import run

PASSWORD = "hunter2-Tr0ub4dor"


def test_a_configuration_from_scratch(tmp_path: Path) -> None:
    done = run("init", cwd=tmp_path, environ={"DATABASE_URL": ""})
    assert done.code == 0, done.err
    assert "datasource.yaml is written" in done.out
    assert run("validate", "--strict", cwd=tmp_path).code == 0
    done = run("init", cwd=tmp_path)
    assert done.code == 2
    assert "datasource.yaml is there already" in done.err
    assert run("init", "--force", cwd=tmp_path).code == 0


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        (f"postgresql://app:{PASSWORD}@db:5432/shop", "DATABASE_URL"),
        (f"postgres://app:{PASSWORD}@db/shop", "DATABASE_URL"),
        (f"postgresql+psycopg://app:{PASSWORD}@db/shop", "SHOP_PRIMARY_URL"),
        (f"postgresql+asyncpg://app:{PASSWORD}@db/shop?ssl=require", "SHOP_PRIMARY_URL"),
    ],
)
def test_a_configuration_from_a_url(url: str, variable: str, tmp_path: Path) -> None:
    done = run("init", "--format", "json", cwd=tmp_path, environ={"DATABASE_URL": url})
    assert done.code == 0, done.err
    assert json.loads(done.out)["variables"] == [variable]
    text = (tmp_path / "datasource.yaml").read_text()
    assert PASSWORD not in text + done.out + done.err
    config = load(tmp_path / "datasource.yaml", environ={variable: "postgresql://db/shop"})
    assert list(config.datasources) == ["shop"]


def test_another_database_is_refused(tmp_path: Path) -> None:
    done = run("init", "--url", f"mysql://root:{PASSWORD}@db/shop", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "this is not PostgreSQL: mysql" in done.err
    assert PASSWORD not in done.err


DJANGO = f"""
DATABASES = {{
    "default": {{"ENGINE": "django.db.backends.postgresql", "NAME": "shop", "HOST": "db", "PORT": 5433,
                "USER": "app", "PASSWORD": "{PASSWORD}"}},
    "reporting": {{"ENGINE": "django.db.backends.postgresql", "NAME": "shop", "HOST": "r1",
                  "TEST": {{"MIRROR": "default"}}}},
    "default_replica": {{"ENGINE": "django_tenants.postgresql_backend", "NAME": "shop", "HOST": "r2"}},
    "audit": {{"ENGINE": "django.db.backends.postgresql_psycopg2", "NAME": "audit", "HOST": "audit"}},
    "cache": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "x"}},
}}
"""


def test_a_configuration_from_django_settings(tmp_path: Path) -> None:
    (tmp_path / "mysite_settings.py").write_text(DJANGO)
    done = run("init", "--django", "mysite_settings", "--format", "json", cwd=tmp_path)
    assert done.code == 0, done.err
    variables = json.loads(done.out)["variables"]
    assert variables == [
        "SHOP_PRIMARY_URL", "SHOP_REPORTING_URL", "SHOP_DEFAULT_REPLICA_URL", "AUDIT_PRIMARY_URL"
    ]  # fmt: skip
    environ = {name: f"host={name.lower()}" for name in variables}
    config = load(tmp_path / "datasource.yaml", environ=environ)
    assert list(config.datasources["shop"].replicas) == ["reporting", "default_replica"]
    assert PASSWORD not in (tmp_path / "datasource.yaml").read_text() + done.out


OBJECTS = f"""
from dataclasses import dataclass
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

URL = "postgresql+psycopg://app:{PASSWORD}@db/shop"
url = make_url(URL)
engine = create_engine(URL)

@dataclass
class AsyncEngine:  # as SQLAlchemy's: a sync engine inside
    sync_engine: object

async_engine = AsyncEngine(engine)

@dataclass
class SQLAlchemyAsyncConfig:  # as advanced-alchemy's: a connection string, or an engine
    connection_string: str | None = None

config = SQLAlchemyAsyncConfig(connection_string=URL)
nothing = 5
"""


@pytest.mark.parametrize("name", ["URL", "url", "engine", "async_engine", "config"])
def test_a_configuration_from_an_object(name: str, tmp_path: Path) -> None:
    (tmp_path / "app_db.py").write_text(OBJECTS)
    done = run("init", "--object", f"app_db:{name}", "--stdout", cwd=tmp_path)
    assert done.code == 0, done.err
    assert '    primary: {url: "${SHOP_PRIMARY_URL}"}      # postgresql://db/shop' in done.out
    assert PASSWORD not in done.out
    assert not (tmp_path / "datasource.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--object", "app_db:nothing"], "holds no connection string"),
        (["--object", "nowhere:x"], "nowhere cannot be imported: there is no module 'nowhere' in"),
        (["--django", "app_db"], "app_db has no DATABASES"),
        (["--django", "broken"], "broken cannot be imported: it fails when it is imported: RuntimeError in"),
        (["x.toml"], "x.toml is no YAML file"),
    ],
)
def test_unusable_sources_of_init_are_reported(arguments: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "app_db.py").write_text(OBJECTS)
    (tmp_path / "broken.py").write_text(f"raise RuntimeError({PASSWORD!r})\n")
    done = run("init", *arguments, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert PASSWORD not in done.err
