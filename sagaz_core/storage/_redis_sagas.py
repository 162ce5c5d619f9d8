"""What is known of a saga in Redis, and the commands that add entries to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sagaz_core.storage._redis_connections import Conditional
from sagaz_core.storage._redis_records import (
    as_key,
    index_names,
    micros,
    pack_events,
    pack_log,
    pack_saga,
    pack_states,
    pack_summary,
)
from sagaz_core.storage._redis_runs import SHORT, Runs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sagaz_core.storage._redis_connections import Command
    from sagaz_core.storage._redis_records import Keys
    from sagaz_core.storage._redis_runs import Run
    from sagaz_core.storage.base import Batch, SagaSnapshot, SagaSummary, StoredEvent

_REMEMBERED = 64  # a difference is from the last 15 or so
LONG_AGO = -(2**63)
_BEFORE_ALL = (LONG_AGO, "")


@dataclass(frozen=True, slots=True)
class Known:
    """What this process knows of a saga, when nobody else has written to it.

    `entry` is the number of the last one. `holding` has, for the last entries with snapshots, the lowest and the
    highest `seq` of them, and whether their states expire; `forgotten` is the highest `seq` in the entries before.
    `last_times` are the latest times of events and of snapshots. `run` is the one of the last snapshot, and `indexed`
    says that all entries are in the indices of runs.
    """

    entry: int = 0
    last_event: int = -1
    last_snapshot: tuple[int, str] = _BEFORE_ALL
    summary: SagaSummary | None = None
    holding: tuple[tuple[int, int, int, bool], ...] = ()
    forgotten: int = -(2**63)
    last_times: tuple[int, int] = (LONG_AGO, LONG_AGO)
    run: Run | None = None
    indexed: bool = False

    def before(self, entries: int) -> Known | None:
        """Return what is known when so many entries are to be added; `None` where all are to be put into runs first."""
        if self.indexed or (entries == 1 and self.entry < SHORT):  # several at once are large ones
            return self
        return None if self.entry else replace(self, indexed=True)

    def takes(self, batch: Batch) -> bool:
        """Whether the batch comes behind all that is known, and so cannot be in contradiction to it."""
        if batch.saga is not None and self.entry:
            return False
        seqs = [self.last_event, *(event.seq for event in batch.events)]
        places = [self.last_snapshot, *((s.seq, s.snapshot_id) for s in batch.snapshots)]
        ids = {snapshot.snapshot_id for snapshot in batch.snapshots}
        return (
            all(a < b for a, b in pairwise(seqs))
            and all(a < b for a, b in pairwise(places))
            and len(ids) == len(batch.snapshots)
            and all(s.base_seq is None or s.base_seq > self.forgotten for s in batch.snapshots)
        )

    def with_entry(self, batch: Batch, times: tuple[list[int], list[int]], run: Run | None) -> Known:
        """Return what is known when the batch is added; `times` are those of its events and of its snapshots."""
        summary = self.new_summary(batch) or self.summary
        holding = self.holding
        if batch.snapshots:
            seqs = [snapshot.seq for snapshot in batch.snapshots]
            expires = all(snapshot.retention_until is not None for snapshot in batch.snapshots)
            holding = (*holding, (self.entry + 1, min(seqs), max(seqs), expires))
        return Known(
            self.entry + 1,
            max([self.last_event, *(event.seq for event in batch.events)]),
            max([self.last_snapshot, *((s.seq, s.snapshot_id) for s in batch.snapshots)]),
            summary,
            holding[-_REMEMBERED:],
            holding[-_REMEMBERED - 1][2] if len(holding) > _REMEMBERED else self.forgotten,
            (max([self.last_times[0], *times[0]]), max([self.last_times[1], *times[1]])),
            run,
            self.indexed,
        )

    def new_summary(self, batch: Batch) -> SagaSummary | None:
        """Return the batch's summary, if it replaces the one that is known."""
        summary = batch.summary
        if summary is None or (self.summary is not None and summary.seq <= self.summary.seq):
            return None
        return summary._replace(tags=dict(summary.tags))

    def bases(self, snapshot: SagaSnapshot) -> list[tuple[int, bool]]:
        """Return the entries that have the snapshot's bases, and whether they expire."""
        first = snapshot.base_seq
        if first is None:
            return []
        return [
            (entry, expires)
            for entry, lowest, highest, expires in self.holding
            if highest >= first and lowest <= snapshot.seq
        ]


class Addition:
    """A batch to be added, as one entry or, if it is large, as several: its `parts`.

    All of it is one transaction, which is done if there is no entry of the first number yet and nothing has the ids of
    the record and of the snapshots.
    """

    def __init__(self, keys: Keys, batch: Batch, parts: Sequence[Batch], known: Known, now: datetime) -> None:
        self.batch = batch
        self.after = known
        """What is known when it is added."""
        self.commands: list[Command] = []
        self._keys = keys
        self._saga = as_key(batch.saga_id)
        self._now = now
        of = keys.of
        self._absent = [of(b"log", self._place(known.entry + 1))]
        if batch.saga is not None:
            self._absent.append(of(b"saga", self._saga))
        self._absent += [of(b"id", as_key(snapshot.snapshot_id)) for snapshot in batch.snapshots]
        for part in parts:
            self._add(part)

    def conditional(self) -> Conditional:
        """Return what is to be sent."""
        return Conditional(self._keys.guard(self.batch.saga_id), self._absent, self.commands)

    def _place(self, entry: int) -> bytes:
        return b"%d:%s" % (entry, self._saga)

    def _add(self, part: Batch) -> None:
        """Add an entry."""
        of, known, saga = self._keys.of, self.after, self._saga
        entry = known.entry + 1
        place = self._place(entry)
        times = times_of(part.events, part.snapshots)
        runs = Runs(self._keys, part.saga_id, known, entry)
        if known.indexed:
            runs.add(part.snapshots, times[1])
        values: list[bytes] = [of(b"log", place), pack_log(part.saga_id, len(part.events), part.snapshots, runs.names)]
        if part.saga is not None:
            values += [of(b"saga", saga), pack_saga(part.saga)]
            self.commands.append(("ZADD", of(b"sagas"), 0, saga))
        if part.events:
            values += [of(b"ev", place), pack_events(list(part.events))]
        self.commands.append(("ZADD", of(b"x", saga), entry, place))
        if entry == 1:
            self.commands.append(("ZADD", of(b"all"), 0, saga))
        self._add_order(part, place, times)
        self._add_summary(part, values)
        if part.snapshots:
            self._add_states(part, place, values)
            self.commands += runs.commands
        if known.indexed:
            values += [of(b"c", saga), b"%d" % entry]
        self.commands.append(("MSET", *values))
        self.after = known.with_entry(part, times, runs.last)

    def _add_order(self, part: Batch, place: bytes, times: tuple[list[int], list[int]]) -> None:
        """Have the entry found by what is in it, and say what is not in order, if anything is not."""
        of, known, saga = self._keys.of, self.after, self._saga
        happened, created = times
        seqs = [event.seq for event in part.events] + [snapshot.seq for snapshot in part.snapshots]
        ordered = True
        if seqs:
            first = min(seqs)
            ordered = first >= known.last_event and first >= known.last_snapshot[0]
            self.commands.append(("ZADD", of(b"s", saga), first, place))
        elif known.entry == 0:
            self.commands.append(("ZADD", of(b"s", saga), LONG_AGO, place))
        if created:
            self.commands.append(("ZADD", of(b"t", saga), min(created), place))
            ordered = ordered and min((s.seq, s.snapshot_id) for s in part.snapshots) >= known.last_snapshot
        if not ordered:
            self.commands.append(("SET", of(b"o", saga), b""))
        if not (_in_time(known.last_times[0], happened) and _in_time(known.last_times[1], created)):
            self.commands.append(("SET", of(b"b", saga), b""))

    def _add_summary(self, part: Batch, values: list[bytes]) -> None:
        of, known, saga = self._keys.of, self.after, self._saga
        summary = known.new_summary(part)
        if summary is None:
            return
        values += [of(b"sum", saga), pack_summary(summary)]
        self.commands.append(("ZADD", of(b"sums"), 0, saga))
        before, names = index_names(known.summary), index_names(summary)
        self.commands += [("ZADD", of(b"f", name), 0, saga) for name in sorted(names - before)]
        self.commands += [("ZREM", of(b"f", name), saga) for name in sorted(before - names)]

    def _add_states(self, part: Batch, place: bytes, values: list[bytes]) -> None:
        of, known = self._keys.of, self.after
        kept_for = self._kept_for(part)
        states = of(b"st", place), pack_states(part.snapshots)
        if kept_for is None:
            values += states
        else:
            self.commands.append(("SET", *states, "PX", kept_for))
        for snapshot in part.snapshots:
            name = as_key(snapshot.snapshot_id)
            values += [of(b"id", name), place]
            group = [known.entry + 1, *(entry for entry, _ in known.bases(snapshot))]
            members = [part for entry in group for part in (entry, self._place(entry))]
            self.commands.append(("ZADD", of(b"g", name), *members))
        ends = [micros(s.retention_until) for s in part.snapshots if s.retention_until is not None]
        if ends:
            self.commands.append(("ZADD", of(b"exp"), "LT", min(ends), self._saga))
        self._keep_bases(part, kept_for)

    def _kept_for(self, part: Batch) -> int | None:
        """Return for how many milliseconds the states are kept, `None` for ever.

        By the store's clock: what it says has expired already is left to `prune`.
        """
        ends = [snapshot.retention_until for snapshot in part.snapshots]
        latest = max((end for end in ends if end is not None), default=None)
        if latest is None or None in ends:
            return None
        left = int((latest - self._now).total_seconds() * 1000) + 1000
        return left if left > 1000 else None

    def _keep_bases(self, part: Batch, kept_for: int | None) -> None:
        known = self.after
        entries = {entry for snapshot in part.snapshots for entry, expires in known.bases(snapshot) if expires}
        for entry in sorted(entries):
            key = self._keys.of(b"st", self._place(entry))
            self.commands.append(("PERSIST", key) if kept_for is None else ("PEXPIRE", key, kept_for, "GT"))


def holding_of(entries: Sequence[tuple[int, Sequence[list[Any]]]]) -> tuple[tuple[int, int, int, bool], ...]:
    """Return `Known.holding` of entries by the heads of their snapshots."""
    found = []
    for entry, headers in entries:
        if headers:
            seqs = [header[4] for header in headers]
            found.append((entry, min(seqs), max(seqs), all(header[8] is not None for header in headers)))
    return tuple(found)


def times_of(events: Sequence[StoredEvent], snapshots: Sequence[SagaSnapshot]) -> tuple[list[int], list[int]]:
    """Return the times of the events and of the snapshots."""
    return [micros(event.at) for event in events], [micros(snapshot.created_at) for snapshot in snapshots]


def _in_time(before: int, times: Sequence[int]) -> bool:
    for time in times:
        if time < before:
            return False
        before = time
    return True
