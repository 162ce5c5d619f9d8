"""Writing to Redis. What is appended is one transaction, which adds nothing when another process wrote meanwhile.

Only then what is there is read and compared, under WATCH.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sagaz_core.errors import CodecError, StorageError, UsageError
from sagaz_core.storage._checks import check_batch, contested
from sagaz_core.storage._network import says_nothing, unavailable
from sagaz_core.storage._redis_connections import raise_first
from sagaz_core.storage._redis_core import RedisCore
from sagaz_core.storage._redis_parts import parts_of
from sagaz_core.storage._redis_records import as_key
from sagaz_core.storage._redis_sagas import Addition, Known
from sagaz_core.storage._redis_stored import StoredSaga
from sagaz_core.storage.base import Batch, checked_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.storage._redis_connections import Trip
    from sagaz_core.storage.base import SagaSnapshot


class RedisWriting(RedisCore):
    """What a store does with batches."""

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        checked_id(batch.saga_id)
        if not says_nothing(batch):
            await self._connections.use(lambda trip: self._write(trip, batch))

    async def _write(self, trip: Trip, batch: Batch) -> None:
        addition = self._addition(batch)
        if addition is None or not (await self._added(trip, [addition]))[0]:
            await self._merge(trip, batch)

    def _addition(self, batch: Batch) -> Addition | None:
        """Return what appends the batch, if by what is known it comes behind."""
        known = self._known.get(batch.saga_id)
        if known is None:
            known = Known() if batch.saga is not None else None
        if known is None or not known.takes(batch):
            return None
        parts = parts_of(batch)
        ready = known.before(len(parts))
        return None if ready is None else Addition(self._keys, batch, parts, ready, self.clock())

    async def _added(self, trip: Trip, additions: Sequence[Addition]) -> list[bool]:
        replies = await trip.conditionally([addition.conditional() for addition in additions])
        for addition, reply in zip(additions, replies, strict=True):
            raise_first(reply)
            self._remember(addition.batch.saga_id, None if reply is None else addition.after)
        return [reply is not None for reply in replies]

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`. What can be appended goes in one trip, the rest in one by one."""
        results: list[Exception | None] = [None] * len(batches)
        waiting: dict[int, Batch] = {}
        for place, batch in enumerate(batches):
            try:
                check_batch(batch)
                checked_id(batch.saga_id)
                if not says_nothing(batch):
                    waiting[place] = batch
            except (UsageError, CodecError) as error:
                results[place] = error
        if not contested(batches):
            await self._append_many(waiting)
        for place, batch in waiting.items():
            try:
                await self.write(batch)
            except (UsageError, CodecError, StorageError) as error:
                if unavailable(error):
                    raise
                results[place] = error
        return results

    async def _append_many(self, waiting: dict[int, Batch]) -> None:
        """Append what can be, and take it out of `waiting`."""
        additions: dict[int, Addition] = {}
        seen: set[str] = set()
        for place, batch in waiting.items():
            try:
                addition = None if batch.saga_id in seen else self._addition(batch)
            except (UsageError, CodecError):
                addition = None  # says so again when it is written by itself
            seen.add(batch.saga_id)
            if addition is not None:
                additions[place] = addition
        if not additions:
            return
        done = await self._connections.use(lambda trip: self._added(trip, list(additions.values())))
        for place, added in zip(additions, done, strict=True):
            if added:
                del waiting[place]

    async def _merge(self, trip: Trip, batch: Batch) -> None:
        """Add what is not there yet. Raises `DuplicateSagaError` for what is there, and differs."""
        while True:
            saga = await self._watched(trip, batch.saga_id, batch.snapshots)
            missing = saga.without_known(batch)
            known = saga.known()
            if says_nothing(missing._replace(summary=known.new_summary(missing))):
                await trip.send([("UNWATCH",)])
                self._remember(batch.saga_id, known)
                return
            parts = parts_of(missing)
            ready = known.before(len(parts))
            addition = Addition(self._keys, missing, parts, ready or replace(known, indexed=True), self.clock())
            if ready is None:
                addition.commands[:0] = saga.indexing()
            addition.commands += saga.regrouped(missing, range(known.entry + 1, addition.after.entry + 1))
            if (await self._added(trip, [addition]))[0]:
                return

    async def _index(self, saga_id: str) -> None:
        """Put a long saga, which an earlier release wrote, into runs."""
        await self._connections.use(lambda trip: self._put_into_runs(trip, saga_id))

    async def _put_into_runs(self, trip: Trip, saga_id: str) -> None:
        while True:
            saga = await self._watched(trip, saga_id)
            if saga.known().before(1) is not None:
                await trip.send([("UNWATCH",)])
                return
            (reply,) = await trip.transaction(saga.indexing())
            raise_first(reply)
            if reply is not None:
                self._remember(saga_id, None)
                return

    async def _watched(self, trip: Trip, saga_id: str, snapshots: Sequence[SagaSnapshot] = ()) -> StoredSaga:
        """Return all of the saga, whose keys are watched from now on."""
        of, saga = self._keys.of, as_key(saga_id)
        claims = [of(b"id", as_key(snapshot.snapshot_id)) for snapshot in snapshots]
        record, summary, indexed = of(b"saga", saga), of(b"sum", saga), of(b"c", saga)
        replies = await trip.send(
            [
                ("DEL", self._keys.guard(saga_id)),
                ("WATCH", of(b"x", saga), of(b"v", saga), record, summary, *claims),
                ("SORT_RO", of(b"x", saga), "BY", "nosort", "GET", "#", *self._joined(b"log", b"st", b"ev")),
                ("MGET", record, summary, indexed, *claims),
            ]
        )
        return StoredSaga(self._keys, saga_id, *replies[2:])
