"""The mutation run: its sample is fixed, and each change of it is one that Python can compile."""

from __future__ import annotations

import ast

from scripts.mutation import PACKAGE, ROOT, mutants_of, sample_of


def test_a_sample_is_fixed_by_its_seed() -> None:
    assert sample_of(["routing"], 10, seed=1) == sample_of(["routing"], 10, seed=1)
    assert sample_of(["routing"], 10, seed=1) != sample_of(["routing"], 10, seed=2)


def test_every_change_is_one_of_the_module_that_can_be_compiled() -> None:
    found = list(mutants_of(["routing/choose"]))
    assert {mutant.path for mutant in found} == {"routing/choose.py"}
    source = (ROOT / PACKAGE / "routing/choose.py").read_text()
    for mutant in found:
        changed = source[: mutant.start] + mutant.text + source[mutant.end :]
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), str(mutant)
        assert source.count("\n", 0, mutant.start) >= mutant.line - 1
    assert {"is to is not", "and to or", "<= to <", "not in to in"} <= {mutant.what for mutant in found}


def test_every_change_has_tests_that_exist() -> None:
    for mutant in mutants_of([]):
        for test in mutant.tests:
            assert (ROOT / "tests" / test).exists(), test
