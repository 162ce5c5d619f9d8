"""Snapshots in Redis or Valkey: for many machines, at the speed of memory.

A call is one round trip, of whatever size the saga is: see `_redis_snapshots.py` for what is read of it, and
`_redis_writing.py` for how it is written. There is no Lua.
"""

from __future__ import annotations

from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from sagaz_core.errors import CodecError, CorruptDataError, UsageError
from sagaz_core.storage._checks import above_prefix, check_find, check_limit, fits
from sagaz_core.storage._listing import Listing
from sagaz_core.storage._network import count, one_of, readable, seconds, split_url, url_options
from sagaz_core.storage._redis_connections import SCHEMA_VERSION
from sagaz_core.storage._redis_core import Ranges
from sagaz_core.storage._redis_deleting import RedisDeleting
from sagaz_core.storage._redis_records import (
    as_key,
    index_name,
    pack_replay,
    unpack_log,
    unpack_replay,
    unpack_saga,
    unpack_summary,
)
from sagaz_core.storage._redis_runs import SHORT
from sagaz_core.storage._redis_snapshots import RedisSnapshots
from sagaz_core.storage.base import Page, ReplayRecord, SagaRecord, StoreInfo
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

    from sagaz_core.storage._redis_connections import Command

_AT_ONCE = 500


class RedisSnapshotStorage(RedisSnapshots, RedisDeleting):
    """A store in one Redis (7 or later) or Valkey server, safe for many machines, processes, threads and loops at once.

    All keys begin with `prefix` and a colon. `timeout` is in seconds, for a whole call, waiting for a connection and
    trying again included.
    """

    # ---- sagas

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """See `SnapshotStorage.get_saga`."""
        (found,) = await self._send(("GET", self._keys.of(b"saga", as_key(saga_id))))
        return None if found is None else unpack_saga(saga_id, found)

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_sagas`."""
        check_limit(limit)
        page = Listing(limit)
        start = as_key(prefix if cursor is None else max(prefix, cursor + "\0"))
        async for saga, data in self._by_id(b"sagas", b"saga", start, as_key(above_prefix(prefix)), limit + 1):
            saga_id = saga.decode()
            if not page.takes(saga_id, page.made(saga_id, unpack_saga, saga_id, data)):
                break
        return page.page()

    async def _by_id(
        self, index: bytes, kind: bytes, start: bytes, end: bytes, some: int
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """Iterate the ids of the index from `start` on and below `end`, with what there is of that kind under them."""
        first = b"[" + start
        while True:
            bounds = [(first, b"(" + end, "BYLEX", "LIMIT", 0, some)]
            members, values, _ = await self._ranges(Ranges(self._keys.of(index), bounds, (kind,), by_lex=True))
            pairs = sorted((saga, data) for (saga, _), data in zip(members, values, strict=True))
            for saga, data in pairs:
                if data is not None:
                    yield saga, data
            if len(pairs) < some:
                return
            first = b"(" + pairs[-1][0]

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
        """See `SnapshotStorage.find_sagas`. One index is read, that of what is likely to be the rarest."""
        between, wanted = check_find(failed_between, tags, limit)
        names = [index_name("tag", key, value) for key, value in wanted.items()]
        asked = (("step", step_name), ("status", status), ("name", saga_name))
        names += [index_name(kind, value) for kind, value in asked if value is not None]
        index = b"f:" + names[0] if names else b"sums"
        page = Listing(limit)
        start = as_key("" if cursor is None else cursor + "\0")
        async for saga, data in self._by_id(index, b"sum", start, as_key(above_prefix("")), _AT_ONCE):
            saga_id = saga.decode()
            summary = page.made(saga_id, unpack_summary, saga_id, data)
            if fits(summary, status, saga_name, step_name, between, wanted) and not page.takes(saga_id, summary):
                break
        return page.page()

    # ---- the replay log, and the whole

    async def log_replay(self, record: ReplayRecord) -> None:
        """See `SnapshotStorage.log_replay`."""
        commands = self._logging(record)
        await self._connections.use(lambda trip: trip.transaction(commands))

    async def log_replays(self, records: Sequence[ReplayRecord]) -> Sequence[Exception | None]:
        """See `AnswersTogether.log_replays`."""
        results: list[Exception | None] = [None] * len(records)
        parts = []
        for place, record in enumerate(records):
            try:
                parts.append(self._logging(record))
            except (UsageError, CodecError) as error:
                results[place] = error
        await self._connections.use(lambda trip: trip.transaction(*parts))
        return results

    def _logging(self, record: ReplayRecord) -> list[Command]:
        of, name, original = self._keys.of, as_key(record.replay_id), as_key(record.original_saga_id)
        return [
            ("SET", of(b"rep", name), pack_replay(record)),
            ("ZADD", of(b"reps", original), 0, name),
            ("ZADD", of(b"replays"), 0, name),
        ]

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """See `SnapshotStorage.list_replays`."""
        replays = self._keys.of(b"reps", as_key(saga_id))
        (reply,) = await self._send(("SORT_RO", replays, "BY", "nosort", *self._joined(b"rep")))
        records = [unpack_replay(data) for data in reply if data is not None]
        mine = [record for record in records if record.original_saga_id == saga_id]
        return sorted(mine, key=attrgetter("created_at", "replay_id"))

    async def info(self) -> StoreInfo:
        """See `SnapshotStorage.info`. `bytes` are those of the values, without what the server adds."""
        of = self._keys.of
        version, replays = await self._send(("GET", of(b"version")), ("ZCARD", of(b"replays")))
        sagas = events = snapshots = size = 0
        async for names in self._all():
            for saga in names:
                record, entries = await self._send(
                    ("GET", of(b"saga", saga)),
                    ("SORT_RO", of(b"x", saga), "BY", "nosort", *self._joined(b"log", b"st", b"ev")),
                )
                sagas += record is not None
                size += len(record or b"") + sum(len(data) for data in entries if data is not None)
                for log, states in zip(entries[::3], entries[1::3], strict=True):
                    if log is None:
                        continue
                    with suppress(CorruptDataError):
                        _, number, headers = unpack_log(log, saga.decode())
                        events += number
                        snapshots += 0 if states is None else len(headers)
        return StoreInfo(safe_url(self.url), int(version or SCHEMA_VERSION), sagas, events, snapshots, replays, size)

    async def _all(self) -> AsyncIterator[list[bytes]]:
        """Iterate the ids of all sagas, some at once."""
        first: bytes = b"-"
        while True:
            command = ("ZRANGE", self._keys.of(b"all"), first, b"+", "BYLEX", "LIMIT", 0, _AT_ONCE)
            (names,) = await self._send(command)
            if names:
                yield names
            if len(names) < _AT_ONCE:
                return
            first = b"(" + names[-1]

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`. There is no older schema; the number is left for later releases to read.

        Long sagas that an earlier release wrote to are put into the indices that this one has; damaged ones are not.
        """
        await self._send(("SET", self._keys.of(b"version"), SCHEMA_VERSION, "NX"))
        of = self._keys.of
        async for names in self._all():
            asked = [part for saga in names for part in (("GET", of(b"c", saga)), ("ZCARD", of(b"x", saga)))]
            replies = await self._send(*asked)
            for saga, indexed, written in zip(names, replies[::2], replies[1::2], strict=True):
                if written >= SHORT and int(indexed or 0) != written:
                    with suppress(CorruptDataError):
                        await self._index(saga.decode())
        return SCHEMA_VERSION

    async def close(self) -> None:
        """See `SnapshotStorage.close`. The connections are those of the running loop; the next use opens some again."""
        await self._connections.close()


# ---- URLs

_OPTIONS = {"timeout": "10", "pool_size": "10", "prefix": "sagaz"}
_DRIVER_OPTIONS = (
    *("client_name", "db", "socket_keepalive", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"),
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "protocol"),
)
_CHOICES = {
    "protocol": ("2", "3"),
    "ssl_cert_reqs": ("required", "optional", "none"),
    "ssl_min_version": ("771", "772"),  # the numbers of TLS 1.2 and 1.3 in the protocol, by which the driver knows them
}
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


def _check_driver_options(url: str, scheme: str, options: Mapping[str, str]) -> None:
    """Raise `UsageError` for what the driver would only find out about on the first use, and not say well."""
    name = next((name for name in options if name.startswith("ssl_")), None)
    if name is not None and scheme != "rediss":
        raise UsageError(f"{safe_url(url)!r} gives {name}, but no TLS: write rediss://…, or leave it out")
    if "ssl_keyfile" in options and "ssl_certfile" not in options:
        raise UsageError(
            f"{safe_url(url)!r} gives ssl_keyfile, but no ssl_certfile: give the certificate of the key, too"
        )
    for option, known in _CHOICES.items():
        one_of(url, option, options.get(option, known[0]), known)
    if "db" in options:
        count(url, "db", options["db"], least=0)
    readable(url, options, _FILES)


def open_redis(url: str) -> RedisSnapshotStorage:
    """Open `redis://user:password@host:port/database` or `rediss://…`, with the options of `docs/redis.md`."""
    parts = split_url(url)
    options = url_options(url, _OPTIONS, _DRIVER_OPTIONS)
    ours = {name: options.pop(name, default) for name, default in _OPTIONS.items()}
    _check_driver_options(url, parts.scheme.lower(), options)
    database = parts.path.strip("/")
    if database and not database.isdecimal():
        host = parts.hostname or "localhost"
        raise UsageError(f"{safe_url(url)!r} names no database: give its number, such as redis://{host}/0")
    return RedisSnapshotStorage(
        parts._replace(scheme=parts.scheme.lower(), query=urlencode(options)).geturl(),
        prefix=ours["prefix"],
        timeout=seconds(url, "timeout", ours["timeout"]),
        pool_size=count(url, "pool_size", ours["pool_size"]),
        url=url,
    )
