"""The moments at which a saga's process can be killed, and their one string form."""

from __future__ import annotations

from typing import Any

import pytest
from mortals import Pivot, Sound, Wide, chain

from sagaz_core import FaultPlan, Saga
from sagaz_core.errors import PlanError, UsageError
from sagaz_core.prove.boundaries import Boundary, boundaries, default_plans

FORWARD = ["a:start", "a:effect", "a:record", "b:effect", "b:record", "end"]


def labels(saga: Saga[Any], plan: str = "", **how: Any) -> list[str]:
    parsed = FaultPlan.parse(plan) if plan else FaultPlan()
    return [boundary.label for boundary in boundaries(saga.definition().model, parsed, **how)]


@pytest.mark.parametrize(
    "text",
    ["kill:charge:effect", "kill:end", "kill:turned", "kill:charge#2:start", "end@before+kill:charge:undo-record"],
)
def test_the_string_form_reads_back(text: str) -> None:
    assert str(Boundary.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("charge:effect", "write kill:step:place"),
        ("kill:", "write kill:step:place"),
        ("kill:charge:efect", "did you mean 'effect'?"),
        ("kill:ended", "did you mean 'end'?"),
        ("kill:effect", "there is no place 'effect'"),
        ("kill:charge#0:effect", "times count from 1"),
        ("chargeafter+kill:end", "'chargeafter' is not a fault"),
    ],
)
def test_a_text_that_is_no_moment_says_how_to_write_one(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message.replace("?", r"\?")):
        Boundary.parse(text)


def test_a_moment_is_said_in_words() -> None:
    assert Boundary("effect", "charge").sentence == "after the effect of 'charge', before it was recorded"
    assert Boundary("start", "charge", 2).sentence.endswith("before it was called, time 2")


def test_in_a_chain_the_end_of_a_step_and_the_start_of_the_next_are_one_moment() -> None:
    assert labels(chain("two", ("a", "b"))) == FORWARD


def test_a_plan_that_turns_the_saga_back_has_the_moments_of_its_rollback() -> None:
    back = [f"{step}:undo-{place}" for step in "ba" for place in ("start", "effect", "record")]
    assert labels(chain("two", ("a", "b")), "end@before") == ["turned", *back, "end"]
    assert labels(chain("two", ("a", "b")), "end@before", forward=True) == [*FORWARD[:-1], "turned", *back, "end"]


def test_a_compensation_that_fails_for_good_has_no_effect_to_be_killed_after() -> None:
    assert labels(chain("two", ("a", "b")), "b@undo-fail")[:2] == ["turned", "b:undo-start"]
    assert "b:undo-effect" not in labels(chain("two", ("a", "b")), "b@undo-fail")


def test_in_a_dag_only_what_certainly_is_done_is_counted_on() -> None:
    found = labels(Wide(), "b@before")
    assert "a:undo-effect" in found
    assert "c:undo-effect" not in found


def test_behind_a_pivot_nothing_is_rolled_back() -> None:
    assert [str(plan) for plan in default_plans(Pivot().definition().model)] == ["", "commit@before"]
    assert labels(Pivot(), "send@before") == ["end"]


def test_a_moment_that_the_saga_cannot_have_is_refused() -> None:
    model = Sound().definition().model
    with pytest.raises(PlanError, match="no step 'chrge'"):
        Boundary.parse("kill:chrge:effect").check(model)
    with pytest.raises(PlanError, match="'tell' has no compensation"):
        Boundary.parse("end@before+kill:tell:undo-effect").check(model)
    with pytest.raises(UsageError, match="has no other crash"):
        Boundary.parse("charge@crash+kill:tell:effect").check(model)
