"""SQLAlchemy's own test suite for dialects, in a process of its own: its plugin takes over pytest as a whole.

`tests/db/test_compliance.py` starts it. Connections come from a registry for the database of `COMPLIANCE_URL`.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.dialects import registry as dialects
from sqlalchemy.dialects.postgresql import provision as postgresql_provision
from sqlalchemy.testing import provision
from sqlalchemy.util.concurrency import await_

from asgi_datasource import DataSourceRegistry, compile
from asgi_datasource.db.dialect import NAME, OwnedLink, SessionDialect, translate
from asgi_datasource.sessions.policy import RouteRule
from asgi_datasource.transaction import TransactionOptions

dialects.register(f"postgresql.{NAME}", SessionDialect.__module__, SessionDialect.__name__)

_registries: list[DataSourceRegistry] = []


async def _open() -> Any:
    if not _registries:
        _registries.append(
            compile(
                {
                    "version": 1,
                    "datasources": {
                        "suite": {
                            "primary": {"url": os.environ["COMPLIANCE_URL"]},
                            "pool": {"min_size": 1, "max_size": 20},
                        }
                    },
                    "tenancy": {"default": "suite"},
                }
            )
        )
    return await _registries[0]._make_block_session(None, RouteRule(TransactionOptions(), is_transactional=True))


@event.listens_for(Engine, "do_connect")
def connect(dialect: Any, *_: object) -> Any:
    """A connection of the dialect's is a session."""
    return OwnedLink(await_(_open()), dialect)


event.listen(Engine, "handle_error", translate, retval=True)


assert postgresql_provision, "registers itself where SQLAlchemy's suite looks"


@provision.post_configure_engine.for_db("postgresql")
def leave_the_database_as_it_is(*_: object) -> None:
    """The suite's own creates extensions, which the embedded server does not have."""


from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403 - its hooks are pytest's
