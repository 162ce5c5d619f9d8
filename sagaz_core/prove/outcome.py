"""`Outcome`: how one run ended, what was judged, and the assertions on it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import UnknownStepError, UsageError, nearest
from sagaz_core.events import Event, StepStarted
from sagaz_core.prove.explain import explain, explain_difference
from sagaz_core.prove.normalise import Normaliser
from sagaz_core.prove.oracle import judge
from sagaz_core.prove.trace import render, trace_rows
from sagaz_core.prove.verdict import RANKS, Finding, Verdict, worst
from sagaz_core.state import SagaState, SagaStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagaz_core.faults.plan import FaultPlan
    from sagaz_core.prove.evidence import Evidence
    from sagaz_core.prove.world import Change, Reading


class UnsoundError(AssertionError):
    """A run is not what it must be. The message is one line; `report` is the table that explains it."""

    def __init__(self, message: str, report: str) -> None:
        super().__init__(message)
        self.report = report


UnsoundError.__module__ = "sagaz_core"  # where it is public, and what a failing test shows


class Outcome:
    """How one run under a plan ended.

    `status` is what the engine says; `completed` and `compensated` are what the events say, in order; `stuck` could not
    be undone; `orphans` are effects that were left and must not have been; `plan` has the faults of this run.
    `asserted`: an assertion of those below held, or a golden was equal to it.
    """

    def __init__(
        self,
        evidence: Evidence,
        world_changes: Sequence[Change] = (),
        reproduce: str = "",
        exception: BaseException | None = None,
        world_after: Reading | None = None,
        plan: FaultPlan | None = None,
    ) -> None:
        self.evidence = evidence
        self.plan = evidence.plan if plan is None else plan
        self.world_changes = tuple(world_changes)
        self.world_after = world_after
        self.exception = exception
        self.asserted = False
        self._reproduce = reproduce

    @property
    def saga_name(self) -> str:
        """The saga's name."""
        return self.evidence.model.name

    @property
    def under(self) -> str:
        """What the run was put under, with a space before it, or `""`."""
        how = " (undone oldest first)" if self.evidence.oldest_first else ""
        return f" under {self.plan}{how}" if self.plan else how

    @property
    def status(self) -> SagaStatus:
        """What the engine says."""
        return self.evidence.claimed

    @property
    def completed(self) -> list[str]:
        """The steps that are done and not undone, in order of completion."""
        return self.evidence.state.completed

    @property
    def compensated(self) -> list[str]:
        """The steps that were undone, in that order."""
        return self.evidence.state.compensated

    @property
    def stuck(self) -> list[str]:
        """The steps whose compensation did not succeed."""
        return list(self.evidence.state.stuck)

    @property
    def context(self) -> Mapping[str, Any]:
        """The context at the end."""
        return self.evidence.state.context

    @property
    def events(self) -> tuple[Event, ...]:
        """All that happened."""
        return tuple(self.evidence.events)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All that is wrong, the worst first."""
        return tuple(sorted(judge(self.evidence), key=lambda finding: RANKS[finding.verdict]))

    @property
    def verdict(self) -> Verdict:
        """The judgement in one word."""
        return worst(self.findings)

    @property
    def proves_nothing(self) -> bool:
        """Whether a fault of the plan never happened, or the run did not end."""
        return bool(self.evidence.missed) or self.evidence.endless is not None

    @property
    def judged(self) -> bool:
        """Whether anybody has asked for the judgement."""
        return "findings" in vars(self)

    @property
    def orphans(self) -> list[str]:
        """The steps whose effect was left behind."""
        return [f.step for f in self.findings if f.verdict is Verdict.ORPHAN and f.step is not None]

    @cached_property
    def trace(self) -> tuple[str, ...]:
        """What happened, a line each, in canonical order."""
        names = Normaliser({self.evidence.state.saga_id: "<saga>"})
        rows = trace_rows(self.evidence.model, self.evidence.events, names)
        return tuple(" ".join(part for part in row if part) for row in rows)

    @property
    def reproduce(self) -> str:
        """The command that runs this plan again, or `""`."""
        return self._reproduce.replace("{plan}", str(self.plan) or "none")

    def golden_text(self) -> str:
        """Return the text that a golden file keeps."""
        return render(self.evidence, self.world_changes)

    def explain(self) -> str:
        """Return the table of what was done, undone and left, and what to change."""
        return explain(self)

    def __repr__(self) -> str:
        return f"<Outcome {self.saga_name} {self.status.value}{self.under}: {self.verdict.value}>"

    # ---- looking into it

    def at(self, step: str, when: str = "before") -> Mapping[str, Any]:
        """Return the context just `"before"` the step first started, or just `"after"` it last ended."""
        if when not in ("before", "after"):
            raise UsageError(f"at(..., {when!r}): write 'before' or 'after'")
        if step not in self.evidence.model:
            raise UnknownStepError(
                f"saga {self.saga_name!r} has no step {step!r}{nearest(step, self.evidence.model.names)}"
            )
        state, found = SagaState(), None
        for event in self.evidence.events:
            if when == "before" and isinstance(event, StepStarted) and event.step == step:
                return dict(state.context)
            state.apply(event)
            if when == "after" and getattr(event, "step", None) == step and not isinstance(event, StepStarted):
                found = dict(state.context)
        if found is None:
            raise UnknownStepError(
                f"step {step!r} did not run under {self.plan or 'no faults'}: there is no state {when} it"
            )
        return found

    def diff(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Return the keys that differ between two contexts, with both values (`None` where there was none)."""
        keys = [*before, *(key for key in after if key not in before)]
        return {
            key: (before.get(key), after.get(key))
            for key in keys
            if key not in before or key not in after or before[key] != after[key]
        }

    # ---- asserting; none of these holds when a fault of the plan never happened, or the run did not end

    def assert_sound(self) -> None:
        """Raise `UnsoundError` unless the run is what it must be under its plan. Nothing needs to be said about it."""
        __tracebackhide__ = True
        if self.findings:
            first = self.findings[0]
            raise UnsoundError(f"{first.verdict.value}{self.under}: {first.sentence}", self.explain())
        self.asserted = True

    def assert_compensated(self, *steps: str) -> None:
        """Raise unless exactly these steps were undone; the order in which they are named does not matter."""
        __tracebackhide__ = True
        self._check_struck()
        self._check_steps(steps)
        self._expect("compensated", set(steps), set(self.compensated))

    def assert_completed(self) -> None:
        """Raise unless every step is done."""
        __tracebackhide__ = True
        self._check_struck()
        if self.status is not SagaStatus.COMPLETED:
            because = f" because of {self.evidence.state.error}" if self.evidence.state.error else ""
            raise UnsoundError(f"the saga ended {self.status.value}{because}, not completed", self.explain())
        self.asserted = True

    def assert_stuck(self, *steps: str) -> None:
        """Raise unless the saga is stuck at exactly these steps."""
        __tracebackhide__ = True
        self._check_struck()
        self._check_steps(steps)
        self._expect("stuck", set(steps), set(self.stuck))

    def _check_struck(self) -> None:
        """Raise when a fault of the plan never happened, or the run was given up: what holds then says nothing."""
        __tracebackhide__ = True
        if self.proves_nothing:
            self.assert_sound()

    def _check_steps(self, steps: Sequence[str]) -> None:
        for step in steps:
            self.evidence.model.step(step)

    def _expect(self, what: str, expected: set[str], got: set[str]) -> None:
        __tracebackhide__ = True
        if expected != got:
            raise UnsoundError(explain_difference(what, expected, got), self.explain())
        self.asserted = True
