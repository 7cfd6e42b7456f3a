"""SQLAlchemy's suite is a pytest plugin that takes over the process: `test_compliance.py` runs it in one of its own."""

from __future__ import annotations

collect_ignore = ["compliance"]
