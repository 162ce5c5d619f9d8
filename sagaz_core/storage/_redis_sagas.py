"""What is known of a saga in Redis, and the commands that add an entry to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sagaz_core.storage._redis_connections import Command
    from sagaz_core.storage.base import Batch, SagaSnapshot, SagaSummary, StoredEvent

_REMEMBERED = 64  # a difference is from the last 15 or so
LONG_AGO = -(2**63)
_BEFORE_ALL = (LONG_AGO, "")


class Keys:
    """The names of the store's keys."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode() + b":"

    def of(self, kind: bytes, *names: bytes) -> bytes:
        """Return the key of that kind and name."""
        return self.prefix + b":".join((kind, *names))


@dataclass(frozen=True, slots=True)
class Known:
    """What this process knows of a saga, when nobody else has written to it.

    `entry` is the number of the last one. `holding` has, for the last entries with snapshots, the lowest and the
    highest `seq` of them, and whether their states expire; `forgotten` is the highest `seq` in the entries before.
    `last_times` are the latest times of events and of snapshots.
    """

    entry: int = 0
    last_event: int = -1
    last_snapshot: tuple[int, str] = _BEFORE_ALL
    summary: SagaSummary | None = None
    holding: tuple[tuple[int, int, int, bool], ...] = ()
    forgotten: int = -(2**63)
    last_times: tuple[int, int] = (LONG_AGO, LONG_AGO)

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

    def with_entry(self, batch: Batch, times: tuple[list[int], list[int]]) -> Known:
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


@dataclass(slots=True)
class Addition:
    """An entry to be added: the commands of its transaction, in which the one at `claim` decides whether it is.

    That one sets several keys if there is none of them. All that must not happen otherwise hangs on a key that it sets:
    to rename one that is not there is an error of no effect. What else happens does no harm: whoever reads an index
    looks at what it leads to.
    """

    keys: Keys
    batch: Batch
    known: Known
    now: datetime
    commands: list[Command] = field(default_factory=list)
    claim: int = 0
    times: tuple[list[int], list[int]] = ([], [])

    def __post_init__(self) -> None:
        of, batch, entry = self.keys.of, self.batch, self.known.entry + 1
        self.times = times_of(batch.events, batch.snapshots)
        saga = as_key(batch.saga_id)
        place = b"%d:%s" % (entry, saga)
        claimed: list[bytes] = [
            of(b"log", place),
            pack_log(batch.saga_id, len(batch.events), list(batch.snapshots)),
        ]
        if batch.saga is not None:
            claimed += [of(b"saga", saga), pack_saga(batch.saga)]
            self.commands.append(("ZADD", of(b"sagas"), 0, saga))
        if batch.events:
            claimed += [of(b"ev", place), pack_events(list(batch.events))]
        after: list[Command] = [("ZADD", of(b"x", saga), entry, place)]
        if entry == 1:
            after.append(("ZADD", of(b"all"), 0, saga))
        self._add_order(saga, place, after)
        self._add_summary(saga, place, claimed, after)
        if batch.snapshots:
            self._add_states(saga, place, claimed, after)
        self.claim = len(self.commands)
        self.commands += [("MSETNX", *claimed), *after]

    def _add_order(self, saga: bytes, place: bytes, after: list[Command]) -> None:
        """Have the entry found by what is in it, and say what is not in order, if anything is not."""
        of, batch, known = self.keys.of, self.batch, self.known
        happened, created = self.times
        seqs = [event.seq for event in batch.events] + [snapshot.seq for snapshot in batch.snapshots]
        ordered = True
        if seqs:
            first = min(seqs)
            ordered = first >= known.last_event and first >= known.last_snapshot[0]
            after.append(("ZADD", of(b"s", saga), first, place))
        elif known.entry == 0:
            after.append(("ZADD", of(b"s", saga), LONG_AGO, place))
        if created:
            after.append(("ZADD", of(b"t", saga), min(created), place))
            ordered = ordered and min((s.seq, s.snapshot_id) for s in batch.snapshots) >= known.last_snapshot
        if not ordered:
            after.append(("SET", of(b"o", saga), b""))
        if not (_in_time(known.last_times[0], happened) and _in_time(known.last_times[1], created)):
            after.append(("SET", of(b"b", saga), b""))

    def _add_summary(self, saga: bytes, place: bytes, claimed: list[bytes], after: list[Command]) -> None:
        of, summary = self.keys.of, self.known.new_summary(self.batch)
        if summary is None:
            return
        staged = of(b"tmp", b"sum", place)
        claimed += [staged, pack_summary(summary)]
        after += [("RENAME", staged, of(b"sum", saga)), ("ZADD", of(b"sums"), 0, saga)]
        before, names = index_names(self.known.summary), index_names(summary)
        after += [("ZADD", of(b"f", name), 0, saga) for name in sorted(names - before)]
        after += [("ZREM", of(b"f", name), saga) for name in sorted(before - names)]

    def _add_states(self, saga: bytes, place: bytes, claimed: list[bytes], after: list[Command]) -> None:
        of, batch = self.keys.of, self.batch
        kept_for = self._kept_for()
        states = of(b"st", place)
        if kept_for is None:
            claimed += [states, pack_states(list(batch.snapshots))]
        else:
            staged = of(b"tmp", b"st", place)
            claimed += [staged, pack_states(list(batch.snapshots))]
            after += [("PEXPIRE", staged, kept_for), ("RENAME", staged, states)]
        for snapshot in batch.snapshots:
            name = as_key(snapshot.snapshot_id)
            claimed += [of(b"id", name), place]
            group = [self.known.entry + 1, *(entry for entry, _ in self.known.bases(snapshot))]
            members = [part for entry in group for part in (entry, b"%d:%s" % (entry, saga))]
            after.append(("ZADD", of(b"g", name), *members))
        ends = [micros(s.retention_until) for s in batch.snapshots if s.retention_until is not None]
        if ends:
            after.append(("ZADD", of(b"exp"), "LT", min(ends), saga))
        after += self._keep_bases(saga, kept_for)

    def _kept_for(self) -> int | None:
        """Return for how many milliseconds the states are kept, `None` for ever.

        By the store's clock: what it says has expired already is left to `prune`.
        """
        ends = [snapshot.retention_until for snapshot in self.batch.snapshots]
        latest = max((end for end in ends if end is not None), default=None)
        if latest is None or None in ends:
            return None
        left = int((latest - self.now).total_seconds() * 1000) + 1000
        return left if left > 1000 else None

    def _keep_bases(self, saga: bytes, kept_for: int | None) -> list[Command]:
        entries = {
            entry for snapshot in self.batch.snapshots for entry, expires in self.known.bases(snapshot) if expires
        }
        keys = [self.keys.of(b"st", b"%d:%s" % (entry, saga)) for entry in sorted(entries)]
        return [("PERSIST", key) if kept_for is None else ("PEXPIRE", key, kept_for, "GT") for key in keys]


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
