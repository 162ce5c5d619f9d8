"""A saga's head object: its record and summary, its last events and snapshots, and which pages have those before them.

So a saga of the usual size is one object, which one conditional write changes as a whole, and the head of a long one
is not much larger. What is large is in objects of its own, which its row names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._packed_rows import PackedRow, Parts, array_head, packed
from sagaz_core.storage._rows import summary_from_row, summary_row
from sagaz_core.storage._s3_pages import (
    EVENTS,
    SNAPSHOTS,
    EventPage,
    Pages,
    SnapshotPage,
    pages_from_row,
    pages_row,
)
from sagaz_core.storage._s3_rows import DAMAGE, EventRows, HeldRows, SnapshotRows, read_rows
from sagaz_core.storage._saga_index import News, SagaIndex

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.storage._s3_changes import Change
    from sagaz_core.storage._s3_objects import Version


class Gone(Exception):  # noqa: N818 - it is what happened, and handled until the head stays what it is
    """What a head names is not there, or is not that any more. `error` is the one to raise when the head is new."""

    def __init__(self, error: CorruptDataError) -> None:
        self.error = error


class Head:
    """The head as it was read. `version` is `None` when there is none.

    The place of an entry is an offset in `held`, `OWN` or `CLAIMED`, or the name of an object in the saga's folder and
    an offset. `packed_pages` has the bytes that stand for those pages: most writes change none.
    """

    __slots__ = (
        "event_pages",
        "event_rows",
        "held",
        "index",
        "packed_pages",
        "saga_id",
        "snapshot_pages",
        "snapshot_rows",
        "version",
    )

    def __init__(self, saga_id: str, read: memoryview | None = None, version: Version | None = None) -> None:
        self.saga_id, self.held, self.version = saga_id, b"", version
        self.event_rows, self.snapshot_rows = HeldRows(read), HeldRows(read)
        self.index = SagaIndex(self.event_rows.read, self.snapshot_rows.read, placed=False)
        self.event_pages = Pages[EventPage]()
        self.snapshot_pages = Pages[SnapshotPage]()
        self.packed_pages: tuple[Pages[EventPage], Pages[SnapshotPage], bytes] | None = None

    @property
    def there(self) -> bool:
        """Whether there is such a saga."""
        return self.version is not None

    @property
    def events(self) -> EventRows:
        """The events that are in here: those behind all pages."""
        return EventRows(self.index.events, self.held)

    @property
    def snapshots(self) -> SnapshotRows:
        """The snapshots that are in here: those behind all pages."""
        return SnapshotRows(self.index.snapshots, self.held)

    def add(self, events: Iterable[PackedRow], snapshots: Iterable[PackedRow]) -> None:
        """Take in the rows of what is now stored."""
        for found in events:
            self.index.events.add(self.event_rows.added(found))
        for found in snapshots:
            self.index.snapshots.add(self.snapshot_rows.added(found))


def packed_head(head: Head, news: News, change: Change) -> bytes:
    """Return the bytes of the head as it is to be written. Raises `UsageError` for what cannot be stored."""
    index = head.index
    summary = news.summary or index.summary
    lead = head.saga_id, news.record or index.record, summary and summary_row(summary)
    parts = [array_head(7), *map(packed, lead)]
    for columns, rows, new in (
        (index.events, head.event_rows, change.events),
        (index.snapshots, head.snapshot_rows, change.snapshots),
    ):
        parts.append(array_head(len(new) if change.anew else len(columns) + len(new)))
        if not change.anew:
            parts.append(rows.packed())
        parts += (row.packed for row in new)
    parts.append(packed(bytes(change.held)))
    parts.append(_packed_pages(head, change.event_pages, change.snapshot_pages))
    return b"".join(parts)


def _packed_pages(head: Head, events: Pages[EventPage], snapshots: Pages[SnapshotPage]) -> bytes:
    known = head.packed_pages
    if known is None or known[0] is not events or known[1] is not snapshots:
        head.packed_pages = known = events, snapshots, packed([pages_row(events), pages_row(snapshots)])
    return known[2]


def unpacked_head(saga_id: str, data: memoryview, version: Version) -> Head:
    """Do the inverse of `packed_head`. Raises `CorruptDataError`."""
    try:
        parts = Parts(data)
        found, record, summary = parts.values(3)
        head = Head(found, data, version)
        read_rows(parts, head.index.events, head.event_rows)
        read_rows(parts, head.index.snapshots, head.snapshot_rows)
        held, *newer = parts.rest()
        head.held = bytes(held)
        if newer:  # than format 1
            ((events, snapshots, *_),) = newer
            head.event_pages = pages_from_row(EVENTS, events)
            head.snapshot_pages = pages_from_row(SNAPSHOTS, snapshots)
        head.index.says(record, summary and summary_from_row(summary))
    except DAMAGE as error:
        raise CorruptDataError(f"the head of saga {saga_id!r} is damaged: {error}") from error
    return head
