"""The folder of migrations: names, heads, order, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from asgi_datasource.migrate import Folder, Phase, Problem, Scope, read_folder
from asgi_datasource.migrate.files import python_checksum


def written(path: Path, **files: str) -> Path:
    """A folder of migrations; `tenant__0001_a.sql` is `tenant/0001_a.sql`."""
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    return path


def test_files_are_found_by_scope_and_sorted_by_version(tmp_path: Path) -> None:
    folder = read_folder(
        written(
            tmp_path,
            **{
                "shared__0001_plans.sql": "create table plans (id int)",
                "tenant__0010_ten.sql": "select 10",
                "tenant__9_nine.sql": "-- transaction: off\n-- lock_timeout: 5s\n\nvacuum t",
                "tenant__9_nine.down.sql": "drop index i",
                "tenant__20260714120000_drop.sql": "-- phase: contract\n-- lint: allow ADS209 unused\ndrop table t",
                "tenant__11_seed.py": "async def up(db):\n    pass\n",
                "tenant__R_views.sql": "create or replace view v as select 1",
                "tenant__B0010_start.sql": "create table t (a int)",
                "tenant____init__.py".replace("____", "__"): "",
                "README.md": "notes",
            },
        )
    )
    assert isinstance(folder, Folder)
    assert [found.label for found in folder.shared] == ["0001_plans"]
    assert [found.version for found in folder.tenant] == [9, 10, 11, 20260714120000]
    nine, _, seed, last = folder.tenant
    assert (nine.directives.is_transactional, nine.directives.lock_timeout_s) == (False, 5.0)
    assert nine.down is not None
    assert seed.is_python
    assert (last.directives.phase, last.directives.allowed) == (Phase.CONTRACT, {"ADS209": "unused"})
    assert [found.label for found in folder.repeatable(Scope.TENANT)] == ["R_views"]
    baseline = folder.baseline(Scope.TENANT)
    assert baseline is not None
    assert baseline.version == 10
    assert (folder.head(Scope.SHARED), folder.head(Scope.TENANT)) == (1, 20260714120000)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("tenant__first.sql", "select 1", "its name is none of a migration"),
        ("tenant__0_none.sql", "select 1", "0 is no version"),
        ("0001_a.sql", "select 1", "neither shared/ nor tenant/"),
        ("tenant__1_twice.sql", "select 1", "has the same version"),
        ("tenant__0002_a.down.sql", "select 1", "no migration that it takes back"),
        ("tenant__0002_a.sql", "-- only a comment", "there is no statement"),
        ("tenant__0002_a.sql", "begin; select 1; commit", "0002_a.sql:1: BEGIN would end the transaction"),
        ("tenant__0002_a.sql", "\nselect 1;\ncommit", "0002_a.sql:3: COMMIT"),
        ("tenant__0002_a.sql", "copy t from stdin", "COPY needs a client"),
        ("tenant__0002_a.sql", "select 'a", "0002_a.sql:1: the quote"),
        ("tenant__0002_a.sql", "-- trasaction: off\nselect 1", "did you mean 'transaction'"),
        ("tenant__0002_a.sql", "-- phase: shrink\nselect 1", "expand or contract"),
        ("tenant__0002_a.sql", "-- lint: allow ADS201\nselect 1", "needs a reason"),
        ("tenant__0002_a.sql", "-- lint: deny ADS201 slow\nselect 1", "write it as `-- lint: allow"),
        ("tenant__0002_a.sql", "-- lock_timeout: 5\nselect 1", "is not a duration"),
        ("tenant__0002_a.py", "def up(:", "it is not Python"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_place(tmp_path: Path, name: str, text: str, told: str) -> None:
    written(tmp_path, **{"tenant__0001_one.sql": "select 1", name: text})
    with pytest.raises(Problem) as caught:
        read_folder(tmp_path)
    assert told in str(caught.value)
    assert caught.value.fix


def test_other_comments_may_stand_in_the_head_and_words_that_only_look_like_control_pass(tmp_path: Path) -> None:
    text = "-- author: Jane\n-- why: speed\nprepare p as select 1; execute p; create table begin_at (a int)"
    [found] = read_folder(written(tmp_path, **{"shared__1_a.sql": text})).shared
    assert found.directives.is_transactional


def test_line_ends_and_byte_order_marks_do_not_count(tmp_path: Path) -> None:
    text = "create table t (a int);\n-- c\ncreate function f() returns int language sql as $$\nselect 1\n$$;"
    one = read_folder(written(tmp_path / "a", **{"tenant__1_a.sql": text})).tenant[0]
    other = read_folder(written(tmp_path / "b", **{"tenant__1_a.sql": "\ufeff" + text.replace("\n", "\r\n")})).tenant[0]
    assert (one.checksum, one.text) == (other.checksum, other.text)


def test_the_checksum_of_a_python_step_ignores_layout_and_comments() -> None:
    one = "async def up(db):\n    x = f'{db!r} a'\n    await db.execute('select 1')\n"
    assert python_checksum(one) == python_checksum(
        "async def up(db):  # step\n\n  x = f'{db!r} a'\n  # next\n  await db.execute(\n      'select 1')\n"
    )
    for other in (one.replace("1", "2"), one.replace("} a", "} b"), one.replace("!r", "!s")):
        assert python_checksum(other) != python_checksum(one)
