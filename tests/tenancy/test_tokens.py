"""The tenant by a claim of a signed token."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_datasource import ConfigError, DataError, DataErrorKind, compile
from asgi_datasource.tenancy import FixedKey, KeySetFile, TokenResolver, TokenRules
from tests.tenancy.scopes import scope

SECRET = "a shared secret of at least thirty-two bytes, or sixty-four for the longest of the three"
PRIVATE: dict[str, Any] = {
    "RS": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES": ec.generate_private_key(ec.SECP256R1()),
    "Ed": ed25519.Ed25519PrivateKey.generate(),
}
HOUR = 3600


def pem(kind: str) -> str:
    key = PRIVATE[kind].public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def token(algorithm: str = "HS256", *, key: Any = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token that says acme, valid for an hour, unless told otherwise; a claim of None is left out."""
    said = {"tenant": "acme", "exp": int(time.time()) + HOUR, **claims}
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key or PRIVATE.get(algorithm[:2], SECRET), algorithm=algorithm, headers=headers)


def resolver(algorithm: str = "HS256", **rules: Any) -> TokenResolver:
    key = SECRET if algorithm.startswith("HS") else pem(algorithm[:2])
    settings = {"claim": "tenant", "algorithms": (algorithm,), **rules}
    return TokenResolver(TokenRules(**settings), FixedKey(key, settings["algorithms"]))


def bearer(text: str) -> dict[str, Any]:
    return scope("/", ("Authorization", f"Bearer {text}"))


def refused(found: TokenResolver, text: str) -> str:
    with pytest.raises(DataError) as caught:
        found(bearer(text))
    assert caught.value.kind is DataErrorKind.TENANT
    assert caught.value.http_status == 401
    assert text[:20] not in str(caught.value)
    return caught.value.message


@pytest.mark.parametrize("algorithm", ["HS256", "HS512", "RS256", "RS512", "ES256", "EdDSA"])
def test_a_claim_of_a_token_names_the_tenant(algorithm: str) -> None:
    assert resolver(algorithm)(bearer(token(algorithm))) == "acme"


def test_without_a_token_it_says_nothing() -> None:
    found = resolver()
    assert found(scope()) is None
    assert found(scope("/", ("Authorization", "Basic dXNlcjpwdw=="))) is None
    assert found(scope("/", ("Authorization", "Bearer"))) is None
    assert found(bearer(token(tenant=None, other="x"))) is None


def test_a_token_in_another_header_or_in_a_cookie() -> None:
    assert resolver(header="X-Token")(scope("/", ("X-Token", token()))) == "acme"
    assert resolver(cookie="session")(scope("/", ("Cookie", f"a=b; session={token()}"))) == "acme"


@pytest.mark.parametrize(
    ("claim", "claims", "wanted"),
    [
        ("org.id", {"org": {"id": "acme"}}, "acme"),
        ("org.id", {"org.id": "globex", "org": {"id": "acme"}}, "globex"),
        ("https://example.com/tenant", {"https://example.com/tenant": "acme"}, "acme"),
        ("org.id", {"org": "acme"}, None),
        ("number", {"number": 42}, "42"),
    ],
)
def test_where_the_claim_stands(claim: str, claims: dict[str, Any], wanted: str | None) -> None:
    assert resolver(claim=claim)(bearer(token(**claims))) == wanted


@pytest.mark.parametrize("value", [True, 1.5, ["acme"], {"id": "acme"}])
def test_a_claim_that_is_no_name_is_refused(value: object) -> None:
    assert "claim" in refused(resolver(), token(tenant=value))


def test_a_token_that_does_not_count_is_refused() -> None:
    now = int(time.time())
    assert "expired" in refused(resolver(), token(exp=now - 60))
    assert "required" in refused(resolver(), token(exp=None))
    assert "not valid yet" in refused(resolver(), token(nbf=now + 60))
    assert "signature" in refused(resolver(), token(key="another secret that is long enough to be one for HS256"))
    assert "algorithm" in refused(resolver(), token("HS512"))
    assert "audience" in refused(resolver(audience=("shop",)), token(aud="desk"))
    assert "required" in refused(resolver(audience=("shop",)), token())
    assert "issuer" in refused(resolver(issuer="https://login.test/"), token(iss="https://evil.test/"))
    assert "required" in refused(resolver(required=("exp", "sub")), token())
    assert "too long" in refused(resolver(), token(filler="x" * 20_000))


@pytest.mark.parametrize(
    "issuer", ["", "https://login", "https://login.example.com/x", None, 7, ["https://login.example.com/"]]
)
def test_the_issuer_is_compared_whole_whatever_the_library_does(issuer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyJWT 2.10.0 looked for `iss` inside of the text; one that looks at nothing stands for it."""
    found = resolver(issuer="https://login.example.com/")
    payload = jwt.utils.base64url_encode(
        json.dumps({"tenant": "acme", "exp": int(time.time()) + HOUR, "iss": issuer}).encode()
    )
    head = jwt.utils.base64url_encode(b'{"alg":"HS256"}')
    signature = jwt.get_algorithm_by_name("HS256").sign(head + b"." + payload, SECRET.encode())
    text = b".".join([head, payload, jwt.utils.base64url_encode(signature)]).decode()
    refused(found, text)
    decode = jwt.decode
    monkeypatch.setattr(
        jwt, "decode", lambda *a, issuer, options, **k: decode(*a, options={**options, "verify_iss": False}, **k)
    )
    assert "another issuer" in refused(found, text)
    assert found(bearer(token(iss="https://login.example.com/"))) == "acme"


@pytest.mark.parametrize("depth", [900, 1500, 5000, 7900])
@pytest.mark.parametrize("part", ["header", "claims"])
def test_a_token_of_brackets_in_brackets_is_refused(depth: int, part: str) -> None:
    nested = b"[" * (depth // 2) + b"]" * (depth // 2)
    head = b'{"alg":"HS256"' + (b',"x":' + nested if part == "header" else b"") + b"}"
    claims = b'{"iss":"x"' + (b',"x":' + nested if part == "claims" else b"") + b"}"
    encoded = [jwt.utils.base64url_encode(text) for text in (head, claims)]
    signature = jwt.get_algorithm_by_name("HS256").sign(b".".join(encoded), SECRET.encode())
    refused(resolver(), b".".join([*encoded, jwt.utils.base64url_encode(signature)]).decode())


def test_a_token_with_an_extension_that_has_to_be_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolver()
    assert found(bearer(token(headers={"exp2": 1}))) == "acme"
    text = token(headers={"crit": ["exp2"], "exp2": 1})
    refused(found, text)
    # Older releases of PyJWT pass over it.
    said = {"alg": "HS256", "crit": ["exp2"], "exp2": 1}
    monkeypatch.setattr(jwt, "get_unverified_header", lambda _: said)
    assert "an extension that is not known" in refused(found, text)


def test_what_is_right_within_the_leeway_counts() -> None:
    now = int(time.time())
    assert resolver(leeway_s=30)(bearer(token(exp=now - 10, nbf=now + 10))) == "acme"
    assert resolver(audience=("shop", "desk"))(bearer(token(aud=["desk", "x"]))) == "acme"
    assert resolver(issuer="https://login.test/")(bearer(token(iss="https://login.test/"))) == "acme"
    assert resolver()(bearer(token(aud="anything"))) == "acme"
    assert resolver(required=())(bearer(token(exp=None))) == "acme"


def test_nobody_passes_a_public_key_for_a_shared_secret() -> None:
    """The classic: a token signed by HS256 with the public key as its secret."""
    forged = _sign_by_hand(
        {"alg": "HS256", "typ": "JWT"}, {"tenant": "acme", "exp": int(time.time()) + HOUR}, pem("RS")
    )
    refused(resolver("RS256"), forged)
    mixed = TokenRules(claim="tenant", algorithms=("RS256", "HS256"))
    refused(TokenResolver(mixed, FixedKey(pem("RS"), ("RS256",))), forged)


def test_an_unsigned_token_is_refused() -> None:
    for algorithm in ("none", "None", "NONE", ""):
        refused(resolver(), _sign_by_hand({"alg": algorithm}, {"tenant": "acme"}, ""))


def _sign_by_hand(header: dict[str, Any], claims: dict[str, Any], secret: str) -> str:
    import hashlib
    import hmac

    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    text = b".".join(parts)
    signature = hmac.new(secret.encode(), text, hashlib.sha256).digest() if secret else b""
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


VALID = token()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.text(st.characters(codec="latin-1", exclude_categories=("Cc",)), max_size=200),
        st.from_regex(r"\A[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\Z"),
        st.tuples(st.integers(0, len(VALID) - 2), st.sampled_from("AZ09_-.")).map(
            lambda change: VALID[: change[0]] + change[1] + VALID[change[0] + 1 :]
        ),
        st.builds(
            lambda header, claims: _sign_by_hand(header, claims, SECRET),
            st.dictionaries(
                st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]),
                st.one_of(st.just("HS256"), st.none(), st.integers(), st.text(max_size=5), st.lists(st.text())),
            ),
            st.dictionaries(
                st.sampled_from(["tenant", "exp", "nbf", "iat", "aud", "iss", "sub", "jti"]),
                st.one_of(
                    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.text())
                ),
            ),
        ),
    )
)
def test_any_text_is_refused_or_read_and_never_an_error_of_another_kind(text: str) -> None:
    request = {"type": "http", "headers": [(b"authorization", b"Bearer " + text.encode("latin-1"))]}
    found = resolver(audience=("shop",), issuer="https://login.test/")
    try:
        answer = found(request)
    except DataError as error:
        outcome: object = (error.kind, error.http_status)
    else:
        outcome = answer
    assert outcome is None or isinstance(outcome, str) or outcome == (DataErrorKind.TENANT, 401)


# -- key sets


def key_set(*entries: dict[str, Any]) -> str:
    return json.dumps({"keys": list(entries)})


def jwk(kind: str, key_id: str | None, **more: Any) -> dict[str, Any]:
    algorithm = {"RS": jwt.algorithms.RSAAlgorithm, "ES": jwt.algorithms.ECAlgorithm}.get(kind)
    maker: Any = algorithm or jwt.algorithms.OKPAlgorithm
    entry: dict[str, Any] = json.loads(maker.to_jwk(PRIVATE[kind].public_key()))
    return {**entry, **({} if key_id is None else {"kid": key_id}), **more}


ALL = ("RS256", "ES256", "EdDSA")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_keys_of_a_set_are_found_by_their_id_and_kind(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(
        key_set(
            {"kty": "unheard-of", "kid": "new"},
            jwk("RS", "one"),
            jwk("ES", "two", use="sig"),
            jwk("Ed", "three", alg="EdDSA"),
            jwk("RS", "four", use="enc"),
        )
    )
    found = TokenResolver(TokenRules(claim="tenant", algorithms=ALL), KeySetFile(path))
    for algorithm, key_id in (("RS256", "one"), ("ES256", "two"), ("EdDSA", "three"), ("RS256", None)):
        headers = {} if key_id is None else {"kid": key_id}
        assert found(bearer(token(algorithm, headers=headers))) == "acme"
    for algorithm, key_id in (("RS256", "two"), ("RS256", "four"), ("RS256", "five"), ("EdDSA", "one")):
        assert "no key" in refused(found, token(algorithm, headers={"kid": key_id}))
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert "signature" in refused(found, token("RS256", key=other, headers={"kid": "one"}))


def test_a_key_set_that_has_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(key_set(jwk("RS", "old")))
    clock = Clock()
    found = TokenResolver(TokenRules(claim="tenant", algorithms=ALL), KeySetFile(path, clock=clock))
    new = token("ES256", headers={"kid": "new"})
    refused(found, new)
    replacement = tmp_path / "next.json"
    replacement.write_text(key_set(jwk("ES", "new")))
    replacement.replace(path)
    refused(found, new)  # a look a second, no more
    clock.now = 2.0
    assert found(bearer(new)) == "acme"
    refused(found, token("RS256", headers={"kid": "old"}))
    for nonsense in ("{", "[]", '{"keys": []}', '{"keys": [1, {}]}'):
        path.write_text(nonsense)
        clock.now += 2.0
        assert found(bearer(new)) == "acme"
    path.unlink()
    clock.now += 2.0
    assert found(bearer(new)) == "acme"


def test_a_key_set_of_the_same_size_and_time_that_replaces_another_is_read(tmp_path: Path) -> None:
    path, replacement = tmp_path / "jwks.json", tmp_path / "next.json"
    path.write_text(key_set(jwk("ES", "old")))
    replacement.write_text(key_set(jwk("ES", "new")))
    assert path.stat().st_size == replacement.stat().st_size
    os.utime(replacement, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    clock = Clock()
    found = TokenResolver(TokenRules(claim="tenant", algorithms=ALL), KeySetFile(path, clock=clock))
    refused(found, token("ES256", headers={"kid": "new"}))
    replacement.replace(path)
    clock.now = 2.0
    assert found(bearer(token("ES256", headers={"kid": "new"}))) == "acme"


def document(**claim: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "datasources": {"orders": {"primary": {"url": "postgresql://app@127.0.0.1:1/orders"}}},
        "tenancy": {"resolve": [{"jwt_claim": {"claim": "tenant", "algorithms": ["RS256"], **claim}}]},
        "tenants": {"acme": {"datasource": "orders", "schema": "acme"}},
    }


def test_keys_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(pem("RS"))
    (tmp_path / "jwks.json").write_text(key_set(jwk("RS", None)))
    (tmp_path / "datasource.json").write_text(json.dumps(document(key={"file": "key.pem"})))
    assert compile(tmp_path / "datasource.json").compiled.resolution()(bearer(token("RS256"))) == "acme"
    (tmp_path / "datasource.json").write_text(json.dumps(document(jwks="jwks.json")))
    assert compile(tmp_path / "datasource.json").compiled.resolution()(bearer(token("RS256"))) == "acme"
    from_environment = compile(document(key="${KEY}"), environ={"KEY": pem("RS")})
    assert from_environment.compiled.resolution()(bearer(token("RS256"))) == "acme"


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ({}, "neither key nor jwks"),
        ({"key": "x", "jwks": "y"}, "both key and jwks"),
        ({"key": SECRET, "algorithms": ["HS256", "RS256"]}, "would pass for a shared secret"),
        ({"key": SECRET}, "is no key for RS256"),
        ({"key": pem("RS"), "algorithms": ["HS256"]}, "is no key for HS256"),
        ({"jwks": "/nowhere/jwks.json"}, "No such file"),
    ],
)
def test_rules_by_which_no_token_could_be_verified_are_refused(claim: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        compile(document(**claim))
    assert SECRET not in str(caught.value)
