"""A saga's snapshots in a few machine words each, and what is asked of them: all answers are slots."""

from __future__ import annotations

from array import array
from itertools import chain, takewhile
from typing import TYPE_CHECKING, Any

from sagaz_core.storage._checks import LONG_AGO
from sagaz_core.storage._columns import Columns, Line, SlotsByHash, between
from sagaz_core.storage._room_slots import SlotsInRoom
from sagaz_core.storage._room_words import Words
from sagaz_core.storage._rows import Row, SnapshotEntry, micros, snapshot_from_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sagaz_core.storage._packed_rows import PackedRow
    from sagaz_core.storage._room import Room

_NEVER = 2**63 - 1
_HIDDEN = micros(LONG_AGO)
_GONE = -(2**63)
_NO_BASE = -(2**63)
_WORTH_KEEPING = 64


def lowest(one: int | None, other: int | None) -> int | None:
    """Return the lower one of those that there are."""
    return other if one is None else one if other is None else min(one, other)


class SnapshotColumns(Columns):
    """A saga's snapshots. `first_end` is the earliest time at which one of them ends, in microseconds."""

    __slots__ = ("_bases", "_by_hash", "_ends", "_last", "_phases", "_steps", "first_end")

    _NAMES = (*Columns._NAMES, "_ends", "_bases")

    def __init__(self, read: Callable[[int, int, int, int], bytes], *, placed: bool) -> None:
        super().__init__(read, placed=placed)
        self._ends: Any = array("q")
        self._bases: Any = array("q")
        self._steps: Any = array("I")
        self._phases: Any = array("I")
        self._by_hash: SlotsByHash | SlotsInRoom = SlotsByHash()
        self._last: tuple[int, str] | None = None
        self.first_end: int | None = None

    def add(self, packed: PackedRow, start: int = 0, place: int = 0) -> None:
        """Take in a snapshot; see `EventColumns.add`."""
        row = packed.row
        snapshot_id, seq, moment, end, base = row[0], row[4], row[7], row[8], row[9]
        row_end, row_base = _NEVER if end is None else end, _NO_BASE if base is None else base
        slot = self._append(seq, moment, packed, start, place, row_end, row_base)
        if self.rows is None:
            self._ends.append(row_end)
            self._bases.append(row_base)
        self._steps.append(_code(row[2]))
        self._phases.append(_code(row[5]))
        self._by_hash.append(snapshot_id)
        if end is not None and (self.first_end is None or end < self.first_end):
            self.first_end = end
        if self._last is None or (seq, snapshot_id) > self._last:
            self._last = seq, snapshot_id
            self.line.append(slot, moment)
        else:
            self.line.insert(self._place(seq, snapshot_id), slot)

    def move_into(self, room: Room) -> None:
        """See `Columns.move_into`."""
        super().move_into(room)
        if isinstance(self._by_hash, SlotsByHash):
            self._by_hash = SlotsInRoom(room, self._by_hash.hashes)
        self._steps, self._phases = Words(room, "I", self._steps), Words(room, "I", self._phases)

    @property
    def last_id(self) -> str | None:
        """The id of the last one in order."""
        return None if self._last is None else self._last[1]

    # ---- what is stored

    def id_of(self, slot: int) -> str:
        """Return the snapshot's id."""
        name: str = self.row(slot)[0]
        return name

    def entry(self, slot: int) -> SnapshotEntry:
        """Return what is known of the snapshot."""
        return self.entry_of(slot, self.row(slot))

    def entry_of(self, slot: int, row: Row) -> SnapshotEntry:
        """Return the same of its row."""
        entry = snapshot_from_row(row)
        return entry._replace(retention_until=LONG_AGO) if self._ends[slot] == _HIDDEN else entry

    def find(self, snapshot_id: str) -> int | None:
        """Return the slot of the snapshot with that id."""
        for slot in self._by_hash.find(snapshot_id):
            if self._ends[slot] != _GONE and self.id_of(slot) == snapshot_id:
                return slot
        return None

    # ---- questions

    def expired(self, slot: int, now: int) -> bool:
        """Whether the snapshot is no longer served at that time."""
        return bool(self._ends[slot] < now)

    def latest(
        self, step: str | None, phase: str | None, until: int | None, max_seq: int | None, now: int
    ) -> int | None:
        """See `SnapshotStorage.latest_snapshot`."""
        end, ends, moments = self.line.end(until, max_seq), self._ends, self._moments
        any_kind = step is None and phase is None
        slots: Iterable[int] = self.line.back(end) if any_kind else self._likely_of(step, phase, end)
        for slot in slots:
            fits = ends[slot] >= now and (until is None or moments[slot] <= until)
            if fits and (any_kind or self._is_of(slot, step, phase)):
                return slot
        return None

    def _likely_of(self, step: str | None, phase: str | None, end: int) -> Iterable[int]:
        """Iterate the slots before that position that may be of that step and phase, the last one first."""
        codes, code = (self._phases, _code(phase)) if step is None else (self._steps, _code(step))
        order = self.line.order
        if type(order) is range:
            return takewhile(order.start.__le__, _places_back(codes, code, order.start + end))
        return chain.from_iterable(_slots_back(codes, code, page[::-1]) for page in _pages_back(order, end))

    def _is_of(self, slot: int, step: str | None, phase: str | None) -> bool:
        if phase is not None and self._phases[slot] != _code(phase):
            return False
        row = self.row(slot)
        return bool((step is None or row[2] == step) and (phase is None or row[5] == phase))

    def bases(self, slot: int) -> Sequence[int]:
        """Return what is needed to read the snapshot, in order."""
        base = self._bases[slot]
        if base == _NO_BASE:
            return ()
        line = self.line
        own = line.position(slot)
        found: Sequence[int] = line.order[line.below(base, own) : own]
        return found

    def base(self, slot: int) -> int | None:
        """Return the lowest `seq` that is needed to read the snapshot, `None` when it stands alone."""
        base = self._bases[slot]
        return None if base == _NO_BASE else base

    def since(self, seq: int) -> Sequence[int]:
        """Return those that are not below that `seq`."""
        found: Sequence[int] = self.line.order[self.line.below(seq) :]
        return found

    def bases_of_new(self, entry: SnapshotEntry) -> Sequence[int]:
        """Return the same for a snapshot that is not here yet."""
        if entry.base_seq is None:
            return ()
        line = self.line
        found: Sequence[int] = line.order[line.below(entry.base_seq) : self._place(entry.seq, entry.snapshot_id)]
        return found

    def page(self, after: tuple[int, str], limit: int, now: int) -> list[int]:
        """Return the next snapshots that are served, one more than `limit` when there are more."""
        order, ends, found = self.line.order, self._ends, list[int]()
        for place in range(self._place(after[0], after[1] + "\0"), len(order)):
            if ends[order[place]] >= now:
                found.append(order[place])
                if len(found) > limit:
                    break
        return found

    def served(self, now: int) -> int:
        """Return how many snapshots have not expired."""
        return self._served(len(self), now)

    def below(self, below_seq: int, now: int, needed: int | None = None) -> tuple[Sequence[int], Sequence[int], int]:
        """Return those below that `seq` which go, those which stay as bases, and how many were served.

        `needed` is the lowest `seq` that snapshots need which are elsewhere.
        """
        order, ends = self.line.order, self._ends
        below = self.line.below(below_seq)
        first = lowest(needed, self.needed(now, below_seq))
        start = below if first is None else min(below, self.line.below(first))
        hidden = [slot for slot in order[start:below] if ends[slot] != _HIDDEN]
        return order[:start], hidden, self._served(below, now)

    def needed(self, now: int, from_seq: int | None = None) -> int | None:
        """Return the lowest `seq` that those need which are served, and not below that `seq`."""
        line, start = self.line, 0 if from_seq is None else self.line.below(from_seq)
        both = zip(line.each(self._bases, start), line.each(self._ends, start), strict=True)
        return min((base for base, end in both if base != _NO_BASE and end >= now), default=None)

    def prunable(self, now: int, needed: int | None = None) -> list[int]:
        """Return those that have expired and that no other one needs, the oldest first. For `needed` see `below`."""
        found = list[int]()
        for slot in reversed(self.line.order):
            if self._ends[slot] < now:
                if needed is None or self.seqs[slot] < needed:
                    found.append(slot)
            else:
                needed = lowest(needed, self.base(slot))
        return found[::-1]

    # ---- deleting

    def drop(self, gone: Iterable[str], hidden: Iterable[str]) -> int:
        """Forget the snapshots in `gone`, serve those in `hidden` no longer, and return the bytes of the first."""
        for slot in map(self._surely, hidden):
            if slot is not None:
                self._ends[slot] = _HIDDEN
        freed = 0
        dropped = {slot for slot in map(self._surely, gone) if slot is not None}
        for slot in dropped:
            self._ends[slot] = _GONE
            freed += self.sizes[slot] + 100
        if dropped:
            self._forget(dropped)
        first_end = min(self.line.each(self._ends), default=_NEVER)
        self.first_end = None if first_end == _NEVER else first_end
        return freed

    def _surely(self, snapshot_id: str) -> int | None:
        """Return the slot of a snapshot that there is: when only one can have its id, that needs not be read."""
        slots = [slot for slot in self._by_hash.find(snapshot_id) if self._ends[slot] != _GONE]
        return slots[0] if len(slots) == 1 else self.find(snapshot_id)

    def _forget(self, dropped: set[int]) -> None:
        line = self.line
        if dropped.issuperset(line.order[: len(dropped)]):  # the oldest, as nearly always
            line.keep(between(line.order, len(dropped), len(line.order)))
        else:
            line.keep(slot for slot in line.order if slot not in dropped)
        if self.count > max(_WORTH_KEEPING, 2 * len(line.order)):
            self._move_together()
        order = self.line.order
        self._last = (self.seqs[order[-1]], self.id_of(order[-1])) if order else None

    def _move_together(self) -> None:
        """Have the columns without what is gone."""
        order, rows = self.line.order, self.rows
        self.count = len(order)
        self._by_hash = self._by_hash.keep(order)
        if rows is not None:
            room = rows.room
            self.line = Line(self.seqs, self._moments)
            self._put_into(room, map(self.seqs.row, order))
            self._steps, self._phases = (
                Words(room, "I", map(codes.__getitem__, order)) for codes in (self._steps, self._phases)
            )
        else:
            for name in (*self._NAMES, "_steps", "_phases"):
                column = getattr(self, name)
                if column is not None:
                    setattr(self, name, array(column.typecode, map(column.__getitem__, order)))
            self.line = Line(self.seqs, self._moments)
        self.line.keep(range(self.count))

    # ---- places in order

    def _place(self, seq: int, snapshot_id: str) -> int:
        """Return the position of the first one that does not come before this place."""
        order, seqs = self.line.order, self.seqs
        place = self.line.below(seq, len(order))
        while place < len(order) and seqs[order[place]] == seq and self.id_of(order[place]) < snapshot_id:
            place += 1
        return place

    def _served(self, count: int, now: int) -> int:
        """Return how many of the first ones have not expired."""
        if self.first_end is None or self.first_end >= now:
            return count
        return sum(end >= now for end in self.line.each(self._ends, 0, count))


def _code(text: object) -> int:
    return hash(text) & 0xFFFFFFFF


def _pages_back(column: Any, end: int) -> Iterable[array[int]]:
    return [column[:end]] if isinstance(column, array) else column.pages_back(end)


def _slots_back(codes: Any, code: int, slots: array[int]) -> Iterable[int]:
    """Iterate those of the slots that have the code."""
    first, last = min(slots, default=0), max(slots, default=0)
    if last - first < 4 * len(slots) and code not in between(codes, first, last + 1):
        return ()
    return (slot for slot in slots if codes[slot] == code)


def _places_back(codes: Any, code: int, end: int) -> Iterator[int]:
    """Iterate the slots before that one that have the code, the last one first."""
    word = array("I", [code]).tobytes()
    for page in _pages_back(codes, end):
        end -= len(page)
        held, stop = page.tobytes(), len(page) * page.itemsize
        while (at := held.rfind(word, 0, stop)) >= 0:
            if at % page.itemsize == 0:
                yield end + at // page.itemsize
            stop = at + page.itemsize - 1
