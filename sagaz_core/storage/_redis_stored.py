"""All that Redis has of a saga, and the commands that change what is there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage._checks import another_event, another_saga, another_snapshot
from sagaz_core.storage._redis_records import (
    Keys,
    as_key,
    index_names,
    micros,
    pack_log,
    pack_states,
    runs_in,
    unpack_events,
    unpack_heads,
    unpack_log,
    unpack_saga,
    unpack_snapshots,
    unpack_summary,
)
from sagaz_core.storage._redis_runs import Runs, indices_of, run_member
from sagaz_core.storage._redis_sagas import LONG_AGO, Known, holding_of, times_of
from sagaz_core.storage.base import Batch, SagaSnapshot, StoredEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sagaz_core.storage._redis_connections import Command

_place = attrgetter("seq", "snapshot_id")


class StoredSaga:
    """All that is stored of a saga, read under WATCH."""

    def __init__(self, keys: Keys, saga_id: str, entries: Sequence[Any], values: Sequence[Any]) -> None:
        self.saga_id = saga_id
        self._keys = keys
        self._saga = as_key(saga_id)
        self._record, self._summary, indexed, *self._claims = values
        self._entries: dict[int, tuple[bytes, bytes | None]] = {}
        self._events: dict[int, StoredEvent] = {}
        self._number_of_events: dict[int, int] = {}
        for place, log, states, events in zip(*(entries[part::4] for part in range(4)), strict=True):
            if log is not None:
                number = int(place.partition(b":")[0])
                self._entries[number] = (log, states)
                for event in () if events is None else unpack_events(saga_id, events):
                    self._events[event.seq] = event
        self._numbers = sorted(self._entries)
        self.indexed = bool(self._numbers) and int(indexed or 0) == self._numbers[-1]
        """Whether all entries are in runs and their indices, as those of a long saga are."""
        self._headers = {number: unpack_log(log, saga_id)[1:] for number, (log, _) in self._entries.items()}
        self._runs = {name: run for _, headers in self._headers.values() for name, run in runs_in(headers).items()}
        # Those whose states have expired in the server are there too, until they are pruned.
        self._stored = {
            number: unpack_heads(log, saga_id) if states is None else unpack_snapshots(log, states, saga_id)
            for number, (log, states) in self._entries.items()
        }
        self.heads = sorted((s for found in self._stored.values() for s in found), key=_place)
        self.snapshots = [s for n in self._numbers if self._entries[n][1] is not None for s in self._stored[n]]
        self.snapshots.sort(key=_place)

    @property
    def is_there(self) -> bool:
        """Whether there is anything."""
        return bool(self._entries) or self._record is not None

    def known(self) -> Known:
        """Return what is known of it."""
        heads = [(number, self._headers[number][1]) for number in self._numbers]
        last = _place(self.heads[-1]) if self.heads else Known().last_snapshot
        summary = None if self._summary is None else unpack_summary(self.saga_id, self._summary)
        last_event = max(self._events, default=-1)
        happened, created = times_of(list(self._events.values()), self.heads)
        times = max(happened, default=LONG_AGO), max(created, default=LONG_AGO)
        return Known(
            max(self._numbers, default=0),
            last_event,
            last,
            summary,
            holding_of(heads),
            last_times=times,
            indexed=self.indexed,
        )

    def without_known(self, batch: Batch) -> Batch:
        """Return what of the batch is not there yet. Raises `DuplicateSagaError` for what is there, and differs."""
        record = batch.saga
        if record is not None and self._record is not None:
            if unpack_saga(self.saga_id, self._record) != record:
                raise another_saga(record)
            record = None
        events: dict[int, StoredEvent] = {}
        for event in batch.events:
            known = self._events.get(event.seq) or events.setdefault(event.seq, event)
            if known != event:
                raise another_event(event)
        new_events = [event for seq, event in sorted(events.items()) if seq not in self._events]
        return Batch(batch.saga_id, record, new_events, self._new_snapshots(batch), batch.summary)

    def _new_snapshots(self, batch: Batch) -> list[SagaSnapshot]:
        mine = {snapshot.snapshot_id: snapshot for snapshot in self.heads}
        has_state = {snapshot.snapshot_id for snapshot in self.snapshots}
        new: dict[str, SagaSnapshot] = {}
        for snapshot, claim in zip(batch.snapshots, self._claims, strict=True):
            bare = snapshot._replace(bases=())
            known = mine.get(snapshot.snapshot_id)
            if known is None and claim is None:
                known = new.setdefault(snapshot.snapshot_id, bare)
            if known is not None and snapshot.snapshot_id in mine and snapshot.snapshot_id not in has_state:
                known = known._replace(data=snapshot.data)  # what has expired cannot be compared
            if known != bare:
                raise another_snapshot(snapshot)
        return sorted(new.values(), key=_place)

    def regrouped(self, added: Batch, entries: Iterable[int]) -> list[Command]:
        """Return what makes the new entries known to those snapshots behind them that have them between their bases."""
        if not added.snapshots:
            return []
        lowest = min(snapshot.seq for snapshot in added.snapshots)
        members = [part for entry in entries for part in (entry, b"%d:%s" % (entry, self._saga))]
        return [
            ("ZADD", self._keys.of(b"g", as_key(s.snapshot_id)), *members)
            for s in self.heads
            if s.base_seq is not None and s.seq >= lowest
        ]

    def indexing(self) -> list[Command]:
        """Return what puts all entries into runs, and takes away what there is of these."""
        before = self._keys_of_runs()
        commands: list[Command] = [("DEL", *before)] if before else []
        known = Known()
        for number in self._numbers:
            stored = sorted(self._stored[number], key=_place)
            times = times_of((), stored)
            runs = Runs(self._keys, self.saga_id, known, number)
            runs.add(stored, times[1])
            log = pack_log(self.saga_id, self._headers[number][0], self._stored[number], runs.names)
            commands += [("SET", self._keys.of(b"log", b"%d:%s" % (number, self._saga)), log), *runs.commands]
            known = replace(known, entry=number - 1).with_entry(Batch(self.saga_id, snapshots=stored), times, runs.last)
        return [
            *commands,
            ("SET", self._keys.of(b"c", self._saga), known.entry),
            ("INCR", self._keys.of(b"v", self._saga)),
        ]

    def _keys_of_runs(self) -> list[bytes]:
        members = {run_member(self._saga, run) for run in self._runs.values()}
        indices = {index for snapshot in self.heads for index in indices_of(self._keys, snapshot)}
        return [*(self._keys.of(b"r", member) for member in sorted(members)), *sorted(indices)]

    def _out_of_runs(self, gone: set[str]) -> list[Command]:
        """Return what takes snapshots out of runs, and runs out of indices, where no other is there."""
        left: dict[bytes, set[int]] = defaultdict(set)
        going: dict[bytes, set[int]] = defaultdict(set)
        for head in self.heads:
            run = self._runs.get(head.snapshot_id)
            if run is not None:
                keys = (self._keys.of(b"r", run_member(self._saga, run)), *indices_of(self._keys, head))
                for key in keys:
                    (going if head.snapshot_id in gone else left)[key].add(run)
        commands: list[Command] = []
        for key, runs in sorted(going.items()):
            if key not in left:
                commands.append(("DEL", key))
            elif lost := runs - left[key]:
                commands.append(("ZREM", key, *(run_member(self._saga, run) for run in sorted(lost))))
        return commands

    def rewriting(self, gone: set[str], changed: Mapping[str, SagaSnapshot]) -> list[Command]:
        """Return what takes snapshots out of their entries, and puts others in the place of some."""
        of, commands = self._keys.of, list[Any]()
        ends = []
        for number, stored in self._stored.items():
            kept = [changed.get(s.snapshot_id, s) for s in stored if s.snapshot_id not in gone]
            ends += [s.retention_until for s in kept if s.retention_until is not None]
            if kept == stored:
                continue
            place = b"%d:%s" % (number, self._saga)
            _, states = self._entries[number]
            # An entry stays when it is empty: by its number another process knows that there was a write.
            commands.append(
                ("SET", of(b"log", place), pack_log(self.saga_id, self._headers[number][0], kept, self._runs))
            )
            if not kept:
                commands += [("DEL", of(b"st", place)), ("ZREM", of(b"t", self._saga), place)]
                continue
            commands.append(("ZADD", of(b"t", self._saga), "XX", min(micros(s.created_at) for s in kept), place))
            if states is not None:
                commands.append(("SET", of(b"st", place), pack_states(kept), "KEEPTTL"))
        for name in sorted(gone):
            commands.append(("DEL", of(b"id", as_key(name)), of(b"g", as_key(name))))
        commands += self._out_of_runs(gone)
        if commands:
            commands.append(("INCR", of(b"v", self._saga)))
        due: Command = ("ZADD", of(b"exp"), micros(min(ends)), self._saga) if ends else ("ZREM", of(b"exp"), self._saga)
        return [*commands, due]

    def deleting(self) -> list[Command]:
        """Return what deletes all of it."""
        ids = [as_key(snapshot.snapshot_id) for snapshot in self.heads]
        places = [b"%d:%s" % (number, self._saga) for number in self._numbers]
        return deleting(self._keys, self.saga_id, places, ids, self._summary, self._keys_of_runs())


def deleting(
    keys: Keys,
    saga_id: str,
    places: Iterable[bytes],
    ids: Iterable[bytes],
    summary: bytes | None,
    others: Iterable[bytes],
) -> list[Command]:
    """Return what deletes a saga with these entries, snapshots, summary and other keys."""
    of, saga = keys.of, as_key(saga_id)
    doomed = [of(kind, saga) for kind in (b"saga", b"sum", b"x", b"v", b"c", b"s", b"t", b"o", b"b")]
    doomed += [of(kind, place) for place in places for kind in (b"log", b"ev", b"st")]
    doomed += [*(of(kind, name) for name in ids for kind in (b"id", b"g")), keys.guard(saga_id), *others]
    try:
        known = None if summary is None else unpack_summary(saga_id, summary)
    except CorruptDataError:
        known = None  # it stays in indices that nobody knows of: who reads them looks at what they lead to
    indices = [b"sagas", b"sums", b"all", b"exp", *(b"f:" + name for name in sorted(index_names(known)))]
    return [("DEL", *doomed), *(("ZREM", of(index), saga) for index in indices)]
