"""What a search by forking has found, shown on runs of the saga.

What is reported was seen on a run from the start too, or, where it needs an order of steps that the engine does not
take by itself, on the branch.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sagaz_core.faults.plan import NO_FAULTS, Fault, FaultPlan
from sagaz_core.model import END
from sagaz_core.prove.clean import shows
from sagaz_core.prove.disorder import torn
from sagaz_core.prove.endless import NeverEndsError
from sagaz_core.prove.orders import OtherOrders
from sagaz_core.prove.outcome import Outcome
from sagaz_core.prove.scripts import rank
from sagaz_core.prove.summary import TURNED_BACK, Found, Path, Summary
from sagaz_core.prove.unordered import fights, noticed
from sagaz_core.prove.verdict import RANKS, Finding, Verdict

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.branch import Branch
    from sagaz_core.prove.runs import Runs
    from sagaz_core.prove.tree import Tree


class Shown:
    """Makes outcomes of what was found in the tree below the root."""

    def __init__(self, runs: Runs, tree: Tree, root: Branch) -> None:
        self.runs = runs
        self.tree = tree
        self.root = root

    async def failures(self, summary: Summary) -> list[Outcome]:
        """Return what is wrong, the worst first; before all, that the saga hangs on an order that nothing says."""
        runs, effects = self.runs, self.tree.effects
        runs.subject = replace(runs.subject, fights=tuple(fights(effects, runs.model)))
        first: list[Outcome] = []
        if (turned_back := summary.found.get(TURNED_BACK)) is not None and not turned_back.faults and runs.completes:
            first = await self._lost_edge(turned_back)
        said = set[Found]().union(*map(shows, first))
        found = {**self._found(summary), **noticed(effects, runs.model)}
        others = await self._of_paths({key: how for key, how in found.items() if key not in said})
        return [*first, *(outcome for outcome in others if not said.issuperset(shows(outcome)))]

    def _found(self, summary: Summary) -> dict[Found, Path]:
        """Return what is wrong. A plan of benign faults that turned the saga back counts if it completes without."""
        found: dict[Found, Path] = {}
        for (verdict, step), path in summary.found.items():
            if verdict is not Verdict.CLEAN:
                found[verdict, step] = path
            elif step is not None and self.runs.completes:
                found.setdefault((Verdict.NOT_IDEMPOTENT, step), path)
        benign = {key: frozenset(path.faults) for key, path in found.items() if key[0] is Verdict.NOT_IDEMPOTENT}
        for key, faults in benign.items():
            if any(part < faults for part in benign.values()):
                del found[key]  # of two steps the first one is blamed, and here the other one alone does it
        return found

    async def _lost_edge(self, path: Path) -> list[Outcome]:
        """Return the run without faults in an order of the steps in which one of them fails."""
        outcome = await self._walked(path)
        if self.runs.clean is None:
            return []

        calls = self.runs.subject.calls

        async def run(order: tuple[str, ...]) -> Outcome | None:
            with nullcontext() if calls is None else calls.beside(), suppress(NeverEndsError):
                return await self.runs.trial(NO_FAULTS, in_order=order)
            return None

        blamed = await OtherOrders(self.runs.clean, self.runs.subject.fights, run).blamed(outcome)
        return [] if blamed is None else [blamed]

    async def _of_paths(self, found: dict[Found, Any]) -> list[Outcome]:
        places = self.tree.places
        paths = {key: path for key, path in found.items() if isinstance(path, Path)}
        outcomes: dict[tuple[Any, ...], Outcome] = {}
        for key in sorted(paths, key=lambda one: rank(paths[one].faults, places)):
            path = paths[key]
            outcome = outcomes.get((path.faults, None)) or await self.runs.trial(FaultPlan(path.faults), closely=True)
            place: Found | None = None
            if key not in shows(outcome):
                outcome, place = await self._walked(path), key  # the plan in another order
            if outcome.findings:
                outcomes[path.faults, place] = outcome
        failures = list(outcomes.values())
        shown = set[Found]().union(*map(shows, failures))
        seen = {key: finding for key, finding in found.items() if isinstance(finding, Finding) and key not in shown}
        if seen:
            failures += await self._shown(seen)
        return sorted(failures, key=lambda outcome: RANKS[outcome.verdict])

    async def _shown(self, seen: dict[Found, Finding]) -> list[Outcome]:
        """Return runs that show what was noticed at single calls: of an action without faults, or of a rollback."""
        runs = self.runs
        plans = turning_back(runs.model) if runs.clean is not None and runs.completes else []
        clean = runs.clean or await runs.trial(NO_FAULTS)
        left, outcomes = dict(seen), []
        here = shows(clean)
        for plan in plans:
            if left.keys() <= here:
                break
            outcome = await runs.trial(plan, closely=True)
            found = left.keys() & shows(outcome)
            if found - here:
                outcomes.append(outcome)
                left = {key: finding for key, finding in left.items() if key not in found}
        if left:
            evidence = replace(clean.evidence, noticed=tuple(left.values()))
            outcomes.append(Outcome(evidence, clean.world_changes, clean.reproduce, clean.exception))
        return outcomes

    async def _walked(self, path: Path) -> Outcome:
        """Return the outcome of a branch: of an order of steps that the engine does not take by itself."""
        end = await self.tree.moves.walked(self.root, path)
        plan = FaultPlan(path.faults)
        evidence = replace(self.tree.ends.evidence(end, plan), fights=self.runs.subject.fights)
        if torn(evidence.events, evidence.fights):
            evidence = replace(evidence, reference_changes=())
        changes = self.runs.worlds.changes(self.runs.initial, end.world)
        again = self.runs.search.again or self.runs.subject.reproduce
        return Outcome(evidence, changes, again, None, self.runs.worlds.reading(end.world), plan)


def turning_back(model: SagaModel) -> list[FaultPlan]:
    """Return the plans under which the most is undone: each pivot fails, or the end of the saga does."""
    pivots = [step.name for step in model.steps if step.pivot]
    return [FaultPlan((Fault(name, "before"),)) for name in pivots or [END]]
