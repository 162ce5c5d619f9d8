"""`Exploration`: what was tried of a saga, how, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sagaz_core.prove.explain import table
from sagaz_core.prove.outcome import UnsoundError
from sagaz_core.prove.verdict import Verdict

if TYPE_CHECKING:
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.outcome import Outcome

MODES = {
    "merged": "forked between steps, equal states merged",
    "tree": "forked between steps, not merged",
    "packed": "each plan from the start; benign faults at every step at once",
}


def used_up(executions: int) -> str:
    """Say that a budget was."""
    return f"the budget was used up after {executions:,} executions"


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was tried.

    `plans` of at most `depth` faults were covered, of the `possible` ones, by `executions` calls of actions and
    compensations. `orders` are the other ways in which these plans can go and were judged beside: undone oldest first,
    or, when forked, in each other order of the steps, and with each combination of what interrupted siblings had done.
    `failures` are the outcomes that are not sound, the worst first: each thing that is wrong once, with the smallest
    plan that shows it (in `packed` mode each plan that failed).
    `checked` are the pairs of a step and a kind of fault that were tried, of the `applicable` ones; `unsound` those
    whose fault alone ends badly, also where `failures` shows the same under another plan. `blind` are steps
    whose effect no fake of the world shows, so that only the call itself is known. `not_run` has the reason for each
    plan (or part) that was not run; `stopped` says why the search ended before it had tried all. `fails_alone` says how
    the saga ends without any fault if it does not complete, which nobody said that it would. `notes` are what else was
    noticed, a sentence each.
    """

    model: SagaModel
    mode: str
    reason: str = ""
    engine: str = "native"
    depth: int = 1
    plans: int = 0
    possible: int = 0
    executions: int = 0
    orders: int = 0
    outcomes: tuple[Outcome, ...] = ()
    failures: tuple[Outcome, ...] = ()
    checked: frozenset[tuple[str, str]] = frozenset()
    unsound: frozenset[tuple[str, str]] = frozenset()
    applicable: frozenset[tuple[str, str]] = frozenset()
    blind: frozenset[str] = frozenset()
    not_run: Mapping[str, str] = field(default_factory=dict)
    stopped: str = ""
    fails_alone: str = ""
    notes: tuple[str, ...] = ()

    @property
    def saga_name(self) -> str:
        """The saga's name."""
        return self.model.name

    @property
    def coverage(self) -> tuple[int, int]:
        """How many pairs of a step and a kind of fault were tried, and how many there are."""
        return len(self.checked & self.applicable), len(self.applicable)

    @property
    def complete(self) -> bool:
        """Whether all was tried that was asked for."""
        return not self.not_run and self.plans >= self.possible

    @property
    def incomplete(self) -> str:
        """Why the search ended before it had tried all, and how far it came; or `""`."""
        return f"{self.stopped}, {self.plans:,} of {self.possible:,} plans" if self.stopped else ""

    @property
    def unproved(self) -> str:
        """Why less is proved than was asked for although nothing failed, or `""`. A budget that is used up is no such
        reason, unless it was too small for any plan.
        """
        if self.fails_alone:
            return f"not all was tried: {self.fails_alone}; give a context with which it completes"
        return f"nothing was tried: {self.stopped}" if self.stopped and not self.plans else ""

    def summary(self) -> str:
        """Return what was done, in a few lines."""
        done, there_are = self.coverage
        end = ", INCOMPLETE" if self.stopped else ""
        faults = "1 fault" if self.depth == 1 else f"{self.depth} faults"
        share = f"{done}/{there_are}" + (f" ({done / there_are:.0%})" if there_are else "")
        lines = [
            (
                f"saga {self.saga_name!r}: {self.plans:,} of {self.possible:,} plans of at most {faults} by "
                f"{self.executions:,} executions, {len(self.failures)} not sound{end}"
            ),
            f"coverage: {share} of steps and kinds of faults; {self.mode}: {MODES[self.mode]}",
        ]
        if self.orders:
            lines.append(f"judged beside: {self._beside()}")
        if self.reason:
            lines.append(f"why {self.mode}: {self.reason}")
        if self.blind:
            names = ", ".join(name for name in self.model.order if name in self.blind)
            lines.append(f"the world shows nothing of {names}: of them only the calls were judged")
        lines += self.notes
        reasons = (reason.rpartition(" was not run: ")[2] for reason in self.not_run.values())
        lines += [f"not run: {reason}" for reason in dict.fromkeys(reasons)]
        return "\n".join(lines)

    def _beside(self) -> str:
        more = "1 more order" if self.orders == 1 else f"{self.orders:,} more orders"
        if self.mode == "packed":
            return f"{more} of rollback, oldest first"
        return f"{more} of the steps and combinations of interrupted siblings"

    def explain(self) -> str:
        """Return the summary, and a table of the failures, each with its sentence."""
        lines = [self.summary()]
        if self.failures:
            rows = [(str(o.plan) or "no faults", o.verdict.value, o.findings[0].sentence) for o in self.failures]
            lines += ["", *table(("plan", "verdict", "what is wrong"), rows)]
        return "\n".join(lines)

    def assert_sound(self) -> None:
        """Raise the first failure's `UnsoundError`, if there is one, or one that says what is `unproved`."""
        __tracebackhide__ = True
        if self.failures:
            self.failures[0].assert_sound()
        if self.unproved:
            raise UnsoundError(f"{Verdict.VACUOUS.value}: {self.unproved}", self.explain())
