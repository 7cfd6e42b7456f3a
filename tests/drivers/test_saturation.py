"""What the warnings about a saturated pool name as its cause."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from asgi_datasource.drivers.psycopg.saturation import Saturation
from asgi_datasource.drivers.settings import ServerSettings


@dataclass
class Pool:
    label: str = "orders.primary (10.0.0.5:5432)"
    settings: ServerSettings = field(default_factory=lambda: ServerSettings(conninfo="", max_size=2))
    borrowed: int = 2
    lendings: int = 0
    waiting: int = 0


@pytest.mark.parametrize(
    ("borrowed", "late_s", "named"),
    [
        (2, 0.0, "Raise pool.max_size"),
        (2, 3.0, "meanwhile the event loop was blocked for 3.0 s or more. Run blocking calls in a thread"),
        (1, 0.0, "the pool did not grow to pool.max_size. Connecting takes longer than that"),
    ],
)
async def test_the_warning_names_what_a_refusal_came_from(
    caplog: pytest.LogCaptureFixture, borrowed: int, late_s: float, named: str
) -> None:
    saturation = Saturation(Pool(borrowed=borrowed))
    saturation.refused(late_s)
    saturation.close()
    assert named in caplog.text
    assert ("Raise pool.max_size" in caplog.text) is (borrowed == 2 and not late_s)
