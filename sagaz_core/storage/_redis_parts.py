"""A batch for Redis as entries of bounded size: who reads a snapshot reads the entries of it and its bases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.storage.base import Batch, StoredEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sagaz_core.storage.base import SagaSnapshot

_SNAPSHOTS = 16  # from one keyframe to the next
_EVENTS = 64
_BYTES = 1 << 16
_FEW = 4  # what an engine writes at once


def parts_of(batch: Batch) -> list[Batch]:
    """Return the batch in parts that follow each other, one alone of a batch that is small."""
    if len(batch.events) + len(batch.snapshots) <= _FEW:
        return [batch]
    parts = list(_cut(batch))
    parts[0] = parts[0]._replace(saga=batch.saga)
    parts[-1] = parts[-1]._replace(summary=batch.summary)
    return parts


def _cut(batch: Batch) -> Iterator[Batch]:
    """Yield parts of what there is in order of `seq`, for an index by it to be of use."""
    events: list[StoredEvent] = []
    snapshots: list[SagaSnapshot] = []
    size = 0
    records: list[StoredEvent | SagaSnapshot] = sorted([*batch.events, *batch.snapshots], key=_place)
    for record in records:
        if _is_full(record, events, snapshots) or (size and size + len(record.data) > _BYTES):
            yield Batch(batch.saga_id, events=events, snapshots=snapshots)
            events, snapshots, size = [], [], 0
        if isinstance(record, StoredEvent):
            events.append(record)
        else:
            snapshots.append(record)
        size += len(record.data)
    yield Batch(batch.saga_id, events=events, snapshots=snapshots)


def _is_full(
    record: StoredEvent | SagaSnapshot, events: Sequence[StoredEvent], snapshots: Sequence[SagaSnapshot]
) -> bool:
    """Whether the record is not to be in an entry with these.

    A keyframe had better begin one: nothing before it is needed to read what comes after it.
    """
    if isinstance(record, StoredEvent):
        return len(events) == _EVENTS
    return len(snapshots) == _SNAPSHOTS or (record.base_seq is None and len(snapshots) >= _SNAPSHOTS // 2)


def _place(record: StoredEvent | SagaSnapshot) -> tuple[int, str]:
    """Return what orders them: an event comes before the snapshots of its `seq`."""
    return record.seq, "" if isinstance(record, StoredEvent) else record.snapshot_id
