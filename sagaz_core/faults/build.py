"""Fault plans in code: `fail.before("charge", CardDeclined())`, `crash("charge")`, joined with `+`."""

from __future__ import annotations

from sagaz_core.faults.plan import Fault, FaultPlan
from sagaz_core.model import END

Raised = BaseException | type[BaseException] | None


class _Fail:
    """Makes plans in which a step fails; each method is a kind of fault of the same name."""

    def before(self, step: str, exc: Raised = None, *, attempt: int | None = None) -> FaultPlan:
        """The action is not run; it raises."""
        return _plan(step, "before", attempt, exc=exc)

    def after(self, step: str, exc: Raised = None, *, attempt: int | None = None) -> FaultPlan:
        """The action runs, then it raises: the acknowledgement is lost."""
        return _plan(step, "after", attempt, exc=exc)

    def hang(self, step: str, *, attempt: int | None = None) -> FaultPlan:
        """The action never returns; the step's timeout fires."""
        return _plan(step, "hang", attempt)

    def late(self, step: str, *, attempt: int | None = None) -> FaultPlan:
        """The step's timeout fires, and the effect happens afterwards."""
        return _plan(step, "late", attempt)

    def cancel(self, step: str) -> FaultPlan:
        """The task that runs the saga is cancelled inside the step, its effect having happened."""
        return _plan(step, "cancel")

    def flaky(self, step: str, exc: Raised = None, *, times: int = 1, after: bool = False) -> FaultPlan:
        """A transient error, before or after the effect, then success on the retry."""
        return _plan(step, "flaky-after" if after else "flaky", times=times, exc=exc)

    def undo(self, step: str, exc: Raised = None, *, at: str = "fail") -> FaultPlan:
        """The compensation fails; `at` is the kind without `undo-`: `fail`, `fail-after`, `hang`, `flaky`…"""
        return _plan(step, f"undo-{at}", exc=exc)

    def end(self, exc: Raised = None) -> FaultPlan:
        """The saga fails after its last step, so that every compensation runs."""
        return _plan(END, "before", exc=exc)


fail = _Fail()


def crash(step: str, *, recorded: bool = False, undo: bool = False) -> FaultPlan:
    """The process dies after the step's effect (or its compensation's), before or after that is recorded."""
    return _plan(step, f"{'undo-' if undo else ''}crash{'-recorded' if recorded else ''}")


def repeat(step: str, *, undo: bool = False) -> FaultPlan:
    """The step (or its compensation) is delivered twice."""
    return _plan(step, "undo-repeat" if undo else "repeat")


def _plan(step: str, kind: str, attempt: int | None = None, *, times: int = 1, exc: Raised = None) -> FaultPlan:
    return FaultPlan((Fault(step, kind, attempt, times, exc),))
