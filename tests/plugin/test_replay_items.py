"""`pytest --sagaz-replay=ID`: what is collected, what passes, and what a failure says."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from shops import CONTEXT, QUICK, error_of

from sagaz_core.prove import watch
from tests.servers import own_valkey

if TYPE_CHECKING:
    from shops import Shop

ALL = [f"ORDER-1::{name}" for name in ("faithful", *QUICK)]


@pytest.fixture
def order(shop: Shop) -> Shop:
    shop.record()
    return shop


@pytest.fixture
def careless(shop: Shop) -> Shop:
    shop.record("shop:Careless")
    return shop


# -- what is collected


def test_a_recorded_saga_is_one_faithful_item_and_one_for_each_plan(order: Shop) -> None:
    assert order.ids("--sagaz-replay=ORDER-1") == ALL


def test_a_sound_saga_passes_and_says_how_many_plans_were_tried(order: Shop) -> None:
    result = order.replay()
    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines(["ORDER-1 *..........*", "*= sagaz =*", "ORDER-1: faithful, 9 plans, 9 sound"])


def test_nothing_else_is_collected_whatever_testpaths_says(order: Shop) -> None:
    order.write("tests/test_other", "raise RuntimeError('collected')")
    order.write("test_here", "raise RuntimeError('collected')")
    order.ini("testpaths = tests test_here.py\naddopts = -ra --strict-markers")
    assert order.ids("--sagaz-replay=ORDER-1") == ALL


def test_started_below_the_root_folder_the_ids_are_the_same(order: Shop) -> None:
    order.write("sub/test_other", "raise RuntimeError('collected')")
    order.record(store=f"sqlite:///{order.path}/sub/.sagaz/sagaz.db")
    order.monkeypatch.chdir(order.path / "sub")
    assert order.ids("--sagaz-replay=ORDER-1") == ALL
    order.replay("../ORDER-1::charge@after").assert_outcomes(passed=1)


def test_with_paths_the_tests_there_are_run_too(order: Shop) -> None:
    order.write("tests/test_a", "def test_it(): pass")
    order.write("tests/test_b", "def test_it(): pass")
    assert order.ids("--sagaz-replay=ORDER-1", "tests/test_a.py") == ["tests/test_a.py::test_it", *ALL]
    assert sorted(order.ids("--sagaz-replay=ORDER-1", ".")) == sorted(
        ["tests/test_a.py::test_it", "tests/test_b.py::test_it", *ALL]
    )


def test_tests_in_a_given_path_get_the_recording_they_ask_for(order: Shop) -> None:
    order.record(saga_id="ORDER-2")
    order.write("test_a", "def test_it(recording): assert recording.completed")
    result = order.run("--sagaz-replay=ORDER-*", "test_a.py", "-v", "-k", "test_it")
    result.assert_outcomes(passed=2, deselected=20)
    result.stdout.fnmatch_lines(["test_a.py::test_it[[]ORDER-1]*", "test_a.py::test_it[[]ORDER-2]*"])


def test_kinds_are_chosen_by_name_or_all_of_them(order: Shop) -> None:
    assert order.ids("--sagaz-replay=ORDER-1", "--sagaz-kinds=after") == [
        "ORDER-1::faithful", "ORDER-1::reserve@after", "ORDER-1::charge@after", "ORDER-1::ship@after",
    ]  # fmt: skip
    assert len(order.ids("--sagaz-replay=ORDER-1", "--sagaz-kinds=all")) > 30


def test_every_kind_of_fault_is_sound_in_a_sound_saga(order: Shop) -> None:
    result = order.replay("--sagaz-kinds=all")
    assert result.ret == 0
    assert set(result.parseoutcomes()) == {"passed"}


def test_from_a_step_on_only_the_plans_from_there_are_tried(order: Shop) -> None:
    ids = order.ids("--sagaz-replay=ORDER-1", "--sagaz-from=charge")
    assert "ORDER-1::reserve@before" not in ids
    assert {"ORDER-1::charge@before", "ORDER-1::ship@after", "ORDER-1::reserve@undo-fail"} <= set(ids)
    order.replay("--sagaz-from=charge").assert_outcomes(passed=len(ids))


def test_named_plans_run_instead_of_the_single_fault_set(order: Shop) -> None:
    plan = "ship@before+charge@undo-fail"
    assert order.ids("--sagaz-replay=ORDER-1", f"--sagaz-plan={plan}", "--sagaz-plan=none") == [
        f"ORDER-1::{plan}", "ORDER-1::faithful",
    ]  # fmt: skip
    order.replay(f"--sagaz-plan={plan}").assert_outcomes(passed=1)


def test_an_id_with_odd_characters_makes_ids_that_can_be_given_back(shop: Shop) -> None:
    odd = "a::b[1] c/../d%"
    shop.record(saga_id=odd)
    ids = shop.ids(f"--sagaz-replay={odd}")
    assert len(ids) == 10
    shop.replay(ids[3], saga_id=odd).assert_outcomes(passed=1)


# -- files


def test_a_recording_file_runs_when_its_module_is_named(shop: Shop) -> None:
    shop.record(out="order.json")
    (shop.path / ".sagaz/sagaz.db").unlink()
    assert "no module is named that has it" in error_of(shop.replay(saga_id="order.json"))
    shop.replay("--app=shop", saga_id="order.json").assert_outcomes(passed=10)
    shop.ini("sagaz_sagas = shop")
    shop.replay(saga_id="order.json").assert_outcomes(passed=10)
    shop.replay(saga_id="*.json").assert_outcomes(passed=10)


def test_a_recording_file_does_not_say_which_module_is_imported(shop: Shop) -> None:
    shop.record(out="order.json")
    text = (shop.path / "order.json").read_text().replace('"shop:Order"', '"evil:Order"')
    (shop.path / "order.json").write_text(text)
    shop.write("evil", "raise SystemExit('imported')")
    assert "evil:Order, which is not taken from a file" in error_of(shop.replay(saga_id="order.json"))


def test_files_of_the_recordings_folder_are_found_by_id(shop: Shop) -> None:
    (shop.path / "recordings").mkdir()
    shop.record(out="recordings/some-name.json", store="memory://")
    shop.ini("sagaz_recordings = recordings\nsagaz_sagas = shop")
    shop.replay().assert_outcomes(passed=10)
    shop.replay(saga_id="ORD*").assert_outcomes(passed=10)


def test_a_saga_factory_that_is_overridden_needs_no_module(shop: Shop) -> None:
    shop.record(out="order.json", store="memory://")
    shop.write("conftest", "import pytest, shop\n\n@pytest.fixture\ndef saga_factory():\n    return shop.Order\n")
    shop.replay(saga_id="order.json").assert_outcomes(passed=10)


def test_the_store_comes_from_option_environment_ini_and_project_in_that_order(shop: Shop) -> None:
    for name in ("option", "environment", "ini", "project"):
        shop.record(saga_id=f"IN-{name}", store=f"sqlite:///{name}.db")
    (shop.path / "pyproject.toml").write_text('[tool.sagaz]\nstore = "sqlite:///project.db"\n')
    shop.replay("-k", "faithful", saga_id="IN-project").assert_outcomes(passed=1, deselected=9)
    shop.ini("sagaz_store = sqlite:///ini.db")
    shop.replay("-k", "faithful", saga_id="IN-ini").assert_outcomes(passed=1, deselected=9)
    shop.monkeypatch.setenv("SAGAZ_STORE", "sqlite:///environment.db")
    shop.replay("-k", "faithful", saga_id="IN-environment").assert_outcomes(passed=1, deselected=9)
    result = shop.replay("-k", "faithful", "--sagaz-store=sqlite:///option.db", "-v", saga_id="IN-option")
    result.assert_outcomes(passed=1, deselected=9)
    result.stdout.fnmatch_lines(["sagaz: store sqlite:///option.db (--sagaz-store); kinds quick (default)"])


# -- what a failure says


def test_the_command_of_a_failure_names_the_store_without_its_password(shop: Shop) -> None:
    with own_valkey() as server:
        url = server.url.replace("//", "//:PSSWD@")
        shop.record("shop:Careless", store=url)
        result = shop.replay(f"--sagaz-store={url}", "--junitxml=junit.xml", "-v", "--sagaz-report=report")
    result.assert_outcomes(passed=9, failed=1)
    shown = server.url.replace("//", "//:***@")
    again = f"pytest --sagaz-replay=ORDER-1 --sagaz-plan=charge@after '--sagaz-store={shown}'"
    assert any(line.startswith("again ") and line.endswith(again) for line in result.outlines)
    said = [result.stdout.str(), result.stderr.str(), (shop.path / "junit.xml").read_text()]
    said += [path.read_text() for path in (shop.path / "report").iterdir()]
    assert "PSSWD" not in "".join(said)


def test_a_charge_that_is_left_behind_fails_with_the_table_and_no_traceback(careless: Shop) -> None:
    result = careless.replay()
    result.assert_outcomes(passed=9, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*_ ORDER-1: charge@after _*",
            "UnsoundError: ORPHAN under charge@after: the effect of 'charge' was left behind",
            "step * done * undone * left",
            "*declare in_doubt=\"compensate\" at step 'charge'*",
            "again * pytest --sagaz-replay=ORDER-1 --sagaz-plan=charge@after",
            "ORDER-1: faithful, 9 plans, 8 sound, 1 not",
            "FAILED ORDER-1::charge@after - UnsoundError: ORPHAN under charge@after: the effect of 'charge' was left*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_sagaz/*")
    result.stdout.no_fnmatch_line("*sagaz_core/*")


def test_the_command_that_a_failure_prints_runs_that_plan_alone(careless: Shop) -> None:
    line = next(line for line in careless.replay("--sagaz-override", "quantity=3").outlines if line.startswith("again"))
    command = line.split()[2:]
    assert command[0] == "--sagaz-replay=ORDER-1"
    careless.run(*command).assert_outcomes(failed=1)


def test_junit_has_the_facts(careless: Shop) -> None:
    careless.replay("--junitxml=report.xml")
    cases = {case.get("name"): case for case in ET.parse(careless.path / "report.xml").iter("testcase")}
    case = cases["charge@after"]
    assert case.get("classname") == "ORDER-1"
    assert {p.get("name"): p.get("value") for p in case.iter("property")} == {
        "sagaz_id": "ORDER-1", "sagaz_plan": "charge@after", "sagaz_verdict": "ORPHAN",
    }  # fmt: skip
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("message") == "UnsoundError: ORPHAN under charge@after: the effect of 'charge' was left behind"


def test_other_code_than_was_recorded_fails_with_the_differences(order: Shop) -> None:
    order.write("shop", (order.path / "shop.py").read_text().replace('"ship"', '"deliver"'))
    result = order.replay()
    result.assert_outcomes(failed=10)
    result.stdout.fnmatch_lines(
        [
            "UnfaithfulError: DIFFERENT: step 'ship' is gone (and * more)",
            "  step 'deliver' is new",
            "DriftError: saga 'order' is not defined as it was recorded: step 'ship' is gone; step 'deliver' is new*",
        ]
    )
    assert order.replay("--sagaz-allow-drift", "-k", "not faithful").ret == 0


def test_many_sagas_are_counted_together_and_only_what_is_wrong_is_named(shop: Shop) -> None:
    shop.record()
    shop.write(
        "copy_it",
        """
        import asyncio
        from dataclasses import replace
        from sagaz_core import Recording, open_storage

        async def main():
            storage = open_storage("sqlite:///.sagaz/sagaz.db")
            recording = await Recording.from_storage(storage, "ORDER-1")
            for number in range(2, 31):
                saga_id = f"ORDER-{number}"
                first = recording.events[0]._replace(saga_id=saga_id)
                copy = replace(recording, record=recording.record._replace(saga_id=saga_id), snapshots=())
                await replace(copy, events=(first, *recording.events[1:])).to_storage(storage)
            await storage.close()

        asyncio.run(main())
        """,
    )
    assert shop.pytester.run(sys.executable, "copy_it.py").ret == 0
    result = shop.replay("--sagaz-kinds=before", saga_id="ORDER-*")
    result.assert_outcomes(passed=150)
    lines = result.outlines[next(i for i, line in enumerate(result.outlines) if "= sagaz =" in line) + 1 :]
    assert lines[0] == "30 sagas: 30 faithful, 120 plans, 120 sound"


def test_drift_in_values_is_shown_and_passes_unless_strict(order: Shop) -> None:
    order.write("shop", (order.path / "shop.py").read_text().replace('"R-{', '"S-{').replace('f"R-', 'f"S-'))
    result = order.replay()
    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines(["*result of reserve.reservation  'R-1'*'S-1'"])
    result = order.replay("--sagaz-strict")
    result.assert_outcomes(passed=9, failed=1)
    result.stdout.fnmatch_lines(["UnfaithfulError: DRIFT: result of reserve.reservation was 'R-1', is 'S-1'*"])


TIMES = """
    from datetime import datetime
    from sagaz_core import Saga, action

    class Times(Saga):
        saga_name = "times"

        @action("stamp")
        async def stamp(self, ctx):
            now = datetime.now()
            return {"at": now, "in": [now], "text": "x" * 100 + str(now), "token": str(now), "day": now.date()}
"""


def test_drift_shows_where_long_values_differ_and_no_secret_and_no_class_of_the_frozen_clock(shop: Shop) -> None:
    shop.write("times", TIMES)
    shop.record("times:Times")
    shop.write("times", TIMES.replace("datetime.now()", "datetime(2000, 1, 1)"))
    result = shop.replay("-k", "faithful")
    result.stdout.fnmatch_lines(
        [
            "  result of stamp.at     20??-*T*  2000-01-01T00:00:00",
            "  result of stamp.in     [[]datetime.datetime(20*  [[]datetime.datetime(2000, 1, 1, 0, 0)]",
            "  result of stamp.text   ...xxxxxxxxx*20*  ...xxxxxxxxx*2000-01-01 00:00:00'",
            "  result of stamp.token  ***  [*][*][*] (another)",
            "  result of stamp.day    20??-??-??  *2000-01-01",
        ]
    )
    result.stdout.no_fnmatch_line("*Fake*")
    result = shop.replay("-k", "faithful", "--sagaz-strict")
    assert len([line for line in result.outlines if "stamp.token" in line]) == 1


def test_a_bug_of_the_saga_keeps_its_traceback(order: Shop) -> None:
    order.write(
        "shop", (order.path / "shop.py").read_text().replace('ctx["quantity"] * ctx["price"]', 'ctx["qantity"]')
    )
    result = order.replay()
    result.stdout.fnmatch_lines(["*what a step raised*", "shop.py:*: in charge", "E   KeyError: 'qantity'"])
    result.stdout.no_fnmatch_line("*sagaz_core/*")


def test_a_bug_of_a_fixture_keeps_its_traceback(order: Shop) -> None:
    order.write("conftest", "import pytest\n\n@pytest.fixture\ndef saga_factory():\n    return lambda: 1 / 0\n")
    result = order.replay("-k", "end")
    result.assert_outcomes(failed=1, deselected=9)
    result.stdout.fnmatch_lines(["conftest.py:5: ZeroDivisionError*"])


def test_an_override_is_laid_over_the_recorded_context(order: Shop) -> None:
    result = order.replay("--sagaz-override", "quantity=3", "--sagaz-strict", "-k", "faithful")
    result.stdout.fnmatch_lines(["*DRIFT: result of charge.total was 14, is 21*"])
    assert CONTEXT["quantity"] == 2


def test_what_the_engine_cannot_have_is_skipped_with_the_reason(shop: Shop) -> None:
    pytest.importorskip("sagaz")
    shop.write(
        "theirs",
        """
        from sagaz.core.decorators import Saga, action, compensate

        class Theirs(Saga):
            saga_name = "theirs"

            @action("reserve")
            async def reserve(self, ctx): return {"r": 1}

            @compensate("reserve")
            async def release(self, ctx): pass
        """,
    )
    shop.write(
        "record",
        """
        import asyncio
        from sagaz_core import open_storage, ReplayConfig
        from sagaz_core.adapters.locate import adapter_for
        from sagaz_core.engine.run import RunOptions
        from theirs import Theirs

        async def main():
            adapter = adapter_for(Theirs)
            options = RunOptions(storage=open_storage("sqlite:///.sagaz/sagaz.db"), replay_config=ReplayConfig())
            await adapter.run(adapter.create(Theirs), {"order_id": "1"}, saga_id="ORDER-1", options=options)

        asyncio.run(main())
        """,
    )
    assert shop.pytester.run(sys.executable, "record.py").ret == 0
    shop.ini("")
    result = shop.replay("--sagaz-kinds=before,crash", "-rs", "-W", "ignore")
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED *not run: reserve@crash was not run: the engine of the sagaz package cannot*"]
    )
    result.stdout.fnmatch_lines(["ORDER-1: faithful, 3 plans, 2 sound, 1 not run"])


# -- what was recorded to fail


FIRST = """
    from sagaz_core import Saga, action, compensate

    class First(Saga):
        saga_name = "first"

        @action("look_up", in_doubt="compensate")
        async def look_up(self, ctx):
            return {"price": ctx["prices"]["W1"]}

        @compensate("look_up")
        async def forget(self, ctx):
            pass
"""


def test_a_step_that_fails_as_it_was_recorded_to_is_not_forced_to(shop: Shop) -> None:
    shop.write("first", FIRST)
    shop.record("first:First", context={"prices": {}})
    result = shop.replay("-rs")
    result.assert_outcomes(passed=2, skipped=1)  # the faithful replay, and look_up@before
    result.stdout.fnmatch_lines(
        [
            "ORDER-1: faithful, 2 plans, 1 sound, 1 not run",
            "SKIPPED *not run: 'look_up' fails by itself, as it was recorded to (KeyError: 'W1'); see --sagaz-override",
        ]
    )
    result = shop.replay("--sagaz-plan=look_up@after")  # who asks for it by name is told that it tried nothing
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*VACUOUS under look_up@after*"])
    shop.replay('--sagaz-override=prices={"W1": 5}', "-k", "after").assert_outcomes(passed=1, deselected=2)


def test_a_step_that_does_not_end_any_more_is_endless_in_each_item_that_gets_there(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.write("first", FIRST)
    shop.record("first:First", context={"prices": {"W1": 5}})
    never = """
            while True:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    pass
"""
    shop.write(
        "first", "    import asyncio\n" + FIRST.replace('            return {"price": ctx["prices"]["W1"]}', never)
    )
    monkeypatch.setattr(watch, "MOST_TURNS", 1_000)
    result = shop.replay("--sagaz-plan=none", "--sagaz-plan=look_up@before", "--sagaz-plan=look_up@repeat")
    result.assert_outcomes(failed=2, passed=1)
    endless = (
        "ENDLESS*: the action of step 'look_up' never ends, and goes on when it is cancelled, it waits at *first.py:*"
    )
    result.stdout.fnmatch_lines([f"*UnsoundError: {endless}", f"*UnsoundError: {endless}"])


# -- steps beside each other

PAIR = """
    from sagaz_core import Saga, action, compensate

    class Pair(Saga):
        saga_name = "pair"

        @action("reserve", depends_on=[])
        async def reserve(self, ctx):
            return {"ticket": "t1"}

        @compensate("reserve")
        async def release(self, ctx): ...

        @action("charge", depends_on=[])
        async def charge(self, ctx): ...  # by then there is a ticket

        @compensate("charge")
        async def refund(self, ctx):
            assert ctx["ticket"] == "t1"
    """


def test_a_plan_is_tried_in_both_orders_where_the_saga_leaves_a_choice(shop: Shop) -> None:
    shop.write("pairs", PAIR)
    shop.record("pairs:Pair", context={})
    result = shop.replay("--sagaz-plan=charge@before", "--sagaz-plan=end@before")
    result.assert_outcomes(passed=1, failed=1)
    line = "FAILED ORDER-1::end@before - UnsoundError: STUCK under end@before (undone oldest first): *"
    result.stdout.fnmatch_lines(["*undone oldest first*", "and newest first      it is sound: *", line])


def test_a_live_run_is_made_once(shop: Shop) -> None:
    shop.write("pairs", PAIR)
    shop.record("pairs:Pair", context={})
    shop.replay("--sagaz-plan=end@before", "--sagaz-allow-live").assert_outcomes(passed=1)


def test_a_matrix_is_tried_in_both_orders_on_request(shop: Shop) -> None:
    shop.write("pairs", PAIR)
    shop.write(
        "test_pair",
        """
        from pairs import Pair
        from pytest_sagaz import saga_matrix

        @saga_matrix(Pair, {}, kinds="undo-flaky")
        def test_once(saga_case):
            saga_case.run().assert_sound()

        @saga_matrix(Pair, {}, kinds="undo-flaky")
        def test_both(saga_case):
            saga_case.run_in_both_orders().assert_sound()
        """,
    )
    result = shop.run("test_pair.py")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["FAILED *test_both*reserve@undo-flaky* - *STUCK under * (undone oldest first)*"])


PIVOT = """
    from sagaz_core import Saga, SagaConfig, action, compensate

    class Pivot(Saga):
        saga_name = "pivot"

        def __init__(self):
            super().__init__(config=SagaConfig(forward_retries=0))

        @action("hold", in_doubt="compensate")
        async def hold(self, ctx): pass

        @compensate("hold")
        async def let_go(self, ctx): pass

        @action("pay", pivot=True, in_doubt="compensate")
        async def pay(self, ctx): pass

        @compensate("pay")
        async def refund(self, ctx): pass

        @action("send")
        async def send(self, ctx):
            raise RuntimeError("no mail")
"""


def test_of_a_saga_that_is_stuck_behind_its_pivot_the_compensations_are_tried_by_failing_the_pivot(shop: Shop) -> None:
    shop.write("pivot", PIVOT)
    shop.record("pivot:Pivot", context={})
    names = [name.removeprefix("ORDER-1::") for name in shop.ids("--sagaz-replay=ORDER-1")]
    assert names == [
        "faithful", "hold@before", "hold@after", "pay@before+hold@undo-fail", "pay@before", "pay@after",
        "send@before", "send@after",
    ]  # fmt: skip
    shop.replay().assert_outcomes(passed=7, skipped=1)  # send@after: it fails by itself


def test_a_pattern_opens_the_store_once_for_all_that_are_like_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_sagaz.settings import Settings

    many = [f"ORDER-{number}" for number in range(10, 20)]
    for saga_id in many:
        shop.record(saga_id=saga_id)
    opened, really = [0], Settings.open_store

    def counting(self: Settings) -> object:
        opened[0] += 1
        return really(self)

    monkeypatch.setattr(Settings, "open_store", counting)
    ids = shop.ids("--sagaz-replay=ORDER-1*")
    assert list(dict.fromkeys(one.partition("::")[0] for one in ids)) == many
    assert opened == [2]  # the other time to look for a saga of that very id
