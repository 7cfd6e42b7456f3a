"""Tenants told by a signed token (JWT): a claim of it counts only when signature, times, audience and issuer are right.

The checks are PyJWT's; here are the keys, and which of them may verify which algorithm. Keys come from the
configuration, or from a JWKS file that is read again when it has changed. Nothing is fetched.

Sources: RFC 7519 (JWT), RFC 7517 (JWK), RFC 8725 (best current practices), RFC 6750 (bearer tokens).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast

from starlette.types import Scope

from ..errors import ConfigError, DataError, DataErrorKind
from .resolution import Reads, single_header
from .resolvers import as_name, cookie

logger = logging.getLogger("asgi_datasource.tenancy")

ALGORITHMS: Final = (
    *("HS256", "HS384", "HS512"),
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512"),
    "EdDSA",
)
"""What may sign a token; `none` is not among them."""

MAX_TOKEN_LENGTH: Final = 16 * 1024
"""Longest token looked at, in characters."""

LOOK_EVERY_S: Final = 1.0
"""Seconds between two looks at a JWKS file."""

_FAMILIES: Final = {"HS": "oct", "RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


def family(algorithm: str) -> str:
    """The kind of key that an algorithm takes (RFC 7518, section 6.1)."""
    return _FAMILIES[algorithm[:2]]


class TokenKeys(Protocol):
    """Finds the keys that may have signed a token."""

    def candidates(self, key_id: str | None, algorithm: str) -> Sequence[Any]:
        """Keys to verify with, by PyJWT; none where there is none of that id and kind."""
        ...


class FixedKey:
    """One key, known from the start.

    Args:
        key: A shared secret for HS*, a public key in PEM for the others.
        algorithms: All of one family: a public key must never be taken for a shared secret.

    Raises:
        ConfigError: It cannot be read as a key of that family.
    """

    __slots__ = ("_key",)

    def __init__(self, key: str, algorithms: Sequence[str]) -> None:
        jwt = import_jwt()
        try:
            self._key = jwt.get_algorithm_by_name(algorithms[0]).prepare_key(key)
        except (jwt.InvalidKeyError, ValueError, TypeError, NotImplementedError):
            raise ConfigError(
                f"tenancy.resolve: jwt_claim.key is no key for {algorithms[0]}; give the shared secret for HS*, and the"
                " public key in PEM for the others"
            ) from None

    def candidates(self, key_id: str | None, algorithm: str) -> Sequence[Any]:
        """The key."""
        return (self._key,)


@dataclass(frozen=True, slots=True)
class _SetKey:
    id: str | None
    kind: str
    algorithm: str | None
    key: Any = field(repr=False)


class KeySetFile:
    """The keys of a JWKS file, read again when the file has changed: keys are rotated by writing it anew.

    A file that cannot be read, or that holds nonsense, leaves the keys as they were.

    Args:
        path: The file.
        clock: Seconds; looks at the file are `LOOK_EVERY_S` apart.

    Raises:
        ConfigError: It cannot be read at the start.
    """

    __slots__ = ("_clock", "_keys", "_looked_at", "_path", "_stamp")

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        try:
            self._stamp = _stamp(path)
            self._keys = _read_key_set(path)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"tenancy.resolve: jwt_claim.jwks: {path} cannot be read as a key set: {_reason(error)}"
            ) from None

    def candidates(self, key_id: str | None, algorithm: str) -> Sequence[Any]:
        """The keys of this id and kind; those of every id where the token names none."""
        self._look()
        return [
            key.key
            for key in self._keys
            if (key_id is None or key.id == key_id)
            and key.kind == family(algorithm)
            and key.algorithm in (None, algorithm)
        ]

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._keys = _read_key_set(self._path)
                self._stamp = stamp
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read as a key set: %s; the keys stay as they were", self._path, _reason(error))


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    # A file that is replaced by renaming may be as old and as long as the one before.
    return status.st_mtime_ns, status.st_size, status.st_ino


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _read_key_set(path: Path) -> list[_SetKey]:
    jwt = import_jwt()
    try:
        document: Any = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deep") from None
    entries: object = cast("dict[str, object]", document).get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("no keys")
    keys: list[_SetKey] = []
    for entry in cast("list[object]", entries):
        # Keys of kinds that are not known here are passed over (RFC 7517, section 5).
        if not isinstance(entry, dict):
            continue
        described = cast("dict[str, Any]", entry)
        if described.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK.from_dict(described)
        except (jwt.PyJWTError, ValueError, TypeError, NotImplementedError):
            continue
        kind: str = described["kty"]
        # The curve of an EC key goes with one algorithm; an RSA key without `alg` may be used with several.
        algorithm = described.get("alg") or (key.algorithm_name if kind == "EC" else None)
        keys.append(_SetKey(described.get("kid"), kind, algorithm, key.key))
    if not keys:
        raise ValueError("no usable keys")
    return keys


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What makes a token count.

    Attributes:
        claim: The claim that names the tenant: its name as it is, or else a path of names with dots in between.
        algorithms: Those that may have signed it.
        audience: One of these has to be in `aud`; empty asks nothing, and refuses no token that has one.
        issuer: What `iss` has to be; None asks nothing.
        leeway_s: Seconds by which clocks may differ.
        required: Claims that have to be there.
        header: The header that carries it, `Authorization` with the scheme Bearer in front.
        cookie: The cookie that carries it, in place of a header.
    """

    claim: str
    algorithms: tuple[str, ...]
    audience: tuple[str, ...] = ()
    issuer: str | None = None
    leeway_s: float = 0.0
    required: tuple[str, ...] = ("exp",)
    header: str = "Authorization"
    cookie: str | None = None


class TokenResolver:
    """The tenant is a claim of a signed token. Without one it says nothing; one that does not count is answered 401."""

    __slots__ = ("_header", "_is_bearer", "_jwt", "_keys", "_path", "_rules", "reads")

    def __init__(self, rules: TokenRules, keys: TokenKeys) -> None:
        self._jwt = import_jwt()
        self._rules = rules
        self._keys = keys
        self._path = rules.claim.split(".")
        self._header = rules.header.lower().encode("latin-1")
        self._is_bearer = self._header == b"authorization"
        self.reads = Reads((rules.header if rules.cookie is None else "Cookie",))

    def __call__(self, scope: Scope, /) -> str | None:
        token = self._token(scope)
        if token is None:
            return None
        claims = self._claims(token)
        found: Any = claims.get(self._rules.claim)
        if found is None and len(self._path) > 1:
            found = claims
            for step in self._path:
                found = cast("Mapping[str, Any]", found).get(step) if isinstance(found, Mapping) else None
        if found is None:
            return None
        try:
            return as_name(found, of="the claim")
        except DataError:
            raise self._refusal("its claim cannot be a tenant's name") from None

    def _token(self, scope: Scope) -> str | None:
        if self._rules.cookie is not None:
            return cookie(scope, self._rules.cookie)
        value = single_header(scope, self._header)
        if not value or not self._is_bearer:
            return value
        scheme, _, token = value.partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    def _claims(self, token: str) -> Mapping[str, Any]:
        jwt, rules = self._jwt, self._rules
        if len(token) > MAX_TOKEN_LENGTH:
            raise self._refusal("it is too long")
        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header.get("alg"), header.get("kid")
            if algorithm not in rules.algorithms:
                raise self._refusal("it is signed by an algorithm that is not allowed")
            if "crit" in header:
                # No extension is known here, and what it names has to be (RFC 7515, section 4.1.11).
                raise self._refusal("it names an extension that is not known")
            keys = self._keys.candidates(key_id, algorithm)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # A header of brackets in brackets is as deep as Python's stack, before anything is verified.
            raise self._refusal("it cannot be read") from None
        options: Any = {"require": list(rules.required), "verify_aud": bool(rules.audience)}
        problem = "no key of that name is known"
        for key in keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=list(rules.audience) or None,
                    issuer=rules.issuer,
                    leeway=rules.leeway_s,
                    options=options,
                )
            except jwt.InvalidSignatureError:
                problem = "its signature is wrong"
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
                # A claim of the wrong type makes some of PyJWT's own checks fail in ways of their own.
                raise self._refusal(_PROBLEMS.get(type(error).__name__, "it does not count here")) from None
            else:
                # Second check: releases of PyJWT have taken a part of the issuer for it.
                if rules.issuer is not None and claims.get("iss") != rules.issuer:
                    raise self._refusal(_PROBLEMS["InvalidIssuerError"])
                return claims
        raise self._refusal(problem)

    def _refusal(self, problem: str) -> DataError:
        # Nothing of the token in it: whoever reads the log could use it.
        return DataError(DataErrorKind.TENANT, f"the request's token is refused: {problem}", http_status=401)


_PROBLEMS: Final = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidAudienceError": "it is for another audience",
    "InvalidIssuerError": "it is from another issuer",
    "InvalidIssuedAtError": "it was issued in the future",
    "MissingRequiredClaimError": "a claim that is required is missing",
}


def import_jwt() -> Any:
    """PyJWT.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import jwt
    except ImportError:
        raise ConfigError("tenancy.resolve: jwt_claim needs PyJWT: pip install 'asgi-datasource[jwt]'") from None
    return jwt
