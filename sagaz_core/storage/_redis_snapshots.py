"""Reading a saga's snapshots and events from Redis: no more of it than what was asked for is likely to be in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.storage._checks import MAX_SEQ, check_limit, check_moment, expired, snapshot_cursor
from sagaz_core.storage._redis_core import Ranges
from sagaz_core.storage._redis_reading import Stretch, checkpoint_of, events_in, read_cursor
from sagaz_core.storage._redis_records import as_key, is_served, micros, unpack_log
from sagaz_core.storage._redis_run_reading import AskedOfRuns, RedisRuns
from sagaz_core.storage._redis_runs import SHORT
from sagaz_core.storage.base import Page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from sagaz_core.storage.base import SagaSnapshot, StoredEvent
    from sagaz_core.storage.together import Checkpoint

_BACK = 24  # the entries before one that have its bases: those are up to 15, in most sagas
_LAST = 64
_RUNS = 64
_TIES = 8
_EVENTS = 16
_EVENTS_AT_ONCE = 256
_MOST_ENTRIES = 1 << 53


class RedisSnapshots(RedisRuns):
    """What a store answers about one saga.

    A *stretch* of a saga is read: entries that follow each other, by the index of what is asked for. Where that turns
    out not to be enough, as there is nothing in it, or it says that the saga is not in order, more is read.
    """

    async def get_snapshot(self, snapshot_id: str) -> SagaSnapshot | None:
        """See `SnapshotStorage.get_snapshot`."""
        group = self._keys.of(b"g", as_key(snapshot_id))
        (reply,) = await self._send(("SORT_RO", group, "BY", "nosort", *self._joined(b"log", b"st")))
        stretch, now = Stretch(snapshot_id, reply[::2], reply[1::2]), self.clock()
        found = [head for head in stretch.heads if head.snapshot_id == snapshot_id and not expired(head, now)]
        return stretch.filled(found[0]) if found else None

    async def latest_snapshot(
        self,
        saga_id: str,
        *,
        step: str | None = None,
        phase: str | None = None,
        until: datetime | None = None,
        max_seq: int | None = None,
    ) -> SagaSnapshot | None:
        """See `SnapshotStorage.latest_snapshot`."""
        check_moment(until)
        now, number = self.clock(), _BACK
        if step is not None or phase is not None:
            number, known = SHORT + 1, self._known.get(saga_id)  # one more, by which all of a short one is known to be
            if max_seq is None and (known is None or known.indexed):
                told, found = await self._latest_by_run(saga_id, step, phase, until, short=known is None)
                if told:
                    return found
        if until is not None:
            stretch = await self._up_to(saga_id, b"t", micros(until), number)
        elif max_seq is not None:
            stretch = await self._up_to(saga_id, b"s", _score(max_seq), number)
        else:
            stretch = await self._last(saga_id, number)
        while True:
            found = None if stretch is None else stretch.latest(now, step, phase, until, max_seq)
            if stretch is not None and found is not None:
                if stretch.has_bases([found]):
                    return stretch.filled(found)
                snapshot = await self.get_snapshot(found.snapshot_id)
                if snapshot is not None:
                    return snapshot
            if stretch is not None and stretch.whole:
                return None
            number *= 8
            stretch = await self._last(saga_id, number)

    async def _latest_by_run(
        self, saga_id: str, step: str | None, phase: str | None, until: datetime | None, *, short: bool
    ) -> tuple[bool, SagaSnapshot | None]:
        """Return the latest snapshot of that step and phase, and whether one trip tells which it is.

        It does not of a long saga that is not in order, or that an earlier release wrote to. The latest run is enough,
        unless what was asked for in it has expired or was deleted.
        """
        now, most, number = self.clock(), "+inf" if until is None else micros(until), 1
        while True:
            asked = AskedOfRuns(saga_id, step, phase, most, until is not None, number, short)
            runs = await self._connections.use(lambda trip, asked=asked: self._runs(trip, asked))  # type: ignore[misc] # a bound default
            if runs is None:
                return False, None
            if isinstance(runs, Stretch):
                found = runs.latest(now, step, phase, until)
                return True, None if found is None else runs.filled(found)
            found = runs.stretch.latest(now, step, phase, until)
            if found is not None:
                if found.base_seq is None or (runs.since is not None and found.base_seq >= runs.since):
                    return True, runs.stretch.filled(found)
                found = await self.get_snapshot(found.snapshot_id)
                if found is not None:
                    return True, found
            if runs.number < number:
                return True, None
            number *= _RUNS

    async def _up_to(self, saga_id: str, index: bytes, most: int, number: int) -> Stretch | None:
        """Return the last entries of which the index says that they are not above that. `None` if it does not know."""
        saga = as_key(saga_id)
        bounds = [(most, "-inf", "BYSCORE", "REV", "LIMIT", 0, number)]
        asked = Ranges(self._keys.of(index, saga), bounds, (b"log", b"st"))
        members, values, also = await self._ranges(asked, *self._in_order(saga))
        if also[0] is None or also[1]:
            return None
        # Of those of one score the index has them in another order than the saga: it may be that some are missing.
        first = sum(score == members[0][1] for _, score in members) if len(members) == number else 0
        if members and first == number:
            return None
        return Stretch(saga_id, values[2 * first :: 2], values[2 * first + 1 :: 2], whole=first == 0)

    def _in_order(self, saga: bytes) -> tuple[Any, ...]:
        """Return what asks whether the saga has indices, and for the marks that it is not in order."""
        of = self._keys.of
        return ("ZSCORE", of(b"s", saga), b"1:" + saga), ("EXISTS", of(b"o", saga), of(b"b", saga))

    async def _last(self, saga_id: str, number: int) -> Stretch:
        """Return the saga's last entries; all of them if they are not in order."""
        entries, unordered = await self._entries(saga_id, number, b"log", b"st")
        whole = len(entries) < 2 * number
        if unordered and not whole:
            return await self._last(saga_id, _MOST_ENTRIES)
        return Stretch(saga_id, entries[::2], entries[1::2], whole=whole)

    async def _entries(self, saga_id: str, number: int, *kinds: bytes) -> tuple[list[Any], bool]:
        """Return what there is of these kinds in the last entries, the last one first, and if they are unordered."""
        saga = as_key(saga_id)
        entries, unordered = await self._send(
            ("SORT_RO", self._keys.of(b"x", saga), "BY", "nosort", "LIMIT", 0, number, *self._joined(*kinds), "DESC"),
            ("EXISTS", self._keys.of(b"o", saga)),
        )
        return entries, bool(unordered)

    async def list_snapshots(self, saga_id: str, *, limit: int = 100, cursor: str | None = None) -> Page:
        """See `SnapshotStorage.list_snapshots`.

        Of a saga whose snapshots are in the order of its entries, as almost all are, only the page's entries are read,
        and some before them for the bases.
        """
        check_limit(limit)
        entry, after = read_cursor(cursor)
        now, wanted, back = self.clock(), limit + 2, _BACK  # with the entry of the cursor, and one more
        while entry:
            first, end = max(1, entry - back), min(entry + wanted, _MOST_ENTRIES)
            stretch, at_end = await self._window(saga_id, first, end)
            if stretch is None:
                break
            found = stretch.behind(after, now)
            if len(found) <= limit and not at_end:
                wanted *= 2
            elif not stretch.has_bases(found[:limit]):
                back *= 8
            else:
                page = [stretch.filled(head) for head in found[:limit]]
                return Page(page, stretch.cursor(page[-1]) if len(found) > limit else None)
        stretch = await self._last(saga_id, _MOST_ENTRIES)
        found = stretch.behind(after, now)
        page = [stretch.filled(head) for head in found[:limit]]
        return Page(page, f"0@{snapshot_cursor(page[-1])}" if len(found) > limit else None)

    async def _window(self, saga_id: str, first: int, end: int) -> tuple[Stretch | None, bool]:
        """Return the entries from `first` to before `end`, if they are in order, and whether these are the last.

        Entry n is the index's n-th, for ever.
        """
        saga = as_key(saga_id)
        part = ("LIMIT", first - 1, end - first)
        entries, unordered = await self._send(
            ("SORT_RO", self._keys.of(b"x", saga), "BY", "nosort", *part, *self._joined(b"log", b"st")),
            ("EXISTS", self._keys.of(b"o", saga)),
        )
        if unordered:
            return None, False
        stretch = Stretch(saga_id, entries[::2], entries[1::2], first=first, whole=first == 1)
        return stretch, len(entries) < 2 * (end - first)

    async def count_snapshots(self, saga_id: str) -> int:
        """See `SnapshotStorage.count_snapshots`."""
        entries = self._keys.of(b"x", as_key(saga_id))
        (reply,) = await self._send(("SORT_RO", entries, "BY", "nosort", *self._joined(b"log")))
        now = micros(self.clock())
        return sum(is_served(header, now) for log in reply if log is not None for header in unpack_log(log, saga_id)[2])

    # ---- events

    async def read_events(
        self, saga_id: str, *, after_seq: int = -1, until: datetime | None = None
    ) -> AsyncIterator[StoredEvent]:
        """See `SnapshotStorage.read_events`. They come in parts; of a saga that is not in order they come at once."""
        check_moment(until)
        saga, told = as_key(saga_id), after_seq
        marks = [self._keys.of(b"o", saga), *([] if until is None else [self._keys.of(b"b", saga)])]
        at, found = (0, []) if after_seq < 0 else await self._events_after(saga, after_seq)
        unordered = 0
        while True:
            events = events_in(saga_id, found)
            while unordered and until is not None and events and events[-1].at > until:
                events.pop()
            for event in events:
                if until is not None and event.at > until and not unordered:
                    return
                if event.seq > after_seq:
                    yield event
                    told = event.seq
            if at is None:
                return
            found, unordered = await self._send(self._events_from(saga, at, _EVENTS_AT_ONCE), ("EXISTS", *marks))
            at = at + len(found) if len(found) == _EVENTS_AT_ONCE else None
            if unordered:
                (found,) = await self._send(self._events_from(saga, 0, _MOST_ENTRIES))
                at, after_seq = None, told

    def _events_from(self, saga: bytes, at: int, number: int) -> tuple[Any, ...]:
        return ("SORT_RO", self._keys.of(b"x", saga), "BY", "nosort", "LIMIT", at, number, *self._joined(b"ev"))

    async def _events_after(self, saga: bytes, after_seq: int) -> tuple[int | None, list[Any]]:
        """Return the first entries in which there are events above that, and how many entries are before the next ones.

        `None` says that there are no more. Where the index does not know it is none, and all have to be read.
        """
        bounds = [
            (_score(after_seq), "-inf", "BYSCORE", "REV", "LIMIT", 0, _TIES),
            (f"({_score(after_seq)}", "+inf", "BYSCORE", "LIMIT", 0, _EVENTS),
        ]
        asked = Ranges(self._keys.of(b"s", saga), bounds, (b"ev",))
        members, values, also = await self._ranges(asked, *self._in_order(saga))
        below = sum(score <= after_seq for _, score in members)
        ties = sum(score == members[0][1] for _, score in members) if below == _TIES else 0
        if also[0] is None or also[1] or ties >= below:
            return 0, []
        found = sorted(
            (int(place.partition(b":")[0]), data)
            for (place, _), data in zip(members[ties:], values[ties:], strict=True)
        )
        run = [data for number, (entry, data) in enumerate(found) if entry == found[0][0] + number]
        at_end = len(run) == len(found) and len(members) - below < _EVENTS
        return None if at_end else found[0][0] - 1 + len(run), run

    # ---- for replays

    async def read_checkpoints(self, asked: Sequence[tuple[str, str]]) -> Sequence[Checkpoint]:
        """See `AnswersTogether.read_checkpoints`. What the last entries do not tell takes a second trip."""
        found = await self._checkpoints(asked, _LAST)
        left = [place for place, checkpoint in enumerate(found) if checkpoint is None]
        if left:
            for place, checkpoint in zip(
                left, await self._checkpoints([asked[place] for place in left], _MOST_ENTRIES), strict=True
            ):
                found[place] = checkpoint
        return [checkpoint for checkpoint in found if checkpoint is not None]

    async def _checkpoints(self, asked: Sequence[tuple[str, str]], number: int) -> list[Checkpoint | None]:
        of, commands = self._keys.of, list[Any]()
        for saga_id, _ in asked:
            saga = as_key(saga_id)
            kinds = self._joined(b"log", b"st", b"ev")
            commands += [
                ("GET", of(b"saga", saga)),
                ("SORT_RO", of(b"x", saga), "BY", "nosort", "LIMIT", 0, number, *kinds, "DESC"),
                ("EXISTS", of(b"o", saga)),
            ]
        replies, now = await self._send(*commands), self.clock()
        found: list[Checkpoint | None] = []
        for (saga_id, step), *parts in zip(asked, replies[::3], replies[1::3], replies[2::3], strict=True):
            record, entries, unordered = parts
            whole = len(entries) < 3 * number
            if unordered and not whole:
                found.append(None)
                continue
            stretch = Stretch(saga_id, entries[::3], entries[1::3], whole=whole)
            found.append(checkpoint_of(saga_id, step, record, stretch, events_in(saga_id, entries[2::3]), now))
        return found


def _score(seq: int) -> int:
    """Return the number within those that the server reads as one."""
    return max(-MAX_SEQ, min(seq, MAX_SEQ))
