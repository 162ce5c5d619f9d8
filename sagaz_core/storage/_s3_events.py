"""Reading a saga's events from a bucket, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._checks import check_moment
from sagaz_core.storage._rows import digest, micros_or_none
from sagaz_core.storage._s3_asking import PAGES_AT_ONCE, S3Asking
from sagaz_core.storage._s3_head import Gone
from sagaz_core.storage._s3_objects import all_of
from sagaz_core.storage._s3_pages import Folded
from sagaz_core.storage._s3_rows import piece
from sagaz_core.storage._s3_window import Unreadable
from sagaz_core.storage.base import StoredEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime

    from sagaz_core.storage._rows import EventEntry
    from sagaz_core.storage._s3_head import Head
    from sagaz_core.storage._s3_rows import EventRows


class S3Events(S3Asking):
    """What a store answers about the events of one saga."""

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`. At most `PAGES_AT_ONCE` pages are in memory, one at first."""
        check_moment(until)
        last = micros_or_none(until)
        head = await self._head(saga_id)
        while True:
            try:
                end = _last_page(head, last)
                for numbers in _groups(head.event_pages.at((after_seq + 1, "")), end + 1):
                    read = await all_of([self._events_in(head, number) for number in numbers])
                    for number, rows in zip(numbers, read, strict=True):
                        if isinstance(rows, Unreadable):
                            raise rows.error
                        others: dict[str, memoryview] = {}
                        for slot in rows.columns.between(after_seq, last if number == end else None):
                            entry = rows.columns.entry(slot)
                            if not isinstance(entry.place, int) and entry.place[0] not in others:
                                others = await self._folder(head, [entry])
                            yield _event(saga_id, entry, piece(rows.held, entry, others))
                            after_seq = entry.seq
                return
            except (Folded, Gone) as reason:
                head = await self._again(head, reason)

    async def _events_in(self, head: Head, number: int) -> EventRows | Unreadable:
        """Return the page's events, or what is wrong with it: those of the pages before it come first."""
        lines = head.event_pages.lines
        try:
            return head.events if number == len(lines) else await self._event_rows(head, lines[number])
        except (CorruptDataError, Gone) as error:
            return Unreadable(error)


def _groups(start: int, end: int) -> Iterator[range]:
    """Iterate the numbers in groups of 1, 2, 4 and then `PAGES_AT_ONCE`: who reads a few is not sent many."""
    size = 1
    while start < end:
        yield range(start, min(start + size, end))
        start, size = start + size, min(2 * size, PAGES_AT_ONCE)


def _event(saga_id: str, entry: EventEntry, data: bytes) -> StoredEvent:
    if digest(data) != entry.digest:
        raise CorruptDataError(f"event {entry.seq} of saga {saga_id!r} is damaged: restore its objects")
    return StoredEvent(saga_id, entry.seq, entry.at, entry.kind, entry.step, data)


def _last_page(head: Head, until: int | None) -> int:
    """Return the number of the last page with an event whose time is not after `until`, -1 if there is none.

    Raises `Folded`.
    """
    lines = head.event_pages.lines
    if until is None or head.index.events.line.after(until):
        return len(lines)
    found = next((at for at in reversed(range(len(lines))) if lines[at].earliest <= until), -1)
    if found < 0 and head.event_pages.older:
        raise Folded
    return found
