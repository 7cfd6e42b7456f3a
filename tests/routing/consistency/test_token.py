"""The token: signed contents are read back, all other text is ignored."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_datasource.routing import Position
from asgi_datasource.routing.consistency.token import (
    FUTURE_S,
    MAX_LENGTH,
    MAX_MARKS,
    NOTHING_SEEN,
    Mark,
    Token,
    TokenSigner,
    scope_of,
)

NOW = 1_795_000_000
SECRET, OTHER = "a secret of the service's own", "another secret, of a stranger"
ORDERS = scope_of("acme", "orders")

positions = st.builds(Position, st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1))
marks = st.builds(Mark, st.binary(min_size=6, max_size=6), positions, st.integers(NOW - 30, NOW))
tokens = st.lists(marks, max_size=MAX_MARKS).map(lambda found: Token(tuple(found)))


def signer(*secrets: str, ttl_s: float = 30) -> TokenSigner:
    return TokenSigner(secrets or (SECRET,), ttl_s=ttl_s)


def token_of(timeline: int = 1, lsn: int = 1000, issued_at: int = NOW, scope: bytes = ORDERS) -> Token:
    return Token((Mark(scope, Position(timeline, lsn), issued_at),))


@given(tokens)
def test_a_signed_token_is_read_back(token: Token) -> None:
    text = signer().sign(token)
    assert signer().read([text], now=NOW) == token
    assert len(text) <= MAX_LENGTH
    assert text.isascii()
    assert not set(text) & set(' ",;\\=')


def test_a_token_for_one_datasource_is_shorter_than_200_bytes() -> None:
    assert len(signer().sign(token_of(2**32 - 1, 2**64 - 1))) == 54


@given(tokens.filter(lambda token: bool(token.marks)), st.data())
def test_a_modified_token_is_ignored(token: Token, data: st.DataObject) -> None:
    text = signer().sign(token)
    raw = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    changed = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    assert signer().read([changed], now=NOW) == NOTHING_SEEN
    cut = data.draw(st.integers(1, len(raw)))
    shorter = base64.urlsafe_b64encode(raw[:-cut]).rstrip(b"=").decode()
    assert signer().read([shorter], now=NOW) == NOTHING_SEEN


@given(st.lists(st.text(max_size=400), max_size=4))
def test_any_text_is_read_without_an_error(texts: list[str]) -> None:
    assert signer().read(texts, now=NOW) == NOTHING_SEEN


def test_a_token_with_another_secret_is_ignored() -> None:
    assert signer().read([signer(OTHER).sign(token_of())], now=NOW) == NOTHING_SEEN


def test_tokens_with_an_old_secret_stay_valid_after_a_rotation() -> None:
    old, new, both = signer(SECRET), signer(OTHER), signer(OTHER, SECRET)
    assert both.read([old.sign(token_of())], now=NOW) == token_of()
    assert new.read([both.sign(token_of())], now=NOW) == token_of()
    assert new.read([old.sign(token_of())], now=NOW) == NOTHING_SEEN


@pytest.mark.parametrize(
    ("age_s", "counts"), [(0, True), (30, True), (31, False), (-FUTURE_S, True), (-FUTURE_S - 1, False)]
)
def test_marks_expire_after_the_ttl(age_s: int, counts: bool) -> None:
    text = signer().sign(token_of(issued_at=NOW - age_s))
    assert bool(signer().read([text], now=NOW).marks) is counts


def test_marks_of_other_tenants_and_datasources_are_ignored_and_kept() -> None:
    others = [scope_of("globex", "orders"), scope_of("acme", "billing"), scope_of(None, "orders")]
    assert len({ORDERS, *others}) == 4
    token = token_of(lsn=5).merged(*(token_of(lsn=9, scope=scope) for scope in others))
    assert token.positions(ORDERS) == (Position(1, 5),)
    assert len(signer().read([signer().sign(token)], now=NOW).marks) == 4


def test_different_names_never_make_the_same_scope() -> None:
    assert scope_of("a", "b") != scope_of("", "a\x00b")
    assert scope_of("ab", "c") != scope_of("a", "bc")


@given(tokens, tokens)
def test_merging_keeps_the_furthest_position_of_each_scope_and_timeline(one: Token, other: Token) -> None:
    merged = one.merged(other)
    if len({(mark.scope, mark.position.timeline) for mark in (*one.marks, *other.marks)}) > MAX_MARKS:
        assert len(merged.marks) == MAX_MARKS
        return
    best: dict[tuple[bytes, int], tuple[int, int]] = {}
    for mark in (*one.marks, *other.marks):
        key = (mark.scope, mark.position.timeline)
        lsn, issued_at = best.get(key, (-1, -1))
        # The mark that was noted last expires last, and belongs to the furthest position.
        best[key] = (max(lsn, mark.position.lsn), max(issued_at, mark.issued_at))
    assert {(mark.scope, mark.position.timeline): (mark.position.lsn, mark.issued_at) for mark in merged.marks} == best
    assert merged == other.merged(one)
    assert merged.merged(merged) == merged


def test_beyond_the_most_marks_the_oldest_are_dropped() -> None:
    made = [token_of(timeline=number, issued_at=NOW + number) for number in range(1, MAX_MARKS + 3)]
    kept = made[0].merged(*made[1:])
    assert [mark.position.timeline for mark in kept.marks] == list(range(MAX_MARKS + 2, 2, -1))


def test_tokens_of_several_services_are_read_together() -> None:
    texts = [signer().sign(token_of(lsn=lsn)) for lsn in (10, 30, 20)]
    assert signer().read([*texts, "junk"], now=NOW).positions(ORDERS) == (Position(1, 30),)


def test_positions_of_several_timelines_come_newest_first() -> None:
    token = token_of(1, 90).merged(token_of(3, 10), token_of(2, 50))
    assert token.positions(ORDERS) == (Position(3, 10), Position(2, 50), Position(1, 90))


def test_a_decoded_token_matches_its_published_schema() -> None:
    schema = json.loads((Path(__file__).parents[3] / "schemas/token/v1.json").read_text(encoding="utf-8"))
    said = signer().describe(signer().sign(token_of(2, 0x16B374D848)))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(said, schema)
    assert said == {
        "version": 1,
        "marks": [{"scope": ORDERS.hex(), "timeline": 2, "lsn": "16/B374D848", "issued_at": NOW}],
    }
    assert signer().describe("junk") is None


def test_the_repr_contains_no_secret() -> None:
    assert SECRET not in repr(signer())
