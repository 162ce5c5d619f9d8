"""Sagas that make ids and times of their own: what differs from run to run is no fault's, and what a fault does is."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from sagaz_core import Saga, StepRejected, World, explore
from sagaz_core.prove.unsteady import Unsteady
from sagaz_core.prove.world import MISSING, Change


class Desk:
    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.closed: set[str] = set()


def numbered(desk: Desk, *, again: str = "") -> Saga:
    """Return a saga whose first step draws the id under which the others work; `again` is what goes wrong twice."""

    def draw(ctx: Any) -> dict[str, Any]:
        return {"id": str(uuid4()), "at": datetime.now(UTC), "token": random.random()}

    def put(ctx: Any) -> None:
        if ctx["id"] in desk.closed:
            raise StepRejected("undone")
        if again == "row":
            desk.rows[str(uuid4())] = ["a row", ctx["at"], ctx["token"]]
        count = len(desk.rows.get(ctx["id"], ())) - 2 if again == "value" else 1
        desk.rows[ctx["id"]] = [ctx["at"], ctx["token"], *["a row"] * max(count, 1)]

    def take(ctx: Any) -> None:
        desk.closed.add(ctx["id"])
        if again != "undo":
            desk.rows.pop(ctx["id"], None)

    saga = Saga("numbered")
    saga.add_step("draw", draw)
    saga.add_step("put", put, take, in_doubt="compensate", timeout=1, retries=1)
    saga.add_step("note", lambda ctx: None)
    return saga


def explored(mode: str, again: str = "") -> set[tuple[str, str | None]]:
    desk, world = Desk(), World()
    world.fake(desk, append_only=["closed"])
    exploration = explore(numbered(desk, again=again), world=world, mode=mode)
    assert exploration.mode == ("tree" if mode == "auto" else mode)
    return {(finding.verdict.value, finding.step) for outcome in exploration.failures for finding in outcome.findings}


@pytest.mark.parametrize("mode", ["auto", "tree", "packed"])
def test_rows_under_an_id_of_each_run_are_no_alarm(mode: str) -> None:
    assert explored(mode) == set()


@pytest.mark.parametrize("mode", ["auto", "tree", "packed"])
def test_a_second_row_under_such_an_id_is_found(mode: str) -> None:
    assert ("NOT_IDEMPOTENT", "put") in explored(mode, "row")


@pytest.mark.parametrize("mode", ["auto", "tree", "packed"])
def test_a_row_under_such_an_id_that_is_not_undone_is_found(mode: str) -> None:
    assert explored(mode, "undo") == {("LIE", None)}


@pytest.mark.parametrize("mode", ["auto", "tree", "packed"])
def test_what_tells_the_time_of_the_clock_that_the_search_moves_on_is_no_alarm(mode: str) -> None:
    desk, world = Desk(), World()
    world.fake(desk, append_only=["closed"])

    async def put(ctx: Any) -> None:
        desk.rows["put"] = asyncio.get_running_loop().time()

    async def take(ctx: Any) -> None:
        await asyncio.sleep(1)
        desk.rows.pop("put", None)

    saga = Saga("timed").add_step("put", put, take, in_doubt="compensate", retries=1)
    saga.add_step("note", lambda ctx: None)
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.failures == ()
    if mode == "auto":
        assert exploration.reason.startswith("two runs without faults leave different worlds (Desk.rows.put: ")


def row(key: str, value: Any, *, new: bool) -> Change:
    return Change(f"desk.{key}", MISSING if new else value, value if new else MISSING)


A, B, C, D = (f"{n}b4e28ba-2fa1-41d2-883f-0016d3cca427" for n in "1234")


def test_as_many_keys_with_the_same_under_them_are_the_same() -> None:
    unsteady = Unsteady([row(A, 1, new=False), row(B, 1, new=True)])
    assert unsteady
    assert unsteady.without([row(A, 1, new=False), row(C, 1, new=True)]) == []
    second = row(D, 1, new=True)
    assert unsteady.without([row(A, 1, new=False), row(C, 1, new=True), second]) == [second]
    other = row(C, 2, new=True)
    assert unsteady.without([row(A, 1, new=False), other]) == [row(A, 1, new=False), other]
    assert unsteady.without([row(A, 1, new=False)]) == [row(A, 1, new=False)]
    assert unsteady.without([other]) == [other]


def test_what_is_under_keys_is_not_compared_where_it_differs_by_itself() -> None:
    unsteady = Unsteady([row(A, 0.25, new=False), row(B, 0.75, new=True)])
    assert unsteady.without([row(A, 0.25, new=False), row(C, 0.5, new=True)]) == []
    lost = [row(A, 0.25, new=False), row("other", 0.5, new=True)]
    assert unsteady.without(lost) == lost


def test_keys_without_a_form_are_only_counted() -> None:
    unsteady = Unsteady([row("k17", 1, new=False), row("k18", 2, new=True)])
    assert unsteady.without([row("k17", 1, new=False), row("k25", 3, new=True)]) == []
    assert unsteady.without([row("k17", 1, new=False)]) == [row("k17", 1, new=False)]


def test_a_value_that_differs_by_itself_is_not_compared() -> None:
    unsteady = Unsteady([Change("desk.at", 1, 2)])
    assert unsteady.without([Change("desk.at", 1, 3), Change("desk.count", 1, 2)]) == [Change("desk.count", 1, 2)]
    assert not Unsteady([])
