"""The Hypothesis strategies: every context fits its model, every fault of every plan strikes."""

from __future__ import annotations

import sys
from datetime import datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, PositiveInt, field_validator

from examples.orders import OrderSaga
from pytest_sagaz.strategies import contexts, fault_plans
from sagaz_core import FaultPlan, Saga
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


@settings(max_examples=200, deadline=None)
@given(plan=fault_plans(OrderSaga, max_faults=2))
def test_every_plan_strikes_and_a_sound_saga_stays_sound(plan: FaultPlan) -> None:
    assert 1 <= len(plan.faults) <= 2
    run(run_trial(Subject(OrderSaga, CONTEXT), plan)).assert_sound()


@given(plan=fault_plans(OrderSaga, kinds="before,undo-fail"))
def test_plans_have_the_kinds_and_the_number_asked_for(plan: FaultPlan) -> None:
    assert len(plan.faults) == 1
    assert {fault.kind for fault in plan} <= {"before", "undo-fail"}


def test_every_kind_comes_up() -> None:
    for kind in KINDS:
        assert find(fault_plans(OrderSaga), lambda plan, kind=kind: plan.faults[-1].kind == kind)  # type: ignore[misc]


def test_plans_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="max_faults=3: plans have 1 or 2 faults"):
        fault_plans(OrderSaga, max_faults=3)
    with pytest.raises(UsageError, match="can have no fault of the kinds 'undo-fail'"):
        fault_plans(Saga("bare").add_step("a", print), kinds="undo-fail")


def test_without_hypothesis_the_error_names_the_extra(pytester: pytest.Pytester) -> None:
    script = "import sys; sys.modules['hypothesis'] = None\nimport pytest_sagaz.strategies"
    result = pytester.run(sys.executable, "-c", script)
    assert "needs the hypothesis extra: pip install 'pytest-sagaz[hypothesis]'" in result.stderr.str()
