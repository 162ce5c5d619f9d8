"""Snapshots in a folder of plain files: one append-only file a saga, for a machine's processes, with no database.

Sagas do not wait for each other: a write locks its saga's file, and for a moment the index of all. Calls do their work
inline, as those of the SQLite store do. What a call wrote survives the death of the process, and with `fsync=always`
(the default) a power cut.

    DIR/sagaz           the version of the format
    DIR/sagas/ab/cd…    a saga's file, named by a hash of its id: frames of what was written together
    DIR/replays         the log of replays
    DIR/index/…         where to look for what; it can be deleted, and is made anew from the sagas' files
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote

from sagaz_core.clock import monotonic, utc_now
from sagaz_core.errors import (
    CodecError,
    CorruptDataError,
    SchemaError,
    StorageError,
    StoreUnavailableError,
    UsageError,
    nearest,
    quoted,
)
from sagaz_core.storage._checks import (
    another_snapshot,
    check_batch,
    check_find,
    check_limit,
    check_moment,
    check_prune,
    read_snapshot_cursor,
    snapshot_cursor,
)
from sagaz_core.storage._file_catalog import Facts, facts_of
from sagaz_core.storage._file_ids import DamagedIndex
from sagaz_core.storage._file_index import FileIndex, boot_id
from sagaz_core.storage._file_log import not_there, take, try_lock, unavailable, unlock
from sagaz_core.storage._file_replays import Replays
from sagaz_core.storage._file_segment import Segment, segment_key
from sagaz_core.storage._listing import Listing
from sagaz_core.storage._rows import SnapshotEntry, micros, saga_from_row
from sagaz_core.storage._saga_index import expired, first_end
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
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from datetime import datetime

FORMAT = 1
_OPEN_AT_ONCE = 128
_EVENTS_AT_ONCE = 256
_FSYNC = ("always", "never")


class _Using:
    """Has a store for this thread, and tells what its files raise as errors of the store."""

    __slots__ = ("_create", "_storage")

    def __init__(self, storage: FileSnapshotStorage, create: bool) -> None:
        self._storage, self._create = storage, create

    def __enter__(self) -> bool:
        storage = self._storage
        storage._lock.acquire()
        try:
            return storage._marked or storage._check_marked(self._create)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._storage._lock.release()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise unavailable(error, self._storage.path) from error


class FileSnapshotStorage:
    """A store in a folder, safe for many processes, threads and loops at once.

    The folder is made by the first write, for its owner alone to read. `fsync` is `always` or `never`;
    `lock_timeout` is in seconds.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: str = "always", lock_timeout: float = 5.0) -> None:
        self.path = os.path.abspath(os.fspath(path))
        if "\0" in self.path:
            raise UsageError(f"{self.path!r} cannot be a folder: it has a NUL")
        if fsync not in _FSYNC:
            raise UsageError(f"fsync={fsync!r} is not known{nearest(fsync, _FSYNC)}: give always or never")
        if not 0 <= lock_timeout < float("inf"):
            raise UsageError(f"lock_timeout={lock_timeout} is not a time: give seconds, 0 or more")
        self.url = f"file://{quote(Path(self.path).as_posix(), safe='/:')}"
        self.clock: Callable[[], datetime] = utc_now
        self._sync = fsync == "always"
        self._timeout = lock_timeout
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = RLock()
        self._marked = False
        self._sagas = os.path.join(self.path, "sagas")
        self._segments: OrderedDict[bytes, Segment] = OrderedDict()
        self._index = FileIndex(os.path.join(self.path, "index"), self._sagas, self._timeout)
        self._replays = Replays(os.path.join(self.path, "replays"))

    def _using(self, *, create: bool = False) -> _Using:
        """Have the folder for this thread, and say whether there is a store in it."""
        if self._pid != os.getpid():
            self._leave_inherited()
        return _Using(self, create)

    def _leave_inherited(self) -> None:
        """Have files of one's own after a fork: a lock would be shared with the parent."""
        segments, index, replays = self._segments, self._index, self._replays
        self._begin()
        for segment in segments.values():
            segment.close()
        index.close()
        replays.close()

    def _check_marked(self, create: bool) -> bool:
        path = os.path.join(self.path, "sagaz")
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(100)
        except OSError as error:
            if not not_there(error):
                raise
            if not create:
                return False
            self._create(path)
            text = f"{FORMAT}\n"
        if not text.strip().isdecimal():
            raise StorageError(f"{path} cannot be read: it is not a version")
        if int(text) > FORMAT:
            raise SchemaError(
                f"the store {self.path} has format {int(text)}, this release reads up to {FORMAT}: upgrade pytest-sagaz"
            )
        self._marked = True
        return True

    def _create(self, path: str) -> None:
        os.makedirs(self.path, 0o700, exist_ok=True)
        others = [name for name in os.listdir(self.path) if not name.startswith("sagaz")]
        if others and not os.path.exists(path):
            raise StorageError(f"the folder {self.path} is not empty and no store: use a folder of its own")
        new = f"{path}.{os.getpid()}"
        with open(new, "w", encoding="utf-8") as file:
            file.write(f"{FORMAT}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)

    def _segment(self, saga_id: str) -> Segment:
        return self._segment_of(segment_key(saga_id))

    def _segment_of(self, key: bytes) -> Segment:
        segment = self._segments.get(key)
        if segment is None:
            if len(self._segments) >= _OPEN_AT_ONCE:
                self._segments.popitem(last=False)[1].close()
            name = key.hex()
            segment = self._segments[key] = Segment(key, os.path.join(self._sagas, name[:2], name[2:]))
        else:
            self._segments.move_to_end(key)
        return segment

    def _begin_change(self, segment: Segment, *, create: bool) -> bool:
        """Take the lock of a saga's file, read it up to its end, and say whether there is one."""
        while True:
            if segment.fd < 0:
                segment.refresh()
            if segment.fd < 0:
                if not create:
                    return False
                segment.create()
                continue
            opened = segment.opened
            segment.check_writable()
            take(segment.fd, segment.path, self._timeout)
            try:
                segment.refresh()
                if segment.fd >= 0 and segment.opened == opened:  # else it was deleted or written anew while we waited
                    segment.cut_off()
                    return True
            except BaseException:
                unlock(segment.fd)
                raise

    @contextmanager
    def _changing(self, segment: Segment) -> Iterator[bool]:
        """Hold the lock of a saga's file, and say whether there is a saga."""
        there = self._begin_change(segment, create=False)
        try:
            yield there and bool(segment.saga_id)
        finally:
            unlock(segment.fd)

    # ---- writing

    async def write(self, batch: Batch) -> None:
        """See `SnapshotStorage.write`."""
        check_batch(batch)
        if batch.saga is None and batch.summary is None and not batch.events and not batch.snapshots:
            return
        segment_id = checked_id(batch.saga_id)
        with self._using(create=True):
            deadline = None
            while not self._written_or_repaired(self._segment(segment_id), batch):
                deadline = monotonic() + self._timeout if deadline is None else deadline
                if monotonic() > deadline:
                    raise StoreUnavailableError(f"another process of {self.path} writes the same snapshot: try again")

    def _written_or_repaired(self, segment: Segment, batch: Batch) -> bool:
        try:
            return self._written(segment, batch)
        except DamagedIndex:
            self._index.remake()
            return False

    def _written(self, segment: Segment, batch: Batch) -> bool:
        """Write the batch, or say that it has to be tried again."""
        self._begin_change(segment, create=True)
        try:
            news = segment.index.news(batch)
            if not news:
                return True
            changed = bool(news.record or news.summary or not segment.end) or _sooner(news.snapshots, segment)
            made = self._index.begin()
            try:
                for snapshot in news.snapshots:
                    others = self._index.ids.claim(snapshot.snapshot_id, segment.key)
                    if others and not self._free(others, snapshot.snapshot_id, batch):
                        return False
                if changed:
                    self._index.catalog.put(segment.key, batch.saga_id, None)
            finally:
                self._index.end()
            segment.write(batch.saga_id, news, sync=self._sync)
            if changed or made != self._index.made():
                self._tell(segment, [snapshot.snapshot_id for snapshot in news.snapshots])
            return True
        finally:
            unlock(segment.fd)

    def _free(self, keys: Sequence[bytes], snapshot_id: str, batch: Batch) -> bool:
        """Whether none of these sagas has the snapshot. Raises `DuplicateSagaError` when one has."""
        for key in keys:
            other = self._segment_of(key)
            if other.refresh():
                if snapshot_id in other.index.by_id:
                    raise another_snapshot(next(s for s in batch.snapshots if s.snapshot_id == snapshot_id))
                if not try_lock(other.fd):
                    return False  # its writer may be about to write just this
                unlock(other.fd)
        return True

    def _tell(self, segment: Segment, snapshot_ids: Sequence[str]) -> None:
        """Tell the index what the saga's file says now, the snapshots also when it was made anew meanwhile."""
        with self._index.changing():
            for snapshot_id in snapshot_ids:
                self._index.ids.claim(snapshot_id, segment.key)
            facts = facts_of(segment.index)
            self._index.catalog.put(segment.key, segment.saga_id, facts, sync=self._sync and not boot_id())

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """See `SnapshotStorage.write_many`."""
        results: list[Exception | None] = []
        for batch in batches:
            try:
                await self.write(batch)
            except StoreUnavailableError:
                raise
            except (UsageError, CodecError, StorageError) as error:
                results.append(error)
            else:
                results.append(None)
        return results

    # ---- sagas

    async def get_saga(self, saga_id: str) -> SagaRecord | None:
        """See `SnapshotStorage.get_saga`."""
        with self._using() as there:
            return self._record(saga_id) if there else None

    def _record(self, saga_id: str) -> SagaRecord | None:
        segment = self._segment(saga_id)
        record = segment.index.record if segment.refresh() else None
        return None if record is None else saga_from_row(record)

    async def list_sagas(self, *, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_sagas`."""
        check_limit(limit)
        page = Listing(limit)
        with self._using() as there:
            for saga_id, facts in self._known(prefix if cursor is None else max(prefix, cursor + "\0"), there):
                if not saga_id.startswith(prefix):
                    break
                if facts is None or facts.recorded:
                    record = page.made(saga_id, self._record, saga_id)
                    if record is not None and not page.takes(saga_id, record):
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
        """See `SnapshotStorage.find_sagas`."""
        between, wanted = check_find(failed_between, tags, limit)
        times = None if between is None else (micros(between[0]), micros(between[1]))

        def fits(facts: Facts) -> bool:
            return (
                facts.name is not None
                and status in (None, facts.status)
                and saga_name in (None, facts.name)
                and step_name in (None, facts.step)
                and (times is None or (facts.failed_at is not None and times[0] <= facts.failed_at <= times[1]))
                and wanted.items() <= facts.tags.items()
            )

        page = Listing(limit)
        with self._using() as there:
            for saga_id, facts in self._known("" if cursor is None else cursor + "\0", there):
                if facts is None or fits(facts):
                    segment = self._segment(saga_id)
                    summary = segment.index.summary if page.made(saga_id, segment.refresh) else None
                    if summary is None or not fits(facts_of(segment.index)):
                        continue
                    if not page.takes(saga_id, summary._replace(tags=dict(summary.tags))):
                        break
        return page.page()

    def _known(self, start: str, there: bool) -> Iterator[tuple[str, Facts | None]]:
        if not there:
            return
        self._index.trusted(self._refresh_catalog)
        sagas = self._index.catalog.sagas
        for saga_id in self._index.catalog.ids(start):
            yield saga_id, sagas[saga_id][1]

    def _refresh_catalog(self) -> None:
        catalog = self._index.catalog
        catalog.refresh()
        if catalog.wasteful and os.access(self.path, os.W_OK):
            with self._index.changing():
                catalog.refresh()
                catalog.compact()
            catalog.refresh()

    # ---- snapshots

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        with self._using() as there:
            keys: list[bytes] = []
            if there:
                self._index.trusted(lambda: keys.extend(self._index.ids.sagas(snapshot_id)))
            for key in keys:
                segment = self._segment_of(key)
                if segment.refresh() and snapshot_id in segment.index.by_id:
                    entry = segment.index.by_id[snapshot_id]
                    return None if expired(entry, self.clock()) else _snapshot(segment, entry)
            return None

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
        with self._using() as there:
            segment = self._segment(saga_id)
            if not there or not segment.refresh():
                return None
            entry = segment.index.latest(step, phase, until, max_seq, self.clock())
            return None if entry is None else _snapshot(segment, entry)

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        place = read_snapshot_cursor(cursor)
        with self._using() as there:
            segment = self._segment(saga_id)
            if not there or not segment.refresh():
                return Page([])
            entries = segment.index.page(place, limit, self.clock())
            page = [_snapshot(segment, entry) for entry in entries[:limit]]
            return Page(page, snapshot_cursor(page[-1]) if len(entries) > limit else None)

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        with self._using() as there:
            segment = self._segment(saga_id)
            return segment.index.served(self.clock()) if there and segment.refresh() else 0

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`."""
        check_moment(until)
        more = True
        while more:
            with self._using() as there:
                segment = self._segment(saga_id)
                if not there or not segment.refresh():
                    return
                entries = segment.index.events_between(after_seq, until)
                more = len(entries) > _EVENTS_AT_ONCE
                events = [
                    StoredEvent(saga_id, e.seq, e.at, e.kind, e.step, segment.event_data(e))
                    for e in entries[:_EVENTS_AT_ONCE]
                ]
            for event in events:
                yield event
                after_seq = event.seq

    # ---- deleting

    async def delete_snapshots(self, saga_id: str, *, below_seq: int) -> int:
        """See `SnapshotStorage.delete_snapshots`."""
        with self._using() as there:
            segment = self._segment(saga_id)
            if not there:
                return 0
            with self._changing(segment) as there:
                if not there:
                    return 0
                gone, hidden, served = segment.index.below(below_seq, self.clock())
                self._delete(segment, gone, hidden)
                return served

    def _delete(self, segment: Segment, gone: Sequence[str], hidden: Sequence[str]) -> None:
        if not gone and not hidden:
            return
        with self._index.changing():
            self._index.catalog.put(segment.key, segment.saga_id, None)
        segment.delete(gone, hidden, sync=self._sync)
        with self._index.changing():
            for snapshot_id in gone:
                self._index.ids.remove(snapshot_id, segment.key)
            self._index.catalog.put(segment.key, segment.saga_id, facts_of(segment.index))

    async def delete_saga(self, saga_id: str) -> bool:
        """See `SnapshotStorage.delete_saga`."""
        with self._using() as there:
            segment = self._segment(saga_id)
            if not there:
                return False
            with self._changing(segment) as there:
                if not there:
                    return False
                with self._index.changing():
                    self._index.catalog.put(segment.key, saga_id, None)
                os.unlink(segment.path)
                with self._index.changing():
                    for snapshot_id in segment.index.by_id:
                        self._index.ids.remove(snapshot_id, segment.key)
                    self._index.catalog.forget(segment.key, saga_id)
                return True

    async def prune(self, now: datetime, *, batch: int = 500) -> int:
        """See `SnapshotStorage.prune`."""
        check_prune(now, batch)
        deleted, at = 0, micros(now)
        with self._using() as there:
            for saga_id, facts in list(self._known("", there)):
                part = batch
                while part == batch and (facts is None or (facts.first_end is not None and facts.first_end < at)):
                    with self._changing(self._segment(saga_id)) as found:
                        segment = self._segment(saga_id)
                        gone = segment.index.prunable(now)[:batch] if found else []
                        self._delete(segment, gone, ())
                    part = len(gone)
                    deleted += part
        return deleted

    # ---- replays

    async def log_replay(self, record: ReplayRecord) -> None:
        """See `SnapshotStorage.log_replay`."""
        check_moment(record.created_at)
        check_moment(record.completed_at)
        with self._using(create=True):
            self._replays.put(record, self._timeout, sync=self._sync)

    async def list_replays(self, saga_id: str) -> Sequence[ReplayRecord]:
        """See `SnapshotStorage.list_replays`."""
        with self._using():
            return self._replays.of(saga_id)

    # ---- the store

    async def info(self) -> StoreInfo:
        """See `SnapshotStorage.info`."""
        sagas = events = snapshots = 0
        with self._using() as there:
            for saga_id, _ in list(self._known("", there)):
                segment = self._segment(saga_id)
                with suppress(CorruptDataError):  # up to there
                    segment.refresh()
                sagas += segment.index.record is not None
                events += len(segment.index.events.items)
                snapshots += len(segment.index.snapshots.items)
            size = _size(self.path)
            return StoreInfo(self.url, FORMAT if there else 0, sagas, events, snapshots, self._replays.count(), size)

    async def upgrade(self) -> int:
        """See `SnapshotStorage.upgrade`."""
        with self._using(create=True):
            self._index.ready()
            return FORMAT

    async def close(self) -> None:
        """See `SnapshotStorage.close`."""
        if self._pid != os.getpid():
            self._leave_inherited()
        with self._lock:
            for segment in self._segments.values():
                segment.close()
            self._segments.clear()
            self._index.close()
            self._replays.close()


def _sooner(entries: Sequence[SnapshotEntry], segment: Segment) -> bool:
    return first_end(entries, segment.index.first_end) != segment.index.first_end


def _snapshot(segment: Segment, entry: SnapshotEntry) -> SagaSnapshot:
    name, saga_name, step, index, seq, phase, status, created_at, retention, base_seq, *_ = entry
    bases = tuple(Base(base.snapshot_id, segment.data(base)) for base in segment.index.bases(entry))
    data = segment.data(entry)
    return SagaSnapshot(
        *(name, segment.saga_id, saga_name, step, index, seq, phase, status, created_at, data, retention, base_seq),
        bases,
        entry.completed_steps,
        entry.tags,
    )


def _size(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


# ---- URLs


def open_file_store(url: str) -> FileSnapshotStorage:
    """Open `file:///absolute/folder`, or `file://./folder` below the folder that is current now.

    `?fsync=always|never` and `?lock_timeout=` in seconds. Special characters may be percent-encoded; `?` and `%` must
    be.
    """
    location, _, query = url.partition("://")[2].partition("?")
    host, slash, path = location.partition("/")
    shown = repr(safe_url(url))
    if host not in ("", "localhost", ".", ".."):
        raise UsageError(f"{shown} names a host: write file:///absolute/folder or file://./relative/folder")
    if not slash or not path.strip("/"):
        raise UsageError(f"{shown} names no folder: write file:///absolute/folder or file://./relative/folder")
    fsync, timeout = "always", 5.0
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "fsync":
            fsync = value
        elif name == "lock_timeout":
            try:
                timeout = float(value)
            except ValueError:
                raise UsageError(f"{shown} gives lock_timeout as {value!r}: give seconds, such as 5") from None
        else:
            known = ["fsync", "lock_timeout"]
            raise UsageError(f"{shown} has the unknown option {name!r}{nearest(name, known)}; known: {quoted(known)}")
    folder = unquote(f"{host}/{path}" if host.startswith(".") else f"/{path}")
    return FileSnapshotStorage(folder, fsync=fsync, lock_timeout=timeout)
