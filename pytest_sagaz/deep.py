"""The item of `--sagaz-depth`: it explores every plan of several faults of a recorded saga."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_sagaz.replays import reproduce_search
from pytest_sagaz.settings import settings_of
from sagaz_core.faults.kinds import KINDS
from sagaz_core.prove.budget import deadline
from sagaz_core.prove.exploration import Exploration
from sagaz_core.prove.failures import FILE, Failures
from sagaz_core.prove.outcome import UnsoundError
from sagaz_core.prove.search import Search

if TYPE_CHECKING:
    from pytest_sagaz.cases import Case
    from pytest_sagaz.collection import ExploreItem

SHOWN = 5


def search(saga_case: Case) -> None:
    """The test function of every such item."""
    __tracebackhide__ = True
    item: ExploreItem = saga_case.runner.item  # type: ignore[assignment] # only such items have this function
    settings = settings_of(item.config)
    assert saga_case.recording is not None
    failures = Failures(item.config.rootpath / FILE)
    name = saga_case.recording.saga_name
    wanted = Search(
        tuple(KINDS) if settings.kinds.origin == "default" else settings.kinds.value,
        item.depth,
        known=failures.of(name),
        over=deadline(settings.budget),
        first=settings.from_step,
        again=reproduce_search(item.target, item.depth, settings),
    )
    exploration = saga_case.explore(wanted)
    failed = [outcome.plan for outcome in exploration.failures]
    failures.keep(name, [*failed, *wanted.not_asked_for(exploration.model)])
    unsound = exploration.failures[0].verdict.value if exploration.failures else ""
    verdict = unsound or ("VACUOUS" if exploration.unproved else "CLEAN")
    item.user_properties += [("sagaz_verdict", verdict), ("sagaz_explored", exploration.summary())]
    if exploration.incomplete:
        item.user_properties.append(("sagaz_incomplete", exploration.incomplete))
    if exploration.failures:
        raise UnsoundError(_line(exploration), _report(exploration))
    if exploration.unproved:
        pytest.fail(exploration.unproved, pytrace=False)


def _line(exploration: Exploration) -> str:
    first = exploration.failures[0]
    more = len(exploration.failures) - 1
    also = f" (and {more} more)" if more else ""
    return f"{first.verdict.value}{first.under}: {first.findings[0].sentence}{also}"


def _report(exploration: Exploration) -> str:
    parts = [exploration.explain()]
    parts += [outcome.explain() for outcome in exploration.failures[:SHOWN]]
    if len(exploration.failures) > SHOWN:
        parts.append(f"and {len(exploration.failures) - SHOWN} more, named in the table above")
    return "\n\n".join(parts)
