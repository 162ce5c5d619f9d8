"""Fault plans are values with one string form."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagaz_core import FaultPlan, crash, fail, repeat
from sagaz_core.errors import PlanError
from sagaz_core.faults.kinds import KINDS, QUICK, parse_kinds
from sagaz_core.faults.plan import Fault, as_plan, single_fault_plans
from sagaz_core.model import SagaModel, StepModel

names = st.text(st.characters(exclude_characters="@+#:", categories=("L", "N", "P")), min_size=1, max_size=9).filter(
    lambda name: not any(c.isspace() for c in name)
)


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    kind = draw(st.sampled_from(list(KINDS)))
    times = draw(st.integers(1, 999999)) if "flaky" in kind else 1
    return Fault(draw(names), kind, draw(st.none() | st.integers(1, 999999)), times)


@given(st.lists(faults(), min_size=1, max_size=4))
def test_reading_a_plan_is_the_inverse_of_writing_it(found: list[Fault]) -> None:
    plan = FaultPlan(tuple(found))
    text = str(plan)
    assert FaultPlan.parse(text) == plan == as_plan(text)
    assert str(FaultPlan.parse(text)) == text


@given(st.text(max_size=30))
def test_any_other_text_is_one_line_that_says_how_to_write_it(text: str) -> None:
    message = ""
    try:
        plan = FaultPlan.parse(text)
        assert FaultPlan.parse(str(plan)) == plan
    except PlanError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (fail.before("charge"), "charge@before"),
        (fail.after("charge", attempt=2), "charge#2@after"),
        (fail.hang("charge"), "charge@hang"),
        (fail.late("charge"), "charge@late"),
        (fail.cancel("charge"), "charge@cancel"),
        (fail.flaky("charge", times=2), "charge@flaky:2"),
        (fail.flaky("charge", after=True), "charge@flaky-after"),
        (crash("charge"), "charge@crash"),
        (crash("charge", recorded=True), "charge@crash-recorded"),
        (repeat("charge"), "charge@repeat"),
        (fail.undo("charge"), "charge@undo-fail"),
        (fail.undo("charge", at="fail-after"), "charge@undo-fail-after"),
        (fail.undo("charge", at="hang"), "charge@undo-hang"),
        (crash("charge", undo=True), "charge@undo-crash"),
        (crash("charge", undo=True, recorded=True), "charge@undo-crash-recorded"),
        (repeat("charge", undo=True), "charge@undo-repeat"),
        (fail.end(), "end@before"),
        (fail.before("ship") + fail.undo("charge"), "ship@before+charge@undo-fail"),
    ],
)
def test_a_plan_in_code_is_the_plan_in_text(plan: FaultPlan, text: str) -> None:
    assert str(plan) == text
    assert FaultPlan.parse(text) == plan


def test_what_is_raised_is_no_part_of_a_plans_text_or_equality() -> None:
    assert fail.before("a", ValueError("x")) == fail.before("a")


def test_compensation_faults_alone_imply_the_end() -> None:
    assert str(fail.undo("a").completed()) == "end@before+a@undo-fail"
    assert str((fail.before("b") + fail.undo("a")).completed()) == "b@before+a@undo-fail"


MODEL = SagaModel(
    "order",
    (
        StepModel("reserve", (), True, timeout=1, retries=1, compensation_retries=1),
        StepModel("charge", ("reserve",), True),
        StepModel("mail", ("charge",)),
    ),
)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("chrage@before", "no step 'chrage'.*did you mean 'charge'.*'reserve', 'charge', 'mail'"),
        ("charge@befor", "no kind of fault 'befor'.*did you mean 'before'"),
        ("charge@hang", "has no timeout"),
        ("reserve@undo-hang", "compensation has no timeout"),
        ("charge@flaky", "has no retries"),
        ("mail@undo-fail", "has no compensation"),
        ("end@after", "can only be failed before it"),
        ("charge", "write step@kind"),
        ("", "write step@kind"),
        ("charge@before+", "write step@kind"),
        ("charge#0@before", "count from 1"),
        ("charge@before:2", "only flaky kinds take a number"),
        ("charge@flaky:0", "from 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        FaultPlan.parse(plan).check(MODEL)


def test_every_single_fault_that_a_saga_can_have_is_planned() -> None:
    quick = [str(plan) for plan in single_fault_plans(MODEL)]
    assert quick == [
        *("reserve@before", "reserve@after", "reserve@undo-fail"),
        *("charge@before", "charge@after", "charge@undo-fail"),
        *("mail@before", "mail@after", "end@before"),
    ]
    everything = single_fault_plans(MODEL, parse_kinds("all"))
    assert len({str(plan) for plan in everything}) == len(everything)
    for plan in everything:
        plan.check(MODEL)
    assert "reserve@hang" in map(str, everything)
    assert "charge@hang" not in map(str, everything)


def test_before_a_pivot_a_compensation_runs_because_the_pivot_fails() -> None:
    model = SagaModel(
        "s", (StepModel("a", (), True), StepModel("pay", ("a",), True, pivot=True), StepModel("b", ("pay",), True))
    )
    assert [str(p) for p in single_fault_plans(model, ["undo-fail"])] == ["pay@before+a@undo-fail"]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [("quick", QUICK), ("all", tuple(KINDS)), ("before, hang", ("before", "hang")), ("late,late", ("late",))],
)
def test_kinds_are_read_from_text(text: Any, kinds: Any) -> None:
    assert parse_kinds(text) == kinds


@pytest.mark.parametrize("text", ["", ",", "befor", "quick,odd"])
def test_unknown_kinds_are_refused(text: str) -> None:
    with pytest.raises(PlanError):
        parse_kinds(text)


@pytest.mark.parametrize(("text", "nearest"), [("al", "all"), ("quik", "quick"), ("befor", "before")])
def test_an_unknown_kind_names_the_nearest_and_so_does_a_set_of_them(text: str, nearest: str) -> None:
    with pytest.raises(PlanError, match=f"did you mean '{nearest}'"):
        parse_kinds(text)


@pytest.mark.parametrize("wrong", [["charge@before"], ("charge@before",), 5, fail.before])
def test_what_is_no_plan_is_refused(wrong: Any) -> None:
    with pytest.raises(PlanError, match=r"is not a plan: write 'charge@before'"):
        as_plan(wrong)
