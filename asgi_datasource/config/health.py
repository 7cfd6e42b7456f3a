"""The section `health`: when the application is ready for requests."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import Field
from pydantic_core import core_schema

from .kinds import PathPrefix
from .sections import Section
from .shapes import is_mapping
from .values import Value

EVERY_PRIMARY: Final = "every_primary"
ANY_SERVER: Final = "any_server"
_WORDS: Final = (EVERY_PRIMARY, ANY_SERVER)

_PERCENT: Final = re.compile(r"(?:100|[1-9]?[0-9])%")


def _read(value: object) -> str | int:
    """A word, or the percentage of `{tenants: 90%}`."""
    if isinstance(value, str) and value in _WORDS:
        return str(value)
    if is_mapping(value) and list(value) == ["tenants"]:
        share = value["tenants"]
        if isinstance(share, str) and _PERCENT.fullmatch(share):
            return int(share[:-1])
    raise ValueError


def _write(rule: str | int) -> Any:
    return rule if isinstance(rule, str) else {"tenants": f"{rule}%"}


ReadyRule = Annotated[
    str | int,
    Value(
        "ReadyRule",
        "every_primary, any_server, or {tenants: 90%}",
        ("string", "other"),
        {
            "oneOf": [
                {"enum": list(_WORDS)},
                {
                    "type": "object",
                    "properties": {
                        # Some engines let `$` match in front of a line break.
                        "tenants": {"type": "string", "pattern": f"^(?:{_PERCENT.pattern})$", "not": {"pattern": r"\n"}}
                    },
                    "required": ["tenants"],
                    "additionalProperties": False,
                },
            ]
        },
        core_schema.no_info_plain_validator_function(_read),
        choices=_WORDS,
        takes_reference=False,
        serialize=_write,
    ),
]


class HealthConfig(Section):
    """When `/ready` of the health checks answers 200, from what this process knows of its servers."""

    ready: ReadyRule = Field(
        default=EVERY_PRIMARY,
        title="Ready",
        description=(
            "every_primary: the primary of every datasource is up. any_server: every datasource has a server that is"
            " up. {tenants: 90%}: so many of the tenants, rounded up, have a primary that is up, and are not held back"
            " by their migrations."
        ),
        examples=["any_server", {"tenants": "90%"}],
    )
    path: PathPrefix = Field(
        default="/health",
        title="Path",
        description="Where the application mounts its health checks; requests below it need no tenant.",
        examples=["/health", "/internal/health"],
    )
