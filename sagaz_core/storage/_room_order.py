"""Slots in an order that is none of arrival, in a room on the disk: what an `array` of them would say.

They are in pages, which are split when they are full: so a slot that comes late costs one page, wherever it belongs.
In memory are the page that was asked for last and two words a page.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from itertools import chain
from typing import TYPE_CHECKING, overload

from sagaz_core.storage._room import PAGE, Pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sagaz_core.storage._room import Room


class Order:
    """The slots by their positions. `_ends` says of each page, by its place among the others, where the next begins.

    What is changed in the page that is held is written when another one is, or by `settle`.
    """

    __slots__ = ("_changed", "_ends", "_held", "_number", "_numbers", "_pages", "_start", "_stop", "length")

    def __init__(self, room: Room, slots: Iterable[int] = ()) -> None:
        self._pages = Pages(room)
        self._numbers, self._ends = array("I"), array("I")
        self._held, self._number, self._changed = array("I"), -1, False
        self._start = self._stop = 0
        self.length = PAGE // self._held.itemsize
        for slot in slots:
            self.append(slot)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> array[int]: ...

    def __getitem__(self, at: int | slice) -> int | array[int]:
        if not isinstance(at, int):
            start, stop, _ = at.indices(len(self))
            return array("I", self.between(start, stop))
        if at < 0:
            at += len(self)
        if not self._start <= at < self._stop:
            self._hold(bisect_right(self._ends, at))
        return self._held[at - self._start]

    def __iter__(self) -> Iterator[int]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[int]:
        """Iterate the slots from one position up to another."""
        return chain.from_iterable(self._parts(start, stop))

    def _parts(self, start: int, stop: int) -> Iterator[array[int]]:
        while start < stop:
            first, page = self._page_of(start)
            yield page[start - first : stop - first]
            start = first + len(page)

    def pages_back(self, stop: int) -> Iterator[array[int]]:
        """Iterate the slots before that position by page, the last page first."""
        while stop:
            first, page = self._page_of(stop - 1)
            yield page[: stop - first]
            stop = first

    def append(self, slot: int) -> None:
        """Add a slot behind all others."""
        at = len(self)
        if not self._ends or (at == self._stop and len(self._held) == self.length):
            self._ends.append(at)
            self._new_page(len(self._numbers))
        self.insert(at, slot)

    def insert(self, at: int, slot: int) -> None:
        """Add a slot at that position among the others."""
        ends = self._ends
        place = len(ends) - 1 if at == ends[-1] else bisect_right(ends, at)
        self._hold(place)
        self._held.insert(at - self._start, slot)
        self._changed = True
        self._stop += 1
        for later in range(place, len(ends)):
            ends[later] += 1
        if len(self._held) > self.length:
            self._split(place)

    def settle(self) -> None:
        """Write what is changed, so that no question has to."""
        if self._changed:
            self._pages.write(self._number, self._held.tobytes())
            self._changed = False

    def _split(self, place: int) -> None:
        """Have the second half of the page that is held in one of its own."""
        held, half = self._held, len(self._held) // 2
        number = self._new_page(place + 1)
        self._ends.insert(place, self._start + half)
        self._pages.write(number, held[half:].tobytes())
        del held[half:]
        self._stop = self._start + half

    def _new_page(self, place: int) -> int:
        number = len(self._numbers)
        self._pages.write(number, bytes(PAGE))  # so that it is known now that there is room
        self._numbers.insert(place, number)
        return number

    def _page_of(self, at: int) -> tuple[int, array[int]]:
        if not self._start <= at < self._stop:
            self._hold(bisect_right(self._ends, at))
        return self._start, self._held

    def _hold(self, place: int) -> None:
        """Have the page in memory."""
        number = self._numbers[place]
        if number == self._number:
            return
        self.settle()
        self._start, self._stop = self._ends[place - 1] if place else 0, self._ends[place]
        self._held, self._number = array("I"), number
        self._held.frombytes(self._pages.read(number, (self._stop - self._start) * self._held.itemsize))
