"""Items of ours under pytest's own options: -k, --lf, -x, --nf, --sw, -n, node ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from shops import QUICK, error_of

if TYPE_CHECKING:
    from shops import Shop

FAILED = "ORDER-1::charge@after"


@pytest.fixture
def careless(shop: Shop) -> Shop:
    shop.record("shop:Careless")
    return shop


def test_a_printed_id_can_be_run_again(careless: Shop) -> None:
    result = careless.replay(FAILED, "ORDER-1::ship@before")
    result.assert_outcomes(failed=1, passed=1)
    careless.replay("ORDER-1::charge@crash").assert_outcomes(passed=1)  # of no kind that was asked for
    careless.replay("ORDER-1").assert_outcomes(failed=1, passed=9)


def test_an_id_that_is_no_item_is_a_usage_error(careless: Shop) -> None:
    assert "has no step 'chrge' (did you mean 'charge'?)" in error_of(careless.replay("ORDER-1::chrge@after"))
    assert "no item (did you mean 'faithful'?)" in error_of(careless.replay("ORDER-1::faithfull"))


def test_last_failed_runs_what_failed_again(careless: Shop) -> None:
    careless.replay().assert_outcomes(failed=1, passed=9)
    careless.replay("--lf").assert_outcomes(failed=1, deselected=9)


def test_last_failed_knows_ours_beside_other_tests(careless: Shop) -> None:
    careless.write("test_a", "def test_bad(): assert 0\ndef test_good(): pass")
    careless.write("test_b", "def test_good(): pass")
    careless.replay(".").assert_outcomes(failed=2, passed=11)
    result = careless.replay(".", "--lf", "-v")
    result.assert_outcomes(failed=2, deselected=9)
    result.stdout.fnmatch_lines_random([f"{FAILED} FAILED*", "test_a.py::test_bad FAILED*"])


def test_last_failed_is_forgotten_when_it_passes(careless: Shop) -> None:
    careless.replay()
    fixed = (
        (careless.path / "shop.py").read_text().replace('@action("charge")', '@action("charge", in_doubt="compensate")')
    )
    careless.write("shop", fixed)
    careless.replay("--lf").assert_outcomes(passed=1, deselected=9)
    careless.replay("--lf").assert_outcomes(passed=10)


@pytest.mark.parametrize("option", ["--nf", "--ff", "--sw"])
def test_options_that_order_items_do_so(careless: Shop, option: str) -> None:
    careless.replay(option)
    assert careless.replay(option).parseoutcomes()["failed"] == 1


def test_the_first_failure_stops_the_run(careless: Shop) -> None:
    careless.replay("-x").assert_outcomes(failed=1, passed=5)


def test_names_select(careless: Shop) -> None:
    careless.replay("-k", "charge and after").assert_outcomes(failed=1, deselected=9)
    careless.replay("--deselect", FAILED).assert_outcomes(passed=9, deselected=1)


def test_workers_share_the_items(careless: Shop) -> None:
    careless.write(
        "conftest", "import os\ndef pytest_runtest_setup(item): print('by', os.environ['PYTEST_XDIST_WORKER'])"
    )
    result = careless.replay("-n", "2", "-rA", "--junitxml=report.xml")
    result.assert_outcomes(failed=1, passed=9)
    assert {line for line in result.outlines if line.startswith("by ")} == {"by gw0", "by gw1"}
    result.stdout.fnmatch_lines(
        ["step * left", "ORDER-1: faithful, 9 plans, 8 sound, 1 not", f"FAILED {FAILED} - UnsoundError: ORPHAN under*"]
    )
    assert result.stdout.str().count("= sagaz =") == 1
    assert 'value="ORPHAN"' in (careless.path / "report.xml").read_text()


def test_a_worker_that_dies_fails_its_item_and_no_other(shop: Shop) -> None:
    shop.record()
    shop.write(
        "conftest",
        """
        import os, pytest

        @pytest.fixture(autouse=True)
        def deadly(request):
            if request.node.name == "ship@before":
                os._exit(1)
        """,
    )
    result = shop.replay("-n", "2")
    result.assert_outcomes(failed=1, passed=9)
    result.stdout.fnmatch_lines(["ORDER-1: faithful, 8 plans, 8 sound", "FAILED ORDER-1::ship@before*"])


def test_workers_and_last_failed_go_together(careless: Shop) -> None:
    careless.replay("-n", "2")
    careless.replay("-n", "2", "--lf").assert_outcomes(failed=1)


@pytest.mark.parametrize("dist", ["loadscope", "loadfile", "worksteal"])
def test_any_way_of_sharing_runs_them_all(careless: Shop, dist: str) -> None:
    careless.replay("-n", "2", "--dist", dist).assert_outcomes(failed=1, passed=9)


def test_items_in_any_order_end_alike(careless: Shop) -> None:
    pytest.importorskip("pytest_randomly")
    result = careless.pytester.runpytest_inprocess("--sagaz-replay=ORDER-1", "-p", "no:asyncio", "-p", "randomly")
    result.assert_outcomes(failed=1, passed=9)


def test_fixtures_of_the_root_folder_and_of_testpaths_are_seen(shop: Shop) -> None:
    shop.record()
    shop.ini("testpaths = tests")
    shop.write("conftest", "import pytest\n\n@pytest.fixture(autouse=True)\ndef root(): print('root fixture')")
    shop.write(
        "tests/conftest",
        """
        import pytest, shop

        @pytest.fixture
        def saga_factory():
            print("own factory")
            return shop.Order

        @pytest.fixture(autouse=True, scope="module")
        def once():
            print("module fixture")
        """,
    )
    result = shop.replay("-rP", "-k", "end")
    result.assert_outcomes(passed=1, deselected=9)
    result.stdout.fnmatch_lines_random(["root fixture", "own factory", "module fixture"])


def test_the_world_of_a_conftest_is_looked_at(shop: Shop) -> None:
    shop.record()
    shop.write(
        "conftest",
        """
        import pytest, shop
        from sagaz_core import World

        @pytest.fixture
        def outside():
            return shop.Outside()

        @pytest.fixture
        def saga_factory(outside):
            return lambda: shop.Order(outside)

        @pytest.fixture
        def saga_world(outside):
            world = World()
            world.probe("stock", lambda: len(outside.stock) + len(outside.closed))
            return world
        """,
    )
    # a rollback from the first step on; the probe sees the tombstone that the fakes keep
    result = shop.replay("ORDER-1::reserve@after")
    result.stdout.fnmatch_lines(["UnsoundError: LIE under reserve@after: *the world is not as it was (stock: 0 -> 1)"])


def test_a_factory_for_another_saga_is_refused(shop: Shop) -> None:
    shop.record()
    shop.write("conftest", "import pytest, shop\n\n@pytest.fixture\ndef saga_factory():\n    return shop.Careless")
    result = shop.replay("-k", "faithful or end")
    result.assert_outcomes(failed=2, deselected=8)
    result.stdout.fnmatch_lines(["UsageError: saga 'careless' was given for the recording 'ORDER-1' of saga 'order'*"])


def test_a_factory_may_be_a_mapping_by_name(shop: Shop) -> None:
    shop.record()
    shop.record("shop:Careless", "ORDER-2")
    shop.write(
        "conftest",
        """
        import pytest, shop

        @pytest.fixture
        def saga_factory():
            return {"order": shop.Order, "careless": lambda name: shop.Careless()}
        """,
    )
    shop.replay("-k", "faithful", saga_id="ORDER-*").assert_outcomes(passed=2, deselected=18)
    assert len(QUICK) == 9


def test_a_module_that_is_named_must_be_there_also_beside_a_factory(shop: Shop) -> None:
    shop.record()
    shop.write("conftest", "import pytest, shop\n\n@pytest.fixture\ndef saga_factory():\n    return shop.Order")
    result = shop.replay("--app", "shpo")
    result.stderr.fnmatch_lines(["ERROR: there is no module 'shpo': check the name, and the folder you are in"])
    assert result.ret == 4
    shop.replay("--app", "shop", "-k", "faithful").assert_outcomes(passed=1, deselected=9)
