"""The mutation run: its sample is fixed, its changes can be compiled, and there are tests that should notice them."""

from __future__ import annotations

import ast

from scripts.mutation import PACKAGE, ROOT, TESTS, mutants_of, sample_of


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
