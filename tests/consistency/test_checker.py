"""The checker finds each kind of violation, and none in a correct history."""

from __future__ import annotations

import random

import pytest

from tests.consistency.history import Final, Outcome, Read, Violations, Write, check, shares

DONE, FAILED, UNKNOWN = Outcome.DONE, Outcome.FAILED, Outcome.UNKNOWN


def wrote(client: int, key: int, name: str, version: int | None = None, outcome: Outcome = DONE) -> Write:
    return Write(client, key, name, outcome, version)


def read(client: int, *, of_primary_began: int | None = None, **registers: tuple[int, str]) -> Read:
    versions = {int(name[1:]): seen for name, seen in registers.items()}
    return Read(client, versions, "r1", began=of_primary_began, is_of_primary=of_primary_began is not None)


def counts(found: Violations) -> dict[str, int]:
    return {name: count for name, count in found.counts().items() if count}


TWO = Final({"a": (1, 1), "b": (1, 2)})


@pytest.mark.parametrize(
    ("history", "found"),
    [
        ([wrote(1, 1, "a", 1), read(1, k1=(1, "a")), wrote(2, 1, "b", 2), read(1, k1=(2, "b"))], {}),
        ([wrote(1, 1, "a", 1), wrote(2, 1, "b", 2), read(3, k1=(1, "a"))], {}),
        ([wrote(1, 1, "a", 1), wrote(1, 1, "b", 2), read(1, k1=(1, "a"))], {"stale": 1}),
        ([wrote(1, 1, "a", 1), read(1), wrote(2, 1, "b", 2)], {"stale": 1}),
        ([wrote(1, 1, "a", 1), wrote(2, 1, "b", 2), read(3, k1=(2, "b")), read(3, k1=(1, "a"))], {"backward": 1}),
        ([wrote(1, 1, "a", 1), wrote(2, 1, "b", 2), read(3, k1=(2, "b")), read(3)], {"backward": 1}),
        (
            [wrote(1, 1, "a", 1), read(3, k1=(2, "b")), read(3, of_primary_began=2, k1=(1, "a")), wrote(2, 1, "b", 2)],
            {},
        ),
        (
            [wrote(1, 1, "a", 1), read(3, k1=(2, "b")), wrote(2, 1, "b", 2), read(3, of_primary_began=2, k1=(1, "a"))],
            {},
        ),
        (
            [wrote(1, 1, "a", 1), read(3, k1=(2, "b")), wrote(2, 1, "b", 2), read(3, of_primary_began=3, k1=(1, "a"))],
            {"backward": 1},
        ),
        ([wrote(1, 1, "a", 1), read(3, k1=(2, "b")), read(3, k1=(1, "a")), wrote(2, 1, "b", 2)], {"backward": 1}),
        ([wrote(1, 1, "a", 1), wrote(2, 1, "b", 2), wrote(3, 1, "c", 3)], {"lost": 1}),
        ([wrote(1, 1, "a", 1), wrote(2, 1, "b", 7)], {"lost": 1}),
        ([wrote(1, 1, "a", outcome=FAILED), wrote(2, 1, "b", 2)], {"undead": 1}),
        ([wrote(1, 1, "a", outcome=UNKNOWN), wrote(2, 1, "b", 2), wrote(3, 1, "c", outcome=UNKNOWN)], {}),
        ([read(1, k1=(3, "c"))], {"imaginary": 1}),
        ([wrote(1, 1, "c", 2)], {"lost": 1, "forked": 1}),
        ([wrote(1, 1, "a", 1), wrote(2, 2, "x", 1)], {"lost": 1}),
    ],
)
def test_each_kind_of_violation(history: list[Write | Read], found: dict[str, int]) -> None:
    assert counts(check(history, TWO)) == found


def correct_history(dice: random.Random) -> tuple[list[Write | Read], Final]:
    """A history of one server, with clients that do one operation at a time."""
    state: dict[int, tuple[int, str]] = {}
    writes: dict[str, tuple[int, int]] = {}
    history: list[Write | Read] = []
    for number in range(200):
        client, key, name = dice.randrange(4), dice.randrange(3), f"w{number}"
        if dice.random() < 0.5:
            history.append(Read(client, dict(state), "r1"))
            continue
        outcome = dice.choice([DONE, DONE, DONE, FAILED, UNKNOWN])
        version = state.get(key, (0, ""))[0] + 1
        if outcome is DONE or (outcome is UNKNOWN and dice.random() < 0.5):
            state[key] = (version, name)
            writes[name] = (key, version)
        history.append(Write(client, key, name, outcome, version if outcome is DONE else None))
    return history, Final(writes)


@pytest.mark.parametrize("seed", range(20))
def test_a_correct_history_passes_and_one_stale_read_in_it_is_found(seed: int) -> None:
    dice = random.Random(seed)
    history, final = correct_history(dice)
    assert not check(history, final), check(history, final)
    reads = [index for index, event in enumerate(history) if isinstance(event, Read)]
    # The last read of a client is answered by a replica in the state of its first read.
    last = history[reads[-1]]
    assert isinstance(last, Read)
    before = [event for event in history[: reads[-1]] if isinstance(event, Read) and event.client == last.client]
    history[reads[-1]] = Read(last.client, before[0].versions, "r2")
    assert set(counts(check(history, final))) <= {"stale", "backward"}
    assert check(history, final)


def test_reads_are_counted_by_server() -> None:
    history = [read(1), Read(1, {}, "primary", "quiet"), Read(2, {}, "r1", "quiet"), wrote(1, 1, "a", 1)]
    assert shares(history) == {"r1": 2, "primary": 1}
    assert shares(history, phase="quiet") == {"r1": 1, "primary": 1}
