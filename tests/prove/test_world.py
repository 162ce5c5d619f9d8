"""What a world reads and saves of its fakes is a copy, whatever is in them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sagaz_core import World
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
