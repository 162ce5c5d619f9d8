"""Which faults can strike one operation, one after the other, and how many plans that makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from sagaz_core.faults.kinds import KINDS, why_not
from sagaz_core.faults.plan import Fault
from sagaz_core.model import END, SagaModel, StepModel

ORDER = (
    "after",
    "repeat",
    "crash",
    "flaky-after",
    "before",
    "late",
    "hang",
    "cancel",
    "flaky",
    "crash-recorded",
    "undo-fail-after",
    "undo-repeat",
    "undo-crash",
    "undo-flaky-after",
    "undo-fail",
    "undo-hang",
    "undo-flaky",
    "undo-crash-recorded",
)
"""The kinds, those first that find most."""

_SIMPLICITY = {name: place for place, name in enumerate(KINDS)}
Script = tuple[Fault, ...]


class Scripts:
    """The scripts of faults that the operations of a saga can have; none strikes an action before the step `first`.

    A transient fault can be followed by another at the same operation, until one more has struck than there are
    retries: that one is as good as fatal. A crash ends the script, because another process takes over there.
    """

    def __init__(self, model: SagaModel, kinds: Iterable[str], first: str | None = None) -> None:
        wanted = set(kinds)
        self.model = model
        self._spared = spared(model, first)
        self._kinds = tuple(kind for kind in ORDER if kind in wanted)
        self._cache: dict[tuple[str, bool, int], tuple[Script, ...]] = {}
        ends = self._undone_at_the_end() if "before" in wanted else ()
        self.end = Fault(END, "before") if ends else None
        self.end_counts = any(not step.undone_in_doubt for step in ends)

    def _undone_at_the_end(self) -> Sequence[StepModel]:
        """Return the steps which, once they are done, only a failure of the saga's end undoes.

        A plan of its own is that failure where one of them is not undone in doubt either, and so by no other failure.
        """
        model = self.model
        if any(step.pivot for step in model.steps):
            return ()
        return [step for step in model.steps if step.has_compensation and not model.dependents[step.name]]

    def of(self, step: str, undo: bool, left: int) -> tuple[Script, ...]:
        """Return the scripts of at most this many faults, the shortest first."""
        key = step, undo, left
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = tuple(self._made(step, undo, left))
        return found

    def _made(self, name: str, undo: bool, left: int) -> Iterable[Script]:
        step = self.model.step(name)
        if not undo and name in self._spared:
            return
        kinds = [kind for kind in self._kinds if KINDS[kind].undo is undo and not why_not(KINDS[kind], step)]
        again = [kind for kind in kinds if "flaky" in kind]
        retries = step.compensation_retries if undo else step.retries
        before: list[Script] = [()]
        for length in range(left):
            for script in before:
                for kind in kinds:
                    yield (*script, Fault(name, kind))
            if length >= retries:
                return
            before = [(*script, Fault(name, kind)) for script in before for kind in again]

    def fatal(self, script: Script) -> bool:
        """Whether the operation fails for good under the script."""
        last = script[-1]
        if "flaky" not in last.kind:
            return last.described.fatal
        step = self.model.step(last.step)
        return len(script) > (step.compensation_retries if last.described.undo else step.retries)

    def pairs(self) -> frozenset[tuple[str, str]]:
        """Return every step with every kind that it can have; behind a pivot nothing is undone."""
        behind = behind_pivots(self.model)
        return frozenset(
            (step.name, kind)
            for step in self.model.steps
            for kind in self._kinds
            if not why_not(KINDS[kind], step) and step.name not in (behind if KINDS[kind].undo else self._spared)
        )


def behind_pivots(model: SagaModel) -> frozenset[str]:
    """Return the steps that come after a pivot."""
    return frozenset[str]().union(*(model.descendants[step.name] for step in model.steps if step.pivot))


def spared(model: SagaModel, first: str | None) -> frozenset[str]:
    """Return the steps whose actions no fault strikes when faults begin at the step `first`."""
    return frozenset() if first is None else frozenset(model.names) - model.descendants[first] - {first}


def rank(faults: Sequence[Fault], places: Mapping[str, int]) -> tuple[object, ...]:
    """Return what a plan is sorted by: the fewest faults first, then the simplest kinds, then the earliest steps."""
    return (
        len(faults),
        tuple(_SIMPLICITY[fault.kind] for fault in faults),
        tuple(places.get(fault.step, len(places)) for fault in faults),
    )


def plan_counts(scripts: Scripts, depth: int) -> list[int]:
    """Return how many plans of exactly 0, 1 … `depth` faults the saga has, if each of its steps succeeds by itself.

    Counted over one order of the steps. Source: dynamic programming over (place, what is left to be undone, faults).
    """
    return list(_Counting(scripts, depth).forward(0, depth))


class _Counting:
    def __init__(self, scripts: Scripts, depth: int) -> None:
        self.scripts = scripts
        self.model = scripts.model
        self.order = scripts.model.order
        self.depth = depth
        self.forward = cache(self._forward)
        self.back = cache(self._back)
        self.todo = cache(self._todo)
        self.pivots = [place for place, name in enumerate(self.order) if self.model.step(name).pivot]

    def _zero(self) -> list[int]:
        return [0] * (self.depth + 1)

    def _add(self, into: list[int], counts: Sequence[int], faults: int) -> None:
        for index, count in enumerate(counts[: self.depth + 1 - faults]):
            into[index + faults] += count

    def _forward(self, place: int, left: int) -> tuple[int, ...]:
        total = self._zero()
        if place == len(self.order):
            total[0] = 1
            if left and self.scripts.end_counts:
                self._add(total, self.back(self.todo(place, None), left - 1), 1)
            return tuple(total)
        name = self.order[place]
        self._add(total, self.forward(place + 1, left), 0)
        for script in self.scripts.of(name, False, left):
            spent = len(script)
            last = script[-1]
            if self.scripts.fatal(script):
                if any(pivot < place for pivot in self.pivots):
                    total[spent] += 1
                else:
                    self._add(total, self.back(self.todo(place, name), left - spent), spent)
            elif last.kind == "crash":
                self._add(total, self.forward(place, left - spent), spent)
            else:
                self._add(total, self.forward(place + 1, left - spent), spent)
        return tuple(total)

    def _todo(self, place: int, failed: str | None) -> tuple[str, ...]:
        done = [name for name in reversed(self.order[:place]) if self.model.step(name).has_compensation]
        if failed is not None and self.model.step(failed).undone_in_doubt:
            done.insert(0, failed)
        return tuple(done)

    def _back(self, todo: tuple[str, ...], left: int) -> tuple[int, ...]:
        total = self._zero()
        if not todo:
            total[0] = 1
            return tuple(total)
        name, rest = todo[0], todo[1:]
        self._add(total, self.back(rest, left), 0)
        policy = self.model.on_compensation_failure
        for script in self.scripts.of(name, True, left):
            spent, last = len(script), script[-1]
            after = rest
            if self.scripts.fatal(script):
                if policy == "fail_fast":
                    after = ()
                elif policy == "skip_dependents":
                    after = tuple(other for other in rest if other not in self.model.ancestors[name])
            elif last.kind == "undo-crash":
                after = todo
            self._add(total, self.back(after, left - spent), spent)
        return tuple(total)
