"""Snapshots in this process's memory: the fastest store, for tests, exploration and sagas that need not outlive it."""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime
from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING

from sagaz_core.clock import utc_now
from sagaz_core.errors import CodecError, StorageError, UsageError
from sagaz_core.storage._checks import (
    LONG_AGO,
    another_saga,
    another_snapshot,
    check_batch,
    check_find,
    check_limit,
    check_moment,
    check_prune,
    expired,
    read_snapshot_cursor,
    snapshot_cursor,
)
from sagaz_core.storage._memory_saga import HeldRecord, HeldSaga, bare, not_prunable, own, place_of, seq_of
from sagaz_core.storage.base import (
    Base,
    Batch,
    Page,
    ReplayRecord,
    SagaRecord,
    SagaSnapshot,
    StoredEvent,
    StoreInfo,
    checked_id,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

_SCHEMA_VERSION = 1
_named: dict[str, InMemorySnapshotStorage] = {}
_naming = Lock()


class InMemorySnapshotStorage:
    """A store in memory, safe to use from several threads and loops.

    What it holds lives as long as the object. `close` lets go of nothing: a closed store can still be looked at.
    """

    in_memory = True  # what captures into it does not make the states small

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self.clock: Callable[[], datetime] = utc_now
        self._lock = Lock()
        self._sagas: dict[str, HeldSaga] = {}
        self._snapshots: dict[str, SagaSnapshot] = {}
        self._replays: dict[str, ReplayRecord] = {}
        self._replays_of: dict[str, set[str]] = {}
        self._recorded: list[str] | None = None

    @classmethod
    def named(cls, name: str) -> InMemorySnapshotStorage:
        """Return the store of this name; there is one in a process."""
        with _naming:
            if name not in _named:
                _named[name] = cls(f"memory://{name}")
            return _named[name]

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        record = None if batch.saga is None else HeldRecord(batch.saga)
        with self._lock:
            saga = self._sagas.get(batch.saga_id)
            if saga is None:
                saga = HeldSaga()
                checked_id(batch.saga_id)
            if record is not None and saga.record is not None and not saga.record.says(record):
                raise another_saga(record.saga)
            events = saga.new_events(batch.events) if batch.events else ()
            snapshots = self._new_snapshots(batch.snapshots) if batch.snapshots else ()
            summary = batch.summary
            # Nothing raises from here on.
            if record is not None and saga.record is None:
                saga.record = record
                self._recorded = None
            if events:
                saga.events.add(events)
            for snapshot in snapshots:
                self._snapshots[snapshot.snapshot_id] = snapshot
            if snapshots and not saga.snapshots.add(snapshots):
                saga.forget_filters()
            if summary is not None and (saga.summary is None or summary.seq > saga.summary.seq):
                saga.summary = own(summary)
            if record or events or snapshots or summary:
                self._sagas[batch.saga_id] = saga

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`."""
        results: list[Exception | None] = []
        for batch in batches:
            try:
                await self.write(batch)
            except (UsageError, CodecError, StorageError) as error:
                results.append(error)
            else:
                results.append(None)
        return results

    def _new_snapshots(self, snapshots: Sequence[SagaSnapshot]) -> Sequence[SagaSnapshot]:
        """Return those that are not here yet, in order."""
        if len(snapshots) == 1 and snapshots[0].snapshot_id not in self._snapshots:
            return [bare(snapshots[0])]
        new: dict[str, SagaSnapshot] = {}
        for snapshot in map(bare, snapshots):
            known = self._snapshots.get(snapshot.snapshot_id) or new.get(snapshot.snapshot_id)
            if known is None:
                new[snapshot.snapshot_id] = snapshot
            elif known != snapshot:
                raise another_snapshot(snapshot)
        return sorted(new.values(), key=place_of)

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """See `SnapshotStorage.get_saga`."""
        saga = self._sagas.get(saga_id)
        return None if saga is None or saga.record is None else saga.record.copy()

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_sagas`."""
        check_limit(limit)
        with self._lock:
            if self._recorded is None:
                self._recorded = sorted(saga_id for saga_id, saga in self._sagas.items() if saga.record is not None)
            ids = self._recorded
            start = bisect_left(ids, prefix if cursor is None else max(prefix, cursor + "\0"))
            page = [saga_id for saga_id in ids[start : start + limit + 1] if saga_id.startswith(prefix)]
            records = [self._sagas[saga_id].record for saga_id in page[:limit]]
        return Page([record.copy() for record in records if record], page[limit - 1] if len(page) > limit else None)

    async def find_sagas(
        self,
        *,
        status: str | None = None,
        saga_name: str | None = None,
        step_name: str | None = None,
        failed_between: tuple[datetime, datetime] | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """See `SnapshotStorage.find_sagas`."""
        between, wanted = check_find(failed_between, tags, limit)
        with self._lock:
            summaries = [saga.summary for saga in self._sagas.values() if saga.summary is not None]
        found = sorted(
            (
                summary
                for summary in summaries
                if (cursor is None or summary.saga_id > cursor)
                and status in (None, summary.status)
                and saga_name in (None, summary.saga_name)
                and step_name in (None, summary.step_name)
                and (between is None or (summary.failed_at and between[0] <= summary.failed_at <= between[1]))
                and wanted.items() <= summary.tags.items()
            ),
            key=attrgetter("saga_id"),
        )
        page = [own(summary) for summary in found[:limit]]
        return Page(page, page[-1].saga_id if len(found) > limit else None)

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        snapshot = self._snapshots.get(snapshot_id)
        if snapshot is None or (snapshot.retention_until is not None and expired(snapshot, self.clock())):
            return None
        with self._lock:
            return self._with_bases(snapshot)

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
        with self._lock:
            saga = self._sagas.get(saga_id)
            timeline = None if saga is None else saga.timeline(step, phase)
            found = None if timeline is None else timeline.latest(until, max_seq)
            if timeline is None or found is None:
                return None
            if found.retention_until is not None:
                now = self.clock()
                while found is not None and expired(found, now):
                    found = timeline.before(found, until)
            return None if found is None else self._with_bases(found)

    def _with_bases(self, snapshot: SagaSnapshot) -> SagaSnapshot:
        first = snapshot.base_seq
        saga = self._sagas.get(snapshot.saga_id)
        if first is None or saga is None:
            return snapshot
        items = saga.snapshots.items
        start, end = bisect_left(items, first, key=seq_of), bisect_left(items, place_of(snapshot), key=place_of)
        return snapshot._replace(bases=tuple([Base(item.snapshot_id, item.data) for item in items[start:end]]))

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        place = read_snapshot_cursor(cursor)
        with self._lock:
            saga = self._sagas.get(saga_id)
            if saga is None:
                return Page([])
            items, now = saga.snapshots.items, self.clock()
            page: list[SagaSnapshot] = []
            for index in range(bisect_left(items, (place[0], place[1] + "\0"), key=place_of), len(items)):
                if not expired(items[index], now):
                    page.append(items[index])
                    if len(page) > limit:
                        break
            shown = [self._with_bases(snapshot) for snapshot in page[:limit]]
        return Page(shown, snapshot_cursor(shown[-1]) if len(page) > limit else None)

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`."""
        check_moment(until)
        with self._lock:
            saga = self._sagas.get(saga_id)
            if saga is None:
                return
            timeline = saga.events
            end = len(timeline.items) if until is None else timeline.after(until)
            events = timeline.items[timeline.above(after_seq) : end]
        for event in events:
            yield event

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        with self._lock:
            saga = self._sagas.get(saga_id)
            now = self.clock()
            return 0 if saga is None else sum(not expired(snapshot, now) for snapshot in saga.snapshots.items)

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        with self._lock:
            saga = self._sagas.get(saga_id)
            if saga is None:
                return 0
            items, now = saga.snapshots.items, self.clock()
            below = bisect_left(items, below_seq, key=seq_of)
            needed = (item.base_seq for item in items[below:] if item.base_seq is not None and not expired(item, now))
            start = bisect_left(items, min(needed, default=below_seq), 0, below, key=seq_of)
            hidden = [item._replace(retention_until=LONG_AGO) for item in items[start:below]]
            gone = sum(not expired(item, now) for item in items[:below])
            self._keep(saga, [*hidden, *items[below:]])
            self._snapshots.update((item.snapshot_id, item) for item in hidden)
            return gone

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`."""
        with self._lock:
            saga = self._sagas.pop(saga_id, None)
            if saga is None:
                return False
            self._keep(saga, [])
            self._recorded = None
            return True

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`. A part is one saga, whatever `batch` says: nobody waits for a disk here."""
        check_prune(now, batch)
        with self._lock:
            sagas = list(self._sagas.values())
        gone = 0
        for saga in sagas:
            with self._lock:
                gone += self._keep(saga, not_prunable(saga.snapshots.items, now))
        return gone

    def _keep(self, saga: HeldSaga, kept: list[SagaSnapshot]) -> int:
        """Have only these snapshots of the saga, and return how many went."""
        before = saga.snapshots.items
        ids = {snapshot.snapshot_id for snapshot in kept}
        for snapshot in before:
            if snapshot.snapshot_id not in ids:
                del self._snapshots[snapshot.snapshot_id]
        saga.snapshots.keep(kept)
        saga.forget_filters()
        return len(before) - len(kept)

    async def log_replay(self, record: ReplayRecord) -> None:
        """See `SnapshotStorage.log_replay`."""
        check_moment(record.created_at)
        check_moment(record.completed_at)
        with self._lock:
            before = self._replays.get(record.replay_id)
            if before is not None:
                self._replays_of[before.original_saga_id].discard(record.replay_id)
            self._replays[record.replay_id] = record
            self._replays_of.setdefault(record.original_saga_id, set()).add(record.replay_id)

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """See `SnapshotStorage.list_replays`."""
        with self._lock:
            records = [self._replays[replay_id] for replay_id in self._replays_of.get(saga_id, ())]
        return sorted(records, key=attrgetter("created_at", "replay_id"))

    async def info(self) -> StoreInfo:
        """See `SnapshotStorage.info`. `bytes` are those of events and snapshots, without what Python adds."""
        with self._lock:
            sagas = self._sagas.values()
            events = [event.data for saga in sagas for event in saga.events.items]
            snapshots = [snapshot.data for snapshot in self._snapshots.values()]
            recorded = sum(saga.record is not None for saga in sagas)
            return StoreInfo(
                self.url,
                _SCHEMA_VERSION,
                recorded,
                len(events),
                len(snapshots),
                len(self._replays),
                sum(map(len, events)) + sum(map(len, snapshots)),
            )

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`. There is nothing that could be old."""
        return _SCHEMA_VERSION

    async def close(self) -> None:
        """See `SnapshotStorage.close`."""


def open_memory(url: str) -> InMemorySnapshotStorage:
    """Open `memory://` (a new store) or `memory://name` (the process's store of that name)."""
    name = url.partition("://")[2]
    return InMemorySnapshotStorage.named(checked_id(name)) if name else InMemorySnapshotStorage()
