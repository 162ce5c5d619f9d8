"""The Hypothesis strategies: every context fits its model, every fault of every plan strikes."""

from __future__ import annotations

import sys
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Annotated, Any, Literal

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PositiveInt, field_validator

from examples.orders import OrderSaga
from pytest_sagaz.strategies import contexts, plans
from sagaz_core import FaultPlan, Saga, SagaConfig, StepRejected
from sagaz_core.errors import UsageError
from sagaz_core.faults.kinds import KINDS
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import run


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(BaseModel):
    sku: Annotated[str, Field(pattern=r"^[A-Z]{2}[0-9]{3}$")]
    quantity: Annotated[int, Field(gt=0, le=9)]
    part_of: Line | None = None


class Order(BaseModel):
    order_id: Annotated[str, Field(min_length=3, max_length=8)]
    lines: Annotated[list[Line], Field(min_length=1, max_length=3)]
    price: Annotated[Decimal, Field(ge=0, max_digits=6, decimal_places=2)]
    weight: Annotated[float, Field(gt=0, lt=1)]
    packs: Annotated[int, Field(multiple_of=6, ge=1, le=40)]
    priority: PositiveInt = 1
    colour: Colour
    kind: Literal["new", "used"]
    at: datetime | None = Field(default=None, alias="placedAt")
    tags: frozenset[str] = frozenset()
    where: tuple[int, str] = (0, "")
    notes: dict[str, int | None] = {}

    @field_validator("order_id")
    @classmethod
    def not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("blank")
        return value


@settings(max_examples=100, deadline=None)
@given(context=contexts(Order))
def test_a_context_fits_its_model(context: dict[str, Any]) -> None:
    assert set(context) == set(Order.model_fields)
    assert isinstance(context["lines"][0], Line)
    assert 0 < context["weight"] < 1
    assert context["packs"] % 6 == 0
    assert -context["price"].as_tuple().exponent <= 2
    data = {("placedAt" if key == "at" else key): value for key, value in context.items()}
    assert dict(Order.model_validate(data)) == context


class Box(BaseModel):
    packs: Annotated[int, Field(multiple_of=6, ge=1, le=40)]
    labels: Annotated[list[bool], Field(max_length=3)]
    sealed: bool | None = None


def test_limits_are_reached() -> None:
    assert find(contexts(Box), lambda context: context["packs"] == 36)
    assert find(contexts(Box), lambda context: len(context["labels"]) == 3)
    assert find(contexts(Box), lambda context: context["sealed"] is not None)


def test_a_field_may_have_a_strategy_of_its_own() -> None:
    assert find(contexts(Line, quantity=st.just(7)), lambda context: True)["quantity"] == 7
    with pytest.raises(UsageError, match=r"Line has no field 'quantty' \(did you mean 'quantity'\?\)"):
        contexts(Line, quantty=st.just(7))


CONTEXT = {"order_id": "1", "sku": "W1", "quantity": 2, "price": "9.50", "address": "here"}


class Service:
    """Knows each of its clients' steps by name, and does nothing twice."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.closed: set[str] = set()

    async def do(self, step: str) -> None:
        if step in self.closed:
            raise StepRejected("undone before")
        self.done.add(step)

    async def undo(self, step: str) -> None:
        self.closed.add(step)
        self.done.discard(step)


async def _called(function: Any, name: str, ctx: Any) -> None:
    await function(name)


def made_of(edges: dict[str, list[str]], *, pivot: str = "", policy: str = "continue_on_error") -> Any:
    """Return a function that makes a sound saga of these steps, in which every kind of fault can be."""

    def make() -> Saga[Any]:
        service, saga = Service(), Saga("made", config=SagaConfig(on_compensation_failure=policy))
        for name, needs in edges.items():
            saga.add_step(
                name,
                partial(_called, service.do, name),
                None if name == pivot else partial(_called, service.undo, name),
                depends_on=needs,
                timeout=5.0,
                retries=2,
                compensation_timeout=5.0,
                in_doubt="ignore" if name == pivot else "compensate",
                pivot=name == pivot,
            )
        return saga

    return make


LINE = {"a": [], "b": ["a"], "c": ["b"], "d": ["c"]}
DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["a"]}
SAGAS = {
    "order": OrderSaga,
    "line": made_of(LINE),
    "fail fast": made_of(LINE, policy="fail_fast"),
    "skip dependents": made_of(DIAMOND, policy="skip_dependents"),
    "retry then continue": made_of(DIAMOND, policy="retry_then_continue"),
    "diamond": made_of(DIAMOND),
    "diamond, fail fast": made_of(DIAMOND, policy="fail_fast"),
    "pivot": made_of(LINE, pivot="c"),
    "pivot beside others": made_of(DIAMOND, pivot="c"),
}


@pytest.mark.parametrize("name", SAGAS)
def test_every_fault_of_every_plan_strikes_and_a_sound_saga_stays_sound(name: str) -> None:
    @settings(max_examples=150, deadline=None)
    @given(plan=plans(SAGAS[name], max_faults=4))
    def check(plan: FaultPlan) -> None:
        outcome = run(run_trial(Subject(SAGAS[name], CONTEXT), plan))
        assert not outcome.evidence.missed
        outcome.assert_sound()

    check()


@given(plan=plans(OrderSaga, kinds="before,undo-fail", max_faults=3))
def test_plans_have_the_kinds_and_the_number_asked_for(plan: FaultPlan) -> None:
    assert 1 <= len(plan.faults) <= 3
    assert {fault.kind for fault in plan} <= {"before", "undo-fail"}


@given(plan=plans(made_of(DIAMOND), max_faults=5))
def test_faults_are_in_the_order_in_which_they_strike(plan: FaultPlan) -> None:
    phases = [1 if fault.described.undo else 0 for fault in plan]
    assert phases == sorted(phases)
    forward = [fault for fault in plan if not fault.described.undo]
    assert not any(fault.described.fatal for fault in forward[:-1])
    places = ["abcde".index(fault.step) for fault in plan if fault.described.undo]
    assert places == sorted(places, reverse=True)


def test_every_kind_comes_up() -> None:
    for kind in KINDS:
        assert find(plans(OrderSaga), lambda plan, kind=kind: plan.faults[-1].kind == kind)  # type: ignore[misc]


def test_every_plan_of_up_to_two_faults_comes_up() -> None:
    seen: set[str] = set()

    @settings(max_examples=1500, deadline=None, database=None, derandomize=True)
    @given(plan=plans(made_of({"a": [], "b": ["a"]}), kinds="before,repeat,undo-fail,undo-repeat", max_faults=2))
    def collect(plan: FaultPlan) -> None:
        seen.add(str(plan))

    collect()
    undo = [f"{step}@{kind}" for kind in ("undo-fail", "undo-repeat") for step in "ab"]
    singles = {"a@before", "b@before", "end@before", "a@repeat", "b@repeat", *undo}
    pairs = {"a@repeat+b@repeat", "a@repeat+b@before", "a@repeat+end@before", "b@repeat+end@before"}
    pairs |= {f"b@{one}+a@{other}" for one in ("undo-fail", "undo-repeat") for other in ("undo-fail", "undo-repeat")}
    pairs |= {f"end@before+{each}" for each in undo} | {f"b@before+{each}" for each in undo}
    pairs |= {f"a@before+{each}" for each in undo if each.startswith("a")}
    assert seen == singles | pairs


def test_a_failing_plan_shrinks_to_the_fewest_faults_the_simplest_kind_and_the_earliest_step() -> None:
    def smallest(condition: Any) -> str:
        few = "before,after,crash,repeat,undo-fail,undo-repeat"
        return str(
            find(plans(OrderSaga, few, max_faults=4), condition, settings=settings(max_examples=5000, database=None))
        )

    assert smallest(lambda plan: True) == "reserve_inventory@before"
    assert smallest(lambda plan: any(fault.described.undo for fault in plan)) == "reserve_inventory@undo-fail"
    two = {"charge_payment@repeat", "reserve_inventory@undo-fail"}  # a third one must turn the saga back
    assert (
        smallest(lambda plan: two <= set(map(str, plan)))
        == "charge_payment@repeat+ship_order@before+reserve_inventory@undo-fail"
    )
    assert smallest(lambda plan: any(fault.step == "ship_order" for fault in plan)) == "ship_order@before"


def test_a_pivot_is_where_faults_of_compensations_alone_turn_back() -> None:
    assert str(find(plans(SAGAS["pivot"], kinds="undo-fail"), lambda plan: True)) == "c@before+a@undo-fail"


@pytest.mark.parametrize("wrong", [dict, 5, None, Line(sku="AB123", quantity=1)], ids=str)
def test_contexts_of_what_is_no_model_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="give a pydantic model, the class"):
        contexts(wrong)


def test_plans_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="max_faults='2': a plan has at least 1 fault"):
        plans(SAGAS["pivot"], max_faults="2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_faults=0: a plan has at least 1 fault"):
        plans(OrderSaga, max_faults=0)
    with pytest.raises(UsageError, match="can have no fault of the kinds 'undo-fail'"):
        plans(Saga("bare").add_step("a", print), kinds="undo-fail")


def test_without_hypothesis_the_error_names_the_extra(pytester: pytest.Pytester) -> None:
    script = "import sys; sys.modules['hypothesis'] = None\nimport pytest_sagaz.strategies"
    result = pytester.run(sys.executable, "-c", script)
    assert "needs the hypothesis extra: pip install 'pytest-sagaz[hypothesis]'" in result.stderr.str()
