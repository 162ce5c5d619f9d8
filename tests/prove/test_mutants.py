"""Mutants of sagas that are sound: each is what it says, leaves the saga as it was, and is found."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from reference_sagas import CORRECT, chains, dag, linear, sync, typed, with_pivot

from sagaz_core import Outcome, Saga, SagaContext, World, action, compensate, explore
from sagaz_core.errors import UsageError
from sagaz_core.faults.kinds import KINDS
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.mutation.facts import Facts, changed_by, survey
from sagaz_core.mutation.operators import OPERATORS, mutants
from sagaz_core.mutation.runners import Tried, explored, one_fault_and_packed, planned
from sagaz_core.mutation.score import NoScoreError, Score, score, shown
from sagaz_core.prove.packed import few_plans, single_plans
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from reference_sagas import Reference

    from sagaz_core.mutation.mutant import Mutant
    from sagaz_core.saga.definition import Definition

SMALL: dict[str, Callable[[], Reference]] = {
    "linear": functools.partial(linear, 3),
    "dag": dag,
    "chains": functools.partial(chains, 2, 2),
    "with_pivot": with_pivot,
    "sync": sync,
    "typed": typed,
}


def all_of(reference: Reference) -> tuple[Saga[Any], list[Mutant]]:
    make, context, world = reference
    return make(), mutants(make(), run(survey(make, context, world)))


def one(reference: Reference, name: str) -> Mutant:
    return next(mutant for mutant in all_of(reference)[1] if str(mutant) == name)


def outcome_of(saga: Any, plan: str, context: dict[str, Any] | None = None) -> Outcome:
    return run(run_trial(Subject(lambda: saga, context or {}), FaultPlan.parse(plan)))


def under(reference: Reference, name: str, **options: Any) -> str:
    """Return the first thing that is wrong with the saga that has this mutant."""
    make, context, world = reference
    mutant = one(reference, name)
    failures = explore(lambda: mutant.apply(make()), context, depth=1, world=world, **options).failures
    return failures[0].findings[0].sentence if failures else ""


@pytest.mark.parametrize("name", CORRECT)
def test_the_sagas_that_mutants_are_made_of_are_sound(name: str) -> None:
    make, context, world = CORRECT[name]()
    assert explore(make, context, depth=1, world=world).failures == ()


@pytest.mark.parametrize("name", SMALL)
def test_every_mutant_is_found_with_no_assertion_written(name: str) -> None:
    make, context, world = SMALL[name]()
    found = score(make, context, world=world)
    assert [str(verdict.mutant) for verdict in found.survivors] == []
    assert found.percent == 100
    assert found.median_runs <= 5
    # What is not counted: a key that is read and not needed, or an edge that forward recovery makes up for.
    assert {v.mutant.operator for v in found.verdicts if v.equal} <= {"drop-key", "stale", "lose-edge"}


@pytest.mark.parametrize("name", ["linear", "dag", "sync", "typed"])
def test_packed_plans_alone_find_nearly_all_of_them_in_few_runs(name: str) -> None:
    make, context, world = CORRECT[name]()
    found = score(make, context, world=world, runner=planned(few_plans))
    steps = len(make().definition().steps)
    assert found.percent >= 95
    assert max(verdict.tried.runs for verdict in found.counted) <= 2 * (2 * steps + 11)
    assert found.median_runs <= 5


def test_every_operator_has_mutants_of_the_reference_saga() -> None:
    operators = [mutant.operator for mutant in all_of(linear(3))[1]]
    assert {name: operators.count(name) for name in OPERATORS} == {
        "skip": 3,
        "twice": 3,
        "wrong-step": 3,
        "swallow": 3,
        "drop-key": 7,  # the order's id of each, and of the later two the customer and the ticket
        "stale": 2,
        "partial-undo": 6,
        "not-idempotent": 3,
        "undo-not-idempotent": 3,
        "lose-edge": 2,
        "needs-result": 3,
    }


def test_their_ids_are_stable_and_different() -> None:
    first, second = ([str(mutant) for mutant in all_of(dag())[1]] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)
    assert {"skip:charge", "wrong-step:charge->reserve", "lose-edge:reserve->charge", "drop-key:ship.customer"} <= set(
        first
    )
    assert "lose-edge:reserve->ship" not in first  # charge and pack imply it


@pytest.mark.parametrize(
    ("mutant", "sentence"),
    [
        ("skip:s1", "the compensation of 's1' does nothing"),
        ("wrong-step:s1->s0", "the compensation of 's1' undoes 's0' in its place"),
        ("partial-undo:s1.1", "the compensation of 's1' does not put desk.stock.s1 right"),
        ("lose-edge:s0->s1", "'s1' does not wait for 's0' any more"),
        ("stale:s1.customer", "the compensation of 's1' sees 'customer' as it was when the saga began"),
    ],
)
def test_each_says_what_it_does(mutant: str, sentence: str) -> None:
    assert one(linear(3), mutant).sentence == sentence


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        ("skip:s1", "desk.stock.s1: 10 -> 9"),
        ("twice:s1", "desk.stock.s1: 10 -> 11"),
        ("wrong-step:s1->s0", "desk.stock.s1: 10 -> 9"),
        ("swallow:s1", "desk.stock.s1: 10 -> 9"),
        ("partial-undo:s1.2", "desk.held.ANN:o1:s1(s0-o1): (nothing) -> 'ANN'"),
        ("undo-not-idempotent:s1", "desk.stock.s1: 10 -> 11"),
        ("stale:s1.customer", "desk.stock.s1: 10 -> 9"),
        ("drop-key:s1.customer", "the compensation of 's1' did not succeed"),
        ("needs-result:s1", "the compensation of 's1' did not succeed"),
    ],
)
def test_each_does_what_it_says(mutant: str, what: str) -> None:
    assert what in under(linear(3), mutant, kinds="before,after")


def test_an_action_that_is_not_idempotent_has_its_effect_twice_when_it_is_delivered_twice() -> None:
    assert "desk.stock.s1: 9 -> 8" in under(linear(3), "not-idempotent:s1", kinds="repeat")
    assert under(linear(3), "not-idempotent:s1", kinds="before") == ""


def test_a_saga_and_its_class_are_as_they_were() -> None:
    make, context, world = typed()
    cls: Any = make
    saga, before = cls(), dict(vars(cls))
    definition = saga.definition()
    for mutant in all_of((make, context, world))[1]:
        mutated = mutant.apply(saga)
        assert type(mutated) is cls
        assert run(mutated.prepare()) is not definition
    assert saga.definition() is definition
    assert dict(vars(cls)) == before
    assert Saga._changes == ()
    assert explore(saga, context, depth=1, world=world).failures == ()


def test_what_build_adds_is_mutated_too() -> None:
    class Built(Saga):
        async def build(self) -> None:
            self.add_step("pay", lambda ctx: None, lambda ctx: undone.append("pay"))

    undone: list[str] = []
    saga = Built()
    skip = next(mutant for mutant in mutants(run(saga.prepare())) if str(mutant) == "skip:pay")
    fresh = Built()
    outcome_of(skip.apply(fresh), "end@before")
    assert undone == []
    outcome_of(fresh, "end@before")
    assert undone == ["pay"]


class _Stock:
    """A fake that does not know what is there: no key, no tombstone."""

    def __init__(self) -> None:
        self.left = 5


class Simple(Saga):
    """Sound where nothing is delivered twice or late."""

    def __init__(self, stock: _Stock) -> None:
        super().__init__()
        self.stock = stock

    @action("take")
    async def take(self, ctx: Any) -> dict[str, int]:
        self.stock.left -= 1
        return {"taken": 1}

    @compensate("take")
    async def give_back(self, ctx: Any) -> None:
        self.stock.left += ctx["taken"]

    @action("tell")
    async def tell(self, ctx: Any) -> None: ...


def simple() -> tuple[Simple, World]:
    stock = _Stock()
    world = World()
    world.fake(stock, "stock")
    return Simple(stock), world


def test_the_kinds_of_faults_say_which_mutants_can_be_found() -> None:
    saga, world = simple()
    found = score(saga, {}, world=world, kinds="before")
    # What differs only after a lost acknowledgement or a second delivery makes no difference here.
    assert found.percent == 100
    equal = [str(verdict.mutant) for verdict in found.verdicts if verdict.equal]
    assert equal == ["not-idempotent:take", "undo-not-idempotent:take", "lose-edge:take->tell", "needs-result:take"]


def test_a_saga_that_is_not_sound_has_no_score() -> None:
    saga, world = simple()
    with pytest.raises(
        UsageError, match=r"^saga 'Simple' is not sound itself, under take@repeat\+tell@repeat: .* a score says "
    ):
        score(saga, {}, world=world)


def test_a_saga_that_does_not_complete_has_no_score() -> None:
    saga = Saga("shop").add_step("pay", lambda ctx: ctx["amount"], lambda ctx: None)
    with pytest.raises(UsageError, match=r"^saga 'shop' ended rolled_back without any fault: KeyError: 'amount'"):
        score(saga)


def test_fakes_that_keep_what_the_last_run_did_are_told_from_a_hazard() -> None:
    make, context, _ = linear(3)
    with pytest.raises(UsageError, match=r"completes once, but not when it is run again .*put its fakes into"):
        score(make, context)


def test_a_control_that_is_not_caught_means_no_score() -> None:
    async def blind(make: Any, context: Any, world: Any) -> Tried:
        return Tried(runs=1)

    make, context, world = linear(3)
    with pytest.raises(NoScoreError, match=r"^no score for saga 'linear': the control, .* was not caught, so the mut"):
        score(make, context, world=world, runner=blind)


def test_nothing_that_can_be_undone_means_no_score() -> None:
    saga = Saga("shop").add_step("tell", lambda ctx: None)
    with pytest.raises(NoScoreError, match=r"or nothing is ever undone$"):
        score(saga)


def test_without_a_world_it_says_what_nobody_can_see() -> None:
    found = score(lambda: Saga("shop").add_step("pay", lambda ctx: {"id": 1}, lambda ctx: ctx["id"]), kinds="before")
    assert {verdict.mutant.operator for verdict in found.survivors} == {"skip", "twice", "swallow", "needs-result"}
    assert [str(verdict.mutant) for verdict in found.counted if verdict.caught] == ["drop-key:pay.id"]
    text = found.explain()
    assert text.startswith("saga 'shop': 1 of 5 mutants caught (20 %), in 1 run (median)")
    assert "nobody notices that the compensation of 'pay' does nothing  (skip:pay)" in text
    assert "without a world only the ledger watches" in text
    assert "to try partial-undo, not-idempotent, undo-not-idempotent." in text


def test_a_world_of_probes_watches_and_cannot_be_made_wrong() -> None:
    saga, _ = simple()
    world = World()
    world.probe("left", lambda: saga.stock.left)
    found = score(saga, {}, world=world, kinds="before")
    assert {v.mutant.operator for v in found.verdicts if v.caught} == {"skip", "twice", "drop-key"}
    assert found.explain().endswith("need a world of fakes, and were not tried.")


def test_the_explorer_can_be_the_judge() -> None:
    make, context, world = linear(3)
    found = score(make, context, world=world, runner=explored(depth=1))
    assert found.percent == 100


def test_only_some_operators() -> None:
    make, context, world = linear(3)
    found = score(make, context, world=world, only=["skip"])
    assert [str(verdict.mutant) for verdict in found.verdicts] == ["skip:s0", "skip:s1", "skip:s2"]
    with pytest.raises(UsageError, match=r"^there is no operator 'skp' \(did you mean 'skip'\?\)"):
        score(make, context, world=world, only=["skp"])


def test_plans_that_find_most_come_first() -> None:
    model = linear(3)[0]().definition().model
    plans = [str(plan) for plan in single_plans(model, KINDS)]
    assert plans[:4] == ["s2@after", "s1@after", "s0@after", "s2@repeat"]
    assert len(plans) == 1 + 3 * 18


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("linear", ["s4@after", "s0@repeat+s1@repeat+s2@repeat+s3@repeat+s4@repeat"]),
        ("with_pivot", ["s2@after", "s0@repeat+s1@repeat+s2@repeat+s3@repeat+s4@repeat"]),
    ],
)
def test_what_finds_most_mutants_is_run_first(name: str, first: list[str]) -> None:
    model = CORRECT[name]()[0]().definition().model
    plans = [str(plan) for plan in one_fault_and_packed()(model)]
    assert plans[:2] == first
    assert plans[2].count("@undo-repeat") == (5 if name == "linear" else 2)
    assert plans[3:5] == (["s3@after", "s2@after"] if name == "linear" else ["s1@after", "s0@after"])
    assert len(set(plans)) == len(plans)


def test_a_mutant_that_fails_without_any_fault_is_said_to_do_so() -> None:
    async def broken(ctx: Any) -> None:
        raise OSError("always")

    saga = Saga("broken").add_step("a", broken, broken).add_step("b", broken, broken)
    found = run(planned(one_fault_and_packed())(lambda: saga, {}, None))
    assert (found.found, found.plan, found.runs) == ("without any fault the saga ended rolled_back", "none", 2)


def test_a_process_dies_once_however_many_steps_run_side_by_side() -> None:
    plans = [str(plan) for plan in few_plans(dag()[0]().definition().model)]
    assert "reserve@crash+charge@crash+ship@crash" in plans
    assert "reserve@repeat+charge@repeat+pack@repeat+ship@repeat" in plans
    assert len(plans) == 10 + 2 * 4


def test_the_world_is_as_it_was_after_a_score() -> None:
    make, context, world = linear(3)
    before = world.save()
    score(make, context, world=world)
    assert world.save() == before


def test_a_survey_leaves_the_context_of_a_run_alone() -> None:
    kinds: list[type] = []

    async def pay(ctx: Any) -> None: ...

    async def refund(ctx: Any) -> None:
        kinds.append(type(ctx))
        assert dict(ctx) == {"a": 1, "b": 2}
        ctx["said"] = ctx.get("a")

    saga = Saga("shop").add_step("pay", pay, refund)
    facts = run(survey(lambda: saga, {"a": 1, "b": 2}, None))
    assert list(facts.read["pay"]) == ["a", "b"]
    assert kinds[0].__name__ == "_Noting"
    assert outcome_of(saga, "end@before", {"a": 1, "b": 2}).context["said"] == 1


def test_reads_are_noted_of_a_context_that_someone_else_watches() -> None:
    class Theirs(SagaContext):
        """Keeps what was asked."""

        def get(self, key: str, default: Any = None) -> Any:
            asked.append(key)
            return super().get(key, default)

    asked: list[str] = []
    facts, context = Facts(), Theirs({"a": 1, "b": 2})
    calls = facts.watching(Saga("shop").add_step("pay", lambda ctx: None, lambda ctx: ctx.get("a")).definition())
    undo = calls.steps["pay"].compensation
    assert undo is not None
    assert undo.function(context) == 1
    assert list(facts.read["pay"]) == asked == ["a"]
    assert type(context) is Theirs


def test_a_sync_function_that_gives_an_awaitable_is_wrapped_too() -> None:
    done: list[str] = []

    async def later(ctx: Any) -> None:
        done.append("undone")

    saga = Saga("shop").add_step("pay", lambda ctx: None, lambda ctx: later(ctx))
    twice = next(mutant for mutant in mutants(saga) if mutant.operator == "twice")
    outcome_of(twice.apply(saga), "end@before")
    assert done == ["undone", "undone"]


def test_an_error_of_a_compensation_goes_through_what_is_around_it() -> None:
    async def refund(ctx: Any) -> None:
        raise ValueError("no")

    saga = Saga("shop").add_step("pay", lambda ctx: None, refund)
    names = {mutant.operator: mutant for mutant in mutants(saga)}
    assert outcome_of(names["twice"].apply(saga), "end@before").stuck == ["pay"]
    assert outcome_of(names["swallow"].apply(saga), "end@before").stuck == []


def test_sagas_of_another_engine_are_refused() -> None:
    pytest.importorskip("sagaz")
    from sagaz.examples.commerce.order_processing.main import OrderProcessingSaga

    with pytest.raises(UsageError, match="mutants are made of sagas of sagaz_core"):
        mutants(OrderProcessingSaga)


def test_a_definition_has_the_mutants_that_need_no_survey() -> None:
    definition: Definition = linear(3)[0]().definition()
    operators = {mutant.operator for mutant in mutants(definition)}
    assert operators == {"skip", "twice", "wrong-step", "swallow", "lose-edge", "needs-result"}


@pytest.mark.parametrize(("percent", "text"), [(100, "100"), (99.96, "100.0"), (0, "0"), (0.2, "0.2"), (66.7, "67")])
def test_a_percentage_says_100_only_of_all(percent: float, text: str) -> None:
    assert shown(percent) == text


def test_no_mutants_are_all_caught() -> None:
    assert Score("shop", ()).percent == 100


def test_what_a_change_makes_of_a_saga_is_worked_out_once() -> None:
    saga = linear(2)[0]()
    skip, twice = (mutant for mutant in mutants(saga.definition(), Facts()) if str(mutant) in ("skip:s0", "skip:s1"))
    once = changed_by(saga, skip.change)
    assert once.definition() is once.definition()
    both = changed_by(once, twice.change)
    changed = [name for name, step in both.definition().steps.items() if step != saga.definition().steps[name]]
    assert changed == ["s0", "s1"]
    once.add_step("more", lambda ctx: None)
    assert list(once.definition().steps) == ["s0", "s1", "more"]
    assert list(saga.definition().steps) == ["s0", "s1"]
