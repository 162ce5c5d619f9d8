"""Every plan of up to k faults: counted by formula, judged as a run from the start is, merged or not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from reference_sagas import CORRECT, chains, dag, linear

from sagaz_core import Saga, SagaConfig, StepRejected, World, action, compensate, explore
from sagaz_core.engine.run import Served
from sagaz_core.errors import DefinitionError, RunningLoopError, UsageError
from sagaz_core.faults.kinds import KINDS
from sagaz_core.faults.plan import Fault, FaultPlan
from sagaz_core.model import SagaModel, StepModel
from sagaz_core.mutation.facts import survey
from sagaz_core.mutation.operators import mutants
from sagaz_core.prove.explorer import aexplore, explore_subject
from sagaz_core.prove.scripts import Scripts, plan_counts
from sagaz_core.prove.search import Search
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.prove.unordered import every_order
from sagaz_core.virtual_time import run

if TYPE_CHECKING:
    from sagaz_core.prove.exploration import Exploration

F, B, R, G, H = 5, 5, 3, 3, 5  # kinds: fatal, benign, benign that re-run the action; fatal, benign in the compensation


def at_most_one(n: int) -> int:
    return 1 + n * (F + B)


def exactly_two(n: int) -> int:
    return n * (n - 1) // 2 * B * (F + B) + n * R * (F + B) + F * (G + H) * n * (n + 1) // 2


def chain_model(n: int, policy: str, retries: int = 2) -> SagaModel:
    steps = [
        StepModel(f"s{i}", (f"s{i - 1}",) if i else (), True, False, 5.0, 5.0, retries, retries, "compensate")
        for i in range(n)
    ]
    return SagaModel("chain", tuple(steps), on_compensation_failure=policy)


def chain(n: int, policy: str = "continue_on_error", *, retries: int = 2) -> tuple[Saga[Any], World]:
    """Steps whose compensations are exact inverses."""
    desk: dict[str, Any] = {"held": {}, "closed": []}
    world = World()
    world.fake(desk, "desk", append_only=["closed"])
    saga: Saga[Any] = Saga("chain", config=SagaConfig(on_compensation_failure=policy))
    for i in range(n):

        async def act(ctx: Any, name: str = f"s{i}", **_: None) -> dict[str, str]:
            if name in desk["closed"]:
                raise StepRejected(f"{name} was undone")
            desk["held"][name] = 1
            return {name: "done"}

        async def undo(ctx: Any, *, name: str = f"s{i}") -> None:
            desk["held"].pop(name, None)
            if name not in desk["closed"]:
                desk["closed"].append(name)

        times = {"timeout": 5.0, "retries": retries, "compensation_timeout": 5.0, "compensation_retries": retries}
        saga.add_step(f"s{i}", act, undo, in_doubt="compensate", **times)  # type: ignore[arg-type]
    return saga, world


def verdicts(exploration: Exploration) -> set[tuple[str, str | None]]:
    return {(f.verdict.value, f.step) for outcome in exploration.failures for f in outcome.findings}


# ---- counts


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
def test_plans_are_counted_by_the_formulas(n: int) -> None:
    for depth, expected in ((0, 1), (1, at_most_one(n)), (2, at_most_one(n) + exactly_two(n))):
        saga, world = chain(n)
        exploration = explore(saga, world=world, depth=depth)
        assert (exploration.plans, exploration.possible, exploration.mode) == (expected, expected, "merged")
        assert exploration.failures == ()


@pytest.mark.parametrize(
    ("n", "depth", "policy", "retries", "plans"),
    [
        (10, 2, "continue_on_error", 2, 4_851),
        (40, 3, "continue_on_error", 2, 10_653_001),
        (40, 4, "fail_fast", 3, 924_904_701),
    ],
)
def test_the_counts_of_large_searches(n: int, depth: int, policy: str, retries: int, plans: int) -> None:
    assert sum(plan_counts(Scripts(chain_model(n, policy, retries), KINDS), depth)) == plans


def test_four_faults_of_a_chain_of_forty_are_covered_one_by_one_in_the_count() -> None:
    saga, world = chain(12, "fail_fast", retries=3)
    exploration = explore(saga, world=world, depth=4)
    assert exploration.plans == sum(plan_counts(Scripts(chain_model(12, "fail_fast", 3), KINDS), 4))
    assert exploration.failures == ()


@pytest.mark.parametrize("n", [5, 10, 20, 40])
def test_one_fault_takes_at_most_twenty_executions_a_step(n: int) -> None:
    saga, world = chain(n)
    assert explore(saga, world=world, depth=1).executions <= 20 * n


@pytest.mark.parametrize("n", [5, 10, 20, 40])
def test_two_faults_take_at_most_ninety_executions_a_step(n: int) -> None:
    saga, world = chain(n, "fail_fast")
    assert explore(saga, world=world, depth=2).executions <= 90 * n


@pytest.mark.parametrize("n", [5, 10, 20])
def test_what_a_stuck_compensation_leaves_makes_two_faults_quadratic(n: int) -> None:
    saga, world = chain(n)
    assert explore(saga, world=world, depth=2).executions <= 90 * n + 2 * n * n


def ways(model: SagaModel, depth: int, *, cancels: bool) -> int:
    """Count, one by one, every plan in every order of steps and with every combination of interrupted siblings."""
    scripts, descendants = Scripts(model, KINDS), model.descendants

    def back(todo: frozenset[str], left: int) -> int:
        count = 0 if todo else 1
        for step in todo:
            if descendants[step] & todo:
                continue
            count += back(todo - {step}, left)
            for script in scripts.of(step, True, left) if left else ():
                count += back(todo if script[-1].kind == "undo-crash" else todo - {step}, left - len(script))
        return count

    def forward(done: frozenset[str], left: int, doubtful: frozenset[str] = frozenset()) -> int:
        """`doubtful` are the steps that a crash has hit, and that another one may overtake."""
        ready = [step.name for step in model.steps if step.name not in done and done.issuperset(step.depends_on)]
        count = 0 if ready else 1
        for step in ready:
            count += forward(done | {step}, left, doubtful)
            for script in scripts.of(step, False, left) if left else ():
                below = left - len(script)
                if scripts.fatal(script):
                    count += back(done | doubtful | {step}, below)
                    if cancels and len(ready) > 1 and len(script) == 1:
                        count += 2 ** (len(ready) - 1) * back(done.union(doubtful, ready), below)
                elif script[-1].kind == "crash":
                    count += forward(done, below, doubtful | {step})
                else:
                    count += forward(done | {step}, below, doubtful)
        return count

    return forward(frozenset(), depth)


SHAPES = {
    "two": {"a": [], "b": []},
    "three": {"a": [], "b": [], "c": []},
    "diamond": {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]},
    "crossed": {"a": [], "b": [], "c": ["a"], "d": ["a", "b"]},
    "chain": {"a": [], "b": ["a"], "c": ["b"]},
}


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_other_orders_and_combinations_of_siblings_are_counted(shape: str, cancels: bool) -> None:
    def saga() -> tuple[Saga[Any], World]:
        desk: dict[str, Any] = {}
        world = World()
        world.fake(desk, "desk")
        config = SagaConfig(on_sibling_failure="cancel" if cancels else "wait")
        made: Saga[Any] = Saga("shape", config=config)
        for name, before in SHAPES[shape].items():
            made.add_step(
                name,
                lambda ctx, name=name: desk.update({name: 1}),
                lambda ctx, name=name: desk.pop(name, None) and None,
                depends_on=before,
                retries=1,
                compensation_retries=1,
                in_doubt="compensate",
            )
        return made, world

    for depth in (0, 1, 2):
        made, world = saga()
        merged = explore(made, world=world, depth=depth)
        assert merged.mode == "merged"
        assert merged.plans + merged.orders == ways(merged.model, depth, cancels=cancels)
        if depth < 2:
            tree = explore(made, world=world, depth=depth, mode="tree")
            assert (tree.plans, tree.orders) == (merged.plans, merged.orders)


def test_other_orders_are_counted_by_what_is_known_to_be_below() -> None:
    make, context, world = chains(4, 3)
    exploration = explore(make, context, world=world, depth=0)
    assert (exploration.plans, exploration.orders) == (1, 369_600 - 1)  # 12! / 3!^4
    assert "beside: 369,599 more orders of the steps and combinations of interrupted siblings" in exploration.summary()


# ---- the same judgement


def plans_of(model: SagaModel, depth: int) -> Iterator[FaultPlan]:
    """Every plan, spelled out: what the counts count."""
    scripts, order = Scripts(model, KINDS), model.order

    def back(todo: tuple[str, ...], left: int) -> Iterator[tuple[Fault, ...]]:
        if not todo:
            yield ()
            return
        yield from back(todo[1:], left)
        for script in scripts.of(todo[0], True, left) if left else ():
            rest = todo[1:]
            if scripts.fatal(script) and model.on_compensation_failure == "fail_fast":
                rest = ()
            elif script[-1].kind == "undo-crash":
                rest = todo
            for below in back(rest, left - len(script)):
                yield script + below

    def forward(place: int, left: int) -> Iterator[tuple[Fault, ...]]:
        if place == len(order):
            yield ()
            return
        yield from forward(place + 1, left)
        for script in scripts.of(order[place], False, left) if left else ():
            last = script[-1]
            if scripts.fatal(script):
                todo = tuple(name for name in reversed(order[: place + 1]) if model.step(name).has_compensation)
                below = back(todo, left - len(script))
            else:
                below = forward(place + (last.kind != "crash"), left - len(script))
            for rest in below:
                yield script + rest

    return (FaultPlan(faults) for faults in forward(0, depth))


async def judged_from_the_start(
    saga: Any, context: Any, world: World, depth: int
) -> tuple[int, dict[tuple[str, Any], FaultPlan]]:
    model = (await saga.prepare()).model
    saved, subject = world.save(), Subject(lambda: saga, context, world=world)
    clean = await run_trial(subject)
    reference, subject = clean.world_after, replace(subject, fights=clean.evidence.fights)
    found: dict[tuple[str, Any], FaultPlan] = {}
    count, not_idempotent = 0, set()
    for plan in sorted(plans_of(model, depth), key=lambda plan: len(plan.faults)):
        world.restore(saved)
        outcome = await run_trial(subject, plan, reference=reference)
        if outcome.evidence.missed:
            continue  # its step failed by itself, so that the fault is none of this saga
        count += 1
        for finding in outcome.findings:
            key = (finding.verdict.value, finding.step)
            if key[0] == "NOT_IDEMPOTENT":
                not_idempotent.add(plan.faults)
                if plan.faults[1:] in not_idempotent:
                    continue  # the first fault, which is the one that is blamed, is not needed for it
            found.setdefault(key, plan)
    world.restore(saved)
    return count, found


def all_mutants(reference: Any) -> list[Any]:
    make, context, world = reference
    return [mutant.apply(make()) for mutant in mutants(make(), run(survey(make, context, world)))]


def test_a_merged_search_finds_what_every_plan_run_from_the_start_finds() -> None:
    make, context, world = linear(2)
    sagas = [make(), *all_mutants((make, context, world))]
    assert len(sagas) > 15
    for saga in sagas:
        exploration = explore(saga, context, world=world, depth=2)
        plans, from_start = run(judged_from_the_start(saga, context, world, 2))
        assert exploration.mode == "merged"
        assert exploration.plans == plans
        if not exploration.model.linear:  # of a lost edge the search tries every order, a run only one
            assert exploration.failures
            assert verdicts(exploration) >= {key for key in from_start if key[0] != "NOT_IDEMPOTENT"}
            continue
        assert verdicts(exploration) == set(from_start)
        smallest = {key: len(plan.faults) for key, plan in from_start.items()}
        for outcome in exploration.failures:
            for finding in outcome.findings:
                key = (finding.verdict.value, finding.step)
                smallest[key] = min(smallest[key], len(outcome.plan.faults))
        assert smallest == {key: len(plan.faults) for key, plan in from_start.items()}


@pytest.mark.parametrize("reference", [lambda: linear(3), dag], ids=["linear", "dag"])
def test_merging_changes_no_verdict(reference: Any) -> None:
    make, context, world = reference()
    for saga in all_mutants((make, context, world)):
        merged = explore(saga, context, world=world, depth=1)
        tree = explore(saga, context, world=world, depth=1, mode="tree")
        assert verdicts(merged) == verdicts(tree)
        assert merged.plans == tree.plans
        assert {str(o.plan) for o in merged.failures} == {str(o.plan) for o in tree.failures}
        assert tree.mode == "tree"


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_saga_raises_no_alarm(name: str) -> None:
    make, context, world = chains(2, 3) if name == "chains" else CORRECT[name]()
    before = world.save()
    exploration = explore(make, context, world=world, depth=2)
    assert (exploration.mode, exploration.failures, exploration.complete) == ("merged", (), True)
    assert exploration.coverage[0] == exploration.coverage[1]
    assert world.save() == before  # put back


def test_parallel_chains_are_explored_as_sets_of_steps() -> None:
    make, context, world = chains(4, 3)
    exploration = explore(make, context, world=world, depth=1)
    assert exploration.failures == ()
    assert exploration.plans == at_most_one(12)


@pytest.mark.parametrize(
    ("width", "depth", "cancels", "every"),
    [(10, 1, False, True), (11, 1, False, False), (8, 2, False, True), (9, 2, False, False), (6, 2, True, True)],
)
def test_every_order_is_tried_where_there_are_not_too_many(width: int, depth: int, cancels: bool, every: bool) -> None:
    steps = [StepModel(f"s{i}", (), True, False, 5.0, 5.0, 0, 0, "compensate") for i in range(width)]
    assert every_order(SagaModel("wide", tuple(steps)), depth, cancels=cancels) is every


def test_where_two_orders_were_tried_the_report_says_so() -> None:
    saga, world = wide(5)
    assert "orders: two were tried" not in explore(saga, world=world, depth=2, kinds="before").summary()
    saga, world = wide(5, "cancel")
    assert (
        "too many orders: two were tried, with the first and with the last"
        in explore(saga, world=world, depth=3, kinds="before").summary()
    )


def wide(width: int, on_sibling_failure: str = "wait") -> tuple[Saga[Any], World]:
    """Return a saga of steps that nothing orders, and its world."""
    desk: dict[str, int] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("wide", config=SagaConfig(on_sibling_failure=on_sibling_failure))
    for name in "abcdefgh"[:width]:
        saga.add_step(
            name,
            lambda ctx, name=name: desk.update({name: 1}),
            lambda ctx, name=name: desk.pop(name, None) and None,
            depends_on=[],
            in_doubt="compensate",
        )
    return saga, world


def test_what_is_reported_is_the_smallest_plan() -> None:
    def forgets(ctx: Any) -> None: ...

    broken: Saga[Any] = Saga("broken")
    desk: dict[str, Any] = {}
    seen = World()
    seen.fake(desk, "desk")
    broken.add_step("a", lambda ctx: desk.update(a=1), forgets)
    broken.add_step("b", lambda ctx: desk.update(b=1), lambda ctx: desk.pop("b", None), in_doubt="compensate")
    plans = [str(outcome.plan) for outcome in explore(broken, world=seen, depth=3).failures]
    assert plans
    assert all(len(plan) <= 80 and plan.count("+") <= 1 for plan in plans)


# ---- what keeps it honest


def shop(action: Any, undo: Any = None, **more: Any) -> tuple[Saga[Any], World, dict[str, Any]]:
    desk: dict[str, Any] = {"n": 0}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("shop")
    saga.add_step("a", lambda ctx: action(desk, ctx), None if undo is None else lambda ctx: undo(desk, ctx), **more)
    saga.add_step("b", lambda ctx: None)
    return saga, world, desk


@pytest.mark.parametrize("mode", ["merged", "packed"])
def test_recorded_steps_that_were_not_run_are_no_reference_for_those_that_are(mode: str) -> None:
    saga, world, _ = shop(lambda desk, ctx: desk.update(n=1), lambda desk, ctx: desk.update(n=0), in_doubt="compensate")
    search = Search(tuple(KINDS), 1, mode, recorded={name: Served(name, None) for name in "ab"})
    exploration = run(explore_subject(Subject(lambda: saga, {}, world=world), search))
    assert {(str(o.plan), o.verdict.value) for o in exploration.failures if o.plan.faults[0].step == "a"} == set()


def test_two_runs_that_differ_are_not_merged_and_the_first_difference_is_named() -> None:
    counter = iter(range(1000))
    saga, world, _ = shop(lambda desk, ctx: {"n": next(counter)})
    exploration = explore(saga, world=world)
    assert exploration.mode == "tree"
    assert "two runs without faults differ, first at: 'do a" in exploration.reason


def test_hidden_state_is_found_by_running_merged_plans_again() -> None:
    hidden: dict[str, int] = {"undone": 0}

    def act(desk: Any, ctx: Any) -> None:
        desk["n"] = 1

    def undo(desk: Any, ctx: Any) -> None:
        hidden["undone"] += 1
        if hidden["undone"] % 2:
            desk["n"] = 0

    saga, world, _ = shop(act, undo, in_doubt="compensate", retries=2)
    for i in range(8):
        saga.add_step(f"c{i}", lambda ctx: None, lambda ctx: None, in_doubt="compensate", retries=2)
    exploration = explore(saga, world=world, depth=2)
    assert exploration.mode == "tree"
    assert "something that the steps see is not in the world or the context" in exploration.reason


def test_a_saga_that_fails_by_itself_is_merged_all_the_same() -> None:
    def breaks(ctx: Any) -> None:
        raise ValueError("always")

    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("breaks")
    saga.add_step("a", lambda ctx: desk.update(a=1), lambda ctx: desk.pop("a", None) and None, in_doubt="compensate")
    saga.add_step("b", breaks)
    exploration = explore(saga, world=world)
    assert (exploration.mode, exploration.reason, exploration.failures) == ("merged", "", ())
    assert exploration.plans <= exploration.possible
    assert set(exploration.not_run.values()) == {"without faults the saga ends rolled_back at 'b' (ValueError: always)"}


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("kinds", ["before", "all"])
@pytest.mark.parametrize("mode", ["merged", "tree", "packed"])
def test_a_saga_that_fails_by_itself_is_not_said_to_be_sound(mode: str, kinds: str, failing: int) -> None:
    def breaks(ctx: Any) -> None:
        raise ValueError("always")

    world = World()
    world.fake({}, "desk")
    saga: Saga[Any] = Saga("breaks")
    for place, name in enumerate("ab"):
        saga.add_step(name, breaks if place == failing else lambda ctx: None, lambda ctx: None, in_doubt="compensate")
    exploration = explore(saga, world=world, mode=mode, kinds=kinds, depth=1)
    assert (exploration.failures, exploration.complete) == ((), False)
    step = "ab"[failing]
    assert exploration.fails_alone == f"without faults the saga ends rolled_back at '{step}' (ValueError: always)"
    with pytest.raises(AssertionError, match=r"^VACUOUS: not all was tried: without faults the saga ends rolled_back"):
        exploration.assert_sound()


@pytest.mark.parametrize("mode", ["merged", "packed"])
def test_one_that_was_recorded_to_fail_there_is_sound_as_far_as_it_gets(mode: str) -> None:
    def breaks(ctx: Any) -> None:
        raise ValueError("always")

    world = World()
    world.fake({}, "desk")
    saga: Saga[Any] = Saga("breaks").add_step("a", breaks, lambda ctx: None, in_doubt="compensate")
    for fails_at, sound in (("a", True), ("b", False)):
        subject = Subject(lambda: saga, {}, world=world, fails_at=fails_at)
        exploration = run(explore_subject(subject, Search(("before",), 1, mode)))
        assert (exploration.unproved == "") is sound


def test_a_benign_fault_is_not_blamed_for_what_recorded_steps_have_not_done_here() -> None:
    def make() -> Saga[Any]:
        shelf: dict[str, int] = {}
        saga: Saga[Any] = Saga("shelf")
        saga.add_step("fill", lambda ctx: shelf.update(box=1), lambda ctx: shelf.clear())
        saga.add_step("note", lambda ctx: None)
        return saga.add_step("take", lambda ctx: shelf["box"] and None)

    recorded = {name: Served(name, None) for name in ("fill", "note", "take")}
    search = Search(("repeat",), 1, "packed", recorded=recorded)
    exploration = run(explore_subject(Subject(make, {}), search))
    assert exploration.failures == ()
    assert exploration.notes == ()  # no run is compared with one that is served what was recorded
    assert exploration.not_run == {
        "take@repeat": "no run got to where take@repeat strikes",
        "note@repeat": "with the steps before it as recorded, without faults the saga ends rolled_back at 'take' "
        "(KeyError: 'box'): give a world that has what they did",
    }


def test_a_budget_that_was_too_small_for_any_plan_proves_nothing() -> None:
    saga: Saga[Any] = Saga("small").add_step("a", lambda ctx: None)
    exploration = explore(saga, max_executions=0)
    assert (exploration.plans, exploration.failures) == (0, ())
    with pytest.raises(AssertionError, match=r"^VACUOUS: nothing was tried: the budget was used up after 0 executions"):
        exploration.assert_sound()


def past_a_pivot(act: Any) -> tuple[Saga[Any], World]:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("past").add_step("p", lambda ctx: desk.update(p=1), lambda ctx: desk.clear(), pivot=True)
    return saga.add_step("q", lambda ctx: act(desk)), world


def refuse_a_second_delivery(desk: dict[str, Any]) -> None:
    if "q" in desk:
        raise RuntimeError("there is one")
    desk["q"] = 1


@pytest.mark.parametrize("mode", ["merged", "tree", "packed"])
def test_a_benign_fault_behind_a_pivot_that_the_saga_does_not_get_over_is_found(mode: str) -> None:
    saga, world = past_a_pivot(refuse_a_second_delivery)
    assert ("NOT_IDEMPOTENT", "q") in verdicts(explore(saga, world=world, depth=1, mode=mode))


@pytest.mark.parametrize("mode", ["merged", "tree", "packed", "auto"])
def test_a_benign_fault_is_not_blamed_for_a_step_that_fails_by_itself(mode: str) -> None:
    def fails(desk: dict[str, Any]) -> None:
        raise OSError("always")

    saga, world = past_a_pivot(fails)
    exploration = explore(saga, world=world, depth=1, mode=mode)
    assert exploration.mode == (mode if mode != "auto" else "merged")
    assert "NOT_IDEMPOTENT" not in {verdict for verdict, _ in verdicts(exploration)}
    assert exploration.not_run["*"] == "without faults the saga ends failed at 'q' (OSError: always)"


def test_an_action_that_refuses_a_second_delivery_does_not_keep_a_search_from_merging() -> None:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("refuses")
    for name in "ab":

        async def act(ctx: Any, *, name: str = name) -> None:
            if name == "b" and "b" in desk:
                raise RuntimeError("there is one")
            desk[name] = 1

        async def undo(ctx: Any, *, name: str = name) -> None:
            desk.pop(name, None)

        saga.add_step(name, act, undo, in_doubt="compensate", retries=1)
    exploration = explore(saga, world=world, depth=1)
    assert (exploration.mode, exploration.reason) == ("merged", "")
    assert verdicts(exploration) == {("NOT_IDEMPOTENT", "b")}


class Noted(BaseModel):
    note: str = ""
    first: int = 0
    second: int = 0
    undone: str = ""


def notes_each_delivery(context: Any) -> tuple[Saga[Any], World, dict[str, Any]]:
    """The desk shows what the last delivery of each operation was given, and `b` what the last of `a` has left."""
    desk: dict[str, Any] = {"times": 0}
    world = World()
    world.fake(desk, "desk", append_only=["times"])

    class Notes(Saga[context]):  # type: ignore[valid-type]
        saga_name = "notes"

        @action("a", in_doubt="compensate")
        async def act(self, ctx: Any) -> None:
            desk["seen"] = dump(ctx)
            desk["times"] += 1
            put(ctx, "note", "written")
            put(ctx, "first" if desk["times"] == 1 else "second", 1)

        @compensate("a")
        async def undo(self, ctx: Any) -> None:
            desk["undoing"] = dump(ctx)
            put(ctx, "undone", "a")

        @action("b")
        async def look(self, ctx: Any) -> None:
            desk["left"] = dump(ctx)

    def dump(ctx: Any) -> dict[str, Any]:
        return dict(ctx) if context is dict else ctx.model_dump()

    def put(ctx: Any, key: str, value: Any) -> None:
        ctx.update({key: value}) if context is dict else setattr(ctx, key, value)

    return Notes(), world, desk


@pytest.mark.parametrize("context", [dict, Noted])
def test_a_second_delivery_is_given_what_the_first_was_and_its_writes_are_kept(context: Any) -> None:
    saga, world, desk = notes_each_delivery(context)
    assert (
        run(run_trial(Subject(lambda: saga, {"note": ""}, world=world), FaultPlan.parse("a@repeat"))).status
        == "completed"
    )
    assert (desk["seen"]["note"], desk["left"].get("first", 0), desk["left"]["second"]) == ("", 0, 1)
    run(run_trial(Subject(lambda: saga, {"note": ""}, world=world), FaultPlan.parse("a@undo-repeat")))
    assert not desk["undoing"].get("undone")


@pytest.mark.parametrize("context", [dict, Noted])
def test_a_second_delivery_leaves_the_same_in_a_run_and_in_a_search(context: Any) -> None:
    found = []
    for mode in ("packed", "tree", "merged"):
        saga, world, _ = notes_each_delivery(context)
        exploration = explore(saga, {"note": ""}, world=world, depth=1, kinds="repeat", mode=mode)
        found.append({str(one.plan): one.world_after for one in exploration.failures})
    assert found[0] == found[1] == found[2]
    left = found[0]["a@repeat"]["desk"]["left"]
    assert (left["note"], left.get("first", 0), left["second"]) == ("written", 0, 1)


def test_a_world_that_cannot_be_copied_is_named_and_the_plans_run_from_the_start() -> None:
    saga, _, _ = shop(lambda desk, ctx: None)

    class Fake:
        def __init__(self) -> None:
            self.state = {"n": 0}

        def snapshot(self) -> Any:
            return {"n": self.state["n"], "odd": print}

        def restore(self, state: Any) -> None:
            self.state["n"] = state["n"]

    seen = World()
    seen.fake(Fake(), "fake")
    exploration = explore(saga, world=seen)
    assert exploration.mode == "packed"
    assert "the world cannot be copied: fake" in exploration.reason


def test_a_fake_that_cannot_be_copied_is_named_and_the_calls_are_judged_without_it() -> None:
    saga, world, desk = shop(lambda desk, ctx: None, lambda desk, ctx: None)
    desk["lock"] = threading.Lock()
    exploration = explore(saga, world=world, kinds="after")
    assert exploration.mode == "packed"
    assert exploration.reason == (
        "the fake 'desk' cannot be copied (TypeError: cannot pickle '_thread.lock' object): "
        "give it snapshot() and restore(state); until then only the calls are judged"
    )
    assert ("ORPHAN", "a") in verdicts(exploration)
    with pytest.raises(UsageError, match=r"^mode='merged': the fake 'desk' cannot be copied"):
        explore(saga, world=world, mode="merged")


def test_a_result_that_holds_itself_is_named() -> None:
    circle: list[Any] = []
    circle.append(circle)
    saga, world, _ = shop(lambda desk, ctx: {"circle": circle})
    exploration = explore(saga, world=world, kinds="before")
    assert exploration.mode == "packed"
    assert "a value that contains itself cannot be stored" in exploration.reason


def test_a_fake_that_does_not_take_its_own_state_is_named() -> None:
    class Lying:
        def __init__(self) -> None:
            self.n = 0

        def snapshot(self) -> int:
            return self.n

        def restore(self, state: int) -> None: ...

    fake, world = Lying(), World()
    world.fake(fake, "stock")

    def act(ctx: Any) -> None:
        fake.n += 1

    saga: Saga[Any] = Saga("s")
    saga.add_step("a", act, lambda ctx: None)
    exploration = explore(saga, world=world)
    assert exploration.mode == "packed"
    assert "the fake 'stock' is not what it was after its own state was put back" in exploration.reason


def test_a_context_that_cannot_be_copied_is_named() -> None:
    saga, world, _ = shop(lambda desk, ctx: {"lock": threading.Lock()})
    exploration = explore(saga, world=world)
    assert exploration.mode == "packed"
    assert "what step 'a' leaves cannot be kept" in exploration.reason


def test_a_saga_that_keeps_state_on_itself_is_named() -> None:
    class Keeps(Saga[Any]):
        saga_name = "keeps"

        async def build(self) -> None:
            self.add_step("a", self.act, lambda ctx: None)

        def act(self, ctx: Any) -> None:
            self.last = object()

    desk: dict[str, int] = {}
    world = World()
    world.fake(desk, "desk")
    exploration = explore(Keeps(), world=world)
    assert exploration.mode == "packed"
    assert "self.last" in exploration.reason


def test_without_a_world_the_reason_says_how_to_get_more() -> None:
    saga, _, _ = shop(lambda desk, ctx: None)
    exploration = explore(saga)
    assert (exploration.mode, exploration.depth) == ("packed", 1)
    assert "give a world made of fakes" in exploration.reason
    world = World()
    world.probe("n", lambda: 0)
    assert "the world has probes (n)" in explore(saga, world=world).reason


def test_a_mode_that_the_saga_cannot_have_is_refused_with_the_reason() -> None:
    saga, _, _ = shop(lambda desk, ctx: None)
    with pytest.raises(UsageError, match=r"^mode='merged': no world was given"):
        explore(saga, mode="merged")


def test_a_search_that_is_cancelled_ends() -> None:
    async def slow(ctx: Any) -> None:
        await asyncio.sleep(10)

    _, world, _ = shop(lambda desk, ctx: None)
    saga: Saga[Any] = Saga("slow")
    saga.add_step("a", slow, retries=2)

    async def main() -> None:
        async with asyncio.timeout(25):
            await aexplore(saga, world=world)

    with pytest.raises(TimeoutError):
        run(main())


def test_a_compensation_that_was_tried_first_is_not_out_of_order_when_it_is_tried_again() -> None:
    saga, world = chain(3)
    plan = FaultPlan.parse("s2@before+s1@undo-flaky:3+s0@undo-crash-recorded")
    assert run(run_trial(Subject(lambda: saga, world=world), plan)).findings == ()


def test_a_lost_edge_is_found_without_any_fault() -> None:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("unordered")
    saga.add_step("a", lambda ctx: {"token": 1}, depends_on=[])
    saga.add_step("b", lambda ctx: {"seen": ctx.get("token")}, depends_on=[])
    found = [f for o in explore(saga, world=world, depth=0).failures for f in o.findings]
    assert [f.sentence for f in found] == ["'b' reads 'token', which 'a' writes, and nothing says which comes first"]


def test_a_sibling_that_is_cancelled_may_have_had_its_effect() -> None:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")

    def beside(policy: str, in_doubt: str) -> Saga[Any]:
        saga: Saga[Any] = Saga("beside", config=SagaConfig(on_sibling_failure=policy))
        saga.add_step("fails", lambda ctx: None, depends_on=[])
        saga.add_step(
            "works",
            lambda ctx: desk.update(works=1),
            lambda ctx: desk.pop("works", None),
            depends_on=[],
            in_doubt=in_doubt,  # type: ignore[arg-type]
        )
        return saga

    def orphans(saga: Saga[Any]) -> set[tuple[str, str]]:
        failures = explore(saga, world=world, depth=1, kinds=["before"]).failures
        return {(str(o.plan), orphan) for o in failures for orphan in o.orphans}

    assert orphans(beside("wait", "ignore")) == set()
    assert orphans(beside("cancel", "ignore")) == {("fails@before", "works")}
    assert orphans(beside("cancel", "compensate")) == set()


def test_a_compensation_that_reads_what_others_returned_keeps_its_states_apart() -> None:
    desk: dict[str, Any] = {"log": 0}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("reads")

    def undo_first(ctx: Any) -> None:
        desk["log"] = len(ctx.compensation_results)  # not what it was: how many came before it

    saga.add_step("a", lambda ctx: None, undo_first)
    saga.add_step("b", lambda ctx: None, lambda ctx: "undone")
    saga.add_step("c", lambda ctx: None, lambda ctx: "undone")
    exploration = explore(saga, world=world, depth=2)
    assert exploration.mode == "merged"
    changes = {str(change) for o in exploration.failures for change in o.world_changes}
    assert changes  # b failed: nothing was undone before a; c failed: b was
    assert "LIE" in {o.verdict.value for o in exploration.failures}


# ---- budgets, and what failed before


def undone_in_any_order(bad: str) -> tuple[Saga[Any], World]:
    """A saga whose root cannot be undone when both others are, `bad` last: each leaves its name in the context."""
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("any-order")
    for name in ("root", "x", "y"):

        async def act(ctx: Any, *, name: str = name) -> None:
            desk[name] = 1

        async def undo(ctx: Any, *, name: str = name) -> None:
            if name != "root":
                ctx["last"] = name
                desk["undone"] = desk.get("undone", 0) + 1
            elif ctx.get("last") == bad and desk.pop("undone", 0) == 2:
                raise RuntimeError(f"{bad} came last")
            desk.pop(name, None)

        depends = [] if name == "root" else ["root"]
        saga.add_step(name, act, undo, depends_on=depends, in_doubt="compensate", compensation_retries=0)
    return saga, world


@pytest.mark.parametrize("mode", ["merged", "tree"])
@pytest.mark.parametrize("bad", ["x", "y"])
def test_which_compensation_wrote_a_key_last_keeps_states_apart(bad: str, mode: str) -> None:
    saga, world = undone_in_any_order(bad)
    exploration = explore(saga, world=world, depth=1, mode=mode)
    assert {("STUCK", "root"), ("CONTEXT_LEAK", "x"), ("CONTEXT_LEAK", "y")} <= verdicts(exploration)


def test_a_budget_of_executions_is_exact_and_says_how_far_it_came() -> None:
    saga, world = chain(5)
    whole = explore(saga, world=world, depth=2)
    saga, world = chain(5)
    part = explore(saga, world=world, depth=2, max_executions=whole.executions // 2)
    assert part.executions == whole.executions // 2
    assert 0 < part.plans < whole.plans
    assert not part.complete
    assert "the budget was used up" in part.summary()


@pytest.mark.parametrize("mode", ["merged", "tree"])
def test_wherever_a_budget_ends_what_was_found_by_then_is_shown(mode: str) -> None:
    def explored(make: Any, budget: int | None) -> Exploration:
        saga, world = make()
        return explore(saga, world=world, mode=mode, max_executions=budget)

    for make in (lambda: undone_in_any_order("x"), lambda: past_a_pivot(refuse_a_second_delivery)):
        whole = explored(make, None)
        assert verdicts(whole)
        for budget in range(1, whole.executions, 1 + whole.executions // 25):
            part = explored(make, budget)
            assert {verdict for verdict, _ in verdicts(part)} <= {verdict for verdict, _ in verdicts(whole)}
            assert not part.complete


def test_plans_that_failed_before_are_run_first() -> None:
    saga, world, _ = shop(lambda desk, ctx: desk.update(n=1), lambda desk, ctx: None)
    search = Search(
        tuple(KINDS), 1, max_executions=5, known=[FaultPlan.parse("b@before"), FaultPlan.parse("gone@before")]
    )
    exploration = run(explore_subject(Subject(lambda: saga, world=world), search))
    assert [str(outcome.plan) for outcome in exploration.failures] == ["b@before"]


def test_a_plan_that_failed_before_and_shows_nothing_more_is_not_shown_beside_the_smallest() -> None:
    saga, world, _ = shop(lambda desk, ctx: desk.update(n=1), lambda desk, ctx: None)
    known = [FaultPlan.parse(plan) for plan in ("a@repeat+b@after", "b@cancel")]
    search = Search(tuple(KINDS), 2, known=known)
    exploration = run(explore_subject(Subject(lambda: saga, world=world), search))
    (shown,) = [outcome for outcome in exploration.failures if outcome.verdict.value == "LIE"]
    assert len(shown.plan.faults) == 1
    assert not {str(outcome.plan) for outcome in exploration.failures} & set(map(str, known))


@pytest.mark.parametrize(
    ("search", "first"),
    [
        ({"kinds": ("before",), "depth": 1}, ["b@before"]),
        ({"kinds": ("after", "repeat"), "depth": 2}, ["a@repeat+b@after", "a@after"]),
        ({"kinds": tuple(KINDS), "depth": 2}, ["b@before", "a@repeat+b@after", "a@flaky:2", "a@after"]),
        ({"kinds": tuple(KINDS), "depth": 2, "first": "b"}, ["b@before"]),
        ({"kinds": tuple(KINDS), "depth": 0}, []),
    ],
)
def test_of_the_plans_that_failed_before_only_those_are_run_that_are_asked_for(
    search: dict[str, Any], first: list[str]
) -> None:
    saga, _, _ = shop(lambda desk, ctx: None, lambda desk, ctx: None, retries=2)
    known = [FaultPlan.parse(plan) for plan in ("b@before", "a@repeat+b@after", "a@flaky:2", "gone@after", "a@after")]
    asked = Search(**search, known=known)
    model = saga.definition().model
    assert [str(plan) for plan in asked.known_of(model)] == [p for p in map(str, known) if p in first]
    left_out = {str(plan) for plan in asked.not_asked_for(model)}
    assert left_out == {str(plan) for plan in known} - set(first) - {"gone@after"}


def test_packed_plans_are_bisected() -> None:
    seen: list[str] = []

    def undo(ctx: Any, *, name: str) -> None:
        seen.append(name)
        if name == "s2" and seen.count("s2") > 1:
            raise RuntimeError("twice")

    saga: Saga[Any] = Saga("twice")
    for i in range(4):
        saga.add_step(f"s{i}", lambda ctx: seen.clear(), lambda ctx, *, name=f"s{i}": undo(ctx, name=name))
    exploration = explore(saga, kinds=["undo-repeat"], mode="packed")
    plans = {str(outcome.plan) for outcome in exploration.failures}
    assert "end@before+s2@undo-repeat" in plans
    assert not any(plan.count("+") > 1 for plan in plans)


def test_bad_input_is_one_line() -> None:
    saga, world = chain(1)
    with pytest.raises(UsageError, match=r"^depth=-1: give a whole number from 0$"):
        explore(saga, world=world, depth=-1)
    with pytest.raises(UsageError, match=r"^mode='fast': write auto, merged, tree or packed$"):
        explore(saga, world=world, mode="fast")


def test_inside_a_running_loop_it_says_what_to_await() -> None:
    async def main() -> None:
        with pytest.raises(RunningLoopError, match=r"write `await aexplore\(\.\.\.\)` there"):
            explore(Saga("nothing"))

    asyncio.run(main())


@pytest.mark.parametrize("context", [["a"], "text", 5], ids=str)
def test_a_context_that_is_no_mapping_is_an_error_of_one_line(context: Any) -> None:
    with pytest.raises(DefinitionError, match="give a mapping or a pydantic model"):
        explore(Saga("shop").add_step("pay", print), context)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"world": {}}, "what was given as the world is of type 'dict': give a World, and register fakes in it"),
        ({"depth": "2"}, "depth='2': give a whole number from 0"),
        ({"depth": 1.5}, "depth=1.5: give a whole number from 0"),
        ({"max_executions": -1}, "max_executions=-1: give a whole number from 0"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_an_error_of_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        explore(Saga("shop").add_step("pay", print), {}, **wrong)
    assert str(refused.value).startswith(said)
