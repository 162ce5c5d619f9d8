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
