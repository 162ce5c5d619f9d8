"""A saga that acts on something else than what is in the world that it was given."""

from __future__ import annotations

from threading import Lock
from typing import Any

import pytest

from sagaz_core import Saga, StepRejected, World, action, compensate, explore
from sagaz_core.errors import SagazError


class Desk:
    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.closed: set[str] = set()

    def hold(self, step: str) -> None:
        if step in self.closed:
            raise StepRejected("closed")
        self.held[step] = 1

    def let_go(self, step: str) -> None:
        self.closed.add(step)
        self.held.pop(step, None)


class Trip(Saga):
    def __init__(self, hotel: Desk | None = None, flight: Desk | None = None) -> None:
        super().__init__()
        self.hotel, self.flight = hotel or Desk(), flight or Desk()

    @action("book", timeout=5, in_doubt="compensate")
    async def book(self, ctx: Any) -> None:
        self.hotel.hold("book")

    @compensate("book")
    async def cancel(self, ctx: Any) -> None:
        self.hotel.let_go("book")

    @action("fly", timeout=5, in_doubt="compensate")
    async def fly(self, ctx: Any) -> None:
        self.flight.hold("fly")

    @compensate("fly")
    async def stay(self, ctx: Any) -> None:
        self.flight.let_go("fly")


class Counting(Trip):
    """Counts its calls for itself, which is no effect."""

    calls: list[str]

    def __init__(self, *desks: Desk) -> None:
        super().__init__(*desks)
        self.calls = []
        self.lock = Lock()  # what is no plain data is not looked at

    @action("book", timeout=5, in_doubt="compensate")
    async def book(self, ctx: Any) -> None:
        self.calls.append("book")
        self.hotel.hold("book")


def world_of(*desks: Desk) -> World:
    world = World()
    for number, desk in enumerate(desks):
        world.fake(desk, f"desk {number}", append_only=["closed"])
    return world


def test_fakes_that_the_saga_was_not_given_are_told_and_it_is_run_from_the_start() -> None:
    exploration = explore(Trip, world=world_of(Desk(), Desk()))
    assert (exploration.mode, exploration.failures) == ("packed", ())
    assert exploration.reason == (
        "the world shows nothing of book, fly, and self.hotel and self.flight of the saga change and are not in it: "
        "register it by world.fake(…)"
    )
    with pytest.raises(SagazError, match="register it"):
        explore(Trip, world=world_of(Desk()), mode="merged")


def test_one_service_that_was_forgotten_is_named() -> None:
    hotel = Desk()
    exploration = explore(lambda: Trip(hotel), world=world_of(hotel))
    assert exploration.mode == "packed"
    assert exploration.reason.startswith("the world shows nothing of fly, and self.flight of the saga changes")


@pytest.mark.parametrize("saga", [Trip, Counting])
def test_what_is_in_the_world_and_what_has_no_effect_are_no_hindrance(saga: Any) -> None:
    desks = Desk(), Desk()
    exploration = explore(lambda: saga(*desks), world=world_of(*desks))
    assert (exploration.mode, exploration.failures) == ("merged", ())
