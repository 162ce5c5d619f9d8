"""The coverage of one saga, as plain data: the pairs that there are, those that were tried, and what was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.errors import DefinitionError
from sagaz_core.faults.kinds import KINDS, why_not
from sagaz_core.faults.plan import FaultPlan, single_fault_plans
from sagaz_core.model import END, SagaModel
from sagaz_core.prove.discreet import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Pair = tuple[str, str]


class Way(NamedTuple):
    """How a saga was explored: by what, in which mode and why, with how many faults at a time."""

    source: str
    mode: str
    reason: str
    depth: int


class Amount(NamedTuple):
    """How much an exploration was: plans that it stands for, actions and compensations that it ran, plans not run."""

    plans: int
    executions: int
    not_run: int = 0

    def __add__(self, other: object) -> Amount:
        if not isinstance(other, Amount):
            return NotImplemented
        return Amount(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@dataclass
class SagaCoverage:
    """One saga. `tests` and `explored` are the pairs that count, `ran` those that tests ran without asserting anything.

    `cannot` has the kinds that its engine cannot have, with the reasons. `blind` steps are those that no witness saw.
    `ends_badly` are pairs that an exploration found unsound, also where its failures show the same under another plan.
    """

    model: SagaModel
    cannot: dict[str, str] = field(default_factory=dict)
    registered: bool = False
    tests: set[Pair] = field(default_factory=set)
    ran: set[Pair] = field(default_factory=set)
    explored: set[Pair] = field(default_factory=set)
    blind: set[str] = field(default_factory=set)
    ways: dict[Way, Amount] = field(default_factory=dict)
    failures: dict[tuple[str, str, str], Failure] = field(default_factory=dict)
    ends_badly: set[Pair] = field(default_factory=set)

    @property
    def applicable(self) -> tuple[Pair, ...]:
        """The pairs that there are, in order of the steps and kinds."""
        return _applicable(self.model, frozenset(self.cannot))

    @property
    def reasons(self) -> Mapping[Pair, str]:
        """For each pair that there is not, why."""
        there_are = set(self.applicable)
        pairs = [(step, kind) for step in self.model.order for kind in KINDS]
        return {pair: self._why_not(*pair) for pair in pairs if pair not in there_are}

    def _why_not(self, step: str, kind: str) -> str:
        behind = "nothing is undone behind a pivot, and it is before none"
        return why_not(KINDS[kind], self.model.step(step)) or self.cannot.get(kind) or behind

    @property
    def unsound(self) -> set[Pair]:
        """The pairs whose fault alone makes a run unsound."""
        shown = (self._alone(failure.plan) for failure in self.failures.values())
        return self.ends_badly.union(pair for pair in shown if pair is not None)

    def _alone(self, text: str) -> Pair | None:
        if text == "none":
            return None
        faults = [fault for fault in FaultPlan.parse(text) if fault.step != END]
        if len(faults) == 2 and faults[1].described.undo and faults[0].kind == "before":
            trigger = self.model.step(faults[0].step)
            faults = faults[1:] if trigger.pivot else faults  # failing a pivot is how what is before it gets undone
        return (faults[0].step, faults[0].kind) if len(faults) == 1 else None

    def proved_by_tests(self) -> set[Pair]:
        """Return the pairs that passing tests asserted, and that nothing shows to be unsound."""
        return (self.tests & set(self.applicable)) - self.unsound

    def proved_by_exploration(self) -> set[Pair]:
        """Return the pairs that exploration judged, and that nothing shows to be unsound."""
        return (self.explored & set(self.applicable)) - self.unsound

    def proved(self) -> set[Pair]:
        """Return both."""
        return self.proved_by_tests() | self.proved_by_exploration()

    def failing_steps(self) -> set[str]:
        """Return the steps that a failure, not an accepted one either, is about: the one to blame, and those struck."""
        found: set[str] = set()
        for failure in self.failures.values():
            faults = () if failure.plan == "none" else FaultPlan.parse(failure.plan)
            found |= {failure.step, *(fault.step for fault in faults)}
        return found & set(self.model.names)

    def merge(self, other: SagaCoverage) -> None:
        """Take up what another process knows of the same saga."""
        self.registered |= other.registered
        self.cannot |= other.cannot
        for mine, theirs in ((self.tests, other.tests), (self.ran, other.ran), (self.explored, other.explored)):
            mine |= theirs
        self.ends_badly |= other.ends_badly
        self.blind |= other.blind
        for way, amount in other.ways.items():
            self.ways[way] = self.ways.get(way, Amount(0, 0)) + amount
        self.failures |= other.failures


@lru_cache(maxsize=256)
def _applicable(model: SagaModel, cannot: frozenset[str]) -> tuple[Pair, ...]:
    plans = single_fault_plans(model, [kind for kind in KINDS if kind not in cannot])
    return tuple((plan.faults[-1].step, plan.faults[-1].kind) for plan in plans if plan.faults[-1].step != END)


class Totals(NamedTuple):
    """Counts of pairs. `proved` is by tests or exploration, or both."""

    applicable: int
    tests: int
    explored: int
    proved: int
    unsound: int

    @property
    def reaches(self) -> float:
        """How many per cent are proved; 0 when there is nothing to prove."""
        return 100 * self.proved / self.applicable if self.applicable else 0.0


def totals(sagas: Iterable[SagaCoverage]) -> Totals:
    """Return the counts of these sagas together."""
    rows = [
        (len(s.applicable), len(s.proved_by_tests()), len(s.proved_by_exploration()), len(s.proved()), len(s.unsound))
        for s in sagas
    ]
    return Totals(*(sum(column) for column in zip(*rows, strict=True))) if rows else Totals(0, 0, 0, 0, 0)


def saga_to_json(label: str, saga: SagaCoverage) -> dict[str, Any]:
    """Return one saga as JSON-able data, under the name that the report gives it."""
    return {
        "name": label,
        "registered": saga.registered,
        "totals": totals([saga])._asdict(),
        "model": saga.model.to_dict(),
        "engine_cannot": saga.cannot,
        "applicable": _written(saga.applicable),
        "cannot_have": {f"{step}@{kind}": reason for (step, kind), reason in saga.reasons.items()},
        "tests": _written(sorted(saga.tests)),
        "run_not_checked": _written(sorted(saga.ran - saga.tests)),
        "exploration": _written(sorted(saga.explored)),
        "unsound": _written(sorted(saga.unsound)),
        "effect_blind": sorted(saga.blind),
        "explorations": [{**way._asdict(), **amount._asdict()} for way, amount in sorted(saga.ways.items())],
        "failures": [failure._asdict() for _, failure in sorted(saga.failures.items())],
    }


def saga_from_json(data: Mapping[str, Any]) -> SagaCoverage:
    """Do the inverse. Raises what any other shape brings, and `DefinitionError`."""
    failures = [Failure(**{name: str(failure[name]) for name in Failure._fields}) for failure in data["failures"]]
    return SagaCoverage(
        SagaModel.from_dict(data["model"]),
        {str(kind): str(reason) for kind, reason in data["engine_cannot"].items()},
        bool(data["registered"]),
        _read(data["tests"]),
        _read(data["run_not_checked"]),
        _read(data["exploration"]),
        {str(step) for step in data["effect_blind"]},
        {
            Way(str(e["source"]), str(e["mode"]), str(e["reason"]), int(e["depth"])): Amount(
                int(e["plans"]), int(e["executions"]), int(e["not_run"])
            )
            for e in data["explorations"]
        },
        {(failure.plan, failure.verdict, failure.source): failure for failure in failures},
        _read(data["unsound"]),
    )


def _written(pairs: Iterable[Pair]) -> list[str]:
    return [f"{step}@{kind}" for step, kind in pairs]


def _read(pairs: Iterable[str]) -> set[Pair]:
    found = set()
    for text in pairs:
        step, at, kind = text.partition("@")
        if not at or kind not in KINDS:
            raise DefinitionError(f"not the coverage of sagas: {text!r:.60} is no pair of a step and a kind")
        found.add((step, kind))
    return found
