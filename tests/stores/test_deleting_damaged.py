"""A saga that is damaged can be deleted: what is to be erased goes, whatever it looks like."""

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
import redis
from test_damage import REPLAY, SAGA, SNAPSHOTS, changed, fill, flipped, places

from sagaz_core.errors import CorruptDataError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_saga, a_snapshot


async def other_saga(storage):
    await storage.write(Batch("other", a_saga("other"), (), [a_snapshot("other", 0)]))


async def is_gone(storage):
    """Delete the saga, see that it is gone and the other is not, and write it again."""
    assert await storage.delete_saga(SAGA)
    assert not await storage.delete_saga(SAGA)
    assert await storage.get_saga(SAGA) is None
    assert [record.saga_id for record in (await storage.list_sagas()).items] == ["other"]
    assert await storage.get_snapshot(SNAPSHOTS) is None
    assert await storage.count_snapshots(SAGA) == 0
    assert await storage.get_snapshot("other/0") == a_snapshot("other", 0)
    info = await storage.info()
    assert (info.sagas, info.snapshots, info.events, info.replays) == (1, 1, 0, 1)
    (replay,) = await storage.list_replays(SAGA)
    assert replay.replay_id == REPLAY


def damage_file(path, at):
    data = bytearray(path.read_bytes())
    data[at(len(data))] ^= 8
    path.write_bytes(data)


def overwrite_file(path):
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


def test_in_a_folder(tmp_path):
    chance = random.Random(5)

    async def main(number, at):
        url = f"file://{tmp_path}/{number}?fsync=never"
        storage = open_storage(url)
        await fill(storage)
        await other_saga(storage)
        await storage.close()
        damage_file(Path(storage._segment(SAGA).path), at)
        storage = open_storage(url)
        await is_gone(storage)
        await fill(storage)
        await storage.close()

    for number, at in enumerate([lambda size: 0, lambda size: 30, lambda size: size - 1, *[chance.randrange] * 37]):
        asyncio.run(main(number, at))


def test_in_a_folder_where_it_is_damaged_while_it_is_open(tmp_path):
    async def main():
        storage = open_storage(f"file://{tmp_path}/store?fsync=never")
        await fill(storage)
        await other_saga(storage)
        overwrite_file(Path(storage._segment(SAGA).path))
        await is_gone(storage)
        await storage.close()

    asyncio.run(main())


def test_in_sqlite(tmp_path):
    chance = random.Random(5)

    async def main(number, table, column):
        path = tmp_path / f"{number}.db"
        storage = open_storage(f"sqlite:///{path}")
        await fill(storage)
        await other_saga(storage)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            first = f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL ORDER BY rowid"
            row, value = connection.execute(first).fetchone()
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (changed(value, chance), row))
            await is_gone(storage)
            assert connection.execute("SELECT count(*) FROM saga_tags").fetchone() == (0,)
        await storage.close()

    for number, (table, column) in enumerate(places("sqlite")):
        if table != "saga_replay_log":
            asyncio.run(main(number, table, column))


@pytest.mark.parametrize("tags", ["x'ff'", "'{'", "'[]'", "'{}'", "'{\"customer\": 1}'", '\'{"customer": "x"}\''])
def test_in_sqlite_whatever_is_left_of_its_tags(tmp_path, tags):
    async def main():
        storage = open_storage(f"sqlite:///{tmp_path}/sagaz.db")
        await fill(storage)
        await other_saga(storage)
        with closing(sqlite3.connect(tmp_path / "sagaz.db", isolation_level=None)) as connection:
            connection.execute(f"UPDATE sagas SET tags = {tags} WHERE saga_id = ?", (SAGA,))
            await is_gone(storage)
            assert connection.execute("SELECT count(*) FROM saga_tags").fetchone() == (0,)
        await storage.close()

    asyncio.run(main())


def test_in_postgresql(postgres_url, postgres_database):
    chance, schema = random.Random(5), postgres_url.rpartition("schema=")[2]

    async def main():
        storage = open_storage(postgres_url)
        await other_saga(storage)
        connection = await asyncpg.connect(postgres_database)
        for table, column in places("postgres"):
            if table == "saga_replay_log":
                continue
            await fill(storage)
            key, value = await connection.fetchrow(
                f"SELECT ctid, {column} FROM {schema}.{table} WHERE {column} IS NOT NULL AND saga_id = $1", SAGA
            )
            update = f"UPDATE {schema}.{table} SET {column} = $1 WHERE ctid = $2"
            await connection.execute(update, changed(value, chance), key)
            await is_gone(storage)
        await connection.close()
        await storage.close()

    asyncio.run(main())


def test_in_redis(redis_url):
    chance, prefix = random.Random(5), redis_url.rpartition("prefix=")[2]

    async def main():
        storage = open_storage(redis_url)
        await other_saga(storage)
        with closing(redis.Redis.from_url(redis_url.partition("?")[0])) as client:
            before = set(client.keys(f"{prefix}:*"))
            for kind in ("saga", "sum", "log", "ev", "st"):
                await fill(storage)
                for key in client.keys(f"{prefix}:{kind}:*{SAGA}"):
                    client.set(key, flipped(client.get(key), chance))
                await is_gone(storage)
                left = set(client.keys(f"{prefix}:*")) - before
                assert not {key for key in left if key.split(b":")[1] not in (b"rep", b"reps", b"replays", b"f")}
        await storage.close()

    asyncio.run(main())


@pytest.mark.parametrize("size", [100, 20_000])
def test_in_a_bucket(s3, size):
    bucket, chance = s3.bucket(), random.Random(5)

    def names():
        found = s3.client.list_objects_v2(Bucket=bucket).get("Contents", ())
        return {one["Key"] for one in found}

    async def main():
        storage = open_storage(s3.url(bucket))
        await other_saga(storage)
        before = names()
        await fill(storage)
        data = chance.randbytes(size)
        more = [a_snapshot(SAGA, 100 + seq, data=data, snapshot_id=f"more/{seq}") for seq in range(3)]
        await storage.write(Batch(SAGA, snapshots=more))
        (head,) = [name for name in names() - before if "/sagas/" in name]
        stored = s3.client.get_object(Bucket=bucket, Key=head)["Body"].read()
        s3.client.put_object(Bucket=bucket, Key=head, Body=flipped(stored, chance))
        with pytest.raises(CorruptDataError):
            await storage.get_saga(SAGA)
        await is_gone(storage)
        assert {name for name in names() - before if "/replays" not in name} == set()
        await storage.close()

    asyncio.run(main())
