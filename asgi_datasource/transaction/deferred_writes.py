"""Writes that wait for the end of their transaction and travel in COMMIT's own round trip.

What is buffered belongs to the place in the program where it was added: it goes with a savepoint that is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..drivers.statements import Statement
from ..errors import DataError


class DeferredWriter(Protocol):
    """Turns buffered items into statements."""

    def statements(self, items: Sequence[Any], /) -> Sequence[Statement]:
        """The statements that write these items, in their order."""
        ...

    def committed(self, items: Sequence[Any], /) -> None:
        """The transaction with these items is committed, as far as the server has answered."""
        ...

    def explain(self, error: DataError, /) -> DataError:
        """The error to raise where COMMIT's round trip has failed with `error`."""
        ...


class DeferredWrites:
    """The buffer of one unit of work."""

    __slots__ = ("_items", "are_sent")

    def __init__(self) -> None:
        self.are_sent = False
        """They went before COMMIT, in a round trip that opened the transaction or told its id."""
        self._items: list[tuple[DeferredWriter, object, object]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, writer: DeferredWriter, item: object, place: object) -> None:
        """Buffer an item.

        Args:
            writer: Writes it.
            item: What to write.
            place: The block that it goes with, should that be undone alone; None is the transaction.
        """
        self._items.append((writer, item, place))

    def drop(self, is_undone: Callable[[Any], bool]) -> None:
        """Forget the items of the places that were undone."""
        self._items = [item for item in self._items if item[2] is None or not is_undone(item[2])]

    def statements(self) -> list[Statement]:
        """The statements of all items."""
        return [statement for writer, items in self._by_writer().items() for statement in writer.statements(items)]

    def one_statement(self) -> Statement | None:
        """The one statement that writes all items; None where there are several, or it was sent already."""
        if self.are_sent:
            return None
        statements = self.statements()
        return statements[0] if len(statements) == 1 else None

    def committed(self) -> None:
        """The transaction is committed."""
        for writer, items in self._by_writer().items():
            writer.committed(items)

    def explain(self, error: DataError) -> DataError:
        """The error to raise where the round trip that carried the items has failed with `error`."""
        for writer in self._by_writer():
            error = writer.explain(error)
        return error

    def _by_writer(self) -> dict[DeferredWriter, list[object]]:
        found: dict[DeferredWriter, list[object]] = {}
        for writer, item, _ in self._items:
            found.setdefault(writer, []).append(item)
        return found
