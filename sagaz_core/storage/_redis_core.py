"""What all parts of the Redis store have: connections, names of keys, and how to read an index with all it leads to."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError

from sagaz_core.clock import new_id, utc_now
from sagaz_core.errors import UsageError
from sagaz_core.storage._redis_connections import Connections, raise_first
from sagaz_core.storage._redis_records import Keys
from sagaz_core.storage._redis_sagas import Known

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sagaz_core.storage._redis_connections import Command, Trip

_PREFIX = re.compile(r"[A-Za-z0-9_.{}-]{1,100}")
_KNOWN_SAGAS = 10_000
_NO_WRITES = (ReadOnlyError, NoPermissionError, OutOfMemoryError)
_NO_WRITES_CODES = ("MISCONF", "NOREPLICAS")  # that the driver has no class for


class Ranges(NamedTuple):
    """What is asked of a sorted set: the members within any of the bounds, and what of these kinds is under each."""

    key: bytes
    bounds: Sequence[tuple[Any, ...]]
    kinds: Sequence[bytes]
    by_lex: bool = False


class Found(NamedTuple):
    """The members with their scores, what is under them, one after the other, and the replies to what else was sent."""

    members: list[tuple[bytes, float]]
    values: list[Any]
    also: list[Any]


class RedisCore:
    """The connections and the keys of a store, and what it knows of the sagas that it wrote to."""

    def __init__(
        self, server: str, *, prefix: str = "sagaz", timeout: float = 10.0, pool_size: int = 10, url: str = ""
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(f"{prefix!r:.80} is not a prefix: give 1 to 100 letters, digits, and _ . - {{ }}")
        self.url = url or server
        self.clock: Callable[[], datetime] = utc_now
        self._connections = Connections(self.url, server, prefix, timeout, pool_size)
        self._keys = Keys(prefix)
        self._known: OrderedDict[str, Known] = OrderedDict()

    def _remember(self, saga_id: str, known: Known | None) -> None:
        if known is None:
            self._known.pop(saga_id, None)
            return
        self._known[saga_id] = known
        self._known.move_to_end(saga_id)
        if len(self._known) > _KNOWN_SAGAS:
            self._known.popitem(last=False)

    async def _send(self, *commands: Command) -> list[Any]:
        return await self._connections.use(lambda trip: trip.send(commands))

    def _joined(self, *kinds: bytes) -> list[bytes]:
        return [part for kind in kinds for part in (b"GET", self._keys.of(kind, b"*"))]

    async def _ranges(self, ranges: Ranges, *also: Command) -> Found:
        """Return what is in the ranges, lowest first, with what is under it, and the replies to what else is sent.

        It is one trip. The members are staged in a key for it: a server that takes no writes now is asked in two.
        """
        return await self._connections.use(lambda trip: self._staged(trip, ranges, also))

    async def _staged(self, trip: Trip, ranges: Ranges, also: Sequence[Command]) -> Found:
        of = self._keys.of
        staged = [of(b"tmp", b"page", new_id().encode()) for _ in ranges.bounds]
        commands: list[Command] = [
            *(("ZRANGESTORE", key, ranges.key, *bound) for key, bound in zip(staged, ranges.bounds, strict=True)),
            ("ZUNIONSTORE", staged[0], len(staged), *staged, "AGGREGATE", "MAX"),
            ("ZRANGE", staged[0], 0, -1, "WITHSCORES"),
            ("SORT", staged[0], "BY", "nosort", *self._joined(*ranges.kinds)),
            ("DEL", *staged),
        ]
        if len(staged) == 1:
            del commands[1]
        reply = await self._unless_read_only(trip, [*commands, *also])
        if reply is None:
            return await self._in_two_trips(trip, ranges, also)
        raise_first(reply)  # a user may be refused a part of what was let in
        members, values, _ = reply[len(commands) - 3 : len(commands)]
        return Found(with_scores(members), values, reply[len(commands) :])

    async def _unless_read_only(self, trip: Trip, commands: Sequence[Command]) -> list[Any] | None:
        """Return the replies to a transaction that stages something, `None` from a server that takes no writes now."""
        try:
            (reply,) = await trip.transaction(commands)
        except ResponseError as error:
            if not isinstance(error, _NO_WRITES) and not str(error).startswith(_NO_WRITES_CODES):
                raise
            return None
        return reply  # nothing was watched

    async def _in_two_trips(self, trip: Trip, ranges: Ranges, also: Sequence[Command]) -> Found:
        scored = [] if ranges.by_lex else ["WITHSCORES"]
        replies = await trip.send([*(("ZRANGE", ranges.key, *bound, *scored) for bound in ranges.bounds), *also])
        scores: dict[bytes, float] = {}
        for reply in replies[: len(ranges.bounds)]:
            scores.update(with_scores(reply) if scored else dict.fromkeys(reply, 0.0))
        members = sorted(scores.items(), key=lambda pair: (pair[1], pair[0]))
        keys = [self._keys.of(kind, member) for member, _ in members for kind in ranges.kinds]
        values = (await trip.send([("MGET", *keys)]))[0] if keys else []
        return Found(members, values, replies[len(ranges.bounds) :])


def with_scores(reply: list[Any]) -> list[tuple[bytes, float]]:
    """Return members and scores of a reply of RESP 2, which has them in turn, or of RESP 3, which has them in pairs."""
    if reply and isinstance(reply[0], list):
        return [(member, float(score)) for member, score in reply]
    return [(member, float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True)]
