"""Records as rows of SQLite, and back. Times are microseconds since 1970, UTC."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._checks import model_from_json, model_to_json
from sagaz_core.storage._rows import check_sum, micros, micros_or_none, replay_sum, saga_sum, summary_sum
from sagaz_core.storage.base import ReplayRecord, SagaRecord, SagaSnapshot, SagaSummary

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OF_A_SNAPSHOT = (str, str, str, str, int, int, str, str, int, bytes)
_INT_OR_NONE = (int, type(None))
_OF_AN_EVENT = ((int, int, str, str, bytes, int), (int, int, str, type(None), bytes, int))
_UNFIT = "a column has a value of another type"  # a bit of a row's head makes a number of a text
_new = tuple.__new__  # a third of the time of calling the class, which has to look at defaults


def moment(found: int, of: str) -> datetime:
    """Return the time of what has this id. Raises `CorruptDataError`."""
    try:
        return _EPOCH + timedelta(0, 0, found)
    except (OverflowError, TypeError) as error:
        raise CorruptDataError(f"a stored time of {of!r} is damaged: {error}") from error


def _moment_or_none(found: int | None, of: str) -> datetime | None:
    return None if found is None else moment(found, of)


def check_event(saga_id: str, row: tuple[Any, ...]) -> None:
    """Raise `CorruptDataError` when a value of the event's row is of a type that none is stored as."""
    if tuple(map(type, row)) not in _OF_AN_EVENT:
        raise CorruptDataError(f"an event of saga {saga_id!r} is damaged: {_UNFIT}")


def saga_row(record: SagaRecord) -> tuple[Any, ...]:
    return (
        *(record.saga_id, record.saga_name, record.version, record.fingerprint, model_to_json(record)),
        *(micros(record.started_at), record.source, record.adapter, record.plan),
        saga_sum(record),
    )


def saga_from(row: tuple[Any, ...]) -> SagaRecord:
    saga_id, name, version, fingerprint, model, started_at, source, adapter, plan, record_sum = row
    if type(model) is not str:
        raise CorruptDataError(f"the record of saga {saga_id!r} is damaged: {_UNFIT}")
    model = model_from_json(saga_id, model)
    record = SagaRecord(saga_id, name, version, fingerprint, model, moment(started_at, saga_id), source, adapter, plan)
    check_sum(record_sum, saga_sum(record), f"the record of saga {saga_id!r}")
    return record


def snapshot_from(row: tuple[Any, ...]) -> SagaSnapshot:
    name, saga_id, saga_name, step, index, seq, phase, status, at, data, until, base_seq, steps, tags = row
    if tuple(map(type, row[:10])) != _OF_A_SNAPSHOT or type(base_seq) not in _INT_OR_NONE:
        raise CorruptDataError(f"snapshot {name!r} of saga {saga_id!r} is damaged: {_UNFIT}")
    until = None if until is None else moment(until, name)
    steps = tuple(_plain(row, 12)) if steps else ()
    tags = tuple(_plain(row, 13).items()) if tags else ()
    place = name, saga_id, saga_name, step, index, seq, phase, status
    return _new(SagaSnapshot, (*place, moment(at, name), data, until, base_seq, (), steps, tags))


def _plain(row: tuple[Any, ...], column: int) -> Any:
    try:
        found = json.loads(row[column])
        if not isinstance(found, list if column == 12 else dict):
            raise ValueError("of another kind")
    except (ValueError, TypeError) as error:
        what = "completed steps" if column == 12 else "tags"
        raise CorruptDataError(f"the {what} of snapshot {row[0]!r} are damaged: {error}") from error
    return found


def summary_from(row: tuple[Any, ...]) -> SagaSummary:
    saga_id, name, seq, status, step, failed_at, tags, found_sum = row
    failed, found = _moment_or_none(failed_at, saga_id), tags_from(saga_id, tags)
    summary = SagaSummary(saga_id, name, seq, status, step, failed, found)
    check_sum(found_sum, summary_sum(summary), f"the summary of saga {saga_id!r}")
    return summary


def tags_from(saga_id: str, text: str) -> dict[str, str]:
    try:
        tags: dict[str, str] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise CorruptDataError(f"the stored tags of saga {saga_id!r} are damaged: {error}") from error
    return tags


def replay_row(record: ReplayRecord) -> tuple[Any, ...]:
    return (
        *(record.replay_id, record.original_saga_id, record.new_saga_id, record.checkpoint, record.initiated_by),
        *(record.status, micros(record.created_at), record.override, record.plan),
        *(micros_or_none(record.completed_at), record.error, replay_sum(record)),
    )


def replay_from(row: tuple[Any, ...]) -> ReplayRecord:
    created_at, override, plan, completed_at, error, row_sum = row[6:]
    moments = moment(created_at, row[0]), _moment_or_none(completed_at, row[0])
    record = ReplayRecord(*row[:6], moments[0], override, plan, moments[1], error)  # type: ignore[call-arg] # a row
    check_sum(row_sum, replay_sum(record), f"the record of replay {record.replay_id!r}")
    return record
