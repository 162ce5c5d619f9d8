"""What is said of a very long saga's first pages, in objects of their own: so that its head stays small.

Then what is asked of those pages takes one more round trip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ormsgpack

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._packed_rows import packed
from sagaz_core.storage._rows import digest
from sagaz_core.storage._s3_pages import Older, Pages, SnapshotPage, line_from_row, line_row
from sagaz_core.storage._s3_rows import DAMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sagaz_core.storage._s3_pages import EventPage

_MOST = 48_000
"""So many bytes about pages of one kind are in the head."""


def folded(pages: Pages[Any], write: Callable[[bytes], str], unnamed: int) -> Pages[Any]:
    """Return the pages with less said of them in the head, if that is too much. `write` gives objects their names.

    So many of the last pages may still be given other names.
    """
    lines, older, last = pages.lines, list(pages.older), len(pages.lines) - max(1, unnamed)
    sizes = [len(packed(line_row(line))) for line in lines]
    start, left = 0, sum(sizes)
    while left > _MOST and start < last:
        end, size = start, 0
        while size < _MOST // 2 and end < last:
            size += sizes[end]
            end += 1
        older.append(_older(lines[start:end], write))
        start, left = end, left - size
    return pages._replace(lines=lines[start:], older=tuple(older), unfolded=())


def _older(lines: Sequence[EventPage | SnapshotPage], write: Callable[[bytes], str]) -> Older:
    body = packed([line_row(line) for line in lines])
    ends = [line.first_end for line in lines if isinstance(line, SnapshotPage)]
    length, first_end = sum(line.length for line in lines), min((at for at in ends if at is not None), default=None)
    return Older(write(body), digest(body), length, lines[-1].end, first_end)


def unfolded(kind: str, pages: Pages[Any], bodies: Sequence[memoryview]) -> Pages[Any]:
    """Return the pages with all that there is to say of them, as it is in these objects. Raises `CorruptDataError`."""
    try:
        lines = [line_from_row(kind, row) for body in bodies for row in ormsgpack.unpackb(body)]
    except DAMAGE as error:
        raise CorruptDataError(f"what is said of them is damaged: {error}") from error
    names = tuple(older.name for older in pages.older)
    return Pages(pages.number, (*lines, *pages.lines), (), (*pages.unfolded, *names))
