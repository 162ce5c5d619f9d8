"""One saga's records without their bytes, in order: what stores answer from that have no database to ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import UsageError
from sagaz_core.storage._checks import MAX_SEQ, another_event, another_saga, another_snapshot
from sagaz_core.storage._columns import EventColumns
from sagaz_core.storage._rows import EventEntry, Row, SnapshotEntry, event_entry, saga_row, snapshot_entry
from sagaz_core.storage._snapshot_columns import SnapshotColumns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sagaz_core.storage.base import Batch, SagaSnapshot, SagaSummary, StoredEvent

    Read = Callable[[int, int, int, int], bytes]

_LARGEST = 2**32 - 1
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


@dataclass(slots=True)
class Elsewhere:
    """Records of a saga that are not in its index, by `seq` and by id."""

    events: dict[int, EventEntry] = field(default_factory=dict)
    snapshots: dict[str, SnapshotEntry] = field(default_factory=dict)


class SagaIndex:
    """The index of one saga. `record` is its row; how the rows of others are read is said by the store."""

    __slots__ = ("events", "record", "snapshots", "summary")

    def __init__(self, read_event: Read, read_snapshot: Read, *, placed: bool) -> None:
        self.record: Row | None = None
        self.summary: SagaSummary | None = None
        self.events = EventColumns(read_event, placed=placed)
        self.snapshots = SnapshotColumns(read_snapshot, placed=placed)

    def says(self, record: Row | None, summary: SagaSummary | None) -> None:
        """Take in what is now stored; `None` is no news."""
        self.record = record or self.record
        self.summary = summary or self.summary

    def news(self, batch: Batch, elsewhere: Elsewhere | None = None) -> News:
        """Return what the batch would add. Raises `DuplicateSagaError` when it does not fit to what is there.

        Of what is in the saga and not in here, all that the batch may have again is `elsewhere`.
        """
        news, other = News(), elsewhere or Elsewhere()
        if batch.saga is not None:
            row = saga_row(batch.saga)
            if self.record is None:
                news.record = row
            elif row != self.record:
                raise another_saga(batch.saga)
        if batch.events:
            self._new_events(batch.events, other.events, news)
        if batch.snapshots:
            self._new_snapshots(batch.snapshots, other.snapshots, news)
        if batch.summary is not None and (self.summary is None or batch.summary.seq > self.summary.seq):
            news.summary = batch.summary
        return news

    def _new_events(self, events: Sequence[StoredEvent], others: Mapping[int, EventEntry], news: News) -> None:
        new: dict[int, tuple[EventEntry, bytes]] = {}
        for event in events:
            entry, slot = event_entry(event), self.events.find(event.seq)
            known = others.get(event.seq) if slot is None else self.events.entry(slot)
            if known is None:
                _check_numbers(entry.seq, None, entry.size)
                known = new.setdefault(event.seq, (entry, event.data))[0]
            if known[:-1] != entry[:-1]:
                raise another_event(event)
        news.events, news.event_data = _in_order(new.values(), _seq)

    def _new_snapshots(
        self, snapshots: Sequence[SagaSnapshot], others: Mapping[str, SnapshotEntry], news: News
    ) -> None:
        new: dict[str, tuple[SnapshotEntry, bytes]] = {}
        for snapshot in snapshots:
            entry, slot = snapshot_entry(snapshot), self.snapshots.find(snapshot.snapshot_id)
            known = others.get(snapshot.snapshot_id) if slot is None else self.snapshots.entry(slot)
            if known is None:
                _check_numbers(entry.seq, entry.base_seq, entry.size)
                known = new.setdefault(snapshot.snapshot_id, (entry, snapshot.data))[0]
            if known[:-1] != entry[:-1]:
                raise another_snapshot(snapshot)
        news.snapshots, news.snapshot_data = _in_order(new.values(), _place)


def _check_numbers(seq: int, base_seq: int | None, size: int) -> None:
    if not -MAX_SEQ <= seq <= MAX_SEQ or (base_seq or 0) < -MAX_SEQ or size > _LARGEST:
        raise UsageError(f"this store cannot hold {size:,} bytes at {seq}: a number of 64 bits, and 4 GB, are the most")


def _in_order(pairs: Any, key: Callable[[Any], Any]) -> tuple[list[Any], list[bytes]]:
    ordered = sorted(pairs, key=lambda pair: key(pair[0]))
    return [entry for entry, _ in ordered], [data for _, data in ordered]
