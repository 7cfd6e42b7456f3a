"""The plots and tables of docs/performance.md and the README come from the committed result file."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.tournament import Cell, parse
from scripts.generate import performance
from scripts.generate.drawing import Lines, Spread, bars, lines, short

ROOT = Path(__file__).parent.parent.parent


def test_the_committed_plots_are_those_of_the_result_file() -> None:
    for name, text in performance.render_plots().items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: run python -m scripts.generate"


def test_every_claim_of_the_readme_is_a_ratio_of_the_result_file() -> None:
    claims = performance.render_claims()

    assert len(claims.splitlines()) == len(performance.CLAIMS) + 2
    assert claims in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_result_file_is_a_whole_run() -> None:
    document = json.loads(performance.RESULT.read_text(encoding="utf-8"))

    assert document["quick"] is False
    cells = {
        parse(found["case"])
        for found in document["measurements"]
        if found["benchmark"] == "tournament" and not found["case"].startswith("memory")
    }
    assert {cell.workload for cell in cells} == set(performance.WORKLOADS)
    assert {cell.clients for cell in cells} >= set(performance.CLIENTS)
    assert {cell.delay_ms for cell in cells} == {0, 1, 2, 10}
    assert {cell.pool for cell in cells} == {5, 20}


def test_a_bar_is_as_long_as_its_median_and_a_line_as_its_quartiles() -> None:
    drawn = bars(
        "Speed", "1/s", {"one read": {"us": Spread(80, 100, 120), "them": Spread(40, 50, 60)}}, frozenset({"us"})
    )

    boxes = [box for box in ElementTree.fromstring(drawn).iter() if box.tag.endswith("rect")][1:]
    ours, theirs = (float(box.attrib["width"]) for box in boxes)
    assert ours == pytest.approx(2 * theirs, abs=0.1)


def test_lines_are_logarithmic_and_every_side_has_its_colour() -> None:
    drawn = lines("Latency", "clients", "ms", [Lines("p50", ["32", "64"], {"us": [1, 10], "them": [10, 100]})])

    paths = [path.attrib for path in ElementTree.fromstring(drawn).iter() if path.tag.endswith("polyline")]
    heights = [[float(point.split(",")[1]) for point in path["points"].split()] for path in paths]
    theirs, ours = heights
    assert theirs[0] - theirs[1] == pytest.approx(ours[0] - ours[1], abs=0.1)
    assert len({path["stroke"] for path in paths}) == 2


def test_a_cell_is_read_back_from_its_name() -> None:
    for cell in (Cell("one read", 1, 5, 0), Cell("ten-statement write", 512, 20, 10)):
        assert parse(str(cell)) == cell


@pytest.mark.parametrize(("value", "text"), [(12345, "12,300"), (1.234, "1.23"), (0.98765, "0.988"), (0, "0")])
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert short(value) == text
