"""A saga's head object: its record and summary, the index of its events and snapshots, and their data while small.

Whatever is larger is in objects of its own, which the index names: so a saga of the usual size is one object, which one
conditional write changes as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ormsgpack

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._packed_rows import PackedRow, Parts, array_head, pack_rows, packed
from sagaz_core.storage._rows import (
    EventEntry,
    SnapshotEntry,
    event_row,
    snapshot_row,
    summary_from_row,
    summary_row,
)
from sagaz_core.storage._s3_objects import Version
from sagaz_core.storage._saga_index import News, SagaIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SMALL = 4096
"""Data of up to so many bytes are in the head."""
_MOST = 1 << 17
OWN = -1
"""The place of data that are in the snapshot's own object."""

Entry = EventEntry | SnapshotEntry


class Head:
    """The head as it was read. `version` is `None` when there is none.

    The place of an entry is `OWN`, an offset in `held`, or the name of an object in the saga's folder and an offset.
    """

    __slots__ = ("event_rows", "held", "index", "saga_id", "snapshot_rows", "version")

    def __init__(self, saga_id: str, read: memoryview | None = None, version: Version | None = None) -> None:
        self.saga_id, self.held, self.version = saga_id, b"", version
        self.event_rows, self.snapshot_rows = HeldRows(read), HeldRows(read)
        self.index = SagaIndex(self.event_rows.read, self.snapshot_rows.read, placed=False)

    @property
    def there(self) -> bool:
        """Whether there is such a saga."""
        return self.version is not None

    def piece(self, entry: Entry, others: Mapping[str, memoryview]) -> bytes:
        """Return the entry's data; `others` are the objects that are needed by name."""
        if isinstance(entry.place, int):
            return self.held[entry.place : entry.place + entry.size]
        name, start = entry.place
        return bytes(others[name][start : start + entry.size])

    def add(self, events: Iterable[PackedRow], snapshots: Iterable[PackedRow]) -> None:
        """Take in the rows of what is now stored."""
        for found in events:
            self.index.events.add(self.event_rows.added(found))
        for found in snapshots:
            self.index.snapshots.add(self.snapshot_rows.added(found))

    def event_entries(self) -> Iterator[EventEntry]:
        """Iterate all events in order."""
        return map(self.index.events.entry, self.index.events.line.order)

    def snapshot_entries(self) -> Iterator[SnapshotEntry]:
        """Iterate all snapshots in order."""
        return map(self.index.snapshots.entry, self.index.snapshots.line.order)


class HeldRows:
    """Packed rows: those of the head as it was read, and behind them those that were added since."""

    __slots__ = ("_added", "_end", "_read", "_start")

    def __init__(self, read: memoryview | None) -> None:
        self._read = memoryview(b"") if read is None else read
        self._start = self._end = 0
        self._added = bytearray()

    def lie(self, start: int, end: int) -> None:
        """Say where in the head as it was read they lie."""
        self._start, self._end = start, end

    def added(self, row: PackedRow) -> PackedRow:
        """Add a row, and return it with its place."""
        at = len(self._read) + len(self._added)
        self._added += row.packed
        return row._replace(at=at)

    def read(self, at: int, size: int, checksum: int, seq: int) -> bytes:
        """Return a row's bytes by its place. They were checked when the head was."""
        if at < len(self._read):
            return bytes(self._read[at : at + size])
        at -= len(self._read)
        return bytes(self._added[at : at + size])

    def packed(self) -> bytes:
        """Return the rows one behind the other."""
        return b"".join((self._read[self._start : self._end], self._added))


@dataclass(slots=True)
class Change:
    """A head as it is to be written, and the objects that have to be written before.

    `events` and `snapshots` are the rows that come behind those of the head, or all rows when it is `anew`.
    """

    held: bytearray
    events: list[PackedRow] = field(default_factory=list)
    snapshots: list[PackedRow] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    anew: bool = False


def changed(head: Head, news: News, name: str) -> Change:
    """Return the head with the news; `name` is that of a new object in the saga's folder, if one is needed."""
    change = Change(bytearray(head.held))
    large, events, snapshots = bytearray(), list[EventEntry](), list[SnapshotEntry]()
    small = [len(data) for data in (*news.event_data, *news.snapshot_data) if len(data) <= SMALL]
    if len(change.held) + sum(small) > _MOST:
        large += change.held
        change.held.clear()
        change.anew = True
        events += (_moved(entry, name) for entry in head.event_entries())
        snapshots += (_moved(entry, name) for entry in head.snapshot_entries())
    for event, data in zip(news.events, news.event_data, strict=True):
        events.append(event._replace(place=_put(data, change.held, large, name)))
    for snapshot, data in zip(news.snapshots, news.snapshot_data, strict=True):
        place = OWN if snapshot.size > SMALL else _put(data, change.held, large, name)
        snapshots.append(snapshot._replace(place=place))
    change.events, change.snapshots = pack_rows(map(event_row, events)), pack_rows(map(snapshot_row, snapshots))
    if large:
        change.objects[name] = bytes(large)
    return change


def without(head: Head) -> Change:
    """Return the head as it is, without the data of what was deleted from its index."""
    held = bytearray()
    events = pack_rows(event_row(_kept(head, entry, held)) for entry in head.event_entries())
    snapshots = pack_rows(snapshot_row(_kept(head, entry, held)) for entry in head.snapshot_entries())
    return Change(held, events, snapshots, anew=True)


def _kept(head: Head, entry: Any, held: bytearray) -> Any:
    if not isinstance(entry.place, int) or entry.place == OWN:
        return entry
    place = len(held)
    held += head.piece(entry, {})
    return entry._replace(place=place)


def _moved(entry: Any, name: str) -> Any:
    if not isinstance(entry.place, int) or entry.place == OWN:
        return entry
    return entry._replace(place=[name, entry.place])


def _put(data: bytes, held: bytearray, large: bytearray, name: str) -> Any:
    if len(data) <= SMALL and len(held) + len(data) <= _MOST:
        held += data
        return len(held) - len(data)
    large += data
    return [name, len(large) - len(data)]


def packed_head(head: Head, news: News, change: Change) -> bytes:
    """Return the bytes of the head as it is to be written. Raises `UsageError` for what cannot be stored."""
    index = head.index
    summary = news.summary or index.summary
    lead = head.saga_id, news.record or index.record, summary and summary_row(summary)
    parts = [array_head(6), *map(packed, lead)]
    for columns, rows, new in (
        (index.events, head.event_rows, change.events),
        (index.snapshots, head.snapshot_rows, change.snapshots),
    ):
        parts.append(array_head(len(new) if change.anew else len(columns) + len(new)))
        if not change.anew:
            parts.append(rows.packed())
        parts += (row.packed for row in new)
    return b"".join([*parts, packed(bytes(change.held))])


def unpacked_head(saga_id: str, data: memoryview, version: Version) -> Head:
    """Do the inverse of `packed_head`. Raises `CorruptDataError`."""
    try:
        parts = Parts(data)
        found, record, summary = parts.values(3)
        head = Head(found, data, version)
        for columns, rows in ((head.index.events, head.event_rows), (head.index.snapshots, head.snapshot_rows)):
            first = None
            for row in parts.rows():
                columns.add(row)
                first = row.at if first is None else first
            rows.lie(first or parts.at, parts.at)
        (head.held,) = parts.rest()
        head.index.says(record, summary and summary_from_row(summary))
    except (ormsgpack.MsgpackDecodeError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise CorruptDataError(f"the head of saga {saga_id!r} is damaged: {error}") from error
    return head
