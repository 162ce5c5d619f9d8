"""What a test says when it fails, and that one fails which proves nothing."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

import sagaz_core
from pytest_sagaz.cases import UnfaithfulError
from pytest_sagaz.drift import drift_line, drift_table
from pytest_sagaz.markers import forced_plan
from pytest_sagaz.outside import note_left, put_back
from pytest_sagaz.runner import runner_or_none
from pytest_sagaz.settings import settings_of
from sagaz_core.errors import SagazError
from sagaz_core.prove.outcome import Outcome, UnsoundError
from sagaz_core.prove.trial import NotRunnableError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from pytest_sagaz.cases import Case
    from sagaz_core.faults.plan import FaultPlan
    from sagaz_core.prove.recorded import Faithful

DRIFT = "sagaz drift"
_AROUND = "sagaz-around-tests"
_ASYNCIO = os.path.dirname(os.path.abspath(asyncio.__file__)) + os.sep
_OURS = tuple(os.path.dirname(os.path.abspath(path)) + os.sep for path in (__file__, sagaz_core.__file__))


# ---- our own items


def prove(case: Case) -> None:
    """Run the case of one of our items and raise what is wrong with it. The fakes are put back, for the next item."""
    __tracebackhide__ = True
    with put_back(case.world):
        _prove(case)


def _prove(case: Case) -> None:
    __tracebackhide__ = True
    if not case.plan:
        _prove_faithful(case)
        return
    outcome = case.run_in_both_orders()
    item = case.runner.item
    if not settings_of(item.config).plans and (why := _fails_as_recorded(case, outcome)):
        pytest.skip(why)  # not run, so it has no verdict
    item.user_properties.append(("sagaz_verdict", outcome.verdict.value))
    note_left(item, outcome, case.world)
    if outcome.findings:
        _show_users_error(case.runner.item, outcome)
    outcome.assert_sound()


def _fails_as_recorded(case: Case, outcome: Outcome) -> str:
    """Say why a plan that nobody asked for by name could not be tried: its step fails by itself, as it did then."""
    now = outcome.evidence.state
    then = case.recording.state.failed_step if case.recording is not None else None  # also of one that is stuck there
    missed = {fault.step for fault in outcome.evidence.missed}
    if not missed or missed != {then} or now.failed_step != then:
        return ""
    return f"not run: {then!r} fails by itself, as it was recorded to ({now.error}); see --sagaz-override"


def _prove_faithful(case: Case) -> None:
    __tracebackhide__ = True
    item = case.runner.item
    try:
        faithful = case.run_faithful()
    except NotRunnableError as error:
        pytest.skip(f"not run: {error}")
    strict = settings_of(item.config).strict and bool(faithful.drift)
    if faithful.drift and not strict:
        item.add_report_section("call", DRIFT, drift_table(faithful.drift))
    verdict = "DIFFERENT" if faithful.differences else "DRIFT" if strict else "FAITHFUL"
    if faithful.outcome.evidence.endless is not None:
        item.user_properties.append(("sagaz_verdict", faithful.outcome.verdict.value))
        faithful.outcome.assert_sound()
    item.user_properties.append(("sagaz_verdict", verdict))
    if faithful.differences:
        _show_users_error(item, faithful.outcome)
        raise UnfaithfulError(f"DIFFERENT: {_first(faithful.differences)}", _differences(faithful))
    if strict:
        raise UnfaithfulError(f"DRIFT: {drift_line(faithful.drift)}", drift_table(faithful.drift))


def _first(lines: Sequence[object]) -> str:
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    return f"{lines[0]}{more}"


def _differences(faithful: Faithful) -> str:
    outcome = faithful.outcome
    lines = [f"saga {outcome.saga_name!r} does not do what was recorded:", ""]
    lines += [f"  {difference}" for difference in faithful.differences]
    return "\n".join([*lines, "", "what it does now:", *(f"  {row}" for row in outcome.trace)])


def _show_users_error(item: pytest.Item, outcome: Outcome) -> None:
    """Keep the traceback of an error that nobody forced: the saga's own code has a bug, or refused."""
    error = outcome.exception
    if not isinstance(error, Exception) or isinstance(error, SagazError):
        return
    if any(error is fault.exception or type(error) is fault.exception for fault in outcome.plan):
        return
    excinfo = pytest.ExceptionInfo.from_exception(error)
    excinfo.traceback = users_part(excinfo.traceback) or excinfo.traceback
    item.add_report_section("call", "sagaz: what a step raised", str(excinfo.getrepr(style="short")))


def own_failure(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    """Return what is shown instead of a traceback, for errors that ours say everything about; else None."""
    error = excinfo.value
    if isinstance(error, UnsoundError):
        return _plain(item, f"{type(error).__name__}: {error}", error.report)
    if isinstance(error, SagazError):
        line = f"{type(error).__name__}: {error}"
        return _plain(item, line, line)
    return None


def _plain(item: pytest.Item, line: str, text: str) -> Any:
    # pytest has no public way to make a failure of a text and a line of its own for the summary.
    from _pytest._code.code import ReprEntryNative, ReprExceptionInfo, ReprFileLocation, ReprTraceback

    crash = ReprFileLocation(item.nodeid, 0, line)
    body = line if text == line else f"{line}\n\n{text}"
    lines = [f"{row}\n" for row in body.split("\n")]
    shown = [] if item.config.getoption("tbstyle", "auto") == "line" else [ReprEntryNative(lines)]
    return ReprExceptionInfo(ReprTraceback(shown, None, "native"), crash)


def users_part(traceback: Any) -> Any:
    """Return the traceback without our frames, or None if no other is left."""
    kept = traceback.filter(lambda entry: not str(entry.path).startswith(_OURS))
    users = [entry for entry in kept if "site-packages" not in str(entry.path).replace("_pytest", "site-packages")]
    return kept if users else None


def _without_machinery(error: SagazError) -> pytest.ExceptionInfo[SagazError]:
    """Return an error of ours without our frames and the loop's: its line says all that they would."""
    frames, entry = [], error.__traceback__
    while entry is not None:
        if not entry.tb_frame.f_code.co_filename.startswith((*_OURS, _ASYNCIO)):
            frames.append(entry)
        entry = entry.tb_next
    kept = None
    for one in reversed(frames):
        kept = TracebackType(kept, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return pytest.ExceptionInfo.from_exception(error.with_traceback(kept))


# ---- around each test that has to do with a saga


def take_part(config: pytest.Config) -> None:
    """Let our hooks see the tests from now on."""
    if not config.pluginmanager.hasplugin(_AROUND):
        config.pluginmanager.register(AroundTests(), _AROUND)


class AroundTests:
    """Fails a test whose forced failure never happened, and adds to a failure what is known of it."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        try:
            result = yield
        finally:
            _note_outcome(item)
        check_not_vacuous(item)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        error = call.excinfo.value if call.excinfo is not None else None
        if isinstance(error, SagazError) and not _is_ours(item) and not item.config.getoption("fulltrace", False):
            call.excinfo = _without_machinery(error)
        report = yield
        if isinstance(error, UnsoundError) and not _is_ours(item) and not report.passed:
            report.sections.append(("sagaz", error.report))
        return report


def _is_ours(item: pytest.Item) -> bool:
    from pytest_sagaz.collection import SagaItem

    return isinstance(item, SagaItem)


def _case_of(item: pytest.Item) -> Case | None:
    return getattr(item, "funcargs", {}).get("saga_case")


def _note_outcome(item: pytest.Item) -> None:
    runner, case = runner_or_none(item), _case_of(item)
    if runner is None or case is None or _is_ours(item) or not runner.outcomes:
        return
    outcome = runner.outcomes[-1]
    recorded = case.recording
    item.user_properties.append(("sagaz_id", recorded.saga_id) if recorded else ("sagaz_saga", outcome.saga_name))
    item.user_properties.append(("sagaz_plan", str(outcome.plan) or "none"))
    item.user_properties.append(("sagaz_verdict", outcome.verdict.value))


def check_not_vacuous(item: pytest.Item) -> None:
    """Fail a test that passed although a failure that it asks for never happened, or although a run of its was given up
    because it does not end, unless it looked at the verdict.
    """
    __tracebackhide__ = True
    if _is_ours(item):
        return
    runner, case = runner_or_none(item), _case_of(item)
    outcomes = runner.outcomes if runner is not None else []
    plan = case.plan if case is not None else forced_plan(item)
    under_it = [outcome for outcome in outcomes if outcome.plan == plan]
    if plan and not under_it and (case is not None or outcomes or _is_marked_itself(item)):
        pytest.fail(f"VACUOUS: {_why_no_run(plan, case, outcomes)}", pytrace=False)
    if plan and under_it and all(outcome.evidence.missed for outcome in under_it):
        _fail_as_vacuous(under_it[0])
    for outcome in outcomes:
        if (outcome.plan != plan or outcome.evidence.endless) and outcome.proves_nothing and not outcome.judged:
            _fail_as_vacuous(outcome)


def _fail_as_vacuous(outcome: Outcome) -> None:
    __tracebackhide__ = True
    line = f"{outcome.verdict.value}{outcome.under}: {outcome.findings[0].sentence}"
    pytest.fail(f"{line}\n\n{outcome.explain()}", pytrace=False)


def _is_marked_itself(item: pytest.Item) -> bool:
    return any(mark.name == "force_failure" for mark in item.own_markers)


def _why_no_run(plan: FaultPlan, case: Case | None, outcomes: list[Outcome]) -> str:
    if case is not None:
        return f"the test did not run its saga under {plan}: call saga_case.run()"
    if outcomes:
        return f"no saga of the test ran under {plan}, which its markers ask for: leave `plan` out, or the marker"
    return f"the test ran no saga under {plan}: run it with the fixture sagaz, sagaz.run(saga, context)"
