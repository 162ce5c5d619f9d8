"""Our items in pytest's tree: below the folder whose fixtures they see, one module a recording, one function a plan."""

from __future__ import annotations

import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sagaz import reports
from pytest_sagaz.deep import search
from pytest_sagaz.kills import kill
from pytest_sagaz.known import xfail_of
from pytest_sagaz.replays import EXPLORE, FAITHFUL, REPLAYS, Replays, Target, escaped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_sagaz.cases import Case
    from sagaz_core.faults.plan import FaultPlan
    from sagaz_core.prove.boundaries import Boundary

_CHILDREN = pytest.StashKey[list[pytest.Collector]]()


def prove(saga_case: Case) -> None:
    """The test function of every item of ours."""
    __tracebackhide__ = True
    reports.prove(saga_case)


class SagaItem(pytest.Function):
    """One plan of a recorded saga, or its faithful replay (`plan` is None)."""

    def __init__(self, *, target: Target, plan: FaultPlan | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target = target
        self.plan = plan
        self.user_properties.append(("sagaz_id", target.found.saga_id))
        self.user_properties.append(("sagaz_plan", str(plan) if plan else FAITHFUL))

    @property
    def ihook(self) -> Any:
        """The hooks of the folder that the item hangs below."""
        return self.session.gethookproxy(_replays(self.config).anchor)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Say where it is: at no file."""
        return self.config.rootpath / self.target.name, None, f"{self.target.name}: {self.name}"

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the table of an unsound outcome, one line of our own errors, and the traceback of the user's."""
        return reports.own_failure(self, excinfo) or super().repr_failure(excinfo)

    def _traceback_filter(self, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
        return reports.users_part(excinfo.traceback) or super()._traceback_filter(excinfo)


class KillItem(SagaItem):
    """One moment at which a process that runs a recorded saga is killed."""

    def __init__(self, *, boundary: Boundary, **kwargs: Any) -> None:
        super().__init__(plan=boundary.plan, **kwargs)
        self.boundary = boundary
        self.user_properties[-1] = ("sagaz_plan", str(boundary))
        self.user_properties.append(("sagaz_killed", boundary.sentence))


class ExploreItem(SagaItem):
    """Every plan of up to `depth` faults of a recorded saga."""

    def __init__(self, *, depth: int, **kwargs: Any) -> None:
        super().__init__(plan=None, **kwargs)
        self.depth = depth
        self.user_properties[-1] = ("sagaz_plan", f"{EXPLORE}{depth}")


class SagaModule(pytest.Module):
    """One recording. Its path is the root folder, which is there, as `--nf` and `--lf` want it."""

    def __init__(self, *, target: Target, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target = target

    def _getobj(self) -> types.ModuleType:
        return types.ModuleType(self.name)

    def collect(self) -> Iterator[SagaItem]:
        """Make the items."""
        for text, plan in self.target.plans.items():
            item = SagaItem.from_parent(
                self, name=escaped(text).replace("/", "%2F"), callobj=prove, target=self.target, plan=plan
            )
            mark = xfail_of(self.target.known, plan)
            if mark is not None:
                item.add_marker(mark)
            yield item
        for text, depth in self.target.explorations.items():
            yield ExploreItem.from_parent(self, name=text, callobj=search, target=self.target, depth=depth)
        for text, boundary in self.target.kills.items():
            yield KillItem.from_parent(
                self, name=escaped(text).replace("/", "%2F"), callobj=kill, target=self.target, boundary=boundary
            )


def _replays(config: pytest.Config) -> Replays:
    return config.stash[REPLAYS]


def _modules(parent: pytest.Collector, replays: Replays) -> list[pytest.Collector]:
    root = parent.config.rootpath
    return [
        SagaModule.from_parent(parent, path=root, name=target.name, nodeid=target.name, target=target)
        for target in replays.targets
    ]


# ---- into the tree


def children_of(collector: pytest.Collector) -> list[pytest.Collector] | None:
    """Return what a collector is to have instead of what it would find: folders of our own, the session if `only`."""
    if isinstance(collector, pytest.Session):
        replays = _replays(collector.config)
        return [_folder(collector, replays)] if replays.only else None
    return collector.stash.get(_CHILDREN, None)


def added_to(collector: pytest.Collector, result: list[Any]) -> list[pytest.Collector]:
    """Return what a collector is to have besides what it found, when there are other tests too."""
    replays = _replays(collector.config)
    if replays.only or _CHILDREN in collector.stash:
        return []
    if isinstance(collector, pytest.Session):
        return _beside_other_tests(collector, replays, result)
    if isinstance(collector, pytest.Directory) and collector.path == replays.anchor and _is_asked_for(collector):
        return _modules(collector, replays)
    return []


def _beside_other_tests(session: pytest.Session, replays: Replays, result: list[Any]) -> list[pytest.Collector]:
    if any(_contains(path, replays.anchor) for path in _arguments(session)):
        return []  # its folder is among them, and gets them when it is collected
    for node in result:
        for parent in node.listchain():
            if isinstance(parent, pytest.Directory) and parent.path == replays.anchor:
                return _modules(parent, replays)
    return [_folder(session, replays)]


def _is_asked_for(folder: pytest.Directory) -> bool:
    return any(_contains(path, folder.path) for path in _arguments(folder.session))


def _arguments(session: pytest.Session) -> list[Path]:
    here = session.config.invocation_params.dir
    paths = [Path(here, argument.partition("::")[0]).resolve() for argument in session.config.args]
    return [path for path in paths if path.is_dir()]


def _contains(path: Path, folder: Path) -> bool:
    return folder.resolve().is_relative_to(path)


def _folder(session: pytest.Session, replays: Replays) -> pytest.Collector:
    """Return the root folder, with the anchor below it, and nothing else in them but our modules."""
    root, anchor = session.config.rootpath, replays.anchor
    between = [anchor]
    if anchor.is_relative_to(root):
        between = [path for path in (anchor, *anchor.parents) if path.is_relative_to(root)][::-1]
    top = parent = pytest.Dir.from_parent(session, path=between[0])
    for path in between[1:]:
        below = pytest.Dir.from_parent(parent, path=path)
        children: list[pytest.Collector] = [below]
        parent.stash[_CHILDREN] = children
        parent = below
    parent.stash[_CHILDREN] = _modules(parent, replays)
    return top
