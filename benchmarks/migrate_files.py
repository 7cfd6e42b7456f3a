"""The same migrations three times: SQL files, an Alembic project, a Django project for django-tenants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FIRST: Final = (
    "create table customers (id bigint generated always as identity primary key, name text not null)",
    "create table orders (id bigint generated always as identity primary key, item text not null)",
    "alter table orders add column customer bigint references customers",
    "create index orders_customer on orders (customer)",
    "create table payments (id bigint generated always as identity primary key, amount numeric not null)",
    "alter table payments add column paid_at timestamptz not null default now()",
)
"""Six migrations: what a small application has after a while."""


def add_column(number: int) -> str:
    """The statement of one more migration."""
    return f"alter table orders add column extra_{number} text"


def write_sql(folder: Path, statements: Sequence[str]) -> None:
    """Files of `asgi-datasource migrate`."""
    target = folder / "migrations" / "tenant"
    target.mkdir(parents=True, exist_ok=True)
    for number, statement in enumerate(statements, start=1):
        (target / f"{number:04}_step.sql").write_text(f"{statement};\n")


def write_document(folder: Path, url: str, schemas: Sequence[str]) -> Path:
    """The document of `asgi-datasource`."""
    path = folder / "datasource.json"
    document = {
        "version": 1,
        "datasources": {"shop": {"primary": {"url": url}}},
        "tenants": {name: {"datasource": "shop", "schema": name} for name in schemas},
        "migrate": {"folder": "migrations"},
    }
    path.write_text(json.dumps(document))
    return path


_ENV: Final = """
from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
"""
_REVISION: Final = """
from alembic import op

revision = "{number:04}"
down_revision = {before}


def upgrade():
    op.execute("{statement}")
"""


def write_alembic(folder: Path, statements: Sequence[str]) -> None:
    """An Alembic project."""
    versions = folder / "alembic" / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    (folder / "alembic" / "env.py").write_text(_ENV)
    for number, statement in enumerate(statements, start=1):
        before = "None" if number == 1 else f'"{number - 1:04}"'
        text = _REVISION.format(number=number, before=before, statement=statement)
        (versions / f"{number:04}_step.py").write_text(text)


_MODELS: Final = """
from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    auto_create_schema = False
    auto_drop_schema = False


class Domain(DomainMixin):
    pass
"""
_DJANGO: Final = """
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = {dependencies}
    operations = [migrations.RunSQL("{statement}", migrations.RunSQL.noop)]
"""


def write_django(folder: Path, statements: Sequence[str]) -> None:
    """The two applications of a Django project: `customers` with the tenants, `shop` with their tables."""
    for application in ("customers", "shop"):
        (folder / application).mkdir(exist_ok=True)
        (folder / application / "__init__.py").touch()
    (folder / "customers" / "models.py").write_text(_MODELS)
    (folder / "shop" / "models.py").write_text("")
    migrations = folder / "shop" / "migrations"
    migrations.mkdir(exist_ok=True)
    (migrations / "__init__.py").touch()
    for number, statement in enumerate(statements, start=1):
        dependencies = [] if number == 1 else [("shop", f"{number - 1:04}_step")]
        text = _DJANGO.format(dependencies=dependencies, statement=statement)
        (migrations / f"{number:04}_step.py").write_text(text)
