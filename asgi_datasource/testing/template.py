"""A data directory that is created once, with `initdb`, and copied for every server.

It contains the superuser `postgres` and the ordinary role `app`, both with random passwords that are stored beside it,
and the database `postgres`, owned by `app` so that tests can create tables in it at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .binaries import Binaries, ClusterError, RunAs, cache_root, run

SUPERUSER: Final = "postgres"
ORDINARY_ROLE: Final = "app"

_INITDB: Final = (
    "--username=postgres",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--no-locale",
    "--no-sync",
    # 1 MB segments: 15 MB less to copy for every server.
    "--wal-segsize=1",
    "--no-instructions",
)
_HBA: Final = "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
# One iteration: the passwords are random and the data is a test's, so slow connects would gain nothing.
_SETUP: Final = (
    "set scram_iterations = 1;\n"
    "alter role postgres password '{superuser}';\n"
    "create role app login password '{ordinary}';\n"
    "alter database postgres owner to app;\n"
)

# A replica refuses to start with lower settings than those of the server that its data is from: so use the minimum.
_LOWEST: Final = (
    *("-c", "max_connections=1", "-c", "max_wal_senders=0", "-c", "max_worker_processes=0"),
    *("-c", "max_locks_per_transaction=10", "-c", "max_prepared_transactions=0"),
)
# To be raised when the result of `_build` changes.
_REVISION: Final = 3


@dataclass(frozen=True, slots=True)
class Template:
    """A data directory to copy, from a server that was shut down cleanly."""

    data_dir: Path
    passwords: dict[str, str]
    """Role to password."""

    def copy_to(self, target: Path) -> None:
        """Copy it, sharing blocks if the file system supports that."""
        # `cp` is twice as fast as shutil.copytree, and keeps the owner. The second variant is for systems without GNU
        # cp.
        for options in (("-a", "--reflink=auto"), ("-pR",)):
            done = subprocess.run(["cp", *options, str(self.data_dir), str(target)], capture_output=True, check=False)
            if done.returncode == 0:
                return
            shutil.rmtree(target, ignore_errors=True)
        raise ClusterError(f"cannot copy {self.data_dir} to {target}: {done.stderr.decode(errors='replace').strip()}")


def template(binaries: Binaries, user: RunAs, *, cache_dir: Path | None = None) -> Template:
    """The template for this PostgreSQL version, created if it does not exist yet.

    Args:
        cache_dir: Its directory; by default `cache_root()`.
    """
    recipe = hashlib.sha256(repr((_INITDB, _HBA, _SETUP, _LOWEST, _REVISION)).encode()).hexdigest()[:8]
    root = cache_root(user) if cache_dir is None else cache_dir
    home = root / f"template-{binaries.key}-{user.uid}-{recipe}"
    if not home.exists():
        with _locked(root / f"{home.name}.lock"):
            # Second check: another process may have created it while we waited for the lock.
            if not home.exists():
                _build(binaries, user, home)
    return Template(home / "data", json.loads((home / "passwords.json").read_text(encoding="utf-8")))


def _build(binaries: Binaries, user: RunAs, home: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=".template-", dir=home.parent))
    try:
        building.chmod(0o755)
        data_dir = building / "data"
        data_dir.mkdir(mode=0o700)
        user.give(data_dir)
        passwords = {SUPERUSER: secrets.token_urlsafe(18), ORDINARY_ROLE: secrets.token_urlsafe(18)}
        # A temporary password: the final one is set with fewer iterations below.
        password_file = data_dir.parent / "first"
        password_file.write_text(passwords[SUPERUSER], encoding="utf-8")
        user.give(password_file)
        run(user, [binaries.program("initdb"), "-D", str(data_dir), f"--pwfile={password_file}", *_INITDB])
        password_file.unlink()
        (data_dir / "pg_hba.conf").write_text(_HBA, encoding="utf-8")
        setup = _SETUP.format(superuser=passwords[SUPERUSER], ordinary=passwords[ORDINARY_ROLE])
        # Single-user mode: no port, no password, and a clean shutdown at the end.
        single = [binaries.program("postgres"), "--single", "-j", "-F", *_LOWEST, "-D", str(data_dir), "postgres"]
        run(user, single, stdin=_blocks(setup))
        _drop_old_wal(binaries, user, data_dir)
        secret = building / "passwords.json"
        secret.touch(mode=0o600)
        secret.write_text(json.dumps(passwords), encoding="utf-8")
        building.rename(home)
    except BaseException:
        # Also after Ctrl-C: an incomplete directory is useless.
        shutil.rmtree(building, ignore_errors=True)
        raise


def _drop_old_wal(binaries: Binaries, user: RunAs, data_dir: Path) -> None:
    """Remove WAL that only initdb needed, a third of the data to copy.

    After a clean shutdown a server reads nothing before the segment of its last checkpoint. `pg_resetwal` would work as
    well, but records `wal_level=minimal`, from which no replica starts.
    """
    control = run(user, [binaries.program("pg_controldata"), "-D", str(data_dir)])
    needed = re.search(r"REDO WAL file:\s*([0-9A-F]{24})", control)
    for segment in (data_dir / "pg_wal").iterdir():
        if needed is not None and re.fullmatch(r"[0-9A-F]{24}", segment.name) and segment.name != needed[1]:
            segment.unlink()


def _blocks(statements: str) -> str:
    """Statements in the format of `postgres --single -j`: each ends with a semicolon and an empty line."""
    return statements.replace(";\n", ";\n\n")


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
