"""Some entries of a saga in Redis, side by side: what a page of its snapshots is made of."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from sagaz_core.storage._checks import snapshot_cursor
from sagaz_core.storage._redis_records import unpack_snapshots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.storage.base import SagaSnapshot


class Window:
    """The snapshots of the entries from `first` to before `end`, in order; `unordered` where that is not the entries'.

    `at_end` says that there are no entries behind them.
    """

    def __init__(self, saga_id: str, first: int, end: int, entries: Sequence[bytes | None], unordered: bool) -> None:
        self.unordered = unordered
        self.at_end = len(entries) < 2 * (end - first)
        self.stored: list[SagaSnapshot] = []
        self._first = first
        self._entry_of: dict[str, int] = {}
        for number, (log, states) in enumerate(zip(entries[::2], entries[1::2], strict=True), first):
            for snapshot in () if log is None else unpack_snapshots(log, states, saga_id):
                self.stored.append(snapshot)
                self._entry_of[snapshot.snapshot_id] = number
        self.stored.sort(key=attrgetter("seq", "snapshot_id"))

    def has_bases(self, page: Sequence[SagaSnapshot]) -> bool:
        """Whether all that these may be differences from is here."""
        needed = [snapshot.base_seq for snapshot in page if snapshot.base_seq is not None]
        return self._first == 1 or not needed or self.stored[0].seq < min(needed)

    def cursor(self, last: SagaSnapshot) -> str:
        """Return the cursor of the page behind this snapshot."""
        return f"{self._entry_of[last.snapshot_id]}@{snapshot_cursor(last)}"
