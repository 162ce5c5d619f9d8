"""A saga without faults in further orders of its steps, where it cannot be forked.

A step that needs what another one does in the world, and does not say so, works while it happens to come later. Which
keys of the context a step reads is seen in any run; what it reads in a service is seen when it comes first.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, takewhile
from typing import TYPE_CHECKING

from sagaz_core.errors import StepTimeoutError
from sagaz_core.events import StepStarted, StepSucceeded
from sagaz_core.prove.clean import order_matters
from sagaz_core.prove.outcome import Outcome
from sagaz_core.prove.unordered import fails_out_of_order
from sagaz_core.prove.verdict import Verdict
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence, Set

    from sagaz_core.events import Event
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.unordered import Fight
    from sagaz_core.prove.verdict import Finding
    from sagaz_core.prove.world import World

    Run = Callable[[tuple[str, ...]], Awaitable[Outcome | None]]

Pair = tuple[str, str]
"""Two steps that nothing orders, the one that comes first and the other."""


class OtherOrders:
    """Runs the saga in further orders. `run` runs it in one, and returns `None` when no more may be run.

    `clean` is the run without faults in the engine's own order.
    """

    def __init__(self, clean: Outcome, fights: Iterable[Fight], run: Run) -> None:
        self._clean = clean
        self._model = clean.evidence.model
        self._fights = frozenset(fights)
        self._run = run

    async def explore(self, world: World | None) -> tuple[list[Outcome], str]:
        """Return the runs in which a step fails, one a step, and what there is to say of the worlds that others leave.

        `world` is the one that is put back before each run, if there is one.
        """
        found: dict[str | None, Outcome] = {}
        note = ""
        known = {finding.step for finding in self._clean.findings if finding.verdict is Verdict.OUT_OF_ORDER}
        for order in other_orders(self._model, self._clean.events):
            outcome = await self._run(tuple(order))
            if outcome is None:
                break
            if outcome.status is not SagaStatus.COMPLETED:
                blamed = await self.blamed(outcome)
                if blamed is not None and (key := blamed.evidence.noticed[0].step) not in known:
                    found.setdefault(key, blamed)
            elif world is not None and not note:
                before, after = self._clean.world_after, outcome.world_after
                changes = () if before is None or after is None else world.changes(before, after)
                note = order_matters(changes) if changes else ""
        return list(found.values()), note

    async def blamed(self, outcome: Outcome) -> Outcome | None:
        """Return the run, in which a step failed, with what is to be said of the order; `None` if it is not for that.

        Where more than one step came later than in the clean run, it is a run that fails so too with one of them alone.
        """
        finding = self._says(outcome, self._fights)
        if finding is None or finding.step is None or _waited(outcome):
            return None
        done = _succeeded(outcome.events)
        later = [name for name in takewhile(finding.step.__ne__, _succeeded(self._clean.events)) if name not in done]
        for name in reversed(later if len(later) > 1 else []):
            other = await self._run(tuple(_last(name, self._clean.events, self._model)))
            if other is None:
                break
            # Those behind it come later here too, but were not missed when they alone did.
            instead = self._says(other, {(finding.step, name)})
            if instead is not None and instead.step == finding.step:
                outcome, finding = other, instead
                break
        evidence = replace(outcome.evidence, noticed=(finding,))
        return Outcome(evidence, outcome.world_changes, outcome.reproduce, outcome.exception, outcome.world_after)

    def _says(self, outcome: Outcome, fights: Collection[Fight]) -> Finding | None:
        return fails_out_of_order(self._model, outcome.events, self._clean.events, fights=fights)


def other_orders(model: SagaModel, events: Iterable[Event]) -> Iterator[list[str]]:
    """Iterate orders in which, with what happened in one run, each two of its steps that nothing orders come both ways.

    There are at most as many as there are steps.
    """
    came, ran = _came(events)
    before = model.ancestors
    wanted = {
        pair
        for one, other in combinations([name for name in model.order if name in ran], 2)
        if one not in before[other] and other not in before[one]
        for pair in ((one, other), (other, one))
    } - came
    while wanted:
        order = _showing(wanted, model)
        yield order
        wanted -= {*combinations(order, 2)}


def _came(events: Iterable[Event]) -> tuple[set[Pair], set[str]]:
    """Return which steps had ended when others began, and all that began."""
    came: set[Pair] = set()
    began: set[str] = set()
    done: list[str] = []
    for event in events:
        if isinstance(event, StepSucceeded):
            done.append(event.step)
        elif isinstance(event, StepStarted):
            began.add(event.step)
            came.update((other, event.step) for other in done)
    return came, began


def _showing(wanted: Set[Pair], model: SagaModel) -> list[str]:
    """Return an order that shows many of these pairs, and all of one step that comes as late as it can."""

    def shown(step: str, left: Iterable[str]) -> int:
        return sum(((step, other) in wanted) - ((other, step) in wanted) for other in left)

    late = max(model.order, key=lambda name: sum(pair[1] == name for pair in wanted))
    held = {late, *model.descendants[late]}
    order: list[str] = []
    left = list(model.order)
    while left:
        ready = [name for name in left if model.ancestors[name].isdisjoint(left)]
        chosen = max(ready, key=lambda name: (name not in held, shown(name, left)))
        left.remove(chosen)
        order.append(chosen)
    return order


def _waited(outcome: Outcome) -> bool:
    """Whether the run ended with a step that waited in vain: maybe for one that is to run beside it, and did not."""
    return outcome.evidence.endless is not None or isinstance(outcome.exception, StepTimeoutError)


def _last(step: str, events: Sequence[Event], model: SagaModel) -> list[str]:
    """Return the order of what happened with that step as late as it can be."""
    held = {step, *model.descendants[step]}
    return [*(name for name in _succeeded(events) if name not in held), *(name for name in model.order if name in held)]


def _succeeded(events: Iterable[Event]) -> list[str]:
    return [event.step for event in events if isinstance(event, StepSucceeded)]
