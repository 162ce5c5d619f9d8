"""All that is known of one run under a plan; what the oracle judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sagaz_core.state import COMPLETED, SagaState, SagaStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence, Set

    from sagaz_core.events import Event
    from sagaz_core.faults.plan import Fault, FaultPlan
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.ledger import Ledger
    from sagaz_core.prove.touches import Touched
    from sagaz_core.prove.unordered import Fight
    from sagaz_core.prove.verdict import Finding
    from sagaz_core.prove.world import Change


@dataclass(slots=True)  # not frozen: that takes a microsecond each time
class Evidence:
    """What the witnesses say of one run. `claimed` is what the engine says, `state` the fold of what happened.

    `world_changes` is against the world before the run, `reference_changes` against the world after a run without
    faults (or, of one that was killed, without the kill); each is `None` when there is no world to look at. `noticed`
    was found before any judgement. `oldest_first`: what nothing orders was undone in that order. `fails_at`: the step
    that fails without any fault too, if one does. `endless` is what never ended, for which the run was given up.
    `touched` knows which places of the world the steps have changed. `fights`: pairs of steps that nothing orders,
    though the first one reads what the other one writes. `spoilt` steps had their action come late,
    change the world and fail; of `refused` ones the world shows, as it would, that their action came late and had no
    effect.
    """

    model: SagaModel
    plan: FaultPlan
    missed: Sequence[Fault]
    claimed: SagaStatus
    state: SagaState
    events: Sequence[Event]
    ledger: Ledger
    engine: str = "native"
    world_changes: Sequence[Change] | None = None
    reference_changes: Sequence[Change] | None = None
    cancelled: bool = False
    left_in_context: Mapping[str, str] = field(default_factory=dict)
    noticed: Sequence[Finding] = ()
    oldest_first: bool = False
    fails_at: str | None = None
    endless: Finding | None = None
    touched: Touched | None = None
    fights: Collection[Fight] = ()
    spoilt: Set[str] = frozenset()
    refused: Set[str] = frozenset()

    @property
    def turned_back(self) -> bool:
        """Whether the run ended, or was left, without having completed."""
        return self.claimed is not COMPLETED

    def exhausted(self, *, undo: bool) -> set[str]:
        """Return the steps at which more transient faults happened than the operation has retries."""
        count: dict[str, int] = {}
        for fault in self.plan.faults:
            if "flaky" in fault.kind and fault.described.undo is undo and fault not in self.missed:
                count[fault.step] = count.get(fault.step, 0) + fault.times
        found = set()
        for name, times in count.items():
            step = self.model.step(name)
            if times > (step.compensation_retries if undo else step.retries):
                found.add(name)
        return found

    def struck(self, *kinds: str) -> set[str]:
        """Return the steps at which a fault of one of these kinds happened."""
        return {f.step for f in self.plan.faults if f.kind in kinds and f not in self.missed}
