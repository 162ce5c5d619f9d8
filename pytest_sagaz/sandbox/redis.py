"""A Redis in memory (fakeredis) whose state is seen and put back, and whose time is that of the sagas."""

from __future__ import annotations

import contextlib
import sys
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_sagaz.sandbox._text import data_of, key_of, readable
from sagaz_core.errors import MissingExtraError

try:
    import fakeredis
except ImportError as error:
    raise MissingExtraError("saga_redis needs the sandbox extra: pip install 'pytest-sagaz[sandbox]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sagaz_core.clock import Clock

State = dict[Any, Any]

_TTL_WHEN_UNKNOWN = 60_000  # ms, for a key that expires in a state that this server was never in


class SagaRedis(fakeredis.FakeAsyncRedis):
    """An asynchronous client of a Redis of the test's own.

    `sync_client` is a synchronous client of the same server; `server` is for clients with other options, such as
    `fakeredis.FakeAsyncRedis(server=saga_redis.server, decode_responses=True)`.
    """

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer()
        super().__init__(server=self.server)

    @cached_property
    def sync_client(self) -> fakeredis.FakeRedis:
        """A synchronous client of the same server."""
        return fakeredis.FakeRedis(server=self.server)


class RedisState:
    """What is in a server, as plain data: `snapshot()` and `restore(state)` are what a `World` asks of a fake.

    `{key: value}` for database 0, and `{1: {key: value}}` for others. A hash is a dict, a list a list, a set a set;
    a sorted set is `{"zset": {member: score}}`, a stream `{"stream": {id: fields}, "groups": …}`, and what has another
    type is its dump. A key that expires is `{"value": …, "expires": True}`: when is not compared, since time passes.
    """

    def __init__(self, server: fakeredis.FakeServer) -> None:
        self._server = server
        self._clients: dict[int, fakeredis.FakeRedis] = {}
        self._expiries: dict[tuple[int, bytes], int] = {}

    def snapshot(self) -> State:
        """Return what is there."""
        state: State = {}
        for number in sorted(number for number, database in self._server.dbs.items() if len(database)):
            found = self._read(number)
            state.update(found if number == 0 else {number: found})
        return state

    def restore(self, state: Mapping[Any, Any]) -> None:
        """Put back what `snapshot` returned, touching only the keys that differ."""
        wanted: dict[int, Mapping[Any, Any]] = {number: {} for number in self._server.dbs}
        wanted[0] = {key: value for key, value in state.items() if not isinstance(key, int)}
        wanted.update({key: value for key, value in state.items() if isinstance(key, int)})
        for number, keys in wanted.items():
            client, now = self._client(number), self._read(number)
            gone = [data_of(key) for key in now if key not in keys or not _same(keys[key], now[key])]
            if gone:
                client.delete(*gone)
            for key, value in keys.items():
                if key not in now or not _same(value, now[key]):
                    self._write(number, data_of(key), value)

    def _client(self, number: int) -> fakeredis.FakeRedis:
        if number not in self._clients:
            self._clients[number] = fakeredis.FakeRedis(server=self._server, db=number)
        return self._clients[number]

    def _read(self, number: int) -> State:
        client: Any = self._client(number)
        found = {}
        for key in sorted(client.keys()):
            value = _READ.get(client.type(key), _read_dump)(client, key)
            remaining = client.pttl(key)
            if remaining >= 0:
                self._expiries[number, key] = remaining
                value = {"value": value, "expires": True}
            found[key_of(key)] = value
        return found

    def _write(self, number: int, key: bytes, value: Any) -> None:
        client = self._client(number)
        expires = isinstance(value, dict) and value.get("expires") is True
        _write(client, key, value["value"] if expires else value)
        if expires:
            client.pexpire(key, max(1, self._expiries.get((number, key), _TTL_WHEN_UNKNOWN)))


def _same(wanted: Any, found: Any) -> bool:
    # 1 == True and 1 == 1.0, so the types are looked at too: repr is what tells them apart at every depth. Sets have
    # no order there.
    return type(wanted) is type(found) and wanted == found and (isinstance(wanted, set) or repr(wanted) == repr(found))


# ---- one key


def _read_string(client: Any, key: bytes) -> Any:
    return readable(client.get(key))


def _read_hash(client: Any, key: bytes) -> Any:
    return {key_of(field): readable(value) for field, value in sorted(client.hgetall(key).items())}


def _read_list(client: Any, key: bytes) -> Any:
    return [readable(item) for item in client.lrange(key, 0, -1)]


def _read_set(client: Any, key: bytes) -> Any:
    return {readable(item) for item in client.smembers(key)}


def _read_zset(client: Any, key: bytes) -> Any:
    return {"zset": {key_of(member): score for member, score in sorted(client.zrange(key, 0, -1, withscores=True))}}


def _read_stream(client: Any, key: bytes) -> Any:
    entries = {
        at.decode(): {key_of(field): readable(value) for field, value in fields.items()}
        for at, fields in client.xrange(key)
    }
    found: dict[str, Any] = {"stream": entries}
    groups = {key_of(group["name"]): _read_group(client, key, group) for group in client.xinfo_groups(key)}
    if groups:
        found["groups"] = groups
    return found


def _read_group(client: Any, key: bytes, group: Mapping[str, Any]) -> dict[str, Any]:
    pending = client.xpending_range(key, group["name"], "-", "+", 10_000) if group["pending"] else ()
    return {
        "read_up_to": group["last-delivered-id"].decode(),
        "pending": {
            entry["message_id"].decode(): [key_of(entry["consumer"]), entry["times_delivered"]] for entry in pending
        },
    }


def _read_dump(client: Any, key: bytes) -> Any:
    return {"dump": (client.dump(key),)}


_READ = {
    b"string": _read_string,
    b"hash": _read_hash,
    b"list": _read_list,
    b"set": _read_set,
    b"zset": _read_zset,
    b"stream": _read_stream,
}


def _write(client: Any, key: bytes, value: Any) -> None:
    if isinstance(value, list):
        client.rpush(key, *map(data_of, value))
    elif isinstance(value, (set, frozenset)):
        client.sadd(key, *sorted(map(data_of, value)))
    elif not isinstance(value, dict):
        client.set(key, data_of(value))
    elif isinstance(value.get("zset"), dict):
        client.zadd(key, {data_of(member): score for member, score in value["zset"].items()})
    elif isinstance(value.get("stream"), dict):
        _write_stream(client, key, value)
    elif isinstance(value.get("dump"), (tuple, list)):
        client.restore(key, 0, value["dump"][0])
    else:
        client.hset(key, mapping={data_of(field): data_of(item) for field, item in value.items()})


def _write_stream(client: Any, key: bytes, value: Mapping[str, Any]) -> None:
    if not value["stream"]:  # one from which all was deleted: it has its groups, or at least a name
        client.xadd(key, {b"-": b"-"}, id="0-1")
        client.xdel(key, "0-1")
    for at, fields in value["stream"].items():
        client.xadd(key, {data_of(field): data_of(item) for field, item in fields.items()}, id=at)
    for name, group in value.get("groups", {}).items():
        client.xgroup_create(key, data_of(name), id=group["read_up_to"])
        for at, (consumer, times) in group["pending"].items():
            client.xclaim(key, data_of(name), data_of(consumer), 0, [at], retrycount=times, force=True, justid=True)


# ---- time


class _Time:
    """Stands for the module `time` in fakeredis."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def time(self) -> float:
        """Return the sagas' time."""
        return self._clock().timestamp()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@contextlib.contextmanager
def redis_time(clock: Clock) -> Iterator[None]:
    """Let keys expire, and streams count, in the time that the clock has."""
    stand_in = _Time(clock)
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "fakeredis" and getattr(module, "time", None) is time
    ]
    for module in modules:
        module.time = stand_in  # type: ignore[attr-defined] # found above to have it
    try:
        yield
    finally:
        for module in modules:
            module.time = time  # type: ignore[attr-defined] # as it was
