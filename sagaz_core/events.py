"""What can happen to one saga. Everything else (state, snapshots, traces, time travel) is derived from these.

Each event has `seq` (0, 1, 2… within its saga) and `at` (aware, UTC); most have a step and the attempt (1, 2…).
They are named tuples: made by the thousand, frozen, and compared by value within one type.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class ErrorInfo(NamedTuple):
    """An exception as data: the qualified name of its type, and its message."""

    type: str
    message: str

    def __str__(self) -> str:
        name = self.type.rpartition(":")[2]
        return f"{name}: {self.message}" if self.message else name


def describe_error(error: BaseException) -> ErrorInfo:
    """Return the error as data. A message that cannot be made is replaced by a note."""
    kind = type(error)
    try:
        message = str(error)
    except Exception:  # user code: a broken __str__ must not hide the failure
        message = "(its message could not be made)"
    return ErrorInfo(f"{kind.__module__}:{kind.__qualname__}", message)


class Delta(NamedTuple):
    """What a step changed in the context: keys set, with their values, and keys deleted."""

    set: Mapping[str, Any] = MappingProxyType({})
    deleted: tuple[str, ...] = ()


NO_DELTA = Delta()


class SagaStarted(NamedTuple):
    """The first event. `run_id` tells a captured run from another one that starts at the same moment."""

    seq: int
    at: datetime
    saga_id: str
    saga_name: str
    version: str
    fingerprint: str
    context: Mapping[str, Any]
    run_id: str = ""


class StepStarted(NamedTuple):
    """An action is about to be called."""

    seq: int
    at: datetime
    step: str
    attempt: int


class StepSucceeded(NamedTuple):
    """An action returned. `how` is `run`, `served` (a recorded result), `recovered` or `skipped` (after a pivot)."""

    seq: int
    at: datetime
    step: str
    attempt: int
    result: Any = None
    delta: Delta = NO_DELTA
    how: str = "run"


class StepFailed(NamedTuple):
    """An attempt failed. `in_doubt`: its effect may have happened. `final`: the saga turns back.

    `step` is `end` when the saga failed after its last step, and `None` when it was cancelled between steps.
    """

    seq: int
    at: datetime
    step: str | None
    attempt: int
    error: ErrorInfo
    in_doubt: bool = False
    final: bool = True


class StepRetryScheduled(NamedTuple):
    """The attempt of this number follows after `delay` seconds. `undo`: it is the compensation's."""

    seq: int
    at: datetime
    step: str
    attempt: int
    delay: float
    undo: bool = False


class CompensationStarted(NamedTuple):
    """A compensation is about to be called."""

    seq: int
    at: datetime
    step: str
    attempt: int


class CompensationSucceeded(NamedTuple):
    """A compensation returned; what its step put into the context is taken out, `delta` (its own writes) put in."""

    seq: int
    at: datetime
    step: str
    attempt: int
    result: Any = None
    delta: Delta = NO_DELTA


class CompensationFailed(NamedTuple):
    """An attempt at a compensation failed. `final`: it will not be tried again, the step is stuck."""

    seq: int
    at: datetime
    step: str
    attempt: int
    error: ErrorInfo
    final: bool = True


class SagaCompleted(NamedTuple):
    """Every step is done."""

    seq: int
    at: datetime


class SagaRolledBack(NamedTuple):
    """Everything that must be undone is undone."""

    seq: int
    at: datetime


class SagaFailed(NamedTuple):
    """The saga is stuck: these steps could not be undone, or (after a pivot) not be done."""

    seq: int
    at: datetime
    stuck: tuple[str, ...]
    error: ErrorInfo | None = None


class SagaResumed(NamedTuple):
    """Another process took over. Steps that were running may have had their effect.

    `run_id` tells a captured run from another one that takes over at the same moment.
    """

    seq: int
    at: datetime
    run_id: str = ""


Event = (
    SagaStarted
    | StepStarted
    | StepSucceeded
    | StepFailed
    | StepRetryScheduled
    | CompensationStarted
    | CompensationSucceeded
    | CompensationFailed
    | SagaCompleted
    | SagaRolledBack
    | SagaFailed
    | SagaResumed
)

EVENT_TYPES: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        SagaStarted,
        StepStarted,
        StepSucceeded,
        StepFailed,
        StepRetryScheduled,
        CompensationStarted,
        CompensationSucceeded,
        CompensationFailed,
        SagaCompleted,
        SagaRolledBack,
        SagaFailed,
        SagaResumed,
    )
}
