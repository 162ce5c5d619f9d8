"""The state of one saga: the fold of its events.

`SagaState.apply(event)` is the only way a state changes. A snapshot is the state at a `seq`; a replay is the state at
a checkpoint, and the engine run on from it.

The context is the initial one with a layer of changes for each completed step, in order of completion. Undoing a step
takes its layer out, whatever came after it, so that a full rollback ends with the context that the saga began with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias, cast

from sagaz_core.events import (
    NO_DELTA,
    CompensationFailed,
    CompensationStarted,
    CompensationSucceeded,
    Delta,
    ErrorInfo,
    Event,
    SagaCompleted,
    SagaFailed,
    SagaResumed,
    SagaRolledBack,
    SagaStarted,
    StepFailed,
    StepRetryScheduled,
    StepStarted,
    StepSucceeded,
)


class SagaStatus(StrEnum):
    """Where a saga stands. `FAILED`: it is stuck, because something could not be undone (or, after a pivot, done)."""

    PENDING = "pending"
    EXECUTING = "executing"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self in _ENDED


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("saga_id", "saga_name", "version", "fingerprint", "status"), (str,)),
    **dict.fromkeys(("initial", "context", "layers", "results", "undone"), (dict,)),
    **dict.fromkeys(("attempts", "undo_attempts", "running"), (dict,)),
    **dict.fromkeys(("started_at", "at"), (datetime, type(None))),
    **dict.fromkeys(("undoing", "failed_step"), (str, type(None))),
    **dict.fromkeys(("ambiguous", "stuck"), (list, tuple)),
    "error": (list, tuple, type(None)),
    "seq": (int,),
}
# For what is run by the thousand: to read a member from an enumeration takes twenty times as long, until Python 3.12.
EXECUTING, COMPENSATING = SagaStatus.EXECUTING, SagaStatus.COMPENSATING
COMPLETED, ROLLED_BACK, FAILED = SagaStatus.COMPLETED, SagaStatus.ROLLED_BACK, SagaStatus.FAILED
_ENDED = frozenset({COMPLETED, ROLLED_BACK, FAILED})
_MISSING = object()

Fields: TypeAlias = tuple[Any, ...]
"""What an event is made of."""


class SagaState:
    """One saga between two events, as plain data.

    `results` holds the completed steps' results in order of completion, `undone` the compensated steps' compensation
    results in order of undoing, `running` the attempt of each step that has started and not ended, `ambiguous` the
    steps of which an attempt ended without it being known whether it had its effect.
    """

    __slots__ = (
        "ambiguous",
        "at",
        "attempts",
        "context",
        "error",
        "failed_step",
        "fingerprint",
        "initial",
        "layers",
        "results",
        "running",
        "saga_id",
        "saga_name",
        "seq",
        "started_at",
        "status",
        "stuck",
        "undo_attempts",
        "undoing",
        "undone",
        "version",
    )

    def __init__(self) -> None:
        self.saga_id = ""
        self.saga_name = ""
        self.version = ""
        self.fingerprint = ""
        self.status = SagaStatus.PENDING
        self.seq = -1
        self.started_at: datetime | None = None
        self.at: datetime | None = None
        self.initial: dict[str, Any] = {}
        self.context: dict[str, Any] = {}
        self.layers: dict[str, Delta] = {}
        self.results: dict[str, Any] = {}
        self.undone: dict[str, Any] = {}
        self.attempts: dict[str, int] = {}
        self.undo_attempts: dict[str, int] = {}
        self.running: dict[str, int] = {}
        self.undoing: str | None = None
        self.ambiguous: dict[str, None] = {}
        self.failed_step: str | None = None
        self.error: ErrorInfo | None = None
        self.stuck: tuple[str, ...] = ()

    @property
    def completed(self) -> list[str]:
        """The steps that are done and not undone, in order of completion."""
        return list(self.results)

    @property
    def compensated(self) -> list[str]:
        """The steps that were undone, in that order."""
        return list(self.undone)

    @property
    def current_step(self) -> str | None:
        """The step that is being done or undone; with several, the one that started last."""
        return self.undoing or next(reversed(self.running), None)

    def apply(self, event: Event) -> None:
        """Take the event in. Raises `ValueError` when it is not the next one."""
        if event.seq != self.seq + 1:
            raise ValueError(f"event {event.seq} ({type(event).__name__}) cannot follow event {self.seq}")
        self.seq = event.seq
        self.at = event.at
        FOLD[type(event)](self, event)

    def fork(self) -> SagaState:
        """Return an independent state. The values in it are shared: they are never changed in place by a fold."""
        other = SagaState.__new__(SagaState)
        other.saga_id, other.saga_name = self.saga_id, self.saga_name
        other.version, other.fingerprint = self.version, self.fingerprint
        other.status, other.seq = self.status, self.seq
        other.started_at, other.at = self.started_at, self.at
        other.initial, other.context = self.initial, self.context  # replaced when they change
        other.layers = self.layers.copy()
        other.results = self.results.copy()
        other.undone = self.undone.copy()
        other.attempts = self.attempts.copy()
        other.undo_attempts = self.undo_attempts.copy()
        other.running = self.running.copy()
        other.ambiguous = self.ambiguous.copy()
        other.undoing = self.undoing
        other.failed_step, other.error, other.stuck = self.failed_step, self.error, self.stuck
        return other

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data for a codec, without what is empty; `from_data` is the inverse."""
        data = {**self.identity(), "started_at": self.started_at, "initial": self.initial}
        data.update(self.progress(), at=self.at, context=self.context, results=self.results)
        if self.layers:
            data["layers"] = {step: [dict(layer.set), list(layer.deleted)] for step, layer in self.layers.items()}
        if self.undone:
            data["undone"] = self.undone
        return data

    def identity(self) -> dict[str, Any]:
        """Return the part of the data that never changes, but for `started_at` and the users' values."""
        return {
            "saga_id": self.saga_id,
            "saga_name": self.saga_name,
            "version": self.version,
            "fingerprint": self.fingerprint,
        }

    def progress(self) -> dict[str, Any]:
        """Return the part of the data that says how far the saga is, but for `at` and the users' values."""
        data: dict[str, Any] = {
            "status": self.status._value_,  # `value` takes three times as long
            "seq": self.seq,
            "attempts": self.attempts,
        }
        if self.running:
            data["running"] = self.running
        if self.failed_step:
            data["failed_step"] = self.failed_step
        if self.undo_attempts:
            data["undo_attempts"] = self.undo_attempts
        if self.undoing:
            data["undoing"] = self.undoing
        if self.ambiguous:
            data["ambiguous"] = list(self.ambiguous)
        if self.error is not None:
            data["error"] = list(self.error)
        if self.stuck:
            data["stuck"] = list(self.stuck)
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> SagaState:
        """Build it from `to_data()` data. Raises `KeyError`, `TypeError` or `ValueError` for any other shape."""
        state = cls()
        for name in ("status", "seq", "context", "initial"):
            data[name]  # without these it is no state
        for name in cls.__slots__:
            if name in data:
                value = data[name]
                if not isinstance(value, _TYPES[name]):
                    raise TypeError(f"{name} is of type {type(value).__name__!r}")
                setattr(state, name, value)
        state.status = SagaStatus(data["status"])
        state.ambiguous = dict.fromkeys(data.get("ambiguous", ()))
        error = data.get("error")
        state.error = None if error is None else ErrorInfo(*map(_text, error))
        state.stuck = tuple(map(_text, data.get("stuck", ())))
        state.layers = {
            step: Delta(dict(changed), tuple(map(_text, deleted)))
            for step, (changed, deleted) in data.get("layers", {}).items()
        }
        return state

    def unalias(self, key: str, value: Any) -> None:
        """Put back what user code changed in place: `value` is what the key had before.

        The one change that is no event: it repairs the events' own data, which was reached by a reference.
        """
        self.context = {**self.context, key: value}
        for layer in reversed(self.layers.values()):
            if key in layer.set:
                cast(dict[str, Any], layer.set)[key] = value
                return
        if key in self.initial:
            self.initial = {**self.initial, key: value}

    # The context is never changed in place: a running step compares with the one that it was given. Nor is `initial`.

    def _put_in(self, delta: Delta) -> None:
        context = {**self.context, **delta.set}
        for key in delta.deleted:
            context.pop(key, None)
        self.context = context

    def _take_out(self, step: str) -> None:
        layer = self.layers.pop(step, None)
        if layer is None:
            return
        context = self.context.copy()
        for key in (*layer.set, *layer.deleted):
            value = self._below(key)
            if value is _MISSING:
                context.pop(key, None)
            else:
                context[key] = value
        self.context = context

    def _below(self, key: str) -> Any:
        for layer in reversed(self.layers.values()):
            if key in layer.set:
                return layer.set[key]
            if key in layer.deleted:
                return _MISSING
        return self.initial.get(key, _MISSING)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__!r} where a text should be")
    return value


# Each takes an event, or the plain tuple of its fields, and unpacks it: that is twice as fast as to read by names, and
# fails where there are too few.


def _saga_started(state: SagaState, event: Fields) -> None:
    _, at, state.saga_id, state.saga_name, state.version, state.fingerprint, context, _ = event
    state.started_at = at
    state.initial = state.context = dict(context)
    state.status = EXECUTING


def _step_started(state: SagaState, event: Fields) -> None:
    _, _, step, attempt = event
    state.running[step] = state.attempts[step] = attempt


def _step_succeeded(state: SagaState, event: Fields) -> None:
    _, _, step, _, result, delta, _ = event
    state.running.pop(step, None)
    state.ambiguous.pop(step, None)
    state.results[step] = result
    if state.failed_step == step and state.status is EXECUTING:
        state.failed_step = state.error = None
    if delta is not NO_DELTA:
        state.layers.pop(step, None)
        state.layers[step] = delta
        state._put_in(delta)


def _step_failed(state: SagaState, event: Fields) -> None:
    _, _, step, _, error, in_doubt, final = event
    if step is not None:
        state.running.pop(step, None)
        if in_doubt:
            state.ambiguous[step] = None
    if state.status is not COMPENSATING:
        state.failed_step = step
        state.error = error
        if final:
            state.status = COMPENSATING


def _retry_scheduled(state: SagaState, event: Fields) -> None:
    _, _, _, _, _, _ = event  # nothing to keep: the next `StepStarted` says it


def _compensation_started(state: SagaState, event: Fields) -> None:
    _, _, step, attempt = event
    state.status = COMPENSATING
    state.undoing = step
    state.undo_attempts[step] = attempt


def _compensation_succeeded(state: SagaState, event: Fields) -> None:
    _, _, step, _, result, delta = event
    state.undoing = None
    state.results.pop(step, None)
    state.ambiguous.pop(step, None)
    if step in state.layers:
        state._take_out(step)
    state.undone[step] = result
    if state.stuck:  # it was given up before, and tried once more
        state.stuck = tuple([name for name in state.stuck if name != step])
    if delta is not NO_DELTA:
        layer = f"undo:{step}"  # no step has a colon in its name
        state.layers[layer] = delta
        state._put_in(delta)


def _compensation_failed(state: SagaState, event: Fields) -> None:
    _, _, step, _, _, final = event
    state.undoing = None
    if final and step not in state.stuck:
        state.stuck = (*state.stuck, step)


def _saga_completed(state: SagaState, event: Fields) -> None:
    _, _ = event
    state.status = COMPLETED


def _saga_rolled_back(state: SagaState, event: Fields) -> None:
    _, _ = event
    # What is left are steps without a compensation: there is nothing to undo, but their keys go.
    for step in reversed(state.results):
        state._take_out(step)
    state.status = ROLLED_BACK


def _saga_failed(state: SagaState, event: Fields) -> None:
    _, _, stuck, error = event
    state.status = FAILED
    state.stuck = stuck
    state.error = state.error or error


def _saga_resumed(state: SagaState, event: Fields) -> None:
    _, _, _ = event
    for step in state.running:
        state.ambiguous[step] = None
    state.running.clear()
    state.undoing = None


FOLD: dict[type[Event], Callable[[SagaState, Fields], None]] = {
    SagaStarted: _saga_started,
    StepStarted: _step_started,
    StepSucceeded: _step_succeeded,
    StepFailed: _step_failed,
    StepRetryScheduled: _retry_scheduled,
    CompensationStarted: _compensation_started,
    CompensationSucceeded: _compensation_succeeded,
    CompensationFailed: _compensation_failed,
    SagaCompleted: _saga_completed,
    SagaRolledBack: _saga_rolled_back,
    SagaFailed: _saga_failed,
    SagaResumed: _saga_resumed,
}
