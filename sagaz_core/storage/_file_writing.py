"""Writing to a folder, and deleting from it: a saga's file under its lock, and the index before and after."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from sagaz_core.clock import monotonic
from sagaz_core.errors import CodecError, CorruptDataError, StorageError, StoreUnavailableError, UsageError
from sagaz_core.storage._checks import another_snapshot, check_batch, check_prune, raise_damaged
from sagaz_core.storage._file_catalog import facts_of
from sagaz_core.storage._file_core import FileCore
from sagaz_core.storage._file_ids import DamagedIndex
from sagaz_core.storage._file_index import boot_id
from sagaz_core.storage._file_log import try_lock, unlock
from sagaz_core.storage._file_segment import Segment
from sagaz_core.storage._rows import SnapshotEntry, micros
from sagaz_core.storage.base import Batch, checked_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class FileWriting(FileCore):
    """What a store does with batches, and how snapshots and sagas go."""

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        if batch.saga is None and batch.summary is None and not batch.events and not batch.snapshots:
            return
        segment_id = checked_id(batch.saga_id)
        with self._using(create=True):
            deadline = None
            while not self._written_or_repaired(self._segment(segment_id), batch):
                deadline = monotonic() + self._timeout if deadline is None else deadline
                if monotonic() > deadline:
                    raise StoreUnavailableError(f"another process of {self.path} writes the same snapshot: try again")

    def _written_or_repaired(self, segment: Segment, batch: Batch) -> bool:
        try:
            return self._written(segment, batch)
        except DamagedIndex:
            self._index.remake()
            return False

    def _written(self, segment: Segment, batch: Batch) -> bool:
        """Write the batch, or say that it has to be tried again."""
        self._begin_change(segment, create=True)
        try:
            news = segment.index.news(batch)
            if not news:
                return True
            changed = bool(news.record or news.summary or not segment.end) or _sooner(news.snapshots, segment)
            made = self._index.begin()
            try:
                for snapshot in news.snapshots:
                    others = self._index.ids.claim(snapshot.snapshot_id, segment.key)
                    if others and not self._free(others, snapshot.snapshot_id, batch):
                        return False
                if changed:
                    self._index.catalog.put(segment.key, batch.saga_id, None)
            finally:
                self._index.end()
            segment.write(batch.saga_id, news, sync=self._sync)
            if changed or made != self._index.made():
                self._tell(segment, [snapshot.snapshot_id for snapshot in news.snapshots])
            return True
        finally:
            unlock(segment.fd)

    def _free(self, keys: Sequence[bytes], snapshot_id: str, batch: Batch) -> bool:
        """Whether none of these sagas has the snapshot. Raises `DuplicateSagaError` when one has."""
        for key in keys:
            other = self._segment_of(key)
            if other.refresh():
                if other.index.snapshots.find(snapshot_id) is not None:
                    raise another_snapshot(next(s for s in batch.snapshots if s.snapshot_id == snapshot_id))
                if not try_lock(other.fd):
                    return False  # its writer may be about to write just this
                unlock(other.fd)
        return True

    def _tell(self, segment: Segment, snapshot_ids: Sequence[str]) -> None:
        """Tell the index what the saga's file says now, the snapshots also when it was made anew meanwhile."""
        with self._index.changing():
            for snapshot_id in snapshot_ids:
                self._index.ids.claim(snapshot_id, segment.key)
            facts = facts_of(segment.index)
            self._index.catalog.put(segment.key, segment.saga_id, facts, sync=self._sync and not boot_id())

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`."""
        results: list[Exception | None] = []
        for batch in batches:
            try:
                await self.write(batch)
            except StoreUnavailableError:
                raise
            except (UsageError, CodecError, StorageError) as error:
                results.append(error)
            else:
                results.append(None)
        return results

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        with self._using() as there:
            segment = self._segment(saga_id)
            if not there:
                return 0
            with self._changing(segment) as there:
                if not there:
                    return 0
                gone, hidden, served = segment.index.snapshots.below(below_seq, micros(self.clock()))
                self._delete(segment, gone, hidden)
                return served

    def _delete(self, segment: Segment, slots: Sequence[int], hidden_slots: Sequence[int]) -> None:
        if not slots and not hidden_slots:
            return
        gone, hidden = (list(map(segment.index.snapshots.id_of, some)) for some in (slots, hidden_slots))
        with self._index.changing():
            self._index.catalog.put(segment.key, segment.saga_id, None)
        segment.delete(gone, hidden, sync=self._sync)
        with self._index.changing():
            for snapshot_id in gone:
                self._index.ids.remove(snapshot_id, segment.key)
            self._index.catalog.put(segment.key, segment.saga_id, facts_of(segment.index))

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`. Of a damaged one the index keeps ids of snapshots that lead to nothing."""
        with self._using() as there:
            segment = self._segment(saga_id)
            if not there or not self._begin_change(segment, create=False, whole=False):
                return False
            try:
                return self._deleted(segment, saga_id)
            finally:
                unlock(segment.fd)
                segment.close()  # while it is open the disk keeps what was deleted

    def _deleted(self, segment: Segment, saga_id: str) -> bool:
        with suppress(CorruptDataError):
            if not segment.refresh():
                return False
        snapshot_ids = list(segment.readable_ids())
        with self._index.changing():
            self._index.catalog.put(segment.key, saga_id, None)
        os.unlink(segment.path)
        with self._index.changing():
            for snapshot_id in snapshot_ids:
                self._index.ids.remove(snapshot_id, segment.key)
            self._index.catalog.forget(segment.key, saga_id)
        return True

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`."""
        check_prune(now, batch)
        deleted, at = 0, micros(now)
        damaged: list[CorruptDataError] = []
        with self._using() as there:
            for saga_id, facts in list(self._known("", there)):
                if facts is None or (facts.first_end is not None and facts.first_end < at):
                    try:
                        deleted += self._pruned(saga_id, now, batch)
                    except CorruptDataError as error:
                        damaged.append(error)
        raise_damaged(damaged)
        return deleted

    def _pruned(self, saga_id: str, now: datetime, batch: int) -> int:
        deleted, part = 0, batch
        while part == batch:
            with self._changing(self._segment(saga_id)) as found:
                segment = self._segment(saga_id)
                gone = segment.index.snapshots.prunable(micros(now))[:batch] if found else []
                self._delete(segment, gone, ())
            part = len(gone)
            deleted += part
        return deleted


def _sooner(entries: Sequence[SnapshotEntry], segment: Segment) -> bool:
    known = segment.index.snapshots.first_end
    return any(
        known is None or micros(entry.retention_until) < known for entry in entries if entry.retention_until is not None
    )
