"""Snapshots in PostgreSQL: for many machines, with SQL at hand.

A call is one round trip: what is appended comes as one statement, which adds nothing when it does not come behind what
is stored. Only then the saga's row is locked, and its records are compared.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

import asyncpg

from sagaz_core.clock import utc_now
from sagaz_core.errors import CodecError, StorageError, UsageError
from sagaz_core.storage import _postgres_statements as sql
from sagaz_core.storage._checks import (
    LONG_AGO,
    above_prefix,
    another_event,
    another_saga,
    another_snapshot,
    check_batch,
    check_find,
    check_limit,
    check_prune,
    contested,
    expired,
    misplaced,
    read_snapshot_cursor,
    snapshot_cursor,
)
from sagaz_core.storage._listing import page_of
from sagaz_core.storage._network import (
    LostConnectionError,
    count,
    says_nothing,
    seconds,
    split_url,
    unavailable,
    url_options,
)
from sagaz_core.storage._postgres_append import (
    MANY,
    MANY_BEGIN,
    is_small,
    one_of,
    parameters_of_many,
    parameters_of_one,
)
from sagaz_core.storage._postgres_connections import Connection, Connections
from sagaz_core.storage._postgres_rows import (
    Rows,
    as_seq,
    as_text,
    as_time,
    checkpoint_from,
    columns,
    event_from,
    from_text,
    replay_from,
    replay_row,
    saga_from,
    saga_id_of,
    same_saga,
    snapshot_from,
    summary_from,
    tags_json,
)
from sagaz_core.storage._postgres_schema import SCHEMA_VERSION
from sagaz_core.storage.base import (
    Batch,
    Page,
    ReplayRecord,
    SagaRecord,
    SagaSnapshot,
    StoredEvent,
    StoreInfo,
    checked_id,
)
from sagaz_core.storage.frames import check_expired
from sagaz_core.storage.together import Checkpoint
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

Result = TypeVar("Result")

_EVENTS_AT_ONCE = 256
_EXPIRED_AT_ONCE = 2_000
_ALL = LONG_AGO  # asked for what is served then, all is found but what is kept as a base alone
_SCHEMA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


class PostgresSnapshotStorage:
    """A store in a PostgreSQL database, safe for many machines, processes, threads and loops at once.

    The tables are made by the first write, in `schema`. A store that does not exist yet can be read, and is empty.
    `timeout` is in seconds, for a whole call, waiting for a connection and trying again included. `prepared=False` is
    for a pooler that gives each transaction another connection.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "public",
        timeout: float = 10.0,
        pool_size: int = 10,
        prepared: bool = True,
        url: str = "",
    ) -> None:
        if not _SCHEMA_NAME.fullmatch(schema):
            raise UsageError(f"{schema!r:.80} is not a schema: give a name of letters, digits and _")
        self.url = url or dsn
        self.clock: Callable[[], datetime] = utc_now
        self._connections = Connections(self.url, dsn, schema, timeout, pool_size, prepared=prepared)
        self._text = self._connections.text

    def bind(self, connection: asyncpg.Connection) -> PostgresSnapshotStorage:
        """Return this store on the caller's own connection, and so within the caller's transaction.

        What it writes is there when the caller commits, and not otherwise. The tables must be there already (see
        `upgrade`). Nothing is tried again: a lost connection has lost the transaction. To close it does nothing.
        """
        if not hasattr(connection, "transaction"):
            name = type(connection).__name__
            raise UsageError(f"bind() takes a connection of asyncpg, not a {name}: take one with pool.acquire()")
        return _BoundPostgresStorage(self, connection)

    async def _read(self, work: Callable[[Connection], Awaitable[Result]], otherwise: Result) -> Result:
        return await self._connections.read(work, otherwise)

    async def _change(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        return await self._connections.write(work)

    async def _rows(self, statement: str, *values: Any) -> list[Any]:
        none: list[Any] = []
        return await self._read(lambda c: c.fetch(self._text(statement), *values), none)

    # ---- writing

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        checked_id(batch.saga_id)
        if not says_nothing(batch):
            rows = Rows(batch)
            await self._change(lambda connection: self._write(connection, batch, rows))

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`. What can be appended goes in two statements, the rest in one by one."""
        results: list[Exception | None] = [None] * len(batches)
        waiting: dict[int, Rows] = {}
        for place, batch in enumerate(batches):
            try:
                check_batch(batch)
                checked_id(batch.saga_id)
                if not says_nothing(batch):
                    waiting[place] = Rows(batch)
            except (UsageError, CodecError) as error:
                results[place] = error
        if len(waiting) > 1 and not contested(batches):
            with suppress(UsageError):  # one has what cannot be stored: it says so when it is written by itself
                await self._change(lambda connection: self._append_many(connection, waiting))
        for place in list(waiting):
            results[place] = await self._refused(self.write(batches[place]))
        return results

    async def _append_many(self, connection: Connection, waiting: dict[int, Rows]) -> None:
        """Append what can be, and take it out of `waiting`."""
        times = Counter(rows.saga_id for rows in waiting.values())
        simple = {place: rows for place, rows in waiting.items() if rows.simple and times[rows.saga_id] == 1}
        for statement, begins in ((MANY_BEGIN, True), (MANY, False)):
            # In order of their ids, so that two processes lock them in the same order.
            places = [place for place, rows in simple.items() if (rows.record is not None) is begins]
            places.sort(key=lambda place: simple[place].saga_id)
            if not places:
                continue
            parameters = parameters_of_many([simple[place] for place in places])
            try:
                done = await connection.fetch(self._text(statement), *parameters)
            except asyncpg.UniqueViolationError:
                continue
            ids = {row[0] for row in done}
            for place in places:
                if simple[place].saga_id in ids:
                    del waiting[place]

    async def _write(self, connection: Connection, batch: Batch, rows: Rows) -> None:
        if rows.simple and await self._appended(connection, rows):
            return
        async with connection.transaction():
            await self._merge(connection, batch, rows)

    async def _appended(self, connection: Connection, rows: Rows) -> bool:
        """Append the rows, and say whether they came behind what is there."""
        try:
            if is_small(rows):
                done = await connection.execute(self._text(one_of(rows)), *parameters_of_one(rows))
                return not done.endswith(" 0")
            statement = MANY if rows.record is None else MANY_BEGIN
            return bool(await connection.fetch(self._text(statement), *parameters_of_many([rows])))
        except asyncpg.UniqueViolationError:
            return False  # a snapshot's id is taken: nothing was added

    async def _merge(self, connection: Connection, batch: Batch, rows: Rows) -> None:
        """Add what is not there yet, in a transaction. Raises `DuplicateSagaError` for what is there, and differs."""
        text = self._text
        await connection.execute(text(sql.ADD_SAGA_ID), rows.saga_id)
        known = await connection.fetchrow(text(sql.LOCK_SAGA), rows.saga_id)
        if known is None:
            raise LostConnectionError("the saga was deleted meanwhile")
        if batch.saga is not None and rows.record is not None:
            if known[1] is None:
                await connection.execute(text(sql.SET_RECORD), *rows.record)
            elif not same_saga(known, rows.record):
                raise another_saga(batch.saga)
        if rows.events:
            await self._merge_events(connection, batch, rows)
        if rows.snapshots:
            await self._merge_snapshots(connection, rows, batch)
        if rows.summary[0] is not None:
            await connection.execute(text(sql.SET_SUMMARY), rows.saga_id, *rows.summary)
        if rows.events or rows.snapshots:
            await connection.execute(text(sql.SET_LAST), rows.saga_id)

    async def _merge_events(self, connection: Connection, batch: Batch, rows: Rows) -> None:
        added = await connection.fetch(self._text(sql.ADD_EVENTS), *columns(rows.events, len(sql.EVENT_TYPES)))
        if len(added) < len(rows.events):
            seqs = [event.seq for event in batch.events]
            found = await connection.fetch(self._text(sql.KNOWN_EVENTS), rows.saga_id, seqs)
            known = {row[0]: event_from(batch.saga_id, row) for row in found}
            for event in batch.events:
                if known[event.seq] != event:
                    raise another_event(event)
        if added:
            lowest, earliest = min(row[1] for row in rows.events), min(row[2] for row in rows.events)
            await connection.execute(self._text(sql.SET_EVENT_FLOORS), rows.saga_id, lowest, earliest)

    async def _merge_snapshots(self, connection: Connection, rows: Rows, batch: Batch) -> None:
        added = await connection.fetch(self._text(sql.ADD_SNAPSHOTS), *columns(rows.snapshots, len(sql.SNAPSHOT_TYPES)))
        if len(added) < len(rows.snapshots):
            ids = [row[0] for row in rows.snapshots]
            found = await connection.fetch(self._text(sql.KNOWN_SNAPSHOTS), ids)
            known = {from_text(row[0]): snapshot_from(row, bases=False) for row in found}
            for snapshot in batch.snapshots:
                if known.get(snapshot.snapshot_id) != snapshot._replace(bases=()):
                    raise another_snapshot(snapshot)
        if added:
            lowest, earliest = min(row[5] for row in rows.snapshots), min(row[8] for row in rows.snapshots)
            await connection.execute(self._text(sql.SET_SNAPSHOT_FLOORS), rows.saga_id, lowest, earliest)

    # ---- reading

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """See `SnapshotStorage.get_saga`."""
        rows = await self._rows(sql.GET_SAGA, as_text(saga_id))
        return saga_from(rows[0]) if rows else None

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_sagas`."""
        check_limit(limit)
        start = prefix if cursor is None else max(prefix, cursor + "\0")
        rows = await self._rows(sql.LIST_SAGAS, as_text(start), as_text(above_prefix(prefix)), limit + 1)
        return page_of(limit, rows, saga_from, saga_id_of)

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
        values: list[Any] = [limit + 1]
        where = ""
        texts = (("status", "=", status), ("summary_name", "=", saga_name), ("failed_step", "=", step_name))
        for column, sign, value in (*texts, ("saga_id", ">", cursor)):
            if value is not None:
                values.append(as_text(value))
                where += f" AND {column} {sign} ${len(values)}"
        if between is not None:
            values += [as_time(between[0]), as_time(between[1])]
            where += f" AND failed_at BETWEEN ${len(values) - 1} AND ${len(values)}"
        if wanted:
            values.append(tags_json(wanted))
            where += f" AND tags @> ${len(values)}::jsonb"
        rows = await self._rows(sql.FIND_SAGAS.replace("{where}", where), *values)
        return page_of(limit, rows, summary_from, saga_id_of)

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        rows = await self._rows(sql.GET_SNAPSHOT, as_text(snapshot_id), _ALL)
        found = snapshot_from(rows[0]) if rows else None
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
        asked = (
            None if step is None else as_text(step),
            None if phase is None else as_text(phase),
            None if until is None else as_time(until),
            None if max_seq is None else as_seq(max_seq),
        )
        statement = _LATEST[tuple(value is not None for value in asked)]
        values = [value for value in asked if value is not None]
        rows = await self._rows(statement, as_text(saga_id), _ALL, *values)
        if rows and self._expired(snapshot_from(rows[0])):
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
        rows = await self._rows(sql.COUNT_SNAPSHOTS, as_text(saga_id), as_time(self.clock()))
        return int(rows[0][0]) if rows else 0

    async def read_checkpoints(self, asked: Sequence[tuple[str, str]]) -> Sequence[Checkpoint]:
        """See `AnswersTogether.read_checkpoints`."""
        by_column = columns([(as_text(saga_id), as_text(step)) for saga_id, step in asked], 0)
        rows = await self._rows(sql.READ_CHECKPOINTS, as_time(self.clock()), *by_column)
        return [checkpoint_from(row) for row in rows] or [Checkpoint(None, None, None, ())] * len(asked)

    # ---- deleting

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        values = as_text(saga_id), as_seq(below_seq), as_time(self.clock())
        rows = await self._rows(sql.DELETE_SNAPSHOTS_BELOW, *values)
        return int(rows[0][0]) if rows else 0

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`."""

        async def delete(connection: Connection) -> bool:
            async with connection.transaction():
                deleted = await connection.fetchval(self._text(sql.DELETE_SAGA), as_text(saga_id))
                await connection.execute(self._text(sql.DELETE_SNAPSHOTS), as_text(saga_id))
                await connection.execute(self._text(sql.DELETE_EVENTS), as_text(saga_id))
                return deleted is not None

        return await self._read(delete, False)

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`."""
        check_prune(now, batch)
        deleted, part = 0, -1
        while part:
            done = await self._read(lambda c: c.execute(self._text(sql.PRUNE), as_time(now), batch), "DELETE 0")
            part = int(done.rpartition(" ")[2])
            deleted += part
        return deleted

    # ---- the replay log, and the whole

    async def log_replay(self, record: ReplayRecord) -> None:
        """See `SnapshotStorage.log_replay`."""
        row = replay_row(record)
        await self._change(lambda connection: connection.execute(self._text(sql.PUT_REPLAY), *row))

    async def log_replays(self, records: Sequence[ReplayRecord]) -> Sequence[Exception | None]:
        """See `AnswersTogether.log_replays`. It is one statement, unless something of it cannot be stored."""
        last = {record.replay_id: record for record in records}
        try:
            by_column = columns([replay_row(last[name]) for name in sorted(last)], 0)
            await self._change(lambda connection: connection.execute(self._text(sql.PUT_REPLAYS), *by_column))
        except UsageError:
            return [await self._refused(self.log_replay(record)) for record in records]
        return [None] * len(records)

    async def _refused(self, work: Awaitable[object]) -> Exception | None:
        """Do the work, and return why it was refused."""
        try:
            await work
        except (UsageError, CodecError, StorageError) as error:
            if unavailable(error):
                raise
            return error
        return None

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """See `SnapshotStorage.list_replays`."""
        return [replay_from(row) for row in await self._rows(sql.LIST_REPLAYS, as_text(saga_id))]

    async def info(self) -> StoreInfo:
        """See `SnapshotStorage.info`. `bytes` are those of the tables and their indices."""
        rows = await self._rows(sql.INFO)
        if not rows:
            return StoreInfo(safe_url(self.url), 0, 0, 0, 0, 0, 0)
        return StoreInfo(safe_url(self.url), SCHEMA_VERSION, *rows[0])

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`."""
        await self._connections.upgrade()
        return SCHEMA_VERSION

    async def close(self) -> None:
        """See `SnapshotStorage.close`. The connections are those of the running loop; the next use opens some again."""
        await self._connections.close()


class _BoundPostgresStorage(PostgresSnapshotStorage):
    """A store on one connection of the caller's."""

    def __init__(self, storage: PostgresSnapshotStorage, connection: Connection) -> None:
        self.url = storage.url
        self.clock = storage.clock
        self._connections = storage._connections
        self._text = storage._text
        self._connection = connection

    async def _read(self, work: Callable[[Connection], Awaitable[Result]], otherwise: Result) -> Result:
        return await self._change(work)

    async def _change(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        try:
            # A statement that fails ends a transaction; what is within a savepoint does not end the caller's.
            async with self._connection.transaction():
                return await work(self._connection)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise self._connections.translated(error) from error

    async def close(self) -> None:
        """Leave the connection to its owner."""


_LATEST: dict[tuple[bool, ...], str] = {
    (step, phase, until, max_seq): sql.latest(step=step, phase=phase, until=until, max_seq=max_seq)
    for step in (False, True)
    for phase in (False, True)
    for until in (False, True)
    for max_seq in (False, True)
}


# ---- URLs

_OPTIONS = {"timeout": "10", "pool_size": "10", "schema": "public", "prepared": "yes"}
_DRIVER_OPTIONS = (
    *("application_name", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "passfile", "host", "port"),
)


def open_postgres(url: str) -> PostgresSnapshotStorage:
    """Open `postgresql://user:password@host:port/database`, with the options of `docs/postgresql.md`."""
    parts = split_url(url)
    options = url_options(url, _OPTIONS, _DRIVER_OPTIONS)
    ours = {name: options.pop(name, default) for name, default in _OPTIONS.items()}
    if ours["prepared"] not in ("yes", "no"):
        raise UsageError(f"{safe_url(url)!r} gives prepared as {ours['prepared']!r}: give yes or no")
    return PostgresSnapshotStorage(
        parts._replace(scheme="postgresql", query=urlencode(options)).geturl(),
        schema=ours["schema"],
        timeout=seconds(url, "timeout", ours["timeout"]),
        pool_size=count(url, "pool_size", ours["pool_size"]),
        prepared=ours["prepared"] == "yes",
        url=url,
    )
