"""One saga's file: frames of what was written together, and the index of them that is held in memory."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING
from zlib import crc32

import ormsgpack

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._file_ids import open_file
from sagaz_core.storage._file_log import (
    Damaged,
    Frame,
    append,
    body_offset,
    framed,
    frames,
    head_offset,
    not_there,
    sync_folder,
)
from sagaz_core.storage._file_reading import Reading, damaged_row, read_events
from sagaz_core.storage._packed_rows import PackedRow, Parts, array_head, packed
from sagaz_core.storage._room import OutOfRoom, Room
from sagaz_core.storage._rows import (
    Row,
    event_row,
    snapshot_row,
    summary_from_row,
    summary_row,
)
from sagaz_core.storage._saga_index import News, SagaIndex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sagaz_core.storage._columns import Columns, EventColumns
    from sagaz_core.storage._snapshot_columns import SnapshotColumns

logger = logging.getLogger(__name__)

LONG = 1024
"""The index of a saga with so many events or snapshots is on the disk, and not in memory."""
_WORTH_COMPACTING = 1 << 16
_BODY_AT_ONCE = 4_000_000
_ROWS_AT_ONCE = 256
_NONE = array_head(0)


def segment_key(saga_id: str) -> bytes:
    """Return what the saga's file is named by: no path is made from an id."""
    return blake2b(saga_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Segment:
    """A saga's file and its index, as far as it was read. `saga_id` is `""` while there is nothing in it.

    `asked` is the id by which it was asked for last, which an error names when it cannot be read from the file.
    `in_memory` says that the index of a long saga is, too, as there was no room for it on a disk. `opened` counts how
    often the file was opened: the number of a file that was closed is soon that of another one.
    """

    __slots__ = (
        *("_dead", "_read_only", "_room", "asked", "end", "fd", "in_memory"),
        *("index", "key", "opened", "path", "saga_id", "size"),
    )

    def __init__(self, key: bytes, path: str, room: Room) -> None:
        self.key, self.path, self._room = key, path, room
        self.asked = ""
        self.fd = -1
        self.opened = 0
        self.in_memory = self._read_only = False
        self._begin()

    def _begin(self) -> None:
        self.saga_id = ""
        self.index = SagaIndex(self.row, self.row, placed=True)
        self.end = self.size = self._dead = 0

    def close(self) -> None:
        """Let go of the file and of what it says; it is opened again, and read, when it is needed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.in_memory = False
        self._begin()

    # ---- reading

    def refresh(self) -> bool:
        """Read what was added since, and say whether there is anything. Raises `CorruptDataError` that names what."""
        if self.fd >= 0:
            found = os.fstat(self.fd)
            if not found.st_nlink or found.st_size < self.end:  # it was deleted, or written anew
                self.close()
        if self.fd < 0:
            try:
                self.fd = open_file(self.path, create=False)
            except OSError as error:
                if not not_there(error):
                    raise
                return False
            self.opened += 1
            self._read_only = fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            found = os.fstat(self.fd)
        self.size = found.st_size
        if self.size > self.end:
            self._read(self.size)
        return bool(self.saga_id)

    def _read(self, size: int) -> None:
        try:
            for frame in frames(self.fd, self.end, size):
                self._take_in(frame)
                self.end = frame.end
            self._settle()
        except OutOfRoom:
            self._stay_in_memory(size)
        except Damaged as damage:
            raise self._damaged(damage.at) from damage
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            damaged = self._damaged(self.end)
            self._begin()  # a part of the frame may have been taken in
            raise damaged from error

    def _take_in(self, frame: Frame) -> None:
        parts = Parts(frame.head)
        saga_id, record, summary = parts.values(3)
        if saga_id != self.saga_id and segment_key(saga_id) != self.key:
            raise ValueError("the file is that of another saga")
        place = self._add(self.index.events, parts.rows(), head_offset(frame), frame.body)
        self._add(self.index.snapshots, parts.rows(), head_offset(frame), place)
        gone, hidden = parts.rest()
        if gone or hidden:
            self._dead += self.index.snapshots.drop(gone, hidden)
        self._says(saga_id, record, summary)

    def _add(self, columns: EventColumns | SnapshotColumns, rows: Iterable[PackedRow], start: int, place: int) -> int:
        """Take in rows of a head that begins at `start`, and return where behind `place` their data end."""
        for found in rows:
            columns.add(found, start, place)
            place += found.row[-1]
        return place

    def _says(self, saga_id: str, record: Row | None, summary: Row | None) -> None:
        self.index.says(record, None if summary is None else summary_from_row(summary))
        self.saga_id = saga_id
        if (self.index.events.count >= LONG or self.index.snapshots.count >= LONG) and not self.in_memory:
            self._move_what_is_long()

    def _move_what_is_long(self) -> None:
        for columns in (self.index.events, self.index.snapshots):
            if columns.rows is None and columns.count >= LONG:
                columns.move_into(self._room)

    def _settle(self) -> None:
        self.index.events.settle()
        self.index.snapshots.settle()

    def _stay_in_memory(self, size: int) -> None:
        """Read the file anew up to there, without using more of the disk."""
        logger.warning("there is no room on a disk for the index of %s: it is held in memory", self.path)
        self._begin()
        self.in_memory, self.size = True, size
        self._read(size)

    def _damaged(self, at: int) -> CorruptDataError:
        last = self.index.snapshots.last_id
        before = "its first one" if last is None else f"the one after snapshot {last!r}"
        return CorruptDataError(
            f"{self.path} {self.whose()} is damaged at byte {at}, in {before}: restore the file; "
            f"what is before that byte can still be read"
        )

    def whose(self) -> str:
        """Return what an error says of whose file it is."""
        saga_id = self.saga_id or self.asked
        return f"of saga {saga_id!r}" if saga_id else "of a saga"

    def row(self, at: int, size: int, checksum: int, seq: int) -> bytes:
        """Return a record's row. Raises `CorruptDataError`."""
        row = os.pread(self.fd, size, at)
        if crc32(row) != checksum:
            raise damaged_row(self, at, seq)
        return row

    def readable_ids(self) -> Iterator[str]:
        """Iterate the ids of all snapshots but those that were damaged since the file was read."""
        for slot in self.index.snapshots.line.order:
            with suppress(CorruptDataError):
                yield self.index.snapshots.id_of(slot)

    # ---- writing, under the file's lock

    def check_writable(self) -> None:
        """Raise `PermissionError` when the file could be opened for reading only."""
        if self._read_only:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.path)

    def create(self) -> None:
        """Make the file if there is none."""
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        try:
            fd = os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            fd = os.open(self.path, flags, 0o600)
        os.close(fd)

    def write(self, saga_id: str, news: News, *, sync: bool) -> None:
        """Append what is new."""
        if sync and not self.end:
            sync_folder(os.path.dirname(self.path))
        about = packed([saga_id, news.record, news.summary and summary_row(news.summary)])
        parts = [array_head(7), about[1:]]
        events = _put_rows(parts, [event_row(entry)[:-1] for entry in news.events])
        snapshots = _put_rows(parts, [snapshot_row(entry)[:-1] for entry in news.snapshots])
        head = b"".join((*parts, _NONE, _NONE))
        frame = self._append(head, b"".join([*news.event_data, *news.snapshot_data]), sync=sync)
        try:  # what `_take_in` does, without looking for the rows
            place = self._add(self.index.events, events, head_offset(frame), frame.body)
            self._add(self.index.snapshots, snapshots, head_offset(frame), place)
            self._says(*(ormsgpack.unpackb(about) if news.record or news.summary else (saga_id, None, None)))
            self.end = frame.end
            self._settle()
        except OutOfRoom:
            self._stay_in_memory(frame.end)

    def delete(self, gone: Sequence[str], hidden: Sequence[str], *, sync: bool) -> None:
        """Have the snapshots in `gone` no longer, and keep those in `hidden` as bases alone."""
        head = packed([self.saga_id, None, None, (), (), list(gone), list(hidden)])
        self._read(self._append(head, b"", sync=sync).end)
        if self._dead > max(_WORTH_COMPACTING, self.end // 2):
            self._compact()

    def _append(self, head: bytes, body: bytes, *, sync: bool) -> Frame:
        append(self.fd, self.end, framed(head, body), sync=sync)
        place = self.end + body_offset(head)
        self.size = place + len(body)
        return Frame(head, place, self.size)

    def cut_off(self) -> None:
        """Cut off what a writer left that died in the middle."""
        if self.size > self.end:
            os.ftruncate(self.fd, self.end)

    def _compact(self) -> None:
        """Write the file anew without what was deleted."""
        index, new = self.index, f"{self.path}.new"
        fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            summary = index.summary and summary_row(index.summary)
            end = _put(fd, 0, [self.saga_id, index.record, summary, (), (), (), ()], b"")
            head: Row = [self.saga_id, None, None]
            for part in _parts(index.events):
                events = read_events(self, part)
                rows = [row for row, _ in events]
                end = _put(fd, end, [*head, rows, (), (), ()], b"".join(data for _, data in events))
            for part in _parts(index.snapshots):
                snapshots = list(map(Reading(self, index.snapshots, part[-1]).snapshot, part))
                rows = [snapshot_row(entry)[:-1] for entry, _ in snapshots]
                end = _put(fd, end, [*head, (), rows, (), ()], b"".join(data for _, data in snapshots))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, self.path)
        sync_folder(os.path.dirname(self.path))
        self.close()
        self.refresh()


def _put_rows(parts: list[bytes], rows: list[Row]) -> list[PackedRow]:
    """Put the rows behind the other parts of a head, and return where in it they are."""
    parts.append(array_head(len(rows)))
    at, made = sum(map(len, parts)), []
    for row in rows:
        part = packed(row)
        made.append(PackedRow(row, at, part))
        parts.append(part)
        at += len(part)
    return made


def _put(fd: int, end: int, head: Row, body: bytes) -> int:
    frame = framed(packed(head), body)
    append(fd, end, frame, sync=False)
    return end + len(frame)


def _parts(columns: Columns) -> Iterator[list[int]]:
    """Iterate the slots in order, in parts that are written together."""
    part, size = list[int](), 0
    for slot in columns.line.order:
        part.append(slot)
        size += columns.sizes[slot]
        if size > _BODY_AT_ONCE or len(part) == _ROWS_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part
