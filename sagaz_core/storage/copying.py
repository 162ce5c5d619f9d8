"""From one store to another: saga by saga, checked against what was read, and gone on with where it was stopped."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sagaz_core.errors import CopyError, CorruptDataError, DamagedListingError
from sagaz_core.storage.base import Batch, Page, SagaSnapshot, StoredEvent
from sagaz_core.storage.frames import FrameWriter, state_bytes
from sagaz_core.storage.seals import opened, sealed
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sagaz_core.storage.base import SagaRecord, SagaSummary, SnapshotStorage

_Record = TypeVar("_Record")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RECORDS_AT_ONCE = 500
_LISTED_AT_ONCE = 500
_BYTES_AT_ONCE = 4_000_000


@dataclass(slots=True)
class Copied:
    """What a copy has done. Of the sagas that were looked at, those `there` were there already, whole.

    Events, snapshots and replays are those that were written.
    `damaged` says of each record that the source cannot give any more what is wrong with it.
    """

    sagas: int = 0
    there: int = 0
    events: int = 0
    snapshots: int = 0
    replays: int = 0
    damaged: list[str] = field(default_factory=list)


async def copy_store(
    source: SnapshotStorage,
    target: SnapshotStorage,
    *,
    saga_name: str | None = None,
    since: datetime | None = None,
    on_saga: Callable[[], object] | None = None,
) -> Copied:
    """Copy all sagas, or those of a name or started since a time, with their events, served snapshots and replay log.

    What is in the target already is not written again, so a copy that was stopped is begun again by the same call.
    After each saga the target is read, and compared with the source by checksums. `on_saga` is called for each saga of
    the source, copied or not. Sagas whose record was never written are not copied.

    What is damaged in the source is left out, and told of in `damaged`; all else is copied.

    Raises `DuplicateSagaError` for another saga of the same id, `CopyError` when the target does not give what was
    written.
    """
    done = Copied()
    summaries = _Summaries(source, done.damaged)
    async for record in _records(source, done.damaged):
        summary = await summaries.of(record.saga_id)
        if (saga_name is None or record.saga_name == saga_name) and (since is None or record.started_at >= since):
            await _copy_saga(_Pair(source, target), record, summary, done)
        if on_saga is not None:
            on_saga()
    return done


@dataclass(frozen=True, slots=True)
class _Pair:
    source: SnapshotStorage
    target: SnapshotStorage


async def _copy_saga(stores: _Pair, record: SagaRecord, summary: SagaSummary | None, done: Copied) -> None:
    saga_id = record.saga_id
    right, there = await _read(stores.source, saga_id), await _read(stores.target, saga_id)
    done.damaged += right.damaged
    if there.damaged:
        raise CopyError(f"{safe_url(stores.target.url)} has damaged records of saga {saga_id!r}: {there.damaged[0]}")
    whole = right.checksums.items() <= there.checksums.items() and await stores.target.get_saga(saga_id) == record
    if whole:
        done.there += 1
    else:
        await stores.target.write(Batch(saga_id, record))
        await _copy_records(stores, saga_id, right, there, done)
    if summary is not None:
        await stores.target.write(Batch(saga_id, summary=summary))
    await _copy_replays(stores, saga_id, done)
    if not whole:
        there = await _read(stores.target, saga_id)
        wrong = [name for name, checksum in right.checksums.items() if there.checksums.get(name) != checksum]
        if wrong:
            raise CopyError(
                f"{wrong[0]} of saga {saga_id!r} is not in {safe_url(stores.target.url)} as it was read: "
                f"copy again, and if it stays so look at that store"
            )
    done.sagas += 1


async def _copy_replays(stores: _Pair, saga_id: str, done: Copied) -> None:
    try:
        replays = await stores.source.list_replays(saga_id)
    except CorruptDataError as error:
        done.damaged.append(f"the replays of saga {saga_id!r} are not copied: {error}")
        return
    there = await stores.target.list_replays(saga_id) if replays else ()
    for replay in replays:
        if replay not in there:
            await stores.target.log_replay(replay)
            done.replays += 1


async def _copy_records(stores: _Pair, saga_id: str, right: _Found, there: _Found, done: Copied) -> None:
    """Write the events and snapshots that are not there, in the order in which they were made.

    Each event is written with its checksum, which a store in memory does without. Snapshots' frames are made anew: what
    they were based on may not be served.
    """
    frames, batch = FrameWriter(), list[StoredEvent | SagaSnapshot]()
    size = 0
    async for record in _in_order(stores.source.read_events(saga_id), _snapshots(stores.source, saga_id)):
        name = _event_name(record) if isinstance(record, StoredEvent) else _name(record)
        is_wanted = name in right.checksums and name not in there.checksums
        if isinstance(record, StoredEvent):
            if is_wanted:
                batch.append(_sealed_again(record))
                done.events += 1
        elif is_wanted:
            batch.append(frames.frame(record, state_bytes(record)))
            done.snapshots += 1
        else:
            frames.begin_again()
        size += len(batch[-1].data) if is_wanted else 0
        if len(batch) == _RECORDS_AT_ONCE or size > _BYTES_AT_ONCE:
            await stores.target.write(_batch(saga_id, batch))
            batch, size = [], 0
    if batch:
        await stores.target.write(_batch(saga_id, batch))


def _sealed_again(event: StoredEvent) -> StoredEvent:
    return sealed(event.saga_id, event.seq, event.at, event.kind, event.step, opened(event))


def _batch(saga_id: str, records: Sequence[StoredEvent | SagaSnapshot]) -> Batch:
    events = [record for record in records if isinstance(record, StoredEvent)]
    return Batch(saga_id, events=events, snapshots=[one for one in records if isinstance(one, SagaSnapshot)])


async def _in_order(
    events: AsyncIterator[StoredEvent], snapshots: AsyncIterator[SagaSnapshot]
) -> AsyncIterator[StoredEvent | SagaSnapshot]:
    """Iterate both, an event before the snapshots of its `seq`, each up to where it is damaged, as was told already."""
    event, snapshot = await _next(events), await _next(snapshots)
    while event is not None or snapshot is not None:
        if event is not None and (snapshot is None or event.seq <= snapshot.seq):
            yield event
            event = await _next(events)
        elif snapshot is not None:
            yield snapshot
            snapshot = await _next(snapshots)


async def _next(records: AsyncIterator[_Record]) -> _Record | None:
    with suppress(CorruptDataError):
        return await anext(records, None)
    return None


class _Found(NamedTuple):
    """A checksum of each event and of each snapshot's state, whatever its frame is, and what is damaged of them."""

    checksums: dict[str, bytes]
    damaged: list[str]


async def _read(storage: SnapshotStorage, saga_id: str) -> _Found:
    found = _Found({}, [])
    try:
        async for event in storage.read_events(saga_id):
            try:
                data = opened(event)
            except CorruptDataError as error:
                found.damaged.append(str(error))
            else:
                said: tuple[Any, ...] = (event.at - _EPOCH, event.kind, event.step)
                found.checksums[_event_name(event)] = _checksum(said, data)
    except CorruptDataError as error:
        found.damaged.append(f"the events of saga {saga_id!r} from there on are not copied: {error}")
    try:
        async for snapshot in _snapshots(storage, saga_id):
            until = snapshot.retention_until
            times = snapshot.created_at - _EPOCH, until and until - _EPOCH
            said = (*snapshot[1:8], *times, snapshot.completed_steps, snapshot.tags)
            try:
                found.checksums[_name(snapshot)] = _checksum(said, state_bytes(snapshot))
            except CorruptDataError as error:
                found.damaged.append(str(error))
    except CorruptDataError as error:
        found.damaged.append(f"the snapshots of saga {saga_id!r} from there on are not copied: {error}")
    return found


def _event_name(event: StoredEvent) -> str:
    return f"event {event.seq}"


def _name(snapshot: SagaSnapshot) -> str:
    return f"snapshot {snapshot.snapshot_id!r}"


def _checksum(said: tuple[Any, ...], data: bytes) -> bytes:
    return blake2b(repr(said).encode() + data, digest_size=16).digest()


# ---- listings


class _Summaries:
    """Summaries beside the records: both are in order of id, so each is read once."""

    def __init__(self, storage: SnapshotStorage, damaged: list[str]) -> None:
        self._summaries = _summaries(storage, damaged)
        self._next: SagaSummary | None = None
        self._begun = False

    async def of(self, saga_id: str) -> SagaSummary | None:
        """Return the summary of this saga; the ids asked for must go up."""
        while not self._begun or (self._next is not None and self._next.saga_id < saga_id):
            self._begun = True
            self._next = await anext(self._summaries, None)
        found = self._next
        return found if found is not None and found.saga_id == saga_id else None


async def _summaries(storage: SnapshotStorage, damaged: list[str]) -> AsyncIterator[SagaSummary]:
    async for summary in _listed(storage.find_sagas, "summaries", damaged):
        yield summary


async def _records(storage: SnapshotStorage, damaged: list[str]) -> AsyncIterator[SagaRecord]:
    async for record in _listed(storage.list_sagas, "sagas", damaged):
        yield record


async def _listed(get: Callable[..., Awaitable[Page]], what: str, damaged: list[str]) -> AsyncIterator[Any]:
    """Iterate a listing without what is damaged in it; where its store does not say what that is, up to there."""
    cursor: str | None = None
    while True:
        try:
            page = await get(limit=_LISTED_AT_ONCE, cursor=cursor)
        except DamagedListingError as error:
            if str(error) not in damaged:  # a saga's record and its summary may be damaged at once
                damaged.append(str(error))
            page = Page(error.items, error.cursor)
        except CorruptDataError as error:
            damaged.append(f"the {what} from there on are not copied: {error}")
            return
        for one in page.items:
            yield one
        cursor = page.cursor
        if cursor is None:
            return


async def _snapshots(storage: SnapshotStorage, saga_id: str) -> AsyncIterator[SagaSnapshot]:
    cursor: str | None = None
    while True:
        page = await storage.list_snapshots(saga_id, limit=100, cursor=cursor)
        for snapshot in page.items:
            yield snapshot
        cursor = page.cursor
        if cursor is None:
            return
