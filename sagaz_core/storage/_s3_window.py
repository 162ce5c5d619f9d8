"""What was read of a saga's snapshots for one answer, and what the answer needs besides."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._rows import digest
from sagaz_core.storage._s3_head import Gone
from sagaz_core.storage._s3_pages import large_since
from sagaz_core.storage._s3_rows import is_apart, object_key, piece
from sagaz_core.storage.base import Base, SagaSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sagaz_core.storage._rows import SnapshotEntry
    from sagaz_core.storage._s3_head import Head
    from sagaz_core.storage._s3_rows import SnapshotRows

Found = tuple[int, int]
"""A snapshot: the number of its page, where that of all pages stands for the head, and its slot in there."""


class Unreadable(NamedTuple):
    """Why something could not be read that perhaps nobody needs."""

    error: CorruptDataError | Gone


class Window:
    """The snapshots of some pages, by number, and large data by the key of their object."""

    __slots__ = ("head", "large", "rows")

    def __init__(self, head: Head, rows: Mapping[int, SnapshotRows] | None = None) -> None:
        self.head = head
        self.rows: dict[int, SnapshotRows] = {**(rows or {}), len(head.snapshot_pages.lines): head.snapshots}
        self.large: dict[str, bytes | Unreadable | None] = {}

    def entry(self, found: Found) -> SnapshotEntry:
        """Return what is known of the snapshot."""
        return self.rows[found[0]].columns.entry(found[1])

    def key(self, entry: SnapshotEntry) -> str:
        """Return the key of the object with the snapshot's data, which are apart."""
        key = object_key(self.head.saga_id, entry)
        assert key is not None
        return key

    def bases(self, found: Found) -> list[Found]:
        """Return what is needed to read the snapshot, in order, as far as its pages were read."""
        number, slot = found
        columns = self.rows[number].columns
        base = columns.base(slot)
        if base is None:
            return []
        before = [at for at in self.pages(number, base) if at in self.rows]
        earlier = [(at, other) for at in before for other in self.rows[at].columns.since(base)]
        return [*earlier, *((number, other) for other in columns.bases(slot))]

    def pages(self, number: int, base: int) -> range:
        """Return which pages before that one have what is needed from that `seq` on."""
        return range(self.head.snapshot_pages.at((base, "")), number)

    def lacks(self, some: Iterable[Found]) -> tuple[set[int], list[str]]:
        """Return the pages that were not read and are needed for these snapshots, and objects with large data."""
        pages, keys = set[int](), list[str]()
        for found in some:
            base = self.rows[found[0]].columns.base(found[1])
            missing = [] if base is None else [at for at in self.pages(found[0], base) if at not in self.rows]
            for at in missing:
                parts = large_since(self.head.snapshot_pages.lines[at], base or 0)
                keys += (part.key(self.head.saga_id) for part in parts)
            pages.update(missing)
            entries = map(self.entry, (found, *self.bases(found)))
            keys += (self.key(entry) for entry in entries if is_apart(entry))
        return pages, [key for key in dict.fromkeys(keys) if key not in self.large]

    def snapshots(self, some: Sequence[Found], others: Mapping[str, memoryview]) -> list[SagaSnapshot]:
        """Return the snapshots. All that they need was read; `others` are objects of the saga by name."""
        chains = {found: self.bases(found) for found in some}
        entries = {one: self.entry(one) for found, bases in chains.items() for one in (found, *bases)}
        made = {one: Base(e.snapshot_id, self._data(one, e, others)) for one, e in entries.items()}
        return [
            _snapshot(self.head.saga_id, entries[found], made[found].data, [made[base] for base in chains[found]])
            for found in some
        ]

    def _data(self, found: Found, entry: SnapshotEntry, others: Mapping[str, memoryview]) -> bytes:
        name = entry.snapshot_id
        data = self.large[self.key(entry)] if is_apart(entry) else piece(self.rows[found[0]].held, entry, others)
        if isinstance(data, Unreadable):
            raise CorruptDataError(f"snapshot {name!r} cannot be read: {data.error}") from data.error
        if data is None or digest(data) != entry.digest:
            of = f"snapshot {name!r} of saga {self.head.saga_id!r} is damaged"
            raise Gone(CorruptDataError(f"{of}: restore its object, or go on from another snapshot"))
        return data


def _snapshot(saga_id: str, entry: SnapshotEntry, data: bytes, bases: Sequence[Base]) -> SagaSnapshot:
    name, saga_name, step, index, seq, phase, status, created_at, retention, base_seq, *_ = entry
    return SagaSnapshot(
        *(name, saga_id, saga_name, step, index, seq, phase, status, created_at, data, retention, base_seq),
        tuple(bases),
        entry.completed_steps,
        entry.tags,
    )
