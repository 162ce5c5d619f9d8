"""What differs of the world between two runs of a saga without faults, and so says nothing of a fault.

A value that is another one each time, such as a time, is not compared at all. Of keys that are others each time, such
as ids, it is known how many there are and what is under them, and that is compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from sagaz_core.prove.normalise import Normaliser
from sagaz_core.prove.world import MISSING

if TYPE_CHECKING:
    from sagaz_core.prove.world import Change


class Unsteady:
    """Tells what a fault has changed from what changes by itself.

    `between` is where the worlds differ that two runs without faults leave; the changes that it is asked about are
    against the first of them. Without differences it is false.
    """

    def __init__(self, between: Sequence[Change]) -> None:
        self._values = frozenset(c.where for c in between if c.before is not MISSING and c.after is not MISSING)
        self._gone = frozenset(c.where for c in between if c.after is MISSING)
        there = [(c.where, c.before) for c in between if c.after is MISSING]
        instead = [(c.where, c.after) for c in between if c.before is MISSING]
        self._seen_as = next(
            (how for how in _AS if Counter(how(*one) for one in there) == Counter(how(*one) for one in instead)),
            _as_any,
        )
        self._instead = Counter(self._seen_as(*one) for one in instead)

    def __bool__(self) -> bool:
        return bool(self._values or self._gone or self._instead)

    def without(self, changes: Iterable[Change]) -> Sequence[Change]:
        """Return the changes that are not of this kind."""
        steady = [change for change in changes if change.where not in self._values]
        gone = [change for change in steady if change.after is MISSING and change.where in self._gone]
        left = self._instead.copy() if gone or not self._gone else Counter[Hashable]()
        found = []
        for change in steady:
            shape = self._seen_as(change.where, change.after)
            if change.before is MISSING and left[shape]:
                left[shape] -= 1
            elif change not in gone:
                found.append(change)
        return [*gone[: left.total()], *found] if gone else found  # as many as have nothing in their place


def _as_it_is(where: str, value: object) -> Hashable:
    same = Normaliser.nameless()
    return same.text(where), same.value(value)


def _as_its_place(where: str, value: object) -> Hashable:
    return Normaliser.nameless().text(where)


def _as_any(where: str, value: object) -> Hashable:
    return None


_AS = (_as_it_is, _as_its_place)
"""How a new key is told from others: by what is alike in both runs, but for ids and times, and else not at all."""
