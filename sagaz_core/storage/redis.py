"""Snapshots in Redis or Valkey: for many machines, at the speed of memory.

A call is one round trip. What is appended comes as one transaction, which adds nothing when another process has written
to the saga meanwhile. Only then what is there is read and compared, under WATCH. There is no Lua.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from sagaz_core.clock import new_id, utc_now
from sagaz_core.errors import CodecError, CorruptDataError, StorageError, UsageError
from sagaz_core.storage._checks import (
    above_prefix,
    check_batch,
    check_find,
    check_limit,
    check_moment,
    check_prune,
    contested,
    expired,
    fits,
    snapshot_cursor,
    with_bases,
)
from sagaz_core.storage._listing import Listing
from sagaz_core.storage._network import count, says_nothing, seconds, split_url, unavailable, url_options
from sagaz_core.storage._redis_connections import SCHEMA_VERSION, Connections, Trip, raise_first
from sagaz_core.storage._redis_reading import Window, checkpoint_of, in_entries, latest_of, place_of, read_cursor
from sagaz_core.storage._redis_records import (
    as_key,
    index_name,
    is_served,
    micros,
    pack_replay,
    unpack_events,
    unpack_log,
    unpack_replay,
    unpack_saga,
    unpack_summary,
)
from sagaz_core.storage._redis_sagas import Addition, Keys, Known
from sagaz_core.storage._redis_stored import StoredSaga
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
from sagaz_core.storage.together import Checkpoint
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from sagaz_core.storage._redis_connections import Command

Result = TypeVar("Result")

_PREFIX = re.compile(r"[A-Za-z0-9_.{}-]{1,100}")
_KNOWN_SAGAS = 10_000
_AT_ONCE = 500
_BACK = 24  # the entries before a page that have the bases of its first snapshots: those are up to 15, in most sagas
_MOST_ENTRIES = 1 << 53
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class RedisSnapshotStorage:
    """A store in one Redis (7 or later) or Valkey server, safe for many machines, processes, threads and loops at once.

    All keys begin with `prefix` and a colon. `timeout` is in seconds, for a whole call, waiting for a connection and
    trying again included. A saga is read as a whole: it should have hundreds of snapshots rather than thousands.
    """

    def __init__(
        self, server: str, *, prefix: str = "sagaz", timeout: float = 10.0, pool_size: int = 10, url: str = ""
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(f"{prefix!r:.80} is not a prefix: give 1 to 100 letters, digits, and _ . - {{ }}")
        self.url = url or server
        self.clock: Callable[[], datetime] = utc_now
        self._connections = Connections(self.url, server, prefix, timeout, pool_size)
        self._keys = Keys(prefix)
        self._known: OrderedDict[str, Known] = OrderedDict()

    async def _send(self, *commands: Command) -> list[Any]:
        return await self._connections.use(lambda trip: trip.send(commands))

    # ---- writing

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        checked_id(batch.saga_id)
        if not says_nothing(batch):
            await self._connections.use(lambda trip: self._write(trip, batch))

    async def _write(self, trip: Trip, batch: Batch) -> None:
        addition = self._addition(batch)
        if addition is None or not (await self._added(trip, [addition]))[0]:
            await self._merge(trip, batch)

    def _addition(self, batch: Batch) -> Addition | None:
        """Return what appends the batch, if by what is known it comes behind."""
        known = self._known.get(batch.saga_id)
        if known is None:
            known = Known() if batch.saga is not None else None
        if known is None or not known.takes(batch):
            return None
        return Addition(self._keys, batch, known, self.clock())

    async def _added(self, trip: Trip, additions: Sequence[Addition]) -> list[bool]:
        done = []
        replies = await trip.transaction(*(addition.commands for addition in additions))
        for addition, reply in zip(additions, replies, strict=True):
            added = reply is not None and reply[addition.claim] == 1
            done.append(added)
            if added:
                raise_first(reply)
            self._remember(addition.batch.saga_id, addition.known.with_entry(addition.batch) if added else None)
        return done

    def _remember(self, saga_id: str, known: Known | None) -> None:
        if known is None:
            self._known.pop(saga_id, None)
            return
        self._known[saga_id] = known
        self._known.move_to_end(saga_id)
        if len(self._known) > _KNOWN_SAGAS:
            self._known.popitem(last=False)

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`. What can be appended goes in one trip, the rest in one by one."""
        results: list[Exception | None] = [None] * len(batches)
        waiting: dict[int, Batch] = {}
        for place, batch in enumerate(batches):
            try:
                check_batch(batch)
                checked_id(batch.saga_id)
                if not says_nothing(batch):
                    waiting[place] = batch
            except (UsageError, CodecError) as error:
                results[place] = error
        if not contested(batches):
            await self._append_many(waiting)
        for place, batch in waiting.items():
            try:
                await self.write(batch)
            except (UsageError, CodecError, StorageError) as error:
                if unavailable(error):
                    raise
                results[place] = error
        return results

    async def _append_many(self, waiting: dict[int, Batch]) -> None:
        """Append what can be, and take it out of `waiting`."""
        additions: dict[int, Addition] = {}
        seen: set[str] = set()
        for place, batch in waiting.items():
            try:
                addition = None if batch.saga_id in seen else self._addition(batch)
            except (UsageError, CodecError):
                addition = None  # says so again when it is written by itself
            seen.add(batch.saga_id)
            if addition is not None:
                additions[place] = addition
        if not additions:
            return
        done = await self._connections.use(lambda trip: self._added(trip, list(additions.values())))
        for place, added in zip(additions, done, strict=True):
            if added:
                del waiting[place]

    async def _merge(self, trip: Trip, batch: Batch) -> None:
        """Add what is not there yet. Raises `DuplicateSagaError` for what is there, and differs."""
        while True:
            saga = await self._watched(trip, batch.saga_id, batch.snapshots)
            missing = saga.without_known(batch)
            known = saga.known()
            if says_nothing(missing._replace(summary=known.new_summary(missing))):
                await trip.send([("UNWATCH",)])
                self._remember(batch.saga_id, known)
                return
            addition = Addition(self._keys, missing, known, self.clock())
            addition.commands += saga.regrouped(missing, known.entry + 1)
            if (await self._added(trip, [addition]))[0]:
                return

    async def _watched(self, trip: Trip, saga_id: str, snapshots: Sequence[SagaSnapshot] = ()) -> StoredSaga:
        """Return all of the saga, whose keys are watched from now on."""
        of, saga = self._keys.of, as_key(saga_id)
        claims = [of(b"id", as_key(snapshot.snapshot_id)) for snapshot in snapshots]
        record, summary = of(b"saga", saga), of(b"sum", saga)
        replies = await trip.send(
            [
                ("WATCH", of(b"x", saga), of(b"v", saga), record, summary, *claims),
                ("SORT_RO", of(b"x", saga), "BY", "nosort", "GET", "#", *self._joined(b"log", b"st", b"ev")),
                ("MGET", record, summary, *claims),
            ]
        )
        return StoredSaga(self._keys, saga_id, replies[1], replies[2])

    def _joined(self, *kinds: bytes) -> list[bytes]:
        return [part for kind in kinds for part in (b"GET", self._keys.of(kind, b"*"))]

    # ---- reading

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """See `SnapshotStorage.get_saga`."""
        (found,) = await self._send(("GET", self._keys.of(b"saga", as_key(saga_id))))
        return None if found is None else unpack_saga(saga_id, found)

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_sagas`."""
        check_limit(limit)
        page = Listing(limit)
        start = as_key(prefix if cursor is None else max(prefix, cursor + "\0"))
        async for saga, data in self._in_order(b"sagas", b"saga", start, as_key(above_prefix(prefix)), limit + 1):
            saga_id = saga.decode()
            if not page.takes(saga_id, page.made(saga_id, unpack_saga, saga_id, data)):
                break
        return page.page()

    async def _in_order(
        self, index: bytes, kind: bytes, start: bytes, end: bytes, some: int
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """Iterate the ids of the index from `start` on and below `end`, with what there is of that kind under them."""
        of, staged = self._keys.of, self._keys.of(b"tmp", b"page", new_id().encode())
        first = b"[" + start
        while True:
            (reply,) = await self._connections.use(
                lambda trip, low=first: trip.transaction(  # type: ignore[misc] # a bound default
                    [
                        ("ZRANGESTORE", staged, of(index), low, b"(" + end, "BYLEX", "LIMIT", 0, some),
                        ("SORT", staged, "BY", "nosort", "GET", "#", *self._joined(kind)),
                        ("DEL", staged),
                    ]
                )
            )
            assert reply is not None  # nothing was watched
            pairs = sorted(zip(reply[1][::2], reply[1][1::2], strict=True))
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
        async for saga, data in self._in_order(index, b"sum", start, as_key(above_prefix("")), _AT_ONCE):
            saga_id = saga.decode()
            summary = page.made(saga_id, unpack_summary, saga_id, data)
            if fits(summary, status, saga_name, step_name, between, wanted) and not page.takes(saga_id, summary):
                break
        return page.page()

    async def _snapshots(self, index: bytes, name: str) -> list[SagaSnapshot]:
        """Return the snapshots that are in the entries of the index, in order; also those that are not served."""
        entries = self._keys.of(index, as_key(name))
        (reply,) = await self._send(("SORT_RO", entries, "BY", "nosort", *self._joined(b"log", b"st")))
        return in_entries(name, reply[::2], reply[1::2])

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        stored = await self._snapshots(b"g", snapshot_id)
        now = self.clock()
        found = [s for s in stored if s.snapshot_id == snapshot_id and not expired(s, now)]
        return with_bases(found, stored)[0] if found else None

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
        stored = await self._snapshots(b"x", saga_id)
        return latest_of(stored, self.clock(), step, phase, until, max_seq)

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`.

        Of a saga whose snapshots are in the order of its entries, as almost all are, only the page's entries are read,
        and some before them for the bases.
        """
        check_limit(limit)
        entry, after = read_cursor(cursor)
        now, wanted, back = self.clock(), limit + 2, _BACK  # with the entry of the cursor, and one more
        while entry:
            window = await self._window(saga_id, max(1, entry - back), min(entry + wanted, _MOST_ENTRIES))
            if window.unordered:
                break
            found = [one for one in window.stored if place_of(one) > after and not expired(one, now)]
            if len(found) <= limit and not window.at_end:
                wanted *= 2
            elif not window.has_bases(found[:limit]):
                back *= 8
            else:
                page = with_bases(found[:limit], window.stored)
                return Page(page, window.cursor(page[-1]) if len(found) > limit else None)
        stored = await self._snapshots(b"x", saga_id)
        found = [snapshot for snapshot in stored if place_of(snapshot) > after and not expired(snapshot, now)]
        page = with_bases(found[:limit], stored)
        return Page(page, f"0@{snapshot_cursor(page[-1])}" if len(found) > limit else None)

    async def _window(self, saga_id: str, first: int, end: int) -> Window:
        """Return the snapshots in the entries from `first` to before `end`. Entry n is the index's n-th, for ever."""
        saga = as_key(saga_id)
        part = ("LIMIT", first - 1, end - first)
        entries, unordered = await self._send(
            ("SORT_RO", self._keys.of(b"x", saga), "BY", "nosort", *part, *self._joined(b"log", b"st")),
            ("EXISTS", self._keys.of(b"o", saga)),
        )
        return Window(saga_id, first, end, entries, bool(unordered))

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`."""
        check_moment(until)
        entries = self._keys.of(b"x", as_key(saga_id))
        (reply,) = await self._send(("SORT_RO", entries, "BY", "nosort", *self._joined(b"ev")))
        found = [event for data in reply if data is not None for event in unpack_events(saga_id, data)]
        found.sort(key=attrgetter("seq"))
        if until is not None:
            while found and found[-1].at > until:
                found.pop()
        for event in found:
            if event.seq > after_seq:
                yield event

    async def read_checkpoints(self, asked: Sequence[tuple[str, str]]) -> Sequence[Checkpoint]:
        """See `AnswersTogether.read_checkpoints`."""
        of, commands = self._keys.of, list[Any]()
        for saga_id, _ in asked:
            entries = of(b"x", as_key(saga_id))
            commands.append(("GET", of(b"saga", as_key(saga_id))))
            commands.append(("SORT_RO", entries, "BY", "nosort", *self._joined(b"log", b"st", b"ev")))
        replies, now = await self._send(*commands), self.clock()
        return [
            checkpoint_of(saga_id, step, record, entries, now)
            for (saga_id, step), record, entries in zip(asked, replies[::2], replies[1::2], strict=True)
        ]

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        entries = self._keys.of(b"x", as_key(saga_id))
        (reply,) = await self._send(("SORT_RO", entries, "BY", "nosort", *self._joined(b"log")))
        now = micros(self.clock())
        return sum(is_served(header, now) for log in reply if log is not None for header in unpack_log(log, saga_id)[2])

    # ---- deleting

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        return await self._connections.use(lambda trip: self._delete_below(trip, saga_id, below_seq))

    async def _delete_below(self, trip: Trip, saga_id: str, below_seq: int) -> int:
        while True:
            saga = await self._watched(trip, saga_id)
            above = [s for s in saga.snapshots if s.seq >= below_seq]
            needed = min((s.seq if s.base_seq is None else s.base_seq for s in above), default=below_seq)
            below, now = [s for s in saga.snapshots if s.seq < below_seq], self.clock()
            hidden = [s for s in below if s.seq >= needed]
            changed = {s.snapshot_id: s._replace(retention_until=_LONG_AGO) for s in hidden if not expired(s, now)}
            gone = {s.snapshot_id for s in below if s.seq < needed}
            if await self._rewritten(trip, saga, gone, changed):
                return sum(not expired(s, now) for s in below)

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`."""
        check_prune(now, batch)
        pruned, kept = 0, 0
        before: bytes | None = None
        while True:
            due = ("ZRANGEBYSCORE", self._keys.of(b"exp"), "-inf", micros(now), "LIMIT", kept, 1)
            ((*sagas,),) = await self._send(due)
            if not sagas:
                return pruned
            if sagas[0] == before:
                kept += 1  # what is left of this one must stay, or is of a time that a float cannot tell from now
                continue
            done = await self._connections.use(lambda trip, name=sagas[0]: self._prune(trip, name.decode(), now, batch))  # type: ignore[misc] # a bound default
            pruned += done
            before = sagas[0] if done == 0 else None

    async def _prune(self, trip: Trip, saga_id: str, now: datetime, batch: int) -> int:
        while True:
            saga = await self._watched(trip, saga_id)
            needed: int | None = None
            gone = []
            for snapshot in reversed(saga.heads):
                if not expired(snapshot, now):
                    if snapshot.base_seq is not None:
                        needed = snapshot.base_seq if needed is None else min(needed, snapshot.base_seq)
                elif needed is None or snapshot.seq < needed:
                    gone.append(snapshot.snapshot_id)
            if await self._rewritten(trip, saga, set(gone[:batch]), {}):
                return len(gone[:batch])

    async def _rewritten(
        self, trip: Trip, saga: StoredSaga, gone: set[str], changed: Mapping[str, SagaSnapshot]
    ) -> bool:
        """Take snapshots out of their entries, and put others in the place of some. False if somebody was faster."""
        commands = saga.rewriting(gone, changed)
        (reply,) = await trip.transaction(commands)
        self._remember(saga.saga_id, None)
        raise_first(reply)
        return reply is not None

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`."""
        return await self._connections.use(lambda trip: self._delete(trip, saga_id))

    async def _delete(self, trip: Trip, saga_id: str) -> bool:
        while True:
            saga = await self._watched(trip, saga_id)
            (reply,) = await trip.transaction(saga.deleting())
            self._remember(saga_id, None)
            if reply is not None:
                return saga.is_there

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
        async for saga, _ in self._all():
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

    async def _all(self) -> AsyncIterator[tuple[bytes, None]]:
        first: bytes = b"-"
        while True:
            command = ("ZRANGE", self._keys.of(b"all"), first, b"+", "BYLEX", "LIMIT", 0, _AT_ONCE)
            (names,) = await self._send(command)
            for name in names:
                yield name, None
            if len(names) < _AT_ONCE:
                return
            first = b"(" + names[-1]

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`. There is no older schema; the number is left for later releases to read."""
        await self._send(("SET", self._keys.of(b"version"), SCHEMA_VERSION, "NX"))
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


def open_redis(url: str) -> RedisSnapshotStorage:
    """Open `redis://user:password@host:port/database` or `rediss://…`, with the options of `docs/redis.md`."""
    parts = split_url(url)
    options = url_options(url, _OPTIONS, _DRIVER_OPTIONS)
    ours = {name: options.pop(name, default) for name, default in _OPTIONS.items()}
    database = parts.path.strip("/")
    if database and not database.isdecimal():
        raise UsageError(f"{safe_url(url)!r} names no database: give its number, such as redis://{parts.hostname}/0")
    return RedisSnapshotStorage(
        parts._replace(scheme=parts.scheme.lower(), query=urlencode(options)).geturl(),
        prefix=ours["prefix"],
        timeout=seconds(url, "timeout", ours["timeout"]),
        pool_size=count(url, "pool_size", ours["pool_size"]),
        url=url,
    )
