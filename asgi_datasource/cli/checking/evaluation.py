"""Evaluates the facts about servers; there is no I/O here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from ...config import Code, Config, Diagnostic, DiagnosticPath, Severity, server_of
from ...outbox.vacuum import OutboxFault
from ...tenancy import Finding, Hole
from .facts import Facts, PoolerMode

OLDEST_VERSION: Final = 130000
MOST_CLOCK_OFFSET_S: Final = 1.0
NAME_EACH: Final = "Name each of them as a replica of its own."
_MB: Final = 1024 * 1024


def evaluate(config: Config, servers: Sequence[Facts]) -> Iterator[Diagnostic]:
    """Find the problems of each server, and of all servers together.

    Args:
        config: The configuration.
        servers: The facts about each server; a datasource's primary comes before its replicas.
    """
    primaries = {(each.target.datasource, each.target.tenant): each for each in servers if each.target.is_primary}
    for facts in servers:
        if facts.failure is not None:
            message = f"{facts.target} cannot be reached: {facts.failure}"
            fix = "Check the URL, and that the server accepts this login from here."
            yield Diagnostic(Code.NO_CONNECTION, facts.target.path, message, fix)
            continue
        yield from _alone(facts)
        yield from _against(primaries[facts.target.datasource, facts.target.tenant], facts)
        yield from (_hole(finding, facts, config) for finding in facts.holes)
        yield from (_outbox(fault, facts) for fault in facts.outbox)
        for words in facts.unanswered:
            message = f"{facts.target} left a question unanswered: {words}"
            fix = "Give the login the right to ask, or check this by hand."
            yield Diagnostic(Code.CANNOT_TELL, facts.target.path, message, fix, severity=Severity.WARNING)
    yield from _budget(config, [facts for facts in servers if facts.failure is None])


def _alone(facts: Facts) -> Iterator[Diagnostic]:
    path, target = facts.target.path, facts.target
    if facts.is_standby is not None and facts.is_standby is target.is_primary:
        what = "a standby, which takes no writes" if facts.is_standby else "no standby: it takes writes"
        fix = "Swap the URLs, or list several hosts with target_session_attrs=read-write."
        if not facts.is_standby:
            fix = "Name a standby of the primary, or remove it."
        yield Diagnostic(Code.WRONG_ROLE, path, f"{target} is {what}", fix)
    if 0 < facts.version < OLDEST_VERSION:
        message = f"{target} is PostgreSQL {facts.version // 10000}"
        yield Diagnostic(Code.SERVER_VERSION, path, message, "Use PostgreSQL 13 or newer.")
    if abs(facts.clock_offset_s) - facts.clock_error_s > MOST_CLOCK_OFFSET_S:
        direction = "ahead of" if facts.clock_offset_s > 0 else "behind"
        message = f"the clock of {target} is {abs(facts.clock_offset_s):.1f} s {direction} this machine's"
        fix = "Let NTP set both."
        yield Diagnostic(Code.CLOCK, path, message, fix, severity=Severity.WARNING)
    if len(facts.servers) > 1:
        message = f"{target} leads to several servers, and how far behind each of them is cannot be known"
        yield Diagnostic(Code.SEVERAL_SERVERS, path, message, NAME_EACH, severity=Severity.WARNING)
    if facts.is_in_the_clear:
        message, fix = f"the connection to {target} is not encrypted", "Add sslmode=verify-full to the URL."
        yield Diagnostic(Code.NOT_ENCRYPTED, path, message, fix, severity=Severity.WARNING)
    if facts.pooler is PoolerMode.STATEMENT:
        message = f"a pooler in statement mode stands in front of {target}: it refuses transactions"
        yield Diagnostic(Code.POOLER, path, message, "Set pool_mode = transaction.")
    elif facts.pooler is PoolerMode.TRANSACTION and not target.settings.is_pooled:
        message = f"a pooler in transaction mode stands in front of {target}, and the configuration does not say so"
        related: DiagnosticPath = ("datasources", target.datasource, "pool")
        fix = "Say so: pool: {pooler: transaction}."
        yield Diagnostic(Code.POOLER, path, message, fix, related=(related,))
    elif facts.pooler is not PoolerMode.NONE:
        message = f"a pooler in {facts.pooler.value} mode stands in front of {target}"
        fix = "The limits of the pooler count here, max_connections of the server for the pooler."
        yield Diagnostic(Code.POOLER, path, message, fix, severity=Severity.HINT)


def _against(primary: Facts, facts: Facts) -> Iterator[Diagnostic]:
    """Problems of a replica compared with its primary."""
    path, target = facts.target.path, facts.target
    if facts is primary or primary.failure is not None or not facts.is_standby:
        return
    related: tuple[DiagnosticPath, ...] = (primary.target.path,)
    is_stranger = None not in (facts.system_id, primary.system_id) and facts.system_id != primary.system_id
    if is_stranger or facts.is_ahead:
        message = f"{target} is a standby of another cluster than {primary.target}"
        fix = "Name a standby of this primary."
        yield Diagnostic(Code.NOT_ITS_REPLICA, path, message, fix, related=related)
        return
    if facts.version // 10000 != primary.version // 10000 and facts.version and primary.version:
        message = f"{target} is PostgreSQL {facts.version // 10000}, {primary.target} {primary.version // 10000}"
        yield Diagnostic(Code.SERVER_VERSION, path, message, "A standby has its primary's version.", related=related)
    if facts.is_paused:
        message = f"replay is paused on {target}"
        fix = "Resume it: select pg_wal_replay_resume()."
        yield Diagnostic(Code.LAG, path, message, fix, related=related, severity=Severity.WARNING)
    elif facts.behind:
        behind = f"{facts.behind / _MB:.1f} MB" if facts.behind >= _MB else f"{facts.behind} bytes"
        message = f"{target} has not replayed the last {behind} that {primary.target} had written"
        fix = "See pg_stat_replication on the primary: does it stream, and from there?"
        yield Diagnostic(Code.NOT_ITS_REPLICA, path, message, fix, related=related)


_HOLES: Final = {
    Hole.ROLE_BYPASSES: (Code.ROLE_BYPASSES, Severity.ERROR),
    Hole.TABLE_WITHOUT_POLICY: (Code.UNGUARDED_TABLE, Severity.WARNING),
    Hole.OPEN_POLICY: (Code.OPEN_POLICY, Severity.ERROR),
    Hole.POLICY_NOT_FORCED: (Code.NOT_FORCED, Severity.ERROR),
    Hole.VIEW_OF_OWNER: (Code.NOT_FORCED, Severity.WARNING),
    Hole.SEARCH_PATH: (Code.FALLS_THROUGH, Severity.WARNING),
    Hole.MISSING_SCHEMA: (Code.MISSING_PLACE, Severity.ERROR),
    Hole.MISSING_ROLE: (Code.MISSING_PLACE, Severity.ERROR),
    Hole.DEFINER_FUNCTION: (Code.DEFINER, Severity.WARNING),
    Hole.SHARED_ROLE: (Code.SHARED_ROLE, Severity.WARNING),
}


def _hole(finding: Finding, facts: Facts, config: Config) -> Diagnostic:
    code, severity = _HOLES[finding.hole]
    path: DiagnosticPath = facts.target.path
    if finding.tenant is not None:
        # A tenant that the document does not list comes from the table.
        path = ("tenants", finding.tenant) if finding.tenant in config.tenants else ("tenants_from",)
    message = f"{facts.target}: {finding.message}"
    return Diagnostic(code, path, message, finding.fix, finding.tenant is not None, severity=severity)


def _outbox(fault: OutboxFault, facts: Facts) -> Diagnostic:
    code, severity = (Code.NO_OUTBOX, Severity.ERROR) if fault.is_missing else (Code.OUTBOX_GROWS, Severity.WARNING)
    message = f"{facts.target}: {fault.message}"
    return Diagnostic(code, facts.target.path, message, fault.fix, severity=severity, related=(("outbox",),))


def _budget(config: Config, servers: Sequence[Facts]) -> Iterator[Diagnostic]:
    """Whether all pools of one server fit into its limits."""
    processes = config.budget.processes if config.budget is not None else 1
    reserve = config.budget.reserve if config.budget is not None else 0
    by_server: dict[str, list[Facts]] = {}
    for facts in servers:
        # Behind a pooler its own limits apply, and only its administrators can read them.
        if facts.pooler is PoolerMode.NONE and facts.most_connections is not None:
            by_server.setdefault(server_of(facts.target.settings.conninfo, with_database=False), []).append(facts)
    for sharing in by_server.values():
        # All databases of a datasource share its bound on open pools.
        pools = {(each.target.datasource, each.target.node): each.target for each in sharing}
        wanted = processes * sum(target.settings.max_size * target.most_pools for target in pools.values())
        most = min(facts.most_connections or 0 for facts in sharing)
        first = sharing[0].target
        if wanted + reserve > most:
            of = f"{processes} process{'es' if processes > 1 else ''}"
            message = (
                f"{of} may open {wanted} connections to the server of {first}, which allows this login {most}"
                f"{f', {reserve} of them for others' if reserve else ''}"
            )
            fits = max(1, (most - reserve) // (processes * sum(target.most_pools for target in pools.values())))
            fix = f"Lower pool.max_size to {fits}, raise max_connections, or put a pooler in between."
            related = tuple(("datasources", name, "pool", "max_size") for name, _ in pools)
            yield Diagnostic(Code.CONNECTION_LIMIT, first.path, message, fix, related=related)
