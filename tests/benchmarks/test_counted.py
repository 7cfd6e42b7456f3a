"""The gate of `scripts/bench --gate`: a counted figure that rises fails it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asgi_datasource.testing import EmbeddedCluster
from benchmarks import counted


def committed() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(counted.REFERENCE.read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize(("part", "name"), [("wire", "round trips"), ("process", "library calls")])
def test_a_raised_figure_is_named_with_both_values(part: str, name: str) -> None:
    found = committed()
    (key, *_) = found[part]
    found[part][key]["one read"][name] += 1
    before = committed()[part][key]["one read"][name]

    assert counted.compare(found, committed()) == [f"one read: {name} rose from {before} to {before + 1}"]


def test_the_committed_figures_have_not_risen_over_themselves_and_a_drop_passes() -> None:
    found = committed()
    found["wire"]["any"]["one write"]["messages sent"] -= 1

    assert counted.compare(found, committed()) == []


def test_a_figure_without_a_committed_one_fails() -> None:
    before = committed()
    del before["wire"]["any"]["one write"]

    assert "one write: round trips has no committed figure (now 2)" in counted.compare(committed(), before)


def test_figures_of_other_versions_are_not_compared() -> None:
    found = {"process": {"CPython 9.9": committed()["process"].popitem()[1]}}

    assert counted.compare(found, committed()) == []


async def test_the_gate_counts_a_real_request_and_fails_on_a_rise(
    cluster: EmbeddedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(counted, "CASES", {"one write": counted.CASES["one write"]})
    monkeypatch.setattr(counted.shutil, "which", lambda _: None)  # no system calls: a process of their own
    lower = committed()
    lower["wire"]["any"]["one write"]["round trips"] = 1
    reference = tmp_path / "counted.json"
    reference.write_text(json.dumps(lower), encoding="utf-8")

    url = cluster.primary.url(user="postgres")
    assert await counted.gate(url, reference, write=False, instructions=False) == 1
    assert "one write: round trips rose from 1 to 2" in capsys.readouterr().err

    await counted.gate(url, reference, write=True, instructions=False)
    assert json.loads(reference.read_text(encoding="utf-8"))["wire"]["any"]["one write"]["round trips"] == 2


def test_system_calls_are_counted_between_marks() -> None:
    trace = f"""\
7 newfstatat(AT_FDCWD, "{counted.MARK}read", 0x7ff, 0) = -1 ENOENT
7 sendto(5, "Q", 1, 0, NULL, 0) = 1
7 epoll_wait(3,  <unfinished ...>
7 <... epoll_wait resumed>[], 2, 0) = 1
7 access("{counted.MARK}", F_OK) = -1 ENOENT
7 close(5) = 0
"""
    assert counted.parse_trace(trace) == {"read": {"system calls": 2, "packets sent": 1}}
