"""`--sagaz-depth`: one item a recorded saga, in which every plan of several faults is tried."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import pytest

from sagaz_core.faults.plan import FaultPlan
from sagaz_core.prove.failures import FILE, Failures

if TYPE_CHECKING:
    from pathlib import Path

    from shops import Shop

FAKES = '''
"""The shop's sagas, whose effects are in a fake that can be saved and put back."""

from shop import Careless, Order
from sagaz_core import StepRejected


class Desk:
    def __init__(self):
        self.stock, self.charges, self.closed = {}, {}, []

    def do(self, what, order_id):
        if order_id in self.closed:
            raise StepRejected("undone before")
        what[order_id] = 1

    def undo(self, what, order_id):
        if order_id not in self.closed:
            self.closed.append(order_id)
        what.pop(order_id, None)
'''

CONFTEST = """
import pytest
from fakes import Careless, Desk, Order


@pytest.fixture
def saga_factory(saga_world):
    desk = saga_world.fake(Desk(), append_only=["closed"])
    return {"order": lambda: Order(desk), "careless": lambda: Careless(desk)}
"""

ORPHAN = "the effect of 'charge' was left behind"


@pytest.fixture
def fakes(shop: Shop) -> Shop:
    """Give a shop whose sagas act on fakes of `saga_world`."""
    shop.write("fakes", FAKES)
    shop.write("conftest", CONFTEST)
    shop.record()
    return shop


@pytest.fixture
def careless(shop: Shop) -> Shop:
    """Give the same, where a saga was recorded that is not sound."""
    shop.write("fakes", FAKES)
    shop.write("conftest", CONFTEST)
    shop.record("shop:Careless")
    return shop


def kept(path: Path) -> list[str]:
    return [str(plan) for plan in Failures(path / FILE).of("careless")]


def test_every_plan_of_two_faults_is_one_item_more(fakes: Shop) -> None:
    ids = fakes.ids("--sagaz-replay=ORDER-1", "--sagaz-depth=2")
    assert len(ids) == 11
    assert ids[-1] == "ORDER-1::explore:2"
    result = fakes.replay("--sagaz-depth=2")
    result.assert_outcomes(passed=11)
    result.stdout.fnmatch_lines(
        [
            "ORDER-1: faithful, 9 plans, 9 sound",
            "  saga 'order': 304 of 304 plans of at most 2 faults by * executions, 0 not sound",
            "  coverage: *(100%) of steps and kinds of faults; merged: forked between steps, equal states merged",
        ]
    )


def test_a_depth_of_one_adds_none(fakes: Shop) -> None:
    assert "ORDER-1::explore:1" not in fakes.ids("--sagaz-replay=ORDER-1", "--sagaz-depth=1")


def test_an_ini_file_can_say_the_depth(fakes: Shop) -> None:
    fakes.ini("sagaz_depth = 2")
    assert "ORDER-1::explore:2" in fakes.ids("--sagaz-replay=ORDER-1")
    assert "ORDER-1::explore:3" in fakes.ids("--sagaz-replay=ORDER-1", "--sagaz-depth=3")


def test_what_is_not_sound_is_a_line_a_table_and_a_command(careless: Shop) -> None:
    result = careless.replay("--sagaz-depth=2", "-k", "explore")
    result.assert_outcomes(failed=1, deselected=10)
    result.stdout.fnmatch_lines(
        [
            f"UnsoundError: ORPHAN under charge@after: {ORPHAN}*",
            "saga 'careless': * plans of at most 2 faults by * executions, * not sound",
            "plan * verdict * what is wrong",
            f"charge@after *ORPHAN *{ORPHAN}",
            "saga 'careless' under charge@after ended rolled_back: ORPHAN, an effect was left behind",
            "charge *yes *ORPHAN",
            "again  *pytest --sagaz-replay=ORDER-1 --sagaz-plan=charge@after",
            "ORDER-1:",
            f"FAILED ORDER-1::explore:2 - UnsoundError: ORPHAN under charge@after: {ORPHAN}*",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_its_command_shows_the_failure_again(careless: Shop) -> None:
    result = careless.replay("--sagaz-plan=charge@after")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"UnsoundError: ORPHAN under charge@after: {ORPHAN}"])


def test_a_node_id_says_the_depth_by_itself(fakes: Shop) -> None:
    result = fakes.replay("ORDER-1::explore:3")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ORDER-1:", "  saga 'order': * plans of at most 3 faults by *"])


def test_a_plan_that_is_named_is_run_alone(fakes: Shop) -> None:
    options = ("--sagaz-replay=ORDER-1", "--sagaz-depth=2", "--sagaz-plan=charge@after")
    assert fakes.ids(*options) == ["ORDER-1::charge@after"]


def test_no_fault_strikes_before_the_step_to_begin_at(fakes: Shop) -> None:
    whole = fakes.replay("ORDER-1::explore:2").stdout.str()
    part = fakes.replay("ORDER-1::explore:2", "--sagaz-from=charge")
    part.assert_outcomes(passed=1)
    assert plans(part.stdout.str()) < plans(whole)


def plans(text: str) -> int:
    line = next(line for line in text.splitlines() if "plans of at most" in line)
    return int(line.split(":")[1].split()[0].replace(",", ""))


def test_workers_explore_as_one_process_does(careless: Shop) -> None:
    result = careless.replay("--sagaz-depth=2", "-n", "2", "-k", "explore")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["ORDER-1:", "  saga 'careless': * plans of at most 2 faults by *"])


def test_the_facts_are_in_a_junit_file(careless: Shop) -> None:
    careless.replay("ORDER-1::explore:2", "--junitxml=out.xml")
    (case,) = ElementTree.parse(careless.path / "out.xml").getroot().iter("testcase")
    facts = {found.get("name"): found.get("value") or "" for found in case.iter("property")}
    assert (facts["sagaz_id"], facts["sagaz_plan"], facts["sagaz_verdict"]) == ("ORDER-1", "explore:2", "ORPHAN")
    assert facts["sagaz_explored"].startswith("saga 'careless': ")


def test_a_budget_that_is_used_up_says_how_far_it_came(fakes: Shop) -> None:
    result = fakes.replay("ORDER-1::explore:2", "--sagaz-budget=0.000001ms")
    result.assert_outcomes(failed=1)  # nothing at all was tried
    result.stdout.fnmatch_lines(
        [
            "nothing was tried: the budget was used up after 0 executions",
            "  saga 'order': 0 of 304 plans of at most 2 faults by 0 executions, 0 not sound, INCOMPLETE",
            "  not run: the budget was used up after 0 executions",
        ]
    )
    assert "the world shows nothing" not in result.stdout.str()  # nothing was called that it could show


ENDS_SOON = """

@pytest.fixture(autouse=True)
def soon(monkeypatch):
    # A clock that stands for a hundred looks at it, and is then past every budget.
    looks = iter(range(1000000))
    monkeypatch.setattr("sagaz_core.prove.budget.monotonic", lambda: 0 if next(looks) < 100 else 10**9)
"""


def test_a_search_that_the_budget_stops_passes_and_is_incomplete_wherever_it_is_told(fakes: Shop) -> None:
    fakes.write("conftest", CONFTEST + ENDS_SOON)
    asked = ("ORDER-1::explore:2", "--sagaz-budget=30s", "--sagaz-cov", "--sagaz-report=out", "--junitxml=out.xml")
    result = fakes.replay(*asked)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "INCOMPLETE: *: saga 'order': the budget was used up after * executions, * of 304 plans",
            "  saga 'order': * of 304 plans of at most 2 faults by * executions, 0 not sound, INCOMPLETE",
        ]
    )
    (case,) = ElementTree.parse(fakes.path / "out.xml").getroot().iter("testcase")
    facts = {found.get("name"): found.get("value") or "" for found in case.iter("property")}
    assert facts["sagaz_incomplete"].startswith("the budget was used up after ")
    assert facts["sagaz_incomplete"].endswith(" of 304 plans")
    assert "the budget was used up after" in (fakes.path / "out" / "index.html").read_text()
    assert not json.loads((fakes.path / "out" / "sagaz-report.json").read_text())["complete"]
    result = fakes.replay(*asked[:2], "--sagaz-cov-fail-under=1")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["FAIL --sagaz-cov-fail-under=1: the coverage is incomplete"])


def test_a_large_budget_changes_nothing(fakes: Shop) -> None:
    fakes.replay("ORDER-1::explore:2", "--sagaz-budget=1h").stdout.fnmatch_lines(["  saga 'order': 304 of 304 plans *"])


# ---- what failed before


def test_what_failed_is_kept_and_forgotten_when_it_is_sound(careless: Shop) -> None:
    careless.replay("ORDER-1::explore:2").assert_outcomes(failed=1)
    assert "charge@after" in kept(careless.path)
    source = (careless.path / "shop.py").read_text()
    careless.write("shop", source.replace('@action("charge")', '@action("charge", timeout=5, in_doubt="compensate")'))
    result = careless.replay("ORDER-1::explore:2", "--sagaz-allow-drift")
    result.assert_outcomes(passed=1)
    assert kept(careless.path) == []


def test_what_failed_is_tried_first(careless: Shop) -> None:
    careless.replay("ORDER-1::explore:2").assert_outcomes(failed=1)
    result = careless.replay("ORDER-1::explore:2", "--sagaz-budget=0.000001ms")
    result.assert_outcomes(failed=1)  # no time for anything else
    result.stdout.fnmatch_lines(["UnsoundError: ORPHAN under charge@after: *", "  saga 'careless': 0 of *"])


def test_a_plan_that_never_strikes_any_more_is_no_failure(fakes: Shop) -> None:
    Failures(fakes.path / FILE).keep("order", [FaultPlan.parse("charge#9@after"), FaultPlan.parse("gone@after")])
    fakes.replay("ORDER-1::explore:2").assert_outcomes(passed=1)


def test_a_file_of_failures_that_cannot_be_read_is_as_good_as_none(careless: Shop) -> None:
    (careless.path / FILE).write_bytes(b"no database")
    careless.replay("ORDER-1::explore:2").assert_outcomes(failed=1)
    assert (careless.path / FILE).read_bytes() == b"no database"


# ---- what cannot be forked


def test_without_fakes_each_plan_runs_from_the_start_and_it_says_why(shop: Shop) -> None:
    shop.record()
    result = shop.replay("ORDER-1::explore:2")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "  saga 'order': * plans of at most 1 fault by * executions, 0 not sound",
            "  *packed: each plan from the start; benign faults at every step at once",
            "  why packed: no world was given, *: give a world made of fakes",
        ]
    )


def test_a_saga_of_the_sagaz_package_runs_from_the_start(shop: Shop) -> None:
    pytest.importorskip("sagaz")
    shop.write(
        "theirs",
        """
        from sagaz import Saga, action, compensate

        class Booking(Saga):
            saga_name = "booking"

            @action("book")
            async def book(self, ctx):
                return {"booked": 1}

            @compensate("book")
            async def cancel(self, ctx):
                pass
        """,
    )
    ran = shop.pytester.run(sys.executable, "-m", "sagaz_core.cli", "record", "theirs:Booking", "--id", "BOOKING-1")
    assert ran.ret == 0, ran.stderr.str()
    result = shop.replay("BOOKING-1::explore:2", saga_id="BOOKING-1")
    result.stdout.fnmatch_lines(
        ["  why packed: the engine of the sagaz package runs a saga from its start to its end, and cannot be forked"]
    )


def forgets_charges(shop: Shop) -> None:
    shop.write(
        "fakes", FAKES.replace("what.pop(order_id, None)", "if what is not self.charges: what.pop(order_id, None)")
    )


def test_what_a_recorded_step_leaves_in_the_world_is_found_under_several_faults_and_under_one(fakes: Shop) -> None:
    forgets_charges(fakes)
    result = fakes.replay("--sagaz-depth=2")
    result.stdout.fnmatch_lines(["*LIE*the saga says rolled back, but the world is not as it was (Desk.charges.1: *"])
    result.stdout.fnmatch_lines(["again *pytest --sagaz-replay=ORDER-1 --sagaz-plan=ship@before"])
    again = fakes.replay("--sagaz-plan=ship@before")
    again.assert_outcomes(failed=1)
    again.stdout.fnmatch_lines(["UnsoundError: LIE under ship@before: *Desk.charges.1: *"])


def test_fakes_that_give_something_else_than_was_recorded_are_no_witness_and_that_is_said(fakes: Shop) -> None:
    forgets_charges(fakes)
    path = fakes.path / "shop.py"
    path.write_text(path.read_text().replace('f"R-{ctx', 'f"Q-{ctx'))
    result = fakes.replay("--sagaz-depth=2", "-k", "explore")
    result.assert_outcomes(passed=1, deselected=10)
    result.stdout.fnmatch_lines(
        [
            (
                "  the world was not compared, because the recorded steps were not run: 'reserve' returns something "
                "else in it than was recorded. Let the fakes give what the record has"
            )
        ]
    )
