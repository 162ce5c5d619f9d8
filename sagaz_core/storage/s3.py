"""Snapshots in an object store: S3 and what speaks its protocol, and Google's and Azure's by URL.

Nothing is shared by sagas. A saga has one head object with its index and its small data, which each write replaces on
the condition that it is still the one that was read: so of two writers one is told, reads again and goes on, and what a
batch says is there as a whole or not at all.

    PREFIX/sagas/<id, in order>          a saga's head
    PREFIX/snapshots/<hash of its id>    which saga a snapshot is of, and its data when they are large
    PREFIX/data/<hash of the saga>/…     events' large data, and what a head cannot hold any longer
    PREFIX/replays/…, replays-of/…       the log of replays
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

import ormsgpack

from sagaz_core.clock import new_id, utc_now
from sagaz_core.errors import (
    CodecError,
    CorruptDataError,
    DuplicateSagaError,
    StorageError,
    StoreUnavailableError,
    UsageError,
)
from sagaz_core.storage._checks import (
    another_snapshot,
    check_batch,
    check_find,
    check_limit,
    check_moment,
    check_prune,
    contested,
    fits,
    read_snapshot_cursor,
    snapshot_cursor,
)
from sagaz_core.storage._listing import Listing
from sagaz_core.storage._rows import (
    SnapshotEntry,
    digest,
    replay_from_row,
    replay_row,
    saga_from_row,
    summary_from_row,
    summary_row,
)
from sagaz_core.storage._s3_head import OWN, SMALL, Entry, Head, changed, packed_head, unpacked_head, without
from sagaz_core.storage._s3_keys import (
    SAGAS,
    STEM,
    data_folder,
    hashed,
    ordered,
    replay_key,
    replay_marks,
    saga_key,
    saga_of_key,
    snapshot_key,
)
from sagaz_core.storage._s3_objects import Changed, Objects, all_of
from sagaz_core.storage._saga_index import News, expired
from sagaz_core.storage.base import (
    Base,
    Batch,
    Page,
    ReplayRecord,
    SagaRecord,
    SagaSnapshot,
    StoredEvent,
    StoreInfo,
    checked_id,
)
from sagaz_core.storage.url import is_secret, safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

FORMAT = 1
_KNOWN_AT_ONCE = 256
_HEADS_AT_ONCE = 64
_TRIES = 50
_ABANDONED = timedelta(hours=1)


class S3SnapshotStorage:
    """A store below a prefix of a bucket, safe for any number of machines at once.

    `url` is `s3://bucket/prefix` with options (see `open_s3`). A request is tried again for at most `timeout` seconds.
    """

    def __init__(self, url: str, *, timeout: float = 10.0, retries: int = 10) -> None:
        where, config, client = _read_url(url)
        if not 0 < timeout < float("inf"):
            raise UsageError(f"timeout={timeout} is not a time: give seconds, more than 0")
        shown = {name: value for name, value in config.items() if not is_secret(name)}
        shown |= {"timeout": f"{timeout:g}"} if timeout != 10 else {}
        shown |= {name: str(value).lower() for name, value in client.items()}
        self.url = f"{where}?{urlencode(shown)}" if shown else where
        self.clock: Callable[[], datetime] = utc_now
        self._objects = Objects(where, safe_url(where), config, client, timeout, retries)
        self._known: OrderedDict[str, Head] = OrderedDict()

    # ---- writing

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        if batch.saga is None and batch.summary is None and not batch.events and not batch.snapshots:
            return
        saga_id = checked_id(batch.saga_id)
        head = self._known.get(saga_id)
        fresh = False
        if head is None:
            # Who brings the record begins the saga: should it be there already, the condition of the write tells.
            fresh = batch.saga is None
            head = await self._head(saga_id) if fresh else Head(saga_id)
        for _ in range(_TRIES):
            try:
                news = head.index.news(batch)
                if (news and await self._written(head, news, batch)) or (not news and fresh):
                    return
            except DuplicateSagaError:
                if fresh:
                    raise
            head, fresh = await self._head(saga_id), True
        raise StoreUnavailableError(f"the store {self._objects.shown} has too many writers of saga {saga_id!r} at once")

    async def _written(self, head: Head, news: News, batch: Batch) -> bool:
        """Write the news, or say that the head is not what it was."""
        before, claimed = head.version, list[str]()
        try:
            pairs = zip(news.snapshots, news.snapshot_data, strict=True)
            fits = await all_of([self._claim(head, entry, data, batch, claimed) for entry, data in pairs])
            if not all(fits) or head.version != before:
                return False
            change = changed(head, news, new_id())
            body = packed_head(head, news, change)
            folder = data_folder(head.saga_id)
            for name, data in change.objects.items():
                await self._objects.put(f"{folder}/{name}", data, always=True)
            version = await self._objects.put(saga_key(head.saga_id), body, known=before)
        except Changed:
            self._known.pop(head.saga_id, None)
            return False
        except (CodecError, DuplicateSagaError, UsageError):
            self._known.pop(head.saga_id, None)
            await self._objects.delete(claimed)
            raise
        if head.version != before or change.objects:
            self._known.pop(head.saga_id, None)
            return True
        events, snapshots = change.events[len(head.index.events.items) :], change.snapshots
        snapshots = snapshots[len(head.index.snapshots.items) :]
        head.held, head.version = bytes(change.held), version
        head.index.add(news.record, news.summary and summary_from_row(summary_row(news.summary)), events, snapshots)
        self._remember(head)
        return True

    def _remember(self, head: Head) -> None:
        self._known[head.saga_id] = head
        self._known.move_to_end(head.saga_id)
        if len(self._known) > _KNOWN_AT_ONCE:
            self._known.popitem(last=False)

    async def _claim(self, head: Head, entry: SnapshotEntry, data: bytes, batch: Batch, claimed: list[str]) -> bool:
        """Have the snapshot's id for this saga, with its data when they are large, and the ids of those of its bases
        whose data are in objects of their own. Says no when the saga has it.

        Raises `DuplicateSagaError` when another saga has it, or its writer may be about to. After an hour what was
        claimed and not written is taken for that of a writer that died.
        """
        key, saga_id = snapshot_key(entry.snapshot_id), head.saga_id
        own = data if entry.size > SMALL else None
        large = [base.snapshot_id for base in head.index.bases(entry) if base.place == OWN]
        body = ormsgpack.packb([entry.snapshot_id, saga_id, entry.digest, own, large])
        known = None
        for _ in range(_TRIES):
            try:
                await self._objects.put(key, body, known=known)
            except Changed:
                found = await self._objects.get(key)
                if found is None:
                    known = None
                    continue
                (name, other_id, other_digest, *_), known = ormsgpack.unpackb(found[0]), found[1]
                if (name, other_id, other_digest) == (entry.snapshot_id, saga_id, entry.digest):
                    return True
                stored = name in (await self._head(other_id)).index.by_id
                if stored and other_id == saga_id:
                    return False
                if stored or utc_now() - known.written_at < _ABANDONED:
                    raise another_snapshot(next(s for s in batch.snapshots if s.snapshot_id == name)) from None
            else:
                claimed.append(key)
                return True
        raise StoreUnavailableError(f"the store {self._objects.shown} has too many writers of {entry.snapshot_id!r}")

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`. Batches of one saga go one after the other, those of several at once."""
        by_saga: dict[str, list[int]] = {}
        in_turn = contested(batches)
        for number, batch in enumerate(batches):
            by_saga.setdefault("" if in_turn else batch.saga_id, []).append(number)
        results: list[Exception | None] = [None] * len(batches)

        async def write_in_order(numbers: list[int]) -> None:
            for number in numbers:
                try:
                    await self.write(batches[number])
                except StoreUnavailableError:
                    raise
                except (UsageError, CodecError, StorageError) as error:
                    results[number] = error

        await all_of([write_in_order(numbers) for numbers in by_saga.values()])
        return results

    # ---- sagas

    async def _head(self, saga_id: str) -> Head:
        try:
            key = saga_key(checked_id(saga_id))
        except UsageError:
            return Head(saga_id)  # no saga has such an id
        found = await self._objects.get(key)
        return Head(saga_id) if found is None else unpacked_head(saga_id, *found)

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """See `SnapshotStorage.get_saga`."""
        record = (await self._head(saga_id)).index.record
        return None if record is None else saga_from_row(record)

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_sagas`."""
        check_limit(limit)
        page = Listing(limit)
        async for saga_id, found in self._heads(prefix, cursor, limit + 1):
            record = page.made(saga_id, _sound, found).index.record
            if record is not None and not page.takes(saga_id, page.made(saga_id, saga_from_row, record)):
                break
        return page.page()

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
        """See `SnapshotStorage.find_sagas`. It reads the head of every saga until the page is full."""
        between, wanted = check_find(failed_between, tags, limit)
        page = Listing(limit)
        async for saga_id, found in self._heads("", cursor, _HEADS_AT_ONCE):
            summary = page.made(saga_id, _sound, found).index.summary
            if summary is None or not fits(summary, status, saga_name, step_name, between, wanted):
                continue
            if not page.takes(saga_id, summary._replace(tags=dict(summary.tags))):
                break
        return page.page()

    async def _heads(
        self, prefix: str, cursor: str | None, wanted: int
    ) -> AsyncIterator[tuple[str, Head | CorruptDataError]]:
        """Iterate the sagas behind the cursor in order of id, with the head or what is wrong with it.

        `wanted` of them are read at once.
        """
        part: list[str] = []
        size = max(1, min(wanted, _HEADS_AT_ONCE))
        async for saga_id in self._ids(prefix, cursor):
            part.append(saga_id)
            if len(part) == size:
                for pair in await all_of([self._head_or_damage(name) for name in part]):
                    yield pair
                part.clear()
        for pair in await all_of([self._head_or_damage(name) for name in part]):
            yield pair

    async def _head_or_damage(self, saga_id: str) -> tuple[str, Head | CorruptDataError]:
        try:
            return saga_id, await self._head(saga_id)
        except CorruptDataError as error:
            return saga_id, error

    async def _ids(self, prefix: str, cursor: str | None) -> AsyncIterator[str]:
        after = None
        if cursor is not None and cursor >= prefix:
            after = f"{SAGAS}/{ordered(cursor)}"
        elif len(prefix) > 1:
            after = f"{SAGAS}/{ordered(prefix)[:-1]}"  # the key of the prefix itself is behind this
        together: list[str] = []  # keys of ids that are too long to be told apart, or ordered, by them
        async for key in self._objects.keys(SAGAS, after=after):
            saga_id = saga_of_key(key)
            if together and (saga_id is not None or _stem(key) != _stem(together[0])):
                for name in await self._in_order(together):
                    if name.startswith(prefix) and (cursor is None or name > cursor):
                        yield name
                together.clear()
            if saga_id is None:
                together.append(key)
            elif saga_id.startswith(prefix) and (cursor is None or saga_id > cursor):
                yield saga_id
            elif saga_id > prefix and not saga_id.startswith(prefix):
                return
        for name in await self._in_order(together):
            if name.startswith(prefix) and (cursor is None or name > cursor):
                yield name

    async def _in_order(self, keys: Sequence[str]) -> list[str]:
        found = await all_of([self._objects.get(key) for key in keys])
        return sorted(unpacked_head(key, *one).saga_id for key, one in zip(keys, found, strict=True) if one)

    # ---- snapshots

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        try:
            found = await self._objects.get(snapshot_key(snapshot_id))
        except CorruptDataError as error:
            raise _damaged(snapshot_id, error) from error
        if found is None:
            return None
        name, saga_id, _, own, *large = ormsgpack.unpackb(found[0])
        bases = large[0] if large else []  # an earlier release did not name them
        reads: list[Awaitable[Any]] = [self._head(saga_id), *map(self._large, bases)]
        head, *objects = await all_of(reads)
        entry = head.index.by_id.get(snapshot_id)
        if name != snapshot_id or entry is None or expired(entry, self.clock()):
            return None
        read = {snapshot_id: own, **dict(zip(bases, objects, strict=True))}
        known = {name: data for name, data in read.items() if data is not None}
        return (await self._snapshots(head, [entry], known))[0]

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
        head = await self._head(saga_id)
        entry = head.index.latest(step, phase, until, max_seq, self.clock())
        return None if entry is None else (await self._snapshots(head, [entry], {}))[0]

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        place = read_snapshot_cursor(cursor)
        head = await self._head(saga_id)
        entries = head.index.page(place, limit, self.clock())
        page = await self._snapshots(head, entries[:limit], {})
        return Page(page, snapshot_cursor(page[-1]) if len(entries) > limit else None)

    async def _snapshots(
        self, head: Head, entries: Sequence[SnapshotEntry], own: dict[str, bytes]
    ) -> list[SagaSnapshot]:
        """Return the snapshots with their bases, whose data are read at once. `own` are data that were read before."""
        bases = {entry.snapshot_id: head.index.bases(entry) for entry in entries}
        needed = {entry.snapshot_id: entry for entry in entries}
        for some in bases.values():
            needed.update((entry.snapshot_id, entry) for entry in some)
        others = await self._others(head, list(needed.values()))
        missing = [name for name, entry in needed.items() if entry.place == OWN and name not in own]
        found = dict(zip(missing, await all_of([self._own(head, name) for name in missing]), strict=True)) | own
        data = {
            name: _checked(head, entry, found[name] if entry.place == OWN else head.piece(entry, others))
            for name, entry in needed.items()
        }
        return [
            _snapshot(head, entry, data, [Base(base.snapshot_id, data[base.snapshot_id]) for base in bases[name]])
            for name, entry in ((entry.snapshot_id, entry) for entry in entries)
        ]

    async def _large(self, snapshot_id: str) -> bytes | None:
        """Return the data that are in the snapshot's own object."""
        try:
            found = await self._objects.get(snapshot_key(snapshot_id))
        except CorruptDataError as error:
            raise _damaged(snapshot_id, error) from error
        data = ormsgpack.unpackb(found[0])[3] if found else None
        return None if data is None else bytes(data)

    async def _own(self, head: Head, snapshot_id: str) -> bytes:
        data = await self._large(snapshot_id)
        if data is None:
            raise CorruptDataError(
                f"the data of snapshot {snapshot_id!r} of saga {head.saga_id!r} are gone: restore them"
            )
        return data

    async def _others(self, head: Head, entries: Sequence[Entry]) -> dict[str, bytes]:
        """Return the objects of the saga that hold the entries' data, by name."""
        names = sorted({entry.place[0] for entry in entries if not isinstance(entry.place, int)})
        folder = data_folder(head.saga_id)
        found = await all_of([self._objects.get(f"{folder}/{name}") for name in names])
        return {name: one[0] if one else b"" for name, one in zip(names, found, strict=True)}

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        return (await self._head(saga_id)).index.served(self.clock())

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`."""
        check_moment(until)
        head = await self._head(saga_id)
        others: dict[str, bytes] = {}
        for entry in head.index.events_between(after_seq, until):
            if not isinstance(entry.place, int) and entry.place[0] not in others:
                others = await self._others(head, [entry])
            data = head.piece(entry, others)
            if digest(data) != entry.digest:
                raise CorruptDataError(f"event {entry.seq} of saga {saga_id!r} is damaged: restore its objects")
            yield StoredEvent(saga_id, entry.seq, entry.at, entry.kind, entry.step, data)

    # ---- deleting

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        for _ in range(_TRIES):
            head = await self._head(saga_id)
            gone, hidden, served = head.index.below(below_seq, self.clock())
            if await self._deleted(head, gone, hidden):
                return served
        raise self._too_many(saga_id)

    async def _deleted(self, head: Head, gone: Sequence[str], hidden: Sequence[str]) -> bool:
        """Delete the snapshots, or say that the head is not what it was."""
        if not gone and not hidden:
            return True
        head.index.drop(gone, hidden)
        change = without(head)
        try:
            await self._objects.put(saga_key(head.saga_id), packed_head(head, News(), change), known=head.version)
        except Changed:
            return False
        finally:
            self._known.pop(head.saga_id, None)
        await self._objects.delete([snapshot_key(name) for name in gone])
        return True

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`."""
        head = await self._head(saga_id)
        self._known.pop(saga_id, None)
        if not head.there:
            return False
        await self._objects.delete([saga_key(saga_id)])
        rest = [key async for key in self._objects.keys(data_folder(saga_id))]
        await self._objects.delete([*map(snapshot_key, head.index.by_id), *rest])
        return True

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`. It reads the head of every saga."""
        check_prune(now, batch)
        deleted = 0
        async for saga_id, found in self._heads("", None, _HEADS_AT_ONCE):
            head = _sound(found)
            for _ in range(_TRIES):
                gone = head.index.prunable(now)[:batch]
                if await self._deleted(head, gone, ()):
                    deleted += len(gone)
                    if len(gone) < batch:
                        break
                head = await self._head(saga_id)
            else:
                raise self._too_many(saga_id)
        return deleted

    def _too_many(self, saga_id: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the store {self._objects.shown} has too many writers of saga {saga_id!r} at once"
        )

    # ---- replays

    async def log_replay(self, record: ReplayRecord) -> None:
        """See `SnapshotStorage.log_replay`."""
        row = replay_row(record)
        await self._objects.put(f"{replay_marks(record.original_saga_id)}/{hashed(record.replay_id)}", b"", always=True)
        await self._objects.put(replay_key(record.replay_id), ormsgpack.packb(row), always=True)

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """See `SnapshotStorage.list_replays`."""
        names = [key.rpartition("/")[2] async for key in self._objects.keys(replay_marks(saga_id))]
        found = await all_of([self._objects.get(f"replays/{name}") for name in names])
        records = [replay_from_row(ormsgpack.unpackb(one[0])) for one in found if one is not None]
        mine = [record for record in records if record.original_saga_id == saga_id]
        return sorted(mine, key=lambda record: (record.created_at, record.replay_id))

    # ---- the store

    async def info(self) -> StoreInfo:
        """See `SnapshotStorage.info`."""
        sagas = events = snapshots = replays = 0
        async for _, head in self._heads("", None, _HEADS_AT_ONCE):
            if isinstance(head, CorruptDataError):
                continue
            sagas += head.index.record is not None
            events += len(head.index.events.items)
            snapshots += len(head.index.snapshots.items)
        async for _ in self._objects.keys("replays"):
            replays += 1
        return StoreInfo(self.url, FORMAT, sagas, events, snapshots, replays, await self._objects.size())

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`. There is nothing to create; whether the bucket can be read is found out."""
        async for _ in self._objects.keys(SAGAS):
            break
        return FORMAT

    async def close(self) -> None:
        """See `SnapshotStorage.close`."""
        self._known.clear()
        self._objects.close()


def _stem(key: str) -> str:
    return key[: len(SAGAS) + 1 + STEM]


def _checked(head: Head, entry: SnapshotEntry, data: bytes) -> bytes:
    if digest(data) != entry.digest:
        raise CorruptDataError(
            f"snapshot {entry.snapshot_id!r} of saga {head.saga_id!r} is damaged: "
            f"restore its object, or go on from another snapshot"
        )
    return data


def _damaged(snapshot_id: str, error: CorruptDataError) -> CorruptDataError:
    return CorruptDataError(f"snapshot {snapshot_id!r} cannot be read: {error}")


def _snapshot(head: Head, entry: SnapshotEntry, data: Mapping[str, bytes], bases: Sequence[Base]) -> SagaSnapshot:
    name, saga_name, step, index, seq, phase, status, created_at, retention, base_seq, *_ = entry
    return SagaSnapshot(
        *(name, head.saga_id, saga_name, step, index, seq, phase, status, created_at, data[name], retention, base_seq),
        tuple(bases),
        entry.completed_steps,
        entry.tags,
    )


# ---- URLs


def _read_url(url: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the URL of bucket and prefix, the driver's options and those of its HTTP client."""
    where, _, query = url.partition("?")
    scheme, _, location = where.partition("://")
    bucket, _, prefix = location.partition("/")
    if not bucket:
        raise UsageError(f"{safe_url(url)!r} names no bucket: write {scheme}://bucket/prefix")
    if len(prefix) > 256 or any(part in ("", ".", "..") for part in prefix.rstrip("/").split("/") if prefix):
        raise UsageError(f"{safe_url(url)!r} has a prefix that is no path of at most 256 characters")
    config: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    client = {}
    if "allow_http" in config:
        text = config.pop("allow_http")
        if text not in ("true", "false"):
            raise UsageError(f"{safe_url(url)!r} gives allow_http as {text!r}: give true or false")
        client["allow_http"] = text == "true"
    return where.rstrip("/"), config, client


def _sound(found: Head | CorruptDataError) -> Head:
    if isinstance(found, CorruptDataError):
        raise found
    return found


def open_s3(url: str) -> S3SnapshotStorage:
    """Open `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.

    `?timeout=` is in seconds (10), `?retries=` a number (10), `?allow_http=true` permits an endpoint without TLS; every
    other option is the driver's, such as `endpoint`, `region`, `access_key_id`. What is not given is taken from the
    environment (`AWS_…`), where credentials belong.
    """
    where, _, query = url.partition("?")
    options, rest = dict[str, float](), list[tuple[str, str]]()
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in ("timeout", "retries"):
            rest.append((name, value))
            continue
        try:
            options[name] = float(value)
        except ValueError:
            raise UsageError(f"{safe_url(url)!r} gives {name} as {value!r}: give a number, such as 10") from None
    url = f"{where}?{urlencode(rest)}" if rest else where
    return S3SnapshotStorage(url, timeout=options.get("timeout", 10.0), retries=int(options.get("retries", 10)))
