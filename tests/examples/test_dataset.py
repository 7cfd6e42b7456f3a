"""The flights in the repository, and failures to download the full data set."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from starlette_app import dataset
from starlette_app.load import places


def test_the_week_has_every_airline() -> None:
    flights = list(dataset.subset().flights())
    carriers = Counter(carrier for _, carrier, _ in flights)
    assert len(flights) == 6262
    assert carriers.keys() == {place.carrier for place in places()}
    assert {place.isolation for place in places()} == {"database", "schema", "rows"}
    # The largest airline of the year has its own database.
    assert [place.carrier for place in places() if place.isolation == "database"] == ["UA"]


def test_the_week_stays_within_its_size() -> None:
    assert sum(file.stat().st_size for file in dataset.SUBSET.glob("*.gz")) < 1_000_000


async def test_another_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / f"{dataset.NAME}-{dataset.VERSION}.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(dataset.DatasetUnavailableError, match="is not the archive that we know"):
        await dataset.full(tmp_path)


async def test_a_failed_download_reports_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An index that does not exist, as on a machine without a network.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(dataset.DatasetUnavailableError, match=dataset.NAME):
        await dataset.full(tmp_path)
