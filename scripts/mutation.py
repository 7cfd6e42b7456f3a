"""`scripts/mutants`: make small changes in a copy of the package, and report those that no test notices."""

from __future__ import annotations

import argparse
import ast
import compileall
import importlib.util
import itertools
import json
import os
import py_compile
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import coverage
import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = "asgi_datasource"

TESTS: Final[tuple[tuple[str, str], ...]] = (
    ("cli/commands/tenants", "tenancy/test_provisioning.py tenancy/test_provisioning_cancel.py"),
    ("cli/commands/migrate", "migrate"),
    ("cli/commands/outbox", "outbox/test_commands.py"),
    ("console/", "console"),
    (
        "asgi/",
        "asgi sessions/test_every_cancellation.py sessions/test_ends.py sessions/test_retry.py sessions/test_hooks.py"
        " guarantees/test_outcome.py",
    ),
    ("console/", "console observability/test_activity.py"),
    ("concurrency/", "concurrency tenancy/test_turns.py sessions/test_parallel.py"),
    ("config/", "config"),
    (
        "datasource/",
        "routing sessions/test_every_cancellation.py guarantees/test_own_writes.py guarantees/test_reads.py",
    ),
    ("db/", "db"),
    ("drivers/", "drivers sessions/test_every_cancellation.py guarantees/test_session_reset.py"),
    ("migrate/", "migrate"),
    ("observability/", "observability"),
    ("outbox/", "outbox"),
    ("registry/", "registry"),
    ("routing/", "routing guarantees/test_own_writes.py cli/test_explain.py"),
    (
        "sessions/",
        "sessions/test_every_cancellation.py sessions/test_ends.py sessions/test_transaction_block.py"
        " sessions/test_transactional.py sessions/test_propagation.py sessions/test_hooks.py sessions/test_retry.py"
        " sessions/test_parallel.py sessions/test_route_rules.py guarantees/test_outcome.py",
    ),
    (
        "tenancy/provisioning/",
        "tenancy/test_provisioning_adoption.py tenancy/test_provisioning_cancel.py"
        " tenancy/test_provisioning_dependants.py tenancy/test_provisioning_trust.py tenancy/test_provisioning.py",
    ),
    ("tenancy/isolation_audit", "tenancy/test_isolation_audit.py registry/test_startup_audit.py"),
    ("tenancy/audit", "tenancy/test_isolation_audit.py registry/test_startup_audit.py"),
    (
        "tenancy/",
        "tenancy/test_resolvers.py tenancy/test_tokens.py tenancy/test_place_index.py tenancy/test_policy_expression.py"
        " tenancy/test_catalog.py tenancy/test_admission.py tenancy/test_databases.py",
    ),
    (
        "transaction/",
        "transaction sessions/test_every_cancellation.py sessions/test_ends.py sessions/test_transaction_block.py"
        " sessions/test_hooks.py sessions/test_cancelled_savepoint.py guarantees/test_commit.py"
        " guarantees/test_doubt.py",
    ),
    ("", "test_errors.py cli"),
)
"""The tests of the modules below a path; the first path that fits counts. Of these, a change is judged by those that
run its lines."""

EQUIVALENT: Final[dict[str, str]] = {
    "testing/binaries.py: return self.gid if self.is_other_user else None: self.is_other_user to True": (
        "root always runs the servers as another user, and other users cannot change their group"
    ),
    'testing/cluster.py: password = f"{name}-{os.urandom(9).hex()}" if password is None else password: 9 to 10': (
        "the length of a random password"
    ),
    'config/suppressions.py: if "ads:" in text.content and text.format is not Format.JSON:: "ads:" in text.content to'
    " True": "a text without the word has no such comment: it is not searched, which is quicker",
    "config/references.py: if depth <= 0:: 0 to 1": "what is not visited here is resolved, with the same outcome",
    "concurrency/deferred_calls.py: for callback in [callback for callback, due in self.due.items() if due <= now]::"
    " <= to <": "what is due at this very moment is called by the timer that follows at once",
}
"""Changes of a sample that change nothing which can be seen, as they are printed without their line, and the reason."""

SWAPS: Final[dict[type[ast.AST], str]] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.Div: "*", ast.FloorDiv: "*", ast.And: "or", ast.Or: "and",
}  # fmt: skip

UNSEEN: Final = frozenset({"__repr__", "__str__", "__slots__", "__dir__"})
"""What stands in these is for people who debug."""

MOST_SECONDS: Final = 120.0
"""Most seconds of the tests that judge a change."""

SILENT: Final = ("logger.", "tracing.", "super().__init__")
"""Calls that are not deleted: of logs and spans, which have tests of their own, and what nothing works without."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        path: The module, below the package.
        line: Its line.
        is_outside: Whether it stands outside of all functions.
        start, end: The characters of the module that it replaces.
        text: The replacement.
        what: The change in words.
    """

    path: str
    line: int
    start: int
    end: int
    text: str
    what: str
    is_outside: bool = False

    def __str__(self) -> str:
        return f"{PACKAGE}/{self.path}:{self.line}: {self.what}"

    def applied_to(self, source: str) -> str:
        """The changed module."""
        return source[: self.start] + self.text + source[self.end :]

    @property
    def name(self) -> str:
        """Its name in `EQUIVALENT`."""
        lines = (ROOT / PACKAGE / self.path).read_text(encoding="utf-8").splitlines()
        return f"{self.path}: {lines[self.line - 1].strip()}: {self.what}"

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last line that it changes."""
        source = (ROOT / PACKAGE / self.path).read_text(encoding="utf-8")
        return source.count("\n", 0, self.start) + 1, source.count("\n", 0, self.end) + 1

    @property
    def tests(self) -> Sequence[str]:
        """The tests that should notice it."""
        return next(tests.split() for prefix, tests in TESTS if self.path.startswith(prefix))


class Mutator(ast.NodeVisitor):
    """Collects the changes of a module."""

    def __init__(self, path: str, source: str) -> None:
        self.found: list[Mutant] = []
        self._path = path
        self._source = source
        self._depth = 0
        # Columns of the syntax tree count bytes.
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def _at(self, line: int, column: int) -> int:
        text = self._source[self._starts[line - 1] : self._starts[line]]
        return self._starts[line - 1] + len(text.encode()[:column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno or 0, node.end_col_offset or 0)

    def _note(self, node: ast.expr | ast.stmt, text: str, what: str, span: tuple[int, int] | None = None) -> None:
        start, end = span or self._span(node)
        self.found.append(Mutant(self._path, node.lineno, start, end, text, what, not self._depth))

    def _text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self._source[start:end]

    def _swap(self, node: ast.expr, left: ast.expr, op: ast.AST, right: ast.expr) -> None:
        """Replace an operator between two operands."""
        new = SWAPS.get(type(op))
        if new is not None:
            start, end = self._span(left)[1], self._span(right)[0]
            between = self._source[start:end]
            old = between.strip(" ()\n")
            if between.count(old) == 1:
                self._note(node, between.replace(old, new), f"{old} to {new}", (start, end))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Functions, without their decorators and annotations."""
        if node.name not in UNSEEN:
            self._depth += 1
            for child in node.body:
                self.visit(child)
            self._depth -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Coroutines."""
        self.visit_FunctionDef(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Classes, without protocols."""
        if not any("Protocol" in self._text(base) for base in node.bases):
            for child in node.body:
                self.visit(child)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The value, without the annotation. A module's durations are a choice: a second more is as good."""
        is_duration = isinstance(node.target, ast.Name) and node.target.id.endswith("_S")
        if node.value is not None and not (is_duration and isinstance(node.value, ast.Constant)):
            self.visit(node.value)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Comparisons."""
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self._swap(node, left, op, right)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Arithmetic, of numbers."""
        if not any(isinstance(one, ast.List | ast.Tuple | ast.JoinedStr) for one in (node.left, node.right)):
            self._swap(node, node.left, node.op, node.right)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """`and`, `or`, and each of their operands."""
        for number, value in enumerate(node.values):
            if number:
                self._swap(node, node.values[number - 1], node.op, value)
            neutral = "True" if isinstance(node.op, ast.And) else "False"
            self._note(value, neutral, f"{_short(self._text(value))} to {neutral}")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """`not`."""
        if isinstance(node.op, ast.Not):
            self._note(node, f"bool({self._text(node.operand)})", f"{_short(self._text(node))} without not")
        self.generic_visit(node)

    def visit_If(self, node: ast.If | ast.While | ast.IfExp) -> None:
        """Conditions."""
        for constant in ("True", "False"):
            if not isinstance(node, ast.While) or constant == "False":
                self._note(node.test, constant, f"{_short(self._text(node.test))} to {constant}")
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """Conditions of loops."""
        self.visit_If(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Conditional expressions."""
        self.visit_If(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Numbers and truth values."""
        if isinstance(node.value, bool):
            self._note(node, str(not node.value), f"{node.value} to {not node.value}")
        elif isinstance(node.value, int | float):
            self._note(node, repr(node.value + 1), f"{node.value} to {node.value + 1}")

    def visit_Expr(self, node: ast.Expr) -> None:
        """Calls whose result is not used."""
        value = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(value, ast.Call) and not self._text(value).startswith(SILENT):
            self._note(node, "pass", f"{_short(self._text(node))} removed")
        if not isinstance(value, ast.Constant):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Exceptions, whose texts are no matter."""
        self._note(node, "pass", f"{_short(self._text(node))} removed")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """`+=` and its like."""
        self._note(node, f"{self._text(node.target)} = {self._text(node.value)}", "assigned, not added")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Attributes and entries that are set."""
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript):
            self._note(node, "pass", f"{_short(self._text(node))} removed")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """`min` and `max`, and the arguments of everything but messages."""
        name = self._text(node.func)
        if name in ("min", "max"):
            self._note(node.func, "max" if name == "min" else "min", f"{name} swapped")
        if not name.startswith(SILENT):
            self.generic_visit(node)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


TEST_SUITES: Final = frozenset({"testing/driver_contract.py"})
"""Modules that are tests themselves."""


def mutants_of(modules: Sequence[str]) -> Iterator[Mutant]:
    """All changes of the modules that a path below the package names: `sessions`, `routing/choose`."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        below = path.relative_to(ROOT / PACKAGE).as_posix()
        stem = below.removesuffix(".py")
        if below in TEST_SUITES:
            continue
        if any(stem == module or stem.startswith(f"{module}/") for module in modules) or not modules:
            source = path.read_text(encoding="utf-8")
            mutator = Mutator(below, source)
            for node in ast.parse(source).body:
                mutator.visit(node)
            yield from mutator.found


def sample_of(modules: Sequence[str], count: int, *, seed: int) -> list[Mutant]:
    """A sample of the changes, in the order of the modules; the same for the same seed."""
    found = list(mutants_of([module.removesuffix(".py").strip("/") for module in modules]))
    random.Random(seed).shuffle(found)  # noqa: S311 - not for security
    chosen = itertools.islice(filter(is_valid, found), count)
    return sorted(chosen, key=lambda mutant: (mutant.path, mutant.start))


def is_valid(mutant: Mutant) -> bool:
    """Whether the changed module can be compiled, and is another one."""
    if mutant.name in EQUIVALENT:
        return False
    source = (ROOT / PACKAGE / mutant.path).read_text(encoding="utf-8")
    try:
        ast.parse(mutant.applied_to(source))
    except SyntaxError:
        return False
    return True


class Reach:
    """What `mutation_reach.py` has recorded: which tests run which lines.

    Args:
        folder: Its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = {}
        self._lines: dict[str, list[Mapping[int, Sequence[str]]]] = {}
        self._folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Read what was recorded."""
        self._lines.clear()
        for path in self._folder.glob("*.json"):
            self.seconds.update(json.loads(path.read_text(encoding="utf-8")))

    def _lines_of(self, path: str) -> list[Mapping[int, Sequence[str]]]:
        """The tests of each line of a module, by process that has recorded them."""
        if path not in self._lines:
            found: list[Mapping[int, Sequence[str]]] = []
            self._lines[path] = found
            for data in map(coverage.CoverageData, map(str, self._folder.glob("*.coverage"))):
                data.read()
                name = next((one for one in data.measured_files() if one.endswith(f"/{PACKAGE}/{path}")), None)
                if name is not None:
                    found.append(data.contexts_by_lineno(name))
        return self._lines[path]

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run a change, up to `MOST_SECONDS`.

        Those named like the module come first, then those of its folder, and of these the quickest. What no test has
        run in its own process may run in another one: then these are the tests of the module.

        A line that runs when its module is imported belongs to all tests of the module.
        """
        lines = self._lines_of(mutant.path)
        first, last = mutant.span
        found = {test for one in lines for line in (mutant.line, *range(first, last + 1)) for test in one.get(line, ())}
        if mutant.is_outside:
            found = {test for one in lines for tests in one.values() for test in tests}
        if not found:
            places = tuple(f"tests/{test}" for test in mutant.tests)
            found = {test for test in self.seconds if test.startswith(places)}
        passed = sorted(
            (_distance(test, mutant.path), self.seconds[test], test) for test in found & self.seconds.keys()
        )
        spent = itertools.accumulate(seconds for _, seconds, _ in passed)
        # The first one in any case.
        return [test for (_, seconds, test), sum_ in zip(passed, spent, strict=True) if sum_ - seconds < MOST_SECONDS]


def _distance(test: str, path: str) -> int:
    """How near a test is to a module: 0 if its file is named like the module, 1 if it is in the folder."""
    file, module = Path(test.partition("::")[0]), Path(path)
    if file.stem == f"test_{module.stem}":
        return 0
    return 1 if file.parts[1:2] == module.parts[:1] else 2


class Copy:
    """A copy of the checkout, in which one module at a time is changed.

    Args:
        folder: Where it is made.
        reach: The folder for what its tests reach.
    """

    def __init__(self, folder: Path, reach: Path) -> None:
        self._folder = folder / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "node_modules", "results")
        shutil.copytree(ROOT, self._folder, ignore=ignored, symlinks=True)
        # Compiled once, and not for each change: `-B` writes nothing.
        compileall.compile_dir(
            self._folder / PACKAGE, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        self._record_in = reach
        self.reach = Reach(reach)

    def record(self, tests: Sequence[str]) -> None:
        """Run the tests of a module unchanged, and record what they reach. Those that fail do not count."""
        options = ["-n", "2", "--dist", "loadfile", "-p", "scripts.mutation_reach", "--reach", str(self._record_in)]
        self._pytest([*options, *(f"tests/{test}" for test in tests)], limit_s=3600)
        self.reach.refresh()

    def _pytest(self, arguments: Sequence[str], *, limit_s: float) -> tuple[int | None, str]:
        """The exit code of pytest, None at the end of the time, and its output."""
        command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
        environment = {**os.environ, "PYTHONPATH": str(self._folder)}
        with subprocess.Popen(  # noqa: S603 - pytest
            [*command, *arguments],
            cwd=self._folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as run:
            try:
                printed, _ = run.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                return None, ""
        return run.returncode, printed

    def fails(self, tests: Sequence[str], *, limit_s: float) -> str | None:
        """The first of these tests that fails; empty if pytest ends otherwise or not at all; None if all pass."""
        code, printed = self._pytest(["-x", *tests], limit_s=limit_s)
        if code == pytest.ExitCode.USAGE_ERROR:
            # A kept record may name tests that are no longer there.
            files = sorted({test.partition("::")[0] for test in tests})
            _, listed = self._pytest(["--collect-only", *files], limit_s=limit_s)
            there = set(listed.splitlines())
            known = [test for test in tests if test in there]
            if len(known) < len(tests):
                return self.fails(known, limit_s=limit_s) if known else None
        if code == 0:
            return None
        named = [test for test in tests if f"{test} " in printed or f"{test}\n" in printed]
        return max(named, key=len, default="")

    def failing(self, tests: Sequence[str]) -> list[str]:
        """Those of these tests that fail without a change."""
        if not tests:
            return []
        limit_s = 60 + 5 * sum(self.reach.seconds[test] for test in tests)
        code, printed = self._pytest(["-rfE", *tests], limit_s=limit_s)
        if code == 0:
            return []
        return [test for test in tests if code is None or f"FAILED {test}" in printed or f"ERROR {test}" in printed]

    def judge(self, mutant: Mutant, *, without: Sequence[str] = ()) -> tuple[str | None, str]:
        """The first test that fails with a change; None if it survives, and why."""
        tests = [test for test in self.reach.tests_of(mutant) if test not in without]
        if not tests:
            return None, "never run"
        limit_s = 60 + 5 * sum(self.reach.seconds[test] for test in tests)
        path = self._folder / PACKAGE / mutant.path
        source = path.read_text(encoding="utf-8")
        path.write_text(mutant.applied_to(source), encoding="utf-8")
        Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
        try:
            failed = self.fails(tests, limit_s=limit_s)
        finally:
            path.write_text(source, encoding="utf-8")
        return failed, f"{len(tests)} tests" if failed is None else failed or "the tests do not end"


def run(mutants: Sequence[Mutant], reach: Path) -> list[Mutant]:
    """Run the tests of each change; prints each outcome, and returns the changes that survive."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(Path(folder), reach)
        if not copy.reach.seconds:
            copy.record(sorted({test for mutant in mutants for test in mutant.tests}))
        noticed: dict[Mutant, str] = {}
        open_, busy = list(mutants), list[str]()
        while open_:
            judged: dict[Mutant, str] = {}
            for mutant in open_:
                failed, why = copy.judge(mutant, without=busy)
                print(f"{'SURVIVES' if failed is None else 'noticed '} {mutant} ({why})", flush=True)
                if failed is not None:
                    judged[mutant] = failed
            # A test that fails without a change as well has failed because the machine is busy: judge again without it.
            flaky = copy.failing(sorted(set(filter(None, judged.values()))))
            busy += flaky
            noticed |= {mutant: test for mutant, test in judged.items() if test not in flaky}
            open_ = [mutant for mutant, test in judged.items() if test in flaky]
        return [mutant for mutant in mutants if mutant not in noticed]


def module_of_the_night() -> str:
    """A module by the day: each one's turn comes once in about a year."""
    modules = sorted({mutant.path for mutant in mutants_of([])})
    return modules[int(time.time() // 86_400) % len(modules)]


def main() -> int:
    """The command line; exits with 1 when too few changes are noticed."""
    parser = argparse.ArgumentParser("scripts/mutants", description=__doc__)
    parser.add_argument("--module", action="append", default=[], help="a module or folder, such as routing/choose")
    parser.add_argument("--count", type=int, default=20, help="size of the sample (default: 20)")
    parser.add_argument("--seed", type=int, default=int(time.strftime("%Y%W")), help="default: year and week")
    parser.add_argument("--least", type=int, default=85, metavar="PERCENT", help="share to be noticed (default: 85)")
    parser.add_argument("--night", action="store_true", help="the module of this day, instead of --module")
    parser.add_argument("--reach", type=Path, metavar="FOLDER", help="keep what tests reach here, for the next run")
    parser.add_argument("--list", action="store_true", help="print the sample, and run nothing")
    options = parser.parse_args()
    modules = [module_of_the_night()] if options.night else options.module
    chosen = sample_of(modules, options.count, seed=options.seed)
    if not chosen:
        raise SystemExit(f"there is nothing to change in {', '.join(modules)}")
    if options.list:
        print(*chosen, sep="\n")
        return 0
    if options.reach is not None:
        options.reach.mkdir(parents=True, exist_ok=True)
        survivors = run(chosen, options.reach)
    else:
        with tempfile.TemporaryDirectory(prefix="reach-") as folder:
            survivors = run(chosen, Path(folder))
    share = 100 * (len(chosen) - len(survivors)) / len(chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} noticed ({share:.0f} %), seed {options.seed}; survivors:")
    print(*survivors, sep="\n")
    return int(share < options.least)


if __name__ == "__main__":
    sys.exit(main())
