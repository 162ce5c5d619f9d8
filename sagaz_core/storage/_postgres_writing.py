"""Writing to PostgreSQL: one statement that appends, and a transaction for what does not come behind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from sagaz_core.errors import CodecError, StorageError, UsageError
from sagaz_core.storage import _postgres_statements as sql
from sagaz_core.storage._checks import another_event, another_saga, another_snapshot, check_batch, contested
from sagaz_core.storage._network import LostConnectionError, says_nothing, unavailable
from sagaz_core.storage._postgres_append import (
    MANY,
    SHORT,
    THERE,
    is_small,
    keys_of,
    one_of,
    parameters_of_many,
    parameters_of_one,
    parameters_of_short,
)
from sagaz_core.storage._postgres_batch import Rows
from sagaz_core.storage._postgres_columns import columns, event_columns, snapshot_columns
from sagaz_core.storage._postgres_connections import Connection
from sagaz_core.storage._postgres_core import PostgresCore, Result
from sagaz_core.storage._postgres_rows import as_text, as_time, event_from, from_text, same_saga, snapshot_from
from sagaz_core.storage.base import Batch, checked_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

Key = TypeVar("Key")
Record = TypeVar("Record")


class PostgresWriting(PostgresCore):
    """What a store does with batches."""

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        checked_id(batch.saga_id)
        if not says_nothing(batch):
            rows = Rows(batch)
            await self._change(lambda connection: self._write(connection, rows))

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`. What can be appended goes in one statement, the rest in one by one."""
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
            await self._change(lambda connection: self._append_many(connection, waiting))
        for place in list(waiting):
            results[place] = await self._refused(self.write(batches[place]))
        return results

    async def _append_many(self, connection: Connection, waiting: dict[int, Rows]) -> None:
        """Append what can be, and take it out of `waiting`. Several batches of a saga go together, or one by one."""
        times = Counter(rows.saga_id for rows in waiting.values())
        long_ids = {rows.saga_id for rows in waiting.values() if not rows.is_short}
        some = [
            (rows.saga_id, place)
            for place, rows in waiting.items()
            if rows.saga_id not in long_ids or (rows.simple and times[rows.saga_id] == 1)
        ]
        if not some:
            return
        some.sort()  # by their ids, so that two processes lock them in the same order
        done = await self._added(connection, [waiting[place] for _, place in some])
        for saga_id, place in some:
            if saga_id in done:
                del waiting[place]

    async def _added(self, connection: Connection, some: Sequence[Rows]) -> set[str]:
        """Append the rows, and return of which sagas they were added. One that has some of them already is left out."""
        done = await self._added_together(connection, some)
        if done is not None or len(some) == 1:
            return done or set()
        there = {row[0] for row in await self._tried(connection.fetch, THERE, keys_of(some)) or ()}
        left = [rows for rows in some if rows.saga_id not in there]
        if not there or not left:
            return set()
        return await self._added_together(connection, left) or set()

    async def _added_together(self, connection: Connection, some: Sequence[Rows]) -> set[str] | None:
        """Do so without a look at what is there: None is that some of it is, and nothing was added."""
        if not all(rows.is_short for rows in some):
            found = await self._tried(connection.fetch, MANY, parameters_of_many(some))
            return None if found is None else {row[0] for row in found}
        done = await self._tried(connection.execute, SHORT, parameters_of_short(some))
        return None if done is None else {rows.saga_id for rows in some}

    async def _tried(
        self, run: Callable[..., Awaitable[Result]], statement: str, parameters: Sequence[Any]
    ) -> Result | None:
        """Return what the statement gives. None is that it added nothing: some of it is there, or cannot be stored."""
        try:
            async with self._savepoint():
                return await run(self._text(statement), *parameters)
        except (asyncpg.UniqueViolationError, asyncpg.DataError):
            return None

    async def _write(self, connection: Connection, rows: Rows) -> None:
        if rows.simple and await self._appended(connection, rows):
            return
        async with connection.transaction():
            await self._merge(connection, rows)

    async def _appended(self, connection: Connection, rows: Rows) -> bool:
        """Append the rows, and say whether they came behind what is there."""
        if not is_small(rows):
            return bool(await self._added(connection, [rows]))
        done = await self._tried(connection.execute, one_of(rows), parameters_of_one(rows))
        return done is not None and not done.endswith(" 0")

    async def _merge(self, connection: Connection, rows: Rows) -> None:
        """Add what is not there yet, in a transaction. Raises `DuplicateSagaError` for what is there, and differs."""
        text, batch = self._text, rows.batch
        await connection.execute(text(sql.ADD_SAGA_ID), rows.saga_id)
        known = await connection.fetchrow(text(sql.LOCK_SAGA), rows.saga_id)
        if known is None:
            raise _deleted_meanwhile()
        if batch.saga is not None and rows.record is not None:
            if known[1] is None:
                await connection.execute(text(sql.SET_RECORD), *rows.record)
            elif not same_saga(known, rows.record):
                raise another_saga(batch.saga)
        if batch.snapshots:  # before the events, as `_postgres_append` has it
            await self._merge_snapshots(connection, rows)
        if batch.events:
            await self._merge_events(connection, rows)
        if rows.summary[0] is not None:
            await connection.execute(text(sql.SET_SUMMARY), rows.saga_id, *rows.summary)
        if rows.long_events or rows.long_snapshots:
            await connection.execute(text(sql.SET_LAST), rows.saga_id)

    async def _merge_events(self, connection: Connection, rows: Rows) -> None:
        events = rows.batch.events
        added = await connection.fetch(self._text(sql.ADD_EVENTS), *event_columns(events))
        if len(added) < len(events):
            seqs = [event.seq for event in events]
            found = await connection.fetch(self._text(sql.KNOWN_EVENTS), rows.saga_id, seqs)
            known = {row[0]: event_from(rows.batch.saga_id, row) for row in found}
            for event in events:
                if _that_is_there(known, event.seq) != event:
                    raise another_event(event)
        if added and rows.long_events:
            lowest, earliest = min(event.seq for event in events), min(as_time(event.at) for event in events)
            await connection.execute(self._text(sql.SET_EVENT_FLOORS), rows.saga_id, lowest, earliest)

    async def _merge_snapshots(self, connection: Connection, rows: Rows) -> None:
        snapshots = rows.batch.snapshots
        added = await connection.fetch(self._text(sql.ADD_SNAPSHOTS), *snapshot_columns(snapshots))
        if len(added) < len(snapshots):
            ids = [(as_text(snapshot.snapshot_id),) for snapshot in snapshots]
            found = await connection.fetch(self._text(sql.KNOWN_SNAPSHOTS), *columns(ids, ("text",)))
            known = {from_text(row[0]): snapshot_from(row, bases=False) for row in found}
            for snapshot in snapshots:
                if _that_is_there(known, snapshot.snapshot_id) != snapshot._replace(bases=()):
                    raise another_snapshot(snapshot)
        if added and rows.long_snapshots:
            lowest = min(snapshot.seq for snapshot in snapshots)
            earliest = min(as_time(snapshot.created_at) for snapshot in snapshots)
            await connection.execute(self._text(sql.SET_SNAPSHOT_FLOORS), rows.saga_id, lowest, earliest)

    async def _refused(self, work: Awaitable[object]) -> Exception | None:
        """Do the work, and return why it was refused."""
        try:
            await work
        except (UsageError, CodecError, StorageError) as error:
            if unavailable(error):
                raise
            return error
        return None


def _that_is_there(known: Mapping[Key, Record], key: Key) -> Record:
    """Return the record that was in the way when another one was to be added."""
    if key not in known:
        raise _deleted_meanwhile()
    return known[key]


def _deleted_meanwhile() -> LostConnectionError:
    """Return the error upon which all of it is begun anew."""
    return LostConnectionError("some of it was deleted meanwhile")
