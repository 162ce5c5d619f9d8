"""What the engine of the `sagaz` package really does, and that the adapter tells it so."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("sagaz")

from sagaz import Saga, action, compensate, forward_recovery
from sagaz.core.execution.pivot import RecoveryAction
from sagaz.core.saga import Saga as ImperativeSaga
from sagaz.core.types import ParallelFailureStrategy

from sagaz_core.adapters.sagaz import SagazAdapter
from sagaz_core.engine.run import RunOptions, Served, served_from
from sagaz_core.errors import CannotStoreError, DefinitionError, StepTimeoutError, StoreUnavailableError, UsageError
from sagaz_core.events import Delta, SagaStarted, StepFailed, StepRetryScheduled, StepSucceeded
from sagaz_core.faults.inject import Injector
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.saga.base import Saga as NativeSaga
from sagaz_core.saga.config import ReplayConfig, SnapshotStrategy
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.codec import decode
from sagaz_core.storage.frames import state_bytes
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.virtual_time import VirtualRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sagaz_core.engine.journal import Journal
    from sagaz_core.engine.result import SagaResult
    from sagaz_core.interceptor import Proceed, StepCall

ADAPTER = SagazAdapter()
# The package, on Python 3.14:
pytestmark = pytest.mark.filterwarnings("ignore:.*iscoroutinefunction:DeprecationWarning")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# ---- sagas


class Shop(Saga):
    saga_name = "shop"
    log: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.log = []

    @action("reserve")
    async def reserve(self, ctx):
        self.log.append("reserve")
        await asyncio.sleep(1)
        ctx["noted"] = True
        return {"reservation": "R-1"}

    @compensate("reserve")
    async def release(self, ctx):
        self.log.append(f"release {ctx['reservation']}")

    @action("charge", depends_on=["reserve"], timeout_seconds=7)
    async def charge(self, ctx):
        self.log.append("charge")
        return {"charge": ctx["amount"]}

    @compensate("charge", timeout_seconds=5)
    async def refund(self, ctx):
        self.log.append(f"refund {ctx['charge']}")

    @action("mail", depends_on=["charge"])
    async def mail(self, ctx):
        self.log.append("mail")


async def _sleepy(ctx: Any) -> dict[str, Any]:
    await asyncio.sleep(1)
    return {}


def imperative(*steps: Any, **arguments: Any) -> ImperativeSaga:
    """Make an imperative saga; `steps` are the arguments of `add_step`."""
    saga = ImperativeSaga(name="made", **arguments)

    async def build() -> None:
        for step in steps:
            await saga.add_step(**step)

    asyncio.run(build())
    return saga


# ---- running them


class Ran:
    """One run, with all that is known of it."""

    def __init__(self, saga: Any, context: Any = None, plan: str = "", **given: Any) -> None:
        self.calls: list[str] = []
        self.injector = Injector(FaultPlan.parse(plan)) if plan else None
        served, saga_id = given.pop("served", ()), given.pop("saga_id", None)
        interceptors = (*((self.injector,) if self.injector else ()), self) if given.pop("watched", True) else ()
        options = RunOptions(interceptors=interceptors, on_journal=self._take, **given)
        self.result: SagaResult | None = None
        self.error: BaseException | None = None
        self.seen: list[dict[str, Any]] = []
        with VirtualRunner() as runner:
            work = ADAPTER.run(ADAPTER.create(saga), context, saga_id=saga_id, served=served, options=options)
            try:
                self.result = runner.run(work)
            except (Exception, asyncio.CancelledError) as error:
                self.error = error
            if self.injector is not None:
                runner.run(self.injector.deliver_late())
            self.time = runner.loop.time()

    def _take(self, journal: Journal) -> None:
        self.journal = journal

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        self.seen.append(dict(call.context))
        result = await proceed()
        self.calls.append(call.step if call.kind == "action" else f"{call.kind} {call.step}")
        return result

    @property
    def state(self) -> SagaState:
        return self.journal.state

    @property
    def events(self) -> list[str]:
        return [f"{type(event).__name__} {getattr(event, 'step', None) or ''}".strip() for event in self.journal.events]


def model_of(saga: Any) -> Any:
    with VirtualRunner() as runner:
        return runner.run(ADAPTER.describe(ADAPTER.create(saga)))


# ---- recognising


def test_asking_whether_a_target_is_a_saga_does_not_import_the_package() -> None:
    code = (
        "import sys; from sagaz_core.adapters.sagaz import SagazAdapter; a = SagazAdapter();"
        "assert not a.accepts(object()) and not a.accepts(int); assert 'sagaz' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sagas_of_both_kinds_are_accepted_as_classes_and_instances() -> None:
    class Built(ImperativeSaga):
        pass

    assert all(ADAPTER.accepts(target) for target in (Shop, Shop(), Saga(name="x"), Built, Built()))
    assert not any(ADAPTER.accepts(target) for target in (NativeSaga, NativeSaga("x"), "Shop", None, Shop.reserve))


def test_a_class_that_needs_arguments_is_refused_with_advice() -> None:
    class Needy(Saga):
        def __init__(self, stock: object) -> None:
            super().__init__()

    with pytest.raises(DefinitionError, match=r"Needy cannot be made without arguments .*saga_factory"):
        ADAPTER.create(Needy)


# ---- describing


def test_a_declarative_saga_is_described_as_its_engine_runs_it() -> None:
    model = model_of(Shop)
    assert (model.name, model.version, model.on_compensation_failure) == ("shop", "1.0", "continue_on_error")
    reserve, charge, mail = sorted(model.steps, key=lambda step: ["reserve", "charge", "mail"].index(step.name))
    assert (reserve.depends_on, charge.depends_on, mail.depends_on) == ((), ("reserve",), ("charge",))
    assert (charge.timeout, charge.compensation_timeout, mail.compensation_timeout) == (7, 5, None)
    # Its decorators default to max_retries=3, which its engine never reads.
    assert {(step.retries, step.compensation_retries) for step in model.steps} == {(0, 0)}
    assert [step.has_compensation for step in (reserve, charge, mail)] == [True, True, False]


def test_an_imperative_saga_is_a_chain_with_retries() -> None:
    saga = imperative(
        {"name": "a", "action": _sleepy, "compensation": _sleepy, "timeout": 4},
        {"name": "b", "action": _sleepy, "max_retries": 1, "pivot": True},
        version="2.0",
    )
    model = model_of(saga)
    a, b = model.steps
    assert (model.name, model.version) == ("made", "2.0")
    assert (a.depends_on, b.depends_on) == ((), ("a",))
    assert (a.timeout, a.retries, a.compensation_timeout, a.compensation_retries) == (4, 3, 30, 2)
    assert (b.retries, b.compensation_retries, b.pivot) == (1, 0, False)  # that engine never looks at pivots


def test_an_imperative_saga_with_dependencies_has_no_timeouts_and_no_retries() -> None:
    saga = imperative(
        {"name": "a", "action": _sleepy, "compensation": _sleepy},
        {"name": "b", "action": _sleepy, "dependencies": {"a"}},
        {"name": "c", "action": _sleepy, "dependencies": {"b", "a"}},
    )
    model = model_of(saga)
    assert [step.depends_on for step in model.steps] == [(), ("a",), ("a", "b")]
    assert [(step.timeout, step.retries) for step in model.steps] == [(None, 0)] * 3
    assert model.steps[0].compensation_retries == 2


def test_an_imperative_saga_builds_its_steps_in_a_copy() -> None:
    class Built(ImperativeSaga):
        async def build(self) -> None:
            await self.add_step("one", self.one)

        async def one(self, ctx):
            return self.saga_id

    saga = Built()
    assert model_of(saga).names == ("one",)
    assert model_of(saga).name == "Built"  # without a name of its own it would be "Saga"
    assert saga.steps == []
    ran = Ran(saga, saga_id="018f0000-0000-7000-8000-000000000001")
    assert ran.state.results == {"one": "018f0000-0000-7000-8000-000000000001"}, "its method saw the run's own saga"


def test_an_imperative_saga_may_be_set_up_by_another_method_but_not_by_a_step_of_that_name() -> None:
    class SetUp(ImperativeSaga):
        async def setup(self) -> None:
            await self.add_step("one", _constant)

    class Step(ImperativeSaga):
        async def setup(self, ctx: Any) -> None: ...

    assert model_of(SetUp).names == ("one",)
    assert model_of(Step).names == ()
    ran = Ran(Step, plan="end@before")
    assert ran.state.status is SagaStatus.COMPLETED
    assert ran.injector is not None
    assert ran.injector.missed, "a saga without steps has no end to fail at"


def test_names_that_a_plan_cannot_hold_are_replaced_in_the_model_only() -> None:
    saga = Saga(name="named")
    saga.add_step("take stock", _sleepy, _sleepy)
    saga.add_step("take_stock", _sleepy, depends_on=["take stock"])
    saga.add_step("end", _sleepy, depends_on=["take_stock"])
    model = model_of(saga)
    assert model.names == ("take_stock_2", "take_stock", "end_")
    assert model.step("take_stock").depends_on == ("take_stock_2",)
    ran = Ran(saga, plan="take_stock_2@undo-fail")
    assert ran.result is not None
    assert ran.result.stuck == ("take_stock_2",)
    assert ran.state.context == {}

    other = imperative({"name": "take stock", "action": _constant}, {"name": "b", "action": _sleepy})
    ran = Ran(other)
    assert ran.state.results["take_stock"] == "done"
    assert ran.state.context["take stock"] == "done", "the engine's key in the context is the engine's name"


async def _constant(ctx: Any) -> str:
    return "done"


def test_sagas_that_cannot_run_are_definition_errors() -> None:
    cyclic = Saga(name="cyclic")
    cyclic.add_step("a", _sleepy, depends_on=["b"])
    cyclic.add_step("b", _sleepy, depends_on=["a"])
    with pytest.raises(DefinitionError, match="circle: a -> b -> a"):
        model_of(cyclic)

    missing = Saga(name="missing")
    missing.add_step("pack", _sleepy, depends_on=["pak"])
    with pytest.raises(DefinitionError, match="depends on 'pak', which does not exist"):
        model_of(missing)

    twice = Saga(name="twice")
    twice.add_step("a", _sleepy)
    twice.add_step("b", _sleepy, depends_on=["a", "a"])
    with pytest.raises(DefinitionError, match="cannot be run by its engine: Circular dependency"):
        model_of(twice)

    apart = imperative(*({"name": name, "action": _sleepy, "dependencies": set()} for name in "ab"))
    with pytest.raises(DefinitionError, match="2 disconnected step groups"):
        model_of(apart)


# ---- running


def test_a_run_is_told_in_events_without_the_engines_own_keys() -> None:
    ran = Ran(Shop, {"amount": 5}, saga_id="S-1")
    assert ran.events == [
        "SagaStarted",
        *("StepStarted reserve", "StepSucceeded reserve"),
        *("StepStarted charge", "StepSucceeded charge"),
        *("StepStarted mail", "StepSucceeded mail"),
        "SagaCompleted",
    ]
    assert ran.calls == ["reserve", "charge", "mail", "end end"]
    assert ran.state.saga_id == "S-1"
    assert ran.state.context == {"amount": 5, "noted": True, "reservation": "R-1", "charge": 5}
    assert ran.state.layers["reserve"] == Delta({"noted": True, "reservation": "R-1"})
    assert ran.seen[0] == {"amount": 5}
    assert ran.seen[-1] == ran.state.context
    assert ran.time == 1.0


def test_a_run_that_nothing_watches_has_no_step_more_than_in_production() -> None:
    listened: list[str] = []

    class Listener:
        async def on_step_enter(self, saga_name: str, step: str, ctx: dict[str, Any]) -> None:
            listened.append(step)

        def on_saga_complete(self, saga_name: str, saga_id: str, ctx: dict[str, Any]) -> None:
            listened.append("complete")

    class Heard(Shop):
        listeners = [Listener()]  # noqa: RUF012 - as the package's own documentation has it

    for watched in (False, True):
        listened.clear()
        ran = Ran(Heard, {"amount": 5}, watched=watched)
        assert ran.state.status is SagaStatus.COMPLETED
        assert listened == ["reserve", "charge", "mail", "complete"]


def test_an_imperative_run_has_each_result_under_its_steps_name() -> None:
    saga = imperative({"name": "a", "action": _constant, "compensation": lambda result, ctx: None})
    saga.context.set("given", 1)
    ran = Ran(saga, {"more": 2})
    assert ran.state.initial == {"given": 1, "more": 2}
    assert ran.state.context == {"given": 1, "more": 2, "a": "done"}


def test_the_id_in_the_context_is_the_sagas_as_in_its_engine() -> None:
    ran = Ran(Shop, {"amount": 5, "saga_id": "FROM-CONTEXT"})
    assert ran.state.saga_id == "FROM-CONTEXT"
    assert ran.state.context["saga_id"] == "FROM-CONTEXT"
    assert Ran(Shop, {"amount": 5}).state.context.keys() == {"amount", "noted", "reservation", "charge"}


def test_keys_that_a_step_deletes_are_in_its_delta() -> None:
    saga = Saga(name="deleting")

    async def take(ctx: dict[str, Any]) -> None:
        del ctx["coupon"]

    saga.add_step("take", take)
    ran = Ran(saga, {"coupon": "C", "kept": 1})
    assert ran.state.layers == {"take": Delta({}, ("coupon",))}
    assert ran.state.context == {"kept": 1}


def test_what_parallel_steps_return_is_each_ones_own() -> None:
    saga = Saga(name="wide")

    def step(seconds: float, **returned: Any) -> Callable[[Any], Any]:
        async def run(ctx: Any) -> dict[str, Any]:
            await asyncio.sleep(seconds)
            return returned

        return run

    saga.add_step("slow", step(3, slow=1))
    saga.add_step("quick", step(1, quick=1, slow=0))
    ran = Ran(saga, {})
    assert ran.state.layers == {"quick": Delta({"quick": 1, "slow": 0}), "slow": Delta({"slow": 1})}
    assert ran.state.context == {"quick": 1, "slow": 1}
    assert ran.time == 3.0


def test_steps_of_one_level_run_in_order_of_declaration_under_every_hash_seed() -> None:
    code = """
import asyncio, logging, sys
logging.disable(logging.CRITICAL)
from sagaz import Saga
from sagaz.core.saga import Saga as Imperative
from sagaz_core.adapters.sagaz import SagazAdapter
from sagaz_core.engine.run import RunOptions
from sagaz_core.faults.inject import Injector
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.virtual_time import run
async def nothing(*_): return {}
names = ["delta", "alpha", "echo", "bravo", "charlie"]
async def main():
    first, second = Saga(name="d"), Imperative(name="i")
    for name in names:
        first.add_step(name, nothing, nothing)
        await second.add_step(name, nothing, nothing, dependencies=set())
    await second.add_step("last", nothing, nothing, dependencies=set(names))
    for saga in first, second:
        options = RunOptions(interceptors=(Injector(FaultPlan.parse("end@before")),))
        result = await SagazAdapter().run(saga, {}, options=options)
        print([type(e).__name__ + str(getattr(e, "step", "")) for e in result.events])
run(main())
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in "0123"
    }
    assert len(outputs) == 1
    started = [f"'StepStarted{name}'" for name in ("delta", "alpha", "echo", "bravo", "charlie")]
    undone = [f"'CompensationStarted{name}'" for name in ("charlie", "bravo", "echo", "alpha", "delta")]
    for line in outputs.pop().splitlines():
        for names in (started, undone):
            assert sorted(names, key=line.index) == names


# ---- failing


def test_a_failure_at_the_end_undoes_everything_the_last_steps_too() -> None:
    for saga in (_pair(), _imperative_pair(), _imperative_pair(dependencies=True)):
        ran = Ran(saga, plan="end@before")
        assert ran.calls == ["a", "b", "compensation b", "compensation a"]
        assert "StepFailed end" in ran.events
        assert ran.events[-1] == "SagaRolledBack"
        assert ran.state.status is SagaStatus.ROLLED_BACK
        assert ran.state.context == {}
        assert ran.result is not None
        assert ran.result.failed_step == "end"


def _pair() -> Saga:
    saga = Saga(name="pair")
    saga.add_step("a", _sleepy, _sleepy)
    saga.add_step("b", _sleepy, _sleepy, depends_on=["a"])
    return saga


async def _undo(result: Any, ctx: Any) -> None:
    await asyncio.sleep(1)


def _imperative_pair(*, dependencies: bool = False, **given: Any) -> ImperativeSaga:
    return imperative(
        {"name": "a", "action": _sleepy, "compensation": _undo, **given},
        {"name": "b", "action": _sleepy, "compensation": _undo, **given}
        | ({"dependencies": {"a"}} if dependencies else {}),
    )


def test_a_compensation_that_fails_is_no_failure_to_the_declarative_engine() -> None:
    ran = Ran(Shop, {"amount": 5}, plan="charge@undo-fail")
    assert ran.result is not None
    assert ran.result.status is SagaStatus.ROLLED_BACK, "what the engine claims"
    assert ran.state.status is SagaStatus.FAILED, "what happened"
    assert ran.result.stuck == ran.state.stuck == ("charge",)
    assert ran.result.compensated_steps == ("reserve",)
    assert ran.state.undo_attempts == {"charge": 1, "reserve": 1}
    assert ran.events[-1] == "SagaFailed"


@pytest.mark.parametrize("dependencies", [False, True])
def test_a_compensation_that_fails_is_told_by_the_imperative_engine_after_three_attempts(dependencies: bool) -> None:
    ran = Ran(_imperative_pair(dependencies=dependencies), plan="b@undo-fail")
    assert ran.result is not None
    assert ran.result.status is ran.state.status is SagaStatus.FAILED
    assert ran.result.stuck == ("b",)
    assert ran.result.compensated_steps == ("a",)
    assert ran.state.undo_attempts == {"b": 3, "a": 1}


def test_a_compensation_that_fails_once_is_tried_again_by_the_imperative_engine_only() -> None:
    ran = Ran(_imperative_pair(), plan="b@undo-flaky")
    assert ran.state.status is SagaStatus.ROLLED_BACK
    assert ran.state.undo_attempts == {"b": 2, "a": 1}
    assert [e.undo for e in ran.journal.events if isinstance(e, StepRetryScheduled)] == [True]


def test_the_imperative_engine_tries_an_action_again_and_the_declarative_one_does_not() -> None:
    ran = Ran(_imperative_pair(), plan="a@flaky:3")
    assert ran.state.status is SagaStatus.COMPLETED
    assert ran.state.attempts == {"a": 4, "b": 1}
    delays = [event.delay for event in ran.journal.events if isinstance(event, StepRetryScheduled)]
    assert delays == [0.01, 0.02, 0.04]
    assert ran.time == pytest.approx(2 + sum(delays))

    ran = Ran(_imperative_pair(), plan="a@before")
    finals = [event.final for event in ran.journal.events if isinstance(event, StepFailed)]
    assert finals == [False, False, False, True]
    assert ran.state.status is SagaStatus.ROLLED_BACK

    saga = Saga(name="once")
    saga.add_step("a", _sleepy, max_retries=3)
    assert Ran(saga, plan="a@before").state.attempts == {"a": 1}


@pytest.mark.parametrize(
    ("plan", "time"), [("charge@hang", 1 + 7), ("charge@late", 1 + 7), ("charge@undo-hang", 1 + 5)]
)
def test_a_step_that_hangs_ends_at_its_timeout(plan: str, time: float) -> None:
    ran = Ran(Shop, {"amount": 5}, plan=plan)
    assert ran.time == time
    if "undo" in plan:
        assert ran.state.stuck == ("charge",)
        return
    assert isinstance(ran.result and ran.result.exception, StepTimeoutError)
    assert ran.state.error == ("sagaz_core.errors:StepTimeoutError", "not done within 7 s")
    assert ran.calls == ["reserve", "compensation reserve", *(["charge"] if "late" in plan else [])]
    assert ran.events[-1] == "SagaRolledBack", "what comes late is no event of the saga"
    assert "charge" in ran.state.ambiguous


def test_a_timeout_of_an_imperative_step_is_tried_again() -> None:
    ran = Ran(_imperative_pair(timeout=2, max_retries=1), plan="a#1@hang")
    assert ran.state.status is SagaStatus.COMPLETED
    assert ran.state.attempts == {"a": 2, "b": 1}
    assert ran.time == pytest.approx(2 + 0.01 + 1 + 1)


@pytest.mark.parametrize("saga", [Shop, _imperative_pair()])
def test_a_cancelled_run_stays_where_it_is_with_nothing_undone(saga: Any) -> None:
    second = "charge" if saga is Shop else "b"
    ran = Ran(saga, {"amount": 5}, plan=f"{second}@cancel")
    assert isinstance(ran.error, asyncio.CancelledError)
    assert ran.state.status is SagaStatus.EXECUTING
    assert len(ran.calls) == 2
    assert second in ran.state.ambiguous
    assert not ran.state.running
    assert not [event for event in ran.events if event.startswith("Comp")]


def test_a_run_that_is_cancelled_from_outside_is_told_from_a_timeout() -> None:
    async def main() -> None:
        task = asyncio.ensure_future(ADAPTER.run(Shop(), {"amount": 1}, options=RunOptions(on_journal=journals.append)))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    journals: list[Journal] = []
    with VirtualRunner() as runner:
        runner.run(main())
    (failure,) = [event for event in journals[0].events if isinstance(event, StepFailed)]
    assert failure.error.type == "asyncio.exceptions:CancelledError"
    assert journals[0].state.status is SagaStatus.EXECUTING


def test_a_run_that_is_cancelled_in_its_rollback_undoes_no_more() -> None:
    async def main() -> None:
        options = RunOptions(on_journal=journals.append, interceptors=(Injector(FaultPlan.parse("end@before")),))
        task = asyncio.ensure_future(ADAPTER.run(_pair(), {}, options=options))
        await asyncio.sleep(2.5)  # `b` is being undone
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    journals: list[Journal] = []
    with VirtualRunner() as runner:
        runner.run(main())
    state = journals[0].state
    assert state.status is SagaStatus.COMPENSATING
    assert list(state.results) == ["a", "b"]
    assert state.stuck == ("b",)
    assert state.undo_attempts == {"b": 1}


def test_a_step_that_raises_cancelled_error_counts_as_done_to_the_declarative_engine() -> None:
    saga = Saga(name="swallowing")

    async def leaky(ctx: Any) -> None:
        raise asyncio.CancelledError  # as a cancel scope does that leaks

    saga.add_step("a", leaky)
    saga.add_step("b", _sleepy, depends_on=["a"])
    ran = Ran(saga, {})
    assert ran.result is not None
    assert ran.result.status is SagaStatus.COMPLETED, "what the engine claims"
    assert ran.state.status is SagaStatus.FAILED
    assert ran.state.stuck == ("a",)
    assert ran.result.completed_steps == ("b",)


def test_a_step_that_raises_cancelled_error_stops_the_imperative_engine_with_nothing_undone() -> None:
    async def leaky(ctx: Any) -> None:
        raise asyncio.CancelledError

    ran = Ran(imperative({"name": "a", "action": _sleepy, "compensation": _undo}, {"name": "b", "action": leaky}), {})
    assert isinstance(ran.error, asyncio.CancelledError)
    assert ran.state.status is SagaStatus.EXECUTING
    assert ran.calls == ["a"]


def test_behind_a_pivot_only_what_came_after_it_is_undone_and_nothing_is_retried() -> None:
    asked: list[str] = []

    class Pivotal(Saga):
        @action("a")
        async def a(self, ctx): ...

        @compensate("a")
        async def undo_a(self, ctx): ...

        @action("b", depends_on=["a"], pivot=True)
        async def b(self, ctx): ...

        @compensate("b")
        async def undo_b(self, ctx): ...

        @action("c", depends_on=["b"])
        async def c(self, ctx): ...

        @compensate("c")
        async def undo_c(self, ctx): ...

        @action("d", depends_on=["c"])
        async def d(self, ctx): ...

        @forward_recovery("d")
        async def recover(self, ctx, error):
            asked.append("d")
            return RecoveryAction.RETRY

    model = model_of(Pivotal)
    assert model.step("b").pivot
    assert not model.step("d").has_recovery
    ran = Ran(Pivotal, {}, plan="d@before")
    assert ran.calls == ["a", "b", "c", "compensation c"]
    assert asked == []
    assert ran.state.status is SagaStatus.FAILED
    assert ran.state.stuck == ("d",)
    assert ran.result is not None
    assert ran.result.status is SagaStatus.ROLLED_BACK, "what the engine claims"
    assert Ran(Pivotal, {}, plan="b@before+a@undo-fail").state.stuck == ("a",)

    # The engine keeps what a pivot has locked in the instance; a run of ours begins without it.
    used = Pivotal()
    used._tainted_steps.add("a")
    used._completed_pivots.add("b")
    assert Ran(used, {}, plan="b@before").calls == ["a", "compensation a"]


def test_a_step_between_that_cannot_be_undone_breaks_the_order_of_undoing() -> None:
    """Its compensation graph has only direct edges between steps that have compensations."""
    undone: list[str] = []
    saga = Saga(name="gap")

    def undo(name: str, seconds: float) -> Callable[[Any], Any]:
        async def run(ctx: Any) -> None:
            await asyncio.sleep(seconds)
            undone.append(name)

        return run

    saga.add_step("a", _sleepy, undo("a", 1))
    saga.add_step("b", _sleepy, depends_on=["a"])
    saga.add_step("c", _sleepy, undo("c", 2), depends_on=["b"])
    Ran(saga, {}, plan="end@before")
    assert undone == ["a", "c"]


def test_a_sibling_of_a_failed_step_is_awaited_and_undone() -> None:
    saga = Saga(name="siblings")
    saga.add_step("slow", _sleepy, _sleepy)
    saga.add_step("bad", _sleepy, _sleepy)
    ran = Ran(saga, {}, plan="bad@before")
    assert ran.calls == ["slow", "compensation slow"]
    assert ran.state.status is SagaStatus.ROLLED_BACK


def test_a_sibling_is_cancelled_when_the_imperative_saga_says_so() -> None:
    saga = imperative(
        {"name": "root", "action": _sleepy, "compensation": _undo, "dependencies": set()},
        {"name": "slow", "action": _sleepy, "compensation": _undo, "dependencies": {"root"}},
        {"name": "bad", "action": _sleepy, "compensation": _undo, "dependencies": {"root"}},
        failure_strategy=ParallelFailureStrategy.FAIL_FAST,
    )
    ran = Ran(saga, {}, plan="bad@before")
    assert ran.calls == ["root", "compensation root"]
    assert ran.state.failed_step == "bad"
    assert "slow" in ran.state.ambiguous
    assert ran.state.status is SagaStatus.ROLLED_BACK


@pytest.mark.parametrize("fails", [False, True])
def test_what_ends_after_the_engine_has_ended_is_no_event_of_the_saga(fails: bool) -> None:
    """With FAIL_FAST it waits a second for a sibling that it has cancelled, and then goes on without it."""
    ended: list[str] = []

    async def stubborn(ctx: Any) -> str:
        await asyncio.sleep(1)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(10)
        await asyncio.sleep(10)
        ended.append("its effect")
        if fails:
            raise ValueError
        return "late"

    saga = imperative(
        {"name": "root", "action": _constant, "compensation": _undo, "dependencies": set()},
        {"name": "slow", "action": stubborn, "compensation": _undo, "dependencies": {"root"}},
        {"name": "bad", "action": _sleepy, "dependencies": {"root"}},
        failure_strategy=ParallelFailureStrategy.FAIL_FAST,
    )

    async def main() -> tuple[list[str], Journal]:
        options = RunOptions(on_journal=journals.append, interceptors=(Injector(FaultPlan.parse("bad@after")),))
        result = await ADAPTER.run(saga, {}, options=options)
        assert ended == []
        assert result.status is SagaStatus.ROLLED_BACK
        await asyncio.sleep(20)
        return [type(event).__name__ for event in result.events], journals[0]

    journals: list[Journal] = []
    with VirtualRunner() as runner:
        if fails:
            runner.loop.set_exception_handler(lambda loop, context: None)  # nobody takes its error
        events, journal = runner.run(main())
    assert ended == ["its effect"]
    assert events[-1] == "SagaRolledBack"
    assert len(journal.events) == len(events)
    assert "slow" in journal.state.running, "nobody knows what became of it"


def test_it_cannot_resume() -> None:
    assert set(ADAPTER.cannot) == {"crash", "crash-recorded", "undo-crash", "undo-crash-recorded"}
    with VirtualRunner() as runner, pytest.raises(UsageError, match=r"cannot be resumed.*replay it from a checkpoint"):
        runner.run(ADAPTER.resume(Shop(), SagaState()))


# ---- served steps


def test_served_steps_are_not_run_and_their_compensations_get_what_was_recorded() -> None:
    recorded = Ran(Shop, {"amount": 5}, plan="mail@before").journal
    before_mail = SagaState()
    for event in recorded.events[: [type(e).__name__ for e in recorded.events].index("StepFailed")]:
        before_mail.apply(event)
    saga = Shop()
    ran = Ran(saga, {"amount": 5}, plan="mail@before", served=served_from(before_mail))
    assert ran.calls == ["compensation charge", "compensation reserve"]
    assert saga.log == ["refund 5", "release R-1"]
    assert [e.how for e in ran.journal.events if isinstance(e, StepSucceeded)] == ["served", "served"]
    assert ran.state.context == {"amount": 5}
    assert ran.time == 0


def test_a_served_step_deletes_what_it_deleted() -> None:
    seen: list[dict[str, Any]] = []
    saga = Saga(name="serving")

    async def look(ctx: dict[str, Any]) -> None:
        seen.append({key: value for key, value in ctx.items() if not key.startswith("__")})

    saga.add_step("take", _sleepy)
    saga.add_step("look", look, depends_on=["take"])
    Ran(saga, {"coupon": "C"}, saga_id="S", served=[Served("take", None, Delta({"taken": "C"}, ("coupon",)))])
    assert seen == [{"saga_id": "S", "taken": "C"}]


def test_a_served_imperative_step_gives_its_result_to_its_compensation() -> None:
    given: list[Any] = []
    saga = imperative(
        {"name": "a", "action": _sleepy, "compensation": lambda result, ctx: given.append((result, ctx.get("a")))},
        {"name": "b", "action": _sleepy, "max_retries": 0},
    )
    Ran(saga, plan="b@before", served=[Served("a", "recorded", Delta({"a": "recorded"}))])
    assert given == [("recorded", "recorded")]


# ---- instances


def test_runs_of_one_instance_do_not_mix() -> None:
    saga = Shop()

    async def both() -> tuple[SagaResult, SagaResult]:
        first, second = (ADAPTER.run(saga, {"amount": amount}) for amount in (1, 2))
        return await asyncio.gather(first, second)

    with VirtualRunner() as runner:
        at_once = runner.run(both())
        after = [runner.run(ADAPTER.run(saga, {"amount": amount})) for amount in (3, 4)]
    for amount, result in enumerate((*at_once, *after), 1):
        assert result.context == {"amount": amount, "noted": True, "reservation": "R-1", "charge": amount}
    assert saga._context == {}
    assert saga._saga_id == ""
    assert saga.get_step("charge").forward_fn.__self__ is saga


def test_runs_of_one_imperative_instance_do_not_mix() -> None:
    saga = _imperative_pair()
    saga.context.set("given", 1)

    async def both() -> list[SagaResult]:
        return await asyncio.gather(*(ADAPTER.run(saga, {"n": n}) for n in range(3)))

    with VirtualRunner() as runner:
        results = runner.run(both())
        assert runner.loop.time() == 2
    assert [result.context["n"] for result in results] == [0, 1, 2]
    assert len({result.saga_id for result in results}) == 3
    assert saga.status.value == "pending"
    assert saga.context.data == {"given": 1}


def test_methods_and_partials_of_an_instance_are_bound_to_the_runs_copy() -> None:
    class Counting(Saga):
        count = 0

        async def add(self, ctx, by=1):
            self.count += by
            return {"count": self.count, "id": self._saga_id}

        @staticmethod
        async def with_owner(owner, ctx):
            return {"owner": owner._saga_id}

    saga = Counting(name="counting")
    saga.add_step("one", saga.add)
    saga.add_step("ten", partial(saga.add, by=10), depends_on=["one"])
    saga.add_step("owner", partial(Counting.with_owner, saga), depends_on=["ten"])
    for _ in range(2):
        ran = Ran(saga, {}, saga_id="S")
        assert ran.state.context == {"count": 11, "id": "S", "owner": "S"}
    assert saga.count == 0


# ---- capture


def captured(saga: Any, context: Any, plan: str = "", **config: Any) -> tuple[Ran, InMemorySnapshotStorage]:
    storage = InMemorySnapshotStorage()
    ran = Ran(saga, context, plan, storage=storage, replay_config=ReplayConfig(**config), saga_id="S-1")
    return ran, storage


def stored(storage: InMemorySnapshotStorage) -> tuple[Any, list[tuple[str, str]], list[dict[str, Any]]]:
    async def read() -> Any:
        page = await storage.list_snapshots("S-1")
        return await storage.get_saga("S-1"), page.items

    with VirtualRunner() as runner:
        record, snapshots = runner.run(read())
    states = [decode(state_bytes(snapshot))["context"] for snapshot in snapshots]
    return record, [(snapshot.phase, snapshot.step_name) for snapshot in snapshots], states


def test_a_run_is_captured_before_each_step_and_at_its_end() -> None:
    _, storage = captured(Shop, {"amount": 5})
    record, phases, contexts = stored(storage)
    assert (record.adapter, record.saga_name) == ("sagaz", "shop")
    assert record.source == f"{__name__}:Shop"
    assert record.fingerprint == model_of(Shop).fingerprint
    assert phases == [("before", "reserve"), ("before", "charge"), ("before", "mail"), ("final", "")]
    assert contexts[0] == {"amount": 5}
    assert contexts[1] == {"amount": 5, "noted": True, "reservation": "R-1"}


def test_a_rollback_is_captured_step_by_step() -> None:
    _, storage = captured(Shop, {"amount": 5}, "mail@before", snapshot_strategy=SnapshotStrategy.ON_FAILURE)
    _, phases, contexts = stored(storage)
    assert phases == [("failed", "mail"), ("undone", "charge"), ("undone", "reserve"), ("final", "")]
    assert contexts[-1] == {"amount": 5}


def test_a_cancelled_run_keeps_the_events_that_it_had() -> None:
    ran, storage = captured(Shop, {"amount": 5}, "charge@cancel")
    assert isinstance(ran.error, asyncio.CancelledError)

    async def read() -> list[str]:
        return [event.kind async for event in storage.read_events("S-1")]

    with VirtualRunner() as runner:
        assert runner.run(read())[-1] == "StepFailed"


@pytest.mark.parametrize("last", [False, True])
def test_a_result_that_cannot_be_stored_fails_the_run_after_undoing_everything(last: bool) -> None:
    saga = Saga(name="unfit")

    async def unfit(ctx: Any) -> dict[str, Any]:
        return {"handle": object()}

    saga.add_step("a", _sleepy, _sleepy)
    saga.add_step("b", unfit, _sleepy, depends_on=["a"])
    if not last:
        saga.add_step("c", _sleepy, _sleepy, depends_on=["b"])
    ran, storage = captured(saga, {})
    assert isinstance(ran.error, CannotStoreError)
    assert ran.calls == ["a", "b", "compensation b", "compensation a"]
    assert ran.state.status is SagaStatus.ROLLED_BACK
    assert stored(storage)[1][-1] == ("final", "")


class Failing(InMemorySnapshotStorage):
    """A store that fails at one of its writes (0, 1, 2…)."""

    def __init__(self, write: int) -> None:
        super().__init__()
        self.left = write

    async def write(self, batch: Any) -> None:
        self.left -= 1
        if self.left == -1:
            raise StoreUnavailableError("the store is gone")
        await super().write(batch)


@pytest.mark.parametrize("saga", [_pair(), _imperative_pair(), _imperative_pair(dependencies=True)])
def test_a_store_that_fails_at_any_write_fails_the_run_after_undoing(saga: Any) -> None:
    for plan, writes in (("", 5), ("end@before", 10)):
        for write in range(writes + 1):
            storage = Failing(write)
            ran = Ran(saga, {}, plan, storage=storage, replay_config=ReplayConfig())
            if write == writes:
                assert storage.left == 0, "it had no write of that number"
                assert ran.error is None
                continue
            assert isinstance(ran.error, StoreUnavailableError)
            # Only when the last write of all fails it is too late to turn back.
            assert ran.state.status is (SagaStatus.COMPLETED if write == 4 and not plan else SagaStatus.ROLLED_BACK)
            if ran.state.status is SagaStatus.ROLLED_BACK:
                undone = [call.removeprefix("compensation ") for call in ran.calls if call.startswith("comp")]
                assert undone[::-1] == [call for call in ran.calls if call in ("a", "b")]
                assert ran.state.context == {}


def test_an_instance_of_the_packages_own_class_has_no_source() -> None:
    _, storage = captured(_pair(), {})
    assert stored(storage)[0].source == ""


def test_the_first_event_has_the_whole_context() -> None:
    ran = Ran(Shop, {"amount": 5})
    first = ran.journal.events[0]
    assert isinstance(first, SagaStarted)
    assert first.context == {"amount": 5}
