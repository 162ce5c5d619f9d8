"""Reading a saga's snapshots and events from a bucket: its head, and the objects of what is not in there."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import ormsgpack

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._checks import check_limit, check_moment, read_snapshot_cursor, snapshot_cursor
from sagaz_core.storage._rows import SnapshotEntry, digest, micros, micros_or_none
from sagaz_core.storage._s3_core import S3Core
from sagaz_core.storage._s3_head import OWN, Entry, Head
from sagaz_core.storage._s3_keys import data_folder, snapshot_key
from sagaz_core.storage._s3_objects import all_of
from sagaz_core.storage.base import Base, Page, SagaSnapshot, StoredEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
    from datetime import datetime


class S3Snapshots(S3Core):
    """What a store answers about one saga."""

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        try:
            found = await self._objects.get(snapshot_key(snapshot_id))
        except CorruptDataError as error:
            raise _damaged(snapshot_id, error) from error
        if found is None:
            return None
        name, saga_id, _, own, *large = ormsgpack.unpackb(found[0])
        bases = large[0] if large else []  # an earlier release did not name them
        reads: list[Awaitable[Any]] = [self._head(saga_id), *map(self._large, bases)]
        head, *objects = await all_of(reads)
        slot = head.index.snapshots.find(snapshot_id)
        if name != snapshot_id or slot is None or head.index.snapshots.expired(slot, micros(self.clock())):
            return None
        read = {snapshot_id: own, **dict(zip(bases, objects, strict=True))}
        known = {name: data for name, data in read.items() if data is not None}
        return (await self._snapshots(head, [slot], known))[0]

    async def latest_snapshot(
        self,
        saga_id: str,
        *,
        step: str | None = None,
        phase: str | None = None,
        until: datetime | None = None,
        max_seq: int | None = None,
    ) -> SagaSnapshot | None:
        """See `SnapshotStorage.latest_snapshot`."""
        check_moment(until)
        head = await self._head(saga_id)
        last, now = micros_or_none(until), micros(self.clock())
        slot = head.index.snapshots.latest(step, phase, last, max_seq, now)
        return None if slot is None else (await self._snapshots(head, [slot], {}))[0]

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        place = read_snapshot_cursor(cursor)
        head = await self._head(saga_id, self._listed)
        slots = head.index.snapshots.page(place, limit, micros(self.clock()))
        page = await self._snapshots(head, slots[:limit], {})
        more = len(slots) > limit
        self._listed = head if more else Head("")  # who asks for the next page is not sent it again
        return Page(page, snapshot_cursor(page[-1]) if more else None)

    async def _snapshots(self, head: Head, slots: Sequence[int], own: dict[str, bytes]) -> list[SagaSnapshot]:
        """Return the snapshots with their bases, whose data are read at once. `own` are data that were read before."""
        columns = head.index.snapshots
        bases = {slot: columns.bases(slot) for slot in slots}
        entries = {slot: columns.entry(slot) for slot in {*slots, *chain.from_iterable(bases.values())}}
        needed = {entry.snapshot_id: entry for entry in entries.values()}
        others = await self._others(head, list(needed.values()))
        missing = [name for name, entry in needed.items() if entry.place == OWN and name not in own]
        found = dict(zip(missing, await all_of([self._own(head, name) for name in missing]), strict=True)) | own
        made = {
            name: Base(name, _checked(head, entry, found[name] if entry.place == OWN else head.piece(entry, others)))
            for name, entry in needed.items()
        }
        return [
            _snapshot(head, entries[slot], made, [made[entries[base].snapshot_id] for base in bases[slot]])
            for slot in slots
        ]

    async def _large(self, snapshot_id: str) -> bytes | None:
        """Return the data that are in the snapshot's own object."""
        try:
            found = await self._objects.get(snapshot_key(snapshot_id))
        except CorruptDataError as error:
            raise _damaged(snapshot_id, error) from error
        data = ormsgpack.unpackb(found[0])[3] if found else None
        return None if data is None else bytes(data)

    async def _own(self, head: Head, snapshot_id: str) -> bytes:
        data = await self._large(snapshot_id)
        if data is None:
            raise CorruptDataError(
                f"the data of snapshot {snapshot_id!r} of saga {head.saga_id!r} are gone: restore them"
            )
        return data

    async def _others(self, head: Head, entries: Sequence[Entry]) -> dict[str, memoryview]:
        """Return the objects of the saga that hold the entries' data, by name."""
        names = sorted({entry.place[0] for entry in entries if not isinstance(entry.place, int)})
        folder = data_folder(head.saga_id)
        try:
            found = await all_of([self._objects.get(f"{folder}/{name}") for name in names])
        except CorruptDataError as error:
            raise CorruptDataError(f"saga {head.saga_id!r} cannot be read as a whole: {error}") from error
        return {name: one[0] if one else memoryview(b"") for name, one in zip(names, found, strict=True)}

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        return (await self._head(saga_id)).index.snapshots.served(micros(self.clock()))

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`."""
        check_moment(until)
        head = await self._head(saga_id)
        others: dict[str, memoryview] = {}
        columns = head.index.events
        for entry in map(columns.entry, columns.between(after_seq, micros_or_none(until))):
            if not isinstance(entry.place, int) and entry.place[0] not in others:
                others = await self._others(head, [entry])
            data = head.piece(entry, others)
            if digest(data) != entry.digest:
                raise CorruptDataError(f"event {entry.seq} of saga {saga_id!r} is damaged: restore its objects")
            yield StoredEvent(saga_id, entry.seq, entry.at, entry.kind, entry.step, data)


def _checked(head: Head, entry: SnapshotEntry, data: bytes) -> bytes:
    if digest(data) != entry.digest:
        raise CorruptDataError(
            f"snapshot {entry.snapshot_id!r} of saga {head.saga_id!r} is damaged: "
            f"restore its object, or go on from another snapshot"
        )
    return data


def _damaged(snapshot_id: str, error: CorruptDataError) -> CorruptDataError:
    return CorruptDataError(f"snapshot {snapshot_id!r} cannot be read: {error}")


def _snapshot(head: Head, entry: SnapshotEntry, made: Mapping[str, Base], bases: Sequence[Base]) -> SagaSnapshot:
    name, saga_name, step, index, seq, phase, status, created_at, retention, base_seq, *_ = entry
    data = made[name].data
    return SagaSnapshot(
        *(name, head.saga_id, saga_name, step, index, seq, phase, status, created_at, data, retention, base_seq),
        tuple(bases),
        entry.completed_steps,
        entry.tags,
    )
