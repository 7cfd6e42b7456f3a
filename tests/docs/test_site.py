"""The documentation site: its API pages have every public name, and its hooks find what is broken.

`scripts/docs` builds the site; a warning fails it.
"""

from __future__ import annotations

import re
from pathlib import Path

import griffe
import pytest

import asgi_datasource
import asgi_datasource.django
import asgi_datasource.litestar
import asgi_datasource.quart
import asgi_datasource.testing
from asgi_datasource import DataSession
from scripts.docs_site import CrossReferences, linked_files, refer, rewrite_links
from tests.docs.samples import ROOT

API = "".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))


def test_the_api_has_every_public_name() -> None:
    names = set(re.findall(r"^::: (\S+)$", API, re.MULTILINE))
    public = {f"asgi_datasource.{name}" for name in asgi_datasource.__all__}
    for module in (asgi_datasource.testing, asgi_datasource.litestar, asgi_datasource.quart, asgi_datasource.django):
        public |= {f"{module.__name__}.{name}" for name in module.__all__}
    assert names == public | {"asgi_datasource.console.Console", "asgi_datasource.health.HealthApp"}


def test_the_api_has_every_public_name_of_a_session() -> None:
    listed = re.findall(r"^        - (\w+)$", (ROOT / "docs" / "api" / "session.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(DataSession.__dir__(object.__new__(DataSession)))


MODULE = '''
from sqlalchemy.orm import OtherSession

class FirstThing:
    """A class."""

    def run(self, timeout):
        """Uses `{code}`."""

    def stop(self):
        """Stops."""
'''


@pytest.mark.parametrize(
    ("code", "markdown"),
    [
        ("FirstThing", '<autoref identifier="package.FirstThing" optional>`FirstThing`</autoref>'),
        ("stop", '<autoref identifier="package.FirstThing.stop" optional>`stop`</autoref>'),
        ("db.commit()", "[`db.commit()`][asgi_datasource.DataSession.commit]"),
        (
            "registry.session(tenant=...)",
            "[`registry.session(tenant=...)`][asgi_datasource.DataSourceRegistry.session]",
        ),
        ("docs/health.md", "[`docs/health.md`][health-checks]"),
        ("docs/gone.md", "[`docs/gone.md`][docs/gone.md]"),
        ("FristThing", "[`FristThing`][FristThing]"),
        ("OtherSession", "`OtherSession`"),
        ("RuntimeError", "`RuntimeError`"),
        ("timeout", "`timeout`"),
        ("select 1", "`select 1`"),
    ],
)
def test_code_in_a_docstring_is_a_cross_reference_that_a_strict_build_can_check(code: str, markdown: str) -> None:
    with griffe.temporary_visited_module(MODULE.format(code=code), module_name="package") as module:
        run = module["FirstThing.run"]
        assert refer(run, code, {"FirstThing": "package.FirstThing"}) == markdown
        CrossReferences().on_package(pkg=module)
        assert run.docstring.value == f"Uses {markdown}."


def test_links_of_a_page_lead_to_places_of_the_site(tmp_path: Path) -> None:
    pages = {
        "README.md": "[a](docs/a.md#b) [tests](tests)\n```python\n[no](link.md)\n```\n",
        "docs/a.md": "[test](../tests/test_a.py) [home](../README.md) [web](https://example.com) [here](#b)\n",
        "tests/test_a.py": "1\n",
    }
    for name, text in pages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert linked_files(["README.md"], tmp_path) == list(pages)
    assert rewrite_links(pages["README.md"], "README.md", tmp_path) == (
        "[a](a.md#b) tests\n```python\n[no](link.md)\n```\n"
    )
    assert rewrite_links(pages["docs/a.md"], "docs/a.md", tmp_path) == (
        "[test](source/tests/test_a.py.txt) [home](index.md) [web](https://example.com) [here](#b)\n"
    )
