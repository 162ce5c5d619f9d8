"""What is made of a saga's entries that were read from Redis: snapshots in order, a page of them, a checkpoint."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sagaz_core.storage._checks import expired, not_a_cursor, read_snapshot_cursor, snapshot_cursor, with_bases
from sagaz_core.storage._redis_records import unpack_events, unpack_saga, unpack_snapshots
from sagaz_core.storage.together import Checkpoint, EventHead

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sagaz_core.storage.base import SagaSnapshot

place_of = attrgetter("seq", "snapshot_id")


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
        self.stored.sort(key=place_of)

    def has_bases(self, page: Sequence[SagaSnapshot]) -> bool:
        """Whether all that these may be differences from is here."""
        needed = [snapshot.base_seq for snapshot in page if snapshot.base_seq is not None]
        return self._first == 1 or not needed or self.stored[0].seq < min(needed)

    def cursor(self, last: SagaSnapshot) -> str:
        """Return the cursor of the page behind this snapshot."""
        return f"{self._entry_of[last.snapshot_id]}@{snapshot_cursor(last)}"


def read_cursor(cursor: str | None) -> tuple[int, tuple[int, str]]:
    """Return the entry that the last snapshot before the page is in, 0 where that is of no use, and its place."""
    if cursor is None:
        return 1, read_snapshot_cursor(None)
    entry, _, place = cursor.partition("@")
    if not entry.isdecimal() or len(entry) > 15:
        raise not_a_cursor(cursor)
    return int(entry), read_snapshot_cursor(place)


def in_entries(of: str, logs: Sequence[bytes | None], states: Sequence[bytes | None]) -> list[SagaSnapshot]:
    """Return the snapshots that are in these entries, in order."""
    found = [
        snapshot
        for log, held in zip(logs, states, strict=True)
        if log is not None
        for snapshot in unpack_snapshots(log, held, of)
    ]
    found.sort(key=place_of)
    return found


def latest_of(
    stored: Sequence[SagaSnapshot],
    now: datetime,
    step: str | None = None,
    phase: str | None = None,
    until: datetime | None = None,
    max_seq: int | None = None,
) -> SagaSnapshot | None:
    """Return the latest of the snapshots, which are in order, of which all that is true."""
    for snapshot in reversed(stored):
        if (
            step in (None, snapshot.step_name)
            and phase in (None, snapshot.phase)
            and (until is None or snapshot.created_at <= until)
            and (max_seq is None or snapshot.seq <= max_seq)
            and not expired(snapshot, now)
        ):
            return with_bases([snapshot], stored)[0]
    return None


def checkpoint_of(saga_id: str, step: str, record: bytes | None, entries: Sequence[Any], now: datetime) -> Checkpoint:
    """Return what a replay from the step needs to know, of the saga's record and entries (head, states and events)."""
    stored = in_entries(saga_id, entries[::3], entries[1::3])
    before, last = latest_of(stored, now, step, "before"), latest_of(stored, now)
    events = [event for data in entries[2::3] if data is not None for event in unpack_events(saga_id, data)]
    events.sort(key=attrgetter("seq"))
    after = -1 if before is None else before.seq
    heads = [EventHead(event.seq, event.kind, event.step) for event in events if event.seq > after]
    return Checkpoint(
        None if record is None else unpack_saga(saga_id, record), before, None if last is None else last.seq, heads
    )
