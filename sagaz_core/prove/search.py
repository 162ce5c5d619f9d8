"""What a search is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sagaz_core.errors import PlanError
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.model import END
from sagaz_core.prove.scripts import spared

if TYPE_CHECKING:
    from sagaz_core.engine.run import Served
    from sagaz_core.model import SagaModel

DEFAULT_DEPTH = 2


@dataclass(frozen=True)
class Search:
    """How to explore: which kinds, how many faults at once, in which mode, and when to stop.

    `known` plans failed before; those that are asked for are run first. `recorded` steps are taken from a record until
    a fault strikes, of which none strikes an action before the step `first`. `over` says that the time is up;
    `on_progress` is told how many plans are done, and how many there are. `again` is the command that makes the same
    search, for what is seen only in an order of the steps that a run of one plan does not take.
    """

    kinds: tuple[str, ...]
    depth: int = DEFAULT_DEPTH
    mode: str = "auto"
    max_executions: int | None = None
    first: str | None = None
    known: Sequence[FaultPlan] = ()
    recorded: Mapping[str, Served] = field(default_factory=dict)
    over: Callable[[], bool] = lambda: False
    on_progress: Callable[[int, int], object] | None = None
    again: str = ""

    def served(self, plan: FaultPlan, model: SagaModel) -> tuple[Served, ...]:
        """Return the recorded steps that come before the first that a fault of the plan strikes."""
        struck = {fault.step for fault in plan if not fault.described.undo}
        served: list[Served] = []
        for name in model.order:
            if name in struck or name not in self.recorded:
                break
            served.append(self.recorded[name])
        return tuple(served)

    def known_of(self, model: SagaModel) -> list[FaultPlan]:
        """Return the known plans that are among those that are asked for."""
        return [plan for plan in self.known if _fits(plan, model) and self._asks_for(plan, model)]

    def not_asked_for(self, model: SagaModel) -> list[FaultPlan]:
        """Return the known plans that the saga can have, and that this search leaves out."""
        return [plan for plan in self.known if _fits(plan, model) and not self._asks_for(plan, model)]

    def _asks_for(self, plan: FaultPlan, model: SagaModel) -> bool:
        early = spared(model, self.first)
        return sum(fault.times for fault in plan) <= self.depth and all(
            fault.kind in self.kinds and (fault.described.undo or fault.step not in early)
            for fault in plan
            if fault.step != END
        )


def _fits(plan: FaultPlan, model: SagaModel) -> bool:
    try:
        plan.check(model)
    except PlanError:
        return False  # of a saga that has changed since
    return True
