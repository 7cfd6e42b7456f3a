"""The meaning of each word of a choice, for editors; most are parsed from the keys' descriptions: `word: meaning.`"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from ..errors import DataErrorKind
from .keys import sections
from .values import Value

_KNOWN: Final[dict[str, dict[str, str]]] = {
    "ErrorKind": {
        DataErrorKind.TENANT: "The tenant is missing, unknown, suspended or not allowed here.",
        DataErrorKind.CONNECTION: "No connection was available, or the one in use was lost.",
        DataErrorKind.RESOURCE: "A limit was reached: the pool's queue, the server's connections, memory or disk.",
        DataErrorKind.TIMEOUT: "A statement, a transaction or the request ran out of time.",
        DataErrorKind.CONFLICT: "Serialization failure, deadlock, or a lock that was not available.",
        DataErrorKind.CONSTRAINT: "The data breaks a constraint.",
        DataErrorKind.READ_ONLY: "A write was sent with read intent.",
        DataErrorKind.QUERY: "The statement is wrong, or was sent where it cannot run.",
        DataErrorKind.VALUE: "A value is out of range, malformed, or cannot be encoded.",
        DataErrorKind.CLOSED: "The handle outlived its request.",
        DataErrorKind.COMMIT_UNKNOWN: "It is unknown whether the transaction was committed.",
        DataErrorKind.OTHER: "Anything else.",
    },
    "IsolationLevel": {
        "read committed": "Each statement sees what was committed before it began.",
        "repeatable read": "All statements see what was committed before the first one began.",
        "serializable": "As if transactions ran one after the other; some are retried.",
    },
    "MultipleWriters": {"refuse": "The second one is refused."},
    "ExemptPreset": {"fastapi": "/docs, /docs/oauth2-redirect, /redoc and /openapi.json."},
    "OnDisconnect": {"rollback": "It is rolled back."},
    "Pooler": {"none": "The URL leads to the server itself, or to a pooler in session mode."},
    "RoutePropagation": {
        "required": "One transaction for the request.",
        "not_supported": "Each statement commits by itself.",
    },
    "TenantState": {"active": "All requests are served."},
    "TokenAlgorithm": {
        **{f"HS{bits}": f"HMAC with SHA-{bits}: a secret that both sides share." for bits in (256, 384, 512)},
        **{f"RS{bits}": f"RSA (PKCS #1) with SHA-{bits}: a public key." for bits in (256, 384, 512)},
        **{f"PS{bits}": f"RSA (PSS) with SHA-{bits}: a public key." for bits in (256, 384, 512)},
        **{f"ES{bits}": f"ECDSA with SHA-{bits}: a public key." for bits in (256, 384, 512)},
        "EdDSA": "Ed25519 or Ed448: a public key.",
    },
    "TrustedHeader": {
        "forwarded": "Each proxy appends an element of its own (RFC 7239).",
        "x-forwarded-host": "Each proxy overwrites it, or takes it away.",
        "none": "Host alone counts.",
    },
    "Outcome": {
        "2xx": "All successes.",
        "3xx": "All redirections.",
        "4xx": "All errors of the client.",
        "5xx": "All errors of the server.",
    },
}


def describe_choice(value: Value, choice: str) -> str:
    """The meaning of a word; empty where it is not described."""
    known = _KNOWN.get(value.name, {}).get(choice) or _described().get((value.name, choice))
    return known or ""


@lru_cache(maxsize=1)
def _described() -> dict[tuple[str, str], str]:
    """The meanings in the keys' descriptions."""
    found: dict[tuple[str, str], str] = {}
    for place in sections().values():
        for info in place.fields.values():
            for value in info.metadata:
                if isinstance(value, Value):
                    for choice in value.choices:
                        match = re.search(rf"(?:^|[\s(]){re.escape(choice)}: ([^.;]+)", info.description or "")
                        if match is not None:
                            found.setdefault((value.name, choice), f"{match[1][:1].upper()}{match[1][1:]}.")
    return found
