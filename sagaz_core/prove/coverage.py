"""Compensation coverage: which (step, kind) pairs of each saga were tried and judged, by tests and exploration apart.

A pair is a step and a kind of fault that it can have; `undo-*` kinds strike its compensation. It counts where the fault
really struck, the run was judged, and was sound. Everything here is plain data, which workers send and reports show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.adapters.locate import adapters
from sagaz_core.errors import DefinitionError
from sagaz_core.events import StepSucceeded
from sagaz_core.model import END, SagaModel
from sagaz_core.prove.discreet import failure_of
from sagaz_core.prove.exploration import MODES, Exploration
from sagaz_core.prove.saga_coverage import Amount, Pair, SagaCoverage, Totals, Way, saga_from_json, saga_to_json, totals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sagaz_core.prove.evidence import Evidence
    from sagaz_core.prove.outcome import Outcome

FORMAT, VERSION = "sagaz-coverage", 1


class Explored(NamedTuple):
    """What coverage takes from an exploration."""

    model: SagaModel
    engine: str
    checked: frozenset[Pair]
    unsound: frozenset[Pair]
    blind: frozenset[str]
    failures: tuple[Outcome, ...]
    amount: Amount
    mode: str
    reason: str
    depth: int


def facts_of(exploration: Exploration) -> Explored | None:
    """Return what coverage takes from an exploration, or None for one that ran nothing."""
    if not exploration.plans:
        return None
    return Explored(
        exploration.model,
        exploration.engine,
        exploration.checked,
        exploration.unsound,
        frozenset(step for outcome in exploration.outcomes for step in blind_steps(outcome.evidence)),
        exploration.failures,
        Amount(exploration.plans, exploration.executions, max(0, exploration.possible - exploration.plans)),
        exploration.mode,
        exploration.reason or MODES[exploration.mode],
        exploration.depth,
    )


def struck(evidence: Evidence) -> list[Pair]:
    """Return the pairs of the plan whose faults really struck."""
    return [(f.step, f.kind) for f in evidence.plan if f.step != END and f not in evidence.missed]


def blind_steps(evidence: Evidence) -> frozenset[str]:
    """Return the steps that were done, and that neither the ledger nor a world has seen: nothing is proved of them."""
    if evidence.world_changes is not None:
        return frozenset()
    done = (event.step for event in evidence.events if isinstance(event, StepSucceeded))
    return frozenset(step for step in done if not evidence.ledger.touched(step))


class Coverage:
    """The coverage of all sagas of a run. `incomplete` says, a line each, what is missing in it."""

    def __init__(self) -> None:
        self._sagas: dict[str, SagaCoverage] = {}
        self.incomplete: list[str] = []

    @property
    def sagas(self) -> Mapping[str, SagaCoverage]:
        """The sagas by name, in order; of two with one name the later have the model's fingerprint behind it."""
        named: dict[str, SagaCoverage] = {}
        for key in sorted(self._sagas, key=lambda key: (self._sagas[key].model.name, key)):
            saga = self._sagas[key]
            label, count = saga.model.name, 1
            while label in named:
                count += 1
                label = f"{saga.model.name} ({saga.model.fingerprint[:8]}{f'.{count - 1}' if count > 2 else ''})"
            named[label] = saga
        return named

    def totals(self) -> Totals:
        """Return the counts of all sagas together."""
        return totals(self._sagas.values())

    def saga(self, model: SagaModel, cannot: Mapping[str, str] | None = None) -> SagaCoverage:
        """Return the coverage of the saga with this model, which is from now on one that counts."""
        saga = self._sagas.setdefault(repr(model), SagaCoverage(model))
        saga.cannot.update(cannot or {})
        return saga

    def _of(self, model: SagaModel, engine: str) -> SagaCoverage:
        return self.saga(model, next((adapter.cannot for adapter in adapters() if adapter.name == engine), None))

    def add_test(self, outcome: Outcome, source: str, *, passed: bool, accepted: str = "") -> None:
        """Count a run of a hand-written test, which is known to have passed or not."""
        saga, pairs, blind = self._judged(outcome, source, accepted or ("the test passed" if passed else ""))
        counts = passed and outcome.asserted and not outcome.findings
        seen = {pair for pair in pairs if pair[0] not in blind}
        (saga.tests if counts else saga.ran).update(seen)

    def add_item(self, outcome: Outcome, source: str, accepted: str = "") -> None:
        """Count a run of one plan that was tried by itself, and judged, such as an item of `--sagaz-replay`."""
        saga, pairs, blind = self._judged(outcome, source, accepted)
        saga.explored.update(pair for pair in pairs if pair[0] not in blind)
        amount = Amount(1, len(outcome.evidence.ledger.entries))
        way = Way(source, "one by one", "an item a plan", max(1, len(pairs)))
        saga.ways[way] = saga.ways.get(way, Amount(0, 0)) + amount

    def add_not_run(self, model: SagaModel, source: str) -> None:
        """Count a plan that was to be tried by itself, and that the saga's engine cannot have."""
        saga, way = self.saga(model), Way(source, "one by one", "an item a plan", 1)
        saga.ways[way] = saga.ways.get(way, Amount(0, 0)) + Amount(0, 0, 1)

    def _judged(self, outcome: Outcome, source: str, accepted: str) -> tuple[SagaCoverage, list[Pair], frozenset[str]]:
        evidence = outcome.evidence
        saga, blind = self._of(evidence.model, evidence.engine), blind_steps(evidence)
        saga.blind |= blind
        self._fail(saga, (outcome,) if outcome.findings else (), source, accepted)
        return saga, struck(evidence), blind

    def _fail(self, saga: SagaCoverage, outcomes: Iterable[Outcome], source: str, accepted: str = "") -> None:
        for outcome in outcomes:
            failure = failure_of(outcome, source, accepted)
            saga.failures[failure.plan, failure.verdict, source] = failure

    def add_exploration(self, exploration: Exploration, source: str) -> None:
        """Count an exploration: it judges every plan by itself."""
        self._note_incomplete(exploration, source)
        facts = facts_of(exploration)
        if facts is None:
            return
        saga = self._of(facts.model, facts.engine)
        saga.explored |= {pair for pair in facts.checked if pair[0] not in facts.blind}
        saga.ends_badly |= facts.unsound
        saga.blind |= facts.blind
        way = Way(source, facts.mode, facts.reason, facts.depth)
        saga.ways[way] = saga.ways.get(way, Amount(0, 0)) + facts.amount
        self._fail(saga, facts.failures, source)

    def _note_incomplete(self, exploration: Exploration, source: str) -> None:
        if exploration.incomplete:
            self.incomplete.append(f"{source}: saga {exploration.saga_name!r}: {exploration.incomplete}")

    def merge(self, other: Coverage) -> None:
        """Take up what another process knows."""
        for saga in other._sagas.values():
            self.saga(saga.model, saga.cannot).merge(saga)
        self.incomplete += [line for line in other.incomplete if line not in self.incomplete]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data; `from_json` is the inverse. What is there for readers only is worked out."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "complete": not self.incomplete,
            "incomplete": list(self.incomplete),
            "totals": self.totals()._asdict(),
            "sagas": [saga_to_json(label, saga) for label, saga in self.sagas.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Coverage:
        """Build it from `to_json()` data. Raises `DefinitionError` for any other shape or version."""
        try:
            if data["format"] != FORMAT or data["version"] != VERSION:
                raise DefinitionError(f"not the coverage of sagas in version {VERSION}: {data['version']!r:.40}")
            made = cls()
            made.incomplete = [str(line) for line in data["incomplete"]]
            for saga in data["sagas"]:
                read = saga_from_json(saga)
                made.saga(read.model).merge(read)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, DefinitionError):
                raise
            raise DefinitionError(f"not the coverage of sagas: {type(error).__name__} at {error}") from error
        return made
