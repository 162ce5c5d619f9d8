"""A saga's head object: its record and summary, the index of its events and snapshots, and their data while small.

Whatever is larger is in objects of its own, which the index names: so a saga of the usual size is one object, which one
conditional write changes as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ormsgpack

from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage._rows import (
    EventEntry,
    SnapshotEntry,
    event_from_row,
    event_row,
    snapshot_from_row,
    snapshot_row,
    summary_from_row,
    summary_row,
)
from sagaz_core.storage._s3_objects import Version
from sagaz_core.storage._saga_index import News, SagaIndex

SMALL = 4096
"""Data of up to so many bytes are in the head."""
_MOST = 1 << 17
OWN = -1
"""The place of data that are in the snapshot's own object."""

Entry = EventEntry | SnapshotEntry


@dataclass(slots=True)
class Head:
    """The head as it was read. `version` is `None` when there is none.

    The place of an entry is `OWN`, an offset in `held`, or the name of an object in the saga's folder and an offset.
    """

    saga_id: str
    index: SagaIndex = field(default_factory=SagaIndex)
    held: bytes = b""
    version: Version | None = None

    @property
    def there(self) -> bool:
        """Whether there is such a saga."""
        return self.version is not None

    def piece(self, entry: Entry, others: dict[str, bytes]) -> bytes:
        """Return the entry's data; `others` are the objects that are needed by name."""
        if isinstance(entry.place, int):
            return self.held[entry.place : entry.place + entry.size]
        name, start = entry.place
        return others[name][start : start + entry.size]


@dataclass(slots=True)
class Change:
    """A head as it is to be written, and the objects that have to be written before."""

    events: list[EventEntry]
    snapshots: list[SnapshotEntry]
    held: bytearray
    objects: dict[str, bytes] = field(default_factory=dict)


def changed(head: Head, news: News, name: str) -> Change:
    """Return the head with the news; `name` is that of a new object in the saga's folder, if one is needed."""
    change = Change(list(head.index.events.items), list(head.index.snapshots.items), bytearray(head.held))
    large = bytearray()
    small = [len(data) for data in (*news.event_data, *news.snapshot_data) if len(data) <= SMALL]
    if len(change.held) + sum(small) > _MOST:
        large += change.held
        change.held.clear()
        change.events = [_moved(entry, name) for entry in change.events]
        change.snapshots = [_moved(entry, name) for entry in change.snapshots]
    for event, data in zip(news.events, news.event_data, strict=True):
        change.events.append(event._replace(place=_put(data, change.held, large, name)))
    for snapshot, data in zip(news.snapshots, news.snapshot_data, strict=True):
        place = OWN if snapshot.size > SMALL else _put(data, change.held, large, name)
        change.snapshots.append(snapshot._replace(place=place))
    if large:
        change.objects[name] = bytes(large)
    return change


def without(head: Head) -> Change:
    """Return the head as it is, without the data of what was deleted from its index."""
    held = bytearray()
    events = [_kept(head, entry, held) for entry in head.index.events.items]
    return Change(events, [_kept(head, entry, held) for entry in head.index.snapshots.items], held)


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
    row = [
        *(head.saga_id, news.record or index.record, summary and summary_row(summary)),
        *([event_row(entry) for entry in change.events], [snapshot_row(entry) for entry in change.snapshots]),
        bytes(change.held),
    ]
    try:
        return ormsgpack.packb(row)
    except (ormsgpack.MsgpackEncodeError, UnicodeEncodeError) as error:
        raise UsageError(f"an object cannot store this text or number: {error}") from error


def unpacked_head(saga_id: str, data: bytes, version: Version) -> Head:
    """Do the inverse of `packed_head`. Raises `CorruptDataError`."""
    try:
        found, record, summary, events, snapshots, held = ormsgpack.unpackb(data)
        head = Head(found, SagaIndex(), held, version)
        event_entries = sorted(map(event_from_row, events), key=lambda entry: entry.seq)
        snapshot_entries = sorted(map(snapshot_from_row, snapshots), key=lambda entry: (entry.seq, entry.snapshot_id))
        head.index.add(record, summary and summary_from_row(summary), event_entries, snapshot_entries)
    except (ormsgpack.MsgpackDecodeError, ValueError, TypeError, IndexError) as error:
        raise CorruptDataError(f"the head of saga {saga_id!r} is damaged: {error}") from error
    return head
