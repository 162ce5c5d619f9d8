"""Which slots a text may have, in a room on the disk: what `SlotsByHash` answers, in memory of constant size."""

from __future__ import annotations

import errno
import sys
from array import array
from typing import TYPE_CHECKING

from sagaz_core.storage._room import PAGE, OutOfRoom, Pages
from sagaz_core.storage._room_words import Words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.storage._room import Room

_PAIR = 8
_MOST = PAGE // _PAIR
_TOGETHER = 256
_LOW = 2**32 - 1
_DEEPEST = 20


class SlotsInRoom:
    """A hash table that grows page by page: extendible hashing (Fagin, Nievergelt, Pippenger and Strong, 1979).

    A bucket is a page of pairs, of a slot and the lower half of its hash. The slots that were added last are in
    `_recent`, by their hashes, and go to the pages together.
    """

    __slots__ = ("_count", "_counts", "_depths", "_directory", "_hashes", "_pages", "_recent")

    def __init__(self, room: Room, hashes: Iterable[int]) -> None:
        self._hashes, self._count = Words(room, "q"), 0
        self._pages = Pages(room)
        self._directory = array("I", [0])
        self._depths, self._counts = bytearray(1), array("I", [0])
        self._recent: dict[int, int] = {}
        for hashed in hashes:
            self._add(hashed)

    def append(self, text: str) -> None:
        """Say that the next slot has this text."""
        self._add(hash(text))

    def _add(self, hashed: int) -> None:
        if len(self._recent) == _TOGETHER or hashed in self._recent:
            self._put_away()
        self._recent[hashed] = self._count
        self._hashes.append(hashed)
        self._count += 1

    def find(self, text: str) -> list[int]:
        """Return the slots that may have this text."""
        hashed = hash(text)
        found = [self._recent[hashed]] if hashed in self._recent else []
        held, tag = self._held(self._bucket(hashed)), (hashed & _LOW).to_bytes(4, sys.byteorder)
        at = held.find(tag)
        while at >= 0:
            if at % _PAIR == 0:
                found.append(int.from_bytes(held[at + 4 : at + _PAIR], sys.byteorder))
            at = held.find(tag, at + 1)
        return found

    def keep(self, slots: Iterable[int]) -> SlotsInRoom:
        """Return a table of these slots alone, which have new numbers in this order."""
        return SlotsInRoom(self._hashes.room, map(self._hashes.__getitem__, slots))

    def _bucket(self, hashed: int) -> int:
        return self._directory[hashed & (len(self._directory) - 1)]

    def _held(self, number: int) -> bytes:
        """Return the pairs in the bucket."""
        size = _PAIR * self._counts[number]
        return self._pages.read(number, size) if size else b""

    def _put_away(self) -> None:
        """Put the slots that were added last into their buckets."""
        buckets: dict[int, array[int]] = {}
        for hashed, slot in self._recent.items():
            number = self._bucket(hashed)
            if number not in buckets:
                buckets[number] = array("I")
            buckets[number].extend((hashed & _LOW, slot))
        for number, pairs in buckets.items():
            self._put(number, pairs)
        self._recent.clear()

    def _put(self, number: int, pairs: array[int]) -> None:
        count = self._counts[number] + len(pairs) // 2
        if count > _MOST:
            self._split(number, array("I", self._held(number)) + pairs)
        else:
            self._pages.write(number, pairs.tobytes(), _PAIR * self._counts[number])
            self._counts[number] = count

    def _split(self, number: int, pairs: array[int]) -> None:
        """Put the pairs into this bucket and a new one, by one more bit of their hashes."""
        other, depth = len(self._depths), self._depths[number]
        if depth == _DEEPEST:
            raise OutOfRoom(errno.EFBIG, "too many texts have the same hash")
        bit = 1 << depth
        if bit == len(self._directory):
            self._directory += self._directory
        for place in range((pairs[0] & (bit - 1)) + bit, len(self._directory), 2 * bit):
            self._directory[place] = other
        self._depths[number] = depth + 1
        self._depths.append(depth + 1)
        self._counts[number] = 0
        self._counts.append(0)
        self._pages.write(other, b"")
        stay, go = array("I"), array("I")
        for at in range(0, len(pairs), 2):
            (go if pairs[at] & bit else stay).extend(pairs[at : at + 2])
        self._put(number, stay)
        self._put(other, go)
