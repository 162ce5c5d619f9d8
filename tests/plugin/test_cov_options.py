"""`--sagaz-cov` and `--sagaz-cov-fail-under`: what a run counts, says and ends with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from shops import error_of

if TYPE_CHECKING:
    from shops import Shop

TESTS = """
    import pytest
    from shop import Careless, Order

    ORDER = {"order_id": "1", "quantity": 2, "price": 7}


    def test_checked(sagaz):
        sagaz.run(Order, ORDER, plan="charge@after").assert_sound()


    def test_not_checked(sagaz):
        assert sagaz.run(Order, ORDER, plan="charge@before").compensated


    @pytest.mark.force_failure("reserve", at="after")
    def test_forced(sagaz):
        sagaz.run(Order, ORDER).assert_compensated("reserve")


    @pytest.mark.saga_matrix(Order, ORDER, kinds="undo-fail")
    def test_matrix(saga_case):
        saga_case.run().assert_sound()
"""
COV = "--sagaz-cov"


@pytest.fixture
def tested(shop: Shop) -> Shop:
    shop.write("test_order", TESTS)
    return shop


def data(shop: Shop, *args: str) -> dict[str, Any]:
    """Run with a report, and return its data."""
    shop.run("--sagaz-report=rep", *args)
    found: dict[str, Any] = json.loads((shop.path / "rep" / "sagaz-report.json").read_text())
    return found


def saga(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = [saga for saga in found["sagas"] if saga["name"] == name]
    return dict(one)


def test_tests_and_exploration_are_counted_apart(tested: Shop) -> None:
    tested.write("test_b", "from test_order import *\n\ndef test_all(sagaz): sagaz.explore(Order, ORDER)")
    order = saga(data(tested), "order")
    assert order["tests"] == ["charge@after", "charge@undo-fail", "reserve@after", "reserve@undo-fail"]
    assert order["run_not_checked"] == ["charge@before"]
    assert sorted(order["exploration"]) == sorted(order["applicable"])
    assert order["totals"]["proved"] == order["totals"]["applicable"] == order["totals"]["explored"]


def test_the_table_is_at_the_end(tested: Shop) -> None:
    result = tested.run(COV)
    result.stdout.fnmatch_lines(
        [
            "=* sagaz coverage =*",
            "saga   your tests   exploration  together     unsound",
            "order  4/38 (10 %)  0/38 (0 %)   4/38 (10 %)",
            "order: 1 pair run by tests and not checked: assert_sound() checks a run",
        ]
    )


def test_nothing_is_said_or_written_unless_it_is_asked_for(tested: Shop) -> None:
    tested.without.append("cacheprovider")
    before = tested.files()
    assert "coverage" not in tested.run().stdout.str()
    assert tested.files() == before


def test_a_quiet_run_says_only_what_fails(tested: Shop) -> None:
    assert "coverage" not in tested.run(COV, "-q").stdout.str()
    result = tested.run("-q", "--sagaz-cov-fail-under=99")
    result.stdout.fnmatch_lines(["FAIL --sagaz-cov-fail-under=99: 4/38 (10 %) is proved"])
    assert "sagaz coverage" not in result.stdout.str()


@pytest.mark.parametrize(("under", "ret"), [("10.5", 0), ("10.6", 1), ("0", 0), ("100", 1)])
def test_too_little_coverage_fails_the_run(tested: Shop, under: str, ret: int) -> None:
    result = tested.run(f"--sagaz-cov-fail-under={under}")
    assert result.ret == ret
    assert sum(line.startswith("FAIL ") for line in result.outlines) == ret
    result.assert_outcomes(passed=5)


def test_all_of_it_is_enough_for_a_hundred(shop: Shop) -> None:
    shop.write(
        "test_a",
        "from shop import Order\ndef test_it(sagaz): sagaz.explore(Order, dict(order_id=1, quantity=1, price=1))",
    )
    assert shop.run("--sagaz-cov-fail-under=100").ret == 0


def test_no_saga_at_all_is_too_little(shop: Shop) -> None:
    shop.write("test_a", "def test_it(): pass")
    result = shop.run("--sagaz-cov-fail-under=0")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["FAIL *there is no saga; name their modules in the ini sagaz_sagas"])


@pytest.mark.parametrize("number", ["much", "101", "-1", "nan", ""])
def test_a_number_that_is_none_is_a_usage_error(tested: Shop, number: str) -> None:
    assert f"--sagaz-cov-fail-under={number}: write a number" in error_of(
        tested.run(f"--sagaz-cov-fail-under={number}")
    )


# ---- which sagas count


@pytest.mark.parametrize("how", ["ini", "pyproject", "option", "environment", "one class"])
def test_a_saga_that_no_test_runs_counts(tested: Shop, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = []
    if how == "ini":
        tested.ini("sagaz_sagas = shop")
    elif how == "pyproject":
        (tested.path / "pyproject.toml").write_text('[tool.sagaz]\nsagas = ["shop"]\n')
    elif how == "option":
        args = ["--app=shop"]
    elif how == "environment":
        monkeypatch.setenv("SAGAZ_SAGAS", "shop")
    else:
        args = ["--app=shop:Careless"]
    found = data(tested, *args)
    careless = saga(found, "careless")
    assert careless["registered"]
    assert careless["totals"]["applicable"] > 0
    assert careless["totals"]["proved"] == 0
    assert saga(found, "order")["registered"] is (how != "one class")
    assert found["totals"]["applicable"] == sum(one["totals"]["applicable"] for one in found["sagas"])


def test_a_run_that_selects_no_test_still_counts_them(tested: Shop) -> None:
    tested.ini("sagaz_sagas = shop")
    result = tested.run(COV, "-k", "nothing_is_called_so")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["all  *0/*(0 %)*", "careless: nothing runs it under a fault"])


def test_a_module_that_cannot_be_imported_is_a_usage_error(tested: Shop) -> None:
    tested.ini("sagaz_sagas = shpo")
    before = tested.files()
    assert "there is no module 'shpo'" in error_of(tested.run(COV, "--sagaz-report=rep"))
    assert tested.files() == before


def test_a_definition_that_is_wrong_is_a_usage_error(tested: Shop) -> None:
    tested.write(
        "wrong",
        """
        from sagaz_core import Saga, action

        class Wrong(Saga):
            @action("a", depends_on=["b"])
            async def a(self, ctx): ...
        """,
    )
    assert "depends on 'b', which does not exist" in error_of(tested.run(COV, "--app=wrong"))


def test_a_base_class_without_steps_does_not_count(tested: Shop) -> None:
    tested.write("base", "from sagaz_core import Saga\n\nclass Base(Saga):\n    saga_name = 'base'\n")
    found = data(tested, "--app=base")
    assert [one["name"] for one in found["sagas"]] == ["order"]


NEEDS = """
    from sagaz_core import Saga, action

    class Needs(Saga):
        saga_name = "needs"

        def __init__(self, bank=None):
            super().__init__()
            self.bank = bank

        async def build(self):
            self.bank.open()
            self.add_step("a", lambda ctx: None)
"""


def test_a_saga_that_cannot_be_described_leaves_the_report_incomplete(tested: Shop) -> None:
    tested.write("needs", NEEDS)
    result = tested.run(COV, "--app=needs", "--sagaz-cov-fail-under=0")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["INCOMPLETE: saga 'needs' cannot be described here, and no test ran it (Attr*)"])


def test_it_is_complete_once_a_test_runs_it(tested: Shop) -> None:
    tested.write("needs", NEEDS)
    tested.write(
        "test_needs",
        """
        from types import SimpleNamespace
        from needs import Needs

        def test_it(sagaz):
            saga = lambda: Needs(SimpleNamespace(open=lambda: None))
            sagaz.run(saga, plan="a@before").assert_sound()
        """,
    )
    result = tested.run(COV, "--app=needs")
    result.assert_outcomes(passed=6)
    assert "INCOMPLETE" not in result.stdout.str()


# ---- what a test must do for its pair


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        ("run().assert_sound()", True),
        ("run().assert_compensated('reserve', 'charge')", True),
        ("run().assert_stuck()", True),
        ("run()", False),
        ("assert run().verdict == 'CLEAN'", False),
        ("run().assert_sound(); assert 0", False),
        ("run().assert_sound(); pytest.xfail('later')", False),
        ("run().assert_sound(); pytest.skip('later')", False),
    ],
)
def test_a_pair_counts_when_its_run_was_asserted_and_the_test_passed(shop: Shop, body: str, counts: bool) -> None:
    shop.write(
        "test_a",
        f"""
        import pytest
        from shop import Order

        def test_it(sagaz):
            run = lambda: sagaz.run(Order, dict(order_id=1, quantity=1, price=1), plan="charge@after")
            {body}
        """,
    )
    order = saga(data(shop), "order")
    assert order["tests"] == (["charge@after"] if counts else [])
    assert order["run_not_checked"] == ([] if counts else ["charge@after"])


def test_a_test_whose_end_fails_covers_nothing(shop: Shop) -> None:
    shop.write(
        "test_a",
        """
        import pytest
        from shop import Order

        @pytest.fixture
        def after():
            yield
            raise RuntimeError("it was not so")

        def test_it(sagaz, after):
            sagaz.run(Order, dict(order_id=1, quantity=1, price=1), plan="charge@after").assert_sound()
        """,
    )
    assert saga(data(shop), "order")["tests"] == []


def test_a_golden_counts_when_it_is_compared_and_not_when_it_is_written(shop: Shop) -> None:
    shop.write(
        "test_a",
        """
        from shop import Order

        def test_it(sagaz, saga_golden):
            assert sagaz.run(Order, dict(order_id=1, quantity=1, price=1), plan="charge@after") == saga_golden
        """,
    )
    assert saga(data(shop, "--snapshot-update"), "order")["tests"] == []
    assert saga(data(shop), "order")["tests"] == ["charge@after"]


def test_tests_inside_a_running_loop_count_too(shop: Shop) -> None:
    shop.write(
        "test_a",
        """
        import asyncio
        from shop import Order

        ORDER = dict(order_id=1, quantity=1, price=1)

        def test_it(sagaz):
            async def main():
                (await sagaz.arun(Order, ORDER, plan="charge@after")).assert_sound()
                await sagaz.aexplore(Order, ORDER, kinds="before")
            asyncio.run(main())
        """,
    )
    order = saga(data(shop), "order")
    assert order["tests"] == ["charge@after"]
    assert order["exploration"] == ["charge@before", "reserve@before", "ship@before"]


# ---- items of --sagaz-replay


def test_items_of_a_replay_are_exploration(shop: Shop) -> None:
    shop.record()
    found = data(shop, "--sagaz-replay=ORDER-1", COV)
    order = saga(found, "order")
    assert order["tests"] == order["run_not_checked"] == []
    assert len(order["exploration"]) == 8
    assert {way["source"] for way in order["explorations"]} == {"--sagaz-replay=ORDER-1"}
    assert sum(way["plans"] for way in order["explorations"]) == 9


def test_an_item_that_fails_is_in_the_failures(shop: Shop) -> None:
    shop.record("shop:Careless")
    found = data(shop, "--sagaz-replay=ORDER-1")
    careless = saga(found, "careless")
    assert careless["unsound"] == ["charge@after"]
    (failure,) = careless["failures"]
    assert failure["reproduce"] == "pytest --sagaz-replay=ORDER-1 --sagaz-plan=charge@after"
    assert failure["accepted"] == ""
    assert found["totals"]["explored"] == 7


def test_a_known_hazard_is_there_with_its_reason(shop: Shop) -> None:
    shop.record("shop:Careless")
    shop.ini("xfail_strict = true\nsagaz_known = careless: charge@after  # ticket 12")
    (failure,) = saga(data(shop, "--sagaz-replay=ORDER-1"), "careless")["failures"]
    assert failure["accepted"] == "xfail: ticket 12"


# ---- workers


def test_workers_find_the_same_as_one_process(tested: Shop) -> None:
    tested.ini("sagaz_sagas = shop")
    tested.write("test_b", "from test_order import *\n\ndef test_all(sagaz): sagaz.explore(Careless, ORDER)")
    assert data(tested, "-n", "2") == data(tested)


def test_a_worker_that_dies_leaves_the_report_incomplete(tested: Shop) -> None:
    tested.write("test_z", "import os\n\ndef test_die(): os._exit(1)")
    result = tested.run("-n", "2", COV, "--sagaz-report=rep", "--sagaz-cov-fail-under=0")
    assert result.ret == 1
    lines = ["INCOMPLETE: worker gw? was lost, and what it ran with it", "FAIL *=0: the coverage is incomplete"]
    result.stdout.fnmatch_lines(lines)
    found = json.loads((tested.path / "rep" / "sagaz-report.json").read_text())
    assert found["complete"] is False
    assert len(found["incomplete"]) == 1


def test_a_lost_worker_is_told_in_a_quiet_run_too(tested: Shop) -> None:
    tested.write("test_z", "import os\n\ndef test_die(): os._exit(1)")
    tested.run("-q", "-n", "2", COV).stdout.fnmatch_lines(["INCOMPLETE: worker gw? was lost*"])


def test_a_text_that_has_no_bytes_comes_over_from_a_worker(shop: Shop) -> None:
    shop.write(
        "test_a",
        r"""
        from sagaz_core import Saga

        def test_it(sagaz):
            saga = Saga("odd").add_step("\ud800", lambda ctx: None, lambda ctx: None)
            sagaz.run(saga, plan="\ud800@after")
        """,
    )
    found = data(shop, "-n", "1")
    assert found["complete"]
    assert [one["name"] for one in found["sagas"]] == ["odd"]


# ---- runs that do not come to their end


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "workers"])
def test_a_run_that_stops_early_is_incomplete(tested: Shop, workers: list[str]) -> None:
    tested.write("test_a", "def test_bad(): assert 0")
    result = tested.run("-x", COV, *workers)
    result.stdout.fnmatch_lines(["INCOMPLETE: the run was stopped: stopping after 1 failures"])


def test_a_file_that_cannot_be_collected_makes_it_incomplete(tested: Shop) -> None:
    tested.write("test_a", "import nowhere")
    result = tested.run(COV)
    result.stdout.fnmatch_lines(
        ["INCOMPLETE: test_a.py could not be collected", "INCOMPLETE: the run was stopped: 1 error*"]
    )
    result = tested.run(COV, "--continue-on-collection-errors")
    result.stdout.fnmatch_lines(["INCOMPLETE: test_a.py could not be collected"])


def test_an_interrupt_makes_it_incomplete(tested: Shop) -> None:
    tested.write("test_a", "def test_it(): raise KeyboardInterrupt")
    tested.apart = True
    tested.run(COV).stdout.fnmatch_lines(["INCOMPLETE: the run was stopped: KeyboardInterrupt"])
