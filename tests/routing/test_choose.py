"""`choose()` is pure: every rule of routing is told by its arguments and its answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asgi_datasource.routing import AccessIntent, Choice, Node, Picture, Reason, Role, choose

NAMES = ("r1", "r2", "r3")

READ, WRITE = AccessIntent.READ, AccessIntent.WRITE
PRIMARY = Node("primary", Role.PRIMARY)


def picture(*replicas_up: bool, primary_up: bool = True) -> Picture:
    replicas = tuple(Node(name, Role.REPLICA, up) for name, up in zip(NAMES, replicas_up, strict=False))
    return Picture(Node("primary", Role.PRIMARY, primary_up), replicas)


pictures = st.builds(
    lambda ups, primary: picture(*ups, primary_up=primary), st.lists(st.booleans(), max_size=3), st.booleans()
)
failures = st.frozensets(st.sampled_from((*NAMES, "primary")))


def answer(choice: Choice | None) -> tuple[str, Reason]:
    assert choice is not None
    return choice.node.name, choice.reason


@given(pictures, st.integers(0, 100), st.booleans(), st.sampled_from((None, *NAMES)))
def test_a_write_goes_to_the_primary_whatever_the_picture(
    seen: Picture, turn: int, is_pinned: bool, sticky: str | None
) -> None:
    choice = choose(seen, WRITE, turn=turn, is_pinned=is_pinned, sticky=sticky)
    assert answer(choice) == ("primary", Reason.WRITE)


@given(pictures, st.integers(0, 100), st.sampled_from((None, *NAMES)))
def test_a_pinned_read_goes_to_the_primary(seen: Picture, turn: int, sticky: str | None) -> None:
    assert answer(choose(seen, READ, turn=turn, is_pinned=True, sticky=sticky)) == ("primary", Reason.PINNED)


@given(pictures, st.integers(0, 100))
def test_a_strong_read_goes_to_the_primary(seen: Picture, turn: int) -> None:
    assert answer(choose(seen, READ, turn=turn, is_strong=True)) == ("primary", Reason.STRONG)


def test_reads_take_the_replicas_in_turn() -> None:
    seen = picture(True, True, True)
    assert [answer(choose(seen, READ, turn=turn))[0] for turn in range(6)] == ["r1", "r2", "r3"] * 2


def test_a_replica_that_is_down_is_passed_over() -> None:
    seen = picture(True, False, True)
    assert {answer(choose(seen, READ, turn=turn)) for turn in range(6)} == {
        ("r1", Reason.BALANCED),
        ("r3", Reason.BALANCED),
    }


@given(st.integers(0, 100))
def test_the_replica_of_before_is_kept_while_it_is_up(turn: int) -> None:
    assert answer(choose(picture(True, True), READ, turn=turn, sticky="r2")) == ("r2", Reason.STICKY)
    assert answer(choose(picture(True, False), READ, turn=turn, sticky="r2")) == ("r1", Reason.BALANCED)


def test_without_replicas_the_primary_reads() -> None:
    assert answer(choose(picture(), READ)) == ("primary", Reason.NO_REPLICAS)


def test_the_primary_stands_in_when_no_replica_is_up() -> None:
    assert answer(choose(picture(False, False), READ)) == ("primary", Reason.UNHEALTHY)


def test_after_a_failed_connect_the_next_server_is_taken_and_says_so() -> None:
    seen = picture(True, True)
    assert answer(choose(seen, READ, failed=frozenset({"r1"}))) == ("r2", Reason.FAILOVER)
    assert answer(choose(seen, READ, failed=frozenset({"r1", "r2"}))) == ("primary", Reason.FAILOVER)


def test_when_all_look_down_something_is_tried_all_the_same() -> None:
    assert answer(choose(picture(False, False, primary_up=False), READ)) == ("primary", Reason.UNHEALTHY)
    choice = choose(picture(False, False, primary_up=False), READ, failed=frozenset({"primary"}))
    assert answer(choice) == ("r1", Reason.FAILOVER)


@given(pictures, failures, st.integers(0, 100), st.booleans(), st.booleans(), st.sampled_from(list(AccessIntent)))
def test_a_failed_server_is_never_chosen_again_and_trying_comes_to_an_end(
    seen: Picture, failed: frozenset[str], turn: int, is_pinned: bool, is_strong: bool, intent: AccessIntent
) -> None:
    tried = set(failed)
    for _ in range(5):
        choice = choose(seen, intent, turn=turn, is_pinned=is_pinned, is_strong=is_strong, failed=frozenset(tried))
        if choice is None:
            return
        assert choice.node.name not in tried
        tried.add(choice.node.name)
    raise AssertionError("five servers were chosen where there are four at most")
