"""`--sagaz-mutate`: the score of the project's own tests.

While the tests run, every native saga is watched at its definition. When they have passed, those that ran a saga run
again, once for each of its mutants and each in a process that is the same but for the mutant, until one of them fails.
With xdist each worker does so with the tests that it ran, and what any of them caught counts as caught.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

from pytest_sagaz.mutants import Report
from pytest_sagaz.runner import forget_runner, runner_or_none
from sagaz_core.mutation.facts import Facts
from sagaz_core.mutation.operators import broken, mutants
from sagaz_core.prove.world import AppendOnly, World
from sagaz_core.saga.base import Saga

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping

    from sagaz_core.mutation.mutant import Mutant
    from sagaz_core.saga.definition import Definition

WORKER_KEY = "sagaz_mutants"
"""The key of `config.workeroutput` under which an xdist worker sends what it found."""

Key = tuple[str, str]
"""A saga: its name and its fingerprint."""
Rows = dict[Key, dict[str, dict[str, Any]]]
"""What became of each saga's mutants, as plain data."""

_NONE = (("", ""), "")
"""No mutant of no saga."""

_MUTATING = pytest.StashKey["Mutating"]()


@dataclass
class _Seen:
    """What one test did with one saga."""

    definition: Definition
    facts: Facts
    mutants: dict[str, Mutant] = field(default_factory=dict)

    def reaches(self, mutant: Mutant) -> bool:
        """Whether the test calls what the mutant changes."""
        of_action = mutant.operator in ("lose-edge", "not-idempotent", "control")
        return (mutant.step, not of_action) in self.facts.places


class Mutating:
    """The plugin that a run with `--sagaz-mutate` has."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.rows: Rows = {}
        self.lost_workers = 0
        self._item: pytest.Item | None = None
        self._seen: dict[pytest.Item, dict[Key, _Seen]] = {}
        self._failed: set[str] = set()
        self._spoiled: dict[pytest.Item, None] = {}
        self.spoiled: list[str] = []
        self._on: tuple[Key, str] | None = None
        self._before = Saga._changes
        Saga._changes = (*self._before, self._change)
        config.add_cleanup(self._switch_off)

    def _switch_off(self) -> None:
        Saga._changes = self._before

    # ---- the seam

    def _change(self, definition: Definition) -> Definition:
        item = self._item
        if item is None:
            return definition
        key = (definition.model.name, definition.model.fingerprint)
        if self._on is None:
            seen = self._seen.setdefault(item, {})
            facts = seen.setdefault(key, _Seen(definition, Facts())).facts
            if facts.world is None:
                facts.world = self._world(item)
            return facts.watching(definition)
        if self._on[0] != key:
            return definition
        return self._seen[item][key].mutants[self._on[1]].change(definition)

    def _world(self, item: pytest.Item) -> World | None:
        world = _CurrentWorld(item)
        return world if world.restorable else None

    # ---- the tests as they are

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._item = item
        try:
            return (yield)
        finally:
            self._item = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self._failed.add(report.nodeid)

    # ---- the tests with mutants

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        result = yield
        if not session.config.option.collectonly:
            self._score(session)
        return result

    def _score(self, session: pytest.Session) -> None:
        again = _Again()
        session.config.pluginmanager.register(again, "sagaz-again")
        try:
            self._try_all(again)
        finally:
            self._on = None
            session.config.pluginmanager.unregister(again)
        self.spoiled = [item.nodeid for item in self._spoiled]
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[WORKER_KEY] = {
                "sagas": [[*key, rows] for key, rows in self.rows.items()],
                "spoiled": self.spoiled,
            }

    def _try_all(self, again: _Again) -> None:
        items = [item for item in self._seen if item.nodeid not in self._failed]
        for key in dict.fromkeys(key for item in items for key in self._seen[item]):
            mine = [item for item in items if key in self._seen[item]]
            found: dict[str, Mutant] = {}
            for item in mine:
                seen = self._seen[item][key]
                seen.mutants = {str(mutant): mutant for mutant in _mutants(seen)}
                found = {**seen.mutants, **found}
            rows = self.rows[key] = {}
            for name, mutant in found.items():
                reaching = [item for item in mine if self._reaches(item, key, name)]
                rows[name] = _row(mutant, len(reaching), self._caught_by(again, key, name, reaching))

    def _reaches(self, item: pytest.Item, key: Key, name: str) -> bool:
        seen = self._seen[item][key]
        return name in seen.mutants and seen.reaches(seen.mutants[name])

    def _caught_by(self, again: _Again, key: Key, name: str, items: Iterable[pytest.Item]) -> str:
        for item in items:
            if item in self._spoiled:
                continue
            self._on = (key, name)
            if again.fails(item):
                self._on = _NONE
                # One that fails from now on, mutant or not, would seem to catch all that come after this one.
                if again.fails(item):
                    self._spoiled[item] = None
                return item.nodeid
        return ""

    # ---- with workers

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        sent = (getattr(node, "workeroutput", None) or {}).get(WORKER_KEY)
        if sent is None:
            self.lost_workers += 1
            return
        self.spoiled += sent["spoiled"]
        for name, fingerprint, rows in sent["sagas"]:
            merged = self.rows.setdefault((name, fingerprint), {})
            for mutant, row in rows.items():
                known = merged.setdefault(mutant, row)
                if known is not row:
                    known["tests"] += row["tests"]
                    known["caught"] = known["caught"] or row["caught"]

    # ---- the end

    @property
    def _report(self) -> Report:
        return Report(self.rows, self.lost_workers, self.spoiled)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        limit = self.config.option.sagaz_mutate_fail_under
        if limit is None or hasattr(self.config, "workerinput") or session.config.option.collectonly:
            return
        if session.exitstatus == pytest.ExitCode.OK and not self._report.reaches(limit):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.config.option.collectonly:
            terminalreporter.section("sagaz mutants")
            for line in self._report.lines(self.config.option.sagaz_mutate_fail_under):
                terminalreporter.line(line)


def _mutants(seen: _Seen) -> list[Mutant]:
    found = mutants(seen.definition, seen.facts)
    if seen.facts.world is None:  # without one, whether a second call has an effect cannot be seen
        found = [mutant for mutant in found if mutant.operator != "twice"]
    return [broken(seen.definition), *found]


def _row(mutant: Mutant, tests: int, caught: str) -> dict[str, Any]:
    return {
        "operator": mutant.operator,
        "step": mutant.step,
        "sentence": mutant.sentence,
        "tests": tests,
        "caught": caught,
    }


class _Again:
    """Runs tests once more, unseen: nothing of it is logged or counted."""

    def __init__(self) -> None:
        self._reports: list[pytest.TestReport] = []

    def fails(self, item: pytest.Item) -> bool:
        """Run the test with fresh fixtures and say whether it fails."""
        properties, sections = list(item.user_properties), list(item._report_sections)
        forget_runner(item)
        if getattr(item, "cls", None) is not None:
            for made in ("_instance", "_obj"):  # else it would be the same object of the test class
                vars(item).pop(made, None)
        item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        item.user_properties[:], item._report_sections[:] = properties, sections
        return any(report.failed for report in self._reports)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool:
        # Below the hooks that are around each test, in the place of what runs and reports one.
        with warnings.catch_warnings(record=True):
            self._reports = runtestprotocol(item, log=False)
        return True


class _CurrentWorld(World):
    """The world of the test that runs: each time it runs, its fixtures are others."""

    def __init__(self, item: pytest.Item) -> None:
        super().__init__()
        self._item = item

    @property
    def _real(self) -> World:
        runner = runner_or_none(self._item)
        return World() if runner is None or runner.world is None else runner.world

    @property
    def restorable(self) -> bool:
        """As the real one."""
        return self._real.restorable

    @property
    def append_only(self) -> AppendOnly:
        """As the real one."""
        return self._real.append_only

    def save(self) -> dict[str, Any]:
        """Return the state of all fakes, copied."""
        return self._real.save()

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Put the fakes' states back."""
        self._real.restore(saved)


def prepare(config: pytest.Config) -> None:
    """Have the run scored. Raises `UsageError` where a second run of a test would do more than run it."""
    if config.getoption("usepdb", False):
        raise pytest.UsageError("--sagaz-mutate cannot be used with --pdb, which would stop in each mutant")
    if config.getoption("update_snapshots", False):
        raise pytest.UsageError("--sagaz-mutate cannot be used with --snapshot-update, which would keep the mutants'")
    config.stash[_MUTATING] = Mutating(config)
    config.pluginmanager.register(config.stash[_MUTATING], "sagaz-mutating")
