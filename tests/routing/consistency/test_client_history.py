"""What a client has seen before, and what that asks of the next server."""

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


def test_who_has_seen_nothing_asks_for_nothing() -> None:
    assert history().needed(ANY_FRESHNESS) is None
    assert history((1, 100), scope=b"other1").needed(ANY_FRESHNESS) is None
    assert history((1, 100)).needed(Freshness(Consistency.EVENTUAL)) is None
    assert (history().timeline, history((3, 1)).timeline) == (0, 3)


def test_one_position_is_needed_as_it_is() -> None:
    assert history((1, 100)).needed(ANY_FRESHNESS) == Position(1, 100)


def test_of_several_timelines_the_newest_counts_and_of_all_positions_the_furthest() -> None:
    # In front of the branch, what was seen of the old timeline is on the new one as well.
    assert history((1, 500), (2, 400)).needed(ANY_FRESHNESS) == Position(2, 500)
    assert history((1, 300), (2, 400)).needed(ANY_FRESHNESS) == Position(2, 400)


def test_what_was_read_in_this_session_counts_too() -> None:
    client = history((1, 100))
    client.note(Position(2, 50))
    assert client.needed(ANY_FRESHNESS) == Position(2, 100)
    assert client.needed(Freshness(Consistency.TOKEN)) == Position(1, 100)
    assert client.timeline == 2


def test_a_commit_whose_position_nobody_knows_asks_for_the_primary_and_for_no_timeline() -> None:
    client = history((2, 100))
    client.note(NOWHERE)
    needed = client.needed(ANY_FRESHNESS)
    assert needed is not None
    assert needed.timeline == NOWHERE.timeline
    assert client.timeline == 2
