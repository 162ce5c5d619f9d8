"""Rows of a saga's records with their small data, as they are in its head and in its pages, and how they are packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import ormsgpack

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._columns import EventColumns
from sagaz_core.storage._packed_rows import PackedRow, Parts, array_head, pack_rows, packed
from sagaz_core.storage._rows import EventEntry, SnapshotEntry, event_row, snapshot_row
from sagaz_core.storage._s3_keys import data_folder, own_name, snapshot_key
from sagaz_core.storage._snapshot_columns import SnapshotColumns
from sagaz_core.storage.snapshot_ids import named

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SMALL = 4096
"""Data of up to so many bytes are beside their row."""
CLAIMED, OWN = -1, -2
"""The places of a snapshot's data that are in the object of its id, and in one of their own in the saga's folder."""
DAMAGE = ormsgpack.MsgpackDecodeError, ValueError, TypeError, IndexError, OverflowError
"""What packed bytes raise that were changed."""

Entry = EventEntry | SnapshotEntry
Place = tuple[int, str]
"""Where a record stands among those of its kind: `seq`, and of a snapshot its id."""


class EventRows(NamedTuple):
    """Events in order, and what an offset is of that is an entry's place."""

    columns: EventColumns
    held: bytes


class SnapshotRows(NamedTuple):
    """Snapshots in order; see `EventRows`."""

    columns: SnapshotColumns
    held: bytes


class HeldRows:
    """Packed rows: those that were read, and behind them those that were added since."""

    __slots__ = ("_added", "_end", "_read", "_start")

    def __init__(self, read: memoryview | None) -> None:
        self._read = memoryview(b"") if read is None else read
        self._start = self._end = 0
        self._added = bytearray()

    def lie(self, start: int, end: int) -> None:
        """Say where in what was read they lie."""
        self._start, self._end = start, end

    def added(self, row: PackedRow) -> PackedRow:
        """Add a row, and return it with its place."""
        at = len(self._read) + len(self._added)
        self._added += row.packed
        return row._replace(at=at)

    def read(self, at: int, size: int, checksum: int, seq: int) -> bytes:
        """Return a row's bytes by its place. They were checked when they were read."""
        if at < len(self._read):
            return bytes(self._read[at : at + size])
        at -= len(self._read)
        return bytes(self._added[at : at + size])

    @property
    def size(self) -> int:
        """How many bytes they are."""
        return self._end - self._start + len(self._added)

    def packed(self) -> bytes:
        """Return the rows one behind the other."""
        return b"".join((self._read[self._start : self._end], self._added))


class Item(NamedTuple):
    """A record on its way to another place. `data` is `None` where they are in another object, as its place says."""

    entry: Any
    data: bytes | None


def place_of(entry: Entry) -> Place:
    """Return where the record stands among the others."""
    return entry.seq, entry.snapshot_id if isinstance(entry, SnapshotEntry) else ""


def row_of(entry: Entry) -> list[Any]:
    """Return the record as plain values."""
    return snapshot_row(entry) if isinstance(entry, SnapshotEntry) else event_row(entry)


def entries(rows: EventRows | SnapshotRows) -> Iterator[Any]:
    """Iterate all of them in order."""
    return map(rows.columns.entry, rows.columns.line.order)


def items(rows: EventRows | SnapshotRows) -> list[Item]:
    """Return all of them in order, with their data."""
    return [Item(entry, piece(rows.held, entry, {}) if is_held(entry) else None) for entry in entries(rows)]


def is_held(entry: Entry) -> bool:
    """Whether the record's data are beside its row."""
    return isinstance(entry.place, int) and entry.place >= 0


def is_apart(entry: SnapshotEntry) -> bool:
    """Whether the snapshot's data are in an object that has no others."""
    return entry.place in (CLAIMED, OWN)


def is_claimed(saga_id: str, entry: SnapshotEntry) -> bool:
    """Whether there is an object which says that the snapshot's id is this saga's: not if the id itself says so."""
    return entry.place == CLAIMED or (entry.place != OWN and needs_claim(saga_id, entry))


def needs_claim(saga_id: str, entry: SnapshotEntry) -> bool:
    """Whether the snapshot's id could be another saga's as well."""
    return named(entry.snapshot_id) != (saga_id, entry.seq)


def object_key(saga_id: str, entry: SnapshotEntry) -> str | None:
    """Return the key of the object that the snapshot has besides its row, if there is one."""
    if entry.place == OWN:
        return f"{data_folder(saga_id)}/{own_name(entry.snapshot_id, entry.digest)}"
    return snapshot_key(entry.snapshot_id) if is_claimed(saga_id, entry) else None


def piece(held: bytes, entry: Entry, others: Mapping[str, memoryview]) -> bytes:
    """Return the entry's data; `others` are the objects that are needed by name."""
    if isinstance(entry.place, int):
        return held[entry.place : entry.place + entry.size]
    name, start = entry.place
    return bytes(others[name][start : start + entry.size])


def put_behind(held: bytearray, some: Iterable[Item]) -> list[PackedRow]:
    """Put the data behind those that are held, and return the rows. Raises `UsageError` for what cannot be stored."""
    rows = []
    for entry, data in some:
        if data is not None:
            entry = entry._replace(place=len(held))
            held += data
        rows.append(row_of(entry))
    return pack_rows(rows)


def read_rows(parts: Parts, columns: EventColumns | SnapshotColumns, rows: HeldRows) -> None:
    """Take in the rows that are the next value."""
    first = None
    for row in parts.rows():
        columns.add(row)
        first = row.at if first is None else first
    rows.lie(first or parts.at, parts.at)


# ---- pages


def packed_page(saga_id: str, some: Iterable[Item]) -> bytes:
    """Return the bytes of a page of these records."""
    held = bytearray()
    rows = put_behind(held, some)
    parts = [array_head(3), packed(saga_id), array_head(len(rows)), *(row.packed for row in rows), packed(bytes(held))]
    return b"".join(parts)


def event_rows(data: memoryview) -> EventRows:
    """Do the inverse of `packed_page` for one of events. Raises `CorruptDataError`."""
    rows = HeldRows(data)
    columns = EventColumns(rows.read, placed=False)
    return EventRows(columns, _read_page(data, columns, rows))


def snapshot_rows(data: memoryview) -> SnapshotRows:
    """Do the inverse of `packed_page` for one of snapshots. Raises `CorruptDataError`."""
    rows = HeldRows(data)
    columns = SnapshotColumns(rows.read, placed=False)
    return SnapshotRows(columns, _read_page(data, columns, rows))


def _read_page(data: memoryview, columns: EventColumns | SnapshotColumns, rows: HeldRows) -> bytes:
    try:
        parts = Parts(data)
        parts.values(1)
        read_rows(parts, columns, rows)
        (held,) = parts.rest()
    except DAMAGE as error:
        raise CorruptDataError(f"its rows are damaged: {error}") from error
    return bytes(held)
