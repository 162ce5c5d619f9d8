"""Which faults can be in one plan together, so that each of them strikes in a run of a saga that is otherwise fine."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from sagaz_core.faults.kinds import KINDS, why_not
from sagaz_core.faults.plan import Fault, FaultPlan
from sagaz_core.model import END

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sagaz_core.model import SagaModel

Faults = tuple[Fault, ...]


class LegalPlans:
    """The plans of a saga. A part of a legal plan is legal, but that faults of compensations need one to turn back at.

    So every plan is reached by adding fault after fault; `added_to(())` are the plans of one.
    """

    def __init__(self, model: SagaModel, kinds: Iterable[str]) -> None:
        self._model = model
        self.steps = (*model.order, END)
        self._places = {name: place for place, name in enumerate(self.steps)}
        self._pivots = frozenset(step.name for step in model.steps if step.pivot)
        wanted = set(kinds)
        self.kinds = tuple(kind for kind in KINDS if kind in wanted)  # the simplest first
        self._all = [
            Fault(name, kind)
            for kind in self.kinds
            for name in model.order
            if not why_not(KINDS[kind], model.step(name))
        ]
        if "before" in wanted and not self._pivots:
            self._all.append(Fault(END, "before"))

    def added_to(self, faults: Faults) -> list[Fault]:
        """Return the faults that can be added."""
        return [fault for fault in self._all if self._is_legal((*faults, fault))]

    def plan(self, faults: Faults) -> FaultPlan:
        """Return the plan of these faults, in the order in which they strike."""
        forward = sorted((fault for fault in faults if not fault.described.undo), key=self._place)
        undo = sorted((fault for fault in faults if fault.described.undo), key=self._place, reverse=True)
        if undo and not forward and self._pivots:
            forward = [Fault(self._turning(undo), "before")]
        return FaultPlan((*forward, *undo))

    def _place(self, fault: Fault) -> int:
        return self._places[fault.step]

    def _is_legal(self, faults: Faults) -> bool:
        if len({(fault.step, fault.described.undo) for fault in faults}) < len(faults):
            return False
        undo = [fault for fault in faults if fault.described.undo]
        fatal = [fault for fault in faults if fault.described.fatal and not fault.described.undo]
        benign = [fault for fault in faults if not fault.described.fatal and not fault.described.undo]
        if len(fatal) > 1 or (undo and not self._can_undo(undo)):
            return False
        if not fatal:
            return not undo or (not benign and bool(self._turning(undo)))
        at = fatal[0].step
        if any(fault.step not in self._before(at) for fault in benign):
            return False
        return not undo or (self._turns_back(at) and all(fault.step in self._undone(at) for fault in undo))

    def _turning(self, undo: Sequence[Fault]) -> str:
        """Return where a saga turns back of which only faults of compensations are said, or `""`."""
        if not self._pivots:
            return END
        pivots = [name for name in self._model.order if name in self._pivots and self._turns_back(name)]
        return next((at for at in pivots if all(fault.step in self._before(at) for fault in undo)), "")

    def _before(self, step: str) -> frozenset[str]:
        """Return the steps that have certainly ended before this one starts."""
        return self._everything if step == END else self._model.ancestors[step]

    def _undone(self, at: str) -> frozenset[str]:
        """Return the steps that are certainly undone when the saga fails there."""
        in_doubt = at != END and self._model.step(at).undone_in_doubt
        return self._before(at) | {at} if in_doubt else self._before(at)

    def _turns_back(self, at: str) -> bool:
        """Whether no pivot can be done by then, not even one that runs beside it."""
        return self._pivots <= (frozenset() if at == END else self._model.descendants[at] | {at})

    def _can_undo(self, undo: Sequence[Fault]) -> bool:
        """Whether each of the compensations still runs when others of them fail for good."""
        for failed in (fault.step for fault in undo if fault.described.fatal):
            others = [fault.step for fault in undo if fault.step != failed]
            if self._model.on_compensation_failure == "fail_fast":
                if any(other not in self._model.descendants[failed] for other in others):
                    return False
            elif self._model.on_compensation_failure == "skip_dependents" and any(
                other in self._model.ancestors[failed] for other in others
            ):
                return False
        return True

    @cached_property
    def _everything(self) -> frozenset[str]:
        return frozenset(self._model.names)
