"""The mutation score of the judgement: which mutants `explore` finds, with no assertion written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import SagazError, UsageError, nearest, quoted
from sagaz_core.mutation.facts import native, survey
from sagaz_core.mutation.operators import NEED_WORLD, OPERATORS, control, mutants
from sagaz_core.mutation.places import differences
from sagaz_core.mutation.runners import End, Make, Runner, Tried, Values, one_fault_and_packed, planned
from sagaz_core.prove.explain import table

if TYPE_CHECKING:
    from sagaz_core.mutation.mutant import Mutant
    from sagaz_core.prove.world import World
    from sagaz_core.saga.definition import Definition


class NoScoreError(SagazError):
    """The control was not caught: what the mutants do does not reach the runs, and a score would mean nothing."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant. `equal`: in the world and in the context, each run ended as the saga's own does."""

    mutant: Mutant
    tried: Tried
    equal: bool = False

    @property
    def caught(self) -> bool:
        """Whether it was found."""
        return bool(self.tried.found)


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one saga. Mutants that do nothing else than the saga are not counted."""

    saga_name: str
    verdicts: tuple[Verdict, ...]
    blind: str = ""

    @property
    def counted(self) -> tuple[Verdict, ...]:
        """The mutants that differ from the saga, as far as can be seen."""
        return tuple(verdict for verdict in self.verdicts if not verdict.equal)

    @property
    def survivors(self) -> tuple[Verdict, ...]:
        """The mutants that were not found."""
        return tuple(verdict for verdict in self.counted if not verdict.caught)

    @property
    def percent(self) -> float:
        """How many of 100 were found; 100 if there is none."""
        counted = len(self.counted)
        return 100 * (counted - len(self.survivors)) / counted if counted else 100.0

    @property
    def median_runs(self) -> float:
        """How many runs it took to find a mutant: the median of those found."""
        return median([verdict.tried.runs for verdict in self.verdicts if verdict.caught] or [0])

    def explain(self) -> str:
        """Return a table of the operators, and what nobody noticed."""
        caught = len(self.counted) - len(self.survivors)
        lines = [f"saga {self.saga_name!r}: {caught} of {len(self.counted)} mutants caught ({shown(self.percent)} %)"]
        if caught:
            runs = self.median_runs
            lines[0] += ", in 1 run (median)" if runs == 1 else f", in {runs:g} runs (median)"
        rows = [self._row(operator) for operator in OPERATORS]
        lines += ["", *table(("operator", "caught", "of", "no difference"), [row for row in rows if row])]
        if self.survivors:
            lines += ["", *(f"nobody notices that {v.mutant.sentence}  ({v.mutant})" for v in self.survivors)]
        if self.blind:
            lines += ["", self.blind]
        return "\n".join(lines)

    def _row(self, operator: str) -> tuple[str, ...]:
        mine = [verdict for verdict in self.verdicts if verdict.mutant.operator == operator]
        equal = sum(verdict.equal for verdict in mine)
        if not mine:
            return ()
        return operator, str(sum(verdict.caught for verdict in mine)), str(len(mine) - equal), str(equal or "")


def shown(percent: float) -> str:
    """Return a percentage as text that says 100 only of all, and 0 only of none."""
    rounded = f"{percent:.0f}"
    return f"{percent:.1f}" if rounded in ("0", "100") and percent not in (0, 100) else rounded


async def ascore(
    saga: Any,
    context: Values | None = None,
    *,
    world: World | None = None,
    kinds: str | Iterable[str] = "all",
    runner: Runner | None = None,
    only: Iterable[str] | None = None,
) -> Score:
    """Do what `score` does, inside a running loop."""
    make, given = maker(saga), dict(context or {})
    tried = runner or planned(one_fault_and_packed(kinds))
    wanted = operators_named(only)
    facts = await survey(make, given, world)
    definition = await native(make()).prepare()
    await _check_control(definition, make, given, world, tried)
    sound = await tried(make, given, world)
    if sound.found:
        raise UsageError(f"saga {definition.model.name!r} {_unsound(sound)}")
    verdicts = []
    for mutant in mutants(definition, facts):
        if mutant.operator in wanted:
            result = await tried(_mutated(mutant, make), given, world)
            verdicts.append(_verdict(mutant, result, sound, world))
    return Score(definition.model.name, tuple(verdicts), "" if facts.world is not None else _blind(world))


def score(
    saga: Any,
    context: Values | None = None,
    *,
    world: World | None = None,
    kinds: str | Iterable[str] = "all",
    runner: Runner | None = None,
    only: Iterable[str] | None = None,
) -> Score:
    """Make every mutant of a sound saga, try its failures until it is caught, and return what was caught.

    `saga` is a class, an instance or a factory; `only` limits the operators. A mutant whose every run ends as the
    saga's own does, in the world and in the context, is no mutant and not counted; without a world, that cannot be
    told. Raises `UsageError` for a saga that is not sound, and `NoScoreError` when the control is not caught.
    """
    from sagaz_core.virtual_time import run  # the loop is only for those who have none

    return run(ascore(saga, context, world=world, kinds=kinds, runner=runner, only=only))


def operators_named(names: Iterable[str] | None) -> list[str]:
    """Return the operators of these names; all for `None`. Raises `UsageError` for one that there is not."""
    wanted = list(OPERATORS) if names is None else list(names)
    for name in wanted:
        if name not in OPERATORS:
            raise UsageError(f"there is no operator {name!r}{nearest(name, OPERATORS)}; operators: {quoted(OPERATORS)}")
    return wanted


def maker(saga: Any) -> Make:
    """Return what makes the saga of each run."""
    is_factory = callable(saga) and not isinstance(saga, type) and not hasattr(saga, "run")
    return saga if is_factory else lambda: saga


def _mutated(mutant: Mutant, make: Make) -> Make:
    return lambda: mutant.apply(make())


async def _check_control(
    definition: Definition, make: Make, context: Values, world: World | None, tried: Runner
) -> None:
    mutant = control(definition)
    if not (await tried(_mutated(mutant, make), context, world)).found:
        raise NoScoreError(
            f"no score for saga {definition.model.name!r}: the control, of which {mutant.sentence}, was not caught, "
            f"so the mutants do not reach the runs, or nothing is ever undone"
        )


def _unsound(tried: Tried) -> str:
    if tried.plan == "none":  # the survey was a run like this one
        return (
            f"completes once, but not when it is run again ({tried.found}): put its fakes into the world, "
            f"or give a function that makes the saga and its fakes anew for each run"
        )
    return f"is not sound itself, under {tried.plan}: {tried.found}; only of a sound one a score says something"


def _verdict(mutant: Mutant, result: Tried, sound: Tried, world: World | None) -> Verdict:
    equal = False
    if not result.found and world:
        mask = world.append_only
        # Where an edge is lost, some plans are others.
        equal = all(_same(sound.ends[plan], end, mask) for plan, end in result.ends.items() if plan in sound.ends)
    return Verdict(mutant, result if result.found else replace(result, ends={}), equal)


def _same(one: End, other: End, append_only: frozenset[tuple[str, ...]]) -> bool:
    return one[0] is other[0] and one[2] == other[2] and not differences(one[1], other[1], append_only)


def _blind(world: World | None) -> str:
    needing = ", ".join(NEED_WORLD)
    if not world:
        return (
            f"without a world only the ledger watches: it sees that a compensation returned, not what it did. "
            f"Give one, to see the survivors among skip, twice, wrong-step, swallow and stale, and to try {needing}."
        )
    return f"the world has probes, which cannot be put back: {needing} need a world of fakes, and were not tried."
