"""From one store to another: saga by saga, checked against what was read, and gone on with where it was stopped."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CopyError
from sagaz_core.storage.base import Batch
from sagaz_core.storage.frames import FrameWriter, state_bytes
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sagaz_core.storage.base import SagaRecord, SagaSnapshot, SagaSummary, SnapshotStorage, StoredEvent

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EVENTS_AT_ONCE = 500
_BYTES_AT_ONCE = 4_000_000


@dataclass(slots=True)
class Copied:
    """What a copy has done. Of the sagas that were looked at, those `there` were there already, whole."""

    sagas: int = 0
    there: int = 0
    events: int = 0
    snapshots: int = 0
    replays: int = 0


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

    Raises `DuplicateSagaError` for another saga of the same id, `CopyError` when the target does not give what was
    written, `DamagedSnapshotError` for what the source cannot give.
    """
    done = Copied()
    summaries = _Summaries(source)
    async for record in _records(source):
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
    right, there = await _checksums(stores.source, saga_id), await _checksums(stores.target, saga_id)
    whole = right.items() <= there.items() and await stores.target.get_saga(saga_id) == record
    if whole:
        done.there += 1
    else:
        await stores.target.write(Batch(saga_id, record))
        await _copy_events(stores, saga_id, done)
        await _copy_snapshots(stores, saga_id, there, done)
    if summary is not None:
        await stores.target.write(Batch(saga_id, summary=summary))
    for replay in await stores.source.list_replays(saga_id):
        await stores.target.log_replay(replay)
        done.replays += 1
    if not whole:
        there = await _checksums(stores.target, saga_id)
        wrong = [name for name, checksum in right.items() if there.get(name) != checksum]
        if wrong:
            raise CopyError(
                f"{wrong[0]} of saga {saga_id!r} is not in {safe_url(stores.target.url)} as it was read: "
                f"copy again, and if it stays so look at that store"
            )
    done.sagas += 1


async def _copy_events(stores: _Pair, saga_id: str, done: Copied) -> None:
    batch: list[StoredEvent] = []
    size = 0
    async for event in stores.source.read_events(saga_id):
        batch.append(event)
        size += len(event.data)
        if len(batch) == _EVENTS_AT_ONCE or size > _BYTES_AT_ONCE:
            await stores.target.write(Batch(saga_id, events=batch))
            batch, size = [], 0
        done.events += 1
    if batch:
        await stores.target.write(Batch(saga_id, events=batch))


async def _copy_snapshots(stores: _Pair, saga_id: str, there: dict[str, bytes], done: Copied) -> None:
    """Write the snapshots that are not there. Their frames are made anew: what they were based on may not be served."""
    frames = FrameWriter()
    batch: list[SagaSnapshot] = []
    size = 0
    async for snapshot in _snapshots(stores.source, saga_id):
        if _name(snapshot) in there:
            frames.begin_again()
            continue
        made = frames.frame(snapshot, state_bytes(snapshot))
        batch.append(made)
        size += len(made.data)
        done.snapshots += 1
        if size > _BYTES_AT_ONCE or len(batch) == _EVENTS_AT_ONCE:
            await stores.target.write(Batch(saga_id, snapshots=batch))
            batch, size = [], 0
    if batch:
        await stores.target.write(Batch(saga_id, snapshots=batch))


async def _checksums(storage: SnapshotStorage, saga_id: str) -> dict[str, bytes]:
    """Return a checksum of each event and of each snapshot's state, whatever its frame is."""
    found = {}
    async for event in storage.read_events(saga_id):
        found[f"event {event.seq}"] = _checksum((event.at - _EPOCH, event.kind, event.step), event.data)
    async for snapshot in _snapshots(storage, saga_id):
        until = snapshot.retention_until
        said = (*snapshot[1:8], snapshot.created_at - _EPOCH, until and until - _EPOCH)
        found[_name(snapshot)] = _checksum(said, state_bytes(snapshot))
    return found


def _name(snapshot: SagaSnapshot) -> str:
    return f"snapshot {snapshot.snapshot_id!r}"


def _checksum(said: tuple[Any, ...], data: bytes) -> bytes:
    return blake2b(repr(said).encode() + data, digest_size=16).digest()


# ---- listings


class _Summaries:
    """Summaries beside the records: both are in order of id, so each is read once."""

    def __init__(self, storage: SnapshotStorage) -> None:
        self._summaries = _found(storage)
        self._next: SagaSummary | None = None
        self._begun = False

    async def of(self, saga_id: str) -> SagaSummary | None:
        """Return the summary of this saga; the ids asked for must go up."""
        while not self._begun or (self._next is not None and self._next.saga_id < saga_id):
            self._begun = True
            self._next = await anext(self._summaries, None)
        found = self._next
        return found if found is not None and found.saga_id == saga_id else None


async def _found(storage: SnapshotStorage) -> AsyncIterator[SagaSummary]:
    cursor: str | None = None
    while True:
        page = await storage.find_sagas(limit=500, cursor=cursor)
        for summary in page.items:
            yield summary
        cursor = page.cursor
        if cursor is None:
            return


async def _records(storage: SnapshotStorage) -> AsyncIterator[SagaRecord]:
    cursor: str | None = None
    while True:
        page = await storage.list_sagas(limit=500, cursor=cursor)
        for record in page.items:
            yield record
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
