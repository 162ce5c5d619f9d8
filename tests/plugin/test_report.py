"""`--sagaz-report=DIR`: the page and the data of a run, and what is there of a run that died."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from shops import CONTEXT, error_of

from sagaz_core.prove.coverage import Coverage
from tests.report.wellformed import Page

if TYPE_CHECKING:
    from shops import Shop

EXPLORING = f"""
    from shop import Careless, Order


    def test_order(sagaz):
        sagaz.explore(Order, {CONTEXT!r}).assert_sound()


    def test_careless(sagaz):
        sagaz.explore(Careless, {CONTEXT!r}).assert_sound()
"""


@pytest.fixture
def exploring(shop: Shop) -> Shop:
    shop.write("test_order", EXPLORING)
    shop.without.append("cacheprovider")
    return shop


def page(shop: Shop, folder: str = "rep") -> Page:
    return Page((shop.path / folder / "index.html").read_text(encoding="utf-8"))


def data(shop: Shop, folder: str = "rep") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shop.path / folder / "sagaz-report.json").read_text())
    return found


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_a_page_and_its_data_are_written(exploring: Shop, workers: list[str]) -> None:
    before = exploring.files()
    result = exploring.run("--sagaz-report=out/rep", *workers)
    result.assert_outcomes(passed=1, failed=1)
    assert exploring.files() - before == {"out/rep/index.html", "out/rep/sagaz-report.json"}
    parsed = page(exploring, "out/rep")
    assert parsed.errors == []
    assert parsed.texts["h2"] == ["careless", "order"]
    assert len(parsed.with_class("graph")) == 2
    assert len(parsed.with_class("step")) == 6
    assert [text.split(":")[0] for text in parsed.texts["article"]][:1] == ["charge@after ORPHAN"]
    result.stdout.fnmatch_lines([f"report: {exploring.path / 'out' / 'rep' / 'index.html'}"])
    assert Coverage.from_json(data(exploring, "out/rep")).to_json() == data(exploring, "out/rep")


def test_the_page_says_what_the_data_say(exploring: Shop) -> None:
    exploring.run("--sagaz-report=rep")
    found, rows = data(exploring), page(exploring).texts["tr"]
    for saga in found["sagas"]:
        counts = saga["totals"]
        row = next(row for row in rows if row.startswith(saga["name"]))
        assert f"{counts['explored']}/{counts['applicable']}" in row
        assert row.endswith(f"{counts['unsound']}{len(saga['failures'])}")


def test_one_table_without_the_other_option(exploring: Shop) -> None:
    result = exploring.run("--sagaz-report=rep")
    assert "your tests" not in result.stdout.str()
    assert "your tests" in exploring.run("--sagaz-report=rep", "--sagaz-cov").stdout.str()


def test_no_value_of_a_context_is_in_the_report(shop: Shop) -> None:
    secret = "4111-1111-1111-1111"
    shop.write(
        "test_a",
        f"""
        from shop import Careless

        charged = []

        class Talkative(Careless):
            async def charge(self, ctx):
                await super().charge(ctx)
                charged.append(1)
                if len(charged) > 1:
                    raise RuntimeError(f"declined: {{ctx['card']}}")

        def test_it(sagaz):
            sagaz.explore(Talkative, dict(order_id="{secret}", quantity=1, price=1, card="{secret}")).assert_sound()
        """,
    )
    result = shop.run("--sagaz-report=rep")
    result.assert_outcomes(failed=1)
    assert len(page(shop).texts["article"]) > 3
    for path in (shop.path / "rep").iterdir():
        assert secret not in path.read_text(encoding="utf-8")


def test_a_process_that_dies_leaves_no_green_report_of_before(exploring: Shop) -> None:
    exploring.run("--sagaz-report=rep")
    assert data(exploring)["complete"]
    exploring.write("test_a", "import os\n\ndef test_die(): os._exit(0)")
    exploring.apart = True
    exploring.run("--sagaz-report=rep")
    assert data(exploring)["incomplete"] == ["the run has not ended, or it died"]
    assert page(exploring).texts["title"] == ["INCOMPLETE: Compensation coverage"]


def test_a_worker_that_dies_shows_on_the_page(exploring: Shop) -> None:
    exploring.write("test_a", "import os\n\ndef test_die(): os._exit(0)")
    exploring.run("-n", "2", "--sagaz-report=rep")
    (line,) = page(exploring).texts["li"]
    assert line.startswith("worker gw")
    assert not data(exploring)["complete"]


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("shop.py", "it cannot be written to (File exists)"),
        ("shop.py/rep", "it cannot be written to (Not a directory)"),
        ("/proc/nothing", "it cannot be written to"),
        ("", "names no folder"),
    ],
)
@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_a_folder_that_cannot_be_written_is_a_usage_error(
    exploring: Shop, workers: list[str], folder: str, why: str
) -> None:
    exploring.write("conftest", "def pytest_runtest_setup(item): raise RuntimeError('it has begun')")
    before = exploring.files()
    assert why in error_of(exploring.run(f"--sagaz-report={folder}", *workers))
    assert exploring.files() == before


def test_other_usage_errors_come_before_anything_is_written(exploring: Shop) -> None:
    before = exploring.files()
    error_of(exploring.run("--sagaz-report=rep", "--sagaz-kinds=nothing"))
    error_of(exploring.run("--sagaz-report=rep", "--sagaz-cov-fail-under=nothing"))
    error_of(exploring.run("--sagaz-report=rep", "--sagaz-replay=nothing"))
    error_of(exploring.run("--sagaz-report=rep", "--sagaz-plan=charge@after"))
    assert exploring.files() == before
    assert not (exploring.path / "rep").exists()


@pytest.mark.parametrize("option", ["--collect-only", "--help", "--fixtures"])
def test_a_run_of_no_tests_leaves_the_report_as_it_is(exploring: Shop, option: str) -> None:
    exploring.run("--sagaz-report=rep")
    before = data(exploring)
    assert exploring.run("--sagaz-report=rep", option).ret == 0
    assert data(exploring) == before


def test_a_disk_that_fills_up_fails_the_run_and_says_so(exploring: Shop) -> None:
    exploring.write(
        "conftest",
        """
        import shutil
        def pytest_runtest_teardown(item): shutil.rmtree("rep", ignore_errors=True)
        """,
    )
    result = exploring.run("--sagaz-report=rep", "-k", "not careless", "-q")
    assert result.ret == 1
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["FAIL --sagaz-report: it could not be written: *"])


def test_a_folder_is_where_pytest_was_started(exploring: Shop) -> None:
    exploring.write("test_b", "import os\n\ndef test_it(tmp_path): os.chdir(tmp_path)")
    exploring.run("--sagaz-report=rep", "test_b.py")
    assert (exploring.path / "rep" / "index.html").is_file()
