"""One database with tenants: what is pending is applied once, in order, and everything else is refused or resumed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import perf_counter

import jsonschema
import pytest

from asgi_datasource.migrate import Directives, Kind, Migration, Scope, Standing, Trouble, Verdict
from asgi_datasource.migrate.steps import StepFailed
from tests.migrate.site import Site

ROOT = Path(__file__).parents[2]
ORDERS = "create table orders (id bigint generated always as identity primary key, item text);"
FILES = {
    "shared__0001_plans.sql": "create table plans (id int primary key);",
    "tenant__0001_orders.sql": ORDERS,
    "tenant__0002_note.sql": "alter table orders add column note text;",
}


async def test_the_shared_part_and_every_tenant_come_to_their_head_and_stay_there(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme", "globex"])
    planned = await site.plan()
    assert (planned.verdict, planned.applied) == (Verdict.PENDING, 0)
    assert [[file.label for file in one.pending] for one in planned.schemas] == [
        ["0001_plans"],
        ["0001_orders", "0002_note"],
        ["0001_orders", "0002_note"],
    ]
    assert await site.sql("select to_regnamespace('asgi_datasource')") == [(None,)]

    report = await site.apply()
    assert (report.verdict, report.applied) == (Verdict.AT_HEAD, 5)
    assert (await site.tables("public"), await site.tables("acme"), await site.tables("globex")) == (
        ["plans"],
        ["orders"],
        ["orders"],
    )
    assert await site.ledger(
        "scope, version, name, kind, state, nsp::int8 = coalesce(to_regnamespace(nullif(scope, ''))::oid::int8, 0)"
    ) == [
        ("", 1, "plans", "versioned", "applied", True),
        ("acme", 1, "orders", "versioned", "applied", True),
        ("acme", 2, "note", "versioned", "applied", True),
        ("globex", 1, "orders", "versioned", "applied", True),
        ("globex", 2, "note", "versioned", "applied", True),
    ]
    again = await site.apply()
    assert (again.verdict, again.applied) == (Verdict.AT_HEAD, 0)
    assert await site.advisory_locks() == 0


async def test_a_shared_migration_creates_the_schemas_of_tenants_and_one_run_brings_them_to_their_head(
    site: Site,
) -> None:
    site.write(**FILES, **{"shared__0002_tenants.sql": "create schema acme; create schema globex;"})
    site.schemas += ["acme", "globex", "initech"]
    site.configure()
    done = site.command("apply", "--to", "1")
    assert (done.code, (await site.plan()).verdict) == (1, Verdict.FAILED)
    report = await site.apply()
    assert {one.name: (one.version, one.applied, one.standing) for one in report.schemas} == {
        "orders (shared)": (2, ["0002_tenants"], Standing.AT_HEAD),
        "acme": (2, ["0001_orders", "0002_note"], Standing.AT_HEAD),
        "globex": (2, ["0001_orders", "0002_note"], Standing.AT_HEAD),
        "initech": (0, [], Standing.REFUSED),
    }


async def test_a_migration_that_fails_leaves_nothing_and_the_next_run_goes_on_there(site: Site) -> None:
    site.write(**FILES, **{"tenant__0003_seed.sql": "create table seeds (id int);\n\ninsert into seed values (1);"})
    await site.add_schemas(["acme", "globex"])
    report = await site.apply()
    assert report.verdict is Verdict.FAILED
    failed = report.standing(Standing.FAILED)
    assert [one.name for one in failed] == ["acme", "globex"]
    assert failed[0].version == 2
    assert failed[0].sqlstate == "42P01"
    assert (failed[0].error or "").startswith(
        '0003_seed.sql, line 3, column 13: there is no such table or view: "seed"'
    )
    assert await site.tables("acme") == ["orders"]
    assert [row for row in await site.ledger() if row[1] == 3] == []

    site.write(**{"tenant__0003_seed.sql": "create table seeds (id int); insert into seeds values (1);"})
    assert (await site.apply()).applied == 2
    assert await site.sql("select * from globex.seeds") == [(1,)]


async def test_commands_print_the_plan_apply_it_and_say_what_is_at_which_version(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme", "globex"])
    planned = site.command("plan", "--sql")
    assert planned.code == 3
    assert "pending in 2: acme, globex" in planned.out
    assert "alter table orders add column note text;" in planned.out
    assert site.command("check").code == 3

    applied = site.command("apply", "--format", "json")
    assert applied.code == 0, applied.err
    report = json.loads(applied.out)
    jsonschema.validate(report, json.loads((ROOT / "schemas/migration-report/v1.json").read_text()))
    assert (report["exit_code"], report["counts"]["at_head"]) == (0, 3)
    assert "3 of 3" in applied.err
    checked = site.command("check")
    assert (checked.code, checked.out) == (0, "3 schemas: 3 at head\n")
    status = site.command("status")
    assert status.out.splitlines()[1].split() == ["orders", "shared", "1", "1", "1", "at", "head"]
    assert status.out.splitlines()[2].split() == ["orders", "tenant", "2", "2", "2", "at", "head"]
    one = site.command("plan", "--tenant", "acme", "--format", "json")
    assert [schema["tenants"] for schema in json.loads(one.out)["schemas"]] == [["acme"]]
    unknown = site.command("apply", "--tenant", "nobody")
    assert (unknown.code, "there is no tenant 'nobody'" in unknown.err) == (2, True)


async def test_layout_is_no_drift_and_a_changed_literal_is_refused_until_it_is_accepted(site: Site) -> None:
    site.write(**FILES, **{"tenant__0003_seed.sql": "insert into orders (item) values ('one');"})
    await site.add_schemas(["acme", "globex"])
    await site.apply()
    laid_out = "\ufeff-- licence\r\nINSERT INTO orders\r\n\t(item) VALUES\r\n/* why */ ('one')\r\n;"
    site.write(**{"tenant__0003_seed.sql": laid_out})
    assert (await site.plan()).verdict is Verdict.AT_HEAD

    site.write(**{"tenant__0003_seed.sql": "insert into orders (item) values ('two');"})
    site.write(**{"tenant__0004_more.sql": "create table more (id int);"})
    report = await site.apply()
    assert (report.verdict, report.applied) == (Verdict.FAILED, 0)
    [one, _] = report.standing(Standing.REFUSED)
    assert [finding.trouble for finding in one.findings] == [Trouble.DRIFT]
    shown = site.command("check")
    assert shown.code == 1
    assert "0003_seed.sql is not what has run as version 3" in shown.out
    assert "in 2: acme, globex" in shown.out

    assert site.command("repair", "--accept").code == 0
    assert (await site.apply()).verdict is Verdict.AT_HEAD
    [[note]] = await site.sql("select note from asgi_datasource.migration where scope = 'acme' and version = 3")
    assert note.startswith("accepted ")


async def test_a_late_merge_below_the_highest_version_is_an_error_and_never_skipped(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS, "tenant__0003_three.sql": "create table three (id int);"})
    await site.add_schemas(["acme"])
    await site.apply()
    site.write(**{"tenant__0002_two.sql": "create table two (id int);"})
    report = await site.apply()
    assert report.verdict is Verdict.FAILED
    assert [finding.trouble for finding in report.schemas[0].findings] == [Trouble.OUT_OF_ORDER]
    assert await site.tables("acme") == ["orders", "three"]
    site.set(out_of_order="allow")
    assert (await site.apply()).applied == 1
    assert await site.tables("acme") == ["orders", "three", "two"]


async def test_a_version_without_a_file_is_an_error_unless_that_is_configured(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme"])
    await site.apply()
    site.remove("tenant__0002_note.sql")
    report = await site.plan()
    assert [finding.trouble for one in report.schemas for finding in one.findings] == [Trouble.MISSING]
    site.set(missing="ignore")
    assert (await site.plan()).verdict is Verdict.AT_HEAD


async def test_a_schema_that_was_created_again_is_unknown_until_it_is_adopted_or_forgotten(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme", "globex"])
    await site.apply()
    for name in ("acme", "globex"):
        await site.sql(f"drop schema {name} cascade; create schema {name}")
    await site.sql("create table globex.orders (id int, note text)")
    report = await site.apply()
    refused = report.standing(Standing.REFUSED)
    assert [(one.name, one.findings[0].trouble) for one in refused] == [
        ("acme", Trouble.UNKNOWN),
        ("globex", Trouble.UNKNOWN),
    ]
    assert site.command("repair", "--forget", "--tenant", "acme").out == "acme: 2 rows deleted\n"
    assert site.command("repair", "--adopt", "--tenant", "globex").code == 0
    after = await site.apply()
    assert (after.verdict, after.applied) == (Verdict.AT_HEAD, 2)


async def test_a_schema_with_tables_and_no_rows_is_unknown_until_it_has_a_baseline(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme", "globex"])
    await site.sql(f"set search_path = acme; {ORDERS}")
    report = await site.apply()
    assert [one.name for one in report.standing(Standing.REFUSED)] == ["acme"]
    assert site.command("baseline", "--version", "9", "--tenant", "acme").code == 2
    assert site.command("baseline", "--version", "1", "--tenant", "acme").out == "acme: counts as being at version 1\n"
    assert (await site.apply()).applied == 1
    assert await site.ledger("version, kind, state") == [
        (1, "versioned", "applied"),
        (1, "baseline", "baselined"),
        (2, "versioned", "applied"),
        (1, "versioned", "applied"),
        (2, "versioned", "applied"),
    ]


async def test_a_new_tenant_begins_with_the_newest_baseline(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme"])
    await site.apply()
    site.write(
        **{
            "tenant__B0002_start.sql": "create table orders (id bigint, item text, note text);",
            "tenant__0003_three.sql": "create table three (id int);",
        }
    )
    await site.add_schemas(["globex"])
    report = await site.apply()
    assert [one.applied for one in report.schemas if one.target.tenants] == [
        ["0003_three"],
        ["B0002_start", "0003_three"],
    ]
    for file in ("0001_orders", "0002_note"):
        site.remove(f"tenant__{file}.sql")
    assert (await site.plan()).verdict is Verdict.AT_HEAD


async def test_settings_of_a_migration_do_not_reach_the_next_schema(site: Site) -> None:
    site.write(
        **{
            "tenant__0001_dump.sql": "set search_path = public; select set_config('work_mem', '1MB', false);\n"
            "create table if not exists public.marks (setting text); set role postgres;",
            "tenant__0002_mark.sql": "insert into public.marks select current_setting('search_path');"
            "create table here (id int);",
        }
    )
    await site.add_schemas(["acme", "globex"])
    report = await site.apply(concurrency=1)
    assert report.verdict is Verdict.AT_HEAD
    assert await site.sql("select setting from public.marks") == [('"acme"',), ('"globex"',)]


async def test_a_blocker_holds_up_no_query_for_longer_than_the_lock_timeout(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme"])
    await site.apply()
    site.write(**{"tenant__0003_wide.sql": "alter table orders add column wide int;"})
    async with site.connect() as blocker, site.connect() as reader:
        await blocker.execute("begin")
        await blocker.execute("select * from acme.orders")
        applying = asyncio.create_task(site.apply())
        waited: list[float] = []
        for _ in range(300):
            [[queued]] = await site.sql("select count(*) from pg_locks where not granted")
            if queued:
                began = perf_counter()
                await reader.execute("select * from acme.orders")
                waited.append(perf_counter() - began)
                break
            await asyncio.sleep(0.01)
        await blocker.execute("rollback")
    assert waited, "the migration never waited"
    assert waited[0] <= 0.2 + 0.5
    report = await applying
    assert (report.verdict, report.applied) == (Verdict.AT_HEAD, 1)


def test_a_failed_step_names_its_migration() -> None:
    migration = Migration(Path("0001_a.sql"), Scope.TENANT, Kind.VERSIONED, 1, "a", "select 1", Directives())
    assert str(StepFailed(migration, "refused")) == "0001_a: refused"


@pytest.mark.parametrize("processes", [8])
async def test_eight_processes_at_once_apply_each_version_once(site: Site, processes: int) -> None:
    site.write(**FILES, **{"tenant__0003_count.sql": "insert into public.runs values (current_schema);"})
    await site.sql("create table public.runs (schema text)")
    await site.add_schemas([f"t{number}" for number in range(8)])
    commands = []
    for number in range(processes):
        folder = site.folder / f"process_{number}"
        folder.mkdir()
        commands.append(site.start_in(folder, "apply", "--format", "json"))
    ended = [command.wait() for command in commands]
    assert [done.code for done in ended] == [0] * processes, ended[0].err
    assert await site.sql("select count(*), count(distinct schema) from public.runs") == [(8, 8)]
    applied = [sum(len(one["applied"]) for one in json.loads(done.out)["schemas"]) for done in ended]
    assert sum(applied) == 1 + 3 * 8
    assert await site.advisory_locks() == 0


async def test_the_application_reads_the_ledger_as_a_role_without_rights_and_shared_files_make_their_schema(
    site: Site,
) -> None:
    site.write(
        **{
            "shared__0001_ref.sql": "create schema ref; create table airports (code text);",
            "tenant__0001_orders.sql": ORDERS,
        }
    )
    app = site.cluster.nodes["primary"].url(dbname=site.dbname)
    await site.add_schemas(["acme"])
    owner, reader = {"url": site.url}, {"url": app}
    site.configure(datasources={"orders": {"primary": reader, "admin": owner, "search_path": ["ref"]}})
    assert (await site.apply()).verdict is Verdict.AT_HEAD
    site.configure(datasources={"orders": {"primary": reader, "search_path": ["ref"]}})
    assert (await site.plan()).verdict is Verdict.AT_HEAD


async def test_a_role_that_could_put_functions_in_the_way_is_refused(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme"])
    await site.sql("grant create on schema acme to app")
    app = site.cluster.nodes["primary"].url(dbname=site.dbname)
    site.configure(datasources={"orders": {"primary": {"url": app}, "admin": {"url": site.url}}})
    refused = site.command("apply")
    assert (refused.code, "'app' can put functions in its way" in refused.err) == (2, True)


async def test_names_of_schemas_may_have_any_letters(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS})
    names = ["it's", "back\\slash", "of asgi_datasource mark: lock", "üñï"]
    await site.sql(";".join(f'create schema "{name}"' for name in names))
    site.configure(
        tenants={f"t{number}": {"datasource": "orders", "schema": name} for number, name in enumerate(names)}
    )
    assert (await site.apply()).verdict is Verdict.AT_HEAD
    assert sorted(row[0] for row in await site.ledger()) == sorted(names)
    assert (await site.plan()).verdict is Verdict.AT_HEAD
