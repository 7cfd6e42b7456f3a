"""How many examples a test with generated input runs."""

from __future__ import annotations

import os


def many(whole: int) -> int:
    """A third of `whole`; all with `--whole`, which sets `ADS_EXAMPLES` to 1.0."""
    return max(1, round(whole * float(os.environ.get("ADS_EXAMPLES", "0.33"))))
