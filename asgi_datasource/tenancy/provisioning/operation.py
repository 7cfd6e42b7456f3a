"""An operation is a row of steps; one that was cut short goes on where it stopped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from .ledger import Ledger, Operation, StepState


class Notes:
    """What a step has noted, also before the process died that ran it.

    Args:
        known: What is noted already.
        keep: Writes more of it into the ledger.
    """

    def __init__(self, known: Mapping[str, Any], keep: Callable[[Mapping[str, Any]], Awaitable[None]]) -> None:
        self._known = dict(known)
        self._keep = keep

    def __getitem__(self, key: str) -> Any:
        return self._known.get(key)

    async def keep(self, **noted: Any) -> None:
        """Note something before acting on it."""
        await self._keep(noted)
        self._known |= noted


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an operation.

    Attributes:
        name: Its name in the ledger.
        do: Does it; can be repeated after it was cut short anywhere.
        ends: It deletes the operation's steps itself, in the transaction that makes its change.
    """

    name: str
    do: Callable[[Notes], Awaitable[None]]
    ends: bool = False


async def run(
    ledger: Ledger, tenant: str, operation: Operation, steps: Sequence[Step], *, tell: Callable[[str], None]
) -> None:
    """Run the steps that are not done yet.

    Args:
        ledger: Where they are written down.
        tenant: The tenant's name.
        operation: What is done with it.
        steps: In order; the last one ends the operation.
        tell: Is called with each step as it begins.

    Raises:
        DataError: A step failed. The ledger has the reason.
    """
    begun = await ledger.steps(tenant, operation)
    for step in steps:
        entry = begun.get(step.name)
        if entry is not None and entry.state is StepState.DONE:
            continue
        tell(f"{operation.value} {tenant}: {step.name}")
        await ledger.begin(tenant, operation, step.name)
        try:
            await step.do(notes_of(ledger, tenant, operation, step, entry.kept if entry is not None else {}))
        except Exception as error:
            reason = error.message if isinstance(error, DataError) else type(error).__name__
            # The connection may be what has failed.
            with suppress(DataError):
                await ledger.end(tenant, operation, step.name, failure=reason)
            raise
        if not step.ends:
            await ledger.end(tenant, operation, step.name)


def notes_of(ledger: Ledger, tenant: str, operation: Operation, step: Step, kept: Mapping[str, Any]) -> Notes:
    """The notes of a step."""
    return Notes(kept, lambda noted: ledger.keep(tenant, operation, step.name, noted))
