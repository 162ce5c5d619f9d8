"""Runs: what leads from a step or a phase to a saga's snapshots, with all that it takes to read them, in one trip.

A *run* is the entries of some snapshots that follow each other and have one keyframe, and those of their bases. For
each phase, and each pair of a step and a phase, there is an index of the runs that have such a snapshot. Each snapshot
is of one run, and the runs follow each other as their snapshots do: the latest snapshot is in the latest run of its
index. (What asks for a step alone looks into the indices of all phases.)
Reading follows the index to the run, and the run to the entries, with no answer in between.
A saga of few entries is read whole in one trip, and has none of this: the write that makes it longer does.
"""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from sagaz_core.storage._redis_records import as_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.storage._redis_connections import Command
    from sagaz_core.storage._redis_records import Keys
    from sagaz_core.storage._redis_sagas import Known
    from sagaz_core.storage.base import SagaSnapshot

SHORT = 256
"""How many entries a saga may have without being in runs."""

_PHASES = ("before", "after", "undone", "final", "failed", "manual")
MOST_ENTRIES = 32  # a keyframe comes every 16 snapshots
FIELDS = [b"since", *(b"%d" % place for place in range(MOST_ENTRIES))]
_OFFSET = 2**63


class Run(NamedTuple):
    """A run that the next snapshot may be added to: its name is the `seq` of the first snapshot that is of it.

    It has all snapshots of the saga from `since` up to its last one, in that many entries. The indices of `phases` have
    it.
    """

    name: int
    since: int
    entries: int
    last_entry: int
    phases: frozenset[str] = frozenset()


class Runs:
    """The commands that add the snapshots of an entry to runs; `names` are those of the runs that they are of."""

    def __init__(self, keys: Keys, saga_id: str, known: Known, entry: int) -> None:
        self.commands: list[Command] = []
        self.names: dict[str, int] = {}
        self.last = known.run
        self._keys = keys
        self._saga = as_key(saga_id)
        self._known = known
        self._entry = entry
        self._time = known.last_times[1]

    def add(self, snapshots: Sequence[SagaSnapshot], times: Sequence[int]) -> None:
        """Add snapshots, in order, which are of these times."""
        for snapshot, time in zip(snapshots, times, strict=True):
            run = self._run_of(snapshot)
            self.names[snapshot.snapshot_id] = run.name
            # By the latest time so far, which goes up with them as long as no clock goes back.
            self._time = max(self._time, time)
            indices = indices_of(self._keys, snapshot)
            if snapshot.phase in run.phases:
                del indices[0]
            else:
                self.last = run._replace(phases=run.phases | {snapshot.phase})
            member = run_member(self._saga, run.name)
            self.commands += [("ZADD", index, "NX", self._time, member) for index in indices]

    def _run_of(self, snapshot: SagaSnapshot) -> Run:
        run, entry, saga = self.last, self._entry, self._saga
        if run is not None and snapshot.base_seq == run.since:
            if run.last_entry == entry:
                return run
            if run.entries < MOST_ENTRIES:
                self._put(run.name, b"%d" % run.entries, b"%d:%s" % (entry, saga))
                self.last = run._replace(entries=run.entries + 1, last_entry=entry)
                return self.last
        since = snapshot.seq if snapshot.base_seq is None else snapshot.base_seq
        before = takewhile(lambda held: held[2] >= since, reversed(self._known.holding))
        entries = [number for number, *_ in before][::-1]
        if len(entries) >= MOST_ENTRIES:
            since, entries = snapshot.seq + 1, []  # nothing that is based on others is said to be whole
        entries.append(entry)
        places = [part for place in enumerate(entries) for part in (b"%d" % place[0], b"%d:%s" % (place[1], saga))]
        self._put(snapshot.seq, b"since", since, *places)
        self.last = Run(snapshot.seq, since, len(entries), entry)
        return self.last

    def _put(self, name: int, *fields: bytes | int) -> None:
        self.commands.append(("HSET", self._keys.of(b"r", run_member(self._saga, name)), *fields))


def run_member(saga: bytes, name: int) -> bytes:
    """Return what stands for a run in an index and in its key: those of one time are in order of their names."""
    return b"%020d:%s" % (name + _OFFSET, saga)


def indices_of(keys: Keys, snapshot: SagaSnapshot) -> list[bytes]:
    """Return the keys of the indices that the snapshot's run is in, that of its phase first."""
    saga_id, step, phase = snapshot.saga_id, snapshot.step_name, snapshot.phase
    asked = [(None, phase), (step, phase)] if phase in _PHASES else [(None, phase), (step, phase), (step, None)]
    return [_index(keys, saga_id, *one) for one in asked]


def indices_to_ask(keys: Keys, saga_id: str, step: str | None, phase: str | None) -> list[bytes]:
    """Return the keys of the indices that have, together, all runs with a snapshot of this step and phase."""
    phases = [phase] if step is None or phase is not None else [*_PHASES, None]
    return [_index(keys, saga_id, step, one) for one in phases]


def _index(keys: Keys, saga_id: str, step: str | None, phase: str | None) -> bytes:
    """Return the key of the index by step and phase; that of a step without one has all phases that we do not know."""
    return keys.of(b"i", _part(saga_id), _part(step), _part(phase))


def _part(text: str | None) -> bytes:
    return b"" if text is None else b"%d:%s" % (len(text), as_key(text))
