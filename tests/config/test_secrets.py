"""Passwords are never shown: not in problems, errors, reprs, dumps and log lines."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from asgi_datasource.config import Config, DatabaseUrl, EndpointConfig, InvalidConfig, examine, load
from asgi_datasource.config.reading import open_text
from asgi_datasource.config.url import mask_url
from tests.config.documents import PASSWORD, full, places, put, small

URL = f"postgresql://app:{PASSWORD}@db:5432/orders?sslpassword={PASSWORD}"
KEYWORDS = f"host=db user=app password={PASSWORD} dbname=orders"
WITHOUT_MEANING = [  # these are not connection URLs
    PASSWORD,
    f"{PASSWORD} ",
    f"app:{PASSWORD}@db",
    f"//app:{PASSWORD}@db",
    f"password={PASSWORD}",
    f"{PASSWORD}\n",
]


def shown(thing: object) -> str:
    return f"{thing!r} {thing!s} {thing}"


@pytest.mark.parametrize(
    "url", [URL, KEYWORDS, f"postgresql://app:{PASSWORD}/@db/orders", f"postgresql://{PASSWORD}@db"]
)
def test_the_repr_and_dump_of_a_config_show_no_password(url: str) -> None:
    config = Config.model_validate(put(full(), ("datasources", "*", "primary"), "url", url))
    endpoint = config.datasources["orders"].primary
    assert endpoint.url.get_secret_value() == url
    for thing in (config, config.datasources, endpoint, endpoint.url, config.model_dump(), copy.deepcopy(config)):
        assert PASSWORD not in shown(thing)
    assert PASSWORD not in config.model_dump_json()
    assert PASSWORD not in json.dumps(config.model_dump(mode="json"))
    assert PASSWORD not in json.dumps(config.model_dump(mode="json", by_alias=True))


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        (f"postgresql://app:{PASSWORD}@db:5432/orders?x={PASSWORD}", "postgresql://db:5432/orders"),
        ("postgres://a,b:1,[::1]:2/orders", "postgres://a,b:1,[::1]:2/orders"),
        ("postgresql://db", "postgresql://db"),
        (f"postgresql://app:{PASSWORD}", "**********"),
        (f"postgresql://app:{PASSWORD}@x@db", "**********"),
        (f"postgresql://app:a/{PASSWORD}@db", "**********"),
        (f"postgresql://app:a?{PASSWORD}@db", "**********"),
        (f"postgresql://app:a#{PASSWORD}@db", "**********"),
        (KEYWORDS, "**********"),
        ("", ""),
    ],
)
def test_of_a_url_only_servers_and_database_are_shown(url: str, seen: str) -> None:
    assert mask_url(url) == seen
    assert str(DatabaseUrl(url)) == seen


def planted(value: str) -> list[dict[str, Any]]:
    """Documents with a value in the place of each value, and as the value of an unknown key."""
    documents = []
    for number in range(len(places(full()))):
        document = full()
        container, key = places(document)[number]
        container[key] = value
        documents.append(document)
        document = full()
        container, _ = places(document)[number]
        if isinstance(container, dict):
            container["password"] = value
            documents.append(document)
    return documents


@pytest.mark.parametrize("value", [URL, *WITHOUT_MEANING[1:]])
def test_no_problem_shows_a_password_in_a_wrong_field(value: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    count = 0
    for document in planted(value):
        findings = examine(document)
        for problem in findings.diagnostics:
            count += 1
            assert PASSWORD not in shown(problem)
        if findings.errors:
            with pytest.raises(InvalidConfig) as caught:
                load(document)
            assert PASSWORD not in shown(caught.value)
            assert PASSWORD not in "".join(traceback.format_exception(caught.value))
            assert PASSWORD not in repr(pickle.loads(pickle.dumps(caught.value)).diagnostics)
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None
    assert count > 40
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("value", WITHOUT_MEANING)
def test_no_problem_shows_a_referenced_value(value: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(value)
    sources = ["${SECRET}", "${NOPE:-" + value.replace("\n", "") + "}", "x${SECRET}"]
    documents = [document for source in sources for document in planted(source)]
    documents.append(put(full(), ("datasources", "*", "primary"), "url", {"file": str(tmp_path / "secret")}))
    for document in documents:
        for problem in examine(document, environ={"SECRET": value}).diagnostics:
            assert PASSWORD not in shown(problem)


@pytest.mark.parametrize("key", [URL, f"app:{PASSWORD}@db", f"{PASSWORD} "])
def test_no_problem_shows_a_password_as_a_key(key: str) -> None:
    for number in range(len(places(full()))):
        document = full()
        container, _ = places(document)[number]
        if isinstance(container, dict):
            container[key] = None
            found = examine(document)
            assert found.errors
            assert PASSWORD not in shown(found)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.yaml", f"url: {URL}: x"),
        ("a.yaml", f"url: *{PASSWORD}"),
        ("a.yaml", f"url: !{PASSWORD} x"),
        ("a.yaml", f"url: !{PASSWORD}!x y"),
        ("a.yaml", f"url: '{PASSWORD}\n"),
        ("a.yaml", f'url: "{PASSWORD}\\q"'),
        ("a.yaml", f"url: &a {PASSWORD}\nb: &a {PASSWORD}\n{PASSWORD}"),
        ("a.yaml", f"{URL}: x\n{URL}: y"),
        ("a.yaml", f"url: {PASSWORD}\x07"),
        ("a.json", f'{{"url": "{PASSWORD}}}'),
        ("a.json", f'{{"{URL}": 1, "{URL}": 2}}'),
        ("a.json", f'{{"url": {PASSWORD}}}'),
        ("a.toml", f"url = {PASSWORD}"),
        ("a.toml", f'"{URL}" = 1\n"{URL}" = 2'),
        ("a.toml", f"[{PASSWORD}]\n[{PASSWORD}]"),
        ("a.toml", f"url = '{PASSWORD}"),
    ],
)
def test_syntax_errors_do_not_quote_the_text(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    text = open_text(path)
    assert PASSWORD not in shown(text)
    with pytest.raises(InvalidConfig) as caught:
        load(path)
    assert PASSWORD not in shown(caught.value)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_the_values_of_row_security_stay_out_of_reprs() -> None:
    config = load(small(tenants={"acme": {"datasource": "orders", "row_security": {"app.tenant": PASSWORD}}}))
    assert PASSWORD not in shown(config)


def test_the_errors_of_a_single_model_do_not_quote_values() -> None:
    with pytest.raises(ValidationError) as caught:
        EndpointConfig.model_validate({"url": f"//app:{PASSWORD}@db"})
    assert PASSWORD not in shown(caught.value)
