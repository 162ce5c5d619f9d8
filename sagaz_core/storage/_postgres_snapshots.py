"""Reading a saga's snapshots and events from PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.storage import _postgres_statements as sql
from sagaz_core.storage._checks import LONG_AGO, check_limit, expired, misplaced, read_snapshot_cursor, snapshot_cursor
from sagaz_core.storage._postgres_columns import columns
from sagaz_core.storage._postgres_core import PostgresCore
from sagaz_core.storage._postgres_rows import (
    as_seq,
    as_text,
    as_time,
    checkpoint_from,
    ends_of_checkpoint,
    event_from,
    snapshot_from,
)
from sagaz_core.storage.base import Page, SagaSnapshot, StoredEvent
from sagaz_core.storage.frames import check_expired
from sagaz_core.storage.together import Checkpoint, EventHead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime


_EVENTS_AT_ONCE = 256
_EXPIRED_AT_ONCE = 2_000
_ALL = LONG_AGO  # asked for what is served then, all is found but what is kept as a base alone
_LATEST: dict[tuple[bool, ...], str] = {
    (step, phase, until, max_seq): sql.latest(step=step, phase=phase, until=until, max_seq=max_seq)
    for step in (False, True)
    for phase in (False, True)
    for until in (False, True)
    for max_seq in (False, True)
}


class PostgresSnapshots(PostgresCore):
    """What a store answers about one saga."""

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        rows = await self._rows(sql.GET_SNAPSHOT, as_text(snapshot_id), _ALL)
        found = snapshot_from(rows[0]) if rows else None
        return None if found is None or self._expired(found) else found

    def _expired(self, snapshot: SagaSnapshot) -> bool:
        """Whether the snapshot has expired. Raises `DamagedSnapshotError` when it only looks so."""
        if snapshot.retention_until is None or not expired(snapshot, self.clock()):
            return False
        check_expired(snapshot)
        return True

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
        asked = (
            None if step is None else as_text(step),
            None if phase is None else as_text(phase),
            None if until is None else as_time(until),
            None if max_seq is None else as_seq(max_seq),
        )
        statement = _LATEST[tuple(value is not None for value in asked)]
        values = [value for value in asked if value is not None]
        rows = await self._rows(statement, as_text(saga_id), _ALL, *values)
        found = snapshot_from(rows[0]) if rows else None
        if found is None or not self._expired(found):
            return found
        rows = await self._rows(statement, as_text(saga_id), as_time(self.clock()), *values)
        return snapshot_from(rows[0]) if rows else None

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        seq, last = read_snapshot_cursor(cursor)
        now, some, more = self.clock(), limit + 1, True
        found: list[SagaSnapshot] = []
        while more and len(found) <= limit:
            asked = as_text(saga_id), seq, as_text(last), some, as_time(now)
            rows = await self._rows(sql.LIST_SNAPSHOTS, *asked)
            more = len(rows) == some
            some = max(some, _EXPIRED_AT_ONCE)  # some have expired: there may be many of these
            for snapshot in map(snapshot_from, rows):
                seq, last = snapshot.seq, snapshot.snapshot_id
                if expired(snapshot, now):
                    check_expired(snapshot)
                else:
                    found.append(snapshot)
        page = found[:limit]
        return Page(page, snapshot_cursor(page[-1]) if len(found) > limit else None)

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`."""
        statement = sql.READ_EVENTS if until is None else sql.READ_EVENTS_UNTIL
        last = () if until is None else (as_time(until),)
        read, more, event = as_seq(after_seq), True, None
        while more:
            rows = await self._rows(statement, as_text(saga_id), read, _EVENTS_AT_ONCE, *last)
            more = len(rows) == _EVENTS_AT_ONCE
            for *row, highest in rows:
                if highest is not None and row[0] > highest:
                    if until is not None and event_from(saga_id, row).at <= until:
                        raise misplaced(saga_id, row[0])
                    more = False
                    break
                read, event = row[0], event_from(saga_id, row)
                yield event
        if until is not None and event is not None and event.at > until:
            raise misplaced(saga_id, read)

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        asked = as_text(saga_id), as_time(self.clock())
        rows = await self._rows(sql.COUNT_SNAPSHOTS, *asked)
        served, stored = rows[0] if rows else (0, 0)
        if served < stored:
            for row in await self._rows(sql.EXPIRED_OF_SAGA, *asked):
                check_expired(snapshot_from(row, bases=False))
        return int(served)

    async def read_checkpoints(self, asked: Sequence[tuple[str, str]]) -> Sequence[Checkpoint]:
        """See `AnswersTogether.read_checkpoints`. Where one of the snapshots has expired it takes some trips more."""
        by_column = columns([(as_text(saga_id), as_text(step)) for saga_id, step in asked], sql.CHECKPOINT_TYPES)
        rows, now = await self._rows(sql.READ_CHECKPOINTS, _ALL, *by_column), self.clock()
        if not rows:
            return [Checkpoint(None, None, None, ())] * len(asked)
        return [
            await self._later_checkpoint(*one, checkpoint_from(row))
            if any(end < now for end in ends_of_checkpoint(row))
            else checkpoint_from(row)
            for one, row in zip(asked, rows, strict=True)
        ]

    async def _later_checkpoint(self, saga_id: str, step: str, found: Checkpoint) -> Checkpoint:
        """Return the checkpoint of what has not expired. Raises `DamagedSnapshotError` for what only looks so."""
        before = await self.latest_snapshot(saga_id, step=step, phase="before")
        last = await self.latest_snapshot(saga_id)
        events = self.read_events(saga_id, after_seq=-1 if before is None else before.seq)
        heads = [EventHead(event.seq, event.kind, event.step) async for event in events]
        return Checkpoint(found.saga, before, None if last is None else last.seq, heads)
