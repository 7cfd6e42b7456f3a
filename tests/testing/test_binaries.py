"""PostgreSQL's programs from a directory that `ADS_POSTGRES_BIN` names."""

from __future__ import annotations

from pathlib import Path

import pytest

from asgi_datasource.testing import ClusterError
from asgi_datasource.testing.binaries import find_binaries


def test_the_programs_of_another_installation_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = find_binaries(16)
    monkeypatch.setenv("ADS_POSTGRES_BIN", str(wheel.bin_dir))
    named = find_binaries()
    assert (named.bin_dir, named.version, named.major) == (wheel.bin_dir, wheel.version, 16)
    assert named.key != wheel.key
    with pytest.raises(ClusterError, match=r"PostgreSQL 18 is not in ADS_POSTGRES_BIN=.*: it holds 16"):
        find_binaries(18)


def test_a_directory_without_programs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADS_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(ClusterError, match=r"ADS_POSTGRES_BIN=/.* Name the directory of a PostgreSQL installation"):
        find_binaries()
