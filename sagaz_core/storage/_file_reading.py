"""Reading some records of a saga's file: those that lie near each other in few calls, and every byte checked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from zlib import crc32

import ormsgpack

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._rows import Row, SnapshotEntry, digest
from sagaz_core.storage.base import Base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.storage._columns import Columns
    from sagaz_core.storage._file_segment import Segment

_AT_ONCE = 1 << 14


class Reading:
    """Reads records of a saga's file by their slots. `last` is the one that is farthest behind, as far as is known."""

    __slots__ = ("_end", "_held", "_segment", "_start")

    def __init__(self, segment: Segment, columns: Columns, last: int) -> None:
        self._segment = segment
        self._end = sum(columns.spans(last)[3:])
        self._start, self._held = 0, b""

    def _both(self, columns: Columns, slot: int) -> tuple[bytes, bytes]:
        """Return the record's row and its data."""
        at, size, checksum, place, data_size = columns.spans(slot)
        start, end = self._start, place + data_size
        if at < start or end > start + len(self._held):
            if end - at > _AT_ONCE:
                row = self._segment.row(at, size, checksum, columns.seqs[slot])
                return row, os.pread(self._segment.fd, data_size, place)
            self._start = start = at
            self._held = os.pread(self._segment.fd, max(end - at, min(_AT_ONCE, self._end - at)), at)
        row = self._held[at - start : at - start + size]
        if crc32(row) != checksum:
            raise damaged_row(self._segment, at, columns.seqs[slot])
        return row, self._held[place - start : end - start]

    def snapshot(self, slot: int) -> tuple[SnapshotEntry, bytes]:
        """Return the snapshot and its bytes. Raises `CorruptDataError` that names it."""
        columns = self._segment.index.snapshots
        packed, data = self._both(columns, slot)
        row = ormsgpack.unpackb(packed)
        if digest(data) != row[-2]:
            raise self._damaged(row[0])
        return columns.entry_of(slot, [*row, None]), data

    def base(self, slot: int) -> Base:
        """Return the snapshot as a base, which is less work. Raises `CorruptDataError` that names it."""
        packed, data = self._both(self._segment.index.snapshots, slot)
        row = ormsgpack.unpackb(packed)
        if digest(data) != row[-2]:
            raise self._damaged(row[0])
        return Base(row[0], data)

    def _damaged(self, snapshot_id: str) -> CorruptDataError:
        return CorruptDataError(
            f"snapshot {snapshot_id!r} of saga {self._segment.saga_id!r} is damaged in {self._segment.path}: "
            f"restore the file, or go on from another snapshot"
        )

    def event(self, slot: int) -> tuple[Row, bytes]:
        """Return the event's row and its bytes. Raises `CorruptDataError` that names it."""
        packed, data = self._both(self._segment.index.events, slot)
        row: Row = ormsgpack.unpackb(packed)
        if digest(data) != row[-2]:
            saga_id, path = self._segment.saga_id, self._segment.path
            raise CorruptDataError(f"event {row[0]} of saga {saga_id!r} is damaged in {path}: restore the file")
        return row, data


def read_snapshots(segment: Segment, slots: Sequence[int]) -> list[tuple[SnapshotEntry, bytes, tuple[Base, ...]]]:
    """Return the snapshots, with their bytes and their bases, each of which is read once. They are in order."""
    if not slots:
        return []
    columns, made = segment.index.snapshots, []
    reading, bases = Reading(segment, columns, slots[-1]), dict[int, Base]()
    for slot in slots:
        needed = columns.bases(slot)
        for base in needed:
            if base not in bases:
                bases[base] = reading.base(base)
        entry, data = reading.snapshot(slot)
        bases[slot] = Base(entry.snapshot_id, data)
        made.append((entry, data, tuple([bases[base] for base in needed])))
    return made


def read_events(segment: Segment, slots: Sequence[int]) -> list[tuple[Row, bytes]]:
    """Return the events' rows and their bytes. They are in order."""
    return list(map(Reading(segment, segment.index.events, slots[-1]).event, slots)) if slots else []


def damaged_row(segment: Segment, at: int, seq: int) -> CorruptDataError:
    """Return the error for a row that is not what it was when the file was read."""
    return CorruptDataError(
        f"{segment.path} {segment.whose()} was damaged at byte {at} while it was open, in what it says of "
        f"the record at {seq}: restore the file"
    )
