"""Numbers in a room on the disk, of which a page or two are in memory however many they are.

They take the place of an `array`, and answer as it does what columns ask.
"""

from __future__ import annotations

from array import array
from itertools import chain
from typing import TYPE_CHECKING

from sagaz_core.storage._room import PAGE, Pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sagaz_core.storage._room import Room


class Words:
    """Numbers in order, in pages of `length` of them.

    In memory are those behind the last whole page (`tail`), and the page that was asked for last (`held`). `width` is
    of how many numbers a row is: a page has whole rows.
    """

    __slots__ = ("_pages", "held", "length", "number", "room", "tail", "typecode", "whole")

    def __init__(self, room: Room, typecode: str, words: Iterable[int] = (), *, width: int = 1) -> None:
        self.room, self.typecode = room, typecode
        self._pages = Pages(room)
        self.tail = array(typecode)
        self.length = PAGE // self.tail.itemsize // width * width
        self.whole = 0
        self.number, self.held = -1, self.tail
        for word in words:
            self.append(word)

    def __len__(self) -> int:
        return self.whole * self.length + len(self.tail)

    def page(self, number: int) -> array[int]:
        """Return the words of a page."""
        if number == self.whole:
            return self.tail
        if number != self.number:
            held = array(self.typecode)
            held.frombytes(self._pages.read(number, self.length * held.itemsize))
            self.number, self.held = number, held
        return self.held

    def __getitem__(self, at: int) -> int:
        number = at // self.length
        page = self.held if number == self.number else self.page(number)
        return page[at - number * self.length]

    def __setitem__(self, at: int, word: int) -> None:
        number, within = divmod(at, self.length)
        page = self.page(number)
        page[within] = word
        if number != self.whole:
            self._pages.write(number, page[within : within + 1].tobytes(), within * page.itemsize)

    def __iter__(self) -> Iterator[int]:
        return self.between(0, len(self))

    def between(self, start: int, stop: int) -> Iterator[int]:
        """Iterate the words from one position up to another."""
        return chain.from_iterable(self._parts(start, stop, 1))

    def field(self, start: int, stop: int, width: int) -> Iterator[int]:
        """Iterate every `width`th word of these."""
        return chain.from_iterable(self._parts(start, stop, width))

    def _parts(self, start: int, stop: int, width: int) -> Iterator[array[int]]:
        while start < stop:
            number, within = divmod(start, self.length)
            yield self.page(number)[within : within + stop - start : width]
            start += self.length - within + within % width

    def pages_back(self, stop: int) -> Iterator[array[int]]:
        """Iterate the words before that position by page, the last page first."""
        while stop:
            number, last = divmod(stop - 1, self.length)
            yield self.page(number)[: last + 1]
            stop -= last + 1

    def append(self, word: int) -> None:
        """Add a word."""
        self.tail.append(word)
        if len(self.tail) == self.length:
            self._turn()

    def extend(self, row: Iterable[int]) -> None:
        """Add a row."""
        self.tail.extend(row)
        if len(self.tail) == self.length:
            self._turn()

    def _turn(self) -> None:
        self._pages.write(self.whole, self.tail.tobytes())
        self.whole += 1
        self.tail = array(self.typecode)


class Field:
    """A column of rows, which lie one after the other in `words`."""

    __slots__ = ("_at", "_rows", "_width", "_words")

    def __init__(self, words: Words, width: int, at: int) -> None:
        self._words, self._width, self._at = words, width, at
        self._rows = words.length // width

    def __getitem__(self, slot: int) -> int:
        words, rows = self._words, self._rows
        number = slot // rows
        page = words.held if number == words.number else words.page(number)
        return page[(slot - number * rows) * self._width + self._at]

    def __setitem__(self, slot: int, word: int) -> None:
        number, within = divmod(slot, self._rows)
        self._words[number * self._words.length + within * self._width + self._at] = word

    def row(self, slot: int) -> array[int]:
        """Return the words of all columns."""
        number, within = divmod(slot, self._rows)
        return self._words.page(number)[within * self._width : (within + 1) * self._width]

    def between(self, start: int, stop: int) -> Iterator[int]:
        """Iterate the words from one slot up to another."""
        width = self._width
        return self._words.field(start * width + self._at, stop * width, width)
