"""An operation is a sequence of steps: after an interruption it resumes where it stopped, or is undone step by step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import DataError, DataErrorKind
from .ledger import Ledger, Operation, StepEntry, StepState


class Notes:
    """The notes of a step, which survive a crash of the process.

    Args:
        known: The notes so far.
        keep: Writes further notes into the ledger.
    """

    def __init__(self, known: Mapping[str, Any], keep: Callable[[Mapping[str, Any]], Awaitable[None]]) -> None:
        self._known = dict(known)
        self._keep = keep

    def __getitem__(self, key: str) -> Any:
        return self._known.get(key)

    async def keep(self, **noted: Any) -> None:
        """Write notes before acting on them."""
        await self._keep(noted)
        self._known |= noted


async def nothing(_: Notes) -> None:
    """The undo of a step that has changed nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an operation.

    Attributes:
        name: Its name in the ledger.
        do: Runs the step; can be repeated after an interruption at any point.
        undo: Undoes it by its notes; can be repeated, too. None: the step cannot be undone.
        ends: It closes the operation itself, in the transaction of its change.
    """

    name: str
    do: Callable[[Notes], Awaitable[None]]
    undo: Callable[[Notes], Awaitable[None]] | None = nothing
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """An operation on a tenant, with the ledger of its progress.

    Attributes:
        ledger: Records its steps.
        tenant: The tenant's name.
        operation: The operation.
        steps: In order; the last one ends the operation.
        tell: Called with each step as it begins.
    """

    ledger: Ledger
    tenant: str
    operation: Operation
    steps: Sequence[Step]
    tell: Callable[[str], None]

    async def go_on(self) -> None:
        """Run the steps that have not ended yet.

        Raises:
            DataError: A step failed; the ledger has the reason.
        """
        begun = await self.ledger.steps(self.tenant, self.operation)
        for step in self.steps:
            entry = begun.get(step.name)
            if entry is not None and entry.state is StepState.DONE:
                continue
            self.tell(f"{self.operation.value} {self.tenant}: {step.name}")
            await self.ledger.begin(self.tenant, self.operation, step.name)
            await self._guarded(step, step.do(self._notes(step, entry)))
            if not step.ends:
                await self.ledger.end(self.tenant, self.operation, step.name)

    async def take_back(self) -> None:
        """Undo the steps that have begun, the last one first.

        Raises:
            DataError: CONFLICT: a step has begun that cannot be undone. Or undoing one failed; the ledger has the
                reason, and this can be called again.
        """
        begun = await self.ledger.steps(self.tenant, self.operation)
        for step in self.steps:
            if step.undo is None and step.name in begun:
                raise DataError(
                    DataErrorKind.CONFLICT,
                    f"{self.operation.value} of {self.tenant!r} cannot be taken back any more: {step.name!r} has begun."
                    " Run it again to finish it",
                )
        await self.ledger.cancel(self.tenant)
        for step in reversed(self.steps):
            entry = begun.get(step.name)
            if entry is None or step.undo is None:
                continue
            self.tell(f"cancel {self.operation.value} {self.tenant}: {step.name}")
            await self._guarded(step, step.undo(self._notes(step, entry)))
            await self.ledger.undone(self.tenant, self.operation, step.name)
        await self.ledger.close(self.tenant)

    async def _guarded(self, step: Step, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:
            reason = error.message if isinstance(error, DataError) else type(error).__name__
            # The connection may be what has failed.
            with suppress(DataError):
                await self.ledger.end(self.tenant, self.operation, step.name, failure=reason)
            raise

    def _notes(self, step: Step, entry: StepEntry | None) -> Notes:
        known: Mapping[str, Any] = {} if entry is None else entry.kept
        return Notes(known, lambda noted: self.ledger.keep(self.tenant, self.operation, step.name, noted))
