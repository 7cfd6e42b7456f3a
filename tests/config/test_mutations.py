"""Single mistakes in good configurations: each is found, on its line, with a fix that works; 300 with `--whole`."""

from __future__ import annotations

import copy
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from asgi_datasource.config import Diagnostic, Findings, Severity, apply_edit, examine
from asgi_datasource.config.keys import section_at, sections
from asgi_datasource.config.values import VALUES, Value

PAGE = (Path(__file__).parent.parent.parent / "docs" / "config.md").read_text(encoding="utf-8")
COMPLETE: dict[str, Any] = next(
    yaml.safe_load(block)
    for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    if "keepalives_count" in block
)
SMALL: dict[str, Any] = {
    "version": 1,
    "datasources": {
        "orders": {"primary": {"url": "postgresql://app@db/orders"}, "replicas": {"r1": {"url": "host=r1"}}},
        "billing": {"primary": {"url": "${BILLING_URL}"}, "pool": {"min_size": 2, "max_size": 8}},
    },
    "tenancy": {"resolve": [{"subdomain_of": "app.example.com"}], "missing": 404},
    "tenants": {
        "acme": {"datasource": "orders", "schema": "acme"},
        "globex": {"datasource": "orders", "schema": "globex"},
        "initech": {"datasource": "billing", "row_security": {"app.tenant": "7"}},
    },
    "routes": [{"match": "GET /reports/**", "intent": "read", "timeout": "30s"}, {"match": "POST /search"}],
    "transactions": {"deadline": "10s", "default": "annotated"},
}
SHARE = 0.95
Path_ = tuple[Any, ...]


def dump(document: Any, notation: str) -> str:
    """The document with each value on a line of its own."""
    if notation == "json":
        return json.dumps(document, indent=1) + "\n"
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1000, allow_unicode=True)


def places(value: Any, path: Path_ = ()) -> list[Path_]:
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    found: list[Path_] = []
    for key, child in pairs:
        found.append((*path, key))
        if isinstance(child, dict | list):
            found += places(child, (*path, key))
    return found


def kind_of(path: Path_) -> Value | None:
    place = section_at(path[:-1])
    info = place.fields.get(str(path[-1])) if place else None
    return next((mark for mark in info.metadata if isinstance(mark, Value)), None) if info else None


def is_key_of_a_section(path: Path_) -> bool:
    place = section_at(path[:-1])
    return place is not None and path[-1] in place.fields


def at(document: Any, path: Path_) -> Any:
    for step in path:
        document = document[step]
    return document


def typo(chance: random.Random, word: str) -> str:
    """The word with a typo."""
    number = chance.randrange(1, max(2, len(word) - 1))
    return chance.choice([
        word[:number] + word[number + 1 :],
        word[:number] + word[number] + word[number:],
        word[: number - 1] + word[number : number + 1] + word[number - 1] + word[number + 1 :],
    ])  # fmt: skip


Mistake = Callable[[random.Random, dict[str, Any]], bool]
"""Puts one mistake into a document; False when there is no place for it."""


def misspelt_key(chance: random.Random, document: dict[str, Any]) -> bool:
    keys = [path for path in places(document) if isinstance(path[-1], str) and is_key_of_a_section(path)]
    *path, key = chance.choice([path for path in keys if len(path[-1]) > 3])
    section = at(document, tuple(path))
    new = typo(chance, key)
    if new in section or new == key:
        return False
    items = [(new if name == key else name, value) for name, value in section.items()]
    section.clear()
    section.update(items)
    return True


def replaced(choose: Callable[[Value, Any, random.Random], Any]) -> Mistake:
    def mistake(chance: random.Random, document: dict[str, Any]) -> bool:
        found = []
        for path in places(document):
            kind, value = kind_of(path), at(document, path)
            if kind is None or (isinstance(value, str) and "${" in value):
                continue
            new = choose(kind, value, chance)
            if new is not None:
                found.append((path, new))
        if not found:
            return False
        (*path, key), new = chance.choice(found)
        at(document, tuple(path))[key] = new
        return True

    return mistake


def _bare(kind: Value, value: Any, chance: random.Random) -> Any:
    match = re.fullmatch("([0-9]+)(ms|s|m|h)", value) if kind.is_duration and isinstance(value, str) else None
    if match is None:
        return None
    return chance.choice([int(match[1]), f"{match[1]} {match[2]}", f"{match[1]}sec", f"{match[1]}.5s"])


def _word(kind: Value, value: Any, chance: random.Random) -> Any:
    if not isinstance(value, str) or len(kind.choices) < 2 or len(value) < 4:
        return None
    new = typo(chance, value)
    return new if new not in kind.choices and new not in kind.planned else None


def _range(kind: Value, value: Any, chance: random.Random) -> Any:
    bounds = kind.schema
    return chance.choice([bounds["maximum"] + 1, bounds["minimum"] - 1, -5]) if "maximum" in bounds else None


def _type(kind: Value, value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool):
        return chance.choice(["yes", "off", "True!", 1])
    if isinstance(value, int):
        return chance.choice([str(value), [value], {"value": value}, value + 0.5])
    return chance.choice([[value], {"a": value}, None, True])


def _reference(kind: Value, value: Any, chance: random.Random) -> Any:
    if not kind.takes_reference or kind.name in ("NamePattern", "Outcome"):
        return None
    return chance.choice(["${", "${}", "${NAME", "${A B}", "${NAME:-${OTHER}}"])


def _port(kind: Value, value: Any, chance: random.Random) -> Any:
    if kind.name != "DatabaseUrl" or not isinstance(value, str) or value.startswith("sqlite:"):
        # Another driver's URL is not read here.
        return None
    wrong = ["mysql://db/orders", "postgresql://app@db:99999/o", "postgresql://a@b@db/o", "postgresql://app@d b/o"]
    return chance.choice([*wrong, "db.internal"])


def missing_key(chance: random.Random, document: dict[str, Any]) -> bool:
    found = []
    for path in places(document):
        place = section_at(path[:-1])
        if place is not None and path[-1] in place.fields and place.fields[path[-1]].is_required():
            found.append(path)
    *path, key = chance.choice(found)
    del at(document, tuple(path))[key]
    return True


def unknown_key(chance: random.Random, document: dict[str, Any]) -> bool:
    known = [path for path in places(document) if section_at(path) is not None and isinstance(at(document, path), dict)]
    section = at(document, chance.choice([(), *known]))
    section[chance.choice(["quux", "enabled", "x-note", "Zweck"])] = chance.choice([1, "text", {"a": 1}])
    return True


def absent_datasource(chance: random.Random, document: dict[str, Any]) -> bool:
    tenant = chance.choice(list(document["tenants"].values()))
    tenant["datasource"] = typo(chance, tenant["datasource"])
    return tenant["datasource"] not in document["datasources"]


def same_schema(chance: random.Random, document: dict[str, Any]) -> bool:
    first, second = "acme", "twin"
    document["tenants"][second] = copy.deepcopy(document["tenants"][first])
    return True


def too_few(chance: random.Random, document: dict[str, Any]) -> bool:
    for datasource in document["datasources"].values():
        if "pool" in datasource and "max_size" in datasource["pool"]:
            datasource["pool"]["min_size"] = 9_000
            return True
    return False


def same_server(chance: random.Random, document: dict[str, Any]) -> bool:
    datasource = document["datasources"]["orders"]
    datasource["primary"]["url"] = "postgresql://app@db:5432/orders"
    datasource.setdefault("replicas", {})["r9"] = {"url": "postgresql://other@DB/orders?connect_timeout=3"}
    return True


def never_reached(chance: random.Random, document: dict[str, Any]) -> bool:
    rule = chance.choice(document["routes"])
    document["routes"].append({"match": rule["match"], "intent": "write"})
    return True


def wrong_name(chance: random.Random, document: dict[str, Any]) -> bool:
    replicas = document["datasources"]["orders"]["replicas"]
    name = chance.choice(["primary", "r 1", "", "r/1", "${R1}"])
    replicas[name] = {"url": "host=elsewhere"}
    return True


def plain_password(chance: random.Random, document: dict[str, Any]) -> bool:
    document["datasources"]["orders"]["primary"]["url"] = chance.choice(
        ["postgresql://app:hunter2@db/orders", "host=db password=hunter2"]
    )
    return True


MISTAKES: list[Mistake] = [
    misspelt_key, misspelt_key, replaced(_bare), replaced(_word), replaced(_range), replaced(_type), replaced(_type),
    replaced(_reference), replaced(_port), missing_key, unknown_key, absent_datasource, same_schema, too_few,
    same_server, never_reached, wrong_name, plain_password,
]  # fmt: skip


def lines_changed(before: str, after: str) -> set[int]:
    """The lines of the second text that differ from the first, and those where lines are missing."""
    import difflib

    found: set[int] = set()
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag != "equal":
            found.update(range(start + 1, max(end, start + 1) + 1))
    return found


def look(document: Any, notation: str, folder: Path) -> tuple[Findings, str]:
    path = folder / f"datasource.{notation}"
    text = dump(document, notation)
    path.write_text(text)
    return examine(path, is_offline=True), text


def is_fixed(document: Any, found: tuple[Diagnostic, ...], notation: str, folder: Path) -> bool:
    """Whether no problem is left after the fixes of all problems."""
    for _ in range(6):
        problem = next((each for each in found if each.edit is not None), None)
        if problem is None or problem.edit is None:
            return not found
        document = apply_edit(document, problem.edit)
        found = look(document, notation, folder)[0].diagnostics
    return not found


def test_mistakes_are_found_on_their_line_and_fixed(tmp_path: Path, whole: bool) -> None:
    many = 300 if whole else 90
    chance = random.Random(20_261_125)
    failed: Counter[str] = Counter()
    failures: list[str] = []
    done = 0
    for base in (COMPLETE, SMALL):
        assert look(base, "yaml", tmp_path)[0].diagnostics == ()
    while done < many:
        base = chance.choice([COMPLETE, SMALL])
        notation = chance.choice(["yaml", "json"])
        mistake = chance.choice(MISTAKES)
        document = copy.deepcopy(base)
        if not mistake(chance, document) or document == base:
            continue
        done += 1
        findings, text = look(document, notation, tmp_path)
        problems = findings.diagnostics
        name = getattr(mistake, "__name__", "replaced")
        if not problems:
            failed["not found"] += 1
            failures.append(f"not found: {name}\n{text}")
            continue
        changed = lines_changed(dump(base, notation), text)
        where = {problem.position.line for problem in problems if problem.position}
        near = {line + step for line in changed for step in ((-1, 0) if mistake is missing_key else (0,))}
        if not where & near and mistake is not missing_key:
            failed["wrong line"] += 1
            failures.append(f"wrong line: {name}: {[str(problem) for problem in problems]}, changed {sorted(changed)}")
        elif mistake is missing_key and not all(problem.position and problem.position.line for problem in problems):
            failed["wrong line"] += 1
        elif not all(problem.fix for problem in problems) or not is_fixed(document, problems, notation, tmp_path):
            failed["not fixed"] += 1
            failures.append(f"not fixed: {name}: {[str(problem) for problem in problems]}")
    share = 1 - sum(failed.values()) / many
    print(f"{many} mistakes: {share:.1%} found on their line and fixed; {dict(failed)}")
    assert share >= SHARE, "\n".join(failures)
    assert failed["not found"] == 0, "\n".join(failures)


def test_every_kind_of_mistake_has_a_severity() -> None:
    assert {severity.value for severity in Severity} == {"error", "warning", "hint"}
    assert len(VALUES) > 20
    assert len(sections()) > 10
