"""A saga's snapshots in a few machine words each, and what is asked of them: all answers are slots."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from sagaz_core.storage._checks import LONG_AGO
from sagaz_core.storage._columns import Columns, Line, SlotsByHash
from sagaz_core.storage._rows import Row, SnapshotEntry, micros, snapshot_from_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sagaz_core.storage._packed_rows import PackedRow

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

    __slots__ = ("_bases", "_by_hash", "_codes", "_ends", "_filters", "_kinds", "_last", "first_end")

    def __init__(self, read: Callable[[int, int, int, int], bytes], *, placed: bool) -> None:
        super().__init__(read, placed=placed)
        self._ends = array("q")
        self._bases = array("q")
        self._codes = array("I")
        self._kinds: dict[tuple[str, str], int] = {}
        self._by_hash = SlotsByHash()
        self._filters: dict[tuple[str | None, str | None], tuple[Line, int]] = {}
        self._last: tuple[int, str] | None = None
        self.first_end: int | None = None

    def add(self, packed: PackedRow, start: int = 0, place: int = 0) -> None:
        """Take in a snapshot; see `EventColumns.add`."""
        row = packed.row
        snapshot_id, step, seq, phase, end, base = row[0], row[2], row[4], row[5], row[8], row[9]
        slot = self._append(seq, row[7], packed, start, place)
        self._ends.append(_NEVER if end is None else end)
        self._bases.append(_NO_BASE if base is None else base)
        kind = (step, phase)
        code = self._kinds.get(kind)
        if code is None:
            code = self._kinds[kind] = len(self._kinds)
        self._codes.append(code)
        self._by_hash.append(snapshot_id)
        if end is not None and (self.first_end is None or end < self.first_end):
            self.first_end = end
        if self._last is None or (seq, snapshot_id) > self._last:
            self._last = seq, snapshot_id
            self.line.append(slot)
        else:
            self.line.insert(self._place(seq, snapshot_id), slot)
            self._filters.clear()

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
        return self._ends[slot] < now

    def latest(
        self, step: str | None, phase: str | None, until: int | None, max_seq: int | None, now: int
    ) -> int | None:
        """See `SnapshotStorage.latest_snapshot`."""
        line = self._filter(step, phase)
        ends = self._ends
        return next((slot for slot in line.back(line.end(until, max_seq), until) if ends[slot] >= now), None)

    def bases(self, slot: int) -> Sequence[int]:
        """Return what is needed to read the snapshot, in order."""
        base = self._bases[slot]
        if base == _NO_BASE:
            return ()
        line = self.line
        own = line.below(self.seqs[slot])
        while line.order[own] != slot:
            own += 1
        found: Sequence[int] = line.order[line.below(base) : own]
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
        return self._served(self.line.order, now)

    def below(self, below_seq: int, now: int, needed: int | None = None) -> tuple[Sequence[int], Sequence[int], int]:
        """Return those below that `seq` which go, those which stay as bases, and how many were served.

        `needed` is the lowest `seq` that snapshots need which are elsewhere.
        """
        order, ends = self.line.order, self._ends
        below = self.line.below(below_seq)
        first = lowest(needed, self.needed(now, below_seq))
        start = below if first is None else min(below, self.line.below(first))
        hidden = [slot for slot in order[start:below] if ends[slot] != _HIDDEN]
        return order[:start], hidden, self._served(order[:below], now)

    def needed(self, now: int, from_seq: int | None = None) -> int | None:
        """Return the lowest `seq` that those need which are served, and not below that `seq`."""
        slots = self.line.order if from_seq is None else self.since(from_seq)
        bases, ends = self._bases, self._ends
        return min((bases[slot] for slot in slots if bases[slot] != _NO_BASE and ends[slot] >= now), default=None)

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
        self.first_end = min((end for slot in self.line.order if (end := self._ends[slot]) != _NEVER), default=None)
        return freed

    def _surely(self, snapshot_id: str) -> int | None:
        """Return the slot of a snapshot that there is: when only one can have its id, that needs not be read."""
        slots = [slot for slot in self._by_hash.find(snapshot_id) if self._ends[slot] != _GONE]
        return slots[0] if len(slots) == 1 else self.find(snapshot_id)

    def _forget(self, dropped: set[int]) -> None:
        line = self.line
        if dropped.issuperset(line.order[: len(dropped)]):  # the oldest, as nearly always
            line.keep(line.order[len(dropped) :])
        else:
            line.keep(array("I", (slot for slot in line.order if slot not in dropped)))
        self._filters.clear()
        if len(self.seqs) > max(_WORTH_KEEPING, 2 * len(line.order)):
            self._move_together()
        order = self.line.order
        self._last = (self.seqs[order[-1]], self.id_of(order[-1])) if order else None

    def _move_together(self) -> None:
        """Have the columns without what is gone."""
        order = self.line.order
        for name in ("seqs", "_moments", "_at", "_row_sizes", "_sums", "sizes", "places", "_ends", "_bases", "_codes"):
            column = getattr(self, name)
            if column is not None:
                setattr(self, name, array(column.typecode, (column[slot] for slot in order)))
        self._by_hash = self._by_hash.keep(order)
        self.line = Line(self.seqs, self._moments)
        self.line.keep(range(len(order)))

    # ---- places in order

    def _place(self, seq: int, snapshot_id: str) -> int:
        """Return the position of the first one that does not come before this place."""
        order, seqs = self.line.order, self.seqs
        place = self.line.below(seq)
        while place < len(order) and seqs[order[place]] == seq and self.id_of(order[place]) < snapshot_id:
            place += 1
        return place

    def _served(self, slots: Sequence[int], now: int) -> int:
        if self.first_end is None or self.first_end >= now:
            return len(slots)
        ends = self._ends
        return sum(ends[slot] >= now for slot in slots)

    def _filter(self, step: str | None, phase: str | None) -> Line:
        """Return those of that step and phase, which are found by the first question for them."""
        if step is None and phase is None:
            return self.line
        line, done = self._filters.get((step, phase)) or (Line(self.seqs, self._moments, array("I")), 0)
        order, codes = self.line.order, self._codes
        if done < len(order):
            wanted = {
                code for kind, code in self._kinds.items() if step in (None, kind[0]) and phase in (None, kind[1])
            }
            for place in range(done, len(order)):
                if codes[order[place]] in wanted:
                    line.append(order[place])
            self._filters[step, phase] = line, len(order)
        return line
