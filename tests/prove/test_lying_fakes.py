"""Fakes that cannot be copied or put back, or do not say what they are: each is named, with what is done instead."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from sagaz_core import Saga, World, explore
from sagaz_core.errors import UsageError

ONLY_CALLS = "; until then only the calls are judged"


class Fake:
    """Says what it is, and takes it back."""

    def __init__(self) -> None:
        self.held = 0
        self.calls = 0

    def snapshot(self) -> Any:
        return {"held": self.held}

    def restore(self, state: Any) -> None:
        self.held = state["held"]


class ShowsNothing(Fake):
    def snapshot(self) -> Any:
        return {}

    def restore(self, state: Any) -> None: ...


class TakesNothing(Fake):
    def restore(self, state: Any) -> None: ...


class CannotBePutBack(Fake):
    def restore(self, state: Any) -> None:
        raise ValueError("not now")


class CannotBeCopied(Fake):
    def snapshot(self) -> Any:
        return {"held": memoryview(b"x")}


class NeverTheSame(Fake):
    count = itertools.count()

    def snapshot(self) -> Any:
        return {"held": self.held, "n": next(self.count)}


def saga_of(fake: Any) -> tuple[Saga[Any], World]:
    world = World()
    world.fake(fake, "desk")

    async def act(ctx: Any) -> None:
        fake.held += 1
        fake.calls += 1

    async def undo(ctx: Any) -> None:
        fake.held = max(0, fake.held - 1)

    saga: Saga[Any] = Saga("held").add_step("a", act, undo, in_doubt="compensate")
    return saga.add_step("b", act, undo, in_doubt="compensate"), world


NOT_WHAT_IT_WAS = (
    "the fake 'desk' is not what it was after its own state was put back: let restore(state) take what snapshot() gives"
)


NOT_COPIED = (
    "the fake 'desk' cannot be copied (TypeError: cannot pickle memoryview objects): let snapshot() return plain data"
)
HIDES = (
    "the fake 'desk' hides what it is: calls, held changed, and its snapshot() did not; of it only the calls were "
    "judged"
)


@pytest.mark.parametrize("mode", ["auto", "packed"])
@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (TakesNothing, NOT_WHAT_IT_WAS),
        (NeverTheSame, NOT_WHAT_IT_WAS),
        (
            CannotBePutBack,
            "the fake 'desk' cannot be put back (ValueError: not now): let restore(state) take what snapshot() gives",
        ),
        (
            CannotBeCopied,
            NOT_COPIED,
        ),
    ],
)
def test_a_fake_whose_state_is_worth_nothing_is_named_and_only_the_calls_are_judged(
    fake: Any, said: str, mode: str
) -> None:
    saga, world = saga_of(fake())
    exploration = explore(saga, world=world, kinds="before,after,repeat", mode=mode)
    assert (exploration.mode, exploration.reason) == ("packed", said + ONLY_CALLS)
    assert exploration.failures == ()
    assert exploration.outcomes[0].world_after is None


@pytest.mark.parametrize("fake", [NeverTheSame, CannotBePutBack, CannotBeCopied])
def test_it_cannot_be_forked_on_request(fake: Any) -> None:
    saga, world = saga_of(fake())
    with pytest.raises(UsageError, match=r"^mode='merged': the fake 'desk' [^;]*$"):
        explore(saga, world=world, mode="merged")


@pytest.mark.parametrize("mode", ["merged", "packed"])
def test_a_fake_that_changes_and_shows_nothing_is_named(mode: str) -> None:
    saga, world = saga_of(ShowsNothing())
    exploration = explore(saga, world=world, mode=mode)
    assert exploration.notes == (HIDES,)
    assert HIDES in exploration.summary().splitlines()


@pytest.mark.parametrize("mode", ["merged", "packed"])
def test_a_fake_that_shows_what_it_does_may_count_its_calls(mode: str) -> None:
    saga, world = saga_of(Fake())
    assert explore(saga, world=world, mode=mode, kinds="before").notes == ()


@pytest.mark.parametrize("mode", ["merged", "packed"])
def test_what_changes_only_once_because_nothing_puts_it_back_is_named_too(mode: str) -> None:
    fake, world = ShowsNothing(), World()
    world.fake(fake, "desk")

    async def act(ctx: Any) -> None:
        fake.held = 1

    exploration = explore(Saga[Any]("held").add_step("a", act, print, in_doubt="compensate"), world=world, mode=mode)
    assert exploration.notes == (HIDES.replace("calls, held", "held"),)
