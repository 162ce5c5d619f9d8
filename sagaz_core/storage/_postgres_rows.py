"""Records as rows of PostgreSQL, and back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CorruptDataError, UsageError
from sagaz_core.storage._checks import check_moment, model_from_json, model_to_json
from sagaz_core.storage._rows import check_sum, replay_sum, saga_sum, summary_sum
from sagaz_core.storage.base import Base, ReplayRecord, SagaRecord, SagaSnapshot, SagaSummary, StoredEvent
from sagaz_core.storage.together import Checkpoint, EventHead

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Row = Any
_NUL, _ONE, _TWO = "\0", "\1", "\2"
_MAX_BIGINT = 2**63 - 1


def as_text(text: str) -> str:
    """Return the text as PostgreSQL can keep it, which knows no NUL, in the same order and with the same prefixes."""
    if _NUL in text or _ONE in text:
        return text.replace(_ONE, _ONE + _TWO).replace(_NUL, _ONE + _ONE)
    return text


def from_text(text: str) -> str:
    """Do the inverse of `as_text`."""
    if _ONE in text:
        return text.replace(_ONE + _ONE, _NUL).replace(_ONE + _TWO, _ONE)
    return text


def as_time(moment: datetime) -> datetime:
    """Return the time in UTC. Raises `NaiveTimeError`, or `UsageError` when it is in no year from 1 to 9999 there."""
    check_moment(moment)
    if moment.tzinfo is UTC:
        return moment
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(f"{moment.isoformat()} cannot be stored: in UTC it is not in the years 1 to 9999") from None


def as_time_or_none(moment: datetime | None) -> datetime | None:
    return None if moment is None else as_time(moment)


def as_seq(seq: int) -> int:
    """Return the number within PostgreSQL's."""
    return max(-_MAX_BIGINT, min(seq, _MAX_BIGINT))


def _moment(moment: datetime) -> datetime:
    # The driver gives the ends of datetime's range, which stand for infinity, without a timezone.
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _moment_or_none(moment: datetime | None) -> datetime | None:
    return None if moment is None else _moment(moment)


# ---- sagas


def saga_row(record: SagaRecord) -> tuple[Any, ...]:
    """Return the values of `RECORD`."""
    return (
        *(as_text(record.saga_id), as_text(record.saga_name), as_text(record.version), as_text(record.fingerprint)),
        *(as_text(model_to_json(record)), as_time(record.started_at), as_text(record.source)),
        *(as_text(record.adapter), as_text(record.plan), saga_sum(record)),
    )


def same_saga(row: Row, mine: tuple[Any, ...]) -> bool:
    """Whether a row of `RECORD` is that of the record whose values these are."""
    return (*row[:5], _moment(row[5]), *row[6:9]) == mine[:9]


def saga_id_of(row: Row) -> str:
    """Return the saga's id, which such rows begin with."""
    return from_text(row[0])


def saga_from(row: Row) -> SagaRecord:
    saga_id, name, version, fingerprint, model = map(from_text, row[:5])
    source, adapter, plan = map(from_text, row[6:9])
    fields = model_from_json(saga_id, model)
    record = SagaRecord(saga_id, name, version, fingerprint, fields, _moment(row[5]), source, adapter, plan)
    check_sum(row[9], saga_sum(record, model), f"the record of saga {saga_id!r}")
    return record


_NO_SUMMARY = (None,) * 7


def summary_row(summary: SagaSummary | None) -> tuple[Any, ...]:
    """Return number, name, status, step, time, tags and checksum."""
    if summary is None:
        return _NO_SUMMARY
    return (
        *(summary.seq, as_text(summary.saga_name), as_text(summary.status), as_text(summary.step_name)),
        *(as_time_or_none(summary.failed_at), tags_json(summary.tags)),
        summary_sum(summary),
    )


def tags_json(tags: Mapping[str, str]) -> str:
    """Return the tags as JSON, whose texts have no NUL."""
    if not tags:
        return "{}"
    return json.dumps({as_text(key): as_text(value) for key, value in tags.items()}, ensure_ascii=False)


def summary_from(row: Row) -> SagaSummary:
    saga_id, name, status, step = map(from_text, (row[0], row[1], row[3], row[4]))
    try:
        tags = {from_text(key): from_text(value) for key, value in json.loads(row[6]).items()}
    except (AttributeError, TypeError) as error:
        raise CorruptDataError(f"the stored tags of saga {saga_id!r} are damaged: {error}") from error
    summary = SagaSummary(saga_id, name, row[2], status, step, _moment_or_none(row[5]), tags)
    check_sum(row[7], summary_sum(summary), f"the summary of saga {saga_id!r}")
    return summary


# ---- events and snapshots


def event_row(event: StoredEvent) -> tuple[Any, ...]:
    """Return the saga's id, and the values of `EVENT`."""
    step = None if event.step is None else as_text(event.step)
    return as_text(event.saga_id), event.seq, as_time(event.at), as_text(event.kind), step, event.data


def event_from(saga_id: str, row: Row) -> StoredEvent:
    seq, at, kind, step, data = row
    return StoredEvent(saga_id, seq, _moment(at), from_text(kind), None if step is None else from_text(step), data)


def snapshot_row(snapshot: SagaSnapshot) -> tuple[Any, ...]:
    """Return the values of a snapshot's own columns."""
    ends, tags = snapshot.retention_until, snapshot.tags
    return (
        as_text(snapshot.snapshot_id),
        as_text(snapshot.saga_id),
        as_text(snapshot.saga_name),
        as_text(snapshot.step_name),
        snapshot.step_index,
        snapshot.seq,
        as_text(snapshot.phase),
        as_text(snapshot.status),
        as_time(snapshot.created_at),
        snapshot.data,
        None if ends is None else as_time(ends),
        snapshot.base_seq,
        steps_json(tuple(snapshot.completed_steps)),
        pairs_json(tags),
    )


@lru_cache(maxsize=1024)
def steps_json(steps: tuple[str, ...]) -> str | None:
    """Return the steps as JSON, or None where there are none."""
    return json.dumps([as_text(step) for step in steps], ensure_ascii=False) if steps else None


def pairs_json(tags: Sequence[tuple[str, str]]) -> str | None:
    """Return the tags of a snapshot as JSON, or None where there are none."""
    return tags_json(dict(tags)) if tags else None


@lru_cache(maxsize=1024)
def _steps_from(text: str | None) -> tuple[str, ...]:
    return tuple(map(from_text, json.loads(text))) if text else ()


def _tags_from(text: str | None) -> tuple[tuple[str, str], ...]:
    found = json.loads(text).items() if text else ()
    return tuple(sorted((from_text(key), from_text(value)) for key, value in found))


def snapshot_from(row: Row, bases: bool = True) -> SagaSnapshot:
    """Return the snapshot of a row of its own columns, and of two more with its bases."""
    snapshot_id, saga_id, saga_name, step, index, seq, phase, status, created_at, data, until, base_seq = row[:12]
    found: tuple[Base, ...] = ()
    if bases and row[14] is not None:
        found = tuple([Base(from_text(name), held) for name, held in zip(row[14], row[15], strict=True)])
    return SagaSnapshot(
        from_text(snapshot_id),
        from_text(saga_id),
        from_text(saga_name),
        from_text(step),
        index,
        seq,
        from_text(phase),
        from_text(status),
        _moment(created_at),
        data,
        _moment_or_none(until),
        base_seq,
        found,
        _steps_from(row[12]),
        _tags_from(row[13]),
    )


def checkpoint_from(row: Row) -> Checkpoint:
    """Return the checkpoint of a row: the saga's record, five columns, and a snapshot's with its bases."""
    saga, (last_seq, _, seqs, kinds, steps), before = row[:10], row[10:15], row[15:]
    heads = zip(seqs or (), kinds or (), steps or (), strict=True)
    return Checkpoint(
        None if saga[0] is None else saga_from(saga),
        None if before[0] is None else snapshot_from(before),
        last_seq,
        [EventHead(seq, from_text(kind), None if step is None else from_text(step)) for seq, kind, step in heads],
    )


def ends_of_checkpoint(row: Row) -> list[datetime]:
    """Return when the two snapshots end that the row speaks of."""
    return [_moment(end) for end in (row[11], row[25]) if end is not None]


# ---- replays


def replay_row(record: ReplayRecord) -> tuple[Any, ...]:
    return (
        *map(as_text, (record.replay_id, record.original_saga_id, record.new_saga_id, record.checkpoint)),
        *(as_text(record.initiated_by), as_text(record.status), as_time(record.created_at), record.override),
        *(as_text(record.plan), as_time_or_none(record.completed_at), as_text(record.error)),
        replay_sum(record),
    )


def replay_from(row: Row) -> ReplayRecord:
    replay_id, original, new, checkpoint, by, status = map(from_text, row[:6])
    created_at, override, plan, completed_at, error, row_sum = row[6:]
    record = ReplayRecord(
        *(replay_id, original, new, checkpoint, by, status),
        _moment(created_at),
        override,
        from_text(plan),
        _moment_or_none(completed_at),
        from_text(error),
    )
    check_sum(row_sum, replay_sum(record), f"the record of replay {replay_id!r}")
    return record
