"""`--sagaz-mutate`: what the tests of a project notice, and what they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from shops import CONTEXT, error_of

from sagaz_core import Saga

if TYPE_CHECKING:
    from shops import Shop

FIRST = f"""
import pytest
from sagaz_core import World
from shop import Order, Outside

CONTEXT = {CONTEXT!r}

@pytest.fixture
def outside():
    return Outside()

@pytest.fixture
def saga_world(outside):
    world = World()
    world.fake(outside, append_only=["closed"])
    return world
"""
GOOD = FIRST + (
    """
def test_all_of_it_is_undone(sagaz, outside):
    sagaz.run(Order(outside), CONTEXT, plan="end@before").assert_sound()

def test_a_lost_receipt_is_refunded(sagaz, outside):
    sagaz.run(Order(outside), CONTEXT, plan="charge@after").assert_sound()
"""
)
HALF = FIRST + (
    """
def test_it_is_undone(sagaz):
    sagaz.run(Order, CONTEXT, plan="charge@before").assert_compensated("reserve", "charge")
"""
)
PLAIN = f"""
import asyncio
import shop

def test_an_order():
    saga = shop.Order()
    result = asyncio.run(saga.run({CONTEXT!r}))
    assert result.status.value == "completed"
    assert saga.outside.charges == ["1"]
"""


def report(result: pytest.RunResult) -> list[str]:
    """Return the lines of the section."""
    lines = result.outlines
    first = next(index for index, line in enumerate(lines) if line.strip("= ") == "sagaz mutants")
    rest = lines[first + 1 :]
    end = next((index for index, line in enumerate(rest) if line.startswith("==")), len(rest))
    return [line for line in rest[:end] if line]


def survivors(result: pytest.RunResult) -> set[str]:
    return {line.rpartition("(")[2].rstrip(")") for line in report(result) if "nobody notices" in line}


def test_it_says_which_mutants_the_tests_catch(shop: Shop) -> None:
    shop.write("test_a", GOOD)
    result = shop.run("--sagaz-mutate")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    assert [line.split() for line in report(result)[2:9]] == [
        ["skip", "2", "2"],
        ["wrong-step", "2", "2"],
        ["swallow", "2", "2"],
        ["drop-key", "2", "2"],
        ["not-idempotent", "0", "2"],  # nothing is delivered twice
        ["lose-edge", "2", "2"],  # one of them reads what the other writes
        ["needs-result", "1", "2"],  # the acknowledgement of the charge is lost, of the reservation it is not
    ]
    assert report(result)[-1] == "your tests caught 11 of 14 mutants (79 %)"


def test_a_survivor_comes_with_the_test_that_would_catch_it(shop: Shop) -> None:
    shop.write("test_a", HALF)
    result = shop.run("--sagaz-mutate")
    lines = report(result)
    index = lines.index("order: nobody notices that the compensation of 'reserve' does nothing  (skip:reserve)")
    assert lines[index + 1] == '  -> 1 test runs it: sagaz.run(…, plan="end@before", world=…).assert_sound()'
    assert "skip:charge" in survivors(result)
    assert "needs-result:reserve" in survivors(result)


def test_what_no_test_runs_is_said(shop: Shop) -> None:
    shop.write("test_a", PLAIN)
    lines = report(shop.run("--sagaz-mutate"))
    index = lines.index("order: nobody notices that the compensation of 'charge' does nothing  (skip:charge)")
    assert lines[index + 1].startswith("  -> no test runs it: sagaz.run(")


def test_sagas_that_run_by_themselves_are_reached(shop: Shop) -> None:
    shop.write("test_a", PLAIN)
    result = shop.run("--sagaz-mutate")
    assert report(result)[-1] == "your tests caught 0 of 10 mutants (0 %)"
    assert "lose-edge:charge->ship" in survivors(result)


def test_a_test_that_keeps_what_a_mutant_left_is_not_believed(shop: Shop) -> None:
    inside = "    saga = shop.Order()\n"
    shop.write("test_a", PLAIN.replace(inside, "").replace("def test", f"{inside.strip()}\n\ndef test"))
    shop.write("test_b", PLAIN + "    assert result.completed == ['reserve', 'charge', 'ship']\n")
    result = shop.run("--sagaz-mutate")
    assert report(result)[0].startswith("test_a.py::test_an_order was not used to its end: once a mutant made it fail,")
    assert report(result)[-1] == "your tests caught 0 of 10 mutants (0 %)"


def test_workers_together_catch_what_one_process_catches(shop: Shop) -> None:
    shop.write("test_a", GOOD)
    shop.write("test_b", HALF)
    alone = shop.run("--sagaz-mutate")
    shop.apart = True
    dealt = shop.run("--sagaz-mutate", "-n", "2")
    dealt.assert_outcomes(passed=3)
    assert dealt.ret == 0
    assert report(dealt) == report(alone)


def test_a_worker_that_dies_makes_it_incomplete(shop: Shop) -> None:
    shop.apart = True
    shop.write("test_a", GOOD + "\ndef test_die():\n    import os\n    os._exit(1)\n")
    result = shop.run("--sagaz-mutate", "-n", "1", "--sagaz-mutate-fail-under=0")
    assert any(line.startswith("incomplete: 1 worker sent nothing") for line in report(result))
    assert result.ret == 1


def test_tests_that_look_at_nothing_have_no_score(shop: Shop) -> None:
    shop.write("test_a", f"{FIRST}\ndef test_it(sagaz):\n    sagaz.run(Order, CONTEXT)\n")
    result = shop.run("--sagaz-mutate")
    assert report(result)[0].startswith("order: no score: no test fails when the first action of it does")
    assert result.ret == 0
    assert shop.run("--sagaz-mutate", "--sagaz-mutate-fail-under=0").ret == 1


def test_the_exit_status_changes_only_when_asked(shop: Shop) -> None:
    shop.write("test_a", HALF)
    assert shop.run("--sagaz-mutate").ret == 0
    failed = shop.run("--sagaz-mutate", "--sagaz-mutate-fail-under=90")
    assert failed.ret == 1
    assert report(failed)[-1] == "that is not the 90 % of --sagaz-mutate-fail-under"
    assert shop.run("--sagaz-mutate", "--sagaz-mutate-fail-under=10").ret == 0


def test_tests_that_fail_by_themselves_are_left_out(shop: Shop) -> None:
    shop.write("test_a", FIRST + "\ndef test_it(sagaz):\n    assert not sagaz.run(Order, CONTEXT)\n")
    result = shop.run("--sagaz-mutate")
    result.assert_outcomes(failed=1)
    assert report(result)[0] == "no test that passed ran a saga of sagaz_core: there is no score"


def test_a_run_without_sagas_has_no_score(shop: Shop) -> None:
    shop.write("test_a", "def test_it(): pass")
    result = shop.run("--sagaz-mutate")
    assert report(result)[0] == "no test that passed ran a saga of sagaz_core: there is no score"
    assert result.ret == 0


def test_nothing_of_the_mutants_is_seen_elsewhere(shop: Shop) -> None:
    shop.write(
        "test_a",
        GOOD
        + """
@pytest.mark.saga_matrix(Order, CONTEXT)
def test_matrix(saga_case):
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("once a run")
    saga_case.run().assert_sound()
""",
    )
    plain = shop.run("-q", "--junitxml=plain.xml", "-W", "default")
    mutated = shop.run("-q", "--junitxml=mutated.xml", "-W", "default", "--sagaz-mutate")
    assert mutated.parseoutcomes() == plain.parseoutcomes()
    ours = (shop.path / "mutated.xml").read_text(), (shop.path / "plain.xml").read_text()
    assert ours[0].count("<testcase") == ours[1].count("<testcase")
    assert ours[0].count("<property ") == ours[1].count("<property ")


def test_fixtures_are_fresh_for_every_mutant(shop: Shop) -> None:
    shop.write(
        "test_a",
        FIRST
        + """
from pathlib import Path

@pytest.fixture(scope="module")
def made():
    with open("log", "a") as log:
        log.write("up ")
        yield
    with open("log", "a") as log:
        log.write("down ")

class TestIt:
    def test_it(self, sagaz, outside, made, tmp_path):
        assert not hasattr(self, "used")
        self.used = True
        (tmp_path / "one").mkdir()
        sagaz.run(Order(outside), CONTEXT, plan="end@before").assert_sound()
""",
    )
    result = shop.run("--sagaz-mutate")
    assert "needs-result:charge" in survivors(result)  # it ran again with this one, and passed
    log = (shop.path / "log").read_text().split()
    assert log == ["up", "down"] * (len(log) // 2)
    assert len(log) > 4


def test_a_recorded_saga_s_items_are_tests_like_others(shop: Shop) -> None:
    shop.record()
    result = shop.replay("--sagaz-mutate")
    assert result.ret == 0
    assert "drop-key:charge.order_id" not in survivors(result)
    assert "skip:charge" in survivors(result)  # a replay has no world, unless the fixture gives one


def test_the_seam_is_closed_again(shop: Shop) -> None:
    shop.write("test_a", GOOD)
    shop.run("--sagaz-mutate")
    assert Saga._changes == ()


def test_only_collecting_scores_nothing(shop: Shop) -> None:
    shop.write("test_a", GOOD)
    result = shop.run("--sagaz-mutate", "--collect-only", "--sagaz-mutate-fail-under=90")
    assert result.ret == 0
    assert "sagaz mutants" not in result.stdout.str()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sagaz-mutate", "--pdb"], "--sagaz-mutate cannot be used with --pdb, which would stop in each mutant"),
        (
            ["--sagaz-mutate", "--snapshot-update"],
            "--sagaz-mutate cannot be used with --snapshot-update, which would keep the mutants'",
        ),
        (
            ["--sagaz-mutate-fail-under=5"],
            "--sagaz-mutate-fail-under needs --sagaz-mutate: without it nothing is scored",
        ),
    ],
)
def test_options_that_do_not_fit_are_one_line(shop: Shop, options: list[str], message: str) -> None:
    assert error_of(shop.run(*options)) == message


def test_a_limit_that_is_no_percentage_is_refused(shop: Shop) -> None:
    for text in ("101", "-1", "nan", "many"):
        result = shop.run("--sagaz-mutate", f"--sagaz-mutate-fail-under={text}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert f"'{text}' is no percentage: give a number from 0 to 100" in result.stderr.str()
