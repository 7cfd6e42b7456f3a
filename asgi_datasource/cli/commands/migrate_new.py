"""`asgi-datasource migrate new NAME`: the next file, with a version that no other branch has taken."""

from __future__ import annotations

import re
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ...config import Config
from ...migrate import Scope, read_folder
from ..command import CannotRun
from ..console import Console
from .migrate_output import Changed

_SQL: Final = """\
-- {title}
--
-- One transaction with its row in the ledger. Directives, where they are needed:
--   transaction: off   for CREATE INDEX CONCURRENTLY and other statements that refuse a transaction
--   phase: contract    for what takes away something that the version before still uses
--   lock_timeout: 5s

"""
_DOWN: Final = "-- takes {file} back\n\n"
_PYTHON: Final = '''\
"""{title}"""


async def up(db):
    await db.execute("select 1")
'''
_MAIN: Final = ("origin/HEAD", "origin/main", "main", "origin/master", "master")
_GIT_TIMEOUT_S: Final = 10


def write_next(config: Config, options: Namespace, console: Console) -> Changed:
    """Write the next file.

    Raises:
        CannotRun: The name has another form, or there is no folder.
    """
    migrate = config.migrate
    if migrate is None or migrate.folder is None:
        raise CannotRun("migrate.folder is not set", "Set it: migrate: {folder: migrations}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", options.name):
        raise CannotRun(f"{options.name!r} is no name of a file", "Use letters, digits and _: add_orders.")
    root = Path(migrate.folder)
    folder = root / options.scope
    folder.mkdir(parents=True, exist_ok=True)
    files = [found.path.name for found in read_folder(root).versioned(Scope(options.scope))]
    elsewhere = list(on_main_branch(folder))
    stem = f"{next_version([*files, *elsewhere], timestamp=options.timestamp)}_{options.name}"
    ahead = [name for name in elsewhere if name not in files]
    if ahead:
        console.progress(f"the main branch has {len(ahead)} more: {', '.join(ahead[:3])}; the version is above them")
    title = options.name.replace("_", " ")
    written = [(folder / f"{stem}.py", _PYTHON) if options.python else (folder / f"{stem}.sql", _SQL)]
    if options.down and not options.python:
        written.append((folder / f"{stem}.down.sql", _DOWN))
    for file, text in written:
        with file.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text.format(title=title, file=f"{stem}.sql"))
    return Changed("new", tuple(str(file) for file, _ in written))


def next_version(files: Iterable[str], *, timestamp: bool = False) -> str:
    """The next version, as wide as the versions before it.

    Args:
        files: The names of files, of other branches as well.
        timestamp: A timestamp in UTC; where the versions before are timestamps, it is one in any case.
    """
    versions = [found[1] for name in files if (found := re.match(r"([0-9]{1,19})_", name))]
    highest = max(map(int, versions), default=0)
    if timestamp or highest >= 10**13:
        now = datetime.now(UTC)
        return str(max(highest + 1, int(f"{now:%Y%m%d%H%M%S}")))
    width = max((len(version) for version in versions), default=4)
    return str(highest + 1).zfill(width)


def on_main_branch(folder: Path) -> Iterable[str]:
    """The names of the files of a folder on the main branch of its git repository; none where there is no git."""
    git = shutil.which("git")
    if git is None:
        return []
    for branch in _MAIN:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [git, "-C", str(folder), "ls-tree", "--name-only", "-z", branch, "./"],
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
        if done.returncode == 0:
            return [Path(name).name for name in done.stdout.decode(errors="replace").split("\0") if name]
    return []
