"""The hooks. Each asks first whether a saga is in use, and loads nothing unless one is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_sagaz.fixtures import (
    recording,
    saga_aws,
    saga_case,
    saga_clock,
    saga_factory,
    saga_golden,
    saga_redis,
    saga_store,
    saga_world,
    sagaz,
)
from pytest_sagaz.options import MARKERS, add_markers, add_options

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = [
    "recording",
    "saga_aws",
    "saga_case",
    "saga_clock",
    "saga_factory",
    "saga_golden",
    "saga_redis",
    "saga_store",
    "saga_world",
    "sagaz",
]

_ONLY_WITH_REPLAY = ("sagaz_from", "sagaz_plan", "sagaz_override", "sagaz_kill", "sagaz_budget")
_CHECKED = ("sagaz_kinds", "sagaz_depth")
_COVERAGE = ("sagaz_cov", "sagaz_cov_fail_under", "sagaz_report")
_WORKERS_SAY = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)
def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    add_markers(config)
    _check_options(config)
    if any(getattr(config.option, name) is not None for name in _COVERAGE):
        from pytest_sagaz.coverage import begin
        from pytest_sagaz.settings import usage_errors

        with usage_errors():
            begin(config)


def _check_options(config: pytest.Config) -> None:
    option = config.option
    if option.sagaz_mutate:
        from pytest_sagaz.mutating import prepare as prepare_mutants

        prepare_mutants(config)
    elif option.sagaz_mutate_fail_under is not None:
        raise pytest.UsageError("--sagaz-mutate-fail-under needs --sagaz-mutate: without it nothing is scored")
    if option.sagaz_replay:
        from pytest_sagaz.replays import prepare
        from pytest_sagaz.settings import usage_errors

        with usage_errors():
            prepare(config, option.sagaz_replay)
        return
    for name in _ONLY_WITH_REPLAY:
        if getattr(option, name) is not None:
            raise pytest.UsageError(f"--{name.replace('_', '-')} needs --sagaz-replay=ID: it says how that is replayed")
    if any(getattr(option, name) is not None for name in _CHECKED):
        from pytest_sagaz.settings import settings_of, usage_errors

        with usage_errors():
            settings_of(config).check()


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    if not config.option.sagaz_replay or config.option.verbose <= 0:
        return None
    from pytest_sagaz.settings import settings_of

    return settings_of(config).header()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    if not collector.config.option.sagaz_replay:
        return (yield)
    from pytest_sagaz.collection import added_to, children_of

    children = children_of(collector)
    if children is not None:
        collector.collect = lambda: children  # type: ignore[method-assign] # its own would look at every file
    report = yield
    if report.passed:
        report.result = [*report.result, *added_to(collector, report.result)]
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "recording" in metafunc.fixturenames or "saga_case" in metafunc.fixturenames:
        from pytest_sagaz.given import parametrize

        parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if any(mark.name in MARKERS for mark in item.iter_markers())]
    if marked:
        from pytest_sagaz.given import check_markers

        check_markers(config, items, marked)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    output = getattr(node, "workeroutput", None) or {}
    if "sagaz_usage_errors" in output:
        node.config.stash[_WORKERS_SAY] = output["sagaz_usage_errors"]
    if "sagaz_goldens" in output:
        from pytest_sagaz.goldens import add_worker_log

        add_worker_log(node.config, output["sagaz_goldens"])


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, Any, Any]:
    result = yield
    if _WORKERS_SAY in session.config.stash:
        raise pytest.UsageError(*session.config.stash[_WORKERS_SAY])
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.option.verbose < 0:
        return
    reports = [
        report
        for some in terminalreporter.stats.values()
        for report in some
        if isinstance(report, pytest.TestReport)
        and any(name in ("sagaz_id", "sagaz_saga") for name, _ in report.user_properties)
    ]
    if reports:
        from pytest_sagaz.summary import summary

        terminalreporter.section("sagaz")
        for line in summary(reports):
            terminalreporter.line(line)
