"""What is wrong is said in one line, with exit code 4, before anything runs or is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from shops import error_of

if TYPE_CHECKING:
    from shops import Shop

BAD_OPTIONS = [
    (["--sagaz-plan=chrge@after"], "saga 'order' has no step 'chrge' (did you mean 'charge'?)"),
    (["--sagaz-plan=charge@aftr"], "there is no kind of fault 'aftr' (did you mean 'after'?)"),
    (["--sagaz-plan=charge"], "'charge' is not a fault: write step@kind"),
    (["--sagaz-plan=ship@undo-fail"], "step 'ship' cannot have it, it has no compensation"),
    (["--sagaz-from=chrge"], "saga 'order' has no step 'chrge' (did you mean 'charge'?)"),
    (["--sagaz-kinds=befor"], "there is no kind of fault 'befor' (did you mean 'before'?)"),
    (["--sagaz-kinds="], "no kinds of faults"),
    (["--sagaz-depth=0"], "--sagaz-depth is '0': write how many faults at a time, 1 to 20"),
    (["--sagaz-depth=x"], "--sagaz-depth is 'x': write how many faults at a time, 1 to 20"),
    (["--sagaz-depth=21"], "--sagaz-depth is '21': write how many faults at a time, 1 to 20"),
    (["--sagaz-budget=30"], "--sagaz-budget: a budget of '30': write a number and ms, s, m or h, such as 30s"),
    (["--sagaz-budget=0s"], "--sagaz-budget: a budget of '0s': write a number and ms, s, m or h"),
    (["ORDER-1::explore:0"], "ORDER-1::explore:0 is '0': write how many faults at a time, 1 to 20"),
    (["ORDER-1::explore:99"], "ORDER-1::explore:99 is '99': write how many faults at a time, 1 to 20"),
    (["ORDER-1::explore:"], "ORDER-1::explore: is '': write how many faults at a time, 1 to 20"),
    (["--sagaz-override", "quantity"], "write KEY=VALUE"),
    (["--sagaz-override", "quantty=1", "--sagaz-strict"], "no key 'quantty' to override (did you mean 'quantity'?)"),
    (["--sagaz-from=ship", "--sagaz-plan=charge@before"], "charge@before: step 'charge' is not run from 'ship' on"),
    (["--sagaz-from=ship", "ORDER-1::charge@before"], "step 'charge' is not run from 'ship' on"),
    (["--sagaz-store=nowhere"], "'nowhere' is not a storage URL"),
    (["--sagaz-store="], "'' is not a storage URL"),
    (["--sagaz-store=sqlit:///x.db"], "has an unknown scheme (did you mean 'sqlite'?)"),
    (["--app=nowhere"], "there is no module 'nowhere'"),
]


@pytest.fixture
def order(shop: Shop) -> Shop:
    shop.record()
    return shop


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: "")
def test_a_bad_option_says_what_to_do(order: Shop, options: list[str], message: str) -> None:
    before = order.files()
    assert message in error_of(order.replay(*options))
    assert order.files() == before


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_an_unknown_id_names_the_nearest(order: Shop, workers: list[str]) -> None:
    before = order.files()
    assert "did you mean 'ORDER-1'?" in error_of(order.replay(*workers, saga_id="ORDR-1"))
    assert order.files() == before


def test_nothing_is_written_when_there_is_no_store(shop: Shop) -> None:
    before = shop.files()
    assert "there is no saga 'ORDER-1' in the store" in error_of(shop.replay())
    assert "no recording is like 'ORDER-*'" in error_of(shop.replay(saga_id="ORDER-*"))
    assert shop.files() == before
    assert not (shop.path / ".sagaz").exists()


def test_a_file_that_is_not_there(shop: Shop) -> None:
    assert "there is no recording 'gone.json'" in error_of(shop.replay(saga_id="gone.json"))
    (shop.path / "empty").mkdir()
    assert "it has no .json files" in error_of(shop.replay(saga_id="empty/"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a recording: no JSON"),
        ("{", "is not a recording: no JSON"),
        ("[" * 100_000, "is not a recording"),
        ('{"a": 1}', "does not say format"),
        ('{"format": "sagaz-recording", "version": 99}', "upgrade pytest-sagaz"),
        ('{"format": "sagaz-recording", "version": 1}', "is damaged"),
    ],
    ids=["empty", "truncated", "deep", "other", "newer", "damaged"],
)
def test_a_file_that_is_no_recording(shop: Shop, text: str, message: str) -> None:
    (shop.path / "bad.json").write_text(text)
    assert message in error_of(shop.replay("--app=shop", saga_id="bad.json"))


def test_a_recording_that_was_tampered_with(shop: Shop) -> None:
    shop.record(out="order.json", store="memory://")
    content = json.loads((shop.path / "order.json").read_text())
    content["events"][3]["seq"] = 77
    (shop.path / "order.json").write_text(json.dumps(content))
    assert "is damaged" in error_of(shop.replay("--app=shop", saga_id="order.json"))


def test_a_naive_time_in_a_recording(shop: Shop) -> None:
    shop.record(out="order.json", store="memory://")
    content = json.loads((shop.path / "order.json").read_text())
    content["saga"]["started_at"] = "2026-07-15T14:30:00"
    (shop.path / "order.json").write_text(json.dumps(content))
    assert "has no timezone" in error_of(shop.replay("--app=shop", saga_id="order.json"))


def test_a_class_that_has_moved_away(order: Shop) -> None:
    order.write("shop", "")
    assert "module 'shop' has no 'Order'" in error_of(order.replay())
    (order.path / "shop.py").unlink()
    assert "there is no module 'shop'" in error_of(order.replay())


def test_a_class_that_was_given_another_name(order: Shop) -> None:
    order.write("shop", (order.path / "shop.py").read_text().replace('saga_name = "order"', 'saga_name = "purchase"'))
    assert error_of(order.replay()).startswith(
        "recording 'ORDER-1' is of saga 'order', and shop:Order is 'purchase' now: name the module that has it"
    )


def test_two_sagas_of_one_name(order: Shop) -> None:
    order.write("other", "from shop import Order\n\nclass Second(Order):\n    saga_name = 'order'\n")
    assert "two sagas are named 'order', other:Second and shop:Order" in error_of(order.replay("--app=other"))


def test_two_recordings_of_one_saga(shop: Shop) -> None:
    shop.record(out="a.json", store="memory://")
    shop.record(out="b.json", store="memory://")
    message = error_of(shop.run("--sagaz-replay=a.json", "--sagaz-replay=b.json", "--app=shop"))
    assert message.startswith("two different recordings are of saga 'ORDER-1'")


def test_options_of_a_replay_need_one(shop: Shop) -> None:
    assert error_of(shop.run("--sagaz-plan=a@before")).startswith("--sagaz-plan needs --sagaz-replay=ID")
    assert error_of(shop.run("--sagaz-budget=30s")).startswith("--sagaz-budget needs --sagaz-replay=ID")
    assert "there is no kind of fault 'x'" in error_of(shop.run("--sagaz-kinds=x"))
    assert "--sagaz-depth is '0'" in error_of(shop.run("--sagaz-depth=0"))


def test_the_worker_s_controller_finds_it_before_any_worker_starts(order: Shop) -> None:
    order.write("conftest", "import os\nif 'PYTEST_XDIST_WORKER' in os.environ: open('started', 'w')")
    error_of(order.replay("-n", "2", "--sagaz-from=nope"))
    assert not (order.path / "started").exists()


def test_a_damaged_pyproject_says_so(order: Shop) -> None:
    (order.path / "pyproject.toml").write_text("[tool.sagaz]\nsagas = 3\n")
    assert "tool.sagaz.sagas is not a list of modules" in error_of(order.replay())


def test_an_override_of_an_unknown_key_is_a_warning(order: Shop) -> None:
    order.pytester.makeini("[pytest]\n")
    result = order.replay("--sagaz-override", "quantty=1", "-k", "end")
    result.assert_outcomes(passed=1, deselected=9, warnings=1)
    result.stdout.fnmatch_lines(
        ["*SagazWarning: the context has no key 'quantty' to override (did you mean 'quantity'?)"]
    )
    result = order.replay("--sagaz-override", "quantty=1", "-k", "end", "-n", "2")
    result.assert_outcomes(passed=1, warnings=1)


def test_where_warnings_are_errors_it_is_a_usage_error(order: Shop) -> None:
    assert "no key 'quantty'" in error_of(order.replay("--sagaz-override", "quantty=1"))


# -- markers

BAD_MARKERS = [
    ('replay_from("ORDR-1")', "there is no saga 'ORDR-1'"),
    ('replay_from("ORDER-1", step="chrge")', "no checkpoint before 'chrge' (did you mean 'charge'?)"),
    (
        'replay_from("ORDER-1", stp="charge")',
        "unexpected keyword argument 'stp' (did you mean 'step'?); write replay_from(",
    ),
    ("replay_from()", "missing a required argument: 'id_or_path'"),
    ("replay_from(3)", "id_or_path=3: give the id of a saga or a path"),
    ('replay_from("ORDER-1", override=[1])', "override=[1]: give a mapping"),
    ('replay_from("gone.json")', "there is no recording 'gone.json'"),
    ('force_failure("charge", at="aftr")', "there is no kind of fault 'aftr' (did you mean 'after'?)"),
    ('force_failure("charge", when="after")', "unexpected keyword argument 'when'"),
    ('force_failure("charge", exc="declined")', "exc='declined': give an exception"),
    ("force_failure()", "missing a required argument: 'step'"),
    ('saga_matrix(shop.Order, {}, kinds="befor")', "there is no kind of fault 'befor'"),
    ('saga_matrix(shop.Order, ["a"])', "context=['a']: give a mapping"),
    ("saga_matrix(3, {})", "3 is not a saga"),
    ("saga_matrix(3)", "missing a required argument: 'context'"),
    ("saga_matrix(shop.Circle, {})", "depend on each other in a circle"),
]


def run_marked(order: Shop, marker: str, *args: str) -> str:
    """Run a test that is marked so, which is a usage error, and return the line that names it."""
    order.write(
        "test_a",
        f"""
        import pytest, shop
        from sagaz_core import Saga

        def circle():
            return Saga("circle").add_step("a", print, depends_on=["b"]).add_step("b", print, depends_on=["a"])

        shop.Circle = circle

        @pytest.mark.{marker}
        def test_it(saga_case, sagaz): pass

        def test_other(): pass
        """,
    )
    result = order.run("test_a.py", *args)
    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text
    assert "passed" not in text
    return next(line for line in text.splitlines() if "ERROR: test_a.py::test_it: " in line)


@pytest.mark.parametrize(("marker", "message"), BAD_MARKERS, ids=[marker for marker, _ in BAD_MARKERS])
def test_a_bad_marker_names_the_test(order: Shop, marker: str, message: str) -> None:
    assert message in run_marked(order, marker)


@pytest.mark.parametrize("marker", ["replay_from(3)", "saga_matrix(3, {})"])
def test_a_bad_marker_is_a_usage_error_with_workers_too(order: Shop, marker: str) -> None:
    assert "3" in run_marked(order, marker, "-n", "2")


def test_markers_are_registered(order: Shop) -> None:
    order.write("test_a", "import pytest\n\n@pytest.mark.force_failre('a')\ndef test_it(): pass")
    assert "'force_failre' not found" in order.run("--strict-markers", "test_a.py").stdout.str()
    order.run("--markers").stdout.fnmatch_lines(["@pytest.mark.force_failure(step, at=*", "@pytest.mark.saga_matrix(*"])


def test_a_marked_failure_of_a_step_that_is_not_run_is_a_usage_error(order: Shop) -> None:
    marker = 'replay_from("ORDER-1", step="ship")\n        @pytest.mark.force_failure("charge")'
    assert "charge@before: step 'charge' is not run from 'ship' on" in run_marked(order, marker)
