"""The document with a snapshot of the servers' state: `registry.state()` returns it and `explain` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError

_LSN: Final = "^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$"
# Some engines let `$` match in front of a line break.
_NO_LINE_BREAK: Final[dict[str, Any]] = {"not": {"pattern": r"\n"}}
Lsn = Annotated[str, Field(pattern=_LSN, examples=["0/3000148"], json_schema_extra=_NO_LINE_BREAK)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ServerState(_Part):
    """The state of one server. All keys are optional; omitted values are unknown."""

    role: Literal["primary", "replica"] | None = Field(
        default=None, description="Its role in its datasource; must be its role in the configuration."
    )
    breaker: Literal["closed", "open", "half_open"] = Field(
        default="closed",
        description="closed: it is in use. open: it is down. half_open: one connection tests whether it is back.",
    )
    draining: bool | None = Field(
        default=None, description="Whether it gets no new reads; default: drain in the configuration."
    )
    foreign: bool = Field(default=False, description="Whether it answers, but is not a replica of this primary.")
    timeline: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = Field(
        default=None, description="Its timeline; ignored for the primary."
    )
    lsn: Lsn | None = Field(default=None, description="The position in the write-ahead log that it has replayed.")
    lag_s: Seconds | None = Field(default=None, description="Estimated replication lag when it was polled.")
    lag_bytes: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Bytes of WAL between the primary's known position and its own."
    )
    age_s: Seconds | None = Field(
        default=None,
        description="Upper bound on the age of its data, which max_lag is compared with.",
    )
    rtt_s: Seconds | None = Field(default=None, description="Its round-trip time; for balance: nearest.")
    up_s: Seconds | None = Field(default=None, description="The time since it came back up; for routing.warmup.")
    borrowed: Annotated[int, Field(ge=0)] = Field(default=0, description="Connections in use; for balance: least_busy.")


class ForkState(_Part):
    """A known fork of a timeline."""

    timeline: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(description="The newer timeline.")
    lsn: Lsn = Field(description="A position that it shares with earlier timelines.")


class DataSourceState(_Part):
    """The state of one datasource."""

    turn: Annotated[int, Field(ge=0)] = Field(
        default=0, description="The number of balanced reads so far, which decides whose turn is next."
    )
    forks: tuple[ForkState, ...] = Field(default=(), strict=False, description="The known forks of its timelines.")
    servers: dict[str, ServerState] = Field(
        default_factory=dict, description="Each server by its name in the configuration; primary is the primary."
    )


class StateDocument(_Part):
    """The state of all servers at one moment."""

    version: Literal[1] = Field(description="The version of this format.")
    datasources: dict[str, DataSourceState] = Field(description="Each datasource by its name in the configuration.")


def read_state(source: str | Path | Mapping[str, Any]) -> StateDocument:
    """Read a state.

    Args:
        source: A JSON file, or its content.

    Raises:
        ConfigError: It cannot be read or has the wrong form; every problem is listed with its path.
    """
    if isinstance(source, Mapping):
        where, document = "the state", dict(source)
    else:
        where = str(source)
        try:
            document = json.loads(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{where} cannot be read: {error.strerror}. Check the path and its rights") from None
        except ValueError as error:
            # JSONDecodeError gives line and column; UnicodeDecodeError is a ValueError, too.
            raise ConfigError(f"{where} is not JSON: {error}") from None
    try:
        return StateDocument.model_validate(document)
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, problem['loc'])) or 'the document'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise ConfigError("\n".join([f"{where} is no state of servers (schemas/state/v1.json):", *problems])) from None
