"""What a batch changes in SQLite's tables, and what is deleted from them; each within the caller's transaction."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage import _sqlite_statements as sql
from sagaz_core.storage._checks import MAX_SEQ, another_event, another_saga, another_snapshot
from sagaz_core.storage._rows import micros, micros_or_none, summary_sum
from sagaz_core.storage._sqlite_rows import saga_row, snapshot_from, summary_from, tags_from
from sagaz_core.storage.base import Batch, SagaRecord, SagaSnapshot, SagaSummary, StoredEvent, checked_id

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

MAX_EVENT_SEQ = 2**32 - 1
_MIN, _MAX = micros(datetime.min.replace(tzinfo=UTC)), micros(datetime.max.replace(tzinfo=UTC))
_NOT_NEEDED = MAX_SEQ + 1
_Place = tuple[int] | tuple[int, str]
_MIN_PLACE: _Place = (-MAX_SEQ - 1,)


def write_batch(connection: sqlite3.Connection, batch: Batch) -> None:
    """Write what of the batch is not there yet. Raises `DuplicateSagaError` for what is there, and differs."""
    place = connection.execute(sql.FIND_PLACE, (batch.saga_id,)).fetchone()
    if place is None:
        place = (_add_saga(connection, batch), None, None, None, None, None)
    elif batch.saga is not None:
        _set_record(connection, batch.saga)
    if batch.events:
        _add_events(connection, batch.events, *place[:3])
    if batch.snapshots:
        _add_snapshots(connection, batch.snapshots, place[0], *place[3:])
    if batch.summary is not None:
        _set_summary(connection, batch.summary, place[0])


def _set_summary(connection: sqlite3.Connection, summary: SagaSummary, saga: int) -> None:
    seq, before = connection.execute(sql.GET_SUMMARY, (saga,)).fetchone()
    if seq is not None and seq >= summary.seq:
        return
    tags = dict(summary.tags)
    text = json.dumps(tags) if tags else "{}"
    failed_at = micros_or_none(summary.failed_at)
    row = (summary.saga_name, summary.seq, summary.status, summary.step_name, failed_at, text)
    connection.execute(sql.SET_SUMMARY, (*row, summary_sum(summary), saga))
    if text != before:
        _delete_tags(connection, summary.saga_id, before)
        connection.executemany(sql.ADD_TAG, [(key, value, summary.saga_id) for key, value in tags.items()])


def _delete_tags(connection: sqlite3.Connection, saga_id: str, text: str | None) -> None:
    tags = tags_from(saga_id, text or "{}")
    connection.executemany(sql.DELETE_TAG, [(key, value, saga_id) for key, value in tags.items()])


def _delete_all_tags(connection: sqlite3.Connection, saga_id: str) -> None:
    """Delete the saga's tags, also when it does not say any more which they are."""
    for seq, failed_at, found_sum, *held in connection.execute(sql.GET_BYTES, (saga_id,)).fetchall():
        try:
            name, status, step, text = (part.decode() for part in held)  # one that is no text must not be read as one
            tags = summary_from((saga_id, name, seq, status, step, failed_at, text, found_sum)).tags
        except (CorruptDataError, ValueError, TypeError, AttributeError):
            connection.execute(sql.DELETE_ALL_TAGS, (saga_id,))  # looks at the tags of all sagas
        else:
            connection.executemany(sql.DELETE_TAG, [(key, value, saga_id) for key, value in tags.items()])


def _add_saga(connection: sqlite3.Connection, batch: Batch) -> int | None:
    saga_id = checked_id(batch.saga_id)
    if batch.saga is None:
        return connection.execute(sql.ADD_SAGA_ID, (saga_id,)).lastrowid
    return connection.execute(sql.ADD_SAGA, saga_row(batch.saga)).lastrowid


def _set_record(connection: sqlite3.Connection, record: SagaRecord) -> None:
    row = saga_row(record)
    known = connection.execute(sql.GET_SAGA, (record.saga_id,)).fetchone()
    if known is None:
        connection.execute(sql.SET_RECORD, row)
    elif known[:9] != row[:9]:
        raise another_saga(record)


def _add_events(
    connection: sqlite3.Connection, events: Sequence[StoredEvent], saga: int, last: int | None, last_at: int
) -> None:
    rows = [(saga << 32 | _event_seq(e), micros(e.at), e.kind, e.step, e.data) for e in events]
    added = connection.executemany(sql.ADD_EVENT, rows).rowcount
    if added < len(rows):
        for row, event in zip(rows, events, strict=True):
            if connection.execute(sql.GET_EVENT, row[:1]).fetchone() != row[1:]:
                raise another_event(event)
    before = (_MIN_PLACE, _MIN) if last is None else ((last,), last_at)
    if added and not _go_on(before, (((row[0],), row[1]) for row in rows)):
        _set_floors(connection, sql.EVENT_FLOORS, sql.SET_EVENT_FLOOR, saga, min(row[0] for row in rows))


def _event_seq(event: StoredEvent) -> int:
    if 0 <= event.seq <= MAX_EVENT_SEQ:
        return event.seq
    raise UsageError(f"event {event.seq} of saga {event.saga_id!r} cannot be stored: seq is in 0 to {MAX_EVENT_SEQ}")


def _add_snapshots(
    connection: sqlite3.Connection,
    snapshots: Sequence[SagaSnapshot],
    saga: int,
    last: int | None,
    last_id: str,
    last_at: int,
) -> None:
    rows = [
        (
            *(saga, s.snapshot_id, s.saga_name, s.step_name, s.step_index, s.seq, s.phase, s.status),
            *(micros(s.created_at), s.data, micros_or_none(s.retention_until), s.base_seq),
            json.dumps(s.completed_steps) if s.completed_steps else None,
            json.dumps(dict(s.tags)) if s.tags else None,
        )
        for s in snapshots
    ]
    added = connection.executemany(sql.ADD_SNAPSHOT, rows).rowcount
    if added < len(rows):
        for snapshot in snapshots:
            known = snapshot_from(connection.execute(sql.GET_STORED, (snapshot.snapshot_id,)).fetchone())
            if known != snapshot._replace(bases=()):
                raise another_snapshot(snapshot)
    before = (_MIN_PLACE, _MIN) if last is None else ((last, last_id), last_at)
    if added and not _go_on(before, (((row[5], row[1]), row[8]) for row in rows)):
        _set_floors(connection, sql.SNAPSHOT_FLOORS, sql.SET_SNAPSHOT_FLOOR, saga, min(row[5] for row in rows))


def _go_on(before: tuple[_Place, int], rows: Iterable[tuple[_Place, int]]) -> bool:
    """Whether neither the place nor the time goes back: then each row's floor is its own time, and no other changes."""
    for row in rows:
        if row[0] < before[0] or row[1] < before[1]:
            return False
        before = row
    return True


def _set_floors(connection: sqlite3.Connection, floors: str, set_floor: str, saga: int, lowest: int) -> None:
    """Put right the floors of the rows from `lowest` on, and of those below it that they change."""
    floor, wrong = _MAX, []
    rows = connection.execute(floors, (saga,))
    for row_id, place, at, stored in rows:
        floor = min(floor, at)
        if stored != floor:
            wrong.append((floor, row_id))
        elif place < lowest:
            break
    rows.close()
    connection.executemany(set_floor, wrong)


def delete_below(connection: sqlite3.Connection, saga_id: str, below_seq: int, now: int) -> int:
    """Delete or hide the saga's snapshots below that `seq`, and return how many were served until `now`."""
    gone, _ = connection.execute(sql.COUNT_SNAPSHOTS, (saga_id, below_seq, now)).fetchone()
    (needed,) = connection.execute(sql.FIRST_NEEDED, (saga_id, below_seq, now)).fetchone()
    first = below_seq if needed is None else min(needed, below_seq)
    connection.execute(sql.DELETE_SNAPSHOTS_BELOW, (saga_id, first))
    if first < below_seq:
        connection.execute(sql.HIDE_SNAPSHOTS, (saga_id, first, below_seq, _MIN))
    return int(gone)


def prunable(rows: list[tuple[int, int, int | None, int | None]], now: int) -> list[tuple[int]]:
    """Return the numbers of those that have expired, but what others need. The first row is the last snapshot's."""
    doomed: list[tuple[int]] = []
    needed = _NOT_NEEDED
    for row, seq, base_seq, until in rows:
        if until is None or until >= now:
            needed = needed if base_seq is None else min(needed, base_seq)
        elif seq < needed:
            doomed.append((row,))
    return doomed


def delete_saga(connection: sqlite3.Connection, asked: tuple[str]) -> bool:
    """Delete all of the saga but its replays, and say whether it was there. It may be damaged."""
    _delete_all_tags(connection, asked[0])
    connection.execute(sql.DELETE_SNAPSHOTS, asked)
    connection.execute(sql.DELETE_EVENTS, asked)
    return connection.execute(sql.DELETE_SAGA, asked).rowcount > 0
