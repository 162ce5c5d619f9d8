"""Snapshots in this process's memory: the fastest store, for tests, exploration and sagas that need not outlive it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from operator import attrgetter
from threading import Lock
from typing import TYPE_CHECKING

from sagaz_core.storage._checks import (
    another_event,
    another_saga,
    another_snapshot,
    check_batch,
    check_limit,
    check_moment,
    model_from_json,
    model_to_json,
    read_snapshot_cursor,
    snapshot_cursor,
)
from sagaz_core.storage._timeline import Timeline
from sagaz_core.storage.base import Batch, Page, ReplayRecord, SagaRecord, SagaSnapshot, StoredEvent, checked_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

_at = attrgetter("at")
_created_at = attrgetter("created_at")
_seq = attrgetter("seq")
_place = attrgetter("seq", "snapshot_id")
_named: dict[str, InMemorySnapshotStorage] = {}
_naming = Lock()


class InMemorySnapshotStorage:
    """A store in memory, safe to use from several threads and loops.

    What it holds lives as long as the object. `close` lets go of nothing: a closed store can still be looked at.
    """

    def __init__(self, url: str = "memory://") -> None:
        self.url = url
        self._lock = Lock()
        self._sagas: dict[str, _Saga] = {}
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
        record = None if batch.saga is None else _Record(batch.saga)
        with self._lock:
            saga = self._sagas.get(batch.saga_id)
            if saga is None:
                saga = _Saga()
                checked_id(batch.saga_id)
            if record is not None and saga.record is not None and not saga.record.says(record):
                raise another_saga(record.saga)
            events = saga.new_events(batch.events) if batch.events else ()
            snapshots = self._new_snapshots(batch.snapshots) if batch.snapshots else ()
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
            if record or events or snapshots:
                self._sagas[batch.saga_id] = saga

    def _new_snapshots(self, snapshots: Sequence[SagaSnapshot]) -> Sequence[SagaSnapshot]:
        """Return those that are not here yet, in order."""
        if len(snapshots) == 1 and snapshots[0].snapshot_id not in self._snapshots:
            return snapshots
        new: dict[str, SagaSnapshot] = {}
        for snapshot in snapshots:
            known = self._snapshots.get(snapshot.snapshot_id) or new.get(snapshot.snapshot_id)
            if known is None:
                new[snapshot.snapshot_id] = snapshot
            elif known != snapshot:
                raise another_snapshot(snapshot)
        return sorted(new.values(), key=_place)

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

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        return self._snapshots.get(snapshot_id)

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
            return None if timeline is None else timeline.latest(until, max_seq)

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        place = read_snapshot_cursor(cursor)
        with self._lock:
            saga = self._sagas.get(saga_id)
            if saga is None:
                return Page([])
            items = saga.snapshots.items
            start = bisect_left(items, (place[0], place[1] + "\0"), key=_place)
            page = items[start : start + limit + 1]
        return Page(page[:limit], snapshot_cursor(page[limit - 1]) if len(page) > limit else None)

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
        saga = self._sagas.get(saga_id)
        return 0 if saga is None else len(saga.snapshots.items)

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        with self._lock:
            saga = self._sagas.get(saga_id)
            if saga is None:
                return 0
            items = saga.snapshots.items
            return self._keep(saga, items[bisect_left(items, below_seq, key=_seq) :])

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`."""
        with self._lock:
            saga = self._sagas.pop(saga_id, None)
            if saga is None:
                return False
            self._keep(saga, [])
            self._recorded = None
            return True

    async def delete_expired(self, now: datetime) -> int:
        """See `SnapshotStorage.delete_expired`."""
        check_moment(now)
        with self._lock:
            return sum(
                self._keep(saga, [item for item in saga.snapshots.items if not _expired(item, now)])
                for saga in self._sagas.values()
            )

    def _keep(self, saga: _Saga, kept: list[SagaSnapshot]) -> int:
        before = saga.snapshots.items
        if len(kept) < len(before):
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

    async def close(self) -> None:
        """See `SnapshotStorage.close`."""


def _expired(snapshot: SagaSnapshot, now: datetime) -> bool:
    return snapshot.retention_until is not None and snapshot.retention_until < now


class _Record:
    """A saga record whose model, which is a dict that others can reach, is kept as text."""

    __slots__ = ("model", "saga")

    def __init__(self, saga: SagaRecord) -> None:
        self.model = model_to_json(saga)
        self.saga = saga

    def says(self, other: _Record) -> bool:
        """Whether it is the same as the other."""
        return self.model == other.model and replace(self.saga, model={}) == replace(other.saga, model={})

    def copy(self) -> SagaRecord:
        return replace(self.saga, model=model_from_json(self.saga.saga_id, self.model))


class _Saga:
    """One saga's records. The timelines by step and phase are made by the first query that asks for one."""

    __slots__ = ("_filtered", "_filters", "events", "record", "snapshots")

    def __init__(self) -> None:
        self.record: _Record | None = None
        self.events: Timeline[StoredEvent] = Timeline(_seq, _at)
        self.snapshots: Timeline[SagaSnapshot] = Timeline(_place, _created_at)
        self.forget_filters()

    def new_events(self, events: Sequence[StoredEvent]) -> Sequence[StoredEvent]:
        """Return those that are not here yet, in order."""
        items = self.events.items
        last = items[-1].seq if items else -1
        for event in events:
            if event.seq <= last:
                return self._merged(events)
            last = event.seq
        return events

    def _merged(self, events: Sequence[StoredEvent]) -> list[StoredEvent]:
        items, new = self.events.items, dict[int, StoredEvent]()
        for event in events:
            known = new.get(event.seq)
            place = bisect_left(items, event.seq, key=_seq)
            if place < len(items) and items[place].seq == event.seq:
                known = items[place]
            if known is None:
                new[event.seq] = event
            elif known != event:
                raise another_event(event)
        return sorted(new.values(), key=_seq)

    def forget_filters(self) -> None:
        self._filters: dict[tuple[str | None, str | None], Timeline[SagaSnapshot]] = {}
        self._filtered = 0

    def timeline(self, step: str | None, phase: str | None) -> Timeline[SagaSnapshot] | None:
        """Return the snapshots of that step and phase, `None` if there are none."""
        if step is None and phase is None:
            return self.snapshots
        items = self.snapshots.items
        for snapshot in items[self._filtered :]:
            name, when = snapshot.step_name, snapshot.phase
            for key in ((name, None), (None, when), (name, when)):
                timeline = self._filters.get(key)
                if timeline is None:
                    timeline = self._filters[key] = Timeline(_place, _created_at)
                timeline.items.append(snapshot)
        self._filtered = len(items)
        return self._filters.get((step, phase))


def open_memory(url: str) -> InMemorySnapshotStorage:
    """Open `memory://` (a new store) or `memory://name` (the process's store of that name)."""
    name = url.partition("://")[2]
    return InMemorySnapshotStorage.named(checked_id(name)) if name else InMemorySnapshotStorage()
