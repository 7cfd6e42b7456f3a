"""The tests that come with `examples/sqlalchemy_app`, as a part of these."""

from __future__ import annotations

from sqlalchemy_app.test_app import *  # noqa: F403 - its fixtures and its tests
