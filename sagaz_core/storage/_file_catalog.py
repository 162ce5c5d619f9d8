"""What is known of every saga without opening its file: its id, what it can be found by, and when it has to be pruned.

A log, whose last entry on a saga counts. An entry without facts is written before a saga's file changes in a way that
matters here, one with them afterwards: so a writer that died between them leaves one who looks to ask the file itself.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

import ormsgpack

from sagaz_core.storage._file_ids import DamagedIndex, open_file
from sagaz_core.storage._file_log import Damaged, append, framed, frames, not_there
from sagaz_core.storage._rows import Row, micros_or_none

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.storage._saga_index import SagaIndex

_WORTH_COMPACTING = 1 << 20
_END = struct.Struct("<QQ")


class Facts(NamedTuple):
    """What a saga's file says that is wanted of all sagas. Times are in microseconds."""

    recorded: bool
    name: str | None
    status: str
    step: str
    failed_at: int | None
    tags: dict[str, str]
    first_end: int | None


def facts_of(index: SagaIndex) -> Facts:
    """Return the facts of a saga."""
    recorded, summary, first_end = index.record is not None, index.summary, index.snapshots.first_end
    if summary is None:
        return Facts(recorded, None, "", "", None, {}, first_end)
    failed_at, tags = micros_or_none(summary.failed_at), dict(summary.tags)
    return Facts(recorded, summary.saga_name, summary.status, summary.step_name, failed_at, tags, first_end)


class Catalog:
    """The log in `folder`, and what it says as far as it was read.

    It is written under the lock of the index, whose file `lock` says which file the log is and where it ends: so nobody
    who writes has to read it, and what a writer left that died in the middle is written over.
    """

    def __init__(self, folder: str, lock: int) -> None:
        self.path = os.path.join(folder, "catalog")
        self._lock = lock
        self._fd = -1
        self._forget()

    def _forget(self) -> None:
        self.sagas: dict[str, tuple[bytes, Facts | None]] = {}
        self._place = self._read = self._entries = 0
        self._ordered: list[str] | None = None

    def close(self) -> None:
        """Let go of the file and of what it says."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._forget()

    def put(self, key: bytes, saga_id: str, facts: Facts | None, *, sync: bool = False) -> None:
        """Write what the saga's file says now; `None` when it is about to change."""
        self._append([key, saga_id, 0, facts and list(facts)], sync)

    def forget(self, key: bytes, saga_id: str) -> None:
        """Write that there is no such saga any more."""
        self._append([key, saga_id, 1, None], False)

    def _append(self, row: Row, sync: bool) -> None:
        end = self._end(create=True)
        if os.fstat(self._fd).st_size > end:
            os.ftruncate(self._fd, end)
        frame = framed(ormsgpack.packb(row))
        append(self._fd, end, frame, sync=sync)
        os.pwrite(self._lock, _END.pack(end + len(frame), self._place), 0)

    def _end(self, *, create: bool) -> int:
        """Open the log that there is now, and return where it ends."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            if not not_there(error):
                raise
            self.close()
            if not create:
                return 0
        else:
            if found.st_ino != self._place:
                self.close()
        if self._fd < 0:
            self._fd = open_file(self.path, create=create)
            self._place = os.fstat(self._fd).st_ino
        known = os.pread(self._lock, _END.size, 0)
        if len(known) == _END.size:
            end, place = _END.unpack(known)
            if place == self._place:
                return int(end)
        return os.fstat(self._fd).st_size  # it was just written anew

    def refresh(self) -> None:
        """Read what was added since. Raises `DamagedIndex`."""
        end = self._end(create=False)
        if end <= self._read:
            return
        try:
            for frame in frames(self._fd, self._read, end):
                self._take_in(ormsgpack.unpackb(frame.head))
                self._read = frame.end
        except (Damaged, ValueError, TypeError) as error:
            raise DamagedIndex from error
        if self._read != end:
            raise DamagedIndex

    def _take_in(self, row: Row) -> None:
        key, saga_id, gone, facts = row
        self._entries += 1
        if gone:
            if self.sagas.pop(saga_id, None):
                self._ordered = None
            return
        if saga_id not in self.sagas:
            self._ordered = None
        self.sagas[saga_id] = key, None if facts is None else Facts(*facts)

    def ids(self, start: str) -> list[str]:
        """Return the ids of all sagas from `start` on, in order."""
        if self._ordered is None:
            self._ordered = sorted(self.sagas)
        return self._ordered[bisect_left(self._ordered, start) :]

    @property
    def wasteful(self) -> bool:
        """Whether the log is much longer than it has to be."""
        return self._read > _WORTH_COMPACTING and self._entries > 4 * len(self.sagas)

    def compact(self) -> None:
        """Write the log anew, with one entry a saga."""
        self.replace((key, saga_id, facts) for saga_id, (key, facts) in self.sagas.items())

    def replace(self, entries: Iterable[tuple[bytes, str, Facts | None]]) -> None:
        """Write the log anew."""
        new, end = f"{self.path}.new", 0
        fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            for key, saga_id, facts in entries:
                frame = framed(ormsgpack.packb([key, saga_id, 0, facts and list(facts)]))
                append(fd, end, frame, sync=False)
                end += len(frame)
        finally:
            os.close(fd)
        # The number of a file that is gone may be given again: what was said of the old one must not be taken for this.
        os.pwrite(self._lock, _END.pack(0, 0), 0)
        os.replace(new, self.path)
        os.pwrite(self._lock, _END.pack(end, os.stat(self.path).st_ino), 0)
