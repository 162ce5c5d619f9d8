"""How long a search may take: `30s`, `2m`, `500ms`."""

from __future__ import annotations

import re
from collections.abc import Callable

from sagaz_core.clock import monotonic
from sagaz_core.errors import UsageError

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BUDGET = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")


def seconds_of(text: str) -> float:
    """Return the seconds of a budget. Raises `UsageError`, which says how to write one."""
    match = _BUDGET.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not seconds:
        raise UsageError(f"a budget of {text!r}: write a number and ms, s, m or h, such as 30s")
    return seconds


def deadline(seconds: float | None) -> Callable[[], bool]:
    """Return what says whether so many real seconds are over; `None` never are."""
    if seconds is None:
        return lambda: False
    end = monotonic() + seconds
    return lambda: monotonic() >= end
