"""How a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sagaz_core.engine.journal import Journal, events_of
from sagaz_core.errors import SagazError
from sagaz_core.events import ErrorInfo, Event
from sagaz_core.state import SagaStatus


class SagaNotCompletedError(SagazError):
    """Raised by `SagaResult.raise_for_status`: the saga was rolled back, or is stuck. `result` tells the rest."""

    def __init__(self, result: SagaResult) -> None:
        parts = [f"saga {result.saga_name!r} ({result.saga_id}) ended {result.status.value}"]
        if result.failed_step:
            parts.append(f" at {result.failed_step!r}")
        if result.error:
            parts.append(f": {result.error}")
        if result.stuck:
            parts.append(f"; not undone: {', '.join(result.stuck)}")
        super().__init__("".join(parts))
        self.result = result


@dataclass(frozen=True)
class SagaResult:
    """How a run ended: `completed`, `rolled_back`, or `failed` (`stuck` then has the steps that need a person).

    `completed_steps` are done and not undone, in order of completion; `compensated_steps` in order of undoing.
    `error` describes what turned the saga back; `exception` is it, when this process saw it.
    """

    saga_id: str
    saga_name: str
    status: SagaStatus
    context: Mapping[str, Any]
    completed_steps: tuple[str, ...]
    compensated_steps: tuple[str, ...]
    stuck: tuple[str, ...] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    compensation_results: Mapping[str, Any] = field(default_factory=dict)
    failed_step: str | None = None
    error: ErrorInfo | None = None
    exception: BaseException | None = None
    events: tuple[Event, ...] = field(default_factory=tuple, repr=False)

    @property
    def success(self) -> bool:
        """Whether every step is done."""
        return self.status is SagaStatus.COMPLETED

    def raise_for_status(self) -> None:
        """Raise `SagaNotCompletedError` unless the saga completed."""
        if not self.success:
            raise SagaNotCompletedError(self) from self.exception


class _Events:
    """The events of a result of a run, made when they are asked for: most results are not."""

    def __get__(self, result: SagaResult | None, owner: type | None = None) -> tuple[Event, ...]:
        if result is None:
            return ()
        fields = result.__dict__
        events = fields["events"] = tuple(events_of(fields["_log"]))
        return events


SagaResult.events = _Events()  # type: ignore[assignment] # which an instance's own events stand before


def result_of(journal: Journal, exception: BaseException | None = None) -> SagaResult:
    """Return the result of the run whose journal this is."""
    state = journal.state
    made = object.__new__(SagaResult)
    fields = {
        "saga_id": state.saga_id,
        "saga_name": state.saga_name,
        "status": state.status,
        "context": state.context,
        "completed_steps": tuple(state.results),
        "compensated_steps": tuple(state.undone),
        "stuck": state.stuck,
        "results": state.results,
        "compensation_results": state.undone,
        "failed_step": state.failed_step,
        "error": state.error,
        "exception": exception,
        "_log": journal.log,
    }
    object.__setattr__(made, "__dict__", fields)  # one by one takes longer than to run a step
    return made
