"""What can go wrong between executions of sagas, by name, with the schedule that shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import SagazError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagaz_core.prove.world import Change, World

Places = dict[str, "Change"]

VERBS = {"action": "do", "compensation": "undo", "recovery": "recover"}


@dataclass(frozen=True)
class Line:
    """One call in the schedule: whose, of which step, how it went if not well, and what it changed in the world."""

    who: str
    step: str
    kind: str
    how: str = ""
    changes: Places = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.who}  {VERBS[self.kind]} {self.step}"]
        if self.how:
            parts.append(self.how)
        parts.extend(map(str, self.changes.values()))
        return "   ".join(parts)


class AnomalyError(SagazError, AssertionError):
    """Executions over one world ended as no order of them one after another would. `lines` is the schedule."""

    def __init__(self, anomaly: str, lines: Sequence[Line], ends: Mapping[str, str]) -> None:
        self.anomaly = anomaly
        self.lines = tuple(lines)
        width = len(str(len(lines)))
        schedule = [f"{number:>{width}}  {line}" for number, line in enumerate(lines, 1)]
        ended = ", ".join(f"{name} {end}" for name, end in ends.items())
        super().__init__("\n".join((anomaly, "", *schedule, "", f"ended: {ended}")))


def places(world: World, before: dict[str, Any], after: dict[str, Any]) -> Places:
    """Return where two states of a world differ, by place."""
    return {change.where: change for change in world.changes(before, after)}


def find_anomaly(
    lines: Sequence[Line],
    actual: Places,
    expected: Sequence[Places],
    rolled_back: set[str],
    locks: Sequence[str],
) -> str | None:
    """Return what is wrong, or `None`. `expected` has the world after each order of the completed executions."""
    for place in actual:
        if any(fnmatchcase(place, pattern) for pattern in locks):
            return f"UNRELEASED LOCK: {_last(lines, place)}: {actual[place]}"
    if _as_values(actual) in map(_as_values, expected):
        return None
    wrong = _differing(actual, expected)
    # In this order: a compensation that writes over another's update is to blame for what was read meanwhile as well.
    for find in (_orphan, _lost_update, _dirty_read):
        for place in wrong or actual:
            found = find(lines, place, rolled_back)
            if found:
                return found
    for place in dict.fromkeys(place for line in lines for place in line.changes):
        found = _dirty_read(lines, place, rolled_back)
        if found:
            return found
    shown = "; ".join(str(actual[place]) if place in actual else f"{place} as it was" for place in wrong)
    return f"NOT SERIAL: no order of those that completed, one after another, leaves {shown}"


def _as_values(places: Places) -> dict[str, Any]:
    return {where: change.after for where, change in places.items()}


def _differing(actual: Places, expected: Sequence[Places]) -> list[str]:
    """Return the places that are other than in the order that comes nearest."""
    mine = _as_values(actual)
    options = []
    for one in expected:
        theirs = _as_values(one)
        everywhere = dict.fromkeys((*mine, *theirs))
        options.append([at for at in everywhere if at not in mine or at not in theirs or mine[at] != theirs[at]])
    return min(options, key=len)


def _writes(lines: Sequence[Line], place: str) -> list[tuple[int, Line]]:
    return [
        (number, line) for number, line in enumerate(lines) if any(_within(place, changed) for changed in line.changes)
    ]


def _within(place: str, changed: str) -> bool:
    return place == changed or place.startswith(f"{changed}.") or changed.startswith(f"{place}.")


def _orphan(lines: Sequence[Line], place: str, rolled_back: set[str]) -> str:
    """Find what one that was rolled back has not taken back: its own fault, with no other's help."""
    writes = _writes(lines, place)
    if not writes:
        return ""
    number, line = writes[-1]
    if line.kind != "action" or line.who not in rolled_back:
        return ""
    return f"ORPHAN at {place}: {_named(number, line)} was not undone when {line.who} was rolled back"


def _lost_update(lines: Sequence[Line], place: str, rolled_back: set[str]) -> str:
    """Find a write over another's, by one that had begun before that and so cannot have known of it."""
    writes = _writes(lines, place)
    for late, writer in writes:
        for early, lost in writes:
            if early >= late or lost.who == writer.who or lost.kind != "action" or lost.who in rolled_back:
                continue
            began = next(number for number, line in enumerate(lines) if line.who == writer.who)
            if began < early:
                return (
                    f"LOST UPDATE of {place}: {_named(late, writer)} overwrote what {_named(early, lost)} had written, "
                    f"having begun before it"
                )
    return ""


def _dirty_read(lines: Sequence[Line], place: str, rolled_back: set[str]) -> str:
    """Find a completed execution that did something between a write and its undoing."""
    writes = _writes(lines, place)
    for done, write in writes:
        if write.kind != "action" or write.who not in rolled_back:
            continue
        for undone, undo in writes:
            if undone <= done or undo.who != write.who or undo.kind != "compensation":
                continue
            for number in range(done + 1, undone):
                reader = lines[number]
                if reader.who != write.who and reader.who not in rolled_back and reader.kind == "action":
                    return (
                        f"DIRTY READ of {place}: {_named(number, reader)} came after {_named(done, write)}, "
                        f"which {_named(undone, undo)} took back"
                    )
    return ""


def _last(lines: Sequence[Line], place: str) -> str:
    writes = _writes(lines, place)
    return f"{_named(*writes[-1])} left it" if writes else "it was left"


def _named(number: int, line: Line) -> str:
    return f"{line.who}'s {VERBS[line.kind]} {line.step} (line {number + 1})"
