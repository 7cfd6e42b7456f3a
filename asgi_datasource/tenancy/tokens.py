"""Resolver by a signed token (JWT): a claim names the tenant, if signature, times, audience and issuer are valid.

PyJWT checks the tokens; this module manages the keys, and which key may verify which algorithm. Keys come from the
configuration, or from a JWKS file that is read again when it has changed. Nothing is fetched over the network.

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
"""The signature algorithms; `none` is not among them."""

MAX_TOKEN_LENGTH: Final = 16 * 1024
"""Characters of the longest token that is parsed."""

LOOK_EVERY_S: Final = 1.0
"""Seconds between two checks of a JWKS file for changes."""

_FAMILIES: Final = {"HS": "oct", "RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


def family(algorithm: str) -> str:
    """The key type of an algorithm (RFC 7518, section 6.1)."""
    return _FAMILIES[algorithm[:2]]


class TokenKeys(Protocol):
    """Finds the keys that may have signed a token."""

    def candidates(self, key_id: str | None, algorithm: str) -> Sequence[Any]:
        """The keys of an id and key type, for PyJWT; may be empty."""
        ...


class FixedKey:
    """One configured key.

    Args:
        key: A shared secret for HS*, a public key in PEM for the others.
        algorithms: Algorithms of one family: a public key must never be used as a shared secret.

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
    """The keys of a JWKS file, read again when the file has changed: keys are rotated by replacing it.

    A file that cannot be read or parsed leaves the keys unchanged.

    Args:
        path: The file.
        clock: The clock, in seconds, for `LOOK_EVERY_S`.

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
        """The keys of an id and key type; without an id, all keys of the type."""
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
    # A file that was replaced by renaming may have the same time and size as the old one.
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
        # Keys of unknown types are ignored (RFC 7517, section 5).
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
        # The curve of an EC key determines the algorithm; an RSA key without `alg` may be used with several.
        algorithm = described.get("alg") or (key.algorithm_name if kind == "EC" else None)
        keys.append(_SetKey(described.get("kid"), kind, algorithm, key.key))
    if not keys:
        raise ValueError("no usable keys")
    return keys


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """The rules for valid tokens.

    Attributes:
        claim: The claim that names the tenant: its literal name, or else a path of names with dots in between.
        algorithms: The accepted algorithms.
        audience: Accepted values of `aud`; empty accepts any, and tokens without one.
        issuer: The required `iss`; None accepts any.
        leeway_s: Tolerated clock difference, in seconds.
        required: Required claims.
        header: The header with the token; in `Authorization` after the scheme Bearer.
        cookie: The cookie with the token, instead of a header.
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
    """The tenant is a claim of a signed token. None without a token; an invalid token is refused with 401."""

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
                # `crit` names extensions that must be understood, and none is supported (RFC 7515, section 4.1.11).
                raise self._refusal("it names an extension that is not known")
            keys = self._keys.candidates(key_id, algorithm)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # Deeply nested JSON in the unverified header exceeds Python's recursion limit.
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
                # A claim of the wrong type makes some checks of PyJWT raise other exceptions.
                raise self._refusal(_PROBLEMS.get(type(error).__name__, "it does not count here")) from None
            else:
                # Second check: some releases of PyJWT have accepted a substring of the issuer.
                if rules.issuer is not None and claims.get("iss") != rules.issuer:
                    raise self._refusal(_PROBLEMS["InvalidIssuerError"])
                return claims
        raise self._refusal(problem)

    def _refusal(self, problem: str) -> DataError:
        # Contains no part of the token, which a reader of the log could use.
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
