"""Snapshots in one SQLite file: the embedded store, for a machine's processes and for recordings that outlive them.

Calls do their work inline: a row costs less than a hop to a thread. So a call may block its thread (and the event loop
in it) while another process writes, for at most `busy_timeout` seconds. Commits survive the death of a process at once,
and a power cut from the next checkpoint of the log on (WAL, `synchronous=NORMAL`).
"""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote

from sagaz_core.clock import utc_now
from sagaz_core.errors import CodecError, CorruptDataError, DuplicateSagaError, UsageError, nearest, quoted
from sagaz_core.storage import _sqlite_statements as sql
from sagaz_core.storage._checks import (
    MAX_SEQ,
    above_prefix,
    check_batch,
    check_find,
    check_limit,
    check_prune,
    expired,
    misplaced,
    misplaced_snapshot,
    raise_damaged,
    read_snapshot_cursor,
    snapshot_cursor,
    with_bases,
)
from sagaz_core.storage._listing import page_of
from sagaz_core.storage._rows import micros
from sagaz_core.storage._sqlite_batches import MAX_EVENT_SEQ, delete_below, delete_saga, prunable, write_batch
from sagaz_core.storage._sqlite_connections import Connections, in_one_look, in_part
from sagaz_core.storage._sqlite_rows import (
    check_event,
    moment,
    replay_from,
    replay_row,
    saga_from,
    snapshot_from,
    summary_from,
)
from sagaz_core.storage.base import (
    Base,
    Batch,
    Page,
    ReplayRecord,
    SagaRecord,
    SagaSnapshot,
    StoredEvent,
    StoreInfo,
)
from sagaz_core.storage.frames import check_expired
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

_MIN, _MAX = micros(datetime.min.replace(tzinfo=UTC)), micros(datetime.max.replace(tzinfo=UTC))
_NO_EVENTS: tuple[list[tuple[Any, ...]], bool] = ([], False)
_EVENTS_AT_ONCE = 256
_BYTES_AT_ONCE = 4_000_000


class SqliteSnapshotStorage:
    """A store in a SQLite file, safe for many processes, threads and loops at once.

    The file, and the folder it is in, are made by the first write, for their owner alone to read. A store that does not
    exist yet can be read, and is empty. `busy_timeout` is in seconds.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float = 5.0) -> None:
        self.path = os.path.abspath(os.fspath(path))
        if "\0" in self.path:
            raise UsageError(f"{self.path!r} cannot be a file: it has a NUL")
        if not 0 <= busy_timeout < math.inf:
            raise UsageError(f"busy_timeout={busy_timeout} is not a time: give seconds, 0 or more")
        self.url = f"sqlite:///{quote(Path(self.path).as_posix(), safe='/:')}"
        self.clock: Callable[[], datetime] = utc_now
        self._connections = Connections(self.path, busy_timeout)

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        if _has_something(batch):
            self._connections.write(lambda connection: write_batch(connection, batch))

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`. It is one transaction, so one commit."""
        results: list[Exception | None] = [_refusal(batch) for batch in batches]
        good = [n for n, batch in enumerate(batches) if results[n] is None and _has_something(batch)]
        if good:
            written = self._connections.write(lambda c: [in_part(c, batches[n], write_batch, _REFUSALS) for n in good])
            for n, result in zip(good, written, strict=True):
                results[n] = result
        return results

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """See `SnapshotStorage.get_saga`."""
        rows = self._connections.rows(sql.GET_SAGA, (saga_id,))
        return saga_from(rows[0]) if rows else None

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_sagas`."""
        check_limit(limit)
        start = prefix if cursor is None else max(prefix, cursor + "\0")
        rows = self._connections.rows(sql.LIST_SAGAS, (start, above_prefix(prefix), limit + 1))
        return page_of(limit, rows, saga_from, itemgetter(0))

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
        first, last = (None, None) if between is None else map(micros, between)
        if step_name and between is None:
            first, last = _MIN, _MAX
        by = "tag" if wanted else "failed_at" if first is not None else "status" if status is not None else "id"
        asked = (cursor or "", status, saga_name, step_name, first, last, limit + 1)
        words: list[str | None] = [text for tag in wanted.items() for text in tag] or [None, None]
        rows = self._connections.rows(sql.find_sagas(by, len(words) // 2 - 1), (*asked, *words))
        return page_of(limit, rows, summary_from, itemgetter(0))

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        found = _last(self._connections.rows(sql.GET_SNAPSHOT, (snapshot_id,)))
        if found is not None and found.snapshot_id != snapshot_id:
            raise misplaced_snapshot(found)
        return None if found is None or self._expired(found) else found

    def _expired(self, snapshot: SagaSnapshot) -> bool:
        """Whether the snapshot has expired. Raises `DamagedSnapshotError` when it only looks so."""
        if not expired(snapshot, self.clock()):
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
        last = None if until is None else micros(until)
        if last is not None and step is None and phase is None and max_seq is None:
            found = _last(self._connections.rows(sql.LATEST_SNAPSHOT_OF_ALL_UNTIL, (saga_id, last)))
        elif last is not None:
            asked = (*_where(saga_id, step, phase, max_seq), last)
            found = _last(self._connections.rows(sql.LATEST_SNAPSHOT_UNTIL, asked))
        else:
            found = _last(self._connections.rows(sql.LATEST_SNAPSHOT, _where(saga_id, step, phase, max_seq)))
        if found is not None and not (
            step in (None, found.step_name)
            and phase in (None, found.phase)
            and (until is None or found.created_at <= until)
            and (max_seq is None or found.seq <= max_seq)
        ):
            raise misplaced_snapshot(found)
        if found is None or found.retention_until is None or not self._expired(found):
            return found
        asked = (*_where(saga_id, step, phase, max_seq), _MAX if last is None else last)
        return _last(self._connections.rows(sql.LATEST_SERVED, (*asked, micros(self.clock()))))

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        asked, now = (saga_id, *read_snapshot_cursor(cursor), limit), self.clock()
        nothing: list[SagaSnapshot] = []
        found = self._connections.read(lambda c: in_one_look(c, lambda c: _listed(c, *asked, now)), nothing)
        page = found[:limit]
        return Page(page, snapshot_cursor(page[-1]) if len(found) > limit else None)

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`."""
        last = _MAX if until is None else micros(until)
        read, more, at = min(max(after_seq, -1), MAX_EVENT_SEQ), True, _MIN
        while more:
            asked = (saga_id, read)
            rows, more = self._connections.read(lambda c, a=asked: _some_events(c, a, last), _NO_EVENTS)  # type: ignore[misc] # a bound default
            for event_id, at, kind, step, data, _ in rows:
                read = event_id & MAX_EVENT_SEQ
                yield StoredEvent(saga_id, read, moment(at, saga_id), kind, step, data)
        if at > last:
            raise misplaced(saga_id, read)

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        now = micros(self.clock())
        rows = self._connections.rows(sql.COUNT_SNAPSHOTS, (saga_id, MAX_SEQ, now))
        served, stored = rows[0] if rows else (0, 0)
        if served < stored:
            self._check_expired(saga_id, now)
        return int(served)

    def _check_expired(self, saga_id: str, now: int) -> None:
        """Raise `DamagedSnapshotError` when one of the saga's snapshots only looks as if it had expired."""
        for row in self._connections.rows(sql.EXPIRED_OF_SAGA, (saga_id, now)):
            check_expired(snapshot_from(row))

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        now = micros(self.clock())
        return self._connections.change(lambda c: delete_below(c, saga_id, below_seq, now), 0)

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`."""
        return self._connections.change(lambda c: delete_saga(c, (saga_id,)), False)

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`."""
        check_prune(now, batch)
        gone, after = 0, (_MIN - 1, 0)
        damaged: dict[int, CorruptDataError] = {}
        while True:
            asked = (micros(now), *after, batch)
            rows = self._connections.rows(sql.EXPIRED, asked)
            for saga in dict.fromkeys(row[2] for row in rows if row[2] not in damaged):
                try:
                    gone += self._prune_saga(saga, asked[0], batch)
                except CorruptDataError as error:
                    damaged[saga] = error
            if len(rows) < batch:
                raise_damaged(list(damaged.values()))
                return gone
            after = rows[-1][:2]

    def _prune_saga(self, saga: int, now: int, batch: int) -> int:
        for (saga_id,) in self._connections.rows(sql.SAGA_ID, (saga,)):
            self._check_expired(saga_id, now)
        doomed = prunable(self._connections.rows(sql.ALL_OF_SAGA, (saga,)), now)
        for start in range(0, len(doomed), batch):
            part = doomed[start : start + batch]
            self._connections.change(lambda c, part=part: c.executemany(sql.DELETE_SNAPSHOT, part), None)  # type: ignore[misc] # a bound default
        return len(doomed)

    async def log_replay(self, record: ReplayRecord) -> None:
        """See `SnapshotStorage.log_replay`."""
        row = replay_row(record)
        self._connections.write(lambda c: c.execute(sql.PUT_REPLAY, row))

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """See `SnapshotStorage.list_replays`."""
        return [replay_from(row) for row in self._connections.rows(sql.LIST_REPLAYS, (saga_id,))]

    async def info(self) -> StoreInfo:
        """See `SnapshotStorage.info`. `bytes` are those of the file and its log."""
        rows = self._connections.rows(sql.COUNT_ALL, ())
        counts: tuple[int, ...] = rows[0] if rows else (0, 0, 0, 0)
        sagas, events, snapshots, replays = counts
        version = sql.SCHEMA_VERSION if rows else 0
        return StoreInfo(self.url, version, sagas, events, snapshots, replays, _size_of(self.path))

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`."""
        if not self._connections.read(
            lambda connection: True, False
        ):  # an earlier schema is none any more when it is read
            self._connections.write(lambda connection: None)
        return sql.SCHEMA_VERSION

    async def close(self) -> None:
        """See `SnapshotStorage.close`."""
        self._connections.close()


_REFUSALS = (CodecError, DuplicateSagaError, UsageError, UnicodeEncodeError, OverflowError)


def _size_of(path: str) -> int:
    return sum(os.path.getsize(part) for part in (path, f"{path}-wal") if os.path.exists(part))


def _has_something(batch: Batch) -> bool:
    return bool(batch.saga or batch.events or batch.snapshots or batch.summary)


def _refusal(batch: Batch) -> Exception | None:
    try:
        check_batch(batch)
    except UsageError as error:
        return error
    return None


def _some_events(
    connection: sqlite3.Connection, asked: tuple[str, int], last: int
) -> tuple[list[tuple[Any, ...]], bool]:
    """Return the next events, as many as are good to hold at once, and whether there are more."""
    found: list[tuple[Any, ...]] = []
    size = 0
    rows = connection.execute(sql.READ_EVENTS, asked)
    try:
        for row in rows:
            check_event(asked[0], row)
            if row[5] > last:
                if row[1] <= last:
                    raise misplaced(asked[0], row[0] & MAX_EVENT_SEQ)
                break
            found.append(row)
            size += len(row[4])
            if len(found) == _EVENTS_AT_ONCE or size > _BYTES_AT_ONCE:
                return found, True
    finally:
        rows.close()
    return found, False


def _listed(
    connection: sqlite3.Connection, saga_id: str, seq: int, last: str, limit: int, now: datetime
) -> list[SagaSnapshot]:
    """Return the page and one more, which has no bases."""
    found: list[SagaSnapshot] = []
    more = True
    while more and len(found) <= limit:
        # All at once: a statement that is not at its end when a row is damaged keeps the connection in the past.
        rows = connection.execute(sql.LIST_SNAPSHOTS, (saga_id, seq, last, limit + 1)).fetchall()
        more = len(rows) > limit
        for snapshot in map(snapshot_from, rows):
            if (snapshot.seq, snapshot.snapshot_id) <= (seq, last):
                raise misplaced_snapshot(snapshot)
            seq, last = snapshot.seq, snapshot.snapshot_id
            if expired(snapshot, now):
                check_expired(snapshot)
            else:
                found.append(snapshot)
    page = found[:limit]
    first = min((s.base_seq for s in page if s.base_seq is not None), default=None)
    if first is None:
        return found
    rows = connection.execute(sql.LIST_STORED, (saga_id, first, page[-1].seq)).fetchall()
    stored = [snapshot_from(row) for row in rows]
    return [*with_bases(page, stored), *found[limit:]]


def _where(saga_id: str, step: str | None, phase: str | None, max_seq: int | None) -> tuple[str, Any, Any, int]:
    """Return the saga, and the place in `saga_places` of what is asked for."""
    highest = MAX_SEQ if max_seq is None else min(max_seq, MAX_SEQ)
    return saga_id, sql.ANY if step is None else step, sql.ANY if phase is None else phase, highest


def _last(rows: list[tuple[Any, ...]]) -> SagaSnapshot | None:
    """Return the last snapshot, with those before it as its bases."""
    if not rows:
        return None
    snapshot = snapshot_from(rows[-1])
    if snapshot.base_seq is None:
        return snapshot
    return snapshot._replace(bases=tuple([Base(row[0], row[9]) for row in rows[:-1]]))


# ---- URLs


def open_sqlite(url: str) -> SqliteSnapshotStorage:
    """Open `sqlite:///relative.db`, `sqlite:////absolute.db` or `sqlite:///C:/folder/file.db`.

    A relative path is taken from the folder that is current now. `?busy_timeout=` is in seconds. Special characters
    may be percent-encoded; `?` and `%` must be.
    """
    location, _, query = url.partition("://")[2].partition("?")
    path = unquote(location[1:])
    shown = repr(safe_url(url))
    if not location.startswith("/"):
        raise UsageError(
            f"{shown} has a host, or too few slashes: write sqlite:///relative.db or sqlite:////absolute.db"
        )
    if not path or path.endswith("/"):
        raise UsageError(f"{shown} names no file: write sqlite:///relative.db or sqlite:////absolute.db")
    if path == ":memory:":
        raise UsageError(f"{shown} would be a file of that name: for a store in memory, write memory://")
    seconds = 5.0
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "busy_timeout":
            known = ["busy_timeout"]
            raise UsageError(f"{shown} has the unknown option {name!r}{nearest(name, known)}; known: {quoted(known)}")
        try:
            seconds = float(value)
        except ValueError:
            raise UsageError(f"{shown} gives busy_timeout as {value!r}: give seconds, such as busy_timeout=5") from None
    return SqliteSnapshotStorage(path, busy_timeout=seconds)
