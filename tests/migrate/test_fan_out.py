"""Many tenants: stages, contract migrations, failures that stop nobody else, tenants that come while a run lasts."""

from __future__ import annotations

import asyncio
import json

import pytest

from asgi_datasource.drivers.psycopg.control_connection import ControlConnection
from asgi_datasource.migrate import Progress, Standing, Verdict, read_folder
from tests.migrate.site import Site
from tests.pgbouncer import pgbouncer

ORDERS = "create table orders (id int, item text);"


async def test_one_tenant_of_a_hundred_fails_the_others_come_to_their_head_and_after_the_fix_one_step_runs(
    site: Site,
) -> None:
    site.write(
        **{
            "shared__0001_plans.sql": "create table plans (id int);",
            "tenant__0001_orders.sql": ORDERS,
            "tenant__0002_item.sql": "alter table orders alter column item set not null;",
        }
    )
    names = [f"t{number:03}" for number in range(100)]
    await site.add_schemas(names)
    await site.apply(up_to=1)
    await site.sql("insert into t037.orders values (1, null)")
    ran = site.command("apply", "--format", "json")
    assert ran.code == 1
    report = json.loads(ran.out)
    failed = [one for one in report["schemas"] if one["standing"] == "failed"]
    assert [(one["tenants"], one["failed"], one["to_version"]) for one in failed] == [(["t037"], "0002_item", 1)]
    assert report["counts"]["at_head"] == 100
    assert "t037: 0002_item failed" in ran.err
    assert "null" not in failed[0]["error"].replace("null value", "")
    text = site.command("apply")
    assert (text.code, "failed t037 at 0002_item" in text.out) == (1, True)
    await site.sql("update t037.orders set item = ''")
    again = json.loads(site.command("apply", "--format", "json").out)
    assert [one["applied"] for one in again["schemas"] if one["applied"]] == [["0002_item"]]
    assert again["exit_code"] == 0


async def test_a_thousand_schemas_at_their_head_are_planned_in_at_most_five_statements(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write(**{"shared__0001_plans.sql": "create table plans (id int);", "tenant__0001_orders.sql": ORDERS})
    await site.add_schemas([f"t{number:04}" for number in range(1000)])
    await site.apply(up_to=0)
    read = read_folder(site.folder / "migrations")
    for source, file in (
        ("select '' as scope, 0 as oid", read.shared[0]),
        ("select nspname, oid from pg_namespace where nspname ~ '^t[0-9]'", read.tenant[0]),
    ):
        await site.sql(
            "insert into asgi_datasource.migration (scope, version, kind, name, nsp, state, checksum, raw_checksum,"
            f" run_id, tool) select scope, {file.version}, 'versioned', '{file.name}', oid, 'applied',"
            f" '\\x{file.checksum.hex()}', '', gen_random_uuid(), '' from ({source}) s (scope, oid)"
        )
    statements: list[object] = []
    run = ControlConnection._run

    async def counted(self: ControlConnection, *arguments: object) -> object:
        statements.append(arguments[0])
        return await run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ControlConnection, "_run", counted)
    report = await site.plan()
    assert (report.verdict, len(report.schemas)) == (Verdict.AT_HEAD, 1001)
    assert len(statements) <= 5
    # asyncio.run calls repr() of its result.
    assert len(repr(report)) < 500
    assert len(repr(report.schemas[1])) < 500


async def test_a_stage_begins_when_the_one_before_has_had_no_failure(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS, "tenant__0002_item.sql": "select 1 / count(*) from orders;"})
    stages = [{"name": "canary", "tenants": ["globex"]}, {"name": "early", "tenants": ["initech"]}, {"name": "rest"}]
    site.set(stages=stages)
    await site.add_schemas(["acme", "globex", "initech"])
    told: list[str] = []
    report = await site.migrator(told=told.append).apply()
    assert told[-1] == "stage canary: 1 failed; the stages after it do not begin"
    assert {one.name: (one.standing, one.version) for one in report.schemas} == {
        "acme": (Standing.PENDING, 0),
        "globex": (Standing.FAILED, 1),
        "initech": (Standing.PENDING, 0),
    }
    site.write(**{"tenant__0002_item.sql": "select 1;"})
    ended: list[str] = []
    report = await site.migrator(ended=lambda one: ended.append(one.name)).apply(concurrency=1)
    assert (report.verdict, ended) == (Verdict.AT_HEAD, ["globex", "initech", "acme"])


@pytest.mark.parametrize(("settings", "failures"), [({"on_error": "stop"}, 1), ({"max_failures": 3}, 3)])
async def test_after_so_many_failures_no_other_tenant_begins(
    site: Site, settings: dict[str, object], failures: int
) -> None:
    site.write(**{"tenant__0001_orders.sql": "select 1 / 0;"})
    site.set(**settings)
    await site.add_schemas([f"t{number}" for number in range(8)])
    report = await site.apply(concurrency=1)
    assert len(report.standing(Standing.FAILED)) == failures
    assert len(report.standing(Standing.PENDING)) == 8 - failures
    assert report.verdict is Verdict.FAILED


async def test_a_contract_migration_waits_until_every_tenant_has_what_is_before(site: Site) -> None:
    site.write(
        **{
            "tenant__0001_orders.sql": ORDERS,
            "tenant__0002_name.sql": "alter table orders add column name text; select 1 / count(*) from orders;",
            "tenant__0003_item.sql": "-- phase: contract\nalter table orders drop column item;",
            "tenant__0004_more.sql": "create table more (id int);",
        }
    )
    await site.add_schemas(["acme", "globex"])
    await site.apply(up_to=1)
    await site.sql("insert into acme.orders values (1, 'x')")
    report = await site.apply()
    assert {one.name: (one.standing, one.version, one.waits_for) for one in report.schemas} == {
        "acme": (Standing.WAITING, 2, "globex"),
        "globex": (Standing.FAILED, 1, None),
    }
    one = await site.apply(tenants=["acme"])
    assert (one.verdict, one.schemas[0].waits_for) == (Verdict.PENDING, "globex")
    await site.sql("insert into globex.orders values (1, 'x')")
    assert [one.applied for one in (await site.apply(expand_only=True)).schemas] == [[], ["0002_name"]]
    report = await site.apply()
    assert (report.verdict, report.applied) == (Verdict.AT_HEAD, 4)


async def test_a_shared_part_that_fails_holds_up_the_tenants_of_its_database(site: Site) -> None:
    site.write(**{"shared__0001_plans.sql": "select 1 / 0;", "tenant__0001_orders.sql": ORDERS})
    await site.add_schemas(["acme"])
    report = await site.apply()
    assert [one.standing for one in report.schemas] == [Standing.FAILED, Standing.PENDING]
    assert "shared part" in (report.schemas[1].error or "")
    assert await site.tables("acme") == []


async def test_a_tenant_that_is_created_while_a_run_lasts_ends_at_the_head(site: Site) -> None:
    site.write(**{"tenant__0001_orders.sql": ORDERS})
    await site.sql("create table public.customers (slug text); grant select on public.customers to public")
    await site.sql("insert into customers values ('acme')")
    site.migrate["stages"] = []
    site.configure(
        tenants={},
        tenants_from={
            "datasource": "orders",
            "query": "select slug as name from customers",
            "defaults": {"datasource": "orders", "schema": "{tenant}"},
        },
    )
    await site.sql("create schema acme")

    async def add() -> None:
        await site.sql("create schema globex; insert into customers values ('globex')")

    tasks: list[asyncio.Task[None]] = []
    migrator = site.migrator()
    fan_out = migrator._fan_out

    def and_add(*arguments: object) -> object:
        made = fan_out(*arguments)  # type: ignore[arg-type]
        go = made.go

        async def then_add() -> None:
            await go()
            if not tasks:
                tasks.append(asyncio.create_task(add()))
                await tasks[0]

        made.go = then_add  # type: ignore[method-assign]
        return made

    migrator._fan_out = and_add  # type: ignore[method-assign, assignment]
    report = await migrator.apply()
    assert {one.name: one.standing for one in report.schemas} == {
        "acme": Standing.AT_HEAD,
        "globex": Standing.AT_HEAD,
    }


async def test_through_a_transaction_pooler_everything_passes_and_no_lock_is_left(site: Site) -> None:
    site.write(
        **{
            "shared__0001_plans.sql": "create table plans (id int);",
            "tenant__0001_orders.sql": ORDERS,
            "tenant__0002_note.sql": "set statement_timeout = '1min'; alter table orders add column note text;",
        }
    )
    await site.add_schemas([f"t{number}" for number in range(12)])
    direct = site.url
    async with pgbouncer(direct, size=4) as bouncer:
        site.url = bouncer.url(site.dbname)
        site.configure()
        reports = await asyncio.gather(*(site.apply() for _ in range(3)))
        assert [report.verdict for report in reports] == [Verdict.AT_HEAD] * 3
        assert sum(report.applied for report in reports) == 25
        assert await site.advisory_locks() == 0
        site.write(**{"tenant__0003_i.sql": "-- transaction: off\ncreate index concurrently i on orders (id);"})
        report = await site.apply()
        failed = report.standing(Standing.FAILED)
        assert "set admin.url of the datasource to the server itself" in (failed[0].error or "")
        site.configure(datasources={"orders": {"primary": {"url": site.url}, "admin": {"url": direct}}})
        assert (await site.apply()).verdict is Verdict.AT_HEAD


async def test_a_connection_that_is_lost_is_opened_again_and_what_was_committed_is_not_run_twice(site: Site) -> None:
    site.write(
        **{
            "tenant__0001_orders.sql": ORDERS,
            "tenant__0002_gone.sql": "do $$ begin if not exists (select from public.gone where schema = current_schema)"
            " then perform dblink_gone(); end if; end $$;",
        }
    )
    await site.sql(
        "create table public.gone (schema text); create function public.dblink_gone() returns void language plpgsql as"
        " $$ begin perform pg_terminate_backend(pg_backend_pid()); end $$"
    )
    await site.add_schemas(["acme", "globex"])

    lost: list[Progress] = []
    report = await site.migrator(ended=lost.append).apply(concurrency=1)
    assert [one.standing for one in report.schemas] == [Standing.FAILED, Standing.FAILED]
    await site.sql("insert into public.gone values ('acme'), ('globex')")
    report = await site.apply()
    assert (report.verdict, report.applied) == (Verdict.AT_HEAD, 2)
