"""The arithmetic of lag, with a clock that the tests turn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_datasource.routing import Lineage, Observation, Position, Standing, Track, choose_interval, smooth
from asgi_datasource.routing.replication_lag import MAX_SAMPLES

SYSTEM = "7712237956747655337"


def primary(at: float, lsn: int, *, timeline: int = 1, **told: Any) -> Observation:
    return Observation(
        asked_at=at,
        answered_at=at + 0.001,
        is_standby=False,
        position=Position(timeline, lsn),
        **{"system": SYSTEM, "server": "p", **told},
    )


def standby(at: float, lsn: int, *, timeline: int = 1, **told: Any) -> Observation:
    return Observation(
        asked_at=at,
        answered_at=at + 0.001,
        is_standby=True,
        position=Position(timeline, lsn),
        **{"system": SYSTEM, "server": "s", **told},
    )


def track_of(*samples: tuple[float, int], **options: Any) -> Track:
    track = Track(**options)
    for at, lsn in samples:
        track.note_primary(primary(at, lsn))
    return track


def known(standing: Standing) -> tuple[float | None, float | None, int | None]:
    lag_s = standing.lag_s
    return standing.fresh_at, None if lag_s is None else round(lag_s, 3), standing.lag_bytes


def test_a_replica_that_is_where_the_primary_was_last_seen_does_not_lag() -> None:
    track = track_of((1.0, 100), (2.0, 200))
    assert known(track.assess(standby(2.5, 200))) == (2.0, 0.0, 0)
    assert known(track.assess(standby(2.5, 250))) == (2.0, 0.0, 0)


def test_one_that_is_behind_is_as_fresh_as_the_last_time_the_primary_was_certainly_there() -> None:
    track = track_of((1.0, 100), (2.0, 200), (3.0, 300))
    assert known(track.assess(standby(3.5, 299)))[0] == 2.0
    assert known(track.assess(standby(3.5, 200)))[0] == 2.0
    assert known(track.assess(standby(3.5, 199)))[0] == 1.0


def test_its_lag_is_told_as_if_the_primary_had_moved_evenly() -> None:
    track = track_of((1.0, 100), (2.0, 200))
    assert known(track.assess(standby(2.5, 150))) == (1.0, pytest.approx(1.001), 50)


def test_an_idle_primary_makes_nobody_lag() -> None:
    track = track_of((1.0, 100), (2.0, 100), (60.0, 100))
    assert known(track.assess(standby(60.5, 100))) == (60.0, 0.0, 0)


def test_replay_that_is_paused_lags_from_the_moment_the_primary_went_on() -> None:
    track = track_of((1.0, 100), (50.0, 100), (51.0, 200), (80.0, 200))
    assert known(track.assess(standby(80.5, 100))) == (50.0, pytest.approx(30.501), 100)


def test_while_the_primary_says_nothing_what_is_known_grows_old() -> None:
    track = track_of((1.0, 100))
    assert track.assess(standby(500.0, 100)).fresh_at == 1.0


def test_without_any_word_of_the_primary_nothing_is_known() -> None:
    assert known(Track().assess(standby(1.0, 100))) == (None, None, None)


def test_further_behind_than_anything_that_is_remembered_is_not_fresh() -> None:
    track = track_of((1.0, 100), (2.0, 200))
    fresh_at, lag_s, lag_bytes = known(track.assess(standby(2.5, 50)))
    assert (fresh_at, lag_bytes) == (None, 150)
    assert lag_s is not None
    assert lag_s >= 1.0


def test_what_is_too_old_is_forgotten_but_for_one_sample() -> None:
    track = track_of(*((float(at), at * 10) for at in range(1, 100)), reach_s=10.0)
    assert track.assess(standby(99.5, 895)).fresh_at == 89.0
    assert track.assess(standby(99.5, 885)).fresh_at is None


def test_many_samples_are_thinned_and_stay_true() -> None:
    track = track_of(*((float(at), at * 10) for at in range(5000)), reach_s=1e6)
    assert len(track._lsns) <= MAX_SAMPLES
    for at in (4999, 4321, 1000, 17):
        fresh_at = track.assess(standby(5000.0, at * 10)).fresh_at
        assert fresh_at is not None
        assert at - 2000 <= fresh_at <= at


def test_one_of_another_cluster_is_foreign() -> None:
    track = track_of((1.0, 100))
    assert track.assess(standby(1.5, 100, system="1")).is_foreign
    assert not track.assess(standby(1.5, 100, system=None)).is_foreign


def test_one_that_is_ahead_of_a_primary_that_was_asked_later_has_branched_off() -> None:
    track = track_of((1.0, 100))
    ahead = standby(1.5, 150)
    assert not track.assess(ahead).is_foreign, "the primary may have moved on meanwhile"
    track.note_primary(primary(2.0, 120))
    assert track.assess(ahead).is_foreign


def test_one_that_was_promoted_by_itself_is_foreign_and_the_primary_by_another_name_is_not() -> None:
    track = track_of((1.0, 100))
    promoted = Observation(
        asked_at=1.5, answered_at=1.501, is_standby=False, position=Position(2, 150), system=SYSTEM, server="s"
    )
    assert track.assess(promoted).is_foreign
    assert known(track.assess(primary(1.5, 150))) == (1.0, 0.0, 0)


def test_after_a_promotion_what_both_timelines_share_counts_and_nothing_else() -> None:
    track = track_of((1.0, 100), (2.0, 200))
    track.note_standby(standby(2.5, 180, server="r1"))
    track.note_primary(primary(3.0, 210, timeline=2, server="r1"))
    assert track.lineage == Lineage(((2, 180),))
    assert track.assess(standby(3.5, 210, timeline=2)).fresh_at == 3.0
    assert track.assess(standby(3.5, 170)).fresh_at == 1.0, "the old timeline, in front of the branch"
    assert track.assess(standby(3.5, 190)).fresh_at is None, "the old timeline, perhaps behind the branch"
    assert track.assess(standby(3.5, 205)).fresh_at is None


def test_a_promotion_of_a_server_that_nobody_had_seen_leaves_nothing_to_compare_with() -> None:
    track = track_of((1.0, 100))
    track.note_primary(primary(3.0, 210, timeline=2, server="unseen"))
    assert track.lineage == Lineage()
    assert track.assess(standby(3.5, 90)).fresh_at is None


def test_writes_that_the_failover_lost_are_in_nobodys_past() -> None:
    track = track_of((1.0, 100), (2.0, 500))
    track.note_standby(standby(2.5, 150, server="r1"))
    track.note_primary(primary(3.0, 160, timeline=2, server="r1"))
    assert track.assess(standby(3.5, 160, timeline=2)).fresh_at == 3.0


def test_another_cluster_in_its_place_is_known_from_scratch() -> None:
    track = track_of((1.0, 100))
    track.note_primary(primary(2.0, 50, system="1"))
    assert track.assess(standby(2.5, 40, system="1")).fresh_at is None
    assert track.assess(standby(2.5, 50, system="1")).fresh_at == 2.0


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[float, int]], list[tuple[float, str, float]]]:
    """When the primary committed what, and when whom it was asked, with the time that a replica takes to replay."""
    steps = draw(st.lists(st.tuples(st.floats(0.01, 3.0), st.integers(0, 50)), min_size=1, max_size=30))
    commits, at, lsn = [(0.0, 1)], 0.0, 1
    for pause, size in steps:
        at, lsn = at + pause, lsn + size
        commits.append((at, lsn))
    questions = draw(
        st.lists(
            st.tuples(st.floats(0.0, at + 5.0), st.sampled_from(["primary", "replica"]), st.floats(0.0, 8.0)),
            min_size=2,
            max_size=30,
        )
    )
    return commits, sorted(questions)


@settings(max_examples=300)
@given(histories())
def test_a_replica_never_passes_for_fresher_than_it_is(
    history: tuple[list[tuple[float, int]], list[tuple[float, str, float]]],
) -> None:
    commits, questions = history

    def end_at(at: float) -> int:
        return max(lsn for when, lsn in commits if when <= at)

    track, replayed = Track(), 1
    for at, whom, delay in questions:
        if whom == "primary":
            track.note_primary(primary(at, end_at(at)))
            continue
        replayed = max(replayed, end_at(max(0.0, at - delay)))
        standing = track.assess(standby(at, replayed))
        if standing.fresh_at is not None:
            assert end_at(standing.fresh_at) <= replayed


def test_round_trips_are_smoothed_and_intervals_fit_the_bounds() -> None:
    assert smooth(None, 0.01) == 0.01
    assert smooth(0.01, 0.02) == pytest.approx(0.012)
    assert choose_interval(1.0, []) == 1.0
    assert choose_interval(1.0, [60.0, 2.0]) == 0.5
    assert choose_interval(1.0, [0.01]) == 0.05
