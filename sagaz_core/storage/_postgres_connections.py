"""Connections to one PostgreSQL database: a pool for each event loop, the schema looked at once, errors as ours."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from sagaz_core._per_loop import PerLoop
from sagaz_core.errors import SchemaError, StorageError, StoreUnavailableError, UsageError
from sagaz_core.storage._network import LostConnectionError, Pool, one_line, persistently
from sagaz_core.storage._postgres_schema import (
    CREATE_SCHEMA,
    CREATE_VERSION,
    GET_VERSION,
    IS_READY,
    LOCK_MIGRATION,
    LONG_INDICES,
    MIGRATIONS,
    NEEDED_VERSION,
    SCHEMA_VERSION,
    SET_VERSION,
    TAKE_TURN,
    dropped,
    made,
)
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Result = TypeVar("Result")
Connection = Any  # asyncpg.Connection: the driver has no types

FOREIGN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.DatabaseDroppedError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.UndefinedTableError,  # dropped since it was looked at
    asyncpg.InterfaceError,  # a connection that was closed meanwhile
    asyncpg.InternalClientError,  # one that broke at an unlucky moment
    asyncio.IncompleteReadError,
)
_UNAVAILABLE = (
    (asyncpg.ReadOnlySQLTransactionError, "it is read-only: name the primary server"),
    (asyncpg.DiskFullError, "its disk is full"),
    (asyncpg.OutOfMemoryError, "it has not enough memory"),
    (asyncpg.InsufficientResourcesError, "it has run out of what it needs"),
    (asyncpg.PostgresSystemError, "it cannot read or write its files: look at its disk"),
    (asyncpg.LockNotAvailableError, "what it was to write is locked: look at its lock_timeout"),
    (asyncpg.QueryCanceledError, "it cancelled what was asked: look at its statement_timeout"),
    (asyncpg.InsufficientPrivilegeError, "this user may not do that there"),
    (asyncpg.InvalidAuthorizationSpecificationError, "it does not let this user in"),
    (asyncpg.InvalidCatalogNameError, "there is no such database"),
)


_TURN = 0.1  # seconds until it is asked again whether another process still makes the indices
_CALLS_AT_ONCE = 4  # for this process, the server and the disk: measured where a commit takes 0 to 5 ms


class Connections:
    """The connections of one store."""

    def __init__(self, url: str, dsn: str, schema: str, timeout: float, pool_size: int, *, prepared: bool) -> None:
        self.url = url
        self.timeout = timeout
        self.calls_at_once = min(_CALLS_AT_ONCE, pool_size)
        self._dsn = dsn
        self._schema = schema
        self._prefix = f'"{schema}".'
        self._pool_size = pool_size
        self._prepared = prepared
        self._pools: PerLoop[Pool] = PerLoop(self._new_pool, lambda pool: _terminate(pool.empty()))
        self._texts: dict[str, str] = {}

    def text(self, statement: str) -> str:
        """Return the statement for this store's schema."""
        found = self._texts.get(statement)
        if found is None:
            found = self._texts[statement] = statement.replace("{s}", self._prefix)
        return found

    async def read(self, work: Callable[[Connection], Awaitable[Result]], otherwise: Result) -> Result:
        """Return what `work` returns, or `otherwise` when there are no tables (then none are made)."""
        return await persistently(self.url, self.timeout, lambda: self._attempt(work, otherwise))

    async def write(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Return what `work` returns; the tables are made if there are none."""
        return await persistently(self.url, self.timeout, lambda: self._attempt(work, None, create=True))  # type: ignore[arg-type] # None is never returned then

    async def upgrade(self) -> None:
        """Make the tables, or bring them to this release's version, however long that takes."""
        if await self.write(self._version) == SCHEMA_VERSION:
            return
        try:
            connection = await asyncpg.connect(self._dsn, timeout=self.timeout, statement_cache_size=0)
            try:
                if self._prepared:
                    await self._migrate_in_use(connection)
                else:  # the pooler gives each transaction another connection
                    await self._migrate(connection, SCHEMA_VERSION)
            finally:
                connection.terminate()  # and so ends what is under way, and its turn
        except FOREIGN as error:
            ours = self.translated(error)
            if not isinstance(ours, LostConnectionError):
                raise ours from error
            shown = safe_url(self.url)
            raise StoreUnavailableError(
                f"the upgrade of the store {shown} was broken off ({ours}): do it again"
            ) from error

    async def close(self) -> None:
        """Close the connections of the running loop."""
        pool = self._pools.pop()
        for connection in () if pool is None else pool.empty():
            await connection.close()

    def _new_pool(self) -> Pool:
        options: dict[str, Any] = {"timeout": self.timeout, "max_cached_statement_lifetime": 0}
        if self._prepared:
            # The statements are served by one index each, whatever the values: to plan them again costs more than them.
            options["server_settings"] = {"plan_cache_mode": "force_generic_plan"}
        else:
            options["statement_cache_size"] = 0
        return Pool(self._pool_size, lambda: asyncpg.connect(self._dsn, **options))

    async def _attempt(
        self, work: Callable[[Connection], Awaitable[Result]], otherwise: Result, *, create: bool = False
    ) -> Result:
        pool = self._pools.get()
        try:
            connection = await pool.take()
            try:
                if not pool.ready:
                    pool.ready = await self._is_ready(connection, create)
                    if not pool.ready:
                        return otherwise
                return await work(connection)
            except asyncio.CancelledError:
                connection.terminate()  # what it was asked may go on, and nobody is left to wait for it
                raise
            finally:
                pool.give_back(None if connection.is_closed() else connection)
        except FOREIGN as error:
            if isinstance(error, asyncpg.UndefinedTableError):
                pool.ready = False
            ours = self.translated(error)
            if isinstance(ours, LostConnectionError):
                _terminate(pool.empty())  # what has broken one has broken them all
            raise ours from error

    async def _is_ready(self, connection: Connection, create: bool) -> bool:
        version = await self._version(connection)
        if version < NEEDED_VERSION and (version or create):
            await self._migrate(connection, NEEDED_VERSION if version else SCHEMA_VERSION)
            return True
        return version > 0

    async def _version(self, connection: Connection) -> int:
        try:
            version = int(await connection.fetchval(self.text(GET_VERSION)) or 0)
        except asyncpg.UndefinedTableError:
            return 0
        if version > SCHEMA_VERSION:
            raise SchemaError(
                f"the store {safe_url(self.url)} has schema {version}, this release reads up to {SCHEMA_VERSION}: "
                f"upgrade pytest-sagaz"
            )
        return version

    async def _migrate(self, connection: Connection, wanted: int) -> None:
        async with connection.transaction():
            await connection.execute(LOCK_MIGRATION, self._schema)
            if not await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", self._schema):
                await connection.execute(CREATE_SCHEMA.replace("{schema}", f'"{self._schema}"'))
            await connection.execute(self.text(CREATE_VERSION))
            # Another process may have done it between the look and the lock.
            for version in range(await self._version(connection) + 1, wanted + 1):
                for statement in MIGRATIONS[version]:
                    await connection.execute(self.text(statement))
                await connection.execute(self.text(SET_VERSION), version)

    async def _migrate_in_use(self, connection: Connection) -> None:
        """Make indices anew, one by one, while others write; go on where that was broken off."""
        # A statement that waited for its turn would be waited for by that which makes an index.
        while not await connection.fetchval(TAKE_TURN, self._schema):  # noqa: ASYNC110 - another process ends it
            await asyncio.sleep(_TURN)
        if await self._version(connection) == SCHEMA_VERSION:
            return
        for index in LONG_INDICES:
            if not await connection.fetchval(IS_READY, f"{self._prefix}{index.name}"):
                for statement in made(index, "CONCURRENTLY"):
                    await connection.execute(self.text(statement))
            await connection.execute(self.text(dropped(index, "CONCURRENTLY")))
        await connection.execute(self.text(SET_VERSION), SCHEMA_VERSION)

    def translated(self, error: BaseException) -> Exception:
        """Return the error as one of ours."""
        if isinstance(error, StorageError):
            return error
        name, said = safe_url(self.url), one_line(error)
        if isinstance(error, asyncpg.ClientConfigurationError):
            return UsageError(f"the driver cannot use {name!r}: {said}")
        if isinstance(error, asyncpg.DataError):
            return UsageError(f"PostgreSQL cannot store this text or number: {said:.200}")
        if isinstance(error, (*_LOST, OSError, LostConnectionError)):
            return LostConnectionError(said)
        for kind, reason in _UNAVAILABLE:
            if isinstance(error, kind):
                return StoreUnavailableError(f"the store {name} cannot be used: {reason} ({said})")
        return StorageError(f"the store {name} failed: {said}")

    def of_a_bound_one(self, error: BaseException) -> Exception:
        """Return the error of a connection that is the caller's as one of ours."""
        if isinstance(error, asyncpg.UndefinedTableError):
            return StoreUnavailableError(
                f"the store {safe_url(self.url)} has no tables yet: call upgrade() before bind()"
            )
        ours = self.translated(error)
        if not isinstance(ours, LostConnectionError):
            return ours
        return StoreUnavailableError(
            f"the store {safe_url(self.url)} cannot be used on the connection that it is bound to: {one_line(error)}"
        )


def _terminate(connections: Sequence[Connection]) -> None:
    """Let go of connections without a word to the server; of those of a closed loop, too."""
    for connection in connections:
        with contextlib.suppress(RuntimeError):
            connection.terminate()
