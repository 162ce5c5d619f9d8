"""A run, and the saga that was made for it, go when they are let go of: nothing is left to the garbage collector.

What is left to it stays until it comes by, and has it come by more often: each replay makes a saga of its own.
"""

import asyncio
import gc

import pytest

from sagaz_core import ReplayConfig, Saga, SagaReplay, action, compensate
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import VirtualRunner


class Order(Saga):
    def __init__(self, wrong="", **how):
        super().__init__(**how)
        self.wrong = wrong

    @action("reserve", depends_on=[])
    async def reserve(self, ctx):
        await asyncio.sleep(0)
        return {"reserved": 1}

    @compensate("reserve")
    async def release(self, ctx):
        if self.wrong == "undo":
            raise RuntimeError("no")

    @action("charge", depends_on=[], timeout=5.0, retries=1)
    async def charge(self, ctx):
        return {"charged": 1}

    @action("ship", depends_on=["reserve", "charge"])
    def ship(self, ctx):
        if self.wrong:
            raise ValueError("no such street")


async def run_once(storage, wrong, number):
    await Order(wrong).run({"qty": 1})


async def capture(storage, wrong, number):
    config = ReplayConfig(durability="group")
    await Order(wrong, snapshot_storage=storage, replay_config=config).run({"qty": 1}, saga_id=f"{wrong}{number}")


async def replay(storage, wrong, number, **how):
    def factory():
        return Order(wrong)

    await SagaReplay("first", storage, saga_factory=factory).from_checkpoint("ship", {"token": "new"}, **how)


async def replay_with_failure(storage, wrong, number):
    await replay(storage, wrong, number, force_failure="ship@after")


@pytest.mark.parametrize("wrong", ["", "ship", "undo"])
@pytest.mark.parametrize("work", [run_once, capture, replay, replay_with_failure])
def test_a_saga_that_ran_once_goes_with_its_run(work, wrong):
    storage = InMemorySnapshotStorage()
    with VirtualRunner() as runner:
        runner.run(Order(snapshot_storage=storage).run({"qty": 1}, saga_id="first"))
        runner.run(work(storage, wrong, 1))
        gc.collect()
        gc.disable()
        try:
            runner.run(work(storage, wrong, 2))
            assert gc.collect() == 0
        finally:
            gc.enable()


@pytest.mark.parametrize("of_one_class", [True, False])
def test_a_replay_defines_its_saga_once(monkeypatch, of_one_class):
    """It asks for the description first, and then runs it."""

    def imperative():
        return Saga("Order").add_step("reserve", lambda ctx: None).add_step("ship", lambda ctx: None)

    made, define = [], Saga._defined
    monkeypatch.setattr(Saga, "_defined", lambda saga: made.append(saga) or define(saga))
    storage, factory = InMemorySnapshotStorage(), Order if of_one_class else imperative
    with VirtualRunner() as runner:
        saga = factory()
        saga.snapshot_storage = storage
        runner.run(saga.run({}, saga_id="first"))
        made.clear()
        for _ in range(3):
            runner.run(SagaReplay("first", storage, saga_factory=factory).from_checkpoint("ship"))
    assert len(made) == len(set(made)) == 3


def test_one_that_runs_again_keeps_its_definition():
    saga = Order()
    with VirtualRunner() as runner:
        runner.run(saga.run({}))
        runner.run(saga.run({}))
        assert runner.run(saga.prepare()) is saga.definition()
