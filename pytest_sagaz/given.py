"""What `recording` and `saga_case` give to a test, by its markers and the options; and checking the markers."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sagaz.cases import Case
from pytest_sagaz.known import known_hazards, xfail_of
from pytest_sagaz.markers import Matrix, ReplayFrom, forced_plan, matrix_of, replayed
from pytest_sagaz.recordings import Found, find
from pytest_sagaz.replays import REPLAYS, Target, context_keys, escaped, reproduce
from pytest_sagaz.runner import runner_of
from pytest_sagaz.sagas import class_of, maker, model_of
from pytest_sagaz.settings import SagazWarning, Settings, settings_of
from sagaz_core.adapters.locate import name_of
from sagaz_core.errors import SagazError, UsageError
from sagaz_core.faults.kinds import parse_kinds
from sagaz_core.faults.plan import FaultPlan, single_fault_plans
from sagaz_core.replay.start import check_override, check_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sagaz_core.prove.world import World
    from sagaz_core.recording.base import Recording
    from sagaz_core.storage.base import SnapshotStorage

WORKER_KEY = "sagaz_usage_errors"
"""The key of `config.workeroutput` under which an xdist worker says what is wrong with markers."""

_FOUND = pytest.StashKey[Found]()
_WRONG = pytest.StashKey[list[str]]()


# ---- at collection


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Make one test for each plan of a `saga_matrix`, or for each recording of `--sagaz-replay`."""
    config, item = metafunc.config, metafunc.definition
    try:
        matrix = matrix_of(item)
        if matrix is not None and _is_our_fixture(metafunc, "saga_case"):
            metafunc.parametrize("saga_case", list(_parameters(config, matrix)), indirect=True)
            return
        replays = config.stash.get(REPLAYS, None)
        name = "recording" if "recording" in metafunc.fixturenames else "saga_case"
        if replays is None or replayed(item) is not None or not _is_our_fixture(metafunc, name):
            return
        targets = [pytest.param(target, id=escaped(target.found.saga_id)) for target in replays.targets]
        metafunc.parametrize(name, targets, indirect=True)
    except SagazError as error:
        _note_wrong(config, item, error)


def _is_our_fixture(metafunc: pytest.Metafunc, name: str) -> bool:
    return _defined_here(metafunc._arg2fixturedefs.get(name, ()))


def _is_ours(item: pytest.Item, name: str) -> bool:
    return isinstance(item, pytest.Function) and _defined_here(item._fixtureinfo.name2fixturedefs.get(name, ()))


def _defined_here(definitions: Sequence[pytest.FixtureDef[Any]]) -> bool:
    return bool(definitions) and definitions[-1].func.__module__ == "pytest_sagaz.fixtures"


def _parameters(config: pytest.Config, matrix: Matrix) -> Iterator[Any]:
    settings = settings_of(config)
    kinds: Iterable[str] = settings.kinds.value if matrix.kinds is None else parse_kinds(matrix.kinds)
    model = model_of(matrix.saga)
    known = {hazard.plan: hazard.reason for hazard in known_hazards(config) if hazard.saga == model.name}
    for plan in single_fault_plans(model, kinds):
        mark = xfail_of(known, plan)
        yield pytest.param(plan, id=str(plan), marks=(mark,) if mark else ())


def _note_wrong(config: pytest.Config, item: pytest.Item, error: Exception) -> None:
    # A usage error in the middle of collecting a module would be taken for an error of the module.
    config.stash.setdefault(_WRONG, []).append(f"{item.nodeid}: {error}")


def check_markers(config: pytest.Config, items: list[pytest.Item], marked: list[pytest.Item]) -> None:
    """Raise a usage error that names the test when the arguments of a marker of ours are wrong; load the recordings."""
    from pytest_sagaz import reports

    reports.take_part(config)
    wrong = config.stash.setdefault(_WRONG, [])
    loaded: dict[tuple[str, str], Found] = {}
    for item in marked:
        try:
            _check(item, settings_of(config), loaded)
        except SagazError as error:
            _note_wrong(config, item, error)
    messages = list(dict.fromkeys(wrong))
    if messages and hasattr(config, "workerinput"):
        # What a worker raises here is an internal error to the controller, so that one is told, and raises it.
        config.workeroutput[WORKER_KEY] = messages  # type: ignore[attr-defined] # xdist's
        items.clear()
    elif messages:
        raise pytest.UsageError(*messages)


def _check(item: pytest.Item, settings: Settings, loaded: dict[tuple[str, str], Found]) -> None:
    plan = forced_plan(item)
    matrix = matrix_of(item)
    marker = replayed(item)
    if matrix is not None:
        if "saga_case" not in getattr(item, "fixturenames", ()):
            raise UsageError("@saga_matrix: the test must ask for the fixture saga_case, which has the plan to run")
        if marker is not None:
            raise UsageError("@saga_matrix and @replay_from: a test has one of them")
        plan.check(model_of(matrix.saga))
    if marker is None:
        return
    key = (str(item.path.parent), marker.source)
    if key not in loaded:
        found = find(marker.source, settings, item.path.parent, settings.config.rootpath)
        if len(found) != 1:
            raise UsageError(f"@replay_from: {marker.source!r} is {len(found)} recordings: name one")
        loaded[key] = found[0]
    item.stash[_FOUND] = loaded[key]
    recording = loaded[key].recording
    if _is_ours(item, "saga_case") and _is_ours(item, "saga_factory"):
        class_of(loaded[key], settings)
    plan.check(recording.model)
    if marker.step is not None:
        recording.state_before(marker.step)
        check_runs(plan, recording.served_before(marker.step), marker.step)
    messages = check_override(marker.override, context_keys(recording), strict=settings.strict)
    for message in messages:
        try:
            item.warn(SagazWarning(f"@replay_from: {message}"))
        except SagazWarning as error:  # where warnings are errors
            raise UsageError(str(error)) from error


# ---- at run time


def given_recording(request: pytest.FixtureRequest) -> Recording:
    """Return the recording of the test."""
    return _found(request).recording


def _found(request: pytest.FixtureRequest) -> Found:
    parameter = getattr(request, "param", None)
    if isinstance(parameter, Target):
        return parameter.found
    target = getattr(request.node, "target", None)
    if isinstance(target, Target):
        return target.found
    found: Found | None = request.node.stash.get(_FOUND, None)
    if found is not None:
        return found
    callspec = getattr(request.node, "callspec", None)
    for value in callspec.params.values() if callspec is not None else ():
        if isinstance(value, Target):  # another fixture of the test was given it
            return value.found
    pytest.skip(
        "there is no recording for this test: mark the test with @pytest.mark.replay_from(ID), "
        "or run it with --sagaz-replay=ID"
    )


def given_case(request: pytest.FixtureRequest, factory: Any, world: World) -> Case:
    """Return the case of the test: of our own item, of a matrix, or of a recording."""
    item, settings = request.node, settings_of(request.config)
    runner = runner_of(item)
    try:
        target = getattr(item, "target", None)
        if isinstance(target, Target):
            recording = target.found.recording
            return Case(
                runner,
                maker(factory, recording.saga_name, target.saga),
                plan=item.plan or FaultPlan(),
                recording=recording,
                step=settings.from_step,
                override=settings.override,
                world=world,
                allow_drift=settings.allow_drift,
                reproduce=reproduce(target, settings),
            )
        matrix = matrix_of(item)
        if matrix is not None:
            return Case(
                runner,
                maker(factory, name_of(matrix.saga), matrix.saga),
                matrix.context,
                request.param + forced_plan(item),
                world=world,
                compare=True,
                reproduce=f"pytest {shlex.quote(item.nodeid)}",
            )
        found, marker = _found(request), replayed(item) or ReplayFrom("", None, {}, True)
        return Case(
            runner,
            maker(factory, found.recording.saga_name, None if factory is not None else class_of(found, settings)),
            plan=forced_plan(item),
            recording=found.recording,
            step=marker.step,
            override=marker.override,
            freeze=marker.freeze,
            world=world,
            allow_drift=settings.allow_drift,
            reproduce=f"pytest {shlex.quote(item.nodeid)}",
        )
    except SagazError as error:
        raise _failed(error) from None


def closing_store(request: pytest.FixtureRequest) -> Iterator[SnapshotStorage]:
    """Give the store to a test, and close it after it."""
    try:
        store = settings_of(request.config).open_store()
    except SagazError as error:
        raise _failed(error) from None
    yield store
    asyncio.run(store.close())


def _failed(error: SagazError) -> BaseException:
    # Not pytest.fail(): that would show what it says twice, the second time as raised while the first was handled.
    return pytest.fail.Exception(str(error), pytrace=False)
