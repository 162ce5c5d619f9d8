"""The Redis store, on a real server."""

import asyncio
from datetime import timedelta

import fakeredis
import pytest
import redis
from fakeredis import FakeAsyncRedisConnection
from proxy import Proxy

from sagaz_core.clock import utc_now
from sagaz_core.errors import DuplicateSagaError, SchemaError
from sagaz_core.storage import Batch, SagaSummary, open_storage
from sagaz_core.storage._network import Pool
from sagaz_core.storage.contract import T0, SnapshotStorageContract, a_saga, a_snapshot, an_event


class TestRedis(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, redis_url):
        storage = open_storage(redis_url)
        yield storage
        self.do(storage.close())


class TestFakeRedis(SnapshotStorageContract):
    """The same without a server, as quick tests of an application would have it."""

    shared = False

    @pytest.fixture
    def storage(self, monkeypatch):
        storage = open_storage("redis://localhost/0")
        server = fakeredis.FakeServer(version=(7,))

        async def connect():
            return FakeAsyncRedisConnection(server=server)

        monkeypatch.setattr(storage._connections._pools, "_make", lambda: Pool(10, connect))
        yield storage
        self.do(storage.close())


def keys(url):
    prefix = url.rpartition("prefix=")[2]
    with redis.Redis.from_url(url.partition("?")[0]) as client:
        return {key.removeprefix(prefix.encode() + b":"): client.pttl(key) for key in client.scan_iter(f"{prefix}:*")}


def run(url, work):
    async def main():
        storage = open_storage(url)
        try:
            return await work(storage)
        finally:
            await storage.close()

    return asyncio.run(main())


def test_states_expire_with_the_last_snapshot_that_needs_them(redis_url):
    now = utc_now()
    days = [timedelta(days=1), timedelta(days=2), timedelta(days=3), None]

    async def write(storage):
        await storage.write(Batch("s", a_saga("s"), [an_event("s", 0)]))
        for seq, kept in enumerate(days):
            base = None if seq in (0, 3) else 0
            until = None if kept is None else now + kept
            await storage.write(Batch("s", None, (), [a_snapshot("s", seq, base_seq=base, retention_until=until)]))

    run(redis_url, write)
    expiring = {key: pttl / 86_400_000 for key, pttl in keys(redis_url).items() if pttl > 0}
    assert {key: round(days) for key, days in expiring.items()} == {b"st:2:s": 3, b"st:3:s": 3, b"st:4:s": 3}


def test_states_that_the_server_let_go_are_not_served_and_are_pruned(redis_url):
    now = utc_now()

    async def write(storage):
        batch = Batch("s", a_saga("s"), (), [a_snapshot("s", 0, retention_until=now + timedelta(days=1))])
        await storage.write(batch)
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            (key,) = client.scan_iter(f"{redis_url.rpartition('prefix=')[2]}:st:*")
            client.delete(key)
        await storage.write(batch)  # a retry that comes late
        assert await storage.get_snapshot("s/0") is None
        assert await storage.latest_snapshot("s") is None
        assert await storage.prune(now + timedelta(days=2)) == 1
        assert await storage.get_saga("s") == a_saga("s")

    run(redis_url, write)


def test_a_deleted_saga_leaves_no_key(redis_url):
    async def write_and_delete(storage):
        for saga_id in ("s", "t"):
            summary = SagaSummary(saga_id, "order", 1, "failed", "charge", T0, {"customer": "1"})
            snapshots = [a_snapshot(saga_id, 0), a_snapshot(saga_id, 1, retention_until=utc_now() + timedelta(days=1))]
            await storage.write(Batch(saga_id, a_saga(saga_id), [an_event(saga_id, 0)], snapshots, summary))
            assert await storage.delete_saga(saga_id)

    run(redis_url, write_and_delete)
    assert keys(redis_url) == {}


def test_a_refused_batch_leaves_what_was_there(redis_url):
    def contents():
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            found = client.scan_iter(f"{redis_url.rpartition('prefix=')[2]}:*")
            of_type = {b"string": client.get, b"zset": lambda key: client.zrange(key, 0, -1, withscores=True)}
            return {key: of_type[client.type(key)](key) for key in found}

    async def write(storage):
        await storage.write(Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)]))
        before = contents()
        other = Batch("s", a_saga("s", plan="another"), [an_event("s", 0, data=b"other")], [a_snapshot("s", 0)])
        with pytest.raises(DuplicateSagaError):
            await open_here(storage).write(other)
        assert contents() == before

    def open_here(storage):
        storage._known.clear()  # as another process, which knows nothing
        return storage

    run(redis_url, write)


def test_a_newer_schema_is_refused(redis_url):
    async def work(storage):
        assert await storage.upgrade() == 1
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            client.set(f"{redis_url.rpartition('prefix=')[2]}:version", 99)
        await storage.close()
        for call in (lambda: storage.get_saga("s"), lambda: storage.write(Batch("s", a_saga("s"))), storage.upgrade):
            with pytest.raises(SchemaError, match="has schema 99, this release reads up to 1: upgrade pytest-sagaz"):
                await call()

    run(redis_url, work)


def test_a_saga_of_many_snapshots_is_still_appended_in_one_trip(redis_url):
    proxy = Proxy(redis_url)

    async def work(storage):
        await storage.write(Batch("s", a_saga("s")))
        before = proxy.trips
        for seq in range(300):
            base = None if seq % 16 == 0 else seq - seq % 16
            await storage.write(Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq, base_seq=base)]))
        assert proxy.trips - before == 300
        found = await storage.get_snapshot("s/299")
        assert len(found.bases) == 299 % 16

    run(proxy.url, work)
    proxy.close()
