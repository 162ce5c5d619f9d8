"""One saga's records without their bytes, in order: what stores answer from that have no database to ask."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sagaz_core.storage._checks import LONG_AGO, another_event, another_saga, another_snapshot
from sagaz_core.storage._rows import (
    EventEntry,
    Row,
    SnapshotEntry,
    event_entry,
    saga_row,
    snapshot_entry,
)
from sagaz_core.storage._timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from sagaz_core.storage.base import Batch, SagaSnapshot, SagaSummary, StoredEvent

_at = attrgetter("at")
_created_at = attrgetter("created_at")
_seq = attrgetter("seq")
_place = attrgetter("seq", "snapshot_id")


@dataclass(slots=True)
class News:
    """What of a batch is not in the saga yet: entries without a place, in order, and the data of each."""

    record: Row | None = None
    summary: SagaSummary | None = None
    events: list[EventEntry] = field(default_factory=list)
    snapshots: list[SnapshotEntry] = field(default_factory=list)
    event_data: list[bytes] = field(default_factory=list)
    snapshot_data: list[bytes] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.record or self.summary or self.events or self.snapshots)


class SagaIndex:
    """The index of one saga. `record` is its row, `first_end` the earliest time at which one of its snapshots ends."""

    __slots__ = ("_filtered", "_filters", "by_id", "events", "first_end", "record", "snapshots", "summary")

    def __init__(self) -> None:
        self.record: Row | None = None
        self.summary: SagaSummary | None = None
        self.events: Timeline[EventEntry] = Timeline(_seq, _at)
        self.snapshots: Timeline[SnapshotEntry] = Timeline(_place, _created_at)
        self.by_id: dict[str, SnapshotEntry] = {}
        self.first_end: datetime | None = None
        self._forget_filters()

    def news(self, batch: Batch) -> News:
        """Return what the batch would add. Raises `DuplicateSagaError` when it does not fit to what is there."""
        news = News()
        if batch.saga is not None:
            row = saga_row(batch.saga)
            if self.record is None:
                news.record = row
            elif row != self.record:
                raise another_saga(batch.saga)
        if batch.events:
            self._new_events(batch.events, news)
        if batch.snapshots:
            self._new_snapshots(batch.snapshots, news)
        if batch.summary is not None and (self.summary is None or batch.summary.seq > self.summary.seq):
            news.summary = batch.summary
        return news

    def _new_events(self, events: Sequence[StoredEvent], news: News) -> None:
        new: dict[int, tuple[EventEntry, bytes]] = {}
        items = self.events.items
        last = items[-1].seq if items else -1
        for event in events:
            entry, known = event_entry(event), None
            if event.seq <= last:
                place = bisect_left(items, event.seq, key=_seq)
                known = items[place] if items[place].seq == event.seq else None
            elif event.seq in new:
                known = new[event.seq][0]
            if known is None:
                new.setdefault(event.seq, (entry, event.data))
                known = new[event.seq][0]
            if known[:-1] != entry[:-1]:
                raise another_event(event)
        news.events, news.event_data = _in_order(new.values(), _seq)

    def _new_snapshots(self, snapshots: Sequence[SagaSnapshot], news: News) -> None:
        new: dict[str, tuple[SnapshotEntry, bytes]] = {}
        for snapshot in snapshots:
            entry, name = snapshot_entry(snapshot), snapshot.snapshot_id
            known = self.by_id.get(name) or new.setdefault(name, (entry, snapshot.data))[0]
            if known[:-1] != entry[:-1]:
                raise another_snapshot(snapshot)
        news.snapshots, news.snapshot_data = _in_order(new.values(), _place)

    def add(
        self,
        record: Row | None,
        summary: SagaSummary | None,
        events: Sequence[EventEntry],
        snapshots: Sequence[SnapshotEntry],
    ) -> None:
        """Take in what is now stored."""
        self.record = record or self.record
        self.summary = summary or self.summary
        if events:
            self.events.add(events)
        if snapshots:
            for entry in snapshots:
                self.by_id[entry.snapshot_id] = entry
            self.first_end = first_end(snapshots, self.first_end)
            if not self.snapshots.add(snapshots):
                self._forget_filters()

    # ---- questions

    def latest(
        self, step: str | None, phase: str | None, until: datetime | None, max_seq: int | None, now: datetime
    ) -> SnapshotEntry | None:
        """See `SnapshotStorage.latest_snapshot`."""
        timeline = self._timeline(step, phase)
        found = None if timeline is None else timeline.latest(until, max_seq)
        while timeline is not None and found is not None and expired(found, now):
            found = timeline.before(found, until)
        return found

    def bases(self, entry: SnapshotEntry) -> list[SnapshotEntry]:
        """Return what is needed to read the snapshot, in order."""
        if entry.base_seq is None:
            return []
        items = self.snapshots.items
        return items[bisect_left(items, entry.base_seq, key=_seq) : bisect_left(items, _place(entry), key=_place)]

    def page(self, after: tuple[int, str], limit: int, now: datetime) -> list[SnapshotEntry]:
        """Return the next snapshots that are served, one more than `limit` when there are more."""
        items, found = self.snapshots.items, list[SnapshotEntry]()
        for index in range(bisect_left(items, (after[0], after[1] + "\0"), key=_place), len(items)):
            if not expired(items[index], now):
                found.append(items[index])
                if len(found) > limit:
                    break
        return found

    def served(self, now: datetime) -> int:
        """Return how many snapshots have not expired."""
        return sum(not expired(entry, now) for entry in self.snapshots.items)

    def events_between(self, after_seq: int, until: datetime | None) -> list[EventEntry]:
        """See `SnapshotStorage.read_events`."""
        timeline = self.events
        end = len(timeline.items) if until is None else timeline.after(until)
        return timeline.items[timeline.above(after_seq) : end]

    def below(self, below_seq: int, now: datetime) -> tuple[list[str], list[str], int]:
        """Return the ids of those below that `seq` which go, of those which stay as bases, and how many were served."""
        items = self.snapshots.items
        below = bisect_left(items, below_seq, key=_seq)
        needed = (e.base_seq for e in items[below:] if e.base_seq is not None and not expired(e, now))
        start = bisect_left(items, min(needed, default=below_seq), 0, below, key=_seq)
        gone, hidden = items[:start], [entry for entry in items[start:below] if entry.retention_until != LONG_AGO]
        return _ids(gone), _ids(hidden), sum(not expired(entry, now) for entry in items[:below])

    def prunable(self, now: datetime) -> list[str]:
        """Return the ids of those that have expired and that no other one needs, the oldest first."""
        found: list[str] = []
        needed: int | None = None
        for entry in reversed(self.snapshots.items):
            if expired(entry, now):
                if needed is None or entry.seq < needed:
                    found.append(entry.snapshot_id)
            elif entry.base_seq is not None:
                needed = entry.base_seq if needed is None else min(needed, entry.base_seq)
        return found[::-1]

    # ---- deleting

    def drop(self, gone: Sequence[str], hidden: Sequence[str]) -> list[SnapshotEntry]:
        """Forget those of the ids in `gone`, serve those in `hidden` no longer, and return what was forgotten."""
        dropped = [entry for name in gone if (entry := self.by_id.pop(name, None))]
        for name in hidden:
            if name in self.by_id:
                self.by_id[name] = self.by_id[name]._replace(retention_until=LONG_AGO)
        self.snapshots.keep(
            [self.by_id[entry.snapshot_id] for entry in self.snapshots.items if entry.snapshot_id in self.by_id]
        )
        self.first_end = first_end(self.snapshots.items, None)
        self._forget_filters()
        return dropped

    def _forget_filters(self) -> None:
        self._filters: dict[tuple[str | None, str | None], Timeline[SnapshotEntry]] = {}
        self._filtered = 0

    def _timeline(self, step: str | None, phase: str | None) -> Timeline[SnapshotEntry] | None:
        if step is None and phase is None:
            return self.snapshots
        items = self.snapshots.items
        for entry in items[self._filtered :]:
            for key in ((entry.step_name, None), (None, entry.phase), (entry.step_name, entry.phase)):
                timeline = self._filters.get(key)
                if timeline is None:
                    timeline = self._filters[key] = Timeline(_place, _created_at)
                timeline.items.append(entry)
        self._filtered = len(items)
        return self._filters.get((step, phase))


def first_end(entries: Iterable[SnapshotEntry], known: datetime | None) -> datetime | None:
    """Return the earliest of the times at which the snapshots end, and the one that is known."""
    for entry in entries:
        end = entry.retention_until
        if end is not None and (known is None or end < known):
            known = end
    return known


def expired(entry: SnapshotEntry, now: datetime) -> bool:
    """Whether the snapshot is no longer served at that time."""
    return entry.retention_until is not None and entry.retention_until < now


def _ids(entries: Sequence[SnapshotEntry]) -> list[str]:
    return [entry.snapshot_id for entry in entries]


def _in_order(pairs: Any, key: Callable[[Any], Any]) -> tuple[list[Any], list[bytes]]:
    ordered = sorted(pairs, key=lambda pair: key(pair[0]))
    return [entry for entry, _ in ordered], [data for _, data in ordered]
