"""The SQLSTATE table: every class of the manual has a kind."""

from __future__ import annotations

import pytest

from asgi_datasource.errors import HTTP_STATUS, Classification, DataError, DataErrorKind, ErrorDetail, classify

K = DataErrorKind


def status(found: Classification) -> int:
    return HTTP_STATUS[found.kind] if found.http_status is None else found.http_status


@pytest.mark.parametrize(
    ("sqlstate", "kind", "is_retryable", "http"),
    [
        ("08000", K.CONNECTION, True, 503),
        ("08006", K.CONNECTION, True, 503),
        ("08007", K.COMMIT_UNKNOWN, False, 500),
        ("08P01", K.CONNECTION, False, 503),
        ("0A000", K.QUERY, False, 500),
        ("22P02", K.VALUE, False, 422),
        ("22012", K.VALUE, False, 422),
        ("23502", K.CONSTRAINT, False, 422),
        ("23514", K.CONSTRAINT, False, 422),
        ("23001", K.CONSTRAINT, False, 409),
        ("23503", K.CONSTRAINT, False, 409),
        ("23505", K.CONSTRAINT, False, 409),
        ("23P01", K.CONSTRAINT, False, 409),
        ("25006", K.READ_ONLY, False, 500),
        ("25P02", K.QUERY, False, 500),
        ("25P03", K.TIMEOUT, False, 504),
        ("25P04", K.TIMEOUT, False, 504),
        ("26000", K.QUERY, False, 500),
        ("28P01", K.CONNECTION, False, 503),
        ("3D000", K.CONNECTION, False, 503),
        ("40001", K.CONFLICT, True, 409),
        ("40002", K.CONSTRAINT, False, 422),
        ("40003", K.COMMIT_UNKNOWN, False, 500),
        ("40P01", K.CONFLICT, True, 409),
        ("42501", K.QUERY, False, 500),
        ("42601", K.QUERY, False, 500),
        ("44000", K.CONSTRAINT, False, 422),
        ("53100", K.RESOURCE, False, 503),
        ("53300", K.RESOURCE, True, 503),
        ("54001", K.QUERY, False, 500),
        ("55P03", K.CONFLICT, True, 409),
        ("57014", K.TIMEOUT, False, 504),
        ("57P01", K.CONNECTION, True, 503),
        ("57P02", K.CONNECTION, True, 503),
        ("57P03", K.CONNECTION, True, 503),
        ("57P04", K.CONNECTION, False, 503),
        ("57P05", K.CONNECTION, True, 503),
        ("58030", K.RESOURCE, False, 503),
        ("72000", K.CONFLICT, True, 409),
        ("P0001", K.QUERY, False, 500),
        ("XX000", K.OTHER, False, 500),
        ("F0001", K.OTHER, False, 500),
        ("ZZZZZ", K.OTHER, False, 500),
    ],
)
def test_sqlstate_has_its_kind_retry_and_status(sqlstate: str, kind: K, is_retryable: bool, http: int) -> None:
    found = classify(ErrorDetail(sqlstate, is_broken=False))
    assert (found.kind, found.is_retryable, status(found)) == (kind, is_retryable, http)


def test_without_a_sqlstate_the_connection_state_decides() -> None:
    assert classify(ErrorDetail(None, is_broken=True)).kind is K.CONNECTION
    assert classify(ErrorDetail(None, is_broken=False)).kind is K.QUERY


def test_an_unknown_state_on_a_broken_connection_is_a_lost_connection() -> None:
    assert classify(ErrorDetail("ZZZZZ", is_broken=True)).kind is K.CONNECTION


def test_a_write_refused_by_a_read_only_server_is_a_failover() -> None:
    assert classify(ErrorDetail("25006", is_broken=False, is_write=True)).kind is K.CONNECTION
    assert classify(ErrorDetail("25006", is_broken=False)).kind is K.READ_ONLY
    assert classify(ErrorDetail("55000", is_broken=False, in_recovery=True)).kind is K.READ_ONLY
    assert classify(ErrorDetail("55000", is_broken=False, in_recovery=True, is_write=True)).kind is K.CONNECTION


def test_every_kind_has_a_status() -> None:
    assert set(HTTP_STATUS) == set(DataErrorKind)


def test_repr_shows_kind_and_state_and_str_the_message() -> None:
    error = DataError(K.CONFLICT, "two at once", sqlstate="40001")
    assert str(error) == "two at once"
    assert repr(error) == "DataError(kind='conflict', message='two at once', sqlstate='40001')"
    assert error.is_retryable
    assert error.http_status == 409
