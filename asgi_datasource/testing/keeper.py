"""Ends the servers of a cluster after the process that started them; and the process functions for that.

Runs as a script beside every cluster: it waits until its standard input closes or its parent process changes, which
happens for any end of the test run (exit, Ctrl-C, SIGKILL), then ends the remaining servers and removes the data. It
uses the standard library only, so that it starts in a few milliseconds.

`prctl(PR_SET_PDEATHSIG)` is not used: the signal comes when the *thread* that started the server ends, and the threads
of a test's event loop end long before the run does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_HAS_PROC: Final = Path("/proc/self/stat").exists()
GRACE_S: Final = 5.0
"""Seconds until a server is killed after SIGQUIT; as long as the server waits for its own children."""


def is_alive(pid: int) -> bool:
    """Whether this process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _HAS_PROC is False or _state(pid) not in "ZX"


def process_tree(pid: int) -> list[int]:
    """This process and its descendants, parents first."""
    tree = [pid]
    for parent in tree:
        tree += _children(parent)
    return tree


def signal_tree(pid: int, number: int) -> None:
    """Send a signal to this process and its descendants; for SIGSTOP and SIGKILL, wait for the effect.

    The top is stopped first: a postmaster that keeps forking would otherwise miss a child.
    """
    if number != signal.SIGCONT:
        _send(pid, signal.SIGSTOP)
        _wait(lambda: _state(pid) in "TZ")
    tree = process_tree(pid)
    for member in reversed(tree):
        _send(member, number)
    if number == signal.SIGSTOP:
        _wait(lambda: all(_state(member) in "TZ" for member in tree))
    elif number == signal.SIGKILL:
        # The next server on the same data would find their shared memory in use.
        _wait(lambda: not any(is_alive(member) for member in tree))


def end_server(data_dir: Path, *, grace_s: float = GRACE_S) -> None:
    """End the server that runs on this data directory, frozen or not, without a checkpoint.

    Args:
        data_dir: Directory of `postmaster.pid`; without a running server nothing happens.
        grace_s: Seconds until the remaining processes are killed.
    """
    pid = server_pid(data_dir)
    if pid is not None:
        tree = process_tree(pid)
        quit_server(data_dir)
        _wait(lambda: not is_alive(pid), grace_s)
        for member in tree:
            # A child that outlived its postmaster; a reused pid belongs to another process.
            if is_alive(member) and _runs_in(member, data_dir):
                _send(member, signal.SIGKILL)
    end_stragglers(data_dir)
    _release_shared_memory(data_dir)


def quit_server(data_dir: Path) -> None:
    """Make the server on this data directory end at once, without waiting for it."""
    pid = server_pid(data_dir)
    if pid is not None:
        for member in process_tree(pid):
            _send(member, signal.SIGCONT)
        _send(pid, signal.SIGQUIT)


def server_pid(data_dir: Path) -> int | None:
    """The pid of the server on this data directory; None if none runs."""
    try:
        pid = int((data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None
    return pid if is_alive(pid) and _runs_in(pid, data_dir) else None


def server_status(data_dir: Path, pid: int) -> str:
    """The last status of the server with this pid: `starting`, `ready`, `stopping`, or nothing.

    The file may be that of an earlier server that was killed: pid and status come from one read.

    Source: PostgreSQL source, src/include/utils/pidfile.h (the lines of postmaster.pid; `pg_ctl -w` reads the same).
    """
    try:
        lines = (data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return lines[7].strip() if len(lines) > 7 and lines[0] == str(pid) else ""


def end_stragglers(data_dir: Path, *, grace_s: float = GRACE_S) -> None:
    """End the children of a server whose postmaster has ended: only frozen ones do not end by themselves."""
    for pid in _processes_in(data_dir):
        _send(pid, signal.SIGCONT)
    if not _wait(lambda: not _processes_in(data_dir), grace_s):
        for pid in _processes_in(data_dir):
            _send(pid, signal.SIGKILL)


def _state(pid: int) -> str:
    """The kernel's letter for a process state: T is stopped, Z is a zombie or gone, or unknown without procfs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "Z"
    return stat.rpartition(")")[2].split()[0]


def _wait(is_done: Callable[[], bool], timeout_s: float = GRACE_S) -> bool:
    give_up = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.002)
    return True


def _processes_in(data_dir: Path) -> list[int]:
    """Every process that runs in this data directory, as all processes of a server do."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()] if _HAS_PROC else []
    return [pid for pid in numbers if _state(pid) != "Z" and _runs_in(pid, data_dir)]


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        if _HAS_PROC:
            return []
        # macOS has no procfs.
        table = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        return [int(row.split()[0]) for row in table.splitlines() if int(row.split()[1]) == pid]
    return [int(child) for child in listed.split()]


def _runs_in(pid: int, data_dir: Path) -> bool:
    """Whether this process belongs to the server of this directory: pids are reused."""
    try:
        return Path(f"/proc/{pid}/cwd").samefile(data_dir)
    except OSError:
        return not _HAS_PROC


def _release_shared_memory(data_dir: Path) -> None:
    """Remove the System V segment that a killed server leaves behind: the kernel keeps it, and allows 4096 in all."""
    try:
        lines = (data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        key, segment = (int(number) for number in lines[6].split())
    except (OSError, ValueError, IndexError):
        return
    libc = ctypes.CDLL(None)
    # Look it up by key first: the segment number alone may belong to another program by now.
    if libc.shmget(ctypes.c_int(key), ctypes.c_size_t(0), 0) == segment:
        libc.shmctl(segment, 0, None)


def main(root: Path) -> None:
    """Wait for the end of the parent, then end every server below `root` and remove it."""
    parent = os.getppid()
    # The second condition covers a forked child of the parent, which keeps our standard input open.
    while os.getppid() == parent:
        readable, _, _ = select.select([sys.stdin], [], [], 0.5)
        if readable and not os.read(sys.stdin.fileno(), 64):
            break
    if root.exists():
        servers = [path for path in root.iterdir() if path.is_dir()]
        for data_dir in servers:
            quit_server(data_dir)
        for data_dir in servers:
            end_server(data_dir)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    # Signals that a terminal or service manager sends to the whole group must not end this process early.
    for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(_number, signal.SIG_IGN)
    main(Path(sys.argv[1]))
