"""A world that is only read is not put back: what one test leaves in it, the next ones find, and say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shops import Shop

SHARED = """
from sagaz_core import Saga, action, compensate

SEEN = set()


class Plain(Saga):
    saga_name = "plain"

    @action("one", in_doubt="compensate")
    async def one(self, ctx):
        SEEN.add("one")

    @compensate("one")
    async def undo(self, ctx):
        SEEN.discard("one")
"""
WORLD = """
import pytest, shared
from sagaz_core import World

@pytest.fixture
def saga_world():
    world = World()
    world.{how}
    return world
"""
HEADING = "*sagaz: the world was not put back*"


@pytest.fixture
def shared(shop: Shop) -> Shop:
    shop.write("shared", SHARED)
    shop.write("conftest", WORLD.format(how='probe("seen", lambda: sorted(shared.SEEN))'))
    shop.record("shared:Plain", "P-1", {})
    return shop


def test_a_lie_says_which_tests_before_it_left_the_world_changed(shared: Shop) -> None:
    result = shared.run("--sagaz-replay=P-1", "P-1::one@repeat", "P-1::one@after")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([HEADING, "*Before this test these left it changed:", "  P-1::one@repeat  seen: *one*"])


def test_a_lie_that_nothing_came_before_says_nothing_of_it(shared: Shop) -> None:
    shared.write("shared", SHARED.replace('SEEN.discard("one")', "pass"))
    result = shared.replay("P-1::one@after", saga_id="P-1")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line(HEADING)


def test_of_a_world_that_is_put_back_nothing_is_said(shared: Shop) -> None:
    shared.write("conftest", WORLD.format(how='fake(shared.SEEN, "seen")'))
    shared.write("shared", SHARED.replace('SEEN.discard("one")', "pass"))
    result = shared.run("--sagaz-replay=P-1", "P-1::one@repeat", "P-1::one@after")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line(HEADING)


def test_with_xdist_it_says_that_others_may_act_at_the_same_time(shared: Shop) -> None:
    shared.write("shared", SHARED.replace('SEEN.discard("one")', "pass"))
    result = shared.replay("P-1::one@after", "-n", "1", saga_id="P-1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([HEADING, "Other workers may act on it at the same time: *"])
