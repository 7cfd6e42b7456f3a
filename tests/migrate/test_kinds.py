"""Python steps, repeatables, what takes a migration back, and the next file."""

from __future__ import annotations

import subprocess

from asgi_datasource.cli.commands.migrate_new import next_version
from asgi_datasource.migrate import Standing, Verdict
from tests.migrate.site import Site

ORDERS = "create table orders (id int, item text);"
PYTHON = """
async def up(db):
    await db.execute("insert into orders values (%s, %s)", [1, db.tenants[0]])
    assert await db.fetch_value("select count(*) from orders") == 1
    assert await db.fetch_all("select id from orders") == [(1,)]


def down(db):
    return db.execute("delete from orders where item = %s", [db.tenants[0]])
"""


async def test_a_python_step_runs_in_the_transaction_of_its_row(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS, "tenant__0002_fill.py": PYTHON})
    await site.add_schemas(["acme", "globex"])
    assert (await site.apply()).applied == 4
    assert await site.sql("select item from globex.orders") == [("globex",)]
    site.write(
        **{
            "tenant__0003_bad.py": PYTHON
            + "\n\nasync def up(db):\n    await db.execute('drop table orders')\n    raise ValueError('secret')\n"
        }
    )
    report = await site.apply()
    failed = report.standing(Standing.FAILED)
    assert [one.error for one in failed] == ["0003_bad.py raised ValueError, line 14"] * 2
    assert await site.tables("acme") == ["orders"]
    site.write(**{"tenant__0003_bad.py": "async def up(db):\n    await db.execute('select * from absent')\n"})
    report = await site.apply()
    assert report.standing(Standing.FAILED)[0].error == 'there is no such table or view: "absent" (SQLSTATE 42P01)'
    site.write(**{"tenant__0003_bad.py": "x = 1\n"})
    assert "has no async def up(db)" in ((await site.apply()).standing(Standing.FAILED)[0].error or "")


async def test_a_python_step_without_a_transaction_is_run_again_as_a_whole(site: Site) -> None:
    step = (
        "# transaction: off\nasync def up(db):\n    while await db.execute('delete from orders where ctid in"
        " (select ctid from orders limit 2)'):\n        pass\n"
    )
    site.write(
        **{
            "tenant__0001_orders.sql": ORDERS + "insert into orders select n from generate_series(1, 5) n;",
            "tenant__0002_trim.py": step,
        }
    )
    await site.add_schemas(["acme"])
    assert (await site.apply()).verdict is Verdict.AT_HEAD
    assert await site.sql("select count(*) from acme.orders") == [(0,)]


async def test_a_repeatable_runs_after_the_versions_and_whenever_it_has_changed(site: Site) -> None:
    site.write(
        **{
            "tenant__0001_orders.sql": ORDERS,
            "tenant__R_views.sql": "create or replace view items as select item from orders;",
            "shared__R_rights.sql": "comment on schema public is 'shared';",
        }
    )
    await site.add_schemas(["acme"])
    assert [one.applied for one in (await site.apply()).schemas] == [["R_rights"], ["0001_orders", "R_views"]]
    site.write(**{"tenant__R_views.sql": "-- the same\ncreate or replace view items as\n  select item from orders;"})
    assert (await site.plan()).verdict is Verdict.AT_HEAD
    site.write(**{"tenant__R_views.sql": "create or replace view items as select item, 2 as two from orders;"})
    assert [one.applied for one in (await site.apply()).schemas] == [[], ["R_views"]]
    assert (await site.plan()).verdict is Verdict.AT_HEAD


async def test_down_asks_and_takes_back_the_highest_first(site: Site) -> None:
    site.write(
        **{
            "tenant__0001_orders.sql": ORDERS,
            "tenant__0002_fill.py": PYTHON,
            "tenant__0003_note.sql": "alter table orders add column note text;",
            "tenant__0003_note.down.sql": "alter table orders drop column note;",
        }
    )
    await site.add_schemas(["acme", "globex"])
    await site.apply()
    asked = site.command("down", "--to", "1")
    assert (asked.code, "would take back acme: 0003_note, 0002_fill" in asked.err) == (2, True)
    assert len(await site.ledger()) == 6
    done = site.command("down", "--to", "1", "--yes", "--tenant", "acme")
    assert (done.code, done.out) == (0, "acme: took back 0003_note, 0002_fill\n")
    assert await site.sql("select count(*) from acme.orders") == [(0,)]
    assert [row for row in await site.ledger() if row[0] == "acme"] == [("acme", 1, "applied")]
    refused = site.command("down", "--to", "0", "--yes")
    assert (refused.code, "nothing takes it back" in refused.err) == (2, True)
    assert (await site.apply()).applied == 2


def test_the_next_version_is_as_wide_as_those_before_and_above_them() -> None:
    assert next_version([]) == "0001"
    assert next_version(["0009_a.sql", "0007_b.sql", "README.md"]) == "0010"
    assert next_version(["7_a.sql"]) == "8"
    assert int(next_version(["20260101000000_a.sql"])) > 20260101000000
    assert len(next_version(["0001_a.sql"], timestamp=True)) == 14


async def test_new_writes_a_file_above_those_of_the_main_branch(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS})
    git = ["git", "-C", str(site.folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        ["commit", "-qm", "one"],
        ["checkout", "-qb", "mine"],
    ):
        subprocess.run([*git, *arguments], check=True)
    site.write(**{"tenant__0002_theirs.sql": "select 1;"})
    for arguments in (["checkout", "-q", "main"], ["add", "."], ["commit", "-qm", "two"], ["checkout", "-q", "mine"]):
        subprocess.run([*git, *arguments], check=True)
    made = site.command("new", "add_note", "--down")
    assert made.code == 0, made.err
    assert [line.rsplit("/", 1)[-1] for line in made.out.splitlines()] == [
        "0003_add_note.sql",
        "0003_add_note.down.sql",
    ]
    assert "0002_theirs.sql" in made.err
    assert "transaction: off" in (site.folder / "migrations/tenant/0003_add_note.sql").read_text()
    assert site.command("new", "no such name").code == 2


async def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_pipe(site: Site) -> None:
    import io

    from asgi_datasource.cli.commands.migrate_progress import ProgressLines, open_progress
    from asgi_datasource.cli.console import Console

    site.write(**{"tenant__0001_orders.sql": ORDERS})
    await site.add_schemas(["acme"])
    report = await site.apply()
    [one] = report.schemas
    now = [0.0]
    lines: list[str] = []
    progress = ProgressLines(lines.append, clock=lambda: now[0])
    progress.began(10)
    for _ in range(4):
        now[0] += 2.0
        progress.ended(one)
    one.failed, one.error = "0002_x", "refused"
    progress.ended(one)
    assert lines == ["10 schemas to migrate", "3 of 10, 0/s, about 14 s left", "acme: 0002_x failed: refused"]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with open_progress(Console(out, out)) as events:
        events.began(2)
        events.ended(one)
        events.told("waits")
    assert "acme: 0002_x failed: refused" in out.getvalue()
    assert "waits" in out.getvalue()
