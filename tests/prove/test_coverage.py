"""What counts as covered, and what does not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sagaz_core import Saga, StepRejected, action, compensate, explore
from sagaz_core.errors import DefinitionError
from sagaz_core.faults.kinds import KINDS
from sagaz_core.faults.plan import as_plan
from sagaz_core.prove.coverage import Amount, Coverage, Totals, Way, blind_steps
from sagaz_core.prove.outcome import Outcome
from sagaz_core.prove.saga_coverage import SagaCoverage
from sagaz_core.prove.trial import Subject, run_trial

SECRET = "4111-1111-1111-1111"


class Bank:
    """Remembers what it did under a key, and refuses one that it has undone."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.closed: set[str] = set()


class Sound(Saga):
    """Two steps that nothing harms."""

    saga_name = "shop"

    def __init__(self) -> None:
        super().__init__()
        self.bank = Bank()

    def do(self, key: str) -> None:
        if key in self.bank.closed:
            raise StepRejected("undone before")
        self.bank.done.add(key)

    def undo(self, key: str) -> None:
        self.bank.closed.add(key)
        self.bank.done.discard(key)

    @action("reserve", in_doubt="compensate")
    async def reserve(self, ctx: Any) -> None:
        self.do("reserve")

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        self.undo("reserve")

    @action("charge", timeout=5, in_doubt="compensate")
    async def charge(self, ctx: Any) -> None:
        self.do("charge")

    @compensate("charge")
    async def refund(self, ctx: Any) -> None:
        self.undo("charge")


class Careless(Sound):
    """Leaves the charge behind when its answer is lost."""

    @action("charge")
    async def charge(self, ctx: Any) -> None:
        self.do("charge")


class Talkative(Careless):
    """Says in its errors what nobody should read."""

    @action("charge")
    async def charge(self, ctx: Any) -> None:
        raise RuntimeError(f"card {ctx['card']} was declined")

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        """Undo nothing, and do not say so."""
        raise RuntimeError(f"no such card: {ctx['card']}")


class Pivoted(Sound):
    """Cannot go back once it has charged."""

    @action("charge", pivot=True)
    async def charge(self, ctx: Any) -> None: ...

    @action("ship")
    async def ship(self, ctx: Any) -> None: ...

    @compensate("ship")
    async def recall(self, ctx: Any) -> None: ...


def ran(plan: str, kind: type[Saga] = Sound, **context: Any) -> Outcome:
    return asyncio.run(run_trial(Subject(kind, context, reproduce="pytest --sagaz-plan={plan}"), as_plan(plan or None)))


def asserted(plan: str, kind: type[Saga] = Sound) -> Outcome:
    outcome = ran(plan, kind)
    outcome.assert_sound()
    return outcome


def only(coverage: Coverage) -> SagaCoverage:
    (saga,) = coverage.sagas.values()
    return saga


def test_the_denominator_is_every_pair_that_a_step_can_have() -> None:
    saga = Coverage().saga(ran("").evidence.model)
    of_an_action = {"before", "after", "cancel", "crash", "crash-recorded", "repeat"}
    of_an_undo = {kind for kind in KINDS if kind.startswith("undo-")} - {"undo-hang"}  # the saga gives them no timeout
    expected = {("reserve", kind) for kind in of_an_action | of_an_undo}
    expected |= {("charge", kind) for kind in of_an_action | of_an_undo | {"hang", "late"}}
    assert set(saga.applicable) == expected
    assert saga.reasons["reserve", "hang"].startswith("its action has no timeout")
    assert len(saga.applicable) + len(saga.reasons) == 2 * len(KINDS)


def test_what_an_engine_cannot_have_is_not_in_it() -> None:
    saga = Coverage().saga(ran("").evidence.model, {"crash": "it cannot resume"})
    assert ("reserve", "crash") not in saga.applicable
    assert saga.reasons["reserve", "crash"] == "it cannot resume"


def test_nothing_behind_a_pivot_can_be_undone() -> None:
    saga = Coverage().saga(ran("", Pivoted).evidence.model)
    assert {step for step, kind in saga.applicable if kind.startswith("undo-")} == {"reserve"}
    assert "behind a pivot" in saga.reasons["ship", "undo-fail"]


def test_a_passing_test_that_asserts_covers_its_pair() -> None:
    coverage = Coverage()
    coverage.add_test(asserted("charge@after"), "test_a", passed=True)
    assert only(coverage).proved_by_tests() == {("charge", "after")}
    assert coverage.totals().tests == coverage.totals().proved == 1
    assert coverage.totals().explored == 0


def test_both_faults_of_a_plan_are_covered() -> None:
    coverage = Coverage()
    coverage.add_test(asserted("charge@before+reserve@undo-fail"), "test_a", passed=True)
    assert only(coverage).proved_by_tests() == {("charge", "before"), ("reserve", "undo-fail")}


def test_the_end_of_the_saga_is_no_pair() -> None:
    coverage = Coverage()
    coverage.add_test(asserted("end@before"), "test_a", passed=True)
    coverage.add_test(asserted("reserve@undo-fail"), "test_b", passed=True)  # which implies end@before
    assert only(coverage).tests == {("reserve", "undo-fail")}


@pytest.mark.parametrize(("asserts", "passed"), [(False, True), (True, False)], ids=["asserts nothing", "failed"])
def test_a_test_that_asserts_nothing_or_fails_covers_nothing(asserts: bool, passed: bool) -> None:
    coverage = Coverage()
    coverage.add_test(asserted("charge@after") if asserts else ran("charge@after"), "test_a", passed=passed)
    assert only(coverage).tests == set()
    assert only(coverage).ran == {("charge", "after")}


def test_each_assertion_counts_when_it_holds_and_only_then() -> None:
    for check in ("assert_sound", "assert_compensated", "assert_stuck", "assert_completed"):
        outcome = ran("charge@crash")
        assert not outcome.asserted
        getattr(outcome, check)()
        assert outcome.asserted, check
    outcome = ran("charge@after")
    with pytest.raises(AssertionError):
        outcome.assert_completed()
    assert not outcome.asserted


def test_a_fault_that_never_struck_covers_nothing() -> None:
    outcome = ran("charge#2@before")  # there is no second attempt
    assert outcome.verdict.value == "VACUOUS"
    coverage = Coverage()
    coverage.add_test(outcome, "test_a", passed=True)
    assert only(coverage).ran == only(coverage).tests == set()


def test_an_unsound_run_covers_nothing_although_its_test_passed() -> None:
    outcome = ran("charge@after", Careless)
    outcome.assert_compensated("reserve")  # which holds
    coverage = Coverage()
    coverage.add_test(outcome, "test_a", passed=True)
    saga = only(coverage)
    assert saga.proved() == set()
    assert saga.unsound == {("charge", "after")}
    assert [failure.accepted for failure in saga.failures.values()] == ["the test passed"]


def test_a_pair_that_is_unsound_anywhere_is_proved_nowhere() -> None:
    coverage = Coverage()
    coverage.saga(ran("", Careless).evidence.model).tests.add(("charge", "after"))
    coverage.add_item(ran("charge@after", Careless), "--sagaz-replay=1", "xfail: ticket 12")
    assert only(coverage).proved() == set()
    assert only(coverage).failing_steps() == {"charge"}


def test_an_unsound_pair_behind_the_failing_of_a_pivot_is_the_undone_one() -> None:
    saga = Coverage().saga(ran("", Pivoted).evidence.model)
    failure = next(iter(_failing(ran("charge@after", Careless)).failures.values()))
    for plan in ("charge@before+reserve@undo-repeat", "reserve@after+ship@before"):
        saga.failures[plan, "", ""] = failure._replace(plan=plan)
    assert saga.unsound == {("reserve", "undo-repeat")}


def _failing(outcome: Outcome) -> SagaCoverage:
    coverage = Coverage()
    coverage.add_test(outcome, "test_a", passed=False)
    return only(coverage)


def test_an_exploration_covers_what_it_judged() -> None:
    coverage = Coverage()
    exploration = explore(Sound)
    coverage.add_exploration(exploration, "test_a")
    saga = only(coverage)
    assert saga.proved_by_exploration() == set(saga.applicable)
    assert saga.proved_by_tests() == set()
    assert coverage.totals() == Totals(len(saga.applicable), 0, len(saga.applicable), len(saga.applicable), 0)
    ((way, amount),) = saga.ways.items()
    assert (way.source, way.depth) == ("test_a", 1)
    assert amount == Amount(exploration.plans, exploration.executions, 0)


def test_a_budget_that_ran_out_shows_in_the_numbers() -> None:
    coverage = Coverage()
    exploration = explore(Sound, max_executions=10)
    coverage.add_exploration(exploration, "test_a")
    assert only(coverage).ways.popitem()[1].not_run == len(exploration.not_run.keys() - {"*"}) > 0
    assert coverage.totals().explored < coverage.totals().applicable


def test_an_exploration_that_ran_nothing_adds_nothing() -> None:
    coverage = Coverage()
    coverage.add_exploration(explore(Sound, max_executions=0), "test_a")
    assert coverage.totals().explored == 0


def test_items_of_one_recording_add_up() -> None:
    coverage = Coverage()
    for plan in ("charge@before", "charge@after"):
        coverage.add_item(ran(plan), "--sagaz-replay=1")
    coverage.add_not_run(ran("").evidence.model, "--sagaz-replay=1")
    assert {way.source: amount.plans for way, amount in only(coverage).ways.items()} == {"--sagaz-replay=1": 2}
    assert sum(amount.not_run for amount in only(coverage).ways.values()) == 1


def test_a_step_that_no_witness_saw_is_not_proved() -> None:
    outcome = asserted("charge@crash-recorded")
    outcome.evidence.ledger.entries.clear()  # as of an engine that can be asked, and not watched
    assert blind_steps(outcome.evidence) == {"reserve", "charge"}
    coverage = Coverage()
    coverage.add_item(outcome, "--sagaz-replay=1")
    assert only(coverage).blind == {"reserve", "charge"}
    assert only(coverage).explored == set()


def test_a_world_is_a_witness_too() -> None:
    from sagaz_core import World

    world = World()
    world.fake([], "list")
    outcome = asyncio.run(run_trial(Subject(Sound, {}, world=world)))
    outcome.evidence.ledger.entries.clear()
    assert blind_steps(outcome.evidence) == frozenset()


def test_two_sagas_of_one_name_are_two() -> None:
    coverage = Coverage()
    coverage.add_test(asserted("charge@before"), "test_a", passed=True)
    coverage.add_test(asserted("charge@before", Pivoted), "test_b", passed=True)
    names = list(coverage.sagas)
    assert len(names) == 2
    assert names[0] == "shop"
    assert names[1].startswith("shop (")


def filled() -> Coverage:
    coverage = Coverage()
    coverage.add_test(asserted("charge@before"), "test_a", passed=True)
    coverage.add_test(ran("reserve@before"), "test_b", passed=True)
    coverage.add_test(ran("charge@after", Careless), "test_c", passed=False)
    coverage.add_exploration(explore(Pivoted, kinds="before"), "test_d")
    coverage.incomplete.append("worker gw1 was lost")
    return coverage


def test_it_survives_the_way_to_another_process() -> None:
    data = filled().to_json()
    assert Coverage.from_json(json.loads(json.dumps(data))).to_json() == data
    assert data["complete"] is False


def test_merging_is_the_same_in_any_order() -> None:
    parts = [Coverage(), filled(), Coverage()]
    parts[0].add_test(asserted("charge@crash"), "test_e", passed=True)
    parts[2].add_exploration(explore(Sound, kinds="after"), "test_f")
    results = []
    for order in (parts, parts[::-1]):
        merged = Coverage()
        for part in order:
            merged.merge(Coverage.from_json(part.to_json()))
        results.append(merged.to_json())
    assert results[0] == results[1]
    assert len(results[0]["sagas"]) == 3


def test_what_one_worker_proved_and_another_only_ran_is_proved() -> None:
    one, other = Coverage(), Coverage()
    one.add_test(ran("charge@before"), "test_a", passed=True)
    other.add_test(asserted("charge@before"), "test_b", passed=True)
    one.merge(other)
    assert one.to_json()["sagas"][0]["run_not_checked"] == []
    assert only(one).proved_by_tests() == {("charge", "before")}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"format": "coverage.py"},
        {"sagas": [{}]},
        {"sagas": None},
        {"sagas": [{"tests": ["charge"]}]},
    ],
    ids=str,
)
def test_other_data_is_refused_in_one_line(change: dict[str, Any]) -> None:
    data = filled().to_json()
    if change.get("sagas") and change["sagas"][0]:
        change = {"sagas": [{**data["sagas"][0], **change["sagas"][0]}]}
    with pytest.raises(DefinitionError, match="not the coverage of sagas") as caught:
        Coverage.from_json({**data, **change})
    assert "\n" not in str(caught.value)


def test_a_failure_says_what_failed_and_no_value_of_the_context() -> None:
    coverage = Coverage()
    outcome = ran("reserve@undo-repeat", Talkative, card=SECRET, nested={"list": [SECRET]}, raw=SECRET.encode())
    assert SECRET in outcome.explain()  # or this test tries nothing
    coverage.add_test(outcome, "test_a", passed=False)
    text = json.dumps(coverage.to_json())
    assert SECRET not in text
    (failure,) = only(coverage).failures.values()
    assert failure.reproduce == "pytest --sagaz-plan=reserve@undo-repeat"
    assert "step" in failure.table
    assert "RuntimeError" in failure.table


def test_values_of_the_world_and_of_overrides_are_left_out_too() -> None:
    from sagaz_core import World

    account = {"iban": "DE02120300000000202051", "sum": 1}
    world = World()
    world.fake(account, "account")

    class Thief(Saga):
        @action("take")
        async def take(self, ctx: Any) -> None:
            account.update(iban="GB33BUKB20201555555555", sum=2)

        @compensate("take")
        async def give_back(self, ctx: Any) -> None: ...

    command = "pytest --sagaz-replay=1 --sagaz-plan={plan} '--sagaz-override=pin=12 34'"
    subject = Subject(Thief, {}, world=world, reproduce=command)
    outcome = asyncio.run(run_trial(subject, as_plan("end@before")))
    assert "BUKB" in outcome.explain()
    coverage = Coverage()
    coverage.add_item(outcome, "--sagaz-replay=1")
    (failure,) = only(coverage).failures.values()
    told = json.dumps(failure)
    assert "BUKB" not in told
    assert "DE02" not in told
    assert "account.iban differs" in failure.table
    assert failure.reproduce == "pytest --sagaz-replay=1 --sagaz-plan=end@before --sagaz-override=pin=…"


def test_names_that_are_also_values_stay() -> None:
    coverage = Coverage()
    coverage.add_test(ran("charge@after", Careless, which="charge", shop="shop"), "test_a", passed=False)
    (failure,) = only(coverage).failures.values()
    assert failure.sentence == "the effect of 'charge' was left behind"
    assert "saga 'shop' under charge@after" in failure.table


def test_amounts_add_up() -> None:
    assert Amount(1, 2, 3) + Amount(1, 1, 1) == Amount(2, 3, 4)
    assert Way("a", "b", "c", 1) < Way("a", "b", "c", 2)
