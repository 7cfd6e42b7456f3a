"""No command prints a masked value of the document.

The fields are enumerated from the models, so new fields are covered.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from asgi_datasource.cli.rendering import FORMATS
from asgi_datasource.config import Format, examine
from asgi_datasource.config.keys import value_places
from asgi_datasource.config.structure import check_structure
from tests.cli.run import call
from tests.config.documents import full

SECRET = "hunter2hunter2hunter2"
"""A plain word, like a name: only the type of its field reveals that it is a secret."""
OTHER = "another2another2another2"
MASKED = [place for place, kind in value_places().items() if kind.mask is not None]


PUBLISHERS: dict[str, dict[str, Any]] = {
    "nats": {"url": "nats://nats:4222"},
    "kafka": {"servers": "kafka:9092", "user": "app", "password": "of-app"},
    "rabbitmq": {"url": "amqp://rabbitmq"},
    "redis": {"url": "redis://redis:6379/0"},
    "webhook": {"url": "https://partner.example/hooks", "secret": "whsec_" + "a" * 32},
}
"""A document has one of them."""


def base(place: tuple[str, ...]) -> dict[str, Any]:
    document = full()
    if place[:2] == ("outbox", "publisher"):
        document["outbox"]["publisher"] = {place[2]: copy.deepcopy(PUBLISHERS[place[2]])}
    document["tenancy"]["resolve"][1]["jwt_claim"] = {"claim": "tenant", "algorithms": ["HS256"], "key": "${KEY:-k}"}
    return document


def forms_of(secret: str) -> list[str]:
    """The secret in the forms of all kinds of fields."""
    return [
        secret,
        f"postgresql://app:{secret}@elsewhere/orders",
        *(f"{scheme}://app:{secret}@elsewhere" for scheme in ("nats", "amqp", "redis", "https")),
        f"whsec_{secret}abcd",
    ]


def section_of(document: Any, place: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The section of a place, and its key there: the last step that is not a name or an entry."""
    *above, key = place if place[-1] != "*" else place[:-1]
    for number, step in enumerate(above, start=1):
        if step == "*":
            entries = list(document.values()) if isinstance(document, dict) else document
            document = next((entry for entry in entries if place[number] in entry), entries[0])
        else:
            document = document.setdefault(step, {})
    return document, key


def planted(place: tuple[str, ...], secret: str) -> dict[str, Any]:
    """A valid document with a secret at a place."""
    for form in forms_of(secret):
        for value in (form, [form], {"app.tenant": form}):
            document = base(place)
            section, key = section_of(document, place)
            section[key] = value
            if check_structure(document)[1] == [] and examine(document, environ={}).errors == ():
                return document
    raise AssertionError(f"no way to write a secret at {place}")


def damaged(document: dict[str, Any], place: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The document with mistakes next to the secret and in its place."""
    number = 1234567890
    for value in ("unknown", None, [SECRET], {"a": SECRET}, {"file": [SECRET]}, SECRET, number, [number]):
        copied = copy.deepcopy(document)
        section, key = section_of(copied, place)
        if value == "unknown":
            section[SECRET[:3]] = SECRET
        elif value is None:
            section[f"{key}x"] = section.pop(key)
        else:
            section[key] = value
        yield copied


def toml(value: Any) -> str:
    """A value in one line of TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(child)}" for key, child in value.items()) + "}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def written(document: dict[str, Any]) -> Iterator[tuple[Format, str]]:
    yield Format.YAML, yaml.safe_dump(document, sort_keys=False)
    yield Format.YAML, yaml.safe_dump(document, sort_keys=False, default_flow_style=True, width=10_000)
    yield Format.JSON, json.dumps(document)
    yield Format.JSON, json.dumps(document, indent=1)
    yield Format.TOML, "".join(f"{key} = {toml(value)}\n" for key, value in document.items())


def test_the_fields_with_secrets_are_found() -> None:
    assert ("datasources", "*", "primary", "url") in MASKED
    assert ("consistency", "old_secrets", "*") in MASKED
    assert ("tenancy", "resolve", "*", "jwt_claim", "key") in MASKED
    assert ("tenants", "*", "row_security", "*") in MASKED


@pytest.mark.parametrize("place", MASKED, ids=".".join)
def test_no_command_prints_a_secret(place: tuple[str, ...], tmp_path: Path, whole: bool) -> None:
    document = planted(place, SECRET)
    commands = (["show"], ["show", "--defaults", "--format", "json"], ["explain", "--tenant", "acme"])
    turns = cycle(commands)
    for number, (form, text) in enumerate(written(document)):
        path = tmp_path / f"{number}.{form.value}"
        path.write_text(text)
        for command in commands if whole else (next(turns),):
            done = call(*command, path, environ={"KEY": "0123456789abcdef"})
            assert done.out, (command, text, done.err)
            assert SECRET not in done.out + done.err, (command, text)
    (tmp_path / "new.json").write_text(json.dumps(planted(place, OTHER)))
    for form in ("text", "markdown", "json"):
        done = call("diff", tmp_path / "0.yaml", tmp_path / "new.json", "--format", form)
        assert done.code == 0
        assert SECRET not in done.out + done.err
        assert OTHER not in done.out + done.err


@pytest.mark.parametrize("place", MASKED, ids=".".join)
def test_no_message_contains_a_secret(place: tuple[str, ...], tmp_path: Path, whole: bool) -> None:
    turns = cycle(FORMATS)
    for wrong in damaged(planted(place, SECRET), place):
        for form, text in written(wrong):
            path = tmp_path / f"datasource.{form.value}"
            path.write_text(text)
            for rendered in FORMATS if whole else (next(turns),):
                done = call("validate", path, "--format", rendered)
                assert done.code in (0, 1), done.err
                for secret in (SECRET, "1234567890"):
                    assert secret not in done.out, (rendered, text)


@pytest.mark.parametrize("place", MASKED, ids=".".join)
def test_a_changed_secret_is_reported_without_its_value(place: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(planted(place, SECRET)))
    (tmp_path / "new.json").write_text(json.dumps(planted(place, OTHER)))
    assert "nothing changes" not in call("diff", tmp_path / "old.json", tmp_path / "new.json").out
