"""One saga's file: frames of what was written together, and the index of them that is held in memory."""

from __future__ import annotations

import errno
import fcntl
import os
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import ormsgpack

from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage._file_ids import open_file
from sagaz_core.storage._file_log import Damaged, Frame, append, body_offset, framed, frames, not_there, sync_folder
from sagaz_core.storage._rows import (
    EventEntry,
    Row,
    SnapshotEntry,
    digest,
    event_from_row,
    event_row,
    snapshot_from_row,
    snapshot_row,
    summary_from_row,
    summary_row,
)
from sagaz_core.storage._saga_index import News, SagaIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.storage.base import SagaSummary

_WORTH_COMPACTING = 1 << 16
_BODY_AT_ONCE = 4_000_000


def segment_key(saga_id: str) -> bytes:
    """Return what the saga's file is named by: no path is made from an id."""
    return blake2b(saga_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Segment:
    """A saga's file and its index, as far as it was read. `saga_id` is `""` while there is nothing in it.

    `asked` is the id by which it was asked for last, which an error names when it cannot be read from the file.
    `opened` counts how often the file was opened: the number of a file that was closed is soon that of another one.
    """

    __slots__ = ("_dead", "_place", "asked", "end", "fd", "index", "key", "opened", "path", "saga_id", "size")

    def __init__(self, key: bytes, path: str) -> None:
        self.key, self.path = key, path
        self.asked = ""
        self.fd = -1
        self.opened = 0
        self._forget()

    def _forget(self) -> None:
        self.close()
        self.saga_id = ""
        self.index = SagaIndex()
        self.end = self.size = self._dead = 0
        self._place: tuple[int, int] | None = None

    def close(self) -> None:
        """Let go of the file; it is opened again when it is needed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # ---- reading

    def refresh(self) -> bool:
        """Read what was added since, and say whether there is anything. Raises `CorruptDataError` that names what."""
        if self.fd >= 0:
            found = os.fstat(self.fd)
            if not found.st_nlink or found.st_size < self.end:  # it was deleted, or written anew
                self._forget()
        if self.fd < 0:
            try:
                self.fd = open_file(self.path, create=False)
            except OSError as error:
                if not not_there(error):
                    raise
                self._forget()
                return False
            self.opened += 1
            found = os.fstat(self.fd)
            place = found.st_dev, found.st_ino
            if place != self._place or found.st_size < self.end:
                fd, self.fd = self.fd, -1
                self._forget()
                self.fd, self._place = fd, place
        self.size = found.st_size
        if self.size > self.end:
            self._read(self.size)
        return bool(self.saga_id)

    def _read(self, size: int) -> None:
        try:
            for frame in frames(self.fd, self.end, size):
                self._take_in(frame)
                self.end = frame.end
        except Damaged as damage:
            raise self._damaged(damage.at) from damage
        except (ormsgpack.MsgpackDecodeError, ValueError, TypeError, IndexError) as error:
            raise self._damaged(self.end) from error

    def _take_in(self, frame: Frame) -> None:
        saga_id, record, summary, events, snapshots, gone, hidden = ormsgpack.unpackb(frame.head)
        if segment_key(saga_id) != self.key:
            raise ValueError("the file is that of another saga")
        if gone or hidden:
            self._drop(gone, hidden)
        place = frame.body
        event_entries, snapshot_entries = [], []
        for row in events:
            event_entries.append(event_from_row([*row, place]))
            place += row[-1]
        for row in snapshots:
            snapshot_entries.append(snapshot_from_row([*row, place]))
            place += row[-1]
        self.index.add(record, summary and summary_from_row(summary), event_entries, snapshot_entries)
        self.saga_id = saga_id

    def _damaged(self, at: int) -> CorruptDataError:
        items = self.index.snapshots.items
        before = f"the one after snapshot {items[-1].snapshot_id!r}" if items else "its first one"
        saga_id = self.saga_id or self.asked
        whose = f"of saga {saga_id!r}" if saga_id else "of a saga"
        return CorruptDataError(
            f"{self.path} {whose} is damaged at byte {at}, in {before}: restore the file; "
            f"what is before that byte can still be read"
        )

    def data(self, entry: SnapshotEntry) -> bytes:
        """Return the snapshot's bytes. Raises `CorruptDataError` that names it."""
        found = os.pread(self.fd, entry.size, entry.place) if entry.size else b""
        if digest(found) != entry.digest:
            raise CorruptDataError(
                f"snapshot {entry.snapshot_id!r} of saga {self.saga_id!r} is damaged in {self.path}: "
                f"restore the file, or go on from another snapshot"
            )
        return found

    def event_data(self, entry: EventEntry) -> bytes:
        """Return the event's bytes. Raises `CorruptDataError` that names it."""
        found = os.pread(self.fd, entry.size, entry.place) if entry.size else b""
        if digest(found) != entry.digest:
            raise CorruptDataError(
                f"event {entry.seq} of saga {self.saga_id!r} is damaged in {self.path}: restore the file"
            )
        return found

    # ---- writing, under the file's lock

    def check_writable(self) -> None:
        """Raise `PermissionError` when the file could be opened for reading only."""
        if fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
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
        events, snapshots = news.events, news.snapshots
        if sync and not self.end:
            sync_folder(os.path.dirname(self.path))
        body = b"".join([*news.event_data, *news.snapshot_data])
        place = self._append(
            [
                *(saga_id, news.record, news.summary and summary_row(news.summary)),
                *([event_row(entry)[:-1] for entry in events], [snapshot_row(entry)[:-1] for entry in snapshots]),
                *((), ()),
            ],
            body,
            sync=sync,
        )
        self.saga_id = saga_id
        placed_events, placed = [], []
        for event in events:
            placed_events.append(event._replace(place=place))
            place += event.size
        for snapshot in snapshots:
            placed.append(snapshot._replace(place=place))
            place += snapshot.size
        self.index.add(news.record, _own(news.summary), placed_events, placed)

    def delete(self, gone: Sequence[str], hidden: Sequence[str], *, sync: bool) -> None:
        """Have the snapshots in `gone` no longer, and keep those in `hidden` as bases alone."""
        self._append([self.saga_id, None, None, (), (), list(gone), list(hidden)], b"", sync=sync)
        self._drop(gone, hidden)
        if self._dead > max(_WORTH_COMPACTING, self.end // 2):
            self._compact()

    def _drop(self, gone: Sequence[str], hidden: Sequence[str]) -> None:
        self._dead += sum(entry.size + 100 for entry in self.index.drop(gone, hidden))

    def _append(self, head: Row, body: bytes, *, sync: bool) -> int:
        packed_head = packed(head)
        append(self.fd, self.end, framed(packed_head, body), sync=sync)
        place = self.end + body_offset(packed_head)
        self.end = place + len(body)
        return place

    def cut_off(self) -> None:
        """Cut off what a writer left that died in the middle."""
        if self.size > self.end:
            os.ftruncate(self.fd, self.end)

    def _compact(self) -> None:
        """Write the file anew without what was deleted."""
        index, new = self.index, f"{self.path}.new"
        fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            head: Row = [self.saga_id, index.record, index.summary and summary_row(index.summary)]
            end = _put(fd, 0, [*head, (), (), (), ()], b"")
            head = [self.saga_id, None, None]
            for events in _parts(index.events.items):
                rows = [event_row(entry)[:-1] for entry in events]
                end = _put(fd, end, [*head, rows, (), (), ()], b"".join(map(self.event_data, events)))
            for snapshots in _parts(index.snapshots.items):
                rows = [snapshot_row(entry)[:-1] for entry in snapshots]
                end = _put(fd, end, [*head, (), rows, (), ()], b"".join(map(self.data, snapshots)))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, self.path)
        sync_folder(os.path.dirname(self.path))
        self._forget()
        self.refresh()


def _put(fd: int, end: int, head: Row, body: bytes) -> int:
    frame = framed(packed(head), body)
    append(fd, end, frame, sync=False)
    return end + len(frame)


def _parts(entries: Sequence[Any]) -> list[list[Any]]:
    parts: list[list[Any]] = []
    size = _BODY_AT_ONCE
    for entry in entries:
        if size >= _BODY_AT_ONCE:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += entry.size + 100
    return parts


def packed(row: Row) -> bytes:
    """Return the row as bytes. Raises `UsageError` for what cannot be stored."""
    try:
        return ormsgpack.packb(row)
    except (ormsgpack.MsgpackEncodeError, UnicodeEncodeError) as error:
        raise UsageError(f"a file cannot store this text or number: {error}") from error


def _own(summary: SagaSummary | None) -> SagaSummary | None:
    return summary and summary_from_row(summary_row(summary))
