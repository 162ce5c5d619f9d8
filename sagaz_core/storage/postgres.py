"""Snapshots in PostgreSQL: for many machines, with SQL at hand.

A call is one round trip: what is appended comes as one statement, which adds nothing when some of it is there already,
or when it does not come behind what a long saga has. Only then the saga's row is locked, and its records are compared.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from weakref import WeakValueDictionary

from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage import _postgres_statements as sql
from sagaz_core.storage._checks import LONG_AGO, above_prefix, check_find, check_limit, check_prune, raise_damaged
from sagaz_core.storage._listing import page_of
from sagaz_core.storage._network import LostConnectionError, count, one_of, readable, seconds, split_url, url_options
from sagaz_core.storage._postgres_columns import columns
from sagaz_core.storage._postgres_connections import FOREIGN, Connection
from sagaz_core.storage._postgres_core import Result
from sagaz_core.storage._postgres_rows import (
    as_seq,
    as_text,
    as_time,
    replay_from,
    replay_row,
    saga_from,
    saga_id_of,
    snapshot_from,
    summary_from,
    tags_json,
)
from sagaz_core.storage._postgres_schema import SCHEMA_VERSION
from sagaz_core.storage._postgres_snapshots import PostgresSnapshots
from sagaz_core.storage._postgres_writing import PostgresWriting
from sagaz_core.storage.base import Page, ReplayRecord, SagaRecord, StoreInfo
from sagaz_core.storage.frames import check_expired
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    import asyncpg


class PostgresSnapshotStorage(PostgresSnapshots, PostgresWriting):
    """A store in a PostgreSQL database, safe for many machines, processes, threads and loops at once.

    The tables are made by the first write, in `schema`. A store that does not exist yet can be read, and is empty.
    `timeout` is in seconds, for a whole call, waiting for a connection and trying again included. `prepared=False` is
    for a pooler that gives each transaction another connection.
    """

    @property
    def calls_at_once(self) -> int:
        """See `AnswersTogether`."""
        return self._connections.calls_at_once

    def bind(self, connection: asyncpg.Connection) -> PostgresSnapshotStorage:
        """Return this store on the caller's own connection, and so within the caller's transaction.

        What it writes is there when the caller commits, and not otherwise. The tables must be there already (see
        `upgrade`). Nothing is tried again: a lost connection has lost the transaction. To close it does nothing.
        Several tasks may use it, and several such stores of one connection: each waits for its turn. A statement of
        the caller's own must not run on the connection at the same time.
        """
        if not hasattr(connection, "transaction"):
            name = type(connection).__name__
            raise UsageError(f"bind() takes a connection of asyncpg, not a {name}: take one with pool.acquire()")
        return _BoundPostgresStorage(self, connection)

    # ---- sagas

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
                await connection.execute(self._text(sql.LOCK_SAGA), as_text(saga_id))
                return bool(await connection.fetchval(self._text(sql.DELETE_SAGA), as_text(saga_id)))

        return await self._read(delete, False)

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`."""
        check_prune(now, batch)
        damaged = await self._damaged_ends(as_time(now), batch)
        asked = as_time(now), batch, [as_text(saga_id) for saga_id in damaged]
        deleted, part = 0, -1
        while part:
            done = await self._read(lambda c: c.execute(self._text(sql.PRUNE), *asked), "DELETE 0")
            part = int(done.rpartition(" ")[2])
            deleted += part
        raise_damaged(list(damaged.values()))
        return deleted

    async def _damaged_ends(self, now: datetime, batch: int) -> dict[str, CorruptDataError]:
        """Return the sagas in which a snapshot only looks as if it had expired, and the error of each."""
        damaged: dict[str, CorruptDataError] = {}
        last: tuple[datetime, str] = LONG_AGO, ""
        while True:
            rows = await self._rows(sql.EXPIRED, now, *last, batch)
            for snapshot in (snapshot_from(row, bases=False) for row in rows):
                try:
                    check_expired(snapshot)
                except CorruptDataError as error:
                    damaged[snapshot.saga_id] = error
                last = snapshot.retention_until or now, as_text(snapshot.snapshot_id)
            if len(rows) < batch:
                return damaged

    # ---- the replay log, and the whole

    async def log_replay(self, record: ReplayRecord) -> None:
        """See `SnapshotStorage.log_replay`."""
        row = replay_row(record)
        await self._change(lambda connection: connection.execute(self._text(sql.PUT_REPLAY), *row))

    async def log_replays(self, records: Sequence[ReplayRecord]) -> Sequence[Exception | None]:
        """See `AnswersTogether.log_replays`. It is one statement, unless something of it cannot be stored."""
        last = {record.replay_id: record for record in records}
        try:
            by_column = columns([replay_row(last[name]) for name in sorted(last)], sql.REPLAY_TYPES)
            await self._change(lambda connection: connection.execute(self._text(sql.PUT_REPLAYS), *by_column))
        except UsageError:
            return [await self._refused(self.log_replay(record)) for record in records]
        return [None] * len(records)

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """See `SnapshotStorage.list_replays`."""
        return [replay_from(row) for row in await self._rows(sql.LIST_REPLAYS, as_text(saga_id))]

    async def info(self) -> StoreInfo:
        """See `SnapshotStorage.info`. `bytes` are those of the tables and their indices."""
        rows = await self._rows(sql.INFO)
        if not rows:
            return StoreInfo(safe_url(self.url), 0, 0, 0, 0, 0, 0)
        return StoreInfo(safe_url(self.url), *rows[0])

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`. It waits as long as that takes: `timeout` is for connecting alone."""
        await self._connections.upgrade()
        return SCHEMA_VERSION

    async def close(self) -> None:
        """See `SnapshotStorage.close`. The connections are those of the running loop; the next use opens some again."""
        await self._connections.close()


_TURNS: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()  # by the identity of the connection


class _BoundPostgresStorage(PostgresSnapshotStorage):
    """A store on one connection of the caller's, which does one thing at a time, whoever asks it by whichever store."""

    def __init__(self, storage: PostgresSnapshotStorage, connection: Connection) -> None:
        self.url = storage.url
        self.clock = storage.clock
        self._connections = storage._connections
        self._text = storage._text
        self._connection = connection
        self._turn = _TURNS.setdefault(id(connection), asyncio.Lock())

    @property
    def calls_at_once(self) -> int:
        return 1

    async def _read(self, work: Callable[[Connection], Awaitable[Result]], otherwise: Result) -> Result:
        return await self._change(work)

    async def _change(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        async with self._turn:
            try:
                # A statement that fails ends a transaction; what is within a savepoint does not end the caller's.
                async with self._connection.transaction():
                    return await work(self._connection)
            except (*FOREIGN, LostConnectionError) as error:
                raise self._connections.of_a_bound_one(error) from error

    def _savepoint(self) -> AbstractAsyncContextManager[object]:
        found: AbstractAsyncContextManager[object] = self._connection.transaction()
        return found

    async def close(self) -> None:
        """Leave the connection to its owner."""


# ---- URLs

_OPTIONS = {"timeout": "10", "pool_size": "10", "schema": "public", "prepared": "yes"}
_DRIVER_OPTIONS = (
    *("application_name", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "target_session_attrs", "passfile", "host", "port"),
)
_CHOICES = {
    "prepared": ("yes", "no"),
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
}
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")


def open_postgres(url: str) -> PostgresSnapshotStorage:
    """Open `postgresql://user:password@host:port/database`, with the options of `docs/postgresql.md`."""
    parts = split_url(url, many_hosts=True)
    options = url_options(url, _OPTIONS, _DRIVER_OPTIONS)
    ours = {name: options.pop(name, default) for name, default in _OPTIONS.items()}
    for name, known in _CHOICES.items():
        one_of(url, name, options.get(name, ours.get(name, known[0])), known)
    for text in options["port"].split(",") if "port" in options else ():
        count(url, "port", text)
    readable(url, options, _FILES)
    return PostgresSnapshotStorage(
        parts._replace(scheme="postgresql", query=urlencode(options)).geturl(),
        schema=ours["schema"],
        timeout=seconds(url, "timeout", ours["timeout"]),
        pool_size=count(url, "pool_size", ours["pool_size"]),
        prepared=ours["prepared"] == "yes",
        url=url,
    )
