"""`pytest --sagaz-replay=ID --sagaz-kill`: processes that are really killed, an item for each moment."""

from __future__ import annotations

import json
import sqlite3
import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from shops import error_of

if TYPE_CHECKING:
    from shops import Shop

TILL = '''
"""A till whose money is in a file: what happened there outlives every process."""

import os, sqlite3

from sagaz_core import Saga, action, compensate


def till(sql, *values):
    connection = sqlite3.connect(os.environ.get("TILL", "till.db"))
    with connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE IF NOT EXISTS charges (id TEXT PRIMARY KEY, times INTEGER)")
        rows = connection.execute(sql, values).fetchall()
    connection.close()
    return rows


class Sale(Saga):
    saga_name = "sale"

    @action("hold")
    async def hold(self, ctx):
        return {"held": True}

    @compensate("hold")
    async def let_go(self, ctx):
        pass

    @action("charge", in_doubt="compensate")
    async def charge(self, ctx):
        till("INSERT OR IGNORE INTO charges VALUES (?, 1)", ctx["order_id"])

    @compensate("charge")
    async def refund(self, ctx):
        till("DELETE FROM charges WHERE id = ?", ctx["order_id"])


class Keyless(Sale):
    """Charges again whenever it is asked to."""

    saga_name = "keyless"

    @action("charge", in_doubt="compensate")
    async def charge(self, ctx):
        till("INSERT INTO charges VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1", ctx["order_id"])


class Declined(Sale):
    saga_name = "declined"

    @action("charge", in_doubt="compensate")
    async def charge(self, ctx):
        raise ValueError("no money")
'''
WORLD = """
import pytest
from sagaz_core import World
from till import till

class Charges:
    def snapshot(self):
        return dict(till("SELECT id, times FROM charges"))

    def restore(self, rows):
        till("DELETE FROM charges")
        for row in rows.items():
            till("INSERT INTO charges VALUES (?, ?)", *row)

@pytest.fixture
def saga_world(tmp_path, monkeypatch):
    monkeypatch.setenv("TILL", str(tmp_path / "till.db"))
    world = World()
    world.fake(Charges(), "till")
    return world
"""
FORWARD = ["hold:start", "hold:effect", "hold:record", "charge:effect", "charge:record", "end"]
BACK = [f"{step}:undo-{place}" for step in ("charge", "hold") for place in ("start", "effect", "record")]
ALL = [f"ORDER-1::kill:{label}" for label in FORWARD]
ALL += [
    f"ORDER-1::{plan}+kill:{label}" for plan in ("end@before", "charge@before") for label in ("turned", *BACK, "end")
]
WITHOUT_PLANS = ("-k", "kill:")


@pytest.fixture
def sale(shop: Shop) -> Shop:
    shop.write("till", TILL)
    shop.record("till:Sale")
    (shop.path / "till.db").unlink(missing_ok=True)
    return shop


@pytest.fixture
def keyless(shop: Shop) -> Shop:
    shop.write("till", TILL)
    shop.record("till:Keyless")
    (shop.path / "till.db").unlink(missing_ok=True)
    shop.write("conftest", WORLD)
    return shop


def test_each_moment_is_an_item_behind_those_of_the_plans(sale: Shop) -> None:
    ids = sale.ids("--sagaz-replay=ORDER-1", "--sagaz-kill")
    assert ids[ids.index(ALL[0]) :] == ALL
    assert ids[: ids.index(ALL[0])] == sale.ids("--sagaz-replay=ORDER-1")


def test_a_sound_saga_passes_and_says_how_often_it_was_killed(sale: Shop) -> None:
    sale.write("conftest", WORLD)
    result = sale.replay("--sagaz-kill", *WITHOUT_PLANS)
    result.assert_outcomes(passed=22, deselected=8)
    result.stdout.fnmatch_lines(["ORDER-1: 22 kills, 22 sound"])


def test_without_a_world_the_processes_act_on_the_real_outside(sale: Shop) -> None:
    sale.replay("--sagaz-kill", "ORDER-1::kill:charge:effect").assert_outcomes(passed=1)
    with sqlite3.connect(sale.path / "till.db") as till:
        assert till.execute("SELECT * FROM charges").fetchall() == [("1", 1)]
    till.close()


def test_an_unsound_one_fails_with_the_table_and_the_command(keyless: Shop) -> None:
    result = keyless.replay("--sagaz-kill", *WITHOUT_PLANS)
    result.assert_outcomes(passed=21, failed=1, deselected=8)
    result.stdout.fnmatch_lines(
        [
            "UnsoundError: NOT_IDEMPOTENT killed after the effect of 'charge', before it was recorded: *.1: 1 -> 2*",
            "saga 'keyless' killed after the effect of 'charge', before it was recorded ended completed: NOT_*",
            "charge  2 times *NOT_IDEMPOTENT",
            "again *pytest --sagaz-replay=ORDER-1 --sagaz-kill ORDER-1::kill:charge:effect",
            "ORDER-1: 22 kills, 21 sound, 1 not",
        ]
    )


def test_the_command_of_a_failure_runs_that_moment_alone(keyless: Shop) -> None:
    result = keyless.replay("--sagaz-kill", "ORDER-1::kill:charge:effect")
    result.assert_outcomes(failed=1)


def test_x_stops_at_the_first(keyless: Shop) -> None:
    keyless.replay("--sagaz-kill", "-x", *WITHOUT_PLANS).assert_outcomes(passed=3, failed=1, deselected=8)


def test_workers_kill_too(keyless: Shop) -> None:
    result = keyless.replay("--sagaz-kill", "-n", "2", "-k", "kill:charge or kill:hold or kill:end")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["ORDER-1: * kills, * sound, 1 not"])


def test_plans_that_are_named_say_where_the_saga_turns_back(sale: Shop) -> None:
    ids = sale.ids("--sagaz-replay=ORDER-1", "--sagaz-kill", "--sagaz-plan=charge@after")
    assert ids == ["ORDER-1::charge@after", *(f"ORDER-1::charge@after+kill:{x}" for x in ("turned", *BACK, "end"))]
    sale.replay("--sagaz-kill", "ORDER-1::charge@after+kill:charge:undo-effect").assert_outcomes(passed=1)


def test_a_saga_that_was_turned_back_is_killed_on_its_way_there_and_back(shop: Shop) -> None:
    shop.write("till", TILL)
    shop.record("till:Declined")
    ids = shop.ids("--sagaz-replay=ORDER-1", "--sagaz-kill", *WITHOUT_PLANS)
    moments = [*FORWARD[:3], "turned", *BACK, "end"]
    assert ids == [f"ORDER-1::charge@before+kill:{label}" for label in moments]
    shop.replay("--sagaz-kill", *WITHOUT_PLANS).assert_outcomes(passed=len(ids), deselected=6)


def test_what_a_factory_gives_is_never_passed_over(sale: Shop) -> None:
    sale.write("conftest", "import pytest, till\n\n@pytest.fixture\ndef saga_factory():\n    return till.Sale()\n")
    result = sale.replay("--sagaz-kill", "-rs", *WITHOUT_PLANS)
    result.assert_outcomes(skipped=22, deselected=8)
    result.stdout.fnmatch_lines(["*not run: what saga_factory gives, *cannot be found by another process*"])
    assert not (sale.path / "till.db").exists()


def test_a_factory_that_another_process_finds_makes_the_saga(sale: Shop) -> None:
    sale.write("making", "import till\n\ndef sale():\n    return till.Sale()\n")
    sale.write(
        "conftest", "import pytest, making\n\n@pytest.fixture\ndef saga_factory():\n    return {'sale': making.sale}\n"
    )
    sale.replay("--sagaz-kill", "ORDER-1::kill:charge:effect").assert_outcomes(passed=1)


def test_an_engine_that_cannot_resume_is_skipped_and_said(shop: Shop) -> None:
    pytest.importorskip("sagaz")
    shop.write(
        "theirs",
        "from sagaz import Saga, action\n\nclass Theirs(Saga):\n    saga_name = 'theirs'\n\n"
        "    @action('one')\n    async def one(self, ctx):\n        return {}\n",
    )
    done = shop.pytester.run(
        sys.executable, "-m", "sagaz_core.cli", "record", "theirs:Theirs", "--id", "ORDER-1", "--context", "{}"
    )
    assert done.ret == 0, done.stderr.str()
    result = shop.replay("--sagaz-kill", "-rs", *WITHOUT_PLANS)
    assert set(result.parseoutcomes()) == {"skipped", "deselected"}
    result.stdout.fnmatch_lines(
        ["*not run: theirs:Theirs was not killed: *cannot take up a run that another process left*"]
    )


def test_junit_says_what_was_killed_and_how_it_ended(sale: Shop) -> None:
    sale.replay("--sagaz-kill", "ORDER-1::kill:end", "--junitxml=report.xml")
    found = ET.parse(sale.path / "report.xml").findall(".//property")
    assert {element.get("name"): element.get("value") for element in found} == {
        "sagaz_id": "ORDER-1",
        "sagaz_plan": "kill:end",
        "sagaz_killed": "when the end of the saga was recorded",
        "sagaz_verdict": "CLEAN",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sagaz-from=charge"], "--sagaz-kill and --sagaz-from: a saga that is killed runs from its start"),
        (["--sagaz-plan=charge@crash"], "charge@crash: a run that is killed has no other crash"),
        (["ORDER-1::kill:chrge:effect"], "saga 'sale' has no step 'chrge' (did you mean 'charge'?)"),
        (["ORDER-1::kill:charge:efect"], "did you mean 'effect'?"),
    ],
    ids=lambda value: "",
)
def test_what_cannot_be_is_a_usage_error(sale: Shop, options: list[str], message: str) -> None:
    before = sale.files()
    assert message in error_of(sale.replay("--sagaz-kill", *options))
    assert sale.files() == before


def test_without_a_replay_it_says_what_to_add(shop: Shop) -> None:
    assert error_of(shop.run("--sagaz-kill")).startswith("--sagaz-kill needs --sagaz-replay=ID")


def test_a_context_that_is_overridden_is_what_the_processes_begin_with(sale: Shop) -> None:
    sale.replay("--sagaz-kill", "--sagaz-override", "order_id=2", "ORDER-1::kill:end").assert_outcomes(passed=1)
    with sqlite3.connect(sale.path / "till.db") as till:
        assert till.execute("SELECT id FROM charges").fetchall() == [("2",)]
    till.close()


def test_a_recording_from_a_file_is_killed_by_the_class_that_is_named(shop: Shop) -> None:
    shop.write("till", TILL)
    shop.record("till:Sale", out="order.json", store="memory://")
    assert json.loads((shop.path / "order.json").read_text())["format"] == "sagaz-recording"
    shop.replay("--sagaz-kill", "--app=till:Sale", "ORDER-1::kill:charge:effect", saga_id="order.json").assert_outcomes(
        passed=1
    )
