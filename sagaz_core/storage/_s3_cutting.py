"""Where a saga's records are cut into pages: as they come, so that it is known early on where a page will end."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sagaz_core.storage._packed_rows import packed
from sagaz_core.storage._rows import SnapshotEntry
from sagaz_core.storage._s3_pages import EVENTS, SNAPSHOTS
from sagaz_core.storage._s3_rows import SMALL, Item, Place, is_apart, place_of, row_of
from sagaz_core.storage._snapshot_columns import SnapshotColumns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sagaz_core.storage._s3_rows import EventRows, HeldRows, SnapshotRows

MOST = {EVENTS: 128, SNAPSHOTS: 64}
"""How many records a page has at most."""
_BYTES = 1 << 16
_LARGE = 8


class Measure(NamedTuple):
    """What counts of a record where pages are cut: `alone` is a snapshot that is based on no other."""

    seq: int
    size: int
    large: bool
    alone: bool


def measure(one: Item) -> Measure:
    """Return what counts of the record."""
    entry, data = one
    size = len(packed(row_of(entry))) + len(data or b"")
    if not isinstance(entry, SnapshotEntry):
        return Measure(entry.seq, size, large=False, alone=False)
    return Measure(entry.seq, size, is_apart(entry), entry.base_seq is None)


def measured(rows: SnapshotRows, behind: Iterable[Item]) -> list[Measure]:
    """Return the same of snapshots, and of what comes behind them."""
    columns = rows.columns
    found = []
    for slot in columns.line.order:
        size, row_size = columns.sizes[slot], columns.span(slot)[1]
        large = size > SMALL
        found.append(
            Measure(columns.seqs[slot], row_size if large else row_size + size, large, columns.base(slot) is None)
        )
    return [*found, *map(measure, behind)]


def total(rows: EventRows | SnapshotRows, held: HeldRows, behind: Iterable[Item]) -> tuple[int, int, int]:
    """Return how many records there are with those behind them, of how many bytes, and how many of them are large."""
    columns = rows.columns
    sizes = [columns.sizes[slot] for slot in columns.line.order]
    small = [size for size in sizes if size <= SMALL]
    more = [measure(one) for one in behind]
    large = len(sizes) - len(small) if isinstance(columns, SnapshotColumns) else 0
    size, others = _filled(more)
    return len(sizes) + len(more), held.size + sum(small) + size, large + others


def page_starts(kind: str, some: Sequence[Measure]) -> list[int]:
    """Return where pages begin behind the first one, when the records are put into pages. What comes behind them
    changes nothing of this: so it is known of a record early on in which page it will be.

    A page that is nearly full ends before a snapshot that is based on no other, and before what has the `seq` of that
    one: so what is based on it finds it in its own page.
    """
    starts, start, size, large = list[int](), 0, 0, 0
    for at, one in enumerate(some):
        records = at - start
        if records and (
            is_over(kind, 4, records + 1, size + one.size, large + one.large)
            or (one.alone and is_over(kind, 3, records, size, large))
        ):
            first = at
            while one.alone and first > start + 1 and some[first - 1].seq == one.seq:
                first -= 1
            start, size, large = first, *_filled(some[first:at])
            starts.append(start)
        size += one.size
        large += one.large
    return starts


def full_pages(kind: str, some: Sequence[Measure]) -> list[int]:
    """Return where the pages end that are to be written: what is left is at most a page and a quarter."""
    records, (size, large) = len(some), _filled(some)
    if not is_over(kind, 5, records, size, large):
        return []
    ends, start = list[int](), 0
    for end in page_starts(kind, some):
        part = _filled(some[start:end])
        records, size, large, start = records - (end - start), size - part[0], large - part[1], end
        ends.append(end)
        if not is_over(kind, 5, records, size, large):
            break
    return ends


def _filled(some: Sequence[Measure]) -> tuple[int, int]:
    return sum(one.size for one in some), sum(one.large for one in some)


def is_over(kind: str, quarters: int, records: int, size: int, large: int) -> bool:
    """Whether it is more than so many quarters of what a page has at most."""
    return 4 * records > quarters * MOST[kind] or 4 * size > quarters * _BYTES or 4 * large > quarters * _LARGE


def end_between(before: Item, after: Item | None) -> Place:
    """Return the end of a page whose last record is `before`."""
    if after is None or after.entry.seq > before.entry.seq:
        return before.entry.seq + 1, ""
    return place_of(after.entry)
