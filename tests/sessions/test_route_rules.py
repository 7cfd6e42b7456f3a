"""What the paths of the configuration are matched against."""

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
        # A server that predates version 2.3 of the ASGI specification leaves root_path off the path.
        ("/reports/hours", "/api", "/reports/hours"),
        ("/apidocs", "/api", "/apidocs"),
    ],
)
def test_rules_see_the_path_behind_the_root_path(path: str, root: str, wanted: str) -> None:
    assert route_path({"path": path, "root_path": root}) == wanted


def test_a_scope_may_have_no_root_path() -> None:
    assert route_path({"path": "/flights"}) == "/flights"
