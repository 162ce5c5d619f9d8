"""Records of one saga in a few machine words each: where each is found, and what they are found by.

A record's number in order of arrival is its *slot*; what it says is read again from where it is stored.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any
from zlib import crc32

import ormsgpack

from sagaz_core.storage._rows import EventEntry, Row, event_from_row
from sagaz_core.storage._timeline import add_floors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sagaz_core.storage._packed_rows import PackedRow

_FREE = -1


class Line:
    """Slots in order, which starts with `seq`: found by `seq` and by time as in `Timeline`, of microseconds."""

    __slots__ = ("_fell", "_floors", "_moments", "_seqs", "order")

    def __init__(self, seqs: Sequence[int], moments: Sequence[int], order: Sequence[int] = range(0)) -> None:
        self.order: Any = order
        self._seqs, self._moments = seqs, moments
        self._floors = array("q")
        self._fell = False  # while times only rise they are the floors

    def append(self, slot: int) -> None:
        """Add a slot behind all others."""
        order, moments = self.order, self._moments
        if order and moments[order[-1]] > moments[slot]:
            self._fell = True
        if type(order) is range and slot == order.stop:
            self.order = range(order.start, slot + 1)
        else:
            self._own_order().append(slot)

    def insert(self, place: int, slot: int) -> None:
        """Add a slot at that place among the others."""
        self._own_order().insert(place, slot)
        self._change()

    def keep(self, order: Sequence[int]) -> None:
        """Have only these of the slots, which are in order."""
        self.order = order
        self._change()

    def _change(self) -> None:
        del self._floors[:]
        self._fell = True

    def _own_order(self) -> Any:
        if type(self.order) is range:
            self.order = array("I", self.order)
        return self.order

    def below(self, seq: int) -> int:
        """Return the position of the first slot whose `seq` is not below this one."""
        return bisect_left(self.order, seq, key=self._seqs.__getitem__)

    def above(self, seq: int) -> int:
        """Return the position behind the last slot whose `seq` is not above this one."""
        return bisect_right(self.order, seq, key=self._seqs.__getitem__)

    def after(self, until: int) -> int:
        """Return the position behind the last slot whose time is not after `until`."""
        if not self._fell:
            return bisect_right(self.order, until, key=self._moments.__getitem__)
        if len(self._floors) < len(self.order):
            add_floors(self._floors, map(self._moments.__getitem__, self.order[len(self._floors) :]))
        return bisect_right(self._floors, until)

    def end(self, until: int | None, max_seq: int | None) -> int:
        """Return the position behind the last slot that may be asked for."""
        end = len(self.order) if until is None else self.after(until)
        return end if max_seq is None else min(end, self.above(max_seq))

    def back(self, end: int, until: int | None) -> Iterator[int]:
        """Iterate the slots before that position whose time is not after `until`, the last one first."""
        order, moments = self.order, self._moments
        while end:
            end -= 1
            if until is None or moments[order[end]] <= until:
                yield order[end]


class SlotsByHash:
    """Which slots a text may have, by its hash: a table with open addressing, of one word for 1.5 to 3 slots."""

    __slots__ = ("_hashes", "_table")

    def __init__(self) -> None:
        self._hashes = array("q")
        self._table = array("i", [_FREE]) * 8

    def append(self, text: str) -> None:
        """Say that the next slot has this text."""
        self._hashes.append(hash(text))
        if 3 * len(self._hashes) > 2 * len(self._table):
            self._table = array("i", [_FREE]) * (2 * len(self._table))
            for slot in range(len(self._hashes)):
                self._put(slot)
        else:
            self._put(len(self._hashes) - 1)

    def find(self, text: str) -> Iterator[int]:
        """Iterate the slots that may have this text."""
        table, hashes, wanted = self._table, self._hashes, hash(text)
        mask = len(table) - 1
        at = wanted & mask
        while (slot := table[at]) != _FREE:
            if hashes[slot] == wanted:
                yield slot
            at = (at + 1) & mask

    def keep(self, slots: Iterable[int]) -> SlotsByHash:
        """Return a table of these slots alone, which have new numbers in this order."""
        made = SlotsByHash()
        made._hashes.extend(self._hashes[slot] for slot in slots)
        while 3 * len(made._hashes) > 2 * len(made._table):
            made._table *= 2
        for slot in range(len(made._hashes)):
            made._put(slot)
        return made

    def _put(self, slot: int) -> None:
        table, mask = self._table, len(self._table) - 1
        at = self._hashes[slot] & mask
        while table[at] != _FREE:
            at = (at + 1) & mask
        table[at] = slot


class Columns:
    """Where each record is. `read` returns a row's bytes by their place, size, checksum and the record's `seq`.

    Where a store's rows do not end with the place of the data, the places are here.
    """

    __slots__ = ("_at", "_moments", "_read", "_row_sizes", "_sums", "line", "places", "seqs", "sizes")

    def __init__(self, read: Callable[[int, int, int, int], bytes], *, placed: bool) -> None:
        self._read = read
        self.seqs = array("q")
        self._moments = array("q")
        self._at = array("q")
        self._row_sizes = array("I")
        self._sums = array("I")
        self.sizes = array("I")
        self.places: array[int] | None = array("q") if placed else None
        self.line = Line(self.seqs, self._moments)

    def __len__(self) -> int:
        return len(self.line.order)

    def _append(self, seq: int, moment: int, packed: PackedRow, start: int, place: int) -> int:
        row, at, data = packed
        self.seqs.append(seq)
        self._moments.append(moment)
        self._at.append(start + at)
        self._row_sizes.append(len(data))
        self._sums.append(crc32(data))
        if self.places is None:
            self.sizes.append(row[-2])
        else:
            self.sizes.append(row[-1])
            self.places.append(place)
        return len(self.seqs) - 1

    def span(self, slot: int) -> tuple[int, int, int]:
        """Return where the slot's row is, its size and its checksum."""
        return self._at[slot], self._row_sizes[slot], self._sums[slot]

    def place(self, slot: int) -> tuple[int, int]:
        """Return where the slot's data are, where that is known here, and their size."""
        return 0 if self.places is None else self.places[slot], self.sizes[slot]

    def row(self, slot: int) -> Row:
        """Return what is stored, with the place of the data. Raises `CorruptDataError`."""
        row: Row = ormsgpack.unpackb(self._read(*self.span(slot), self.seqs[slot]))
        if self.places is not None:
            row.append(self.places[slot])
        return row


class EventColumns(Columns):
    """A saga's events."""

    __slots__ = ()

    def add(self, packed: PackedRow, start: int = 0, place: int = 0) -> None:
        """Take in an event. `start` is where the bytes begin that its row was found in, `place` where its data are."""
        seq, line = packed.row[0], self.line
        last = self.seqs[line.order[-1]] if line.order else -1
        slot = self._append(seq, packed.row[1], packed, start, place)
        if seq > last:
            line.append(slot)
        else:
            line.insert(line.below(seq), slot)

    def find(self, seq: int) -> int | None:
        """Return the slot of the event with that `seq`."""
        order = self.line.order
        if not order or seq > self.seqs[order[-1]]:
            return None
        slot: int = order[self.line.below(seq)]
        return slot if self.seqs[slot] == seq else None

    def entry(self, slot: int) -> EventEntry:
        """Return what is known of the event."""
        return event_from_row(self.row(slot))

    def between(self, after_seq: int, until: int | None) -> Sequence[int]:
        """Return the slots of what `SnapshotStorage.read_events` asks for."""
        line = self.line
        found: Sequence[int] = line.order[line.above(after_seq) : line.end(until, None)]
        return found
