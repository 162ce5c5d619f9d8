"""Records of one saga in order, found by `seq` and by time at the cost of a bisection, whatever its clock did."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableSequence, Sequence
    from datetime import datetime

Item = TypeVar("Item", bound="Numbered")

_seq = attrgetter("seq")


class Numbered(Protocol):
    """What has a place in its saga."""

    @property
    def seq(self) -> int:
        """Its number."""


class Timeline(Generic[Item]):
    """A list in order of `key`, which starts with `seq`.

    With each item goes its *floor*, the earliest time from it on. Floors never decrease, and the last item whose time
    is not after T is the last one whose floor is not: so a bisection over them is right whatever the times are.
    """

    __slots__ = ("_floors", "_key", "_moment", "items")

    def __init__(self, key: Callable[[Item], Any], moment: Callable[[Item], datetime]) -> None:
        self.items: list[Item] = []
        self._key = key
        self._moment = moment
        self._floors: list[datetime] = []

    def add(self, items: Sequence[Item]) -> bool:
        """Add items that are in order among themselves, and say whether they came behind all others."""
        mine, key = self.items, self._key
        behind = not mine or items[0].seq > mine[-1].seq or key(items[0]) > key(mine[-1])
        mine.extend(items)
        if not behind:
            mine.sort(key=key)
            self._floors.clear()
        return behind

    def keep(self, items: list[Item]) -> None:
        """Have only these, which are in order."""
        self.items = items
        self._floors.clear()

    def above(self, seq: int) -> int:
        """Return the position behind the last item whose `seq` is not above this one."""
        return bisect_right(self.items, seq, key=_seq)

    def after(self, until: datetime) -> int:
        """Return the position behind the last item whose time is not after `until`."""
        if len(self._floors) < len(self.items):
            self._add_floors()
        return bisect_right(self._floors, until)

    def latest(self, until: datetime | None, max_seq: int | None) -> Item | None:
        """Return the last item whose time is not after `until` and whose `seq` is not above `max_seq`."""
        end = len(self.items) if until is None else self.after(until)
        if max_seq is not None:
            end = min(end, self.above(max_seq))
        while end:  # the first turn returns, unless the clock went back between here and what `max_seq` cut off
            end -= 1
            item = self.items[end]
            if until is None or self._moment(item) <= until:
                return item
        return None

    def before(self, item: Item, until: datetime | None) -> Item | None:
        """Return the last one before this item whose time is not after `until`."""
        end = bisect_left(self.items, self._key(item), key=self._key)
        while end:
            end -= 1
            if until is None or self._moment(self.items[end]) <= until:
                return self.items[end]
        return None

    def _add_floors(self) -> None:
        add_floors(self._floors, map(self._moment, self.items[len(self._floors) :]))


def add_floors(floors: MutableSequence[Any], moments: Iterable[Any]) -> None:
    """Add the floors of items with these times, which come behind all others, and lower those of the others."""
    for at in moments:
        lowered = len(floors)
        while lowered and floors[lowered - 1] > at:
            lowered -= 1
            floors[lowered] = at
        floors.append(at)
