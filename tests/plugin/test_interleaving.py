"""Two executions over one world: each anomaly is found by its name where there is one, and none where there is none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from banks import (
    AbsoluteUndo,
    Bank,
    KeepsLock,
    LateUpgrade,
    Locked,
    Offer,
    StaleWithdraw,
    Upgrade,
    Withdraw,
)
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from examples.orders import OrderSaga, Payments, Shipping, Stock
from pytest_sagaz.anomalies import AnomalyError
from pytest_sagaz.interleaving import Interleaving
from pytest_sagaz.strategies import SagaMachine
from sagaz_core import Saga, World, action, compensate
from sagaz_core.errors import DefinitionError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

ANN, BOB = {"who": "ann", "amount": 30}, {"who": "bob", "amount": 20}


def machine(ann: type[Any], bob: type[Any], **attributes: Any) -> type[SagaMachine]:
    """Return a machine of an execution of each over one bank."""

    class Two(SagaMachine):
        def begin(self, world: World) -> dict[str, Any]:
            bank = world.fake(Bank(joint=100), "bank")
            return {"ann": (ann(bank), ANN), "bob": (bob(bank), BOB)}

    for name, value in attributes.items():
        setattr(Two, name, value)
    return Two


def run(two: type[SagaMachine], examples: int = 100) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call] # as Hypothesis has it
        two,
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


def anomaly(two: type[SagaMachine]) -> list[str]:
    with pytest.raises(AnomalyError) as raised:
        run(two)
    return str(raised.value).splitlines()


LOST = (
    "LOST UPDATE of bank.balances.joint: bob's do take (line 4) overwrote what ann's do take (line 3) had written, "
    "having begun before it"
)


def test_a_lost_update_is_found_and_shrunk_to_its_schedule() -> None:
    assert anomaly(machine(StaleWithdraw, StaleWithdraw)) == [
        LOST,
        "",
        "1  bob  do look",
        "2  ann  do look",
        "3  ann  do take   bank.balances.joint: 100 -> 70   bank.done.ann: (nothing) -> 30",
        "4  bob  do take   bank.balances.joint: 70 -> 80   bank.done.bob: (nothing) -> 20",
        "",
        "ended: ann completed, bob completed",
    ]


def test_an_update_that_a_compensation_overwrites_is_lost_too() -> None:
    lines = anomaly(machine(AbsoluteUndo, AbsoluteUndo))
    assert lines[0].startswith("LOST UPDATE of bank.balances.joint: ")
    assert "undo take" in lines[0]


def test_a_dirty_read_is_found() -> None:
    lines = anomaly(machine(Upgrade, Offer, faults=()))
    assert lines[0] == (
        "DIRTY READ of bank.locks.joint: bob's do offer (line 2) came after ann's do make_gold (line 1), "
        "which ann's undo make_gold (line 4) took back"
    )
    assert lines[-1] == "ended: ann rolled_back, bob completed"


def test_a_lock_that_is_not_released_is_found() -> None:
    lines = anomaly(machine(KeepsLock, KeepsLock, locks=("bank.locks.*",)))
    assert lines[0] == "UNRELEASED LOCK: ann's do lock (line 1) left it: bank.locks.joint: (nothing) -> 'ann'"
    assert len(lines) < 10


@pytest.mark.parametrize(
    ("ann", "bob"), [(Withdraw, Withdraw), (Locked, Locked), (LateUpgrade, Offer), (Withdraw, Offer)]
)
def test_there_is_no_alarm_about_sound_sagas(ann: type[Any], bob: type[Any]) -> None:
    run(machine(ann, bob, locks=("bank.locks.*",)), examples=200)


def test_what_a_saga_leaves_by_itself_is_told_apart() -> None:
    class Forgets(Withdraw):
        @compensate("take")
        async def give_back(self, ctx: Any) -> None:
            pass

    both = interleaving(Forgets, Withdraw)
    both.advance(0)
    both.advance(0)
    both.fail(0)
    with pytest.raises(AnomalyError) as raised:
        both.finish()
    assert raised.value.anomaly == (
        "ORPHAN at bank.done.ann: ann's do take (line 2) was not undone when ann was rolled back"
    )
    both.close()


def test_there_is_no_alarm_about_the_example() -> None:
    class TwoOrders(SagaMachine):
        def begin(self, world: World) -> dict[str, Any]:
            services = [world.fake(service(), append_only=["closed"]) for service in (Stock, Payments, Shipping)]
            order = {"sku": "W1", "quantity": 2, "price": "9.50", "address": "here"}
            return {name: (OrderSaga(*services), {**order, "order_id": name}) for name in ("ann", "bob")}

    run(TwoOrders, examples=50)


def test_without_faults_nothing_fails() -> None:
    ends: list[str] = []

    class Two(machine(Withdraw, Withdraw, faults=())):  # type: ignore[misc] # a class made by a function
        def teardown(self) -> None:
            super().teardown()
            ends.extend(each.state.status.value for each in self.interleaving.executions)

    run(Two, examples=30)
    assert set(ends) == {"completed"}


# -- the schedule by hand


def interleaving(*sagas: Callable[[Bank], Any], bank: Bank | None = None, **options: Any) -> Interleaving:
    world = World()
    made = world.fake(bank or Bank(joint=100), "bank")
    contexts = [ANN, BOB, {"who": "eve", "amount": 10}]
    named = zip(("ann", "bob", "eve"), sagas, contexts, strict=False)
    return Interleaving(world, {name: (saga(made), context) for name, saga, context in named}, **options)


def test_one_call_is_let_go_at_a_time() -> None:
    both = interleaving(Withdraw, Withdraw)
    assert [(call.execution.name, call.step) for call in both.calls] == [("ann", "look"), ("bob", "look")]
    both.advance(1)
    assert [(call.execution.name, call.step) for call in both.calls] == [("ann", "look"), ("bob", "take")]
    both.fail(1)
    assert [(call.execution.name, call.kind) for call in both.calls] == [("ann", "action"), ("bob", "compensation")]
    both.cancel(0)
    assert [call.execution.name for call in both.calls] == ["bob"]
    both.finish()
    assert [str(line) for line in both.lines] == [
        "bob  do look",
        "bob  do take   fails",
        "ann  do look   is cancelled",
        "bob  undo take",
    ]
    both.close()


def test_three_executions_are_compared_with_every_order() -> None:
    three = interleaving(Locked, Withdraw, Withdraw)
    for which in (0, 0, 1, 1, 2):
        three.advance(which)
    with pytest.raises(AnomalyError, match="LOST UPDATE"):
        three.finish()
    three.close()


class Waits(Saga):
    """Waits in its step until another one is done."""

    saga_name = "waits"

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank

    @action("wait")
    async def wait(self, ctx: Any) -> None:
        while not self.bank.done:  # noqa: ASYNC110 - as clients of a service do that cannot tell them
            await asyncio.sleep(0.5)
        self.bank.balances["joint"] -= 1


def test_a_call_that_waits_for_another_execution_does_not_stop_it() -> None:
    both = interleaving(Waits, Withdraw)
    both.advance(0)
    assert [call.execution.name for call in both.calls] == ["bob"]
    both.finish()
    assert [line.who for line in both.lines] == ["bob", "bob", "ann", "bob"]
    both.close()


def test_those_that_wait_for_each_other_are_named() -> None:
    both = interleaving(Waits, Waits)
    both.advance(0)
    with pytest.raises(AnomalyError, match="NO END"):
        both.finish()
    both.close()


class Stuck(Withdraw):
    saga_name = "stuck"

    @compensate("take")
    async def give_back(self, ctx: Any) -> None:
        raise ConnectionError("the bank is closed")


def test_a_compensation_that_cannot_succeed_is_told() -> None:
    both = interleaving(Stuck, Withdraw)
    both.advance(0)
    both.advance(0)
    both.fail(0)
    with pytest.raises(AnomalyError, match="STUCK") as raised:
        both.finish()
    assert "ann  undo take   raises ConnectionError: the bank is closed" in str(raised.value)
    assert str(raised.value).endswith("ended: ann failed: take")
    both.close()


class TwoSteps(Saga):
    """Two steps at once."""

    saga_name = "two-steps"

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank

    @action("left", depends_on=[])
    async def left(self, ctx: Any) -> None:
        self.bank.done["left"] = 1

    @action("right", depends_on=[])
    def right(self, ctx: Any) -> None:
        self.bank.done["right"] = 1


def test_steps_that_run_side_by_side_are_let_go_in_any_order() -> None:
    both = interleaving(TwoSteps, Withdraw)
    assert [call.step for call in both.calls] == ["left", "right", "look"]
    both.advance(1)
    assert [call.step for call in both.calls] == ["left", "look"]
    both.finish()
    both.close()


def test_what_may_grow_is_compared_as_the_world_has_it() -> None:
    class Log(Saga):
        saga_name = "log"

        def __init__(self, log: list[str]) -> None:
            super().__init__()
            self.log = log

        @action("one")
        async def one(self, ctx: Any) -> None:
            self.log.append("one")

        @action("two")
        async def two(self, ctx: Any) -> None:
            self.log.append("two")

    class Book:
        def __init__(self) -> None:
            self.log: list[str] = []

    def ended(**options: Any) -> None:
        world = World()
        book = world.fake(Book(), "book", **options)
        both = Interleaving(world, {"ann": (Log(book.log), {}), "bob": (lambda: Log(book.log), {})})
        for which in (0, 1, 0, 1):
            both.advance(which)
        try:
            both.finish()
        finally:
            both.close()

    with pytest.raises(AnomalyError):
        ended()
    ended(append_only=["log"])


# -- wrong use


def test_a_world_that_cannot_be_put_back_is_refused() -> None:
    world = World()
    world.probe("stock", dict)
    with pytest.raises(UsageError, match=r"over fakes only: begin\(\) registers them by world\.fake"):
        Interleaving(world, {})


def test_one_execution_is_refused() -> None:
    with pytest.raises(UsageError, match=r"begin\(\) returned 1 executions"):
        interleaving(Withdraw)


def test_a_saga_that_cannot_run_is_told_at_once() -> None:
    with pytest.raises(DefinitionError, match="in a circle"):
        interleaving(lambda bank: Saga("round").add_step("a", print, depends_on=["a"]), Withdraw)


def test_a_machine_without_begin_says_so() -> None:
    class Nothing(SagaMachine):
        pass

    with pytest.raises(NotImplementedError, match=r"Nothing needs a method begin\(self, world\)"):
        Nothing()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"locks": "bank.locks.*"}, r"Two\.locks = 'bank\.locks\.\*': write a tuple of patterns"),
        ({"faults": ("fail", "crash")}, r"Two\.faults = \('fail', 'crash'\): write any of"),
    ],
    ids=["locks", "faults"],
)
def test_a_wrong_attribute_is_an_error(attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        machine(Withdraw, Withdraw, **attributes)()


class Deposit(Withdraw):
    saga_name = "deposit"

    @action("check")
    async def check(self, ctx: Any) -> None:
        """Do nothing: for a fault to strike."""


class Report(Saga[Any]):
    saga_name = "report"

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self.bank = bank

    @action("mail")
    async def mail(self, ctx: Any) -> None:
        self.bank.done["report"] = self.bank.balances["joint"]


def test_a_fault_after_what_another_did_is_not_rare() -> None:
    found = 0
    for seed in range(5):
        try:
            run_state_machine_as_test(  # type: ignore[no-untyped-call] # as Hypothesis has it
                hypothesis.seed(seed)(machine(Deposit, Report)),
                settings=settings(stateful_step_count=12, deadline=None, database=None, phases=[Phase.generate]),
            )
        except AnomalyError as error:
            found += error.anomaly.startswith("DIRTY READ")
    assert found >= 3


@pytest.mark.parametrize("waits", [asyncio.Event().wait, lambda: asyncio.sleep(0)], ids=["waits", "polls"])
def test_a_step_that_never_ends_is_named_and_soon(waits: Callable[[], Any]) -> None:
    class Endless(Withdraw):
        @action("wait")
        async def wait(self, ctx: Any) -> None:
            while True:
                await waits()

    both = interleaving(Endless, Withdraw)
    with pytest.raises(AnomalyError, match="NO END") as raised:
        both.finish()
    assert "ended: ann waits for ever" in str(raised.value)
    both.close()


def test_the_network_is_out_of_reach() -> None:
    class Calls(Saga):
        @action("call")
        async def call(self, ctx: Any) -> None:
            import socket

            socket.create_connection(("shop.example.org", 80))

    both = interleaving(lambda bank: Calls(), Withdraw)
    with pytest.raises(UsageError, match=r"a saga tried to connect to shop\.example\.org:80"):
        both.advance(0)
    both.close()
