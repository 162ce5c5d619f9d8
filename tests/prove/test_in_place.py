"""Values of the context that a step changes in place: what a fork makes of them is what a run does."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any

import pytest
from pydantic import BaseModel

from sagaz_core import Saga, World, explore
from sagaz_core.prove.exploration import Exploration


@dataclass
class Line:
    sku: str
    quantity: int


class Basket(BaseModel):
    lines: list[Line]
    note: str = ""


class TypedSaga(Saga[Basket]):
    pass


class Desk:
    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}


def explored(saga: Saga, count: Any, mode: str) -> Exploration:
    """Explore a saga whose first step runs `count` on the context, and whose second one writes what it sees then."""
    desk, world = Desk(), World()
    world.fake(desk)

    async def reserve(ctx: Any) -> None:
        desk.rows["reserve"] = 1
        count(ctx)

    async def release(ctx: Any) -> None:
        desk.rows.pop("reserve", None)

    async def pay(ctx: Any) -> None:
        lines = ctx["lines"] if isinstance(ctx, dict) else ctx.lines
        desk.rows["pay"] = [line["quantity"] if isinstance(line, dict) else line.quantity for line in lines]

    async def repay(ctx: Any) -> None:
        desk.rows.pop("pay", None)

    saga.add_step("reserve", reserve, release, in_doubt="compensate")
    saga.add_step("pay", pay, repay, in_doubt="compensate")
    return explore(saga, {"lines": [{"sku": "W1", "quantity": 2}]}, world=world, mode=mode)


def one_more(ctx: Any) -> None:
    if isinstance(ctx, dict):
        ctx["lines"][0]["quantity"] += 1
    else:
        ctx.lines[0].quantity += 1


def one_more_and_a_gift(ctx: Any) -> None:
    one_more(ctx)
    if isinstance(ctx, dict):
        ctx["lines"] = [*ctx["lines"], {"sku": "gift", "quantity": 1}]
    else:
        ctx.lines.append(Line("gift", 1))


@pytest.mark.parametrize("mode", ["auto", "tree", "packed"])
@pytest.mark.parametrize("kind", [Saga, TypedSaga])
@pytest.mark.parametrize("count", [one_more, one_more_and_a_gift])
def test_what_a_step_changes_within_a_value_is_found_in_every_mode(kind: Any, count: Any, mode: str) -> None:
    exploration = explored(kind("basket"), count, mode)
    assert exploration.mode == ("merged" if mode == "auto" else mode)
    wrong = {(finding.verdict, finding.step) for outcome in exploration.failures for finding in outcome.findings}
    assert wrong == {("CONTEXT_LEAK", None), ("NOT_IDEMPOTENT", "reserve")}


@pytest.mark.parametrize("mode", ["auto", "packed"])
def test_what_cannot_be_stored_within_a_value_is_named_and_found(mode: str) -> None:
    exploration = explored(Saga("basket"), lambda ctx: ctx["lines"][0].update(by=Lock()), mode)
    assert exploration.mode == "packed"
    if mode == "auto":
        assert exploration.reason.startswith(
            "what step 'reserve' leaves cannot be kept: context['lines'][0]['by']: a value of type '_thread.lock'"
        )
    assert {outcome.verdict for outcome in exploration.failures} == {"CONTEXT_LEAK"}


def test_what_a_failing_step_and_a_compensation_leave_within_a_value_is_named_too() -> None:
    def refuse(ctx: Any) -> None:
        ctx["lines"].append({"quantity": Lock()})
        raise ValueError

    exploration = explored(Saga("basket"), refuse, "auto")
    assert exploration.reason.startswith("what step 'reserve' leaves cannot be kept: context['lines'][1]")
    assert [str(outcome.plan) for outcome in exploration.failures] == [""]
