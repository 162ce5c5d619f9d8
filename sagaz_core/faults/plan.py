"""Fault plans: values that say what fails, where and how, with one string form.

    charge@after                 charge_2#2@before            flaky:  charge@flaky:2
    ship@before+charge@undo-fail

The form is safe in a shell, unquoted, and is used in code, test ids, the command line and reports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sagaz_core.errors import PlanError
from sagaz_core.faults.kinds import KINDS, QUICK, Kind, kind_of, step_of, why_not
from sagaz_core.model import END, SagaModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FAULT = re.compile(r"(?P<step>[^@+#:\s]+)(?:#(?P<attempt>[0-9]{1,6}))?@(?P<kind>[a-z-]+)(?::(?P<times>[0-9]{1,6}))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `attempt` (1, 2…) limits it to that attempt; `times` is how often a flaky one strikes.

    `exception` is raised instead of an `InjectedFaultError`; it is not part of the string form, nor of equality.
    """

    step: str
    kind: str
    attempt: int | None = None
    times: int = 1
    exception: BaseException | type[BaseException] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        kind_of(self.kind)
        if self.attempt is not None and self.attempt < 1:
            raise PlanError(f"{self}: attempts count from 1")
        if self.times < 1 or (self.times > 1 and "flaky" not in self.kind):
            raise PlanError(f"{self.step}@{self.kind}:{self.times}: only flaky kinds take a number, from 1")

    def __str__(self) -> str:
        attempt = f"#{self.attempt}" if self.attempt is not None else ""
        times = f":{self.times}" if self.times > 1 else ""
        return f"{self.step}{attempt}@{self.kind}{times}"

    @property
    def described(self) -> Kind:
        """What this kind of fault is."""
        return KINDS[self.kind]


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Faults that strike in one run. Falsy when there are none. `a + b` has the faults of both."""

    faults: tuple[Fault, ...] = ()

    @classmethod
    def parse(cls, text: str) -> FaultPlan:
        """Read the string form; `str(plan)` is the inverse. Raises `PlanError`, which says how to write it."""
        faults = []
        for part in text.strip().split("+"):
            match = _FAULT.fullmatch(part)
            if match is None:
                raise PlanError(
                    f"{part!r} is not a fault: write step@kind, step#attempt@kind or step@flaky:times, joined with +"
                )
            attempt, times = match["attempt"], match["times"]
            faults.append(
                Fault(match["step"], match["kind"], int(attempt) if attempt else None, int(times) if times else 1)
            )
        return cls(tuple(faults))

    def __str__(self) -> str:
        return "+".join(map(str, self.faults))

    def __bool__(self) -> bool:
        return bool(self.faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.faults)

    def __add__(self, other: FaultPlan) -> FaultPlan:
        if not isinstance(other, FaultPlan):
            return NotImplemented
        return FaultPlan(self.faults + other.faults)

    def completed(self) -> FaultPlan:
        """Return the plan as it runs: compensation faults alone imply `end@before`, or nothing would be undone."""
        if not self.faults:
            return self
        for fault in self.faults:
            if not KINDS[fault.kind].undo:
                return self
        return FaultPlan((Fault(END, "before"), *self.faults))

    def check(self, model: SagaModel) -> None:
        """Raise `PlanError` when a fault names a step that the saga does not have, or cannot strike it."""
        for fault in self.faults:
            step = step_of(model, fault.step, fault.described)
            reason = why_not(fault.described, step) if step is not None else ""
            if reason:
                raise PlanError(f"{fault}: step {fault.step!r} cannot have it, {reason}")


NO_FAULTS = FaultPlan()


def as_plan(plan: FaultPlan | str | None) -> FaultPlan:
    """Return the plan of a plan, its text, or nothing. Raises `PlanError` for anything else."""
    if plan is None:
        return NO_FAULTS
    if isinstance(plan, str):
        return FaultPlan.parse(plan)
    if not isinstance(plan, FaultPlan):
        raise PlanError(
            f"{plan!r:.80} is not a plan: write 'charge@before', or fail.before('charge'); several are joined with +"
        )
    return plan


def single_fault_plans(model: SagaModel, kinds: Iterable[str] = QUICK) -> list[FaultPlan]:
    """Return every plan of one fault that the saga can have, in order of the steps.

    A compensation's fault is put with what makes it run: the end of the saga, or its first pivot, which a rollback
    cannot come from behind.
    """
    wanted = [KINDS[kind] for kind in kinds]
    pivots = [name for name in model.order if model.step(name).pivot]
    plans = []
    for name in model.order:
        step = model.step(name)
        for kind in wanted:
            if why_not(kind, step):
                continue
            fault = FaultPlan((Fault(name, kind.name),))
            if kind.undo and pivots:
                before = next((pivot for pivot in pivots if name in model.ancestors[pivot]), None)
                if before is None:
                    continue
                fault = FaultPlan((Fault(before, "before"), *fault.faults))
            plans.append(fault)
    if not pivots and any(kind.name == "before" for kind in wanted):
        plans.append(FaultPlan((Fault(END, "before"),)))
    return plans
