"""`--sagaz-cov` and `--sagaz-report`: what the tests of a run prove of the sagas, gathered over its workers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pytest_sagaz.runner import EXPLORED, runner_or_none
from pytest_sagaz.sagas import model_of
from pytest_sagaz.settings import settings_of
from sagaz_core.adapters.locate import adapter_for, import_module, load_saga, name_of, sagas_in
from sagaz_core.errors import NoStepsError, SagazError, UsageError
from sagaz_core.prove.coverage import Coverage
from sagaz_core.report.text import coverage_lines, percent
from sagaz_core.report.write import PAGE, check_folder, write_report

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from pytest_sagaz.settings import Settings

WORKER_KEY = "sagaz_coverage"
"""The key of `config.workeroutput` under which an xdist worker sends its coverage, as text."""

_NAME = "sagaz-coverage"
_STOPPED = (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)


class Wanted(NamedTuple):
    """What was asked for: lines at the end, the least percentage, the folder of the report."""

    lines: bool
    fail_under: float | None
    folder: Path | None


def begin(config: pytest.Config) -> None:
    """Check what was asked for, and gather from now on. Raises `UsageError`, and nothing was written then."""
    option = config.option
    if option.collectonly or option.help:
        return
    if hasattr(config, "workerinput"):  # the controller has checked it, and is who reports
        config.pluginmanager.register(Gatherer(config, Coverage()), _NAME)
        return
    under = None if option.sagaz_cov_fail_under is None else _percentage(option.sagaz_cov_fail_under)
    coverage, unknown = _registered(settings_of(config))
    folder = None
    if option.sagaz_report is not None:
        if not option.sagaz_report.strip():
            raise UsageError("--sagaz-report= names no folder: write --sagaz-report=DIR")
        folder = Path(os.path.abspath(config.invocation_params.dir / option.sagaz_report))
        check_folder(folder, "--sagaz-report")
    wanted = Wanted(bool(option.sagaz_cov), under, folder)
    config.pluginmanager.register(Reporter(config, coverage, unknown, wanted), _NAME)


def _percentage(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 100:
        raise UsageError(f"--sagaz-cov-fail-under={text}: write a number from 0 to 100")
    return number


def _registered(settings: Settings) -> tuple[Coverage, dict[str, str]]:
    """Return the coverage of nothing, of every saga that the project names; and why some cannot be described here."""
    coverage = Coverage()
    unknown: dict[str, str] = {}
    for saga in _named(settings):
        try:
            model = model_of(saga)
        except NoStepsError:
            continue
        except SagazError as error:
            raise UsageError(
                f"--sagaz-cov counts saga {name_of(saga)!r}, which cannot be described: {error}"
            ) from error
        except Exception as error:  # the user's code, here without what the tests give it
            unknown[name_of(saga)] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if model.steps:
            coverage.saga(model, adapter_for(saga).cannot).registered = True
    return coverage, unknown


def _named(settings: Settings) -> Iterator[Any]:
    for group in settings.apps:
        for spec in group.value:
            if ":" in spec:
                yield load_saga(spec)
            else:
                yield from (saga for _, saga in sagas_in(import_module(spec)))


class Gatherer:
    """Takes from each test what it ran and asserted. In a worker it sends that to the controller."""

    def __init__(self, config: pytest.Config, coverage: Coverage) -> None:
        self.coverage = coverage
        self._called: dict[str, pytest.TestReport] = {}
        config.stash[EXPLORED] = coverage.add_exploration

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "call":
            self._called[item.nodeid] = report
        elif report.when == "teardown":
            called = self._called.pop(item.nodeid, None)
            if called is not None:
                self._take(item, called, passed=called.passed and report.passed)
        return report

    def _take(self, item: pytest.Item, called: pytest.TestReport, *, passed: bool) -> None:
        runner, xfail = runner_or_none(item), getattr(called, "wasxfail", None)
        accepted = f"xfail: {xfail}" if xfail is not None else ""
        target = getattr(item, "target", None)
        for outcome in runner.outcomes if runner is not None else ():
            if target is not None:
                self.coverage.add_item(outcome, f"--sagaz-replay={target.found.saga_id}", accepted)
            else:
                self.coverage.add_test(outcome, item.nodeid, passed=passed and xfail is None, accepted=accepted)
        if target is not None and getattr(item, "plan", None) and called.skipped and not (runner and runner.outcomes):
            self.coverage.add_not_run(target.model, f"--sagaz-replay={target.found.saga_id}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            if exitstatus in _STOPPED:
                self.coverage.incomplete.append(f"a worker was stopped (exit status {int(exitstatus)})")
            output[WORKER_KEY] = json.dumps(self.coverage.to_json())


class Reporter(Gatherer):
    """Gathers in the process that the user started, also from workers, and reports at the end."""

    def __init__(self, config: pytest.Config, coverage: Coverage, unknown: dict[str, str], wanted: Wanted) -> None:
        super().__init__(config, coverage)
        self._unknown = unknown
        self._wanted = wanted
        self._workers: set[str] = set()
        self._uncollected: dict[str, None] = {}
        self._errors: list[str] = []
        self._over = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._uncollected[report.nodeid] = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        self._workers.add(node.gateway.id)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        sent = (getattr(node, "workeroutput", None) or {}).get(WORKER_KEY)
        if sent is not None:
            self.coverage.merge(Coverage.from_json(json.loads(sent)))
            self._workers.discard(node.gateway.id)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        # What was there from another run must not be taken for this one's, should this one never come to its end.
        self._write(["the run has not ended, or it died"])
        try:
            result = yield
        except BaseException as error:
            self._end(session, f"the run was stopped: {' '.join(str(error).split()) or type(error).__name__}")
            raise
        self._end(session, "")
        return result

    def _end(self, session: pytest.Session, stopped: str) -> None:
        self._over = True
        missing = self.coverage.incomplete
        missing += [f"{where} could not be collected" for where in self._uncollected]
        missing += [stopped] if stopped else []
        missing += [f"worker {name} was lost, and what it ran with it" for name in sorted(self._workers)]
        ran = {saga.model.name for saga in self.coverage.sagas.values()}
        missing += [
            f"saga {name!r} cannot be described here, and no test ran it ({why})"
            for name, why in self._unknown.items()
            if name not in ran
        ]
        self._write(missing)
        self._errors += self._too_little()
        if self._errors:
            session.testsfailed += 1

    def _write(self, missing: list[str]) -> None:
        if self._wanted.folder is None:
            return
        kept, self.coverage.incomplete = self.coverage.incomplete, missing
        try:
            write_report(self._wanted.folder, self.coverage)
        except OSError as error:
            self._errors = [f"--sagaz-report: it could not be written: {error}"]
        finally:
            self.coverage.incomplete = kept

    def _too_little(self) -> Iterator[str]:
        under, count = self._wanted.fail_under, self.coverage.totals()
        if under is None:
            return
        what = f"--sagaz-cov-fail-under={under:g}"
        if self.coverage.incomplete:
            yield f"{what}: the coverage is incomplete"
        elif not count.applicable:
            yield f"{what}: there is no saga; name their modules in the ini sagaz_sagas"
        elif count.reaches < under:
            yield f"{what}: {percent(count.proved, count.applicable)} is proved"

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if not self._over:
            return
        loud = config.option.verbose >= 0
        if loud and (self._wanted.lines or self._wanted.folder):
            terminalreporter.section("sagaz coverage")
            for line in coverage_lines(self.coverage) if self._wanted.lines else ():
                terminalreporter.line(line)
            if self._wanted.folder is not None:
                terminalreporter.line(f"report: {self._wanted.folder / PAGE}")
        for line in self.coverage.incomplete:
            terminalreporter.line(f"INCOMPLETE: {line}", red=True)
        for line in self._errors:
            terminalreporter.line(f"FAIL {line}", red=True)
