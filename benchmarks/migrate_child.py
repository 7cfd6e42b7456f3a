"""One side of the benchmark of migrations, in a process of its own: prints its seconds and its peak memory.

python -m benchmarks.migrate_child SIDE ACTION FOLDER URL SCHEMAS CONCURRENCY
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit


def ours(action: str, folder: Path, url: str, schemas: list[str], concurrency: int) -> Callable[[], None]:
    from asgi_datasource import load
    from asgi_datasource.drivers.control import control_driver
    from asgi_datasource.migrate import Migrator, Verdict

    control_driver()

    config = load(folder / "datasource.json", needs_resolver=False)

    def run() -> None:
        report = asyncio.run(Migrator(config).apply(concurrency=concurrency))
        assert report.verdict is Verdict.AT_HEAD, report.document()["counts"]

    def plan() -> None:
        report = asyncio.run(Migrator(config).plan())
        assert report.verdict is Verdict.AT_HEAD, report.document()["counts"]

    return plan if action == "plan" else run


def alembic(action: str, folder: Path, url: str, schemas: list[str], concurrency: int) -> Callable[[], None]:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, text

    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    config = Config()
    config.set_main_option("script_location", str(folder / "alembic"))

    def run() -> None:
        with engine.connect() as connection:
            for schema in schemas:
                with connection.begin():
                    connection.execute(text(f'set local search_path = "{schema}"'))
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")

    return run


def django(action: str, folder: Path, url: str, schemas: list[str], concurrency: int) -> Callable[[], None]:
    sys.path.insert(0, str(folder))
    parts = urlsplit(url)
    import django as package
    from django.conf import settings

    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django_tenants.postgresql_backend",
                "NAME": parts.path[1:],
                "USER": parts.username,
                "PASSWORD": parts.password,
                "HOST": parts.hostname,
                "PORT": parts.port,
            }
        },
        DATABASE_ROUTERS=("django_tenants.routers.TenantSyncRouter",),
        SHARED_APPS=("django_tenants", "django.contrib.contenttypes", "customers"),
        TENANT_APPS=("shop",),
        INSTALLED_APPS=("django_tenants", "django.contrib.contenttypes", "customers", "shop"),
        TENANT_MODEL="customers.Client",
        TENANT_DOMAIN_MODEL="customers.Domain",
        MIGRATION_MODULES={"customers": None},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    package.setup()
    from django.core.management import call_command

    def run() -> None:
        call_command("migrate_schemas", executor="standard", verbosity=0, interactive=False, run_syncdb=True)

    def prepare() -> None:
        from django.apps import apps

        call_command("migrate_schemas", shared=True, verbosity=0, interactive=False, run_syncdb=True)
        client = apps.get_model("customers", "Client")
        client.objects.bulk_create([client(schema_name=schema) for schema in schemas])

    return prepare if action == "prepare" else run


SIDES: dict[str, Any] = {"ours": ours, "alembic": alembic, "django": django}


def main(side: str, action: str, folder: str, url: str, schemas: str, concurrency: str) -> None:
    logging.disable(logging.WARNING)
    names = [f"t{number:05}" for number in range(int(schemas))]
    run = SIDES[side](action, Path(folder), url, names, int(concurrency))
    began = perf_counter()
    run()
    seconds = perf_counter() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main(*sys.argv[1:])
