"""How a run ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sagaz_core.errors import SagazError
from sagaz_core.events import ErrorInfo, Event
from sagaz_core.state import SagaState, SagaStatus


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
    events: tuple[Event, ...] = field(default=(), repr=False)

    @property
    def success(self) -> bool:
        """Whether every step is done."""
        return self.status is SagaStatus.COMPLETED

    def raise_for_status(self) -> None:
        """Raise `SagaNotCompletedError` unless the saga completed."""
        if not self.success:
            raise SagaNotCompletedError(self) from self.exception


def result_of(state: SagaState, events: list[Event], exception: BaseException | None = None) -> SagaResult:
    """Return the result that a state stands for."""
    made = object.__new__(SagaResult)
    made.__dict__.update(  # a frozen dataclass of so many fields takes longer to make than a step to run
        saga_id=state.saga_id,
        saga_name=state.saga_name,
        status=state.status,
        context=state.context,
        completed_steps=tuple(state.results),
        compensated_steps=tuple(state.undone),
        stuck=state.stuck,
        results=state.results,
        compensation_results=state.undone,
        failed_step=state.failed_step,
        error=state.error,
        exception=exception,
        events=tuple(events),
    )
    return made
