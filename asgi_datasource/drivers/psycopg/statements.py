"""Which statements a connection's server has prepared, known exactly.

A name counts as prepared only once the server has answered its Parse: what was skipped in a pipeline that failed
before is not there, and using it would fail every later statement with 26000 (`faults.md`, "Poisoned prepare cache").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

PREPARE_AT_USE: Final = 2
"""A statement is prepared when it comes for the second time: single ones would only push others out."""

MAX_PLANS: Final = 250
"""Statements remembered on one connection; each prepared one costs memory on the server."""


class Plan:
    """One statement with one list of parameter types, as one connection knows it."""

    __slots__ = ("columns", "is_kept", "is_ready", "is_recent", "name", "sent_in", "uses")

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.uses = 0
        self.is_ready = False
        """The server has it under `name`."""
        self.is_recent = True
        """Used since the last look for something to evict."""
        self.is_kept = True
        """Still in the cache; an answer may arrive after it was evicted."""
        self.sent_in = 0
        """Number of the last pipeline that its Parse was sent in."""
        self.columns: tuple[str, ...] | None = None
        """Names of the result's columns. While a plan lives under its name the server does not change them."""


class StatementCache:
    """The plans of one connection; bounded, the least recently used go first (second chance)."""

    __slots__ = ("_counter", "_max", "_plans", "to_close")

    def __init__(self, max_plans: int = MAX_PLANS) -> None:
        self._plans: dict[tuple[bytes, tuple[int, ...]], Plan] = {}
        self._max = max_plans
        self._counter = 0
        self.to_close: list[bytes] = []
        """Names to close on the server, with the next pipeline."""

    def __len__(self) -> int:
        return len(self._plans)

    @property
    def prepared(self) -> Sequence[bytes]:
        """The names that the server has."""
        return [plan.name for plan in self._plans.values() if plan.is_ready and plan.name is not None]

    def plan(self, text: bytes, types: tuple[int, ...], *, at_once: bool) -> Plan:
        """The plan of this statement, counted as used; it has a name when it is to be prepared.

        Args:
            text: In the server's terms.
            types: Of its parameters: other types are another plan.
            at_once: Prepare it now, however often it was used.
        """
        key = (text, types)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = Plan()
            if len(self._plans) > self._max:
                self._evict(keep=plan)
        plan.is_recent = True
        if plan.name is None:
            plan.uses += 1
            if at_once or plan.uses >= PREPARE_AT_USE:
                self._counter += 1
                plan.name = b"ads_%d" % self._counter
        return plan

    def note_ready(self, plan: Plan) -> None:
        """The server has answered the plan's Parse."""
        plan.is_ready = True
        if not plan.is_kept and plan.name is not None:
            self.to_close.append(plan.name)

    def retire(self) -> None:
        """Have every plan closed on the server and prepared anew: it may be gone, or refer to what has changed.

        Closing a name that the server does not have is no error.
        """
        for plan in self._plans.values():
            self._drop(plan)
        self._plans.clear()

    def _evict(self, keep: Plan) -> None:
        # Second chance instead of moving an entry at each use: a use costs one assignment.
        for key, plan in list(self._plans.items()):
            if plan is keep:
                continue
            if plan.is_recent:
                plan.is_recent = False
                del self._plans[key]
                self._plans[key] = plan
                continue
            break
        else:
            key, plan = next((key, plan) for key, plan in self._plans.items() if plan is not keep)
        del self._plans[key]
        self._drop(plan)

    def _drop(self, plan: Plan) -> None:
        plan.is_kept = False
        if plan.is_ready and plan.name is not None:
            self.to_close.append(plan.name)
