"""The library's own tables, those of the outbox, among the migrations of an application."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from asgi_datasource import ConfigError, compile
from asgi_datasource.migrate import Verdict, read_folder
from asgi_datasource.migrate.own_tables import OUTBOX
from tests.migrate.site import Site

FILES = {
    "shared__0001_waiting.sql": "create view waiting as select topic from asgi_datasource.outbox;",
    "tenant__0001_orders.sql": "create table orders (id int);",
    "tenant__0002_note.sql": "alter table orders add column note text;",
}
DOCUMENT: dict[str, Any] = {"outbox": {"relay": "off"}}


async def test_they_come_before_the_shared_files_and_have_versions_of_their_own(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme"])
    site.configure(**DOCUMENT)
    with pytest.raises(ConfigError, match=r"3 schemas are behind .*: orders \(outbox\), orders \(shared\), acme\. Run"):
        await compile(site.config).open()
    report = await site.apply(up_to=1)
    assert [(one.name, one.applied) for one in report.schemas] == [
        ("orders (outbox)", ["0001_outbox"]),
        ("orders (shared)", ["0001_waiting"]),
        ("acme", ["0001_orders"]),
    ]
    assert (await site.apply()).verdict is Verdict.AT_HEAD
    assert await site.ledger() == [
        ("", 1, "applied"),
        ("acme", 1, "applied"),
        ("acme", 2, "applied"),
        ("asgi_datasource.outbox", 1, "applied"),
    ]
    async with compile(site.config) as registry, registry.session(tenant="acme") as db:
        await db.outbox.publish("orders.placed")
    assert await site.sql("select * from waiting") == [("orders.placed",)]
    assert "nothing to change" in site.command("baseline", "--version", "1").out


async def test_a_later_layout_is_a_later_migration(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write(**FILES)
    site.configure(**DOCUMENT)
    assert (await site.apply()).verdict is Verdict.AT_HEAD
    later = tmp_path / "later"
    shutil.copytree(OUTBOX.folder.path, later)
    (later / "shared" / "0002_note.sql").write_text("alter table asgi_datasource.outbox_held add column note text;")
    with monkeypatch.context() as patch:
        patch.setitem(OUTBOX.__dict__, "folder", read_folder(later))
        assert (await site.plan()).verdict is Verdict.PENDING
        assert (await site.apply()).verdict is Verdict.AT_HEAD
        assert (await site.ledger())[-1] == ("asgi_datasource.outbox", 2, "applied")
    # An application of the version before.
    [finding] = (await site.plan()).schemas[0].findings
    assert "version 2 (note) has run and has no file" in finding.message


async def test_roles_that_come_later_get_their_rights(site: Site) -> None:
    role = f"{site.dbname}_role"
    site.write(**FILES)
    site.configure(**DOCUMENT)
    await site.apply()
    await site.sql(f"create role {role}")
    try:
        site.configure(**DOCUMENT, tenants={"acme": {"datasource": "orders", "schema": "public", "role": role}})
        await site.apply()
        rights = f"select has_table_privilege('{role}', 'asgi_datasource.' || t, r) from (values"
        found = await site.sql(f"{rights} ('outbox', 'insert'), ('inbox', 'select'), ('outbox', 'delete')) v (t, r)")
        assert found == [(True,), (True,), (False,)]
    finally:
        await site.sql(f"drop owned by {role}; drop role {role}")


async def test_alembic_migrates_the_rest(site: Site, tmp_path: Path) -> None:
    scripts = tmp_path / "alembic"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(
        "from alembic import context\n"
        "context.configure(connection=context.config.attributes['connection'])\n"
        "with context.begin_transaction():\n    context.run_migrations()\n"
    )
    (scripts / "versions" / "one.py").write_text(
        "from alembic import op\nrevision = 'one'\ndown_revision = None\n"
        "def upgrade(): op.execute('create view waiting as select topic from asgi_datasource.outbox')\n"
    )
    migrate = {"engine": "alembic", "script_location": str(scripts), "concurrency": 1}
    site.configure(**DOCUMENT, migrate=migrate)
    report = await site.apply()
    assert report.verdict is Verdict.AT_HEAD, report.document()
    assert await site.ledger() == [("asgi_datasource.outbox", 1, "applied")]
    assert await site.sql("select * from waiting") == []
    assert (await site.plan()).verdict is Verdict.AT_HEAD
