"""Ids of snapshots that name their saga and its `seq`: `order-42@12` is the saga `order-42` at 12.

The engine gives its snapshots such ids. A further one at the same `seq` has a number at its end, `order-42@12-000001`.
A run that goes on with a saga begins with an event of its own, so that what it captures is at a higher `seq`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAME = re.compile(r"(?P<saga_id>.+)@(?P<seq>0|[1-9][0-9]{0,18})(-[0-9]+)?", re.DOTALL)


class Named(NamedTuple):
    """What an id of a snapshot says."""

    saga_id: str
    seq: int


def snapshot_name(saga_id: str, seq: int, number: int = 0) -> str:
    """Return the id of the saga's first snapshot at that `seq`, or of a further one: they sort so, up to a million."""
    return f"{saga_id}@{seq}-{number:06}" if number else f"{saga_id}@{seq}"


def named(snapshot_id: str) -> Named | None:
    """Return what the id says, `None` for an id of another kind."""
    found = _NAME.fullmatch(snapshot_id)
    return None if found is None else Named(found["saga_id"], int(found["seq"]))
