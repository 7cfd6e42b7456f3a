"""Provisioning shows no secret and no row: in dumps, in arguments of programs, in messages."""

from __future__ import annotations

import json
import os
import stat
import traceback
from pathlib import Path
from typing import Any

import psycopg
import pytest

from asgi_datasource import DataError
from asgi_datasource.drivers.psycopg.control_connection import refusal_text
from asgi_datasource.tenancy.provisioning import programs
from asgi_datasource.testing.binaries import find_binaries
from tests.tenancy.provisioning_site import Site

SECRET = "hunter2-Tr0ub4dor"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- dumps


async def test_a_dump_is_for_the_user_alone(site: Site) -> None:
    before = os.umask(0)
    try:
        await site.provisioner().create("acme")
        file = await site.provisioner().drop("acme", keep_dump=True)
    finally:
        os.umask(before)
    assert file is not None
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
async def test_a_folder_that_others_can_enter_is_refused(site: Site, mode: int) -> None:
    await site.provisioner().create("acme")
    folder = site.folder / "dumps"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(DataError, match="open to other users"):
        await site.provisioner().drop("acme", keep_dump=True)
    # Nothing has begun.
    [record] = await site.provisioner().list()
    assert (record.state, record.is_ready, record.under_way) == ("active", True, None)


def test_a_dump_takes_no_other_files_place(tmp_path: Path) -> None:
    file = tmp_path / "acme.dump"
    file.write_text("another one")
    with pytest.raises(DataError, match="File exists"), programs.dump_file(file) as stream:
        stream.write(b"new")
    assert file.read_text() == "another one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_dump_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), programs.dump_file(tmp_path / "acme.dump") as stream:
        stream.write(b"half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_private_file_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        programs.create_private(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


# -- arguments

SPY = """#!/usr/bin/env python3
import json, os, stat, sys
from pathlib import Path
service = Path(os.environ["PGSERVICEFILE"])
with open({log!r}, "a") as log:
    log.write(json.dumps([sys.argv, service.read_text(), stat.S_IMODE(service.stat().st_mode),
                          stat.S_IMODE(service.parent.stat().st_mode), os.environ.get("PGPASSWORD")]) + "\\n")
os.execv({program!r}, [{program!r}, *sys.argv[1:]])
"""


async def test_no_secret_is_an_argument_of_a_program(site: Site) -> None:
    log, folder = site.folder / "log", site.folder / "programs"
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (folder / name).write_text(SPY.format(log=str(log), program=str(find_binaries(18).bin_dir / name)))
        (folder / name).chmod(0o755)
    document = json.loads(site.config.read_text())
    for name in ("one", "two"):
        admin = document["datasources"][name]["admin"]
        admin["url"] = psycopg.conninfo.make_conninfo(admin["url"], sslpassword=SECRET)
    site.set(datasources=document["datasources"], provisioning={**document["provisioning"], "programs": str(folder)})
    await site.provisioner().create("acme")
    await site.provisioner().move("acme", "two")

    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert {Path(arguments[0]).name for arguments, *_ in calls} == {"pg_dump", "pg_restore"}
    passwords = {
        parts["password"]
        for place in document["datasources"].values()
        for url in place.values()
        if (parts := psycopg.conninfo.conninfo_to_dict(url["url"])).get("password")
    }
    for arguments, service, file_mode, folder_mode, password in calls:
        if f"sslpassword={SECRET}" in service:
            assert password in passwords
        for secret in (SECRET, *passwords):
            assert secret not in " ".join(arguments)
        assert (file_mode, folder_mode) == (0o600, 0o700)
    assert any(SECRET in service for _, service, *_ in calls)
    # They are gone with the program.
    assert not any(Path(argument).exists() for arguments, *_ in calls for argument in arguments[1:] if "/" in argument)


def test_what_a_service_file_cannot_hold_is_refused() -> None:
    with (
        pytest.raises(DataError, match="sslpassword begins or ends with white space") as refused,
        programs._service({"host": "db.example", "sslpassword": f"{SECRET}\n"}),
    ):
        pass
    assert SECRET not in str(refused.value)


# -- messages


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("create table t (v int);\ninsert into t values ('{}');\n", "line 2, column 23: a value does not fit its type"),
        ("create table t (v int);\ninsert into t select '{}'::text::int;\n", "more.sql: a value does not fit its type"),
        (
            "create table t (v text primary key);\ninsert into t values ('{0}'), ('{0}');\n",
            'more.sql: a row breaks a unique constraint: "t_acme.t", "t_pkey" (SQLSTATE 23505)',
        ),
        (
            "create table t (v text check (v = ''));\ninsert into t values ('{}');\n",
            'a row breaks a check constraint: "t_acme.t", "t_v_check" (SQLSTATE 23514)',
        ),
        ("do $$begin raise exception '{}'; end$$", "a function of the database raised an error (SQLSTATE P0001)"),
        (
            "do $$begin raise undefined_table using message = 'x \"{0}\"', table = '{0}'; end$$",
            "more.sql: there is no such table or view (SQLSTATE 42P01)",
        ),
        ("create table t (v text);\ninsert t values '{}';\n", 'line 2, column 8: syntax error: "t" (SQLSTATE 42601)'),
        ("create table t (v text);\ninsert into t '{}';\n", "line 2, column 15: syntax error (SQLSTATE 42601)"),
    ],
)
async def test_an_error_of_the_server_is_told_without_values(site: Site, script: str, told: str) -> None:
    (site.folder / "more.sql").write_text(script.format(SECRET))
    with pytest.raises(DataError) as refused:
        await site.provisioner().create("acme")
    assert told in refused.value.message
    assert SECRET not in refused.value.message
    assert SECRET not in str(await site.sql("select * from asgi_datasource.tenant_steps"))
    assert SECRET not in "".join(traceback.format_exception(refused.value))
    # For debugging, the cause has all of it.
    assert isinstance(refused.value.__cause__, psycopg.Error)
    found = refused.value.__cause__.diag
    assert SECRET in f"{found.message_primary} {found.message_detail}" or found.sqlstate == "42601"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            b"create table ok (i int);\ncreate table docs (id int, e no_such_type);\n",
            "line 2, column 30: there is no such object",
        ),
        (
            "-- größer\ncreate table ok (i int);\ncreate tabel x (i int);\n".encode(),
            'line 3, column 8: syntax error: "tabel"',
        ),
        (b"\xef\xbb\xbfcreate tabel x (i int);\n", "line 1, column 8: syntax error"),
    ],
)
async def test_an_error_in_a_file_is_told_with_its_line(site: Site, body: bytes, told: str) -> None:
    (site.folder / "more.sql").write_bytes(body)
    with pytest.raises(DataError) as refused:
        await site.provisioner().create("acme")
    assert f"more.sql, {told}" in refused.value.message


async def fails(tenant: Any, connection: psycopg.AsyncConnection[Any]) -> None:
    raise ValueError(SECRET)


async def fails_on_the_server(tenant: Any, connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("select %s::text::int", (SECRET,))


async def test_an_error_of_a_function_is_told_by_its_type_and_place(site: Site) -> None:
    for name, told in (
        ("fails", "raised ValueError (test_provisioning_secrets.py, line "),
        ("fails_on_the_server", "a value does not fit its type (SQLSTATE 22P02)"),
    ):
        site.set(provisioning={"set_up": [f"{__name__}:{name}"]})
        done = site.command("create", name.replace("_", "-"))
        assert done.code == 2
        assert told in done.err
        assert SECRET not in done.err


async def test_why_a_dump_failed_is_told_whole(site: Site) -> None:
    """A table that the role that dumps may not read all of."""
    document = json.loads(site.config.read_text())
    for name in ("one", "two", "control"):
        document["datasources"][name].pop("admin")
    (site.folder / "more.sql").write_text(
        "alter table items enable row level security, force row level security; create policy p on items using (true)"
    )
    site.set(datasources=document["datasources"])
    await site.provisioner().create("acme")
    with pytest.raises(DataError) as refused:
        await site.provisioner().move("acme", "two")
    message = refused.value.message
    assert 'row-level security policy for table "items"' in message
    assert "HINT: To disable the policy for the table's owner, use ALTER TABLE NO FORCE ROW LEVEL SECURITY." in message
    assert "COPY t_acme.items" in message


async def test_a_row_that_cannot_be_restored_is_not_told(site: Site) -> None:
    (site.folder / "more.sql").write_text(
        f"create table cards (pan text, check (current_database() like '%_one')); insert into cards values ('{SECRET}')"
    )
    await site.provisioner().create("acme")
    with pytest.raises(DataError) as refused:
        await site.provisioner().move("acme", "two")
    told = refused.value.message
    assert 'COPY failed for table "cards"' in told
    assert 'violates check constraint "cards_check"' in told
    assert SECRET not in told
    cause = refused.value.__cause__
    assert isinstance(cause, programs.ProgramFailed)
    assert SECRET in cause.output
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("", "no reason given"),
        ("pg_dump: error: out of memory", "out of memory"),
        (
            'pg_restore: error: COPY failed for table "t": ERROR:  invalid input syntax for type integer: "4111"\n'
            'CONTEXT:  COPY t, line 1, column v: "4111"\n',
            'COPY failed for table "t": ERROR: invalid input syntax for type integer: "..."',
        ),
        (
            'pg_restore: error: COPY failed for table "t": ERROR:  no 4111 here\n'
            'CONTEXT:  PL/pgSQL function t_acme.ok(text) line 1 at RAISE\nCOPY t, line 1, column v: "4111"\n',
            'COPY failed for table "t": ERROR: a function of the database raised an error',
        ),
        (
            "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 219; 1259 16389 TABLE items app\n"
            'pg_restore: error: could not execute query: ERROR:  type "vector" does not exist\nLINE 3:   e vector(3)\n'
            "            ^\npg_restore: detail: Command was: CREATE TABLE t_acme.items (\n  v text DEFAULT '4111'\n);",
            "while PROCESSING TOC; from TOC entry 219; 1259 16389 TABLE items app;"
            ' could not execute query: ERROR: type "vector" does not exist',
        ),
    ],
)
def test_what_a_program_says_is_told_without_rows(output: str, told: str) -> None:
    assert programs.without_rows(output) == told


def test_a_lost_connection_is_one() -> None:
    assert refusal_text(psycopg.OperationalError(f"server closed: {SECRET}")) == "the connection was lost"
