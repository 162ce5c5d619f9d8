"""The log of replays of a folder of files. What is held in memory of it is where each replay's record is."""

from __future__ import annotations

import os

import ormsgpack

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._file_ids import open_file
from sagaz_core.storage._file_log import Damaged, append, framed, frames, locked, not_there
from sagaz_core.storage._packed_rows import packed
from sagaz_core.storage._rows import replay_from_row, replay_row
from sagaz_core.storage.base import ReplayRecord


class Replays:
    """The log at `path`. The last record under an id counts."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._end = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._original: dict[str, str] = {}
        self._of: dict[str, set[str]] = {}

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def put(self, record: ReplayRecord, timeout: float, *, sync: bool) -> None:
        """Write the record."""
        frame = framed(packed([*replay_row(record)]))
        if self._fd < 0:
            self._fd = open_file(self.path, create=True)
        with locked(self._fd, self.path, timeout):
            self.refresh()
            if os.fstat(self._fd).st_size > self._end:
                os.ftruncate(self._fd, self._end)
            append(self._fd, self._end, frame, sync=sync)
        self.refresh()

    def of(self, saga_id: str) -> list[ReplayRecord]:
        """Return the replays of that original, oldest first."""
        self.refresh()
        found = [self._record(replay_id) for replay_id in self._of.get(saga_id, ())]
        return sorted(found, key=lambda record: (record.created_at, record.replay_id))

    def count(self) -> int:
        """Return how many there are."""
        self.refresh()
        return len(self._places)

    def refresh(self) -> None:
        """Read what was added since."""
        if self._fd < 0:
            try:
                self._fd = open_file(self.path, create=False)
            except OSError as error:
                if not_there(error):
                    return
                raise
        try:
            for frame in frames(self._fd, self._end, os.fstat(self._fd).st_size):
                row = ormsgpack.unpackb(frame.head)
                self._take_in(row[0], row[1], (self._end, frame.end))
                self._end = frame.end
        except Damaged as damage:
            raise CorruptDataError(f"{self.path} is damaged at byte {damage.at}: restore the file") from damage

    def _take_in(self, replay_id: str, original: str, place: tuple[int, int]) -> None:
        before = self._original.get(replay_id)
        if before is not None:
            self._of[before].discard(replay_id)
        self._original[replay_id] = original
        self._places[replay_id] = place
        self._of.setdefault(original, set()).add(replay_id)

    def _record(self, replay_id: str) -> ReplayRecord:
        start, end = self._places[replay_id]
        try:
            frame = next(frames(self._fd, start, end))
        except Damaged as damage:
            raise CorruptDataError(f"{self.path} is damaged at byte {damage.at}: restore the file") from damage
        return replay_from_row(ormsgpack.unpackb(frame.head))
