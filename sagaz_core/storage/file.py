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
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from sagaz_core.errors import CorruptDataError, UsageError, nearest, quoted
from sagaz_core.storage._checks import check_find, check_limit, check_moment, read_snapshot_cursor, snapshot_cursor
from sagaz_core.storage._file_catalog import Facts, facts_of
from sagaz_core.storage._file_core import FORMAT
from sagaz_core.storage._file_reading import read_events, read_snapshots
from sagaz_core.storage._file_segment import Segment
from sagaz_core.storage._file_writing import FileWriting
from sagaz_core.storage._listing import Listing
from sagaz_core.storage._rows import micros, micros_or_none, moment, saga_from_row
from sagaz_core.storage.base import Page, ReplayRecord, SagaRecord, SagaSnapshot, StoredEvent, StoreInfo
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime

_EVENTS_AT_ONCE = 256


class FileSnapshotStorage(FileWriting):
    """A store in a folder, safe for many processes, threads and loops at once.

    The folder is made by the first write, for its owner alone to read. `fsync` is `always` or `never`;
    `lock_timeout` is in seconds.
    """

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

    # ---- snapshots

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        with self._using() as there:
            keys: list[bytes] = []
            if there:
                self._index.trusted(lambda: keys.extend(self._index.ids.sagas(snapshot_id)))
            for key in keys:
                segment = self._segment_of(key)
                try:
                    slot = segment.index.snapshots.find(snapshot_id) if segment.refresh() else None
                except CorruptDataError as error:
                    raise CorruptDataError(f"snapshot {snapshot_id!r} cannot be read: {error}") from error
                if slot is not None:
                    served = not segment.index.snapshots.expired(slot, micros(self.clock()))
                    return _snapshots(segment, [slot])[0] if served else None
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
            last, now = micros_or_none(until), micros(self.clock())
            slot = segment.index.snapshots.latest(step, phase, last, max_seq, now)
            return None if slot is None else _snapshots(segment, [slot])[0]

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`."""
        check_limit(limit)
        place = read_snapshot_cursor(cursor)
        with self._using() as there:
            segment = self._segment(saga_id)
            if not there or not segment.refresh():
                return Page([])
            slots = segment.index.snapshots.page(place, limit, micros(self.clock()))
            page = _snapshots(segment, slots[:limit])
            return Page(page, snapshot_cursor(page[-1]) if len(slots) > limit else None)

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        with self._using() as there:
            segment = self._segment(saga_id)
            return segment.index.snapshots.served(micros(self.clock())) if there and segment.refresh() else 0

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
                slots = segment.index.events.between(after_seq, micros_or_none(until), _EVENTS_AT_ONCE + 1)
                more = len(slots) > _EVENTS_AT_ONCE
                found = read_events(segment, slots[:_EVENTS_AT_ONCE])
                events = [StoredEvent(saga_id, e[0], moment(e[1]), e[2], e[3], data) for e, data in found]
            for event in events:
                yield event
                after_seq = event.seq

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
                events += len(segment.index.events)
                snapshots += len(segment.index.snapshots)
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


def _snapshots(segment: Segment, slots: Sequence[int]) -> list[SagaSnapshot]:
    made = []
    for entry, data, bases in read_snapshots(segment, slots):
        name, saga_name, step, index, seq, phase, status, created_at, retention, base_seq, completed, tags, *_ = entry
        made.append(
            SagaSnapshot(
                *(name, segment.saga_id, saga_name, step, index, seq, phase, status, created_at, data, retention),
                *(base_seq, bases, completed, tags),
            )
        )
    return made


def _size(folder: str) -> int:
    size = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # deleted by another process since it was listed
                size += os.path.getsize(os.path.join(at, name))
    return size


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
