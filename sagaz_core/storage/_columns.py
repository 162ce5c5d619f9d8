"""Records of one saga in a few machine words each: where each is found, and what they are found by.

A record's number in order of arrival is its *slot*; what it says is read again from where it is stored.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any
from zlib import crc32

import ormsgpack

from sagaz_core.storage._room_order import Order
from sagaz_core.storage._room_words import Field, Words
from sagaz_core.storage._rows import EventEntry, Row, event_from_row
from sagaz_core.storage._timeline import add_floors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sagaz_core.storage._packed_rows import PackedRow
    from sagaz_core.storage._room import Room

_FREE = -1
_BEFORE_ALL = -(2**63)
_GROUP = 128
_NEAR = 32


class Line:
    """Slots in order, which starts with `seq`: found by `seq` and by time as in `Timeline`, of microseconds.

    A floor is that of `_GROUP` slots that follow each other. Where there is a `room`, an order that is none of
    arrival is in there.
    """

    __slots__ = ("_asked", "_fell", "_floors", "_moments", "_newest", "_room", "_seqs", "order")

    def __init__(self, seqs: Any, moments: Any) -> None:
        self.order: Any = range(0)
        self._seqs, self._moments = seqs, moments
        self._room: Room | None = None
        self._floors = array("q")
        self._asked = -1
        self._newest = _BEFORE_ALL
        self._fell = False  # while times only rise a bisection over them is right

    def append(self, slot: int, moment: int) -> None:
        """Add a slot behind all others."""
        order = self.order
        if moment < self._newest:
            self._fell = True
        self._newest = moment
        if type(order) is range and slot == order.stop:
            self.order = range(order.start, slot + 1)
        else:
            self._own_order().append(slot)

    def insert(self, place: int, slot: int) -> None:
        """Add a slot at that place among the others."""
        self._own_order().insert(place, slot)
        self._change()

    def keep(self, order: Iterable[int]) -> None:
        """Have only these of the slots, which are in order."""
        self.order = order if type(order) is range else self._listed(order)
        self._change()

    def move(self, seqs: Any, moments: Any, room: Room) -> None:
        """Go on with the same slots of those columns."""
        self._seqs, self._moments, self._room = seqs, moments, room
        if type(self.order) is not range:
            self.order = self._listed(self.order)

    def _change(self) -> None:
        del self._floors[:]
        self._fell = True

    def _own_order(self) -> Any:
        if type(self.order) is range:
            self.order = self._listed(self.order)
        return self.order

    def _listed(self, slots: Iterable[int]) -> Any:
        return array("I", slots) if self._room is None else Order(self._room, slots)

    def each(self, column: Any, start: int = 0, end: int | None = None) -> Iterable[int]:
        """Return what the column says of the slots at these positions, in order."""
        order, stop = self.order, len(self.order) if end is None else end
        if type(order) is range:
            return between(column, order.start + start, order.start + stop)
        return map(column.__getitem__, between(order, start, stop))

    def position(self, slot: int) -> int:
        """Return where the slot is."""
        order = self.order
        if type(order) is range:
            return slot - order.start
        position = self._asked + 1  # those that are asked for follow each other
        if position >= len(order) or order[position] != slot:
            position = self.below(self._seqs[slot])
            while order[position] != slot:
                position += 1
        self._asked = position
        return position

    def below(self, seq: int, before: int | None = None) -> int:
        """Return the position of the first slot whose `seq` is not below this one; it is likely near `before`."""
        order, seqs, near, end = self.order, self._seqs, 0, before
        if before is not None and before > _NEAR and seqs[order[before - _NEAR]] < seq:
            near = before - _NEAR
        return bisect_left(order, seq, near, end, key=seqs.__getitem__)

    def above(self, seq: int) -> int:
        """Return the position behind the last slot whose `seq` is not above this one."""
        return bisect_right(self.order, seq, key=self._seqs.__getitem__)

    def after(self, until: int) -> int:
        """Return the position behind the last slot whose time is not after `until`."""
        order, moments, floors = self.order, self._moments, self._floors
        if not self._fell:
            return bisect_right(order, until, key=moments.__getitem__)
        for done in range(_GROUP * len(floors), len(order) - _GROUP + 1, _GROUP):
            add_floors(floors, [min(self.each(moments, done, done + _GROUP))])
        for end in (len(order), _GROUP * bisect_right(floors, until)):  # those without a floor, and those with one
            for at in range(end, max(0, end - _GROUP), -1):
                if moments[order[at - 1]] <= until:
                    return at
        return 0

    def end(self, until: int | None, max_seq: int | None) -> int:
        """Return the position behind the last slot that may be asked for."""
        end = len(self.order) if until is None else self.after(until)
        return end if max_seq is None else min(end, self.above(max_seq))

    def back(self, end: int) -> Iterator[int]:
        """Iterate the slots before that position, the last one first."""
        return map(self.order.__getitem__, range(end - 1, -1, -1))


def between(column: Any, start: int, stop: int) -> Iterable[int]:
    """Return the column's words from one slot up to another."""
    found: Iterable[int] = column[start:stop] if isinstance(column, array | range) else column.between(start, stop)
    return found


class SlotsByHash:
    """Which slots a text may have, by its hash: a table with open addressing, of one word for 1.5 to 3 slots."""

    __slots__ = ("_table", "hashes")

    def __init__(self) -> None:
        self.hashes = array("q")
        self._table = array("i", [_FREE]) * 8

    def append(self, text: str) -> None:
        """Say that the next slot has this text."""
        self.hashes.append(hash(text))
        if 3 * len(self.hashes) > 2 * len(self._table):
            self._table = array("i", [_FREE]) * (2 * len(self._table))
            for slot in range(len(self.hashes)):
                self._put(slot)
        else:
            self._put(len(self.hashes) - 1)

    def find(self, text: str) -> Iterator[int]:
        """Iterate the slots that may have this text."""
        table, hashes, wanted = self._table, self.hashes, hash(text)
        mask = len(table) - 1
        at = wanted & mask
        while (slot := table[at]) != _FREE:
            if hashes[slot] == wanted:
                yield slot
            at = (at + 1) & mask

    def keep(self, slots: Iterable[int]) -> SlotsByHash:
        """Return a table of these slots alone, which have new numbers in this order."""
        made = SlotsByHash()
        made.hashes.extend(self.hashes[slot] for slot in slots)
        while 3 * len(made.hashes) > 2 * len(made._table):
            made._table *= 2
        for slot in range(len(made.hashes)):
            made._put(slot)
        return made

    def _put(self, slot: int) -> None:
        table, mask = self._table, len(self._table) - 1
        at = self.hashes[slot] & mask
        while table[at] != _FREE:
            at = (at + 1) & mask
        table[at] = slot


class Columns:
    """Where each record is. `read` returns a row's bytes by their place, size, checksum and the record's `seq`.

    Where a store's rows do not end with the place of the data, the places are here. `count` is of all slots. `rows` has
    the words of all columns where these are in a room, and not in memory.
    """

    __slots__ = ("_at", "_moments", "_read", "_row_sizes", "_sums", "count", "line", "places", "rows", "seqs", "sizes")

    _NAMES: tuple[str, ...] = ("seqs", "_moments", "_at", "_row_sizes", "_sums", "places", "sizes")

    def __init__(self, read: Callable[[int, int, int, int], bytes], *, placed: bool) -> None:
        self._read = read
        self.rows: Words | None = None
        self.count = 0
        self.seqs: Any = array("q")
        self._moments: Any = array("q")
        self._at: Any = array("q")
        self._row_sizes: Any = array("I")
        self._sums: Any = array("I")
        self.sizes: Any = array("I")
        self.places: Any = array("q") if placed else None
        self.line = Line(self.seqs, self._moments)

    def __len__(self) -> int:
        return len(self.line.order)

    def _append(self, seq: int, moment: int, packed: PackedRow, start: int, place: int, *more: int) -> int:
        row, at, data = packed
        if self.rows is not None:
            self.rows.extend((seq, moment, start + at, len(data), crc32(data), place, row[-1], *more))
            self.count += 1
            return self.count - 1
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
        self.count += 1
        return self.count - 1

    def move_into(self, room: Room) -> None:
        """Have the words in there. Raises `OutOfRoom`, and is of no use any more then."""
        self._put_into(room, zip(*(getattr(self, name) for name in self._NAMES), strict=True))

    def settle(self) -> None:
        """Have all of it where it belongs, so that no question writes. Raises `OutOfRoom`; see `move_into`."""
        if isinstance(self.line.order, Order):
            self.line.order.settle()

    def _put_into(self, room: Room, rows: Iterable[Iterable[int]]) -> None:
        width = len(self._NAMES)
        self.rows = words = Words(room, "q", width=width)
        for row in rows:
            words.extend(row)
        for at, name in enumerate(self._NAMES):
            setattr(self, name, Field(words, width, at))
        self.line.move(self.seqs, self._moments, room)

    def span(self, slot: int) -> tuple[int, int, int]:
        """Return where the slot's row is, its size and its checksum."""
        return self._at[slot], self._row_sizes[slot], self._sums[slot]

    def spans(self, slot: int) -> Sequence[int]:
        """Return the same, and where the slot's data are, where that is known here, and their size."""
        if self.rows is not None:
            row: Sequence[int] = self.seqs.row(slot)
            return row[2:7]
        place = 0 if self.places is None else self.places[slot]
        return self._at[slot], self._row_sizes[slot], self._sums[slot], place, self.sizes[slot]

    def row(self, slot: int) -> Row:
        """Return what is stored, with the place of the data. Raises `CorruptDataError`."""
        row: Row = ormsgpack.unpackb(self._read(*self.span(slot), self.seqs[slot]))
        if self.places is not None:
            row.append(self.places[slot])
        return row


class EventColumns(Columns):
    """A saga's events."""

    __slots__ = ("_last",)

    def __init__(self, read: Callable[[int, int, int, int], bytes], *, placed: bool) -> None:
        super().__init__(read, placed=placed)
        self._last = _BEFORE_ALL

    def add(self, packed: PackedRow, start: int = 0, place: int = 0) -> None:
        """Take in an event. `start` is where the bytes begin that its row was found in, `place` where its data are."""
        seq, moment, line = packed.row[0], packed.row[1], self.line
        slot = self._append(seq, moment, packed, start, place)
        if seq > self._last:
            self._last = seq
            line.append(slot, moment)
        else:
            line.insert(line.below(seq, len(line.order)), slot)

    def find(self, seq: int) -> int | None:
        """Return the slot of the event with that `seq`."""
        order = self.line.order
        if seq > self._last:
            return None
        slot: int = order[self.line.below(seq)]
        return slot if self.seqs[slot] == seq else None

    def entry(self, slot: int) -> EventEntry:
        """Return what is known of the event."""
        return event_from_row(self.row(slot))

    def between(self, after_seq: int, until: int | None, limit: int | None = None) -> Sequence[int]:
        """Return the slots of what `SnapshotStorage.read_events` asks for, of the first `limit`."""
        line = self.line
        start, end = line.above(after_seq), line.end(until, None)
        found: Sequence[int] = line.order[start : end if limit is None else min(end, start + limit)]
        return found
