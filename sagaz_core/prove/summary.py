"""What is below a node of a search: how many plans, and what is wrong with the smallest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.prove.scripts import rank
from sagaz_core.prove.verdict import Verdict

if TYPE_CHECKING:
    from sagaz_core.faults.plan import Fault

Found = tuple[Verdict, str | None]


class Move(NamedTuple):
    """What was done at a node: the operation at this place among the possible ones, under this script.

    `interrupted` steps were running beside it and cancelled because it failed, each having had its effect or not.
    """

    place: int
    script: tuple[Fault, ...]
    interrupted: tuple[tuple[str, bool], ...] = ()


class Path(NamedTuple):
    """Moves from a node to an end, and the faults among them."""

    faults: tuple[Fault, ...]
    moves: Any = None  # (Move, rest) or None: pairs, because paths share their ends

    def after(self, move: Move) -> Path:
        """Return the path that begins with the move."""
        return Path(move.script + self.faults, (move, self.moves))


class Summary(NamedTuple):
    """What is below a node: how many plans of 0, 1 … faults, and for each thing that is wrong the smallest plan.

    `beside` is in how many other ways these plans can go: with the steps in another order, or siblings cut short.
    """

    counts: tuple[int, ...]
    found: dict[Found, Path]
    beside: int = 0


TURNED_BACK: Found = (Verdict.CLEAN, None)
"""Not wrong by itself: the saga turned back although nothing fatal struck. With a step: a benign fault struck there."""


class Total:
    """A summary in the making. `count`: the plans below are not counted yet elsewhere, and else go another way."""

    def __init__(self, depth: int, places: Mapping[str, int]) -> None:
        self._places = places
        self._counts = [0] * (depth + 1)
        self._beside = 0
        self._found: dict[Found, Path] = {}
        self.count = True

    def add(self, move: Move, below: Summary) -> None:
        """Add what is below a move."""
        spent = len(move.script)
        if self.count:
            counts = self._counts
            for index in range(len(counts) - spent):
                counts[index + spent] += below.counts[index]
        else:
            self._beside += sum(below.counts)
        self._beside += below.beside
        if below.found:
            self._take(move, below.found)

    def _take(self, move: Move, found: dict[Found, Path]) -> None:
        places = self._places
        for key, path in found.items():
            if key[0] is Verdict.CLEAN and any(fault.described.fatal for fault in move.script):
                continue
            now = blamed(key, move.script)
            if now != key and (without := self._found.get(key)) is not None and without.faults == path.faults:
                continue  # it happens without these faults too
            key = now
            longer, known = path.after(move), self._found.get(key)
            if known is None or rank(longer.faults, places) < rank(known.faults, places):
                self._found[key] = longer

    def summary(self) -> Summary:
        """Return it."""
        return Summary(tuple(self._counts), self._found, self._beside)


def blamed(key: Found, faults: Sequence[Fault]) -> Found:
    """Return the key with the step of the plan's first fault, where that is what is blamed."""
    return (key[0], faults[0].step) if faults and key[0] in (Verdict.CLEAN, Verdict.NOT_IDEMPOTENT) else key
