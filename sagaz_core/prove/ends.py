"""What is wrong with the branches that have ended: what the witnesses say of them, and the judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sagaz_core.faults.plan import Fault, FaultPlan
from sagaz_core.prove.evidence import Evidence
from sagaz_core.prove.keys import backward_key
from sagaz_core.prove.ledger import Entry, Ledger
from sagaz_core.prove.oracle import judge
from sagaz_core.prove.stacks import EMPTY

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.branch import Branch
    from sagaz_core.prove.summary import Found
    from sagaz_core.prove.unsteady import Unsteady
    from sagaz_core.prove.world import Change
    from sagaz_core.prove.worlds import Worlds
    from sagaz_core.state import SagaState


class Ends:
    """Judges branches that have ended, those of one key once.

    `initial` and `reference` are the numbers of the world as it was, and as it is after a run without faults;
    `completed` are those after runs in all orders of the steps, by their keys. What is `unsteady` differs from run to
    run. `seen` has the worlds around the calls that changed something, by step.
    Without a `witness` nobody can say what the world should be. `ordered`: a key is of one order of the steps.
    """

    def __init__(
        self,
        model: SagaModel,
        worlds: Worlds,
        initial: int,
        left_in_context: Callable[[SagaState], dict[str, str]],
        *,
        reference: int | None = None,
        witness: bool = True,
        ordered: bool = True,
        unsteady: Unsteady,
        seen: Mapping[str, Mapping[tuple[int, int], None]] = MappingProxyType({}),
    ) -> None:
        self._model = model
        self._worlds = worlds
        self._initial = initial
        self._left_in_context = left_in_context
        self._reference = reference
        self._witness = witness
        self._ordered = ordered
        self._unsteady = unsteady
        self.completed: dict[int, int] = {}
        self._touched = _Touched(worlds, seen)
        self._known: dict[tuple[Any, ...], tuple[Found, ...]] = {}

    async def found(self, at: Branch) -> tuple[Found, ...]:
        """End a branch that has nothing more to do, and return what is wrong with it. Raises `Stopped`."""
        key = None if at.undoing is None else backward_key(at, 0, self._ordered)
        found = None if key is None else self._known.get(key)
        if found is None:
            branch = at if at.undoing is None and at.turning_back else at.fork()
            await branch.end()
            found = tuple({(finding.verdict, finding.step): None for finding in judge(self.evidence(branch))})
            if key is not None:
                self._known[key] = found
        return found

    def evidence(self, branch: Branch, plan: FaultPlan | None = None) -> Evidence:
        """Return what the witnesses say of a branch that has ended. Without a plan, what the judgement needs of it."""
        state, worlds = branch.state, self._worlds
        if branch.entries is not None:
            ledger = Ledger(branch.served)
            ledger.entries = branch.entries
        else:
            ledger = Ledger()
            alive = [step for step in self._model.order if step in branch.alive]
            ledger.entries = [Entry(step, False, 1, 1, 1, True) for step in alive]
        return Evidence(
            model=self._model,
            plan=plan if plan is not None else self._plan(branch),
            missed=(),
            claimed=state.status,
            state=state,
            events=branch.journal.events if branch.entries is not None else (),
            ledger=ledger,
            world_changes=worlds.changes(self._initial, branch.world) if self._witness else None,
            reference_changes=self._reference_changes(branch.world),
            touched=self._touched,
            cancelled=branch.cancelled is not None,
            spoilt=branch.spoilt,
            refused=branch.refused if self._witness else frozenset(),
            left_in_context={} if branch.layers == EMPTY else self._left_in_context(state),
        )

    def _reference_changes(self, world: int) -> Sequence[Change] | None:
        worlds = self._worlds
        if not self._witness or self._reference is None:
            return None
        if worlds.key(world) in self.completed:
            return ()  # in another order the saga leaves this without any fault
        changes = worlds.changes(self._reference, world)
        return self._unsteady.without(changes) if self._unsteady else changes

    def _plan(self, branch: Branch) -> FaultPlan:
        kept = []
        for step, kind in branch.struck.items():
            times = self._model.step(step).compensation_retries + 1 if "flaky" in kind else 1
            kept.append(Fault(step, kind, times=times))
        return FaultPlan((*branch.fatal, *kept))


class _Touched:
    """The places of the world that any call of a step was seen to change, on whatever branch."""

    def __init__(self, worlds: Worlds, seen: Mapping[str, Mapping[tuple[int, int], None]]) -> None:
        self._worlds = worlds
        self._seen = seen
        self._known: dict[str, tuple[int, frozenset[str]]] = {}

    def places(self, step: str) -> frozenset[str]:
        seen = self._seen.get(step, {})
        count, found = self._known.get(step, (0, frozenset[str]()))
        if len(seen) > count:
            new = {change.where for pair in list(seen)[count:] for change in self._worlds.changes(*pair)}
            found = found | new
            self._known[step] = len(seen), found
        return found

    def culprits(self, left: Sequence[Change]) -> tuple[str, ...]:
        return ()  # of a branch only its end is known

    def done_again(self, left: Sequence[Change]) -> tuple[str, ...]:
        return ()
