"""The schema in an editor: completion, hover and diagnostics of the real YAML language server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.language_server import LanguageServer

ROOT = Path(__file__).parent.parent.parent

TEXT = """\
version: 1
datasources:
  orders:
    primary: {url: "${ORDERS_URL}"}
    pool:
      max_size: 20
    routing:
      balance: round_robin
tenancy:
  resolve:
    - header: X-Tenant
tenants:
  acme:
    datasource: orders
    schema: acme
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanguageServer]:
    running = LanguageServer(ROOT / "datasource.schema.json", tmp_path_factory.mktemp("editor"))
    try:
        yield running
    finally:
        running.close()


def test_a_good_document_has_no_diagnostics(server: LanguageServer) -> None:
    assert server.open(TEXT) == []


@pytest.mark.parametrize(
    ("wrong", "line", "says"),
    [
        (TEXT.replace("max_size", "max_sise"), 5, "max_sise"),
        (TEXT.replace("round_robin", "roundrobin"), 7, ""),
        (TEXT.replace("max_size: 20", "max_size: many"), 5, ""),
        (TEXT.replace("    datasource: orders\n", ""), 12, "datasource"),
        (TEXT + "nonsense: 1\n", 15, "nonsense"),
    ],
)
def test_mistakes_are_underlined(server: LanguageServer, wrong: str, line: int, says: str) -> None:
    found = server.open(wrong)
    assert found
    assert any(each["range"]["start"]["line"] in (line, line + 1) and says in each["message"] for each in found), found


def test_keys_are_completed_with_their_meaning(server: LanguageServer) -> None:
    server.open(TEXT.replace("      max_size: 20\n", "      max_size: 20\n      \n"))
    found = server.complete(6, 6)
    assert {"min_size", "acquire_timeout", "max_waiting", "max_lifetime"} <= set(found)
    assert "max_size" not in found
    documentation = str(found["acquire_timeout"].get("documentation"))
    assert "How long a statement waits for a free connection" in documentation


def test_words_are_completed(server: LanguageServer) -> None:
    server.open(TEXT.replace("balance: round_robin", "balance: "))
    found = server.complete(7, 15)
    assert {"round_robin", "weighted", "least_busy"} <= set(found)
    assert "Turns by weight." in str(found["weighted"])


def test_sections_of_the_document_are_completed(server: LanguageServer) -> None:
    server.open(TEXT + "\n")
    assert {"routes", "transactions", "telemetry", "budget", "errors"} <= set(server.complete(15, 0))


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        (5, 8, "Most connections to one server from one process."),
        (7, 8, "How reads are spread over the replicas."),
        (1, 3, "The logical databases by name"),
        (14, 5, "The tenant's own schema"),
    ],
)
def test_hovering_shows_the_documentation(server: LanguageServer, line: int, column: int, says: str) -> None:
    server.open(TEXT)
    assert says in server.hover(line, column)
