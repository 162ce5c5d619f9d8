"""What a write makes of a saga: its head, its pages, and what is to be written before the head and deleted after it.

Records come behind all others, nearly always, and then into the head. When that has more than a page may have, the
first of them become pages. What comes late goes into its page, which is made anew.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sagaz_core.clock import new_id
from sagaz_core.storage._rows import digest
from sagaz_core.storage._s3_cutting import end_between, full_pages, is_over, measure, measured, page_starts, total
from sagaz_core.storage._s3_folding import folded
from sagaz_core.storage._s3_keys import own_name
from sagaz_core.storage._s3_pages import EVENTS, SNAPSHOTS, EventPage, Pages, SnapshotPage, event_page, snapshot_page
from sagaz_core.storage._s3_rows import (
    CLAIMED,
    OWN,
    SMALL,
    Item,
    items,
    needs_claim,
    packed_page,
    place_of,
    put_behind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sagaz_core.storage._packed_rows import PackedRow
    from sagaz_core.storage._s3_head import Head
    from sagaz_core.storage._s3_rows import EventRows, Place, SnapshotRows
    from sagaz_core.storage._saga_index import News

    Read = Mapping[str, EventRows | SnapshotRows]

_MADE: dict[str, Callable[..., Any]] = {EVENTS: event_page, SNAPSHOTS: snapshot_page}


@dataclass(slots=True)
class Change:
    """A head as it is to be written, with objects in the saga's folder that have to be there before, by name.

    `events` and `snapshots` are the rows that come behind those of the head, or all rows when it is `anew`. `objects`
    have names that nobody gives to anything else; `numbered` are pages, whose names another writer may have given.
    `replaced` are objects that nothing belongs to afterwards. `pages_of` says by id in which page a new snapshot is.
    """

    saga_id: str
    held: bytearray
    event_pages: Pages[EventPage]
    snapshot_pages: Pages[SnapshotPage]
    events: list[PackedRow] = field(default_factory=list)
    snapshots: list[PackedRow] = field(default_factory=list)
    anew: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)
    numbered: dict[str, bytes] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    pages_of: dict[str, str] = field(default_factory=dict)

    def fold(self, head: Head) -> None:
        """Have less in the head of what is said of pages, if that is too much."""
        for pages in (head.event_pages, head.snapshot_pages):
            self.replaced += pages.unfolded
        if self.event_pages is not head.event_pages or head.event_pages.unfolded:
            self.event_pages = folded(self.event_pages, self._written, len(self.numbered))
        if self.snapshot_pages is not head.snapshot_pages or head.snapshot_pages.unfolded:
            self.snapshot_pages = folded(self.snapshot_pages, self._written, len(self.numbered))

    def _written(self, body: bytes) -> str:
        name = new_id()
        self.objects[name] = body
        return name

    def rename(self, name: str, other: str) -> None:
        """Let a page have that other name."""
        self.event_pages = _renamed(self.event_pages, name, other)
        self.snapshot_pages = _renamed(self.snapshot_pages, name, other)

    def page(self, kind: str, some: Sequence[Item], end: Place, name: str | None = None) -> Any:
        """Return a new page of these records; with a `name` it is a numbered one."""
        body = packed_page(self.saga_id, some)
        if name is None:
            name = self._written(body)
        else:
            self.numbered[name] = body
        if kind == SNAPSHOTS:
            self.pages_of.update((one.entry.snapshot_id, name) for one in some)
        return _MADE[kind](name, digest(body), some, end)


def changed(head: Head, news: News, read: Read) -> Change:
    """Return what the head becomes with the news. `read` are the pages, by name, in which some of these belong."""
    change = Change(head.saga_id, bytearray(head.held), head.event_pages, head.snapshot_pages)
    events, snapshots = _new_items(news, change)
    change.event_pages, events = _put_late(EVENTS, head.event_pages, events, read, change)
    change.snapshot_pages, snapshots = _put_late(SNAPSHOTS, head.snapshot_pages, snapshots, read, change)
    filled = total(head.snapshots, head.snapshot_rows, snapshots)
    if any(needs_claim(head.saga_id, item.entry) for item in snapshots):
        _foretell_pages(head, snapshots, change, filled)
    if is_over(SNAPSHOTS, 5, *filled) or is_over(EVENTS, 5, *total(head.events, head.event_rows, events)):
        change.anew = True
        change.held.clear()
        events = _in_order([*items(head.events), *events])
        snapshots = _in_order([*items(head.snapshots), *snapshots])
        change.event_pages, events = _seal(EVENTS, change.event_pages, events, change)
        change.snapshot_pages, snapshots = _seal(SNAPSHOTS, change.snapshot_pages, snapshots, change)
    change.events, change.snapshots = put_behind(change.held, events), put_behind(change.held, snapshots)
    change.fold(head)
    return change


def _foretell_pages(head: Head, behind: Sequence[Item], change: Change, filled: tuple[int, int, int]) -> None:
    """Say in which pages the snapshots will be that come behind those of the head."""
    starts = page_starts(SNAPSHOTS, measured(head.snapshots, behind)) if is_over(SNAPSHOTS, 3, *filled) else []
    for number, item in enumerate(behind, filled[0] - len(behind)):
        name = f"{SNAPSHOTS}{change.snapshot_pages.number + bisect_right(starts, number)}"
        change.pages_of[item.entry.snapshot_id] = name


def without(head: Head, kept: Mapping[str, Sequence[Item]]) -> Change:
    """Return the head as it is now, without the data of what was deleted from its index.

    `kept` is what is left of pages of snapshots, by name; they are made anew, or go when it is nothing.
    """
    change = Change(head.saga_id, bytearray(), head.event_pages, head.snapshot_pages, anew=True)
    lines = list[SnapshotPage]()
    for page in head.snapshot_pages.lines:
        if page.name not in kept:
            lines.append(page)
            continue
        change.replaced.append(page.name)
        if kept[page.name]:
            lines.append(change.page(SNAPSHOTS, kept[page.name], page.end))
    if kept:
        change.snapshot_pages = head.snapshot_pages._replace(lines=tuple(lines))
    change.events = put_behind(change.held, items(head.events))
    change.snapshots = put_behind(change.held, items(head.snapshots))
    change.fold(head)
    return change


def _new_items(news: News, change: Change) -> tuple[list[Item], list[Item]]:
    name, large, events = new_id(), bytearray(), list[Item]()
    for event, data in zip(news.events, news.event_data, strict=True):
        if len(data) <= SMALL:
            events.append(Item(event, data))
        else:
            events.append(Item(event._replace(place=[name, len(large)]), None))
            large += data
    if large:
        change.objects[name] = bytes(large)
    snapshots = list[Item]()
    for entry, data in zip(news.snapshots, news.snapshot_data, strict=True):
        if len(data) <= SMALL:
            snapshots.append(Item(entry, data))
        elif needs_claim(change.saga_id, entry):
            snapshots.append(Item(entry._replace(place=CLAIMED), None))
        else:
            snapshots.append(Item(entry._replace(place=OWN), None))
            change.objects[own_name(entry.snapshot_id, entry.digest)] = data
    return events, snapshots


def _put_late(
    kind: str, pages: Pages[Any], new: Iterable[Item], read: Read, change: Change
) -> tuple[Pages[Any], list[Item]]:
    """Return the pages with those of the records that belong in there, and the others, which come behind them."""
    late: dict[int, list[Item]] = {}
    behind = list[Item]()
    for item in new:
        at = pages.at(place_of(item.entry))
        (behind if at == len(pages.lines) else late.setdefault(at, [])).append(item)
    if not late:
        return pages, behind
    lines = list[Any]()
    for at, page in enumerate(pages.lines):
        if at not in late:
            lines.append(page)
            continue
        change.replaced.append(page.name)
        together = _in_order([*items(read[page.name]), *late[at]])
        start = 0
        for end in page_starts(kind, [measure(one) for one in together]):
            lines.append(change.page(kind, together[start:end], end_between(together[end - 1], together[end])))
            start = end
        lines.append(change.page(kind, together[start:], page.end))
    return pages._replace(lines=tuple(lines)), behind


def _seal(kind: str, pages: Pages[Any], some: list[Item], change: Change) -> tuple[Pages[Any], list[Item]]:
    """Return the pages with new ones behind them of the first of these records, and the others."""
    ends = full_pages(kind, [measure(one) for one in some])
    if not ends:
        return pages, some
    start, number, lines = 0, pages.number, list(pages.lines)
    for end in ends:
        place = end_between(some[end - 1], some[end])
        lines.append(change.page(kind, some[start:end], place, f"{kind}{number}"))
        start, number = end, number + 1
    return pages._replace(number=number, lines=tuple(lines)), some[start:]


def _in_order(some: Iterable[Item]) -> list[Item]:
    return sorted(some, key=lambda one: place_of(one.entry))


def _renamed(pages: Pages[Any], name: str, other: str) -> Pages[Any]:
    lines = (page._replace(name=other) if page.name == name else page for page in pages.lines)
    return pages._replace(lines=tuple(lines))
