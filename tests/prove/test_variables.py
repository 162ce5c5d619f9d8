"""Context variables that a step sets: the next step sees them, and a process that takes the saga up does not."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import pytest

from sagaz_core import Saga, World, explore
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import run

TENANT: ContextVar[str] = ContextVar("tenant")


def tenants(*, needed: bool) -> tuple[Saga[Any], World]:
    desk: dict[str, Any] = {}
    world = World()
    world.fake(desk, "desk")

    async def note(ctx: Any) -> dict[str, Any]:
        TENANT.set("acme")
        return {"tenant": "acme"}

    async def put(ctx: Any) -> None:
        desk["row"] = TENANT.get() if needed else ctx["tenant"]

    saga: Saga[Any] = Saga("tenants").add_step("note", note)
    saga.add_step("put", put, lambda ctx: desk.pop("row", None), in_doubt="compensate")
    return saga, world


@pytest.mark.parametrize("mode", ["merged", "tree", "packed"])
def test_a_step_that_needs_one_which_died_with_the_process_is_found(mode: str) -> None:
    saga, world = tenants(needed=True)
    exploration = explore(saga, world=world, mode=mode)
    found = {str(o.plan): o.findings[0] for o in exploration.failures}
    assert found.keys() == {"note@crash-recorded", "put@crash"}
    assert exploration.unsound == {("note", "crash-recorded"), ("put", "crash")}
    for finding in found.values():
        assert finding.verdict.value == "NOT_IDEMPOTENT"
        assert finding.advice.startswith(
            "keep what later steps need in the context, not in memory or context variables"
        )


@pytest.mark.parametrize("mode", ["merged", "tree", "packed"])
def test_one_that_is_only_set_does_no_harm(mode: str) -> None:
    saga, world = tenants(needed=False)
    exploration = explore(saga, world=world, mode=mode)
    assert (exploration.mode, exploration.failures) == (mode, ())


def test_what_was_set_before_the_saga_is_there_after_a_crash_too() -> None:
    saga, world = tenants(needed=True)

    async def main() -> Any:
        TENANT.set("other")
        return await run_trial(Subject(lambda: saga, world=world), FaultPlan.parse("note@crash-recorded"))

    outcome = run(main())
    assert outcome.findings == ()
    assert world.save() == {"desk": {"row": "other"}}
