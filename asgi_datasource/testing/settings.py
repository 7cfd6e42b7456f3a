"""The `postgresql.conf` of a server for one test run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .ports import HOST

Setting = str | int | float | bool
"""A value of `postgresql.conf`: booleans become `on` and `off`."""

_EVERY_VERSION: Final[dict[str, Setting]] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": 100,
    "shared_buffers": "64MB",
    "huge_pages": "off",
    # Files end with the cluster; shared memory of other types would remain after SIGKILL.
    "dynamic_shared_memory_type": "mmap",
    # The data does not outlive the run: it may be lost in a crash of the machine, not in one of the server.
    "fsync": False,
    "full_page_writes": False,
    "wal_level": "replica",
    "hot_standby": True,
    "max_wal_senders": 10,
    "max_replication_slots": 10,
    # A replica that lost its primary tries to reconnect this often; the default is 5 s.
    "wal_retrieve_retry_interval": "50ms",
    "wal_keep_size": "256MB",
    "min_wal_size": "32MB",
    "checkpoint_timeout": "30min",
    "max_logical_replication_workers": 0,
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}


def base_settings(major: int) -> dict[str, Setting]:
    """Default settings of every server of this major version."""
    # Version 18 would start three I/O workers per server, which are useless for data in memory.
    return {**_EVERY_VERSION, "io_method": "sync"} if major >= 18 else dict(_EVERY_VERSION)


def render(settings: Mapping[str, Setting]) -> str:
    """The text of the file."""
    return "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items())


def _quoted(value: Setting) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "'" + str(value).replace("'", "''") + "'"
