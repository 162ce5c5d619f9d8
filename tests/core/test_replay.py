"""Running a recorded saga again."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from sagaz_core import ReplayConfig, ReplayStatus, Saga, SagaReplay, SagaStatus, action, compensate
from sagaz_core.errors import (
    DriftError,
    OverrideError,
    PlanError,
    UnknownSagaClassError,
    UnknownSagaError,
    UnknownStepError,
    UsageError,
)
from sagaz_core.storage.codec import decode
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import run


class Died(BaseException):
    """The process is gone."""


class Order(Saga[Any]):
    saga_name = "order"
    fails_at = ""
    dies_at = ""
    stuck_at = ""

    def __init__(self, log: list[Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.log: list[Any] = [] if log is None else log

    def _do(self, name: str, result: Any) -> Any:
        self.log.append(name)
        if self.dies_at == name:
            raise Died
        if self.fails_at == name:
            raise OSError(name)
        return result

    def _undo(self, name: str, *seen: Any) -> None:
        self.log.append((f"-{name}", *seen))
        if self.stuck_at == name:
            raise OSError(name)

    @action("reserve")
    async def reserve(self, ctx: Any) -> Any:
        return self._do("reserve", {"reservation": f"R-{ctx['sku']}"})

    @compensate("reserve", retries=0)
    async def release(self, ctx: Any, result: Any) -> None:
        self._undo("reserve", ctx["reservation"], result)

    @action("charge")
    async def charge(self, ctx: Any) -> Any:
        return self._do("charge", {"charged": ctx["amount"], "receipt": [ctx["reservation"]]})

    @compensate("charge", retries=0)
    async def refund(self, ctx: Any, result: Any) -> None:
        self._undo("charge", ctx["charged"], result)

    @action("ship")
    async def ship(self, ctx: Any) -> Any:
        return self._do("ship", {"shipped": (ctx["sku"], ctx["charged"])})


class FailsAtShip(Order):
    fails_at = "ship"


class FailsAtCharge(Order):
    fails_at = "charge"


class DiesAtShip(Order):
    dies_at = "ship"


class Stuck(Order):
    fails_at = "ship"
    stuck_at = "reserve"


CONTEXT = {"sku": "W1", "amount": 5}


async def record(store: Any, kind: type[Order] = Order, **config: Any) -> None:
    saga = kind(snapshot_storage=store, replay_config=ReplayConfig(**config))
    with contextlib.suppress(Died):
        await saga.run(CONTEXT, saga_id="S")


async def dump(store: Any, saga_id: str = "S") -> Any:
    return (
        await store.get_saga(saga_id),
        [event async for event in store.read_events(saga_id)],
        (await store.list_snapshots(saga_id)).items,
    )


def replayed(
    kind: type[Order] = Order, step: str = "ship", *, code: type[Order] = Order, config: Any = None, **arguments: Any
) -> tuple[Any, list[Any], Any]:
    """Record a saga of `kind` and replay it with `code`; return the result, what was called, and the store."""
    store, log = InMemorySnapshotStorage(), list[Any]()

    async def main() -> Any:
        await record(store, kind, **(config or {}))
        before = await dump(store)
        replay = SagaReplay("S", store, saga_factory=lambda: code(log), initiated_by="ada")
        try:
            result = await replay.from_checkpoint(step, **arguments)
        finally:
            assert await dump(store) == before, "the original was changed"
        return result

    return run(main()), log, store


STRATEGIES = ["before_each_step", "after_each_step", "on_failure", "on_completion", "manual"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_completed_saga_is_replayed_from_any_step(strategy: Any) -> None:
    for step, calls in [("reserve", 3), ("charge", 2), ("ship", 1)]:
        result, log, store = replayed(step=step, config={"snapshot_strategy": strategy})
        assert (result.replay_status, result.success, result.reran) == (ReplayStatus.SUCCESS, True, ())
        assert log == ["reserve", "charge", "ship"][3 - calls :] == list(result.ran)
        assert result.served == ("reserve", "charge", "ship")[: 3 - calls]
        assert result.context == {
            **CONTEXT,
            "reservation": "R-W1",
            "charged": 5,
            "receipt": ["R-W1"],
            "shipped": ("W1", 5),
        }
        assert result.new_saga_id not in (None, "S")
        assert run(store.get_saga(result.new_saga_id)).saga_name == "order"


def test_served_results_reach_the_context_and_the_compensations() -> None:
    result, log, _ = replayed(force_failure=True)
    assert (result.replay_status, result.compensated) == (ReplayStatus.ROLLED_BACK, ("charge", "reserve"))
    assert log == [
        ("-charge", 5, {"charged": 5, "receipt": ["R-W1"]}),
        ("-reserve", "R-W1", {"reservation": "R-W1"}),
    ]
    assert result.context == CONTEXT


def test_a_replay_can_be_made_to_fail_by_a_plan() -> None:
    result, log, _ = replayed(step="charge", force_failure="ship@after+charge@undo-fail")
    assert (result.replay_status, result.stuck) == (ReplayStatus.FAILED, ("charge",))
    assert log == ["charge", "ship", ("-reserve", "R-W1", {"reservation": "R-W1"})]
    assert result.missed == ()


@pytest.mark.parametrize(
    ("plan", "error"), [("shp@before", PlanError), ("ship@hang", PlanError), (5, UsageError), ("ship", PlanError)]
)
def test_a_plan_that_does_not_fit_is_refused_and_nothing_is_written(plan: Any, error: Any) -> None:
    store = InMemorySnapshotStorage()
    run(record(store))
    with pytest.raises(error):
        run(SagaReplay("S", store, saga_factory=Order).from_checkpoint("ship", force_failure=plan))
    assert list(run(store.list_replays("S"))) == []
    assert len(run(store.list_sagas()).items) == 1


# ---- what was undone, or never ended


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_steps_that_the_original_undid_are_run_again(strategy: Any) -> None:
    result, log, _ = replayed(FailsAtShip, config={"snapshot_strategy": strategy})
    assert (result.replay_status, result.reran, result.served) == (ReplayStatus.SUCCESS, ("reserve", "charge"), ())
    assert log == ["reserve", "charge", "ship"]


def test_a_step_that_could_not_be_undone_is_still_done() -> None:
    result, log, _ = replayed(Stuck)
    assert (result.served, result.reran) == (("reserve",), ("charge",))
    assert log == ["charge", "ship"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_saga_whose_process_died_is_replayed_from_where_it_was(strategy: Any) -> None:
    result, log, _ = replayed(DiesAtShip, config={"snapshot_strategy": strategy})
    assert (result.replay_status, result.served, log) == (ReplayStatus.SUCCESS, ("reserve", "charge"), ["ship"])


def test_a_saga_without_a_journal_is_replayed_from_its_snapshots() -> None:
    result, log, _ = replayed(config={"journal": False})
    assert (result.success, log) == (True, ["ship"])
    result, log, _ = replayed(FailsAtShip, config={"journal": False})
    assert result.reran == ("reserve", "charge")


def test_a_step_that_it_never_got_to_is_no_checkpoint() -> None:
    with pytest.raises(UnknownStepError, match="no checkpoint before step 'ship'"):
        replayed(FailsAtCharge, "ship")
    with pytest.raises(UnknownStepError, match=r"no step 'shp'.*did you mean 'ship'"):
        replayed(step="shp")


def test_an_unknown_saga_and_an_unknown_class_are_named() -> None:
    store = InMemorySnapshotStorage()
    run(record(store))
    with pytest.raises(UnknownSagaError, match="no saga 'T'"):
        run(SagaReplay("T", store).from_checkpoint("ship"))
    made: Saga[Any] = Saga("nameless", snapshot_storage=store).add_step("a", lambda ctx: None)
    run(made.run(saga_id="N"))
    with pytest.raises(UnknownSagaClassError, match="does not say where its class"):
        run(SagaReplay("N", store).from_checkpoint("a"))


def test_the_class_is_found_where_it_was_recorded() -> None:
    store = InMemorySnapshotStorage()
    run(record(store))
    assert run(SagaReplay("S", store).from_checkpoint("ship")).success


def test_checkpoints_are_the_steps_that_it_got_to() -> None:
    for kind, expected in [(Order, ["reserve", "charge", "ship"]), (FailsAtCharge, ["reserve", "charge"])]:
        for config in ({}, {"journal": False}, {"snapshot_strategy": "manual"}):
            store = InMemorySnapshotStorage()
            run(record(store, kind, **config))
            assert run(SagaReplay("S", store).list_available_checkpoints()) == expected


# ---- overrides


def test_an_override_stands_above_what_was_recorded() -> None:
    result, log, _ = replayed(context_override={"sku": "W2", "charged": 7})
    assert result.context["shipped"] == ("W2", 7)
    assert result.context["receipt"] == ["R-W1"]
    assert (log, result.warnings) == (["ship"], ())


def test_an_override_stands_above_what_is_run_again_before_the_checkpoint() -> None:
    result, log, _ = replayed(FailsAtShip, context_override={"charged": 7})
    assert log == ["reserve", "charge", "ship"]
    assert result.context["shipped"] == ("W1", 7)


def test_an_override_of_an_unknown_key_is_a_warning_or_an_error() -> None:
    result, _, _ = replayed(context_override={"amuont": 7})
    assert result.warnings == ("the context has no key 'amuont' to override (did you mean 'amount'?)",)
    with pytest.raises(OverrideError, match="did you mean 'amount'"):
        replayed(context_override={"amuont": 7}, strict=True)


# ---- another definition


class Longer(Order):
    @action("mail")
    async def mail(self, ctx: Any) -> Any:
        return self._do("mail", None)


class Migrates(Longer):
    version = "2.0"

    async def reserve(self, ctx: Any) -> Any:
        return self._do("reserve", {"reservation": ctx["product"]})


Migrates.migrations = {"1.0": lambda old: {"product": old["sku"], "sku": old["sku"], "amount": old["amount"] + 1}}


def test_another_definition_is_refused_with_its_differences() -> None:
    with pytest.raises(DriftError, match="step 'mail' is new") as caught:
        replayed(code=Longer)
    assert caught.value.differences == ("step 'mail' is new",)


def test_another_definition_may_be_allowed() -> None:
    result, log, _ = replayed(code=Longer, allow_drift=True)
    assert (result.success, log, result.warnings) == (True, ["ship", "mail"], ("step 'mail' is new",))


def test_a_migration_makes_the_recorded_context_fit() -> None:
    result, log, _ = replayed(FailsAtShip, code=Migrates)
    assert (result.success, log[-1], result.context["charged"]) == (True, "mail", 6)
    assert result.context["reservation"] == "W1"


# ---- dry runs and the log


def test_a_dry_run_checks_everything_and_does_nothing() -> None:
    result, log, store = replayed(dry_run=True, context_override={"sku": "W2"})
    assert (result.replay_status, result.success, result.new_saga_id) == (ReplayStatus.DRY_RUN, True, None)
    assert (result.served, result.ran, log) == (("reserve", "charge"), ("ship",), [])
    assert result.context["sku"] == "W2"
    assert list(run(store.list_replays("S"))) == []
    assert len(run(store.list_sagas()).items) == 1
    for arguments in ({"step": "shp"}, {"context_override": {"y": 1}, "strict": True}, {"code": Longer}):
        with pytest.raises((UnknownStepError, OverrideError, DriftError)):
            replayed(dry_run=True, **arguments)


def test_a_replay_is_logged_before_it_starts_and_when_it_ended() -> None:
    store = InMemorySnapshotStorage()
    during: list[Any] = []

    class Looks(Order):
        async def ship(self, ctx: Any) -> Any:
            during.extend(await store.list_replays("S"))
            raise OSError("no")

    run(record(store))
    replay = SagaReplay("S", store, saga_factory=Looks, initiated_by="ada")
    result = run(replay.from_checkpoint("ship", {"sku": "W2"}))
    (before,), (after,) = during, run(replay.get_replay_history())
    assert (before.status, before.completed_at, before.initiated_by) == ("started", None, "ada")
    assert (after.status, after.checkpoint, after.new_saga_id) == ("rolled_back", "ship", result.new_saga_id)
    assert (after.replay_id, after.error) == (before.replay_id, "OSError: no")
    assert decode(after.override) == {"sku": "W2"}
    assert after.completed_at is not None


def test_a_replay_whose_process_dies_is_still_in_the_log() -> None:
    store = InMemorySnapshotStorage()
    run(record(store))
    with pytest.raises(Died):
        run(SagaReplay("S", store, saga_factory=DiesAtShip).from_checkpoint("ship"))
    (entry,) = run(store.list_replays("S"))
    assert entry.status == "failed"
    assert "Died" in entry.error


@pytest.mark.parametrize(("stuck_at", "status"), [("", "rolled_back"), ("charge", "failed")])
def test_a_replay_that_is_cancelled_is_in_the_log_as_it_ended(stuck_at: str, status: str) -> None:
    store = InMemorySnapshotStorage()
    run(record(store))

    class Cancelled(Order):
        async def ship(self, ctx: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    def cancelled() -> Order:
        saga = Cancelled()
        saga.stuck_at = stuck_at
        return saga

    with pytest.raises(asyncio.CancelledError):
        run(SagaReplay("S", store, saga_factory=cancelled).from_checkpoint("ship"))
    (entry,) = run(store.list_replays("S"))
    assert (entry.status, entry.error) == (status, "CancelledError")


# ---- replays of replays


def test_a_replay_is_a_saga_that_can_be_replayed_from_any_of_its_steps() -> None:
    store, log = InMemorySnapshotStorage(), list[Any]()

    async def main() -> None:
        await record(store)
        first = await SagaReplay("S", store, saga_factory=lambda: Order(log)).from_checkpoint("ship", {"sku": "W2"})
        assert log == ["ship"]
        again = SagaReplay(first.new_saga_id, store, saga_factory=lambda: Order(log))
        assert await again.list_available_checkpoints() == ["reserve", "charge", "ship"]
        for step, calls in [("ship", 1), ("charge", 2), ("reserve", 3)]:
            log.clear()
            second = await again.from_checkpoint(step)
            assert second.success
            assert len(log) == calls
            assert second.context["sku"] == "W2"
            assert second.context["shipped"][0] == "W2"

    run(main())


def test_a_factory_may_be_a_class_a_function_or_async() -> None:
    store = InMemorySnapshotStorage()
    run(record(store))

    async def later() -> Order:
        return Order()

    seen: list[str] = []

    def by_name(name: str) -> Order:
        seen.append(name)
        return Order()

    for factory in (Order, Order(), lambda: Order(), later, by_name):
        if isinstance(factory, Order):
            continue
        assert run(SagaReplay("S", store, saga_factory=factory).from_checkpoint("ship")).success
    assert seen == ["order"]
    assert SagaStatus.COMPLETED.ended
