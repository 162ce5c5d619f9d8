"""When an effect comes that is late."""

from __future__ import annotations

from typing import Any

import pytest

from sagaz_core import Saga, SagaConfig, World, explore
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import run


def trip(policy: str = "continue_on_error") -> tuple[Saga[Any], World, list[str]]:
    """Return a saga of two steps, of which the second may be late, its world and what was called."""
    called: list[str] = []
    desk: dict[str, int] = {}
    world = World()
    world.fake(desk, "desk")
    saga: Saga[Any] = Saga("trip", config=SagaConfig(on_compensation_failure=policy))
    for name in ("hotel", "flight"):

        def act(ctx: Any, *, name: str = name) -> None:
            called.append(name)
            desk[name] = 1

        async def undo(ctx: Any, *, name: str = name) -> None:
            called.append(f"undo {name}")
            desk.pop(name, None)

        async def later(ctx: Any, *, act: Any = act) -> None:
            act(ctx)

        saga.add_step(name, later, undo, timeout=5.0, in_doubt="compensate", compensation_retries=1)
    return saga, world, called


@pytest.mark.parametrize(
    ("plan", "order"),
    [
        ("flight@late", ["hotel", "undo flight", "flight", "undo hotel"]),
        ("flight@late+flight@undo-flaky", ["hotel", "undo flight", "flight", "undo hotel"]),
        ("flight@late+flight@undo-fail", ["hotel", "flight", "undo hotel"]),
        ("flight@late+flight@undo-fail-after", ["hotel", "undo flight", "undo flight", "flight", "undo hotel"]),
        ("hotel@late+hotel@undo-fail", ["hotel"]),
    ],
)
def test_what_is_late_comes_when_its_compensation_has_run_or_was_given_up(plan: str, order: list[str]) -> None:
    saga, world, called = trip()
    outcome = run(run_trial(Subject(lambda: saga, world=world), FaultPlan.parse(plan)))
    assert called == order
    assert not outcome.evidence.missed


@pytest.mark.parametrize("policy", ["continue_on_error", "retry_then_continue", "fail_fast", "skip_dependents"])
def test_a_search_has_it_come_when_a_run_does(policy: str) -> None:
    found = {}
    for mode in ("merged", "tree"):
        saga, world, _ = trip(policy)
        exploration = explore(saga, world=world, depth=2, mode=mode)
        assert exploration.mode == mode, exploration.reason
        found[mode] = {(str(out.plan), one.verdict, one.step) for out in exploration.failures for one in out.findings}
    for plan, verdict, step in found["merged"] | found["tree"]:
        saga, world, _ = trip(policy)
        outcome = run(run_trial(Subject(lambda made=saga: made, world=world), FaultPlan.parse(plan)))
        assert (verdict, step) in {(one.verdict, one.step) for one in outcome.findings}
    assert found["merged"] == found["tree"]


def booking(*, in_doubt: Any = "compensate", refuses: bool = False, always: bool = False) -> tuple[Saga[Any], World]:
    """A saga whose second step raises an error when it had its effect: always, or once its compensation has run."""
    desk: dict[str, Any] = {"booked": {}, "closed": []}
    world = World()
    world.fake(desk, "desk", append_only=["closed"])

    async def book(ctx: Any) -> None:
        if refuses and desk["closed"]:
            raise RuntimeError("closed")
        desk["booked"]["seat"] = 1
        if always or desk["closed"]:
            raise RuntimeError("too late")

    async def unbook(ctx: Any) -> None:
        desk["booked"].pop("seat", None)
        desk["closed"].append("seat")

    saga: Saga[Any] = Saga("booking").add_step("look", lambda ctx: None, lambda ctx: None, in_doubt="compensate")
    return saga.add_step("book", book, unbook, timeout=5.0, in_doubt=in_doubt), world


MODES = pytest.mark.parametrize("mode", ["merged", "tree", "packed"])


@MODES
@pytest.mark.parametrize("always", [False, True])
def test_an_action_that_comes_late_and_fails_after_its_effect_is_what_is_to_be_changed(mode: str, always: bool) -> None:
    saga, world = booking(always=always)
    (outcome,) = explore(saga, world=world, mode=mode).failures
    (finding,) = outcome.findings
    assert (str(outcome.plan), finding.verdict.value, finding.step) == ("book@late", "ORPHAN", "book")
    assert finding.sentence == (
        "the saga says rolled back, but the world is not as it was (desk.booked.seat: (nothing) -> 1): "
        "'book' came late, changed it and failed"
    )
    assert finding.advice == (
        "let the action refuse, before it has its effect, once its compensation has run: keep a mark under the same "
        "key (a tombstone)"
    )


@MODES
@pytest.mark.parametrize("always", [False, True])
def test_one_that_refuses_before_its_effect_is_sound(mode: str, always: bool) -> None:
    saga, world = booking(refuses=True, always=always)
    assert explore(saga, world=world, mode=mode).failures == ()


def test_one_whose_compensation_does_not_run_in_doubt_is_told_that_it_must() -> None:
    saga, world = booking(in_doubt="ignore")
    outcome = run(run_trial(Subject(lambda: saga, world=world), FaultPlan.parse("book@late")))
    assert outcome.findings[0].advice.startswith(
        "declare in_doubt=\"compensate\" at step 'book', and let the action refuse, before it has its effect, once"
    )


def test_of_probes_it_is_said_what_it_may_be() -> None:
    saga, world = booking()
    probed = World()
    probed.probe("desk", lambda: world.save()["desk"]["booked"])
    outcome = run(run_trial(Subject(lambda: saga, world=probed), FaultPlan.parse("book@late")))
    (finding,) = outcome.findings
    assert (finding.verdict.value, finding.step) == ("LIE", None)
    assert finding.advice.endswith(
        "once its compensation has run (book came late, and failed); or else let each compensation take back all that "
        "its action did, and nothing else"
    )


def deliveries(*, marked: bool) -> tuple[Saga[Any], World]:
    """A saga of two steps which, when they come late, do nothing and say nothing, if they are `marked`."""
    desk: dict[str, Any] = {"marks": {}}
    world = World()
    world.fake(desk, "desk", append_only=["marks"])
    saga: Saga[Any] = Saga("delivery")
    for name in ("hotel", "flight"):

        async def act(ctx: Any, name: str = name) -> dict[str, Any]:
            if name not in desk["marks"]:
                desk[name] = 1
            return {f"{name}_booked": name in desk}

        async def undo(ctx: Any, name: str = name) -> None:
            if marked:
                desk["marks"][name] = 1
            desk.pop(name, None)

        saga.add_step(name, act, undo, timeout=5.0, in_doubt="compensate", retries=1)
    return saga, world


@pytest.mark.parametrize("mode", ["merged", "tree", "packed"])
def test_one_that_returns_without_its_effect_leaves_none(mode: str) -> None:
    saga, world = deliveries(marked=True)
    assert explore(saga, world=world, mode=mode).failures == ()
    saga, world = deliveries(marked=False)
    wrong = {str(o.plan): o.verdict.value for o in explore(saga, world=world, mode=mode).failures}
    assert wrong == {"hotel@late": "ORPHAN", "flight@late": "ORPHAN"}


def test_one_that_returns_without_its_effect_leaves_none_where_another_one_is_stuck() -> None:
    saga, world = deliveries(marked=True)
    outcome = run(run_trial(Subject(lambda: saga, world=world), FaultPlan.parse("flight@late+hotel@undo-fail")))
    assert (outcome.findings, list(outcome.stuck)) == ((), ["hotel"])
    assert world.save()["desk"]["hotel"] == 1


def test_of_one_whose_effect_the_world_does_not_show_the_call_is_judged() -> None:
    world = World()
    world.fake({}, "desk")
    saga: Saga[Any] = Saga("mail").add_step(
        "mail", lambda ctx: None, lambda ctx: None, timeout=5.0, in_doubt="compensate"
    )
    (outcome,) = explore(saga, world=world).failures
    assert (str(outcome.plan), outcome.verdict.value) == ("mail@late", "ORPHAN")
