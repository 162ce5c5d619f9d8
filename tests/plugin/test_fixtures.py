"""Sagas in a test file: the markers and fixtures, and what fails a test that proves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from shops import CONTEXT

from sagaz_core.prove import patience

if TYPE_CHECKING:
    from shops import Shop

HEAD = f"""
import pytest, shop
from pytest_sagaz import force_failure, replay_from, saga_matrix

CONTEXT = {CONTEXT!r}
"""


@pytest.fixture
def order(shop: Shop) -> Shop:
    shop.record()
    return shop


def test(shop: Shop, source: str, *args: str) -> pytest.RunResult:
    """Run pytest on one module."""
    import textwrap

    shop.write("test_a", HEAD + textwrap.dedent(source))
    return shop.run("test_a.py", *args)


test.__test__ = False  # type: ignore[attr-defined]


# -- a test of a rollback


def test_a_rollback_is_tested_in_five_lines(shop: Shop) -> None:
    result = test(
        shop,
        """
        @pytest.mark.force_failure("ship", at="after")
        def test_a_lost_parcel_is_called_back(sagaz):
            outcome = sagaz.run(shop.Order(), CONTEXT)
            outcome.assert_compensated("reserve", "charge")
            outcome.assert_sound()
        """,
    )
    result.assert_outcomes(passed=1)


def test_an_unsound_outcome_fails_in_the_test_s_own_lines_with_the_table_beside(shop: Shop) -> None:
    result = test(
        shop,
        """
        @force_failure("charge", at="after")
        def test_it(sagaz):
            sagaz.run(shop.Careless(), CONTEXT).assert_sound()
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*sagaz.run(shop.Careless(), CONTEXT).assert_sound()",
            "E *UnsoundError: ORPHAN under charge@after: the effect of 'charge' was left behind",
            "*- sagaz -*",
            "step * left",
        ]
    )
    result.stdout.no_fnmatch_line("*sagaz_core/prove*")


def test_faults_are_stacked(shop: Shop) -> None:
    result = test(
        shop,
        """
        @force_failure("ship")
        @force_failure("charge", at="undo-fail")
        def test_it(sagaz):
            outcome = sagaz.run(shop.Order, CONTEXT)
            assert str(outcome.plan) == "ship@before+charge@undo-fail"
            outcome.assert_stuck("charge")
            outcome.assert_sound()
        """,
    )
    result.assert_outcomes(passed=1)


def test_an_exception_of_the_test_s_own_is_raised(shop: Shop) -> None:
    result = test(
        shop,
        """
        class Declined(Exception): pass

        @force_failure("charge", exc=Declined("no"))
        def test_it(sagaz):
            outcome = sagaz.run(shop.Order, CONTEXT)
            assert isinstance(outcome.exception, Declined)
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_plan_in_the_call_stands_above_the_markers(shop: Shop) -> None:
    result = test(
        shop,
        """
        from sagaz_core import fail

        def test_it(sagaz):
            assert sagaz.run(shop.Order, CONTEXT).assert_completed() is None
            assert sagaz.run(shop.Order, CONTEXT, plan="ship@before").compensated == ["charge", "reserve"]
            assert sagaz.run(shop.Order, CONTEXT, plan=fail.after("reserve")).compensated == ["reserve"]
        """,
    )
    result.assert_outcomes(passed=1)


def test_the_world_is_a_witness(shop: Shop) -> None:
    result = test(
        shop,
        """
        @force_failure("ship")
        def test_it(sagaz, saga_world):
            outside = shop.Outside()
            saga_world.probe("stock", lambda: list(outside.stock))
            outside.undo = lambda what, order_id: None
            sagaz.run(shop.Order(outside), CONTEXT).assert_sound()
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*UnsoundError: LIE under ship@before: *the world is not as it was (stock: [[]] -> [[]'1'[]])"]
    )


def test_every_failure_is_explored_in_one_call(shop: Shop) -> None:
    result = test(
        shop,
        """
        def test_it(sagaz):
            found = sagaz.explore(shop.Careless, CONTEXT, kinds="quick")
            assert [str(outcome.plan) for outcome in found.failures] == ["charge@after"]
            found.assert_sound()
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E * ORPHAN under charge@after*"])


# -- proving nothing


@pytest.mark.parametrize(
    ("step", "body", "message"),
    [
        ('"charge#2"', "sagaz.run(shop.Order, CONTEXT)", "VACUOUS under charge#2@before: *never happened"),
        ('"ship"', "pass", "VACUOUS: the test ran no saga under ship@before: run it with the fixture sagaz"),
        ('"ship"', 'sagaz.run(shop.Order, CONTEXT, plan="charge@before")', "VACUOUS: no saga of the test ran under"),
    ],
    ids=["never-struck", "no-saga", "another-plan"],
)
def test_a_failure_that_never_happened_fails_a_test_that_asserts_nothing(
    shop: Shop, step: str, body: str, message: str
) -> None:
    result = test(shop, f"@force_failure({step})\ndef test_it(sagaz):\n    {body}\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{message}*"])


def test_a_failure_that_happened_once_is_enough(shop: Shop) -> None:
    result = test(
        shop,
        """
        @force_failure("ship")
        def test_it(sagaz):
            assert sagaz.run(shop.Order, CONTEXT).compensated

        @pytest.mark.force_failure("ship")
        class TestMore:
            def test_no_saga_at_all(self): pass
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_failing_test_says_its_own_failure_first(shop: Shop) -> None:
    result = test(shop, '@force_failure("ship")\ndef test_it(sagaz):\n    assert "mine" == 0\n')
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*VACUOUS*")


# -- the matrix


def test_a_matrix_is_a_test_for_each_plan(shop: Shop) -> None:
    result = test(
        shop,
        """
        @saga_matrix(shop.Careless, CONTEXT)
        def test_it(saga_case):
            saga_case.run().assert_sound()
        """,
        "-v",
    )
    result.assert_outcomes(passed=8, failed=1)
    result.stdout.fnmatch_lines(
        [
            "test_a.py::test_it[[]reserve@before] PASSED*",
            "test_a.py::test_it[[]charge@after] FAILED*",
            "again * pytest 'test_a.py::test_it[[]charge@after]'",
            "careless: 9 plans, 8 sound, 1 not",
        ]
    )
    line = next(line for line in result.outlines if line.startswith("again"))
    shop.run(line.split("'")[1]).assert_outcomes(failed=1)


def test_the_kinds_of_a_matrix_are_the_run_s_unless_it_has_its_own(shop: Shop) -> None:
    source = "@saga_matrix(shop.Order, CONTEXT{})\ndef test_it(saga_case): saga_case.run().assert_sound()"
    test(shop, source.format(""), "--sagaz-kinds=after").assert_outcomes(passed=3)
    test(shop, source.format(", kinds='before'"), "--sagaz-kinds=after").assert_outcomes(passed=4)
    test(shop, source.format(", kinds='all'")).assert_outcomes(passed=39)


def test_a_matrix_that_runs_nothing_fails(shop: Shop) -> None:
    result = test(shop, "@saga_matrix(shop.Order, CONTEXT, 'after')\ndef test_it(saga_case): pass")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["VACUOUS: the test did not run its saga under reserve@after: call saga_case.run()"])


def test_a_matrix_takes_its_fakes_from_the_factory(shop: Shop) -> None:
    result = test(
        shop,
        """
        from sagaz_core import Saga, action, compensate

        class Strict(shop.Order):
            def __init__(self, outside):
                super().__init__(outside)

        @pytest.fixture
        def outside():
            return shop.Outside()

        @pytest.fixture
        def saga_factory(outside):
            return lambda: Strict(outside)

        @pytest.fixture
        def saga_world(outside, saga_world):
            saga_world.fake(outside, append_only=["closed"])
            return saga_world

        @saga_matrix(Strict, CONTEXT, "before,repeat")
        def test_it(saga_case):
            saga_case.run().assert_sound()
        """,
    )
    assert result.ret == 0


def test_a_saga_alone_is_not_taken_for_the_test(shop: Shop) -> None:
    for source in ("@saga_matrix(shop.Order)", "@saga_matrix"):
        result = test(shop, f"{source}\ndef test_it(saga_case): pass")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: test_a.py::test_it: @saga_matrix: missing a required argument: '*"])


def test_a_matrix_needs_the_case(shop: Shop) -> None:
    result = test(shop, "@saga_matrix(shop.Order, CONTEXT)\ndef test_it(): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: test_a.py::test_it: @saga_matrix: the test must ask for the fixture saga_case*"]
    )


# -- replays


def test_a_marked_test_gets_its_recording(order: Shop) -> None:
    result = test(
        order,
        """
        @replay_from("ORDER-1")
        def test_recording(recording):
            assert recording.saga_id == "ORDER-1" and recording.completed

        @replay_from("ORDER-1")
        def test_from_the_start(saga_case):
            outcome = saga_case.run()
            outcome.assert_completed()
            assert outcome.context["total"] == 14

        @replay_from("ORDER-1", step="ship", override={"quantity": 5})
        def test_from_a_step(saga_case):
            outcome = saga_case.run()
            assert [event.how for event in outcome.events if hasattr(event, "how")] == ["served", "served", "run"]
            assert outcome.context["quantity"] == 5 and outcome.context["total"] == 14

        @replay_from("ORDER-1")
        @force_failure("charge", at="after")
        def test_forced(saga_case):
            outcome = saga_case.run()
            outcome.assert_compensated("charge", "reserve")
            outcome.assert_sound()

        def test_by_hand(sagaz):
            sagaz.replay("ORDER-1").assert_completed()
            assert sagaz.replay("ORDER-1", step="ship", plan="ship@before").compensated == ["charge", "reserve"]
            assert sagaz.replay("ORDER-1", override={"quantity": 5}).context["total"] == 35
        """,
    )
    result.assert_outcomes(passed=5)


def test_paths_are_relative_to_the_test_file(shop: Shop) -> None:
    shop.record(out="order.json", store="memory://")
    shop.ini("pythonpath = .")
    shop.write(
        "sub/test_a",
        """
        import pytest, shop

        @pytest.fixture
        def saga_factory():
            return shop.Order

        @pytest.mark.replay_from("order.json")
        def test_it(recording, sagaz, saga_case):
            assert recording.saga_id == "ORDER-1"
            sagaz.replay("order.json").assert_completed()
            sagaz.replay(recording, "ship").assert_completed()
            saga_case.run().assert_completed()
        """,
    )
    (shop.path / "order.json").rename(shop.path / "sub/order.json")
    shop.run("sub").assert_outcomes(passed=1)


def test_a_file_s_class_is_taken_from_the_test_or_a_named_module_only(shop: Shop) -> None:
    shop.record(out="order.json", store="memory://")
    source = """
        @replay_from("order.json")
        def test_it(recording, sagaz):
            sagaz.replay(recording{}).assert_completed()
    """
    test(shop, source.format("")).stdout.fnmatch_lines(["*UnknownSagaClassError: *no module is named that has it*"])
    test(shop, source.format(", saga=shop.Order")).assert_outcomes(passed=1)
    test(shop, source.format(""), "--app=shop").assert_outcomes(passed=1)


def test_without_any_recording_a_test_of_one_is_skipped(shop: Shop) -> None:
    result = test(shop, "def test_it(recording): pass\ndef test_case(saga_case): pass", "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        ["*there is no recording for this test: mark the test with @pytest.mark.replay_from(ID)*"]
    )


def test_a_recording_fixture_of_the_project_s_own_is_left_alone(order: Shop) -> None:
    source = """
        @pytest.fixture
        def recording(): return "mine"

        def test_it(recording): assert recording == "mine"
    """
    test(order, source).assert_outcomes(passed=1)
    test(order, source, "--sagaz-replay=ORDER-1", "-k", "test_it").assert_outcomes(passed=1, deselected=10)


def test_an_override_of_an_unknown_key_warns_and_is_an_error_when_strict(order: Shop) -> None:
    order.pytester.makeini("[pytest]\nfilterwarnings = default\n")
    source = '@replay_from("ORDER-1", override={"quantty": 5})\ndef test_it(recording): pass'
    result = test(order, source)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*SagazWarning: @replay_from: the context has no key 'quantty'*did you mean 'quantity'*"]
    )
    assert test(order, source, "--sagaz-strict").ret == pytest.ExitCode.USAGE_ERROR


def test_the_store_is_the_one_that_is_set(order: Shop) -> None:
    result = test(
        order,
        """
        import asyncio

        def test_it(saga_store):
            assert asyncio.run(saga_store.get_saga("ORDER-1")).saga_name == "order"
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_test_that_goes_elsewhere_has_the_same_store(order: Shop) -> None:
    result = test(
        order,
        """
        def test_it(sagaz, tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)
            sagaz.replay("ORDER-1").assert_completed()
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_class_that_cannot_be_found_is_a_usage_error(shop: Shop) -> None:
    shop.record(out="order.json", store="memory://")
    result = test(shop, "@replay_from('order.json')\ndef test_it(saga_case): pass")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: test_a.py::test_it: the recording order.json is of saga 'order'*"])


def test_a_saga_that_captures_into_a_store_of_its_own_is_not_captured_by_a_replay(order: Shop) -> None:
    source = (order.path / "shop.py").read_text()
    order.write(
        "shop",
        source.replace("super().__init__()", "super().__init__(snapshot_storage=STORE)").replace(
            "from sagaz_core import", "from sagaz_core import open_storage,"
        )
        + "\nSTORE = open_storage('sqlite:///own.db')\n",
    )
    order.replay().assert_outcomes(passed=10)
    assert "own.db" not in order.files()


def test_goldens_are_compared(shop: Shop) -> None:
    source = """
        @force_failure("ship")
        def test_it(sagaz, saga_golden):
            assert sagaz.run(shop.Order, CONTEXT) == saga_golden
    """
    test(shop, source).assert_outcomes(failed=1)
    test(shop, source, "--snapshot-update").assert_outcomes(passed=1)
    test(shop, source).assert_outcomes(passed=1)
    assert "__sagas__/test_a/test_it.saga" in shop.files()


# -- known hazards


def test_a_known_hazard_is_a_strict_xfail_with_its_reason(shop: Shop) -> None:
    shop.record("shop:Careless")
    shop.ini("sagaz_known = careless: charge@after  # ticket 12")
    result = shop.replay("-rx")
    result.assert_outcomes(passed=9, xfailed=1)
    result.stdout.fnmatch_lines(
        ["ORDER-1: faithful, 9 plans, 8 sound, 1 known not to be", "XFAIL ORDER-1::charge@after - ticket 12"]
    )
    matrix = "@saga_matrix(shop.Careless, CONTEXT)\ndef test_it(saga_case): saga_case.run().assert_sound()"
    test(shop, matrix).assert_outcomes(passed=8, xfailed=1)


def test_a_known_hazard_that_is_gone_fails(order: Shop) -> None:
    order.ini("sagaz_known = order: charge@after  # ticket 12")
    result = order.replay()
    result.assert_outcomes(passed=9, failed=1)
    result.stdout.fnmatch_lines(["[[]XPASS(strict)] ticket 12"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("order: charge@after", "write `saga: plan  # reason`"),
        ("order charge@after  # why", "write `saga: plan  # reason`"),
        ("order: charge@aftr  # why", "there is no kind of fault 'aftr'"),
        ("order: chrge@after  # why", "saga 'order' has no step 'chrge' (did you mean 'charge'?)"),
    ],
)
def test_a_known_hazard_that_cannot_be_is_a_usage_error(order: Shop, entry: str, message: str) -> None:
    order.ini(f"sagaz_known = {entry}")
    result = order.replay()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()


# -- what is printed


def test_nothing_is_printed_about_sagas_when_none_ran(shop: Shop) -> None:
    assert "sagaz" not in test(shop, "def test_it(): pass").stdout.str().replace("sagaz-0.1.0", "")


def test_nothing_is_printed_about_sagas_with_q(order: Shop) -> None:
    assert "= sagaz =" not in order.replay("-q").stdout.str()


# -- what proves nothing, and what was asked wrong


@pytest.mark.parametrize(
    "proof",
    [
        "",
        ".assert_completed()",
        '.status == "completed"',
        ".assert_compensated()",
        ".assert_stuck()",
        " == saga_golden",
    ],
)
def test_a_plan_that_never_happens_fails_the_test_whatever_it_asserts(shop: Shop, proof: str) -> None:
    run = 'sagaz.run(shop.Order, CONTEXT, plan="ship#2@before")'
    assertion = f"assert {run}{proof}" if "==" in proof else f"{run}{proof}"
    source = f"def test_it(sagaz, saga_golden):\n    {assertion}\n"
    if "golden" in proof:
        test(shop, source, "--snapshot-update")
    result = test(shop, source)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*VACUOUS under ship#2@before: ship#2@before never happened*"])


def test_who_looks_at_the_verdict_may_have_it_vacuous(shop: Shop) -> None:
    test(
        shop,
        """
        def test_it(sagaz):
            assert sagaz.run(shop.Order, CONTEXT, plan="ship#2@before").verdict.value == "VACUOUS"
        """,
    ).assert_outcomes(passed=1)


ENDLESS = """
    import asyncio

    class Waiting(shop.Order):
        saga_name = "waiting"

        @shop.action("ship")
        async def ship(self, ctx):
            await asyncio.get_running_loop().create_future()
"""


def test_a_saga_that_does_not_end_fails_the_test_unless_it_looks_at_the_verdict(shop: Shop) -> None:
    result = test(
        shop,
        ENDLESS
        + """
    def test_runs(sagaz):
        sagaz.run(Waiting, CONTEXT)

    def test_asserts(sagaz):
        sagaz.run(Waiting, CONTEXT).assert_completed()

    def test_looks(sagaz):
        assert sagaz.run(Waiting, CONTEXT).verdict.value == "ENDLESS"

    def test_ends_before(sagaz):
        sagaz.run(Waiting, CONTEXT, plan="charge@before").assert_sound()
        """,
    )
    result.assert_outcomes(failed=2, passed=2)
    result.stdout.fnmatch_lines(
        ["*ENDLESS: the action of step 'ship' never ends, it waits at *test_a.py:* for a future*"]
    )


GREEDY = """
    class Greedy(shop.Order):
        saga_name = "greedy"

        @shop.action("ship")
        async def ship(self, ctx):
            while True:
                pass

    def test_runs(sagaz):
        sagaz.run(Greedy, CONTEXT)

    @pytest.mark.saga_matrix(Greedy, CONTEXT, kinds="before")
    def test_matrix(saga_case):
        saga_case.run().assert_sound()
"""


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(patience, "PATIENCE", seconds)  # the tests within run in this process
    monkeypatch.setattr(patience, "_TICK", 0.01)


def test_a_step_that_never_yields_is_named_in_each_run(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, 0.05)
    result = test(shop, GREEDY)
    result.assert_outcomes(failed=2, passed=3)
    result.stdout.fnmatch_lines(
        ["*ENDLESS*: the action of step 'ship' did not yield for 0.05 s: let it await what it *"]
    )


def test_where_pytest_timeout_watches_a_test_it_is_left_to_that(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytest_timeout")
    impatient(monkeypatch, 0.3)
    result = test(shop, GREEDY, "--timeout=0.6", "-k", "test_runs")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Failed: Timeout*0.6*"])


def test_exploring_a_saga_that_fails_by_itself_is_not_sound_and_one_run_of_it_is(shop: Shop) -> None:
    result = test(
        shop,
        """
        class Failing(shop.Order):
            @shop.action("ship")
            async def ship(self, ctx):
                raise ValueError("sold out")

        def test_explores(sagaz):
            sagaz.explore(Failing, CONTEXT, kinds="before").assert_sound()

        def test_runs(sagaz):
            outcome = sagaz.run(Failing, CONTEXT)
            outcome.assert_compensated("reserve", "charge")
            outcome.assert_sound()
        """,
    )
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*VACUOUS: not all was tried: without faults the saga ends rolled_back at 'ship'*"])


def test_an_error_of_ours_shows_the_test_s_own_lines_alone(order: Shop) -> None:
    source = """
        def make():
            return shop.Saga("twice").add_step("a", print).add_step("a", print)

        def test_step(sagaz):
            sagaz.run(shop.Order, CONTEXT, plan="chrge@before")

        def test_made(sagaz):
            sagaz.run(make)

        def test_id(sagaz):
            sagaz.replay("ORDER-2")

        def test_mapping(sagaz):
            sagaz.run(shop.Order, [1])

        def test_served(sagaz):
            sagaz.replay("ORDER-1", step="ship", plan="charge@before")
        """
    result = test(order, source, "--tb=short")
    result.assert_outcomes(failed=5)
    result.stdout.fnmatch_lines(
        [
            "E   sagaz_core.errors.PlanError: saga 'order' has no step 'chrge' (did you mean 'charge'?)*",
            "test_a.py:*: in make",
            "E   sagaz_core.errors.DefinitionError: saga 'twice' has a step 'a' already: rename one",
            "E   sagaz_core.errors.UnknownSagaError: there is no saga 'ORDER-2'*",
            "E   sagaz_core.errors.UsageError: a context of type 'list': give a mapping or a pydantic model",
            "E   sagaz_core.errors.PlanError: charge@before: step 'charge' is not run from 'ship' on*",
        ]
    )
    result.stdout.no_fnmatch_line("*/sagaz_core/*")
    result.stdout.no_fnmatch_line("*asyncio*")
    test(order, source, "--full-trace", "-k", "step").stdout.fnmatch_lines(["*/sagaz_core/faults/*"])


def test_an_override_of_an_unknown_key_in_a_test_is_a_warning_at_its_line(order: Shop) -> None:
    source = """
        def test_it(sagaz):
            sagaz.replay("ORDER-1", override={"quantty": 1})
        """
    order.pytester.makeini("[pytest]\nfilterwarnings = default\n")
    result = test(order, source)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*test_a.py:*: SagazWarning: the context has no key 'quantty'*mean 'quantity'?)"])
    test(order, source, "--sagaz-replay=ORDER-1", "--sagaz-strict", "-k", "test_it").stdout.fnmatch_lines(
        ["*OverrideError: the context has no key 'quantty' to override (did you mean 'quantity'?)"]
    )


def test_what_an_exploration_finds_says_how_to_find_it_again(shop: Shop) -> None:
    shop.write(
        "test_it",
        """
        from sagaz_core import Saga

        def test_all(sagaz):
            bad = Saga("bad").add_step("charge", lambda ctx: None, lambda ctx: None)
            sagaz.explore(bad, {}, kinds="after").assert_sound()
        """,
    )
    result = shop.run("test_it.py")
    result.stdout.fnmatch_lines(["again  *pytest test_it.py::test_all"])


def test_a_factory_without_the_saga_is_said_once(order: Shop) -> None:
    result = test(
        order,
        """
        @pytest.fixture
        def saga_factory():
            return {"ordr": shop.Order}


        @replay_from("ORDER-1")
        def test_it(saga_case): ...
        """,
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["saga_factory has no entry for saga 'order'; it has 'ordr'"])
    result.stdout.no_fnmatch_line("*another exception occurred*")
