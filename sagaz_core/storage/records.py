"""Events and states as the bytes that stores keep, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from sagaz_core.errors import CannotStoreError, CorruptDataError
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
from sagaz_core.storage.frames import state_bytes
from sagaz_core.storage.seals import opened, sealed

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
    if type(event) is SagaFailed:
        fields[0] = list(event.stuck)
    return fields


def event_from_fields(kind: str, seq: int, at: Any, fields: Sequence[Any]) -> Event:
    """Do the inverse of `event_fields`. Raises `CorruptDataError` for any other shape."""
    try:
        type_ = EVENT_TYPES[kind]
        if type_ in _WITH_DELTA and len(fields) > _DELTA:
            fields = [*fields[:_DELTA], _delta(fields[_DELTA]), *fields[_DELTA + 1 :]]
        made = type_(seq, at, *fields)
        if not all(map(isinstance, made[2:], _EXPECTED[type_])):
            raise TypeError(_unfit(made))
        if type_ not in _WITH_ERROR:
            return made
        if isinstance(made, SagaFailed):
            error = None if made.error is None else ErrorInfo(*cast(Any, made.error))
            return made._replace(stuck=tuple(made.stuck), error=error)
        return cast(Any, made)._replace(error=ErrorInfo(*cast(Any, made).error))  # type: ignore[no-any-return]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"event {seq} ({kind}) has fields that no such event has: {error}") from error


def _unfit(event: Event) -> str:
    fields = zip(event._fields[2:], event[2:], _EXPECTED[type(event)], strict=True)
    name, value, _ = next(field for field in fields if not isinstance(field[1], field[2]))
    return f"{name} is of type {type(value).__name__!r}"


_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("saga_id", "saga_name", "version", "fingerprint", "step", "how", "run_id"), str),
    **dict.fromkeys(("in_doubt", "final", "undo"), bool),
    "attempt": int,
    "delay": (int, float),
    "context": dict,
    "stuck": (list, tuple),
}
_EXPECTED = {
    kind: [
        (str, type(None)) if name == "step" and kind is StepFailed else _FIELD_TYPES.get(name, object)
        for name in kind._fields[2:]
    ]
    for kind in EVENT_TYPES.values()
}
_DELTA = StepSucceeded._fields.index("delta") - 2
_WITH_DELTA = frozenset({StepSucceeded, CompensationSucceeded})
_WITH_ERROR = frozenset({StepFailed, CompensationFailed, SagaFailed})
_UNCHANGEABLE = frozenset({str, int, float, bool, type(None)})
_SMALL = 128  # bytes: a start has some 20
_MOST = 4096
_new: Callable[..., Event] = tuple.__new__
_common: dict[tuple[str, bytes], tuple[type[Event], tuple[Any, ...]]] = {}
"""The fields of events that many sagas have in common (a start, an end without a result), nothing of which changes."""


def _delta(data: Any) -> Delta:
    if data is None:
        return NO_DELTA
    changed, deleted = data
    return Delta(dict(changed), tuple(deleted))


_NO_FIELDS = encode([])


def pack_event(saga_id: str, event: Event, *, seal: bool = True) -> StoredEvent:
    """Return the event for a store, with a checksum unless `seal` says no. Raises `CannotStoreError`."""
    kind = type(event).__name__
    step = getattr(event, "step", None)
    plain = event_fields(event)
    try:
        data = encode(plain, kind) if plain else _NO_FIELDS
    except CannotStoreError:
        data = encode(plain, f"{kind} of {step!r}" if step else kind)  # raises again, and says of which step
    return (sealed if seal else StoredEvent)(saga_id, event.seq, event.at, kind, step, data)


def unpack_event(stored: StoredEvent, resolve: Resolve = known_class) -> Event:
    """Do the inverse of `pack_event`."""
    data = opened(stored)
    common = _common.get((stored.kind, data)) if len(data) <= _SMALL else None  # to hash a large one takes its time
    if common is not None:
        kind, rest = common
        return _new(kind, (stored.seq, stored.at, *rest))
    fields = decode(data, resolve=resolve)
    if not isinstance(fields, list):
        raise CorruptDataError(f"event {stored.seq} of saga {stored.saga_id!r} is damaged: its fields are no list")
    event = event_from_fields(stored.kind, stored.seq, stored.at, fields)
    if len(data) <= _SMALL and _UNCHANGEABLE.issuperset(map(type, fields)):
        if len(_common) >= _MOST:
            _common.clear()
        _common[stored.kind, data] = type(event), event[2:]
    return event


def unpack_state(snapshot: SagaSnapshot, resolve: Resolve = known_class) -> SagaState:
    """Return the state that the snapshot holds, made anew. Raises `CodecError`."""
    return state_from_data(decode(state_bytes(snapshot), resolve=resolve), snapshot.snapshot_id)


def state_from_data(data: Any, snapshot_id: str) -> SagaState:
    """Return the state of decoded data; `snapshot_id` is for the error."""
    try:
        return SagaState.from_data(cast(Mapping[str, Any], data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptDataError(f"snapshot {snapshot_id!r} is damaged: no state can be made of it ({error})") from error
