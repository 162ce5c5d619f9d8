"""Reading runs from Redis: from an index to runs, to entries, to what is in them, in one trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.clock import new_id
from sagaz_core.storage._redis_core import RedisCore, with_scores
from sagaz_core.storage._redis_reading import Stretch
from sagaz_core.storage._redis_records import as_key
from sagaz_core.storage._redis_runs import FIELDS, SHORT, indices_to_ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagaz_core.storage._redis_connections import Command, Trip

_PARTS = 3  # of what is returned for an entry


class AskedOfRuns(NamedTuple):
    """The last runs of an index of a saga, that many, of which the first time is not above `most`."""

    saga_id: str
    step: str | None
    phase: str | None
    most: int | str
    in_time: bool
    """Whether the answer hangs on the clock not having gone back."""
    number: int
    short: bool
    """Whether the saga may be a short one, which has no runs."""


class FoundRuns(NamedTuple):
    """How many runs there were, what is in them, and the `seq` from which on nothing is missing if it is one run."""

    number: int
    stretch: Stretch
    since: int | None


class RedisRuns(RedisCore):
    """How runs are read."""

    async def _runs(self, trip: Trip, asked: AskedOfRuns) -> FoundRuns | Stretch | None:
        """Return the runs, or all of a saga that is short; `None` of another one, of which the runs do not tell all."""
        ranges = self._ranges_of_runs(asked)
        runs, entries, *staged = (self._keys.of(b"tmp", b"run", new_id().encode()) for _ in range(2 + len(ranges)))
        fields = [part for field in FIELDS for part in (b"GET", self._keys.of(b"r", b"*->" + field))]
        commands: list[Command] = [
            *(("ZRANGESTORE", key, *one) for key, one in zip(staged, ranges, strict=True)),
            ("ZUNIONSTORE", runs, len(staged), *staged, "AGGREGATE", "MAX"),
            ("ZREMRANGEBYRANK", runs, 0, -1 - asked.number),
            ("SORT", runs, "BY", "nosort", *fields, "STORE", entries),
            ("SORT", entries, "BY", "nosort", "GET", "#", *self._joined(b"log", b"st")),
            ("DEL", runs, entries, *staged),
            *self._whether(asked),
        ]
        if asked.short:
            first = "BY", "nosort", "LIMIT", 0, SHORT, *self._joined(b"log", b"st")
            commands.append(("SORT_RO", self._keys.of(b"x", as_key(asked.saga_id)), *first))
        reply = await self._unless_read_only(trip, commands)
        if reply is None:
            return await self._runs_in_three_trips(trip, asked, ranges)
        all_of_it = reply.pop() if asked.short else []
        *_, found, _, unordered, indexed, written = reply
        runs_found = _found(asked, max(reply[: len(ranges)]), found, (unordered, indexed, written))
        if runs_found is not None or not asked.short or written > SHORT:
            return runs_found
        return Stretch(asked.saga_id, all_of_it[::2], all_of_it[1::2])

    def _ranges_of_runs(self, asked: AskedOfRuns) -> list[Command]:
        indices = indices_to_ask(self._keys, asked.saga_id, asked.step, asked.phase)
        return [(index, asked.most, "-inf", "BYSCORE", "REV", "LIMIT", 0, asked.number) for index in indices]

    def _whether(self, asked: AskedOfRuns) -> list[Command]:
        """Return what asks whether the runs can tell."""
        of, saga = self._keys.of, as_key(asked.saga_id)
        marks = [of(b"o", saga), *([of(b"b", saga)] if asked.in_time else [])]
        return [("EXISTS", *marks), ("GET", of(b"c", saga)), ("ZCARD", of(b"x", saga))]

    async def _runs_in_three_trips(self, trip: Trip, asked: AskedOfRuns, ranges: Sequence[Command]) -> FoundRuns | None:
        replies = await trip.send([*(("ZRANGE", *one, "WITHSCORES") for one in ranges), *self._whether(asked)])
        replies, marks = replies[: len(ranges)], replies[len(ranges) :]
        found = sorted({(score, member) for reply in replies for member, score in with_scores(reply)})
        members = list(dict.fromkeys(member for _, member in reversed(found)))[: asked.number]
        read = [("HMGET", self._keys.of(b"r", member), *FIELDS) for member in reversed(members)]
        names = [name for reply in (await trip.send(read) if read else ()) for name in reply]
        keys = [self._keys.of(kind, name or b"") for name in names for kind in (b"log", b"st")]
        values = (await trip.send([("MGET", *keys)]))[0] if keys else []
        entries = [part for n, name in enumerate(names) for part in (name, *values[2 * n : 2 * n + 2])]
        return _found(asked, max(len(with_scores(reply)) for reply in replies), entries, marks)


def _found(asked: AskedOfRuns, number: int, entries: Sequence[Any], marks: Sequence[Any]) -> FoundRuns | None:
    unordered, indexed, written = marks
    if unordered or int(indexed or 0) != written:
        return None
    since = int(entries[0]) if asked.number == 1 and entries and entries[0] else None
    held: dict[bytes, tuple[bytes, bytes | None]] = {}
    for name, log, states in zip(*(entries[part::_PARTS] for part in range(_PARTS)), strict=True):
        if log is not None:
            held[name] = log, states
    logs, states = [log for log, _ in held.values()], [states for _, states in held.values()]
    return FoundRuns(number, Stretch(asked.saga_id, logs, states, whole=False), since)
