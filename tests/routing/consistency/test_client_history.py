"""The client's history, and the position that it requires of the next server."""

from __future__ import annotations

from asgi_datasource.routing import ANY_FRESHNESS, Consistency, Freshness, Position
from asgi_datasource.routing.consistency.client_history import NOWHERE, ClientHistory, TokenPolicy
from asgi_datasource.routing.consistency.token import Mark, Token, TokenSigner
from asgi_datasource.routing.consistency.token_transport import TokenTransport

SCOPE = b"scope1"
POLICY = TokenPolicy(
    signer=TokenSigner(["a secret that is long enough"], ttl_s=30),
    transport=TokenTransport(None, "X-Datasource-Token", 30),
    wait_s=0.05,
    is_monotonic=True,
)


def history(*seen: tuple[int, int], scope: bytes = SCOPE) -> ClientHistory:
    return ClientHistory(POLICY, SCOPE, Token(tuple([Mark(scope, Position(*position), 1) for position in seen])))


def test_without_history_no_position_is_required() -> None:
    assert history().needed(ANY_FRESHNESS) is None
    assert history((1, 100), scope=b"other1").needed(ANY_FRESHNESS) is None
    assert history((1, 100)).needed(Freshness(Consistency.EVENTUAL)) is None
    assert (history().timeline, history((3, 1)).timeline) == (0, 3)


def test_a_single_position_is_required_unchanged() -> None:
    assert history((1, 100)).needed(ANY_FRESHNESS) == Position(1, 100)


def test_the_newest_timeline_and_the_furthest_position_are_required() -> None:
    # Before the fork, a position on the old timeline is also on the new one.
    assert history((1, 500), (2, 400)).needed(ANY_FRESHNESS) == Position(2, 500)
    assert history((1, 300), (2, 400)).needed(ANY_FRESHNESS) == Position(2, 400)


def test_positions_read_in_this_session_are_required_too() -> None:
    client = history((1, 100))
    client.note(Position(2, 50))
    assert client.needed(ANY_FRESHNESS) == Position(2, 100)
    assert client.needed(Freshness(Consistency.TOKEN)) == Position(1, 100)
    assert client.timeline == 2


def test_a_commit_without_a_known_position_requires_the_primary() -> None:
    client = history((2, 100))
    client.note(NOWHERE)
    needed = client.needed(ANY_FRESHNESS)
    assert needed is not None
    assert needed.timeline == NOWHERE.timeline
    assert client.timeline == 2
