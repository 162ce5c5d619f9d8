"""Trying every failure of a saga, one at a time, each from the start of the saga."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import UsageError
from sagaz_core.faults.kinds import parse_kinds
from sagaz_core.faults.plan import single_fault_plans
from sagaz_core.prove.explain import table
from sagaz_core.prove.trial import NotRunnableError, Subject, describe, reference_reading, run_trial
from sagaz_core.prove.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.world import World


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was tried. `plans` were covered, by `executions` calls of actions and compensations; `not_run` has the
    reason for each plan that the engine cannot have, or that the budget did not reach.
    """

    saga_name: str
    outcomes: tuple[Outcome, ...] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)
    executions: int = 0

    @property
    def plans(self) -> int:
        """How many plans were tried."""
        return len(self.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes that are not sound, the worst first."""
        order = list(Verdict)
        bad = [outcome for outcome in self.outcomes if outcome.findings]
        return tuple(sorted(bad, key=lambda outcome: order.index(outcome.verdict)))

    @property
    def coverage(self) -> tuple[int, int]:
        """How many pairs of an operation and a kind of fault were tried, and how many there are."""
        return self.plans, self.plans + len(self.not_run)

    def explain(self) -> str:
        """Return a table of the failures, each with its sentence."""
        done, there_are = self.coverage
        lines = [f"saga {self.saga_name!r}: {done} of {there_are} plans, {len(self.failures)} not sound"]
        if self.failures:
            rows = [(str(o.plan), o.verdict.value, o.findings[0].sentence) for o in self.failures]
            lines += ["", *table(("plan", "verdict", "what is wrong"), rows)]
        lines += [f"not run: {reason}" for reason in dict.fromkeys(self.not_run.values())]
        return "\n".join(lines)

    def assert_sound(self) -> None:
        """Raise the first failure's `UnsoundError`, if there is one."""
        __tracebackhide__ = True
        if self.failures:
            self.failures[0].assert_sound()


async def aexplore(
    saga: Any,
    context: Mapping[str, Any] | None = None,
    *,
    kinds: str | Iterable[str] = "all",
    depth: int = 1,
    world: World | None = None,
    max_executions: int | None = None,
) -> Exploration:
    """Do what `explore` does, inside a running loop."""
    if depth != 1:
        raise UsageError(f"depth={depth}: this release explores plans of one fault; write depth=1")
    make = _maker(saga)
    subject = Subject(make, dict(context or {}), world=world)
    _, model = await describe(subject)
    reference = await reference_reading(subject)
    saved = world.save() if world is not None and world.restorable else None
    outcomes: list[Outcome] = []
    not_run: dict[str, str] = {}
    executions = 0
    for plan in single_fault_plans(model, parse_kinds(kinds)):
        if max_executions is not None and executions >= max_executions:
            not_run[str(plan)] = f"the budget of {max_executions} executions was used up"
            continue
        try:
            outcome = await run_trial(subject, plan, reference=reference)
        except NotRunnableError as error:
            not_run[str(plan)] = str(error)
            continue
        executions += len(outcome.evidence.ledger.entries)
        outcomes.append(outcome)
        if world is not None and saved is not None:
            world.restore(saved)
    return Exploration(model.name, tuple(outcomes), not_run, executions)


def explore(
    saga: Any,
    context: Mapping[str, Any] | None = None,
    *,
    kinds: str | Iterable[str] = "all",
    depth: int = 1,
    world: World | None = None,
    max_executions: int | None = None,
) -> Exploration:
    """Try every plan of one fault from the start of the saga, each judged with no assertion of yours.

    `saga` is a class, an instance or a factory; `kinds` is `all`, `quick` or a list. The `world`'s fakes are put back
    between the plans. Runs on a virtual clock; raises `RunningLoopError` inside a running loop (use `aexplore`).
    """
    from sagaz_core.virtual_time import run  # the loop is only for those who have none

    return run(aexplore(saga, context, kinds=kinds, depth=depth, world=world, max_executions=max_executions))


def _maker(saga: Any) -> Callable[[], Any]:
    is_factory = callable(saga) and not isinstance(saga, type) and not hasattr(saga, "run")
    return saga if is_factory else lambda: saga
