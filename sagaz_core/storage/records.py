"""Events and states as the bytes that stores keep, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from sagaz_core.errors import CorruptDataError
from sagaz_core.events import (
    EVENT_TYPES,
    NO_DELTA,
    CompensationFailed,
    CompensationSucceeded,
    Delta,
    ErrorInfo,
    Event,
    SagaFailed,
    StepFailed,
    StepSucceeded,
)
from sagaz_core.state import SagaState
from sagaz_core.storage.base import SagaSnapshot, StoredEvent
from sagaz_core.storage.codec import decode, encode, known_class

Resolve = Callable[[str, str], type]


def event_fields(event: Event) -> list[Any]:
    """Return the event's fields after `seq` and `at`, as plain data."""
    fields: list[Any] = list(event[2:])
    for index, value in enumerate(fields):
        kind = type(value)
        if kind is Delta:
            fields[index] = None if value is NO_DELTA else [dict(value.set), list(value.deleted)]
        elif kind is ErrorInfo:
            fields[index] = list(value)
        elif kind is tuple:
            fields[index] = list(value)
    return fields


def event_from_fields(kind: str, seq: int, at: Any, fields: list[Any]) -> Event:
    """Do the inverse of `event_fields`. Raises `CorruptDataError` for any other shape."""
    try:
        made = EVENT_TYPES[kind](seq, at, *fields)  # type: ignore[arg-type]
        if isinstance(made, (StepSucceeded, CompensationSucceeded)):
            return made._replace(delta=_delta(made.delta))
        if isinstance(made, (StepFailed, CompensationFailed)):
            return made._replace(error=ErrorInfo(*cast(Any, made.error)))
        if isinstance(made, SagaFailed):
            error = None if made.error is None else ErrorInfo(*cast(Any, made.error))
            return made._replace(stuck=tuple(made.stuck), error=error)
        return made
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"event {seq} ({kind}) has fields that no such event has: {error}") from error


def _delta(data: Any) -> Delta:
    return NO_DELTA if data is None else Delta(dict(data[0]), tuple(data[1]))


def pack_event(saga_id: str, event: Event, fields: list[Any] | None = None) -> StoredEvent:
    """Return the event for a store; `fields` may hold parts that are encoded already. Raises `CannotStoreError`."""
    kind = type(event).__name__
    step = getattr(event, "step", None)
    data = encode(event_fields(event) if fields is None else fields, f"{kind} of {step!r}" if step else kind)
    return StoredEvent(saga_id, event.seq, event.at, kind, step, data)


def unpack_event(stored: StoredEvent, resolve: Resolve = known_class) -> Event:
    """Do the inverse of `pack_event`."""
    fields = decode(stored.data, resolve=resolve)
    if not isinstance(fields, list):
        raise CorruptDataError(f"event {stored.seq} of saga {stored.saga_id!r} is damaged: its fields are no list")
    return event_from_fields(stored.kind, stored.seq, stored.at, fields)


def unpack_state(snapshot: SagaSnapshot, resolve: Resolve = known_class) -> SagaState:
    """Return the state that the snapshot holds, made anew."""
    return state_from_data(decode(snapshot.data, resolve=resolve), snapshot.snapshot_id)


def state_from_data(data: Any, snapshot_id: str) -> SagaState:
    """Return the state of decoded data; `snapshot_id` is for the error."""
    try:
        return SagaState.from_data(cast(Mapping[str, Any], data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(f"snapshot {snapshot_id!r} is damaged: no state can be made of it ({error})") from error


