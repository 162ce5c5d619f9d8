"""Connections to one Redis server: a pool for each event loop, commands sent together, errors as ours."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import redis.asyncio as driver
from hiredis import pack_command
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from sagaz_core._per_loop import PerLoop
from sagaz_core.errors import SchemaError, StorageError, StoreUnavailableError
from sagaz_core.storage._network import LostConnectionError, Pool, one_line, persistently
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Result = TypeVar("Result")
Command = tuple[Any, ...]

SCHEMA_VERSION = 1

_UNAVAILABLE = (
    (ReadOnlyError, "it is read-only: name the primary server"),
    (OutOfMemoryError, "its memory is full: raise its maxmemory, or delete sagas"),
    (NoPermissionError, "this user may not do that there"),
    (AuthenticationError, "it does not let this user in"),
    (AuthorizationError, "it does not let this user in"),
)
_UNAVAILABLE_CODES = {  # that the driver has no class for
    "MISCONF": "it takes no writes, as it cannot save them: look at its disk",
    "NOREPLICAS": "it takes no writes without its replicas",
    "NOAUTH": "it asks for a password",
}
_NOT_NOW = (ClusterDownError, TryAgainError)  # also that a replica has lost its primary
_NOT_NOW_CODES = ("BUSY",)  # with a script


class Conditional(NamedTuple):
    """Commands that are done, all of them or none, if none of the keys `absent` is there.

    `guard` is a key for this: it is watched, and what is under those keys is copied to it, by which the transaction is
    given up if there is anything. Then it is left there, to be deleted.
    """

    guard: bytes
    absent: Sequence[bytes]
    commands: Sequence[Command]


class Trip:
    """A connection in the hands of one caller. `send` is one round trip."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies. Raises the first that is an error, when all are read."""
        connection = self._connection
        await connection.send_packed_command(b"".join(map(pack_command, commands)))
        replies, read = list[Any](), connection.read_response
        failed: ResponseError | None = None
        for _ in commands:
            try:
                replies.append(await read())
            except ResponseError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return replies

    async def transaction(self, *parts: Sequence[Command]) -> list[list[Any] | None]:
        """Do each part as a transaction, all in one trip, and return the replies of each.

        It is `None` for one that was given up, as a watched key was changed. An error of a command among others that
        were done is a reply like another.
        """
        commands: list[Command] = []
        for part in parts:
            commands += [("MULTI",), *part, ("EXEC",)]
        replies = await self.send(commands)
        ends, end = [], -1
        for part in parts:
            end += len(part) + 2
            ends.append(replies[end])
        return ends

    async def conditionally(self, parts: Sequence[Conditional]) -> list[list[Any] | None]:
        """Do each part, all in one trip, and return the replies of each, `None` for one that was not done.

        One is also given up when another client touches what is watched for it meanwhile.
        """
        commands: list[Command] = []
        ends = []
        for guard, absent, wanted in parts:
            commands += [("WATCH", guard, *absent), *(("COPY", key, guard, "REPLACE") for key in absent)]
            commands += [("MULTI",), *wanted, ("EXEC",)]
            ends.append(len(commands) - 1)
        replies = await self.send(commands)
        return [replies[end] for end in ends]


class Connections:
    """The connections of one store."""

    def __init__(self, url: str, server: str, prefix: str, timeout: float, pool_size: int) -> None:
        self.url = url
        self.timeout = timeout
        self._server = server
        self._version_key = f"{prefix}:version"
        self._pool_size = pool_size
        # Sockets of a closed loop close when they are collected.
        self._pools: PerLoop[Pool] = PerLoop(self._new_pool, lambda pool: None)

    async def use(self, work: Callable[[Trip], Awaitable[Result]]) -> Result:
        """Return what `work` returns."""
        return await persistently(self.url, self.timeout, lambda: self._attempt(work))

    async def close(self) -> None:
        """Close the connections of the running loop."""
        pool = self._pools.pop()
        if pool is not None:
            await _disconnect(pool.empty())

    def _new_pool(self) -> Pool:
        # The driver's pool makes connections as its URL says; to take one from it costs as much as to ask the server.
        made: Any = driver.BlockingConnectionPool.from_url(
            self._server,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,  # the whole call has one
            socket_connect_timeout=self.timeout,
        )

        async def connect() -> Any:
            connection = made.make_connection()
            await connection.connect()
            return connection

        return Pool(self._pool_size, connect)

    async def _attempt(self, work: Callable[[Trip], Awaitable[Result]]) -> Result:
        pool = self._pools.get()
        try:
            connection = await pool.take()
            usable = False
            try:
                trip = Trip(connection)
                if not pool.ready:
                    await self._look(trip)
                    pool.ready = True
                result = await work(trip)
                usable = True
                return result
            finally:
                pool.give_back(connection if usable else None)
                if not usable:  # replies may be left unread, or keys watched
                    await _disconnect([connection])
        except (RedisError, OSError, EOFError) as error:
            if isinstance(error, StorageError):
                raise
            ours = self._translated(error)
            if isinstance(ours, LostConnectionError):
                await _disconnect(pool.empty())  # what has broken one has broken them all
            raise ours from error

    async def _look(self, trip: Trip) -> None:
        version = int((await trip.send([("GET", self._version_key)]))[0] or 0)
        if version > SCHEMA_VERSION:
            raise SchemaError(
                f"the store {safe_url(self.url)} has schema {version}, this release reads up to {SCHEMA_VERSION}: "
                f"upgrade pytest-sagaz"
            )

    def _translated(self, error: BaseException) -> Exception:
        name, said = safe_url(self.url), one_line(error)
        code = said.partition(" ")[0]
        reasons = (reason for kind, reason in _UNAVAILABLE if isinstance(error, kind))
        reason = next(reasons, _UNAVAILABLE_CODES.get(code))
        if reason is None and "insufficient ACL permissions" in said:  # of SORT, for which NOPERM is not said
            reason = "this user may not read all keys, as SORT has to: give it %R~*"
        if reason is not None:
            return StoreUnavailableError(f"the store {name} cannot be used: {reason} ({said})")
        if isinstance(error, ResponseError) and not isinstance(error, _NOT_NOW) and code not in _NOT_NOW_CODES:
            return StorageError(f"the store {name} failed: {said}")
        return LostConnectionError(said)


async def _disconnect(connections: Sequence[Any]) -> None:
    for connection in connections:
        with contextlib.suppress(RedisError, OSError):
            await connection.disconnect(nowait=True)


def raise_first(replies: Sequence[Any] | None) -> None:
    """Raise the first error among the replies of a transaction of which all was to be done."""
    for reply in replies or ():
        if isinstance(reply, RedisError):
            raise reply
