"""What a world reads and saves of its fakes is a copy, whatever is in them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagaz_core import Saga, World, explore
from sagaz_core.errors import UsageError
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.mutation.facts import survey
from sagaz_core.prove.alike import alike
from sagaz_core.prove.trial import Subject, run_trial
from sagaz_core.virtual_time import run

ATOMS = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just(Decimal("1.5"))
PLAIN = st.recursive(
    ATOMS,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.integers(), inside, max_size=3)
        | st.sets(ATOMS, max_size=3)
        | st.tuples(inside, inside)
    ),
    max_leaves=8,
)


def world_of(fake: Any) -> World:
    world = World()
    world.fake(fake, "fake")
    return world


def containers(value: Any) -> list[int]:
    """The ids of all that could be changed in the value."""
    if isinstance(value, dict):
        return [id(value), *(one for inside in value.values() for one in containers(inside))]
    if isinstance(value, list | tuple):
        own = [id(value)] if isinstance(value, list) else []
        return own + [one for inside in value for one in containers(inside)]
    return [id(value)] if isinstance(value, set) else []


@given(st.dictionaries(st.text(max_size=2), PLAIN, max_size=4))
def test_what_is_saved_is_equal_and_shares_nothing(fake: dict[str, Any]) -> None:
    world = world_of(fake)
    saved, read = world.save()["fake"], run(world.read())["fake"]
    assert saved == read == fake
    assert list(saved) == list(fake)
    assert not {*containers(saved)} & {*containers(fake)}
    assert not {*containers(saved)} & {*containers(read)}


def test_what_is_in_it_twice_is_one_thing_in_the_copy_too() -> None:
    shelf: list[Any] = [1]
    fake: dict[str, Any] = {"left": shelf, "right": shelf}
    fake["all"] = fake
    saved = world_of(fake).save()["fake"]
    assert saved["left"] is saved["right"]
    assert saved["all"] is saved
    assert saved["left"] is not shelf


class Order:
    def __init__(self) -> None:
        self.lines: list[str] = ["a"]
        self.at = datetime(2026, 7, 15, tzinfo=UTC)


def test_objects_are_copied_with_what_is_in_them() -> None:
    order = Order()
    fake = {"orders": [order]}
    world = world_of(fake)
    saved = world.save()
    order.lines.append("b")
    assert saved["fake"]["orders"][0].lines == ["a"]
    world.restore(saved)
    assert fake["orders"][0].lines == ["a"]
    fake["orders"][0].lines.append("c")
    assert saved["fake"]["orders"][0].lines == ["a"]


class Item:
    """As people write them for their fakes: with no __eq__."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.shelf: Any = None


class Slotted:
    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


@dataclass
class Pallet:
    items: list[Item]


class Shelves:
    """Objects in every place, one of which holds the others, and a lock."""

    def __init__(self) -> None:
        self.items = {"W1": Item(3), "W2": Item(4)}
        self.listed = [Slotted(5), (Item(6), "x")]
        self.pallet = Pallet([Item(7)])
        self.lock = asyncio.Lock()
        self.nothing = object()
        self.items["W1"].shelf = self


def test_a_copy_of_objects_without_equality_is_no_change() -> None:
    world = world_of(Shelves())
    before = world.save()
    world.restore(before)
    assert world.changes(before, world.save()) == ()
    assert world.not_put_back(before) == ""


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda shelves: setattr(shelves.items["W1"], "left", 2), "fake.items.W1.left"),
        (lambda shelves: setattr(shelves.listed[0], "left", 2), "fake.listed"),
        (lambda shelves: setattr(shelves.listed[1][0], "left", 2), "fake.listed"),
        (lambda shelves: setattr(shelves.pallet.items[0], "left", 2), "fake.pallet.items"),
        (lambda shelves: shelves.items.update(W2=Slotted(4)), "fake.items.W2"),
        (lambda shelves: setattr(shelves, "nothing", None), "fake.nothing"),
    ],
)
def test_what_changed_in_such_an_object_is_named(change: Any, where: str) -> None:
    shelves = Shelves()
    world = world_of(shelves)
    before = world.save()
    change(shelves)
    assert where in [change.where for change in world.changes(before, world.save())]


@given(PLAIN, PLAIN)
def test_plain_values_are_alike_if_they_are_equal(one: Any, other: Any) -> None:
    assert alike(one, other) is (one == other)


def test_a_sound_saga_over_such_objects_raises_no_alarm() -> None:
    shelves = Shelves()
    world = world_of(shelves)

    def move(by: int) -> Any:
        async def call(ctx: Any) -> None:
            shelves.items["W1"].left += by

        return call

    saga = Saga("pick").add_step("pick", move(-1), move(1)).add_step("ship", print)
    assert run(run_trial(Subject(lambda: saga, world=world), FaultPlan.parse("ship@before"))).findings == ()
    exploration = explore(saga, {}, kinds=["before"], world=world)
    assert exploration.failures == ()
    assert (exploration.mode, exploration.blind) == ("packed", frozenset())
    assert "test_world.Item' cannot be stored; put plain data there" in exploration.reason


def test_what_matches_a_pattern_may_grow_and_nothing_else() -> None:
    redis: dict[str, Any] = {"audit:1": ["a"], "audit:2": 3, "stock": 5, "audit:4": "gone"}
    world = World()
    world.fake(redis, "redis")
    world.may_grow("redis.audit:*")
    before = world.save()
    redis.update({"audit:1": ["a", "b"], "audit:2": 4, "audit:3": "new", "stock": 6})
    assert [change.where for change in world.changes(before, world.save())] == ["redis.stock"]
    redis.update({"audit:1": ["x"], "audit:2": 1, "stock": 5})
    del redis["audit:4"]
    changed = {change.where for change in world.changes(before, world.save())}
    assert changed == {"redis.audit:1", "redis.audit:2", "redis.audit:4"}


@pytest.mark.parametrize("pattern", ["outbox", "out.*", "redis.outbox"])
def test_a_pattern_of_no_place_in_the_world_is_an_error(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"begins with no name of the world, which has 'fake'$"):
        world_of({}).may_grow(pattern)


def test_what_may_grow_by_a_pattern_keeps_no_states_apart() -> None:
    desk: dict[str, Any] = {"stock": {}, "out": {"mails": {}}}

    async def reserve(ctx: Any) -> None:
        desk["stock"]["W1"] = 1

    async def release(ctx: Any) -> None:
        desk["stock"].pop("W1", None)

    async def mail(ctx: Any) -> None:
        desk["out"]["mails"][len(desk["out"]["mails"])] = "hello"

    world = World()
    world.fake(desk, "desk")
    world.may_grow("desk.out.mails.*")
    saga = Saga("shop").add_step("reserve", reserve, release, in_doubt="compensate").add_step("mail", mail)
    exploration = explore(saga.add_step("close", print), {}, world=world)
    assert (exploration.mode, exploration.reason, exploration.failures) == ("merged", "", ())
    facts = run(survey(lambda: saga, {}, world))
    assert {place[:2] for places in facts.places.values() for place in [p.path for p in places]} <= {("desk", "stock")}


def test_a_probe_that_cannot_be_read_is_named() -> None:
    world = World()
    world.probe("rows", lambda: {}["orders"])
    saga: Saga[Any] = Saga("s").add_step("a", lambda ctx: None)
    with pytest.raises(
        UsageError, match=r"^the probe 'rows' cannot be read \(KeyError: 'orders'\): let it return plain"
    ):
        explore(saga, world=world)
