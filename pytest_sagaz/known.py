"""Hazards that a team accepts for now, written down in the ini: `sagaz_known = order: ship@after  # reason`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from sagaz_core.errors import PlanError, UsageError
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.prove.outcome import UnsoundError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Known(NamedTuple):
    """One hazard: a plan of a saga, and why it is accepted."""

    saga: str
    plan: FaultPlan
    reason: str


def known_hazards(config: pytest.Config) -> list[Known]:
    """Return the ini's hazards. Raises `UsageError` for a line that cannot be read."""
    return [_known(line) for line in config.getini("sagaz_known")]


def _known(line: str) -> Known:
    # A plan may have a # too, but none with a space before it.
    entry, _, reason = line.partition(" #")
    saga, colon, plan = entry.rpartition(": ")
    if not colon or not saga.strip() or not reason.strip():
        raise UsageError(
            f"ini sagaz_known {line!r}: write `saga: plan  # reason`, such as `order: ship@after  # ticket 12`"
        )
    try:
        return Known(saga.strip(), FaultPlan.parse(plan.strip()), reason.strip())
    except PlanError as error:
        raise UsageError(f"ini sagaz_known {line!r}: {error}") from error


def xfail_of(known: Mapping[FaultPlan, str], plan: FaultPlan | None) -> pytest.MarkDecorator | None:
    """Return the mark of the plan's item: unsound as expected it is an xfail, sound after all it fails."""
    if plan is None or plan not in known:
        return None
    return pytest.mark.xfail(reason=known[plan], raises=UnsoundError, strict=True)
