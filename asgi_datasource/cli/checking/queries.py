"""The queries on a server; each of them may fail without the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, LiteralString

from ...config import AuditConfig
from ...drivers.control import ControlConnection, open_control
from ...errors import DataError
from ...outbox.vacuum import find_faults
from ...tenancy import Home, find_holes
from .facts import Facts, Target
from .pooler import find_pooler

Question = Callable[[ControlConnection, Facts], Awaitable[None]]

CATCH_UP_S: Final = 3.0
"""How long a replica may take to replay what the primary had written at the start."""
_PAUSE_S: Final = 0.05


async def query_server(
    target: Target, homes: Sequence[Home], shared_schemas: Sequence[str], audit: AuditConfig, *, has_outbox: bool
) -> Facts:
    """Run all queries that concern one server alone.

    Args:
        target: The server.
        homes: The tenants on this server.
        shared_schemas: Schemas in the search_path after a tenant's own.
        audit: The exceptions from the isolation checks.
        has_outbox: The tables of the outbox have to be in its database.
    """
    facts = Facts(target)
    try:
        async with open_control(target.settings, where=str(target)) as probe:
            facts.is_in_the_clear = not probe.is_encrypted and not probe.is_local
            questions: list[Question] = [_identity, _clock, _limits]
            if target.is_primary:
                questions.append(_holes(homes, shared_schemas, audit))
                if has_outbox:
                    questions.append(_outbox)
            else:
                questions.append(_servers)
            # The pooler comes last: when it refuses a transaction, it also closes the connection.
            for question in (*questions, _pooler):
                try:
                    await question(probe, facts)
                except DataError as error:
                    facts.unanswered.append(str(error))
    except DataError as error:
        facts.failure = error.located_message
    return facts


async def _identity(probe: ControlConnection, facts: Facts) -> None:
    [[version, is_standby]] = await probe.rows("select current_setting('server_version_num')::int, pg_is_in_recovery()")
    facts.version, facts.is_standby = version, is_standby
    facts.position = await _position(probe, is_standby=is_standby)
    if is_standby:
        [[facts.is_paused]] = await probe.rows("select pg_is_wal_replay_paused()")
    [[facts.system_id]] = await probe.rows("select system_identifier from pg_control_system()")


_WRITTEN: Final = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"
_REPLAYED: Final = "select pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint"


async def _position(probe: ControlConnection, *, is_standby: bool) -> int | None:
    [[position]] = await probe.rows(_REPLAYED if is_standby else _WRITTEN)
    return None if position is None else int(position)


MOST_CONNECTIONS: Final = 4
"""Connections to a replica that are compared: a balancer sends them to several servers, where there are some."""


async def _servers(probe: ControlConnection, facts: Facts) -> None:
    async def server_of_another_connection() -> None:
        async with open_control(facts.target.settings, where=str(facts.target)) as other:
            facts.servers.add(await _server(other))

    facts.servers.add(await _server(probe))
    for _ in range(MOST_CONNECTIONS - 1):
        await server_of_another_connection()


async def _server(probe: ControlConnection) -> str:
    """When the server was started, to the microsecond."""
    [[started]] = await probe.rows("select date_part('epoch', pg_postmaster_start_time())::text")
    return str(started)


async def _clock(probe: ControlConnection, facts: Facts) -> None:
    before, started = time.time(), time.monotonic()
    [[theirs]] = await probe.rows("select extract(epoch from clock_timestamp())::float8")
    round_trip = time.monotonic() - started
    facts.clock_offset_s = theirs - (before + round_trip / 2)
    facts.clock_error_s = round_trip / 2


_LIMITS: Final = """
select current_setting('max_connections')::int
       - case when r.rolsuper then 0 else current_setting('superuser_reserved_connections')::int end
       - case when r.rolsuper or r.reserved then 0
              else coalesce(current_setting('reserved_connections', true), '0')::int end,
       nullif(r.rolconnlimit, -1), nullif(d.datconnlimit, -1)
from (select rolsuper, rolconnlimit,
             coalesce((select pg_has_role(current_user, oid, 'usage') from pg_roles g
                       where g.rolname = 'pg_use_reserved_connections'), false) as reserved
      from pg_roles where rolname = current_user) r,
     pg_database d where d.datname = current_database()"""


async def _limits(probe: ControlConnection, facts: Facts) -> None:
    [limits] = await probe.rows(_LIMITS)
    facts.most_connections = min(limit for limit in limits if limit is not None)


async def _pooler(probe: ControlConnection, facts: Facts) -> None:
    facts.pooler = await find_pooler(probe, facts.target.settings, where=str(facts.target))


async def _outbox(probe: ControlConnection, facts: Facts) -> None:
    async def ask(sql: LiteralString) -> list[tuple[Any, ...]]:
        return await probe.rows(sql)

    facts.outbox = await find_faults(ask)


def _holes(homes: Sequence[Home], shared_schemas: Sequence[str], audit: AuditConfig) -> Question:
    async def question(probe: ControlConnection, facts: Facts) -> None:
        async def ask(sql: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
            return await probe.rows(sql, *parameters)

        facts.holes = await find_holes(
            ask,
            homes,
            shared_schemas=shared_schemas,
            allowed_roles=audit.allow_roles,
            shared_tables=audit.shared_tables,
        )

    return question


async def compare(primary: Facts, replica: Facts) -> None:
    """Check whether a replica follows its primary, and how far it lags.

    The position of the primary must arrive within `CATCH_UP_S`, and the replica must not be ahead of the primary.
    """
    if primary.position is None or replica.position is None:
        return
    try:
        async with open_control(primary.target.settings, where=str(primary.target)) as probe:
            written = await _position(probe, is_standby=False)
    except DataError as error:
        primary.unanswered.append(str(error))
        return
    replica.is_ahead = written is not None and replica.position > written
    if not replica.is_ahead and not replica.is_paused:
        await _wait_for(replica, primary.position)


async def _wait_for(replica: Facts, position: int) -> None:
    deadline = time.monotonic() + CATCH_UP_S
    try:
        async with open_control(replica.target.settings, where=str(replica.target)) as probe:
            while True:
                reached = await _position(probe, is_standby=True)
                replica.behind = max(0, position - (reached or 0))
                if not replica.behind or time.monotonic() > deadline:
                    return
                await asyncio.sleep(_PAUSE_S)
    except DataError as error:
        replica.unanswered.append(str(error))
