"""A store with a saga whose record is damaged is copied without that saga, whatever the store is."""

import asyncio
import sqlite3
from contextlib import closing

import asyncpg
import pytest
import redis

from sagaz_core.errors import CorruptDataError, DamagedListingError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage._file_segment import segment_key
from sagaz_core.storage._s3_keys import saga_key
from sagaz_core.storage.base import Page
from sagaz_core.storage.contract import T0, TICK, a_saga, a_snapshot, a_summary, an_event
from sagaz_core.storage.copying import copy_store
from sagaz_core.storage.frames import standalone
from sagaz_core.storage.seals import sealed

SAGAS = [f"saga{number}" for number in range(7)]
DAMAGED = ("saga0", "saga3", "saga4")
WHOLE = [saga_id for saga_id in SAGAS if saga_id not in DAMAGED]


async def fill(storage):
    for saga_id in SAGAS:
        event = an_event(saga_id, 0)
        events = [sealed(*event[:5], b"\xc1")]
        snapshots = [standalone(a_snapshot(saga_id, 0), b"state")]
        await storage.write(Batch(saga_id, a_saga(saga_id), events, snapshots, a_summary(saga_id, 0)))


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.fixture
def sqlite_source(tmp_path):
    def damage(saga_id):
        with closing(sqlite3.connect(tmp_path / "from.db", isolation_level=None)) as connection:
            connection.execute("UPDATE sagas SET source = 'another' WHERE saga_id = ?", (saga_id,))

    return f"sqlite:///{tmp_path}/from.db", damage


@pytest.fixture
def postgres_source(postgres_url, postgres_database):
    def damage(saga_id):
        async def main():
            connection = await asyncpg.connect(postgres_database)
            schema = postgres_url.rpartition("schema=")[2]
            await connection.execute(f"UPDATE {schema}.sagas SET source = 'another' WHERE saga_id = $1", saga_id)
            await connection.close()

        asyncio.run(main())

    return postgres_url, damage


@pytest.fixture
def redis_source(redis_url):
    def damage(saga_id):
        with redis.Redis.from_url(redis_url.partition("?")[0]) as client:
            key = f"{redis_url.rpartition('prefix=')[2]}:saga:{saga_id}"
            client.set(key, flipped(client.get(key), -3))

    return redis_url, damage


@pytest.fixture
def file_source(tmp_path):
    def damage(saga_id):
        name = segment_key(saga_id).hex()
        (path,) = (path for path in tmp_path.rglob("*") if path.is_file() and name.endswith(path.name))
        path.write_bytes(flipped(path.read_bytes(), 30))

    return f"file://{tmp_path}/from", damage


@pytest.fixture
def s3_source(s3):
    bucket = s3.bucket()

    def damage(saga_id):
        key = f"a/prefix/{saga_key(saga_id)}"
        whole = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        s3.client.put_object(Bucket=bucket, Key=key, Body=flipped(whole, -3))

    return s3.url(bucket), damage


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis", "file", "s3"])
def test_a_saga_whose_record_is_damaged_is_left_out_and_named(kind, request):
    url, damage = request.getfixturevalue(f"{kind}_source")

    async def listed(storage, limit):
        """List all sagas, and say what was raised in between."""
        found, wrong, cursor = [], [], None
        while True:
            try:
                page = await storage.list_sagas(limit=limit, cursor=cursor)
            except DamagedListingError as error:
                wrong.append(str(error))
                page = Page(error.items, error.cursor)
            assert len(page.items) <= limit
            found += [record.saga_id for record in page.items]
            cursor = page.cursor
            if cursor is None:
                return found, wrong

    async def main():
        storage = open_storage(url)
        await fill(storage)
        await storage.close()
        for saga_id in DAMAGED:
            await asyncio.to_thread(damage, saga_id)
        source, target = open_storage(url), open_storage("memory://")
        for limit in (1, 2, 3, 100):
            found, wrong = await listed(source, limit)
            assert found == WHOLE
            assert len(wrong) == len(DAMAGED)
        for there in (0, len(WHOLE)):
            done = await copy_store(source, target)
            assert (done.sagas, done.there) == (len(WHOLE), there)
            assert len(done.damaged) == len(DAMAGED)
            assert all("damaged" in text for text in done.damaged)
            assert all(sum(repr(saga_id) in text for text in done.damaged) == 1 for saga_id in DAMAGED)
        assert [record.saga_id for record in (await target.list_sagas()).items] == WHOLE
        assert [summary.saga_id for summary in (await target.find_sagas()).items][-1] == SAGAS[-1]
        assert (await source.info()).sagas >= len(WHOLE)
        await source.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis", "file", "s3"])
def test_pruning_passes_over_a_damaged_saga(kind, request):
    url, damage = request.getfixturevalue(f"{kind}_source")
    if kind == "redis":

        def damage(saga_id, of_record=damage):
            with redis.Redis.from_url(url.partition("?")[0]) as client:
                key = f"{url.rpartition('prefix=')[2]}:log:1:{saga_id}"
                client.set(key, flipped(client.get(key), -3))

    async def main():
        storage = open_storage(url)
        for saga_id in SAGAS:
            snapshots = [a_snapshot(saga_id, seq, retention_until=T0) for seq in range(3)]
            await storage.write(Batch(saga_id, a_saga(saga_id), (), snapshots, a_summary(saga_id, 0)))
        await storage.close()
        for saga_id in DAMAGED:
            await asyncio.to_thread(damage, saga_id)
        storage = open_storage(url)
        try:
            await storage.prune(T0 + TICK, batch=2)
        except CorruptDataError as error:
            assert any(repr(saga_id) in str(error) for saga_id in DAMAGED)  # noqa: PT017 - where a saga must be read
            assert kind not in ("sqlite", "postgres")
        if kind != "file":  # it counts what it can read, and these are what it cannot
            assert (await storage.info()).snapshots <= 3 * len(DAMAGED)
        storage.clock = lambda: T0
        for saga_id in WHOLE:
            assert await storage.count_snapshots(saga_id) == 0
        await storage.close()

    asyncio.run(main())
