"""What is made of a saga's entries that were read from Redis: snapshots in order, those that were asked for, events."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from sagaz_core.storage._checks import expired, not_a_cursor, read_snapshot_cursor, snapshot_cursor
from sagaz_core.storage._redis_records import unpack_events, unpack_heads, unpack_saga, unpack_states
from sagaz_core.storage.base import Base
from sagaz_core.storage.together import Checkpoint, EventHead

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sagaz_core.storage.base import SagaSnapshot, StoredEvent

place_of = attrgetter("seq", "snapshot_id")


class Stretch:
    """Entries that follow each other, the first with the number `first`; those of an index are that to each other.

    `heads` are their snapshots without the states, in order. Only the states that are asked for are looked at. `whole`
    says that nothing comes before the first entry. `of` is what an error names.
    """

    def __init__(
        self,
        of: str,
        logs: Sequence[bytes | None],
        states: Sequence[bytes | None],
        *,
        first: int = 1,
        whole: bool = True,
    ) -> None:
        self.whole = whole
        self.heads: list[SagaSnapshot] = []
        self._states = states
        self._unpacked: dict[int, list[bytes]] = {}
        self._held_in: dict[str, tuple[int, int]] = {}
        self._first = first
        self._sizes: dict[int, int] = {}
        for entry, (log, held) in enumerate(zip(logs, states, strict=True)):
            heads = [] if log is None else unpack_heads(log, of)
            if held is None:  # the server let the states go: the last that needs them has expired
                continue
            self._sizes[entry] = len(heads)
            for place, head in enumerate(heads):
                self.heads.append(head)
                self._held_in[head.snapshot_id] = entry, place
        self.heads.sort(key=place_of)

    def latest(
        self,
        now: datetime,
        step: str | None = None,
        phase: str | None = None,
        until: datetime | None = None,
        max_seq: int | None = None,
    ) -> SagaSnapshot | None:
        """Return the latest of the heads of which all that is true."""
        for head in reversed(self.heads):
            if (
                step in (None, head.step_name)
                and phase in (None, head.phase)
                and (until is None or head.created_at <= until)
                and (max_seq is None or head.seq <= max_seq)
                and not expired(head, now)
            ):
                return head
        return None

    def behind(self, place: tuple[int, str], now: datetime) -> list[SagaSnapshot]:
        """Return the heads behind that place."""
        return [head for head in self.heads if place_of(head) > place and not expired(head, now)]

    def has_bases(self, heads: Iterable[SagaSnapshot]) -> bool:
        """Whether all that these may be differences from is here."""
        needed = [head.base_seq for head in heads if head.base_seq is not None]
        return self.whole or not needed or self.heads[0].seq < min(needed)

    def filled(self, head: SagaSnapshot) -> SagaSnapshot:
        """Return the snapshot with its state and its bases."""
        first, place = head.base_seq, place_of(head)
        if first is None:
            return head._replace(data=self._data(head))
        bases = [Base(h.snapshot_id, self._data(h)) for h in self.heads if h.seq >= first and place_of(h) < place]
        return head._replace(data=self._data(head), bases=tuple(bases))

    def _data(self, head: SagaSnapshot) -> bytes:
        entry, place = self._held_in[head.snapshot_id]
        found = self._unpacked.get(entry)
        if found is None:
            held = self._states[entry]
            assert held is not None  # else there was no head
            found = self._unpacked[entry] = unpack_states(held, self._sizes[entry], head.saga_id)
        return found[place]

    def cursor(self, last: SagaSnapshot) -> str:
        """Return the cursor of the page behind this snapshot."""
        return f"{self._first + self._held_in[last.snapshot_id][0]}@{snapshot_cursor(last)}"


def read_cursor(cursor: str | None) -> tuple[int, tuple[int, str]]:
    """Return the entry that the last snapshot before the page is in, 0 where that is of no use, and its place."""
    if cursor is None:
        return 1, read_snapshot_cursor(None)
    entry, _, place = cursor.partition("@")
    if not entry.isdecimal() or len(entry) > 15:
        raise not_a_cursor(cursor)
    return int(entry), read_snapshot_cursor(place)


def events_in(saga_id: str, entries: Sequence[bytes | None]) -> list[StoredEvent]:
    """Return the events that are in these entries, in order."""
    found = [event for data in entries if data is not None for event in unpack_events(saga_id, data)]
    found.sort(key=attrgetter("seq"))
    return found


def checkpoint_of(
    saga_id: str, step: str, record: bytes | None, stretch: Stretch, events: Sequence[StoredEvent], now: datetime
) -> Checkpoint | None:
    """Return what a replay from the step needs to know, or `None` if there may be more than is in the stretch."""
    before, last = stretch.latest(now, step, "before"), stretch.latest(now)
    after = -1 if before is None else before.seq
    if not stretch.whole and (before is None or not stretch.has_bases([before])):
        return None
    return Checkpoint(
        None if record is None else unpack_saga(saga_id, record),
        None if before is None else stretch.filled(before),
        None if last is None else last.seq,
        [EventHead(event.seq, event.kind, event.step) for event in events if event.seq > after],
    )
