"""Deleting from Redis: a saga is read under WATCH, and what is left of it is written, until nobody was faster."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._checks import LONG_AGO, check_prune, expired, raise_damaged
from sagaz_core.storage._redis_connections import raise_first
from sagaz_core.storage._redis_records import as_key, micros
from sagaz_core.storage._redis_stored import deleting
from sagaz_core.storage._redis_writing import RedisWriting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sagaz_core.storage._redis_connections import Command, Trip
    from sagaz_core.storage._redis_stored import StoredSaga
    from sagaz_core.storage.base import SagaSnapshot


_SCANNED_AT_ONCE = 1000


class RedisDeleting(RedisWriting):
    """How snapshots and sagas go."""

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        return await self._connections.use(lambda trip: self._delete_below(trip, saga_id, below_seq))

    async def _delete_below(self, trip: Trip, saga_id: str, below_seq: int) -> int:
        while True:
            saga = await self._watched(trip, saga_id)
            above = [s for s in saga.snapshots if s.seq >= below_seq]
            needed = min((s.seq if s.base_seq is None else s.base_seq for s in above), default=below_seq)
            below, now = [s for s in saga.snapshots if s.seq < below_seq], self.clock()
            hidden = [s for s in below if s.seq >= needed]
            shown = [s for s in hidden if s.retention_until != LONG_AGO]
            changed = {s.snapshot_id: s._replace(retention_until=LONG_AGO) for s in shown}
            gone = {s.snapshot_id for s in below if s.seq < needed}
            if await self._rewritten(trip, saga, gone, changed):
                return sum(not expired(s, now) for s in below)

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`."""
        check_prune(now, batch)
        pruned, kept = 0, 0
        before: bytes | None = None
        damaged: list[CorruptDataError] = []
        while True:
            due = ("ZRANGEBYSCORE", self._keys.of(b"exp"), "-inf", micros(now), "LIMIT", kept, 1)
            ((*sagas,),) = await self._send(due)
            if not sagas:
                raise_damaged(damaged)
                return pruned
            if sagas[0] == before:
                kept += 1  # what is left of this one must stay, or is of a time that a float cannot tell from now
                continue
            try:
                done = await self._connections.use(
                    lambda trip, name=sagas[0]: self._prune(trip, name.decode(), now, batch)  # type: ignore[misc] # a bound default
                )
            except CorruptDataError as error:
                damaged.append(error)
                done = 0
            pruned += done
            before = sagas[0] if done == 0 else None

    async def _prune(self, trip: Trip, saga_id: str, now: datetime, batch: int) -> int:
        while True:
            saga = await self._watched(trip, saga_id)
            needed: int | None = None
            gone = []
            for snapshot in reversed(saga.heads):
                if not expired(snapshot, now):
                    if snapshot.base_seq is not None:
                        needed = snapshot.base_seq if needed is None else min(needed, snapshot.base_seq)
                elif needed is None or snapshot.seq < needed:
                    gone.append(snapshot.snapshot_id)
            if await self._rewritten(trip, saga, set(gone[:batch]), {}):
                return len(gone[:batch])

    async def _rewritten(
        self, trip: Trip, saga: StoredSaga, gone: set[str], changed: Mapping[str, SagaSnapshot]
    ) -> bool:
        """Take snapshots out of their entries, and put others in the place of some. False if somebody was faster."""
        commands = saga.rewriting(gone, changed)
        (reply,) = await trip.transaction(commands)
        raise_first(reply)
        self._remember(saga.saga_id, None)
        if reply is not None:
            with suppress(CorruptDataError):  # of the summary, which nobody asked for
                # Entries stay when they are empty: what is known of them is still so.
                self._remember(saga.saga_id, saga.known())
        return reply is not None

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`. For a damaged one the ids of all snapshots of the store are looked at."""
        return await self._connections.use(lambda trip: self._delete(trip, saga_id))

    async def _delete(self, trip: Trip, saga_id: str) -> bool:
        while True:
            try:
                saga = await self._watched(trip, saga_id)
                there, commands = saga.is_there, saga.deleting()
            except CorruptDataError:  # of what is watched from now on
                there, commands = True, await self._deleting_damaged(trip, saga_id)
            (reply,) = await trip.transaction(commands)
            self._remember(saga_id, None)
            if reply is not None:
                return there

    async def _deleting_damaged(self, trip: Trip, saga_id: str) -> list[Command]:
        """Return what deletes a saga of which not all can be read: all snapshots that lead to it are its own."""
        of, saga = self._keys.of, as_key(saga_id)
        places, summary = await trip.send([("ZRANGE", of(b"x", saga), 0, -1), ("GET", of(b"sum", saga))])
        start, ids, others = of(b"id", b""), list[bytes](), list[bytes]()
        index, run = of(b"i", b"%d:%s:" % (len(saga_id), saga)), of(b"r", b"")
        cursor: bytes | int = 0
        while True:
            ((cursor, names),) = await trip.send([("SCAN", cursor, "MATCH", of(b"[ir]*"), "COUNT", _SCANNED_AT_ONCE)])
            named = [name for name in names if name.startswith(start)]
            others += [
                name
                for name in names
                if name.startswith(index) or (name.startswith(run) and name[len(run) :].partition(b":")[2] == saga)
            ]
            if named:
                (found,) = await trip.send([("MGET", *named)])
                for name, place in zip(named, found, strict=True):
                    if place is not None and place.partition(b":")[2] == saga:
                        ids.append(name.removeprefix(start))
            if int(cursor) == 0:
                return deleting(self._keys, saga_id, places, ids, summary, others)
