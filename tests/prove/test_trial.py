"""One run under a plan: what it costs, as counts."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from sagaz_core import FaultPlan, Saga, StepRejected
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import VirtualRunner


async def nothing(ctx: Any) -> None:
    return None


async def refuse(ctx: Any) -> None:
    raise StepRejected("sold out")


def chain(last: Any = nothing) -> Saga[Any]:
    saga: Saga[Any] = Saga("chain")
    for name, act in (("a", nothing), ("b", nothing), ("c", last)):
        saga.add_step(name, act, nothing, retries=2, timeout=5.0, compensation_timeout=5.0, in_doubt="compensate")
    return saga


PLANS = ("b@before", "b@after", "b@hang", "b@late", "b@flaky", "b@repeat", "end@before", "b@undo-fail", "b@undo-hang")


@pytest.mark.parametrize("text", PLANS)
@pytest.mark.parametrize("last", [nothing, refuse])
def test_a_trial_leaves_nothing_to_the_garbage_collector(text: str, last: Any) -> None:
    saga, plan = chain(last), FaultPlan.parse(text)

    async def trials() -> int:
        return sum([len((await run_trial(Subject(lambda: saga), plan)).evidence.ledger.entries) for _ in range(3)])

    with VirtualRunner() as runner:
        assert runner.run(trials())
        gc.collect()
        gc.disable()
        try:
            runner.run(trials())
            assert gc.collect() == 0
        finally:
            gc.enable()
