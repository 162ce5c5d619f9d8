"""The judgement, each verdict shown on a saga (or an engine) that deserves it."""

from __future__ import annotations

from typing import Any

import pytest

from sagaz_core import Outcome, Saga, SagaConfig, World, action, compensate, crash, fail, repeat
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.prove.ledger import Ledger
from sagaz_core.prove.outcome import UnsoundError
from sagaz_core.prove.trial import Subject, reference_reading, run_trial
from sagaz_core.prove.verdict import Verdict
from sagaz_core.virtual_time import run


class Bank:
    """A fake with accounts; `keyed` payments notice a second one of the same order."""

    def __init__(self, *, keyed: bool = True) -> None:
        self.balance = 100
        self.paid: list[str] = []
        self.keyed = keyed

    def pay(self, order: str) -> None:
        if self.keyed and order in self.paid:
            return
        self.balance -= 10
        self.paid.append(order)

    def refund(self, order: str) -> None:
        if order in self.paid:
            self.paid.remove(order)
            self.balance += 10


class Shop(Saga):
    saga_name = "shop"

    def __init__(self, bank: Bank | None = None) -> None:
        super().__init__()
        self.bank = bank or Bank()

    @action("reserve", in_doubt="compensate")
    async def reserve(self, ctx: Any) -> dict[str, str]:
        return {"reservation": f"r-{ctx['order']}"}

    @compensate("reserve")
    async def release(self, ctx: Any) -> None: ...

    @action("pay", in_doubt="compensate", retries=1, timeout=5)
    async def pay(self, ctx: Any) -> None:
        self.bank.pay(ctx["order"])

    @compensate("pay")
    async def refund(self, ctx: Any) -> None:
        self.bank.refund(ctx["order"])

    @action("ship")
    async def ship(self, ctx: Any) -> None: ...


class Careless(Shop):
    @action("pay")
    async def pay(self, ctx: Any) -> None:
        self.bank.pay(ctx["order"])


def trial(saga: Any, plan: FaultPlan | str = NO_FAULTS, *, world: World | None = None, **options: Any) -> Outcome:
    plan = FaultPlan.parse(plan) if isinstance(plan, str) else plan
    subject = Subject(lambda: saga, {"order": "o1"}, world=world, **options)

    async def judged() -> Outcome:
        reference = await reference_reading(subject)
        return await run_trial(subject, plan, reference=reference)

    return run(judged())


def world_of(bank: Bank) -> World:
    world = World()
    world.fake(bank)
    return world


def test_a_sound_saga_is_clean_under_every_kind_of_fault() -> None:
    from sagaz_core import explore

    bank = Bank()
    exploration = explore(lambda: Shop(bank), {"order": "o1"}, world=world_of(bank), mode="packed")
    late = [str(o.plan) for o in exploration.failures]
    # A delayed request that comes after the refund needs a tombstone, which this bank does not keep.
    assert late == ["pay@late"]
    singles = (6 + 7) + (10 + 7) + 6 + 1  # reserve, pay, ship: kinds of action and compensation; the end
    packed = 3 + 5  # the benign kinds that more than one step can have
    assert exploration.plans == singles + packed + 1
    assert [str(o.plan) for o in explore(lambda: Shop(bank), {"order": "o1"}, world=world_of(bank)).failures] == late


def test_a_lost_acknowledgement_leaves_an_orphan_and_says_what_to_declare() -> None:
    outcome = trial(Careless(), "pay@after")
    assert outcome.verdict is Verdict.ORPHAN
    assert outcome.orphans == ["pay"]
    with pytest.raises(UnsoundError, match=r"^ORPHAN under pay@after: the effect of 'pay' was left behind$") as raised:
        outcome.assert_sound()
    assert 'declare in_doubt="compensate"' in raised.value.report


def test_an_effect_that_comes_after_its_compensation_is_an_orphan() -> None:
    outcome = trial(Shop(), "pay@late")
    assert outcome.orphans == ["pay"]
    assert "tombstone" in outcome.explain()


def test_a_compensation_that_undoes_nothing_makes_the_engine_lie() -> None:
    class Lazy(Shop):
        async def refund(self, ctx: Any) -> None:
            """Returns as if it had paid the money back."""

    bank = Bank()
    outcome = trial(Lazy(bank), "ship@before", world=world_of(bank))
    assert outcome.verdict is Verdict.LIE
    assert "Bank.balance: 100 -> 90" in outcome.findings[0].sentence


def test_what_was_undone_at_last_is_judged_though_its_compensation_had_no_attempt_left() -> None:
    class Lazy(Shop):
        async def refund(self, ctx: Any) -> None:
            """Returns as if it had paid the money back."""

    bank = Bank()
    saga = Lazy(bank)
    saga.config = SagaConfig(on_compensation_failure="retry_then_continue")
    outcome = trial(saga, "ship@before+pay@undo-flaky:3", world=world_of(bank))
    assert (outcome.status.value, outcome.verdict) == ("rolled_back", Verdict.LIE)


def test_a_step_without_compensation_that_changed_the_world_is_an_orphan() -> None:
    bank = Bank()

    class NoRefund(Saga):
        @action("pay")
        async def pay(self, ctx: Any) -> None:
            bank.pay("o1")

        @action("ship")
        async def ship(self, ctx: Any) -> None: ...

    outcome = trial(NoRefund(), "ship@before", world=world_of(bank))
    assert outcome.verdict is Verdict.ORPHAN
    assert outcome.orphans == ["pay"]


def test_an_action_that_pays_twice_when_delivered_twice_is_not_idempotent() -> None:
    bank = Bank(keyed=False)
    outcome = trial(Shop(bank), repeat("pay"), world=world_of(bank))
    assert outcome.verdict is Verdict.NOT_IDEMPOTENT
    bank = Bank()
    assert trial(Shop(bank), repeat("pay"), world=world_of(bank)).verdict is Verdict.CLEAN


def test_an_action_that_refuses_a_second_delivery_is_not_idempotent() -> None:
    class Picky(Shop):
        @action("pay", in_doubt="compensate")
        async def pay(self, ctx: Any) -> None:
            if self.bank.paid:
                raise ValueError("already paid")
            self.bank.pay(ctx["order"])

    for plan in (repeat("pay"), crash("pay")):
        outcome = trial(Picky(Bank()), plan)
        assert outcome.verdict is Verdict.NOT_IDEMPOTENT, plan
        assert "already paid" in outcome.findings[0].sentence


def test_an_engine_that_compensates_twice_undoes_twice() -> None:
    class Twice:
        async def intercept(self, call: Any, proceed: Any) -> Any:
            await proceed()
            return await proceed() if call.kind == "compensation" else None

    outcome = trial(Shop(), "ship@before", interceptors=(Twice(),))
    assert outcome.verdict is Verdict.DOUBLE_UNDO
    assert {finding.step for finding in outcome.findings} == {"pay", "reserve"}


def test_an_engine_that_undoes_what_was_never_done_is_seen() -> None:
    class Overeager:
        async def intercept(self, call: Any, proceed: Any) -> Any:
            if call.kind == "action" and call.step == "pay":
                return None  # says that it was done
            return await proceed()

    outcome = trial(Shop(), "ship@before", interceptors=(Overeager(),))
    assert outcome.verdict is Verdict.UNDO_WITHOUT_DO


def test_in_doubt_compensation_of_an_effect_that_never_happened_is_no_fault() -> None:
    assert trial(Shop(), "pay@before").verdict is Verdict.CLEAN


def test_undoing_a_step_before_its_dependant_is_out_of_order() -> None:
    outcome = trial(Shop(), "ship@before")
    ledger = Ledger()
    entries = outcome.evidence.ledger.entries
    first, second = (entry for entry in entries if entry.undo)
    swapped = [first._replace(step=second.step), second._replace(step=first.step)]
    ledger.entries = [entry for entry in entries if not entry.undo] + swapped
    from dataclasses import replace

    wrong = Outcome(replace(outcome.evidence, ledger=ledger))
    assert wrong.verdict is Verdict.OUT_OF_ORDER
    assert "'reserve' was undone while 'pay'" in wrong.findings[0].sentence
    assert "a legal order        pay, reserve" in wrong.explain()
    assert "a legal order" not in outcome.explain()


def test_a_compensation_that_fails_by_itself_is_stuck() -> None:
    class Broken(Shop):
        @compensate("pay", retries=0)
        async def refund(self, ctx: Any) -> None:
            raise RuntimeError("no connection")

    outcome = trial(Broken(), "ship@before")
    assert outcome.verdict is Verdict.STUCK
    assert outcome.stuck == ["pay"]
    outcome.assert_stuck("pay")


@pytest.mark.parametrize("policy", ["fail_fast", "continue_on_error", "retry_then_continue", "skip_dependents"])
@pytest.mark.parametrize("kind", ["fail", "fail-after"])
def test_a_compensation_that_is_made_to_fail_is_sound_when_exactly_it_is_stuck(policy: Any, kind: str) -> None:
    saga = Shop()
    saga.config = SagaConfig(on_compensation_failure=policy)
    outcome = trial(saga, fail.undo("pay", at=kind))
    outcome.assert_sound()
    left = {"pay"} if policy in ("continue_on_error", "retry_then_continue") else {"pay", "reserve"}
    assert set(outcome.stuck) == left


def test_what_a_compensation_leaves_in_the_context_is_a_leak() -> None:
    class Leaky(Shop):
        async def refund(self, ctx: Any) -> None:
            ctx["refunded"] = True

    outcome = trial(Leaky(), "ship@before")
    assert outcome.verdict is Verdict.CONTEXT_LEAK
    assert "'refunded' (still there, from the compensation of 'pay')" in outcome.findings[0].sentence
    assert outcome.findings[0].step == "pay"


def test_a_value_changed_in_place_and_not_put_back_is_a_leak() -> None:
    class InPlace(Shop):
        @action("reserve")
        async def reserve(self, ctx: Any) -> None:
            ctx["lines"].append("reserved")

    saga = InPlace()
    outcome = run(run_trial(Subject(lambda: saga, {"order": "o1", "lines": []}), FaultPlan.parse("ship@before")))
    assert outcome.verdict is Verdict.CONTEXT_LEAK
    assert "'lines' (changed)" in outcome.findings[0].sentence
    assert outcome.findings[0].step is None


def test_a_fault_that_never_happens_is_vacuous() -> None:
    class Refuses(Shop):
        @action("reserve")
        async def reserve(self, ctx: Any) -> None:
            raise ValueError("out of stock")

    outcome = trial(Refuses(), "ship@before")
    assert outcome.verdict is Verdict.VACUOUS
    assert "out of stock" in outcome.findings[0].sentence


def test_a_swallowed_error_is_a_lie() -> None:
    class Optimist:
        async def intercept(self, call: Any, proceed: Any) -> Any:
            try:
                return await proceed()
            except Exception:
                return None

    outcome = trial(Shop(), "pay@before", interceptors=(Optimist(),))
    assert outcome.verdict is Verdict.LIE
    assert "the error was swallowed" in outcome.findings[0].sentence


def test_cancelling_the_saga_compensates_and_is_sound() -> None:
    outcome = trial(Shop(), "pay@cancel")
    assert outcome.verdict is Verdict.CLEAN
    outcome.assert_compensated("reserve", "pay")


def test_assertions_say_which_steps_are_missing() -> None:
    outcome = trial(Shop(), "ship@before")
    with pytest.raises(UnsoundError, match=r"^not compensated: ship; compensated though not expected: pay, reserve$"):
        outcome.assert_compensated("ship")
    with pytest.raises(LookupError, match="did you mean 'ship'"):
        outcome.assert_compensated("shi")
    with pytest.raises(UnsoundError, match="the saga ended rolled_back"):
        outcome.assert_completed()


def test_the_context_at_a_step_and_its_difference() -> None:
    outcome = trial(Shop(), "ship@before")
    before, after = outcome.at("reserve", "before"), outcome.at("reserve", "after")
    assert outcome.diff(before, outcome.at("pay", "before")) == {"reservation": (None, "r-o1")}
    assert before == after == {"order": "o1"}  # it was undone last


class Pivoted(Saga):
    @action("reserve")
    async def reserve(self, ctx: Any) -> None: ...

    @compensate("reserve")
    async def release(self, ctx: Any) -> None: ...

    @action("pay", pivot=True)
    async def pay(self, ctx: Any) -> None: ...

    @compensate("pay")
    async def refund(self, ctx: Any) -> None: ...

    @action("ship")
    async def ship(self, ctx: Any) -> None: ...


def test_every_plan_of_a_saga_with_a_pivot_is_judged_by_going_forward() -> None:
    from sagaz_core import explore

    exploration = explore(Pivoted, {}, kinds="all")
    wrong = {str(o.plan): o.verdict.value for o in exploration.failures}
    # Their effects are in doubt and nobody compensates them: that is what in_doubt="ignore" means.
    assert wrong == {
        "reserve@after": "ORPHAN",
        "reserve@cancel": "ORPHAN",
        "pay@after": "ORPHAN",
        "pay@cancel": "ORPHAN",
    }
    ship = next(o for o in exploration.outcomes if str(o.plan) == "ship@before")
    assert (ship.status.value, ship.stuck, ship.compensated) == ("failed", ["ship"], [])


def test_a_plugin_s_monitor_judges_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from sagaz_core.hookspecs import hookimpl
    from sagaz_core.plugins import plugin_manager
    from sagaz_core.prove.oracle import monitors
    from sagaz_core.prove.verdict import Finding

    def no_refund_on_sunday(evidence: Any) -> Any:
        if "pay" in evidence.state.undone:
            yield Finding(Verdict.LIE, "pay", "the bank is closed")

    class Plugin:
        @hookimpl
        def sagaz_monitors(self) -> list[Any]:
            return [no_refund_on_sunday]

    plugin_manager().register(plugin := Plugin())
    monitors.cache_clear()
    try:
        assert [finding.sentence for finding in trial(Shop(), "ship@before").findings] == ["the bank is closed"]
    finally:
        plugin_manager().unregister(plugin)
        monitors.cache_clear()
    assert trial(Shop(), "ship@before").verdict is Verdict.CLEAN


class Counter:
    """A fake whose undoing is not told apart: it goes below nothing."""

    def __init__(self) -> None:
        self.taken = 0


def counted(plan: str) -> Outcome:
    counter, world = Counter(), World()
    world.fake(counter)

    def take(by: int) -> Any:
        return lambda ctx: setattr(counter, "taken", counter.taken + by)

    saga: Saga[Any] = Saga("counter")
    saga.add_step("take", take(1), take(-1), in_doubt="compensate").add_step("tell", lambda ctx: None)
    return run(run_trial(Subject(lambda: saga, world=world), FaultPlan.parse(plan)))


TWICE = "let the compensation of take do nothing when there is nothing left to undo: it ran twice; or else "


@pytest.mark.parametrize(
    ("plan", "advice"),
    [
        (
            "take@before",
            "let the compensation of take do nothing when there is nothing to undo: its action had not happened",
        ),
        ("take@undo-repeat", f"{TWICE}it does not undo all that was done"),
        ("tell@before+take@undo-repeat", f"{TWICE}it does not undo all that was done"),
    ],
)
def test_a_compensation_that_undoes_what_is_not_there_is_named_and_not_a_step_beside_it(plan: str, advice: str) -> None:
    outcome = counted(plan)
    assert (outcome.verdict, outcome.orphans) == (Verdict.LIE, [])
    assert outcome.findings[0].advice == advice
    assert counted("tell@before").findings == ()
