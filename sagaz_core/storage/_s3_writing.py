"""Writing to a bucket, and deleting from it: each on the condition that the head is still the one that was read."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import ormsgpack

from sagaz_core.clock import new_id, utc_now
from sagaz_core.errors import (
    CodecError,
    CorruptDataError,
    DuplicateSagaError,
    StorageError,
    StoreUnavailableError,
    UsageError,
)
from sagaz_core.storage._checks import another_snapshot, check_batch, check_prune, contested, raise_damaged
from sagaz_core.storage._rows import SnapshotEntry, micros, summary_from_row, summary_row
from sagaz_core.storage._s3_core import HEADS_AT_ONCE, S3Core, sound
from sagaz_core.storage._s3_head import OWN, SMALL, Head, changed, packed_head, without
from sagaz_core.storage._s3_keys import SNAPSHOTS, data_folder, saga_key, snapshot_key
from sagaz_core.storage._s3_objects import Changed, all_of
from sagaz_core.storage._saga_index import News
from sagaz_core.storage.base import Batch, checked_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


_TRIES = 50
_ABANDONED = timedelta(hours=1)


class S3Writing(S3Core):
    """What a store does with batches, and how snapshots and sagas go."""

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        if batch.saga is None and batch.summary is None and not batch.events and not batch.snapshots:
            return
        saga_id = checked_id(batch.saga_id)
        head = self._known.get(saga_id)
        fresh = False
        if head is None:
            # Who brings the record begins the saga: should it be there already, the condition of the write tells.
            fresh = batch.saga is None
            head = await self._head(saga_id) if fresh else Head(saga_id)
        for _ in range(_TRIES):
            try:
                news = head.index.news(batch)
                if (news and await self._written(head, news, batch)) or (not news and fresh):
                    return
            except DuplicateSagaError:
                if fresh:
                    raise
            head, fresh = await self._head(saga_id), True
        raise StoreUnavailableError(f"the store {self._objects.shown} has too many writers of saga {saga_id!r} at once")

    async def _written(self, head: Head, news: News, batch: Batch) -> bool:
        """Write the news, or say that the head is not what it was."""
        before, claimed = head.version, list[str]()
        try:
            pairs = zip(news.snapshots, news.snapshot_data, strict=True)
            fits = await all_of([self._claim(head, entry, data, batch, claimed) for entry, data in pairs])
            if not all(fits) or head.version != before:
                return False
            change = changed(head, news, new_id())
            body = packed_head(head, news, change)
            folder = data_folder(head.saga_id)
            for name, data in change.objects.items():
                await self._objects.put(f"{folder}/{name}", data, always=True)
            version = await self._objects.put(saga_key(head.saga_id), body, known=before)
        except Changed:
            self._known.pop(head.saga_id, None)
            return False
        except (CodecError, DuplicateSagaError, UsageError):
            self._known.pop(head.saga_id, None)
            await self._objects.delete(claimed)
            raise
        if head.version != before or change.anew or change.objects:
            self._known.pop(head.saga_id, None)
            return True
        head.held, head.version = bytes(change.held), version
        head.index.says(news.record, news.summary and summary_from_row(summary_row(news.summary)))
        head.add(change.events, change.snapshots)
        self._remember(head)
        return True

    async def _claim(self, head: Head, entry: SnapshotEntry, data: bytes, batch: Batch, claimed: list[str]) -> bool:
        """Have the snapshot's id for this saga, with its data when they are large, and the ids of those of its bases
        whose data are in objects of their own. Says no when the saga has it.

        Raises `DuplicateSagaError` when another saga has it, or its writer may be about to. After an hour what was
        claimed and not written is taken for that of a writer that died.
        """
        key, saga_id = snapshot_key(entry.snapshot_id), head.saga_id
        own = data if entry.size > SMALL else None
        columns = head.index.snapshots
        bases = map(columns.entry, columns.bases_of_new(entry))
        large = [base.snapshot_id for base in bases if base.place == OWN]
        body = ormsgpack.packb([entry.snapshot_id, saga_id, entry.digest, own, large])
        known = None
        for _ in range(_TRIES):
            try:
                await self._objects.put(key, body, known=known)
            except Changed:
                found = await self._objects.get(key)
                if found is None:
                    known = None
                    continue
                (name, other_id, other_digest, *_), known = ormsgpack.unpackb(found[0]), found[1]
                if (name, other_id, other_digest) == (entry.snapshot_id, saga_id, entry.digest):
                    return True
                stored = (await self._head(other_id)).index.snapshots.find(name) is not None
                if stored and other_id == saga_id:
                    return False
                if stored or utc_now() - known.written_at < _ABANDONED:
                    raise another_snapshot(next(s for s in batch.snapshots if s.snapshot_id == name)) from None
            else:
                claimed.append(key)
                return True
        raise StoreUnavailableError(f"the store {self._objects.shown} has too many writers of {entry.snapshot_id!r}")

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`. Batches of one saga go one after the other, those of several at once."""
        by_saga: dict[str, list[int]] = {}
        in_turn = contested(batches)
        for number, batch in enumerate(batches):
            by_saga.setdefault("" if in_turn else batch.saga_id, []).append(number)
        results: list[Exception | None] = [None] * len(batches)

        async def write_in_order(numbers: list[int]) -> None:
            for number in numbers:
                try:
                    await self.write(batches[number])
                except StoreUnavailableError:
                    raise
                except (UsageError, CodecError, StorageError) as error:
                    results[number] = error

        await all_of([write_in_order(numbers) for numbers in by_saga.values()])
        return results

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        for _ in range(_TRIES):
            head = await self._head(saga_id)
            gone, hidden, served = head.index.snapshots.below(below_seq, micros(self.clock()))
            if await self._deleted(head, gone, hidden):
                return served
        raise self._too_many(saga_id)

    async def _deleted(self, head: Head, slots: Sequence[int], hidden_slots: Sequence[int]) -> bool:
        """Delete the snapshots, or say that the head is not what it was."""
        if not slots and not hidden_slots:
            return True
        gone, hidden = (list(map(head.index.snapshots.id_of, some)) for some in (slots, hidden_slots))
        head.index.snapshots.drop(gone, hidden)
        change = without(head)
        try:
            await self._objects.put(saga_key(head.saga_id), packed_head(head, News(), change), known=head.version)
        except Changed:
            return False
        finally:
            self._known.pop(head.saga_id, None)
        await self._objects.delete([snapshot_key(name) for name in gone])
        return True

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`. For a damaged one the objects of all snapshots of the store are read."""
        self._known.pop(saga_id, None)
        try:
            head = await self._head(saga_id)
            if not head.there:
                return False
            own = [snapshot_key(entry.snapshot_id) for entry in head.snapshot_entries()]
        except CorruptDataError:
            own = await self._own_keys(saga_id)
        await self._objects.delete([saga_key(saga_id)])
        rest = [key async for key in self._objects.keys(data_folder(saga_id))]
        await self._objects.delete([*own, *rest])
        return True

    async def _own_keys(self, saga_id: str) -> list[str]:
        """Return the keys of the snapshots that say they are of this saga."""
        keys, own = [key async for key in self._objects.keys(SNAPSHOTS)], list[str]()
        for start in range(0, len(keys), HEADS_AT_ONCE):
            part = keys[start : start + HEADS_AT_ONCE]
            owners = await all_of([self._owner(key) for key in part])
            own += (key for key, owner in zip(part, owners, strict=True) if owner == saga_id)
        return own

    async def _owner(self, key: str) -> str | None:
        try:
            found = await self._objects.get(key)
        except CorruptDataError:
            return None  # whose it is cannot be told
        return None if found is None else str(ormsgpack.unpackb(found[0])[1])

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`. It reads the head of every saga."""
        check_prune(now, batch)
        deleted = 0
        damaged: list[CorruptDataError] = []
        async for saga_id, found in self._heads("", None, HEADS_AT_ONCE):
            try:
                deleted += await self._pruned(saga_id, sound(found), now, batch)
            except CorruptDataError as error:
                damaged.append(error)
        raise_damaged(damaged)
        return deleted

    async def _pruned(self, saga_id: str, head: Head, now: datetime, batch: int) -> int:
        deleted = tries = 0
        while tries < _TRIES:
            gone = head.index.snapshots.prunable(micros(now))[:batch]
            if await self._deleted(head, gone, ()):
                deleted += len(gone)
                if len(gone) < batch:
                    return deleted
            else:
                tries += 1
            head = await self._head(saga_id)
        raise self._too_many(saga_id)

    def _too_many(self, saga_id: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the store {self._objects.shown} has too many writers of saga {saga_id!r} at once"
        )
