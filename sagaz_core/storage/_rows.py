"""A saga's records as rows of plain values, for stores that keep their own index; states and event data stand apart.

Of those a row has the size and a digest: they are checked by it when they are read, and compared by it when they are
written again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage._checks import canonical_json, check_moment, model_from_json, model_to_json
from sagaz_core.storage.base import ReplayRecord, SagaRecord, SagaSnapshot, SagaSummary, StoredEvent

Row = list[Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_MAX = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


class EventEntry(NamedTuple):
    """A `StoredEvent` without its data; `place` is where they are, in the store's own terms."""

    seq: int
    at: datetime
    kind: str
    step: str | None
    digest: bytes
    size: int
    place: Any = None


class SnapshotEntry(NamedTuple):
    """A `SagaSnapshot` without its saga and its data; `place` is where they are, in the store's own terms."""

    snapshot_id: str
    saga_name: str
    step_name: str
    step_index: int
    seq: int
    phase: str
    status: str
    created_at: datetime
    retention_until: datetime | None
    base_seq: int | None
    completed_steps: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]
    digest: bytes
    size: int
    place: Any = None


def digest(data: bytes | memoryview) -> bytes:
    """Return what the data are told from others by, and checked with."""
    return blake2b(data, digest_size=8).digest()


def event_entry(event: StoredEvent) -> EventEntry:
    """Return the event's entry, which has no place yet."""
    data = event.data
    return EventEntry(event.seq, event.at, event.kind, event.step, digest(data), len(data))


def snapshot_entry(snapshot: SagaSnapshot) -> SnapshotEntry:
    """Return the snapshot's entry, which has no place yet."""
    sid, _, name, step, index, seq, phase, status, created_at, data, retention, base_seq, _, completed, tags = snapshot
    return SnapshotEntry(
        *(sid, name, step, index, seq, phase, status, created_at, retention, base_seq),
        *(tuple(completed), tuple(tags), digest(data), len(data)),
    )


def event_row(entry: EventEntry) -> Row:
    """Return the event as plain values."""
    return [entry.seq, micros(entry.at), *entry[2:]]


def event_from_row(row: Row) -> EventEntry:
    """Do the inverse of `event_row`."""
    seq, at, kind, step, *others = row
    return EventEntry(seq, moment(at), kind, step, *others)


def snapshot_row(entry: SnapshotEntry) -> Row:
    """Return the snapshot as plain values."""
    times = micros(entry.created_at), micros_or_none(entry.retention_until)
    return [*entry[:7], *times, entry.base_seq, list(entry.completed_steps), dict(entry.tags), *entry[12:]]


def snapshot_from_row(row: Row) -> SnapshotEntry:
    """Do the inverse of `snapshot_row`. What earlier releases wrote has no tags, and no completed steps."""
    times = moment(row[7]), moment_or_none(row[8])
    without: Row = [(), {}]
    completed, tags = *row[10:-3], *without[len(row) - 13 :]
    entry: Row = [*row[:7], *times, row[9], tuple(completed), tuple(tags.items()), *row[-3:]]
    return SnapshotEntry(*entry)


def saga_row(record: SagaRecord) -> Row:
    """Return the record as plain values, the same for equal records. Raises `CannotStoreError`."""
    return _saga_row(record, model_to_json(record))


def _saga_row(record: SagaRecord, model: str) -> Row:
    return [
        *(record.saga_id, record.saga_name, record.version, record.fingerprint, model),
        *(micros(record.started_at), record.source, record.adapter, record.plan),
    ]


def saga_from_row(row: Row) -> SagaRecord:
    """Do the inverse of `saga_row`."""
    saga_id, name, version, fingerprint, model, started_at, *rest = row
    return SagaRecord(saga_id, name, version, fingerprint, model_from_json(saga_id, model), moment(started_at), *rest)


def summary_row(summary: SagaSummary) -> Row:
    """Return the summary as plain values."""
    failed_at = micros_or_none(summary.failed_at)
    return [
        *(summary.saga_id, summary.saga_name, summary.seq, summary.status, summary.step_name, failed_at),
        dict(summary.tags),
    ]


def summary_from_row(row: Row) -> SagaSummary:
    """Do the inverse of `summary_row`."""
    saga_id, name, seq, status, step, failed_at, tags = row
    return SagaSummary(saga_id, name, seq, status, step, moment_or_none(failed_at), dict(tags))


def saga_sum(record: SagaRecord, model: str | None = None) -> int:
    """Return a checksum of the record, whose model may be given as text. Raises `CannotStoreError`."""
    row = _saga_row(record, model_to_json(record) if model is None else canonical_json(model))
    texts = *map(repr, row[:4]), _quoted(row[4]), *map(repr, row[5:])
    return _sum_of_text(f"[{', '.join(texts)}]")


_quoted = lru_cache(maxsize=128)(repr)  # a model's text is long, and thousands of sagas have the same one


def summary_sum(summary: SagaSummary) -> int:
    """Return a checksum of the summary."""
    return _sum([*summary_row(summary)[:-1], sorted(summary.tags.items())])


def replay_sum(record: ReplayRecord) -> int:
    """Return a checksum of the record."""
    return _sum(replay_row(record))


def check_sum(stored: int | None, found: int, what: str) -> None:
    """Raise `CorruptDataError` unless it is the checksum that is stored. What an earlier release wrote has none."""
    if stored not in (None, found):
        raise CorruptDataError(f"{what} is damaged: its checksum is wrong")


def _sum(row: Row) -> int:
    return _sum_of_text(repr(row))


def _sum_of_text(text: str) -> int:
    return crc32(text.encode("utf-8", "surrogatepass"))


def replay_row(record: ReplayRecord) -> Row:
    """Return the record as plain values."""
    return [
        *(record.replay_id, record.original_saga_id, record.new_saga_id, record.checkpoint, record.initiated_by),
        *(record.status, micros(record.created_at), record.override, record.plan),
        *(micros_or_none(record.completed_at), record.error),
    ]


def replay_from_row(row: Row) -> ReplayRecord:
    """Do the inverse of `replay_row`."""
    created_at, override, plan, completed_at, error = row[6:]
    moments = moment(created_at), moment_or_none(completed_at)
    return ReplayRecord(*row[:6], moments[0], override, plan, moments[1], error)  # type: ignore[call-arg] # a row


def micros(at: datetime) -> int:
    """Return the time as microseconds since 1970, UTC. Raises `NaiveTimeError`."""
    if at.tzinfo is None:
        check_moment(at)
    since = at - _EPOCH
    found = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if not _MIN <= found <= _MAX:
        raise UsageError(f"{at.isoformat()} cannot be stored: in UTC it is not in the years 1 to 9999")
    return found


def micros_or_none(at: datetime | None) -> int | None:
    """Return the same, `None` for `None`."""
    return None if at is None else micros(at)


def moment(found: int) -> datetime:
    """Do the inverse of `micros`."""
    return _EPOCH + timedelta(0, 0, found)


def moment_or_none(found: int | None) -> datetime | None:
    """Do the inverse of `micros_or_none`."""
    return None if found is None else moment(found)
