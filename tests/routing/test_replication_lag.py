"""The arithmetic of lag, with a clock that the tests control."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_datasource.routing import Lineage, Observation, Position, Standing, Track, choose_interval, smooth
from asgi_datasource.routing.replication_lag import MAX_SAMPLES

SYSTEM = "7712237956747655337"


def primary(at: float, lsn: int, *, timeline: int = 1, **attributes: Any) -> Observation:
    return Observation(
        asked_at=at,
        answered_at=at + 0.001,
        is_standby=False,
        position=Position(timeline, lsn),
        **{"system": SYSTEM, "server": "p", **attributes},
    )


def standby(at: float, lsn: int, *, timeline: int = 1, **attributes: Any) -> Observation:
    return Observation(
        asked_at=at,
        answered_at=at + 0.001,
        is_standby=True,
        position=Position(timeline, lsn),
        **{"system": SYSTEM, "server": "s", **attributes},
    )


def track_of(*samples: tuple[float, int], **options: Any) -> Track:
    track = Track(**options)
    for at, lsn in samples:
        track.note_primary(primary(at, lsn))
    return track


def known(standing: Standing) -> tuple[float | None, float | None, int | None]:
    lag_s = standing.lag_s
    return standing.fresh_at, None if lag_s is None else round(lag_s, 3), standing.lag_bytes


def test_a_replica_at_the_last_known_position_of_the_primary_has_no_lag() -> None:
    track = track_of((1.0, 100), (2.0, 200))
    assert known(track.assess(standby(2.5, 200))) == (2.0, 0.0, 0)
    assert known(track.assess(standby(2.5, 250))) == (2.0, 0.0, 0)


def test_the_age_of_a_lagging_replica_counts_from_the_last_sample_at_its_position() -> None:
    track = track_of((1.0, 100), (2.0, 200), (3.0, 300))
    assert known(track.assess(standby(3.5, 299)))[0] == 2.0
    assert known(track.assess(standby(3.5, 200)))[0] == 2.0
    assert known(track.assess(standby(3.5, 199)))[0] == 1.0


def test_lag_is_interpolated_between_samples_of_the_primary() -> None:
    track = track_of((1.0, 100), (2.0, 200))
    assert known(track.assess(standby(2.5, 150))) == (1.0, pytest.approx(1.001), 50)


def test_an_idle_primary_causes_no_lag() -> None:
    track = track_of((1.0, 100), (2.0, 100), (60.0, 100))
    assert known(track.assess(standby(60.5, 100))) == (60.0, 0.0, 0)


def test_paused_replay_lags_from_the_next_write_of_the_primary() -> None:
    track = track_of((1.0, 100), (50.0, 100), (51.0, 200), (80.0, 200))
    assert known(track.assess(standby(80.5, 100))) == (50.0, pytest.approx(30.501), 100)


def test_without_answers_of_the_primary_samples_age() -> None:
    track = track_of((1.0, 100))
    assert track.assess(standby(500.0, 100)).fresh_at == 1.0


def test_without_samples_of_the_primary_lag_is_unknown() -> None:
    assert known(Track().assess(standby(1.0, 100))) == (None, None, None)


def test_a_replica_behind_all_samples_is_not_fresh() -> None:
    track = track_of((1.0, 100), (2.0, 200))
    fresh_at, lag_s, lag_bytes = known(track.assess(standby(2.5, 50)))
    assert (fresh_at, lag_bytes) == (None, 150)
    assert lag_s is not None
    assert lag_s >= 1.0


def test_old_samples_are_dropped_except_for_one() -> None:
    track = track_of(*((float(at), at * 10) for at in range(1, 100)), reach_s=10.0)
    assert track.assess(standby(99.5, 895)).fresh_at == 89.0
    assert track.assess(standby(99.5, 885)).fresh_at is None


def test_many_samples_are_thinned_without_wrong_results() -> None:
    track = track_of(*((float(at), at * 10) for at in range(5000)), reach_s=1e6)
    assert len(track._lsns) <= MAX_SAMPLES
    for at in (4999, 4321, 1000, 17):
        fresh_at = track.assess(standby(5000.0, at * 10)).fresh_at
        assert fresh_at is not None
        assert at - 2000 <= fresh_at <= at


def test_a_replica_of_another_cluster_is_foreign() -> None:
    track = track_of((1.0, 100))
    assert track.assess(standby(1.5, 100, system="1")).is_foreign
    assert not track.assess(standby(1.5, 100, system=None)).is_foreign


def test_a_replica_ahead_of_a_later_sample_of_the_primary_has_diverged() -> None:
    track = track_of((1.0, 100))
    ahead = standby(1.5, 150)
    assert not track.assess(ahead).is_foreign, "the primary may have moved on meanwhile"
    track.note_primary(primary(ahead.answered_at, 120))
    assert track.assess(ahead).is_foreign


def test_a_separately_promoted_replica_is_foreign_and_the_primary_under_another_name_is_not() -> None:
    track = track_of((1.0, 100))
    promoted = Observation(
        asked_at=1.5, answered_at=1.501, is_standby=False, position=Position(2, 150), system=SYSTEM, server="s"
    )
    assert track.assess(promoted).is_foreign
    assert known(track.assess(primary(1.5, 150))) == (1.0, 0.0, 0)


def test_after_a_promotion_only_the_history_of_both_timelines_counts() -> None:
    track = track_of((1.0, 100), (2.0, 200))
    track.note_standby(standby(2.5, 180, server="r1"))
    track.note_primary(primary(3.0, 210, timeline=2, server="r1"))
    assert track.lineage == Lineage(((2, 180),))
    assert track.assess(standby(3.5, 210, timeline=2)).fresh_at == 3.0
    assert track.assess(standby(3.5, 170)).fresh_at == 1.0, "the old timeline, in front of the branch"
    assert track.assess(standby(3.5, 190)).fresh_at is None, "the old timeline, perhaps behind the branch"
    assert track.assess(standby(3.5, 205)).fresh_at is None


def test_after_the_promotion_of_an_unknown_server_lag_is_unknown() -> None:
    track = track_of((1.0, 100))
    track.note_primary(primary(3.0, 210, timeline=2, server="unseen"))
    assert track.lineage == Lineage()
    assert track.assess(standby(3.5, 90)).fresh_at is None


def test_writes_lost_in_a_failover_do_not_count_as_replayed() -> None:
    track = track_of((1.0, 100), (2.0, 500))
    track.note_standby(standby(2.5, 150, server="r1"))
    track.note_primary(primary(3.0, 160, timeline=2, server="r1"))
    assert track.assess(standby(3.5, 160, timeline=2)).fresh_at == 3.0


def test_another_cluster_at_the_same_address_starts_without_samples() -> None:
    track = track_of((1.0, 100))
    track.note_primary(primary(2.0, 50, system="1"))
    assert track.assess(standby(2.5, 40, system="1")).fresh_at is None
    assert track.assess(standby(2.5, 50, system="1")).fresh_at == 2.0


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[float, int]], list[tuple[float, str, float]]]:
    """Commits of the primary, polls of the servers, and the delay of a replica."""
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
def test_a_replica_is_never_reported_fresher_than_it_is(
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


def test_a_server_that_was_on_an_older_timeline_says_nothing_about_the_fork() -> None:
    track = track_of((1.0, 100))
    track.note_primary(primary(2.0, 200, timeline=2))
    track.note_standby(standby(2.5, 180, server="r1"))
    track.note_primary(primary(3.0, 310, timeline=3, server="r1"))
    assert track.lineage == Lineage()
