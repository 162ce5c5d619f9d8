"""Whatever is changed in a store behind its back is found out by who reads it, and the error says what it is of.

For what stores keep as it was given to them, see `test_frames.py` and the files' own tests; here it is their own rows.
Places in an order that can be made again (`floor`, what a saga's row says of its last records) have no checksum: see
`test_damaged_order.py`.
"""

import asyncio
import json
import random
import sqlite3
from datetime import datetime, timedelta

import asyncpg
import pytest
import redis

from sagaz_core import ReplayConfig, Saga
from sagaz_core.clock import utc_now
from sagaz_core.engine.load import load_events
from sagaz_core.engine.run import RunOptions, run_saga
from sagaz_core.errors import CodecError, DamagedSnapshotError, StorageError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import T0, a_replay, a_snapshot
from sagaz_core.storage.frames import state_bytes
from sagaz_core.storage.together import AnswersTogether

FLIPS = 400
SAGA, REPLAY = "ORDER-1", "replay-1"
SNAPSHOTS = "snapshot-ids"
COLUMNS = {
    "sagas": "saga_name version fingerprint model started_at source adapter plan record_sum",
    "saga_events": "at kind step data",
    "saga_snapshots": "saga_name step_name step_index seq phase status created_at data base_seq completed_steps "
    "retention_until tags",
    "saga_replay_log": "new_saga_id checkpoint initiated_by status created_at override plan completed_at error row_sum",
}
SUMMARY_COLUMNS = {
    "sqlite": "found_name found_seq status failed_step failed_at tags found_sum",
    "postgres": "summary_name summary_seq status failed_step failed_at tags summary_sum",
}


async def fill(storage):
    config = ReplayConfig(index_keys=["customer"], retention_days=30)
    saga = Saga("order", snapshot_storage=storage, replay_config=config)
    saga.add_step("reserve", lambda ctx: {"reserved": [1, 2, 3]}, lambda ctx: None)
    saga.add_step("charge", lambda ctx: {"charged": True}, lambda ctx: None)
    saga.add_step("ship", lambda ctx: 1 / 0)
    ids = iter([SNAPSHOTS])
    options = RunOptions(storage=storage, new_id=lambda: next(ids))
    await run_saga(saga, {"customer": "c-1", "text": "é" * 100}, saga_id=SAGA, options=options)
    await storage.log_replay(a_replay(REPLAY, SAGA, override=b"abc", error="none", plan="a@b", completed_at=T0))


async def read_all(storage):
    """Read all that the store has of the saga, and raise what that raises."""
    await storage.get_saga(SAGA)
    await storage.find_sagas()
    await load_events(storage, SAGA)
    for snapshot in (await storage.list_snapshots(SAGA)).items:
        state_bytes(snapshot)
    await storage.list_replays(SAGA)


async def is_found_out(storage):
    with pytest.raises((StorageError, CodecError)) as caught:
        await read_all(storage)
    message = str(caught.value)
    assert "damaged" in message or "cannot be read" in message
    assert "\n" not in message
    assert any(name in message for name in (SAGA, REPLAY, SNAPSHOTS, "a replay's"))


def changed(value, chance):
    """Return another value of the same type, which differs as little as can be."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return flipped(value, chance)
    if isinstance(value, datetime):
        return value + timedelta(microseconds=chance.choice((1, -1)) << chance.randrange(51))
    if isinstance(value, int):
        return value ^ 1 << chance.randrange(31 if value < 2**31 else 51 if value < 2**52 else 62)
    if value[:1] in ("[", "{"):
        plain = json.loads(value)
        if isinstance(plain, list):
            return json.dumps([*plain, "x"])
        return json.dumps({**plain, chance.choice(sorted(plain)): "x"})
    place = chance.randrange(len(value) + 1)
    return value[:place] + "~" + value[place + 1 :]


def flipped(data, chance):
    bit = chance.randrange(8 * len(data))
    made = bytearray(data)
    made[bit // 8] ^= 1 << bit % 8
    return bytes(made)


def places(kind):
    for table, columns in COLUMNS.items():
        own = SUMMARY_COLUMNS[kind] if table == "sagas" else ""
        for column in f"{columns} {own}".split():
            yield table, column


def test_changes_in_a_sqlite_file_are_found_out(tmp_path):
    storage, chance = open_storage(f"sqlite:///{tmp_path}/sagaz.db"), random.Random(1)
    asyncio.run(fill(storage))
    connection = sqlite3.connect(tmp_path / "sagaz.db", isolation_level=None)
    known = [
        (table, column, row)
        for table, column in places("sqlite")
        for row in connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
    ]
    for number in range(FLIPS):
        table, column, (row, value) = known[number % len(known)] if number < len(known) else chance.choice(known)
        other = changed(value, chance)
        update = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"
        connection.execute(update, (other, row))
        asyncio.run(is_found_out(storage))
        connection.execute(update, (value, row))
    asyncio.run(read_all(storage))
    connection.close()
    asyncio.run(storage.close())


@pytest.mark.parametrize("other", [7, 1.5, b"bytes", b"\xff", "text", "\xff"])
def test_a_value_of_another_type_in_a_sqlite_file_is_found_out(tmp_path, other):
    """A bit in the head of a row is enough to make a number of a text."""
    storage = open_storage(f"sqlite:///{tmp_path}/sagaz.db")
    asyncio.run(fill(storage))
    connection = sqlite3.connect(tmp_path / "sagaz.db", isolation_level=None)
    for table, column in places("sqlite"):
        first = f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL"
        row, value = connection.execute(first).fetchone()
        if type(value) is not type(other):
            update = f"UPDATE {table} SET {column} = ? WHERE rowid = ?"
            connection.execute(update, (other, row))
            if connection.execute(f"SELECT {column} FROM {table} WHERE rowid = ?", (row,)).fetchone()[0] != value:
                asyncio.run(is_found_out(storage))
            connection.execute(update, (value, row))
    connection.close()
    asyncio.run(storage.close())


def test_changes_in_postgresql_are_found_out(postgres_url, postgres_database):
    chance, schema = random.Random(1), postgres_url.rpartition("schema=")[2]

    async def main():
        storage = open_storage(postgres_url)
        await fill(storage)
        connection = await asyncpg.connect(postgres_database)
        known = []
        for table, column in places("postgres"):
            rows = await connection.fetch(f"SELECT 1 FROM {schema}.{table} WHERE {column} IS NOT NULL")
            known += [(table, column, place) for place in range(len(rows))]
        for number in range(FLIPS):
            table, column, place = known[number % len(known)] if number < len(known) else chance.choice(known)
            transaction = connection.transaction()
            await transaction.start()
            bound = storage.bind(connection)  # it sees what is not committed, and never will be
            key = await connection.fetchval(
                f"SELECT ctid FROM {schema}.{table} WHERE {column} IS NOT NULL ORDER BY ctid OFFSET $1 LIMIT 1", place
            )
            before = await connection.fetchval(f"SELECT {column} FROM {schema}.{table} WHERE ctid = $1", key)
            update = f"UPDATE {schema}.{table} SET {column} = $1 WHERE ctid = $2"
            await connection.execute(update, changed(before, chance), key)
            await is_found_out(bound)
            await transaction.rollback()
        await read_all(storage)
        await connection.close()
        await storage.close()

    asyncio.run(main())


def test_changes_in_redis_are_found_out(redis_url):
    chance = random.Random(1)
    client = redis.Redis.from_url(redis_url.partition("?")[0])
    prefix = redis_url.rpartition("prefix=")[2]

    async def main():
        storage = open_storage(redis_url)
        await fill(storage)
        keys = [
            key
            for kind in ("saga", "sum", "rep", "log", "ev", "st")
            for key in sorted(client.keys(f"{prefix}:{kind}:*"))
        ]
        assert len(keys) > 9
        for number in range(FLIPS):
            key = keys[number % len(keys)]
            value = client.get(key)
            client.set(key, flipped(value, chance))
            await is_found_out(storage)
            client.set(key, value)
        for key in keys:  # the head of an entry says how many there are in it
            value = client.get(key)
            for bit in range(8):
                client.set(key, bytes([value[0] ^ 1 << bit]) + value[1:])
                await is_found_out(storage)
            client.set(key, value)
        await read_all(storage)
        await storage.close()

    asyncio.run(main())
    client.close()


# ---- an end that looks as if it were past

EARLIER = timedelta(days=20_000)


async def is_no_longer_hidden(storage, snapshot, number):
    """Each way to ask for the snapshot raises an error that names it, and it is not pruned."""
    other = a_snapshot("other", snapshot.seq, snapshot_id=f"{snapshot.seq}", retention_until=T0)
    await storage.write(Batch("other", snapshots=[other]))
    asks = [
        storage.get_snapshot(snapshot.snapshot_id),
        storage.latest_snapshot(SAGA, step=snapshot.step_name, phase=snapshot.phase),
        storage.latest_snapshot(SAGA, max_seq=snapshot.seq),
        storage.latest_snapshot(SAGA, until=snapshot.created_at),
        storage.list_snapshots(SAGA),
        storage.list_snapshots(SAGA, limit=1, cursor=f"{snapshot.seq}:"),
        storage.count_snapshots(SAGA),
        storage.prune(utc_now(), batch=1),
    ]
    if isinstance(storage, AnswersTogether) and (snapshot.phase == "before" or snapshot.status == "failed"):
        asks.append(storage.read_checkpoints([(SAGA, snapshot.step_name)]))
    for ask in asks:
        with pytest.raises(
            DamagedSnapshotError, match=f"snapshot '{snapshot.snapshot_id}' of saga '{SAGA}' is damaged"
        ):
            await ask
    assert (await storage.info()).snapshots == number


async def what_has_expired_is_left_out(storage):
    (*_, last) = (await storage.list_snapshots(SAGA)).items
    storage.clock = lambda: last.retention_until + timedelta(days=1)
    assert await storage.get_snapshot(last.snapshot_id) is None
    assert await storage.latest_snapshot(SAGA) is None
    assert not (await storage.list_snapshots(SAGA, limit=2)).items
    assert await storage.count_snapshots(SAGA) == 0
    if isinstance(storage, AnswersTogether):
        (checkpoint,) = await storage.read_checkpoints([(SAGA, last.step_name)])
        assert (checkpoint.before, checkpoint.last_seq) == (None, None)
        assert len(checkpoint.events) == len(await load_events(storage, SAGA))
    await storage.delete_snapshots(SAGA, below_seq=last.seq)
    assert not (await storage.list_snapshots(SAGA)).items
    await storage.prune(storage.clock())
    assert (await storage.info()).snapshots == 0


def test_a_changed_end_does_not_hide_a_snapshot_of_sqlite(tmp_path):
    async def main():
        storage = open_storage(f"sqlite:///{tmp_path}/sagaz.db")
        await fill(storage)
        connection = sqlite3.connect(tmp_path / "sagaz.db", isolation_level=None)
        found = (await storage.list_snapshots(SAGA)).items
        for snapshot in found:
            name = snapshot.snapshot_id
            change = "UPDATE saga_snapshots SET retention_until = retention_until + ? WHERE snapshot_id = ?"
            connection.execute(change, (-(EARLIER // timedelta(microseconds=1)), name))
            await is_no_longer_hidden(storage, snapshot, len(found))
            connection.execute(change, (EARLIER // timedelta(microseconds=1), name))
        connection.close()
        await what_has_expired_is_left_out(storage)
        await storage.close()

    asyncio.run(main())


def test_a_changed_end_does_not_hide_a_snapshot_of_postgresql(postgres_url, postgres_database):
    schema = postgres_url.rpartition("schema=")[2]

    async def main():
        storage = open_storage(postgres_url)
        await fill(storage)
        connection = await asyncpg.connect(postgres_database)
        found = (await storage.list_snapshots(SAGA)).items
        for snapshot in found:
            change = f"UPDATE {schema}.saga_snapshots SET retention_until = retention_until + $1 WHERE snapshot_id = $2"
            await connection.execute(change, -EARLIER, snapshot.snapshot_id)
            await is_no_longer_hidden(storage, snapshot, len(found))
            await connection.execute(change, EARLIER, snapshot.snapshot_id)
        await connection.close()
        await what_has_expired_is_left_out(storage)
        await storage.close()

    asyncio.run(main())
