"""Prepared statements of one connection, tracked exactly.

A name counts as prepared only once the server has answered its Parse: a failed pipeline skips the Parse of later
statements, and using such a name would fail with 26000 (PostgreSQL manual, "Extended Query").
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from psycopg import capabilities
from psycopg._preparing import PrepareManager

PREPARE_AT_USE: Final = 2
"""A statement is prepared at its second use: statements used once would only evict others."""

MAX_PLANS: Final = 250
"""Most plans of one connection; each prepared statement uses memory on the server."""


class Plan:
    """One statement with one list of parameter types, on one connection."""

    __slots__ = ("columns", "is_kept", "is_ready", "name", "sent_in", "uses", "was_used")

    def __init__(self) -> None:
        self.name: bytes | None = None
        self.uses = 0
        self.is_ready = False
        """The server has prepared it under `name`."""
        self.is_kept = True
        """It is in the cache; an answer may arrive after its eviction."""
        self.was_used = False
        """Set by each use that bypasses the cache: such a plan gets a second chance at eviction."""
        self.sent_in = 0
        """Number of the last pipeline that contained its Parse."""
        self.columns: tuple[str, ...] | None = None
        """Names of the result's columns; the server does not change them while the plan exists under its name."""


class StatementCache:
    """The plans of one connection; bounded, with least-recently-used eviction.

    Attributes:
        generation: Changes when all plans are dropped.
        closes_by_message: libpq closes a prepared statement by a protocol message since version 17; before that,
            DEALLOCATE is used.
    """

    __slots__ = ("_controls", "_excluded", "_max", "_number", "_plans", "closes_by_message", "generation", "to_close")

    def __init__(self, max_plans: int = MAX_PLANS) -> None:
        self.closes_by_message = capabilities.has_send_close_prepared()
        self.generation = 0
        self._plans: OrderedDict[tuple[bytes, tuple[int, ...]], Plan] = OrderedDict()
        self._controls: dict[bytes, Plan] = {}
        """The library's control statements: few, never evicted."""
        self._excluded: set[bytes] = set()
        self._max = max_plans
        self._number = 0
        self.to_close: list[bytes] = []
        """Names to close on the server at the start of the next pipeline."""

    def __len__(self) -> int:
        return len(self._plans)

    def plan(self, text: bytes, types: tuple[int, ...], *, at_once: bool) -> Plan | None:
        """The plan of a statement, counted as used; None if it is not prepared, or not yet.

        Args:
            text: The text with the server's placeholders.
            types: Parameter types; each list of types has its own plan.
            at_once: Prepare it at its first use.
        """
        key = (text, types)
        plan = self._plans.get(key)
        if plan is None:
            if text in self._excluded:
                return None
            plan = self._plans[key] = Plan()
            if len(self._plans) > self._max:
                self._evict()
        else:
            self._plans.move_to_end(key)
        if plan.name is None:
            plan.uses += 1
            if plan.uses < PREPARE_AT_USE and not at_once:
                return None
            plan.name = self._next_name()
        return plan

    def control_plan(self, text: bytes) -> Plan:
        """The plan of a control statement without parameters."""
        plan = self._controls.get(text)
        if plan is None:
            plan = self._controls[text] = Plan()
            plan.name = self._next_name()
        return plan

    def note_ready(self, plan: Plan) -> None:
        """The server has answered the plan's Parse."""
        plan.is_ready = True
        if not plan.is_kept and plan.name is not None:
            self.to_close.append(plan.name)

    def retire(self) -> None:
        """Close all plans on the server and prepare anew: they may be gone, or refer to changed objects.

        Closing an unknown name is not an error.
        """
        for plan in (*self._plans.values(), *self._controls.values()):
            self._drop(plan)
        self._plans.clear()
        self._controls.clear()
        self.generation += 1

    def exclude(self, text: bytes) -> None:
        """Do not prepare this statement any more: its columns vary."""
        if len(self._excluded) >= self._max:
            self._excluded.clear()
        self._excluded.add(text)

    def take_closes(self) -> Sequence[bytes]:
        """The names to close at the start of the next pipeline, which does not use them."""
        if not self.to_close:
            return ()
        names, self.to_close = self.to_close, []
        return names

    def put_back_closes(self, names: Sequence[bytes]) -> None:
        """Restore names that were not sent."""
        self.to_close.extend(names)

    def _next_name(self) -> bytes:
        self._number += 1
        return b"ads_%d" % self._number

    def _evict(self) -> None:
        """Drop the least recently used plan (the CLOCK algorithm: a plan that was used moves to the end once)."""
        plans = self._plans
        while True:
            key, plan = plans.popitem(last=False)
            if not plan.was_used:
                break
            plan.was_used = False
            plans[key] = plan
        self._drop(plan)

    def _drop(self, plan: Plan) -> None:
        plan.is_kept = False
        if plan.is_ready and plan.name is not None:
            self.to_close.append(plan.name)


class OwnPlans(PrepareManager):
    """The statements that psycopg itself prepares on a borrowed connection."""

    def forget(self) -> list[bytes]:
        """Forget all statements; returns their names, which may be prepared on the server."""
        names = [*self._names.values(), *(name for name in self._to_flush if name is not None)]
        self._names.clear()
        self._counts.clear()
        self._to_flush.clear()
        return names
