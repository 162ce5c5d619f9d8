"""Columns that can be made again from others (`floor`, what a saga's row says of its last records) have no checksum.

Whatever is in them, what is read of a saga is right or an error, and what is written next is there.
"""

import asyncio
import random
import sqlite3
from contextlib import AsyncExitStack, closing, suppress
from datetime import timedelta

import asyncpg
import drive
import pytest

from sagaz_core import Saga
from sagaz_core.engine.load import load_state
from sagaz_core.engine.run import RunOptions, run_saga
from sagaz_core.errors import CodecError, StorageError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage._postgres_schema import LONG
from sagaz_core.storage.base import StoredEvent
from sagaz_core.storage.contract import T0

TICK = timedelta(seconds=1)
MOMENTS = 24
STEPS = 70  # of a saga that has events beyond `LONG`


async def fill(storage, steps=9):
    saga = Saga("order")
    for number in range(steps):
        saga.add_step(f"s{number}", lambda ctx, number=number: {f"k{number}": number})
    moments = iter(range(1000))
    options = RunOptions(storage=storage, clock=lambda: T0 + next(moments) * TICK, new_id=lambda: "snapshots")
    await run_saga(saga, {}, saga_id="s", options=options)


async def answers(storage, moments):
    """Return the state at each moment, an error where there is one."""
    found = []
    for moment in moments:
        try:
            found.append((await load_state(storage, "s", until=T0 + moment * TICK)).to_data())
        except (CodecError, StorageError) as error:
            found.append(type(error))
    return found


def right_or_an_error(found, right):
    return all(one == other or isinstance(one, type) for one, other in zip(found, right, strict=True))


async def goes_on(storage, seq):
    await storage.write(Batch("s", None, [StoredEvent("s", seq, T0 + 1000 * TICK, "Any", None, b"data")]))
    assert [event.seq async for event in storage.read_events("s")] == list(range(seq + 1))


def test_a_changed_order_in_sqlite_gives_no_wrong_state(tmp_path):
    storage, chance = open_storage(f"sqlite:///{tmp_path}/sagaz.db"), random.Random(1)
    asyncio.run(fill(storage))
    right = asyncio.run(answers(storage, range(MOMENTS)))
    with closing(sqlite3.connect(tmp_path / "sagaz.db", isolation_level=None)) as connection:
        known = [
            (table, row)
            for table in ("saga_events", "saga_snapshots")
            for row in connection.execute(f"SELECT rowid, floor FROM {table}")
        ]
        for number in range(150):
            table, (row, value) = known[number % len(known)]
            other = value + chance.choice((-1, 1)) * chance.randrange(1, 8_000_000)
            connection.execute(f"UPDATE {table} SET floor = ? WHERE rowid = ?", (other, row))
            moments = sorted(chance.sample(range(MOMENTS), 5))
            found = asyncio.run(answers(storage, moments))
            assert right_or_an_error(found, [right[moment] for moment in moments]), (table, row, other - value)
            connection.execute(f"UPDATE {table} SET floor = ? WHERE rowid = ?", (value, row))
    asyncio.run(goes_on(storage, 20))
    asyncio.run(storage.close())


def test_a_place_of_another_snapshot_in_sqlite_gives_no_wrong_answer(tmp_path):
    """What an index leads to is looked at, whether it can be what was asked for."""
    storage = open_storage(f"sqlite:///{tmp_path}/sagaz.db")
    asyncio.run(fill(storage))
    right = asyncio.run(answers(storage, range(MOMENTS)))
    listed = drive.now(storage.list_snapshots("s")).items
    with closing(sqlite3.connect(tmp_path / "sagaz.db", isolation_level=None)) as connection:
        numbers = [row[0] for row in connection.execute("SELECT id FROM saga_snapshots ORDER BY id")]
        places = connection.execute("SELECT step_name, phase, seq, snapshot_id, snapshot FROM saga_places").fetchall()
        change = "UPDATE saga_places SET snapshot = ? WHERE step_name = ? AND phase = ? AND seq = ? AND snapshot_id = ?"
        for count, (*place, number) in enumerate(places):
            other = numbers[(numbers.index(number) + 1 + count % 3) % len(numbers)]
            connection.execute(change, (other, *place))
            assert right_or_an_error(asyncio.run(answers(storage, range(MOMENTS))), right), place
            for snapshot in listed:
                with suppress(CodecError, StorageError):
                    assert drive.now(storage.get_snapshot(snapshot.snapshot_id))[:10] == snapshot[:10], place
                with suppress(CodecError, StorageError):
                    # An earlier one is not wrong: the events after it lead to the same state.
                    found = drive.now(storage.latest_snapshot("s", step=snapshot.step_name, max_seq=snapshot.seq))
                    assert (found.step_name, found.seq <= snapshot.seq) == (snapshot.step_name, True), place
            connection.execute(change, (number, *place))
    asyncio.run(storage.close())


CHANGES = (
    *(("saga_events", "floor", "interval"), ("saga_snapshots", "floor", "interval")),
    *(("sagas", "last_event", "number"), ("sagas", "last_event_at", "interval"), ("sagas", "last_snapshot", "number")),
    *(("sagas", "last_snapshot_id", "text"), ("sagas", "last_snapshot_at", "interval")),
)


@pytest.mark.parametrize(("table", "column", "kind"), CHANGES)
def test_a_changed_order_in_postgresql_gives_no_wrong_state(postgres_url, postgres_database, table, column, kind):
    chance, schema = random.Random(column), postgres_url.rpartition("schema=")[2]

    async def main(stack):
        storage = open_storage(postgres_url)
        await fill(storage, STEPS)
        last = range(2 * STEPS - MOMENTS, 2 * STEPS)
        right = dict(zip(last, await answers(storage, last), strict=True))
        connection = await asyncpg.connect(postgres_database)
        stack.push_async_callback(connection.close)
        where = "" if table == "sagas" else f"WHERE seq >= {LONG}"  # a floor before it is of no account
        rows = await connection.fetchval(f"SELECT count(*) FROM {schema}.{table} {where}")
        assert rows == 1 or rows > 6
        for number in range(max(12, 2 * rows)):
            transaction = connection.transaction()
            await transaction.start()
            bound = storage.bind(connection)
            amount = chance.choice((-1, 1)) * chance.randrange(1, 8)
            value = {"interval": f"{column} + interval '{amount} seconds'", "number": f"{column} + ({amount})"}
            await connection.execute(
                f"UPDATE {schema}.{table} SET {column} = {value.get(kind, repr('~'))} WHERE ctid = "
                f"(SELECT ctid FROM {schema}.{table} {where} ORDER BY ctid OFFSET {number % rows} LIMIT 1)"
            )
            moments = sorted(chance.sample(last, 5))
            found = await answers(bound, moments)
            assert right_or_an_error(found, [right[moment] for moment in moments]), (number, amount)
            await goes_on(bound, 2 * STEPS + 2)
            await transaction.rollback()
        await storage.close()

    async def cleaned_up():
        async with AsyncExitStack() as stack:
            await main(stack)

    asyncio.run(cleaned_up())
