"""The path that `match` in `routes` is compared with."""

from __future__ import annotations

import pytest

from asgi_datasource.tenancy.path_prefix import route_path


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [
        ("/reports/hours", "", "/reports/hours"),
        ("/t/dl/reports/hours", "/t/dl", "/reports/hours"),
        ("/t/dl", "/t/dl", "/"),
        ("/t/dl/", "/t/dl", "/"),
        # Servers before version 2.3 of the ASGI specification do not include root_path in path.
        ("/reports/hours", "/api", "/reports/hours"),
        ("/apidocs", "/api", "/apidocs"),
    ],
)
def test_rules_match_the_path_after_root_path(path: str, root: str, wanted: str) -> None:
    assert route_path({"path": path, "root_path": root}) == wanted


def test_a_scope_without_root_path() -> None:
    assert route_path({"path": "/flights"}) == "/flights"
