"""The mutation run: its sample is fixed, its changes can be compiled, and there are tests that should notice them."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import coverage

from scripts.mutation import EQUIVALENT, MOST_SECONDS, PACKAGE, ROOT, TESTS, Reach, mutants_of, sample_of


def test_a_sample_is_fixed_by_its_seed() -> None:
    assert sample_of(["routing"], 5, seed=1) == sample_of(["routing"], 5, seed=1)
    assert sample_of(["routing"], 5, seed=1) != sample_of(["routing"], 5, seed=2)


def test_every_change_of_a_sample_is_one_of_the_modules_syntax() -> None:
    source = (ROOT / PACKAGE / "routing/choose.py").read_text()
    for mutant in sample_of(["routing/choose"], 30, seed=1):
        assert mutant.path == "routing/choose.py"
        assert ast.dump(ast.parse(mutant.applied_to(source))) != ast.dump(ast.parse(source)), str(mutant)
        assert source.count("\n", 0, mutant.start) >= mutant.line - 1
    kinds = {mutant.what for mutant in mutants_of(["routing/choose"])}
    assert {"is to is not", "and to or", "<= to <", "not in to in"} <= kinds


def test_every_module_has_tests_that_exist() -> None:
    for _, tests in TESTS:
        assert all((ROOT / "tests" / test).exists() for test in tests.split()), tests


def test_a_change_is_judged_by_the_nearest_tests_that_run_its_line(tmp_path: Path) -> None:
    mutant = next(one for one in mutants_of(["routing/choose"]) if not one.is_outside)
    data = coverage.CoverageData(str(tmp_path / "1.coverage"))
    near, beside, far = "tests/routing/test_choose.py::a", "tests/routing/test_lag.py::a", "tests/asgi/test_start.py::a"
    quick, other = "tests/asgi/test_start.py::b", "tests/routing/test_choose.py::b"
    for test in (near, beside, far, quick, other):
        data.set_context(test)
        data.add_lines({str(ROOT / PACKAGE / mutant.path): [mutant.line + 1000 * (test == other)]})
    data.write()
    seconds = {near: 2.0, beside: 1.0, far: 0.5, quick: 0.1, other: 0.1}
    (tmp_path / "1.json").write_text(json.dumps(seconds))
    assert Reach(tmp_path).tests_of(mutant) == [near, beside, quick, far]
    (tmp_path / "1.json").write_text(json.dumps({**seconds, beside: MOST_SECONDS}))
    assert Reach(tmp_path).tests_of(mutant) == [near, beside]
    # A test that has failed without a change judges nothing.
    (tmp_path / "1.json").write_text(json.dumps({far: 2.0}))
    assert Reach(tmp_path).tests_of(mutant) == [far]


def test_equivalent_changes_are_changes_of_the_package() -> None:
    known = {mutant.name for path in {name.partition(".py")[0] for name in EQUIVALENT} for mutant in mutants_of([path])}
    assert set(EQUIVALENT) <= known
