"""Runs: what leads from a step or a phase to a saga's snapshots, with all that it takes to read them, in one trip.

A *run* is the entries of some snapshots that follow each other and have one keyframe, and those of their bases. For
each step, each phase and each pair of them there is an index of the runs that have such a snapshot. Each snapshot is of
one run, and the runs follow each other as their snapshots do: the latest snapshot is in the latest run of its index.
Reading follows the index to the run, and the run to the entries, with no answer in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sagaz_core.storage._redis_records import as_key, micros

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.storage._redis_connections import Command
    from sagaz_core.storage._redis_records import Keys
    from sagaz_core.storage._redis_sagas import Known
    from sagaz_core.storage.base import SagaSnapshot

MOST_ENTRIES = 32  # a keyframe comes every 16 snapshots
FIELDS = [b"since", *(b"%d" % place for place in range(MOST_ENTRIES))]
_OFFSET = 2**63


class Run(NamedTuple):
    """A run that the next snapshot may be added to: its name is the `seq` of the first snapshot that is of it.

    It has all snapshots of the saga from `since` up to its last one, in that many entries.
    """

    name: int
    since: int
    entries: int
    last_entry: int


class Runs:
    """The commands that add the snapshots of an entry to runs; `names` are those of the runs that they are of."""

    def __init__(self, keys: Keys, saga_id: str, known: Known, entry: int) -> None:
        self.commands: list[Command] = []
        self.names: dict[str, int] = {}
        self.last = known.run
        self._keys = keys
        self._saga_id = saga_id
        self._known = known
        self._entry = entry
        self._time = known.last_times[1]

    def add(self, snapshots: Sequence[SagaSnapshot]) -> None:
        """Add snapshots, in order."""
        saga = as_key(self._saga_id)
        for snapshot in snapshots:
            run = self._run_of(snapshot, saga)
            self.names[snapshot.snapshot_id] = run.name
            # By the latest time so far, which goes up with them as long as no clock goes back.
            self._time = max(self._time, micros(snapshot.created_at))
            for index in indices_of(self._keys, snapshot):
                self.commands.append(("ZADD", index, "NX", self._time, run_member(saga, run.name)))

    def _run_of(self, snapshot: SagaSnapshot, saga: bytes) -> Run:
        run, entry = self.last, self._entry
        if run is not None and snapshot.base_seq == run.since:
            if run.last_entry == entry:
                return run
            if run.entries < MOST_ENTRIES:
                self._put(run.name, saga, b"%d" % run.entries, b"%d:%s" % (entry, saga))
                self.last = run._replace(entries=run.entries + 1, last_entry=entry)
                return self.last
        since = snapshot.seq if snapshot.base_seq is None else snapshot.base_seq
        entries = [number for number, _, highest, _ in self._known.holding if highest >= since]
        if len(entries) >= MOST_ENTRIES:
            since, entries = snapshot.seq + 1, []  # nothing that is based on others is said to be whole
        entries.append(entry)
        places = [part for place in enumerate(entries) for part in (b"%d" % place[0], b"%d:%s" % (place[1], saga))]
        self._put(snapshot.seq, saga, b"since", since, *places)
        self.last = Run(snapshot.seq, since, len(entries), entry)
        return self.last

    def _put(self, name: int, saga: bytes, *fields: bytes | int) -> None:
        self.commands.append(("HSET", self._keys.of(b"r", run_member(saga, name)), *fields))


def run_member(saga: bytes, name: int) -> bytes:
    """Return what stands for a run in an index and in its key: those of one time are in order of their names."""
    return b"%020d:%s" % (name + _OFFSET, saga)


def indices_of(keys: Keys, snapshot: SagaSnapshot) -> list[bytes]:
    """Return the keys of the indices that the snapshot's run is in."""
    asked = (snapshot.step_name, snapshot.phase), (snapshot.step_name, None), (None, snapshot.phase)
    return [index_of(keys, snapshot.saga_id, step, phase) for step, phase in asked]


def index_of(keys: Keys, saga_id: str, step: str | None, phase: str | None) -> bytes:
    """Return the key of the index of the runs with a snapshot of this step and phase, `None` for any."""
    return keys.of(
        b"i", *(b"" if text is None else b"%d:%s" % (len(text), as_key(text)) for text in (saga_id, step, phase))
    )
