"""The document with a snapshot of the servers' state: `registry.state()` returns it and `explain` reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError

_LSN: Final = "^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$"
Lsn = Annotated[str, Field(pattern=_LSN, examples=["0/3000148"])]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ServerState(_Part):
    """How one server looked. What is left out is not known; nothing is needed."""

    role: Literal["primary", "replica"] | None = Field(
        default=None, description="What it is in its datasource; has to be what the configuration says."
    )
    breaker: Literal["closed", "open", "half_open"] = Field(
        default="closed",
        description="closed: it is in use. open: it is down. half_open: one connection tries whether it is back.",
    )
    draining: bool | None = Field(
        default=None, description="Whether it gets no new reads; without it, what the configuration says."
    )
    foreign: bool = Field(default=False, description="Whether it answers, but is no replica of this primary.")
    timeline: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = Field(
        default=None, description="The timeline that it is on; of the primary this is of no consequence."
    )
    lsn: Lsn | None = Field(default=None, description="Up to where it has replayed the write-ahead log.")
    lag_s: Seconds | None = Field(
        default=None, description="About how long before it was asked the primary had been where it was."
    )
    lag_bytes: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="How far it was behind what is known of the primary."
    )
    age_s: Seconds | None = Field(
        default=None,
        description="How old its data may be: so long ago it is known to have had everything. max_lag looks at this.",
    )
    rtt_s: Seconds | None = Field(default=None, description="How long its answers take; for balance: nearest.")
    up_s: Seconds | None = Field(
        default=None, description="How long ago it came back after it was down; for routing.warmup."
    )
    borrowed: Annotated[int, Field(ge=0)] = Field(default=0, description="Connections in use; for balance: least_busy.")


class ForkState(_Part):
    """Where a timeline is known to have branched off."""

    timeline: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(description="The newer one.")
    lsn: Lsn = Field(description="A position that it shares with those before it.")


class DataSourceState(_Part):
    """How the servers of one datasource looked."""

    turn: Annotated[int, Field(ge=0)] = Field(
        default=0, description="How many reads were balanced before: whose turn it is."
    )
    forks: tuple[ForkState, ...] = Field(default=(), strict=False, description="What is known of its timelines.")
    servers: dict[str, ServerState] = Field(
        default_factory=dict, description="Each server by its name in the configuration; primary is the primary."
    )


class StateDocument(_Part):
    """How the servers looked at one moment."""

    version: Literal[1] = Field(description="Of this format.")
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
        told = [
            f"  {'.'.join(map(str, problem['loc'])) or 'the document'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise ConfigError("\n".join([f"{where} is no state of servers (schemas/state/v1.json):", *told])) from None
