"""A batch that is to be added to PostgreSQL."""

from __future__ import annotations

from datetime import UTC
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sagaz_core.storage._postgres_rows import (
    as_text,
    as_time,
    as_time_or_none,
    event_row,
    saga_row,
    snapshot_row,
    summary_row,
)
from sagaz_core.storage._postgres_schema import LONG

if TYPE_CHECKING:
    from sagaz_core.storage.base import Batch


class Rows:
    """A batch, and its records as parameters of the statements that add it one by one.

    `long_events` and `long_snapshots` say whether there are some from `LONG` on. `is_short` says that there are none,
    no record and no summary. `simple` says that its records, if some are from `LONG` on, are in order among themselves,
    by number and by time, so that they can come behind those that are stored.

    Raises what `as_time` does: who has a time that cannot be stored is refused alone, and before the server is asked.
    """

    __slots__ = ("batch", "is_short", "long_events", "long_snapshots", "record", "saga_id", "simple", "summary")

    def __init__(self, batch: Batch) -> None:
        self.batch, self.saga_id = batch, as_text(batch.saga_id)
        self.record = None if batch.saga is None else saga_row(batch.saga)
        self.summary = summary_row(batch.summary)
        self.long_events = self.long_snapshots = False
        for event in batch.events:
            if event.seq >= LONG:
                self.long_events = True
            if event.at.tzinfo is not UTC:
                as_time(event.at)
        for snapshot in batch.snapshots:
            if snapshot.seq >= LONG:
                self.long_snapshots = True
            if snapshot.created_at.tzinfo is not UTC:
                as_time(snapshot.created_at)
            as_time_or_none(snapshot.retention_until)
        has_long = self.long_events or self.long_snapshots
        self.is_short = not has_long and batch.saga is None and batch.summary is None
        self.simple = not has_long or self._in_order()

    @property
    def events(self) -> list[tuple[Any, ...]]:
        """The events as rows, made anew each time."""
        return [event_row(event) for event in self.batch.events]

    @property
    def snapshots(self) -> list[tuple[Any, ...]]:
        """The snapshots as rows, made anew each time."""
        return [snapshot_row(snapshot) for snapshot in self.batch.snapshots]

    def _in_order(self) -> bool:
        events = [(row[1], row[2]) for row in self.events]
        snapshots = [(row[5], row[0], row[8]) for row in self.snapshots]
        return all(b[0] > a[0] and b[1] >= a[1] for a, b in pairwise(events)) and all(
            b[:2] > a[:2] and b[2] >= a[2] for a, b in pairwise(snapshots)
        )

    @property
    def first(self) -> tuple[Any, ...]:
        """Number and time of the first event, and number, id and time of the first snapshot, if some are long."""
        return self._ends(0)

    @property
    def last(self) -> tuple[Any, ...]:
        """The same of the last ones."""
        return self._ends(-1)

    def _ends(self, place: int) -> tuple[Any, ...]:
        event = event_row(self.batch.events[place]) if self.long_events else (None,) * 3
        snapshot = snapshot_row(self.batch.snapshots[place]) if self.long_snapshots else (None,) * 9
        return event[1], event[2], snapshot[5], snapshot[0], snapshot[8]
