"""Deleting from a bucket: each time on the condition that the head is still the one that was read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._checks import check_prune, raise_damaged
from sagaz_core.storage._rows import micros
from sagaz_core.storage._s3_asking import PAGES_AT_ONCE, TRIES, S3Asking
from sagaz_core.storage._s3_changes import without
from sagaz_core.storage._s3_claims import unpacked_claim
from sagaz_core.storage._s3_core import HEADS_AT_ONCE, sound
from sagaz_core.storage._s3_head import packed_head, unpacked_head
from sagaz_core.storage._s3_keys import SNAPSHOTS, data_folder, saga_key
from sagaz_core.storage._s3_objects import Changed, all_of
from sagaz_core.storage._s3_pages import Folded
from sagaz_core.storage._s3_rows import entries, items, object_key
from sagaz_core.storage._saga_index import News
from sagaz_core.storage._snapshot_columns import lowest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sagaz_core.storage._rows import SnapshotEntry
    from sagaz_core.storage._s3_head import Head
    from sagaz_core.storage._s3_pages import SnapshotPage
    from sagaz_core.storage._s3_rows import Item, SnapshotRows


@dataclass(slots=True)
class Deletion:
    """What is to go: `gone` snapshots, the `keys` of their own objects, and what is left of their pages, by name.

    `served` says how many were served.
    """

    saga_id: str
    served: int = 0
    gone: int = 0
    keys: list[str] = field(default_factory=list)
    kept: dict[str, Sequence[Item]] = field(default_factory=dict)
    in_head: bool = False

    def take(self, rows: SnapshotRows, page: SnapshotPage | None, gone: Sequence[int], hidden: Sequence[int]) -> None:
        """Let these go, and serve the hidden ones no longer. `page` is where they are, if it is not the head."""
        if not gone and not hidden:
            return
        columns = rows.columns
        some = [columns.entry(slot) for slot in gone]
        columns.drop([entry.snapshot_id for entry in some], [columns.id_of(slot) for slot in hidden])
        self.gone += len(some)
        self.keys += _object_keys(self.saga_id, some)
        if page is None:
            self.in_head = True
        else:
            self.kept[page.name] = items(rows)


class S3Deleting(S3Asking):
    """How snapshots and sagas go."""

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        for _ in range(TRIES):
            head, deletion = await self._answer(await self._head(saga_id), partial(self._below, below_seq))
            if await self._deleted(head, deletion):
                return deletion.served
        raise self._too_many(saga_id)

    async def _below(self, below_seq: int, head: Head) -> tuple[Head, Deletion]:
        """Return what goes from the head, which is changed."""
        deletion, now, tail = Deletion(head.saga_id), micros(self.clock()), head.index.snapshots
        needed = tail.needed(now, below_seq)
        lines = [
            page
            for page in reversed(head.snapshot_pages.all())  # the last ones first, which may need earlier ones
            if page.first < below_seq or (page.base is not None and page.base < below_seq)
        ]
        for start in range(0, len(lines), PAGES_AT_ONCE):
            part = lines[start : start + PAGES_AT_ONCE]
            for page, rows in zip(part, await all_of([self._snapshot_rows(head, page) for page in part]), strict=True):
                mine = rows.columns.needed(now, below_seq)
                gone, hidden, served = rows.columns.below(below_seq, now, needed)
                needed = lowest(needed, mine)
                deletion.take(rows, page, gone, hidden)
                deletion.served += served
        gone, hidden, served = tail.below(below_seq, now)
        deletion.take(head.snapshots, None, gone, hidden)
        deletion.served += served
        return head, deletion

    async def _deleted(self, head: Head, deletion: Deletion) -> bool:
        """Delete that, or say that the head is not what it was."""
        if not deletion.kept and not deletion.in_head:
            return True
        change, folder = without(head, deletion.kept), data_folder(head.saga_id)
        await all_of(
            [self._objects.put(f"{folder}/{name}", body, always=True) for name, body in change.objects.items()]
        )
        body, known = packed_head(head, News(), change), self._known.pop(head.saga_id, None)
        try:
            version = await self._put_head(head, body)
        except Changed:
            return False
        if known is not None:  # who writes goes on
            self._remember(unpacked_head(head.saga_id, memoryview(body), version))
        replaced = [f"{folder}/{name}" for name in change.replaced]
        await self._objects.delete([*deletion.keys, *replaced])
        return True

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`. For a damaged one the objects of all snapshots of the store are read."""
        self._known.pop(saga_id, None)
        try:
            own = await self._answer(await self._head(saga_id), self._keys_of)
            if own is None:
                return False
        except CorruptDataError:
            own = await self._own_keys(saga_id)
        await self._objects.delete([saga_key(saga_id)])
        rest = [key async for key in self._objects.keys(data_folder(saga_id))]
        await self._objects.delete([*own, *rest])
        return True

    async def _keys_of(self, head: Head) -> list[str] | None:
        """Return the keys of the objects that the saga's snapshots have, `None` when there is no such saga."""
        keys = _object_keys(head.saga_id, entries(head.snapshots))
        lines = head.snapshot_pages.all()
        for start in range(0, len(lines), PAGES_AT_ONCE):
            pages = lines[start : start + PAGES_AT_ONCE]
            for rows in await all_of([self._snapshot_rows(head, page) for page in pages]):
                keys += _object_keys(head.saga_id, entries(rows))
        return keys if head.there else None

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
            return None if found is None else unpacked_claim(found[0]).saga_id
        except CorruptDataError:
            return None  # whose it is cannot be told

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
        while tries < TRIES:
            head, deletion = await self._answer(head, partial(self._expired, micros(now), batch))
            if await self._deleted(head, deletion):
                deleted += deletion.gone
                if deletion.gone < batch:
                    return deleted
            else:
                tries += 1
            head = await self._head(saga_id)
        raise self._too_many(saga_id)

    async def _expired(self, now: int, batch: int, head: Head) -> tuple[Head, Deletion]:
        """Return at most so many that have expired, and go from the head, which is changed."""
        if any(older.first_end is not None and older.first_end < now for older in head.snapshot_pages.older):
            raise Folded
        deletion, tail = Deletion(head.saga_id), head.index.snapshots
        needed = tail.needed(now)
        deletion.take(head.snapshots, None, tail.prunable(now)[:batch], ())
        for page in reversed(head.snapshot_pages.lines):
            if deletion.gone == batch:
                break
            if page.first_end is None or page.first_end >= now:
                needed = lowest(needed, page.base)
                continue
            rows = await self._snapshot_rows(head, page)
            mine = rows.columns.needed(now)
            gone = rows.columns.prunable(now, needed)[: batch - deletion.gone]
            needed = lowest(needed, mine)
            deletion.take(rows, page, gone, ())
        return head, deletion


def _object_keys(saga_id: str, some: Iterable[SnapshotEntry]) -> list[str]:
    return [key for key in (object_key(saga_id, entry) for entry in some) if key is not None]
