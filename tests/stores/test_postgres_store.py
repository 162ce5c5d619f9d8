"""The PostgreSQL store, on a real server."""

import asyncio
import contextlib
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from sagaz_core.errors import DuplicateSagaError, SchemaError, StoreUnavailableError, UsageError
from sagaz_core.storage import Batch, InMemorySnapshotStorage, open_storage
from sagaz_core.storage._postgres_rows import replay_row, saga_row, summary_row
from sagaz_core.storage._postgres_schema import LONG, LONG_INDICES, MIGRATIONS, NEEDED_VERSION, SCHEMA_VERSION
from sagaz_core.storage.contract import (
    T0,
    SnapshotStorageContract,
    a_replay,
    a_saga,
    a_snapshot,
    a_summary,
    an_event,
)
from sagaz_core.storage.frames import FrameWriter, state_bytes
from tests.servers import execute


class TestPostgres(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, postgres_url):
        storage = open_storage(postgres_url)
        yield storage
        self.do(storage.close())


def schema_of(url):
    return url.rpartition("schema=")[2]


def test_twenty_processes_that_start_at_once_make_one_schema(postgres_url):
    script = """
import asyncio, sys
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage._postgres_schema import MIGRATIONS, SCHEMA_VERSION
from sagaz_core.storage.contract import a_saga

async def main():
    storage = open_storage(sys.argv[1])
    sys.stdin.readline()
    await storage.write(Batch(sys.argv[2], a_saga(sys.argv[2])))
    await storage.close()

asyncio.run(main())
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, postgres_url, str(n)], stdin=subprocess.PIPE) for n in range(20)
    ]
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.close()
    assert [process.wait() for process in processes] == [0] * 20

    async def main():
        storage = open_storage(postgres_url)
        found = await storage.list_sagas()
        info = await storage.info()
        await storage.close()
        return len(found.items), info.sagas, info.schema_version

    assert asyncio.run(main()) == (20, 20, SCHEMA_VERSION)


def test_a_newer_schema_is_refused(postgres_url, postgres_database):
    async def main():
        storage = open_storage(postgres_url)
        assert await storage.upgrade() == SCHEMA_VERSION
        await storage.close()
        connection = await asyncpg.connect(postgres_database)
        await connection.execute(f"INSERT INTO {schema_of(postgres_url)}.saga_schema VALUES (99)")
        await connection.close()
        for work in (
            lambda: storage.write(Batch("s", a_saga("s"))),
            lambda: storage.get_saga("s"),
            storage.upgrade,
        ):
            with pytest.raises(
                SchemaError, match=f"has schema 99, .* reads up to {SCHEMA_VERSION}: upgrade pytest-sagaz"
            ):
                await work()
        await storage.close()

    asyncio.run(main())


def test_a_store_that_is_only_read_makes_nothing(postgres_url, postgres_database):
    async def main():
        storage = open_storage(postgres_url)
        assert await storage.get_saga("s") is None
        assert (await storage.info()).schema_version == 0
        await storage.close()
        connection = await asyncpg.connect(postgres_database)
        found = await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema_of(postgres_url))
        await connection.close()
        return found

    assert asyncio.run(main()) is None


def test_a_pool_is_no_connection_to_bind(postgres_url, postgres_database):
    async def main():
        storage = open_storage(postgres_url)
        await storage.upgrade()
        async with asyncpg.create_pool(postgres_database, min_size=0) as pool:
            with pytest.raises(UsageError, match=r"takes a connection of asyncpg, not a Pool: take one with pool.acq"):
                storage.bind(pool)
            async with pool.acquire() as connection:
                await storage.bind(connection).write(Batch("s", a_saga("s")))
        assert await storage.get_saga("s") == a_saga("s")
        await storage.close()

    asyncio.run(main())


def test_a_bound_store_writes_within_the_callers_transaction(postgres_url, postgres_database):
    async def main():
        storage = open_storage(postgres_url)
        await storage.upgrade()
        connection = await asyncpg.connect(postgres_database)
        first = Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)])
        for commits in (False, True):
            transaction = connection.transaction()
            await transaction.start()
            bound = storage.bind(connection)
            await bound.write(first)
            await bound.write(first)
            with pytest.raises(DuplicateSagaError):
                await bound.write(Batch("s", a_saga("s", plan="another")))
            assert await bound.get_saga("s") == a_saga("s")  # a refused batch does not end the transaction
            assert await storage.get_saga("s") is None
            await bound.close()
            await (transaction.commit() if commits else transaction.rollback())
        assert await storage.get_saga("s") == a_saga("s")
        assert [event.seq async for event in storage.read_events("s")] == [0]
        await connection.close()
        await storage.close()

    asyncio.run(main())


def test_bound_stores_of_one_connection_are_used_by_many_tasks(postgres_url, postgres_database):
    """As the steps of a DAG do, and sagas in group mode."""

    async def main():
        storage = open_storage(postgres_url)
        await storage.upgrade()
        async with asyncpg.create_pool(postgres_database, min_size=0) as pool, pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            bound = storage.bind(connection), storage.bind(connection)
            await asyncio.gather(*(bound[n % 2].write(Batch(f"s{n}", a_saga(f"s{n}"))) for n in range(20)))
            found = await asyncio.gather(*(bound[n % 2].get_saga(f"s{n}") for n in range(20)), bound[0].list_sagas())
            assert [record.saga_id for record in found[:-1]] == [f"s{n}" for n in range(20)]
            async with connection.transaction():
                await bound[0].write(Batch("t", a_saga("t")))
            with contextlib.suppress(ZeroDivisionError):
                async with connection.transaction():
                    await bound[1].write(Batch("u", a_saga("u")))
                    raise ZeroDivisionError
            there = [await bound[0].get_saga(name) is not None for name in "tu"]
            task = asyncio.create_task(bound[0].write(Batch("v", a_saga("v"))))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await bound[1].get_saga("s1") is not None
            await transaction.rollback()
            assert (await bound[0].list_sagas()).items == []
        await storage.close()
        return there

    assert asyncio.run(main()) == [True, False]


def test_a_bound_store_says_what_its_connection_cannot_do(postgres_url, postgres_database):
    async def main():
        storage, said = open_storage(postgres_url), []

        async def told(work):
            with pytest.raises(StoreUnavailableError) as caught:
                await work
            said.append(str(caught.value))

        connection = await asyncpg.connect(postgres_database)
        bound = storage.bind(connection)
        await told(bound.get_saga("s"))
        await storage.upgrade()
        own = asyncio.create_task(connection.execute("SELECT count(*) FROM generate_series(1, 100000)"))
        await asyncio.sleep(0)
        await told(bound.get_saga("s"))
        await own
        await connection.close()
        await told(bound.write(Batch("s", a_saga("s"))))
        await storage.close()
        return said

    tables, in_use, closed = asyncio.run(main())
    assert "has no tables yet: call upgrade() before bind()" in tables
    assert "on the connection that it is bound to: cannot perform operation: another operation is in progress" in in_use
    assert "on the connection that it is bound to: connection is closed" in closed


@pytest.mark.parametrize("seed", [1, 2])
def test_a_clock_that_goes_back_where_a_saga_becomes_long(postgres_url, seed):
    """Courses of the time around `LONG`, written in any order, in parts of any size."""
    chance, seqs = random.Random(seed), range(LONG - 1, LONG + 4)

    async def main():
        theirs, ours = open_storage(postgres_url), InMemorySnapshotStorage()
        for number, seconds in enumerate(chance.sample(list(product(range(3), repeat=len(seqs))), 150)):
            saga_id = f"s{number}"
            rows = [(seq, T0 + timedelta(seconds=second)) for seq, second in zip(seqs, seconds, strict=True)]
            record = a_saga(saga_id) if number % 3 else None
            if number % 3 == 1:
                for store in (theirs, ours):
                    await store.write(Batch(saga_id, record))
            if chance.random() < 0.5:
                chance.shuffle(rows)
            while rows:
                size = chance.randint(1, min(3, len(rows)))
                part, rows = sorted(rows[:size]), rows[size:]
                batches = [
                    Batch(saga_id, record, [an_event(saga_id, seq, at) for seq, at in part]),
                    Batch(saga_id, None, (), [a_snapshot(saga_id, seq, at) for seq, at in part]),
                ]
                if chance.random() < 0.5:
                    batches = [batches[0]._replace(snapshots=batches[1].snapshots)]
                other = [Batch("other", None, (), [a_snapshot("other", number)])] * (chance.random() < 0.5)
                for store in (theirs, ours):
                    for batch in batches:
                        assert not any(await store.write_many([batch, *other]))
                record = None
            for until in (T0 + timedelta(seconds=second) for second in range(3)):
                found = [await store.latest_snapshot(saga_id, until=until) for store in (theirs, ours)]
                assert found[0] == found[1], (saga_id, seconds, until)
                read = [
                    [event.seq async for event in store.read_events(saga_id, until=until)] for store in (theirs, ours)
                ]
                assert read[0] == read[1], (saga_id, seconds, until)
        await theirs.close()

    asyncio.run(main())


def test_what_comes_before_a_batch_is_not_left_out_by_a_server_that_is_lost(postgres_url, postgres_database):
    """Who writes in groups, too, writes the batches of a saga in their order."""

    async def main():
        storage, slow = open_storage(postgres_url), open_storage(f"{postgres_url}&timeout=0.5")
        await storage.upgrade()
        connection = await asyncpg.connect(postgres_database)
        batches = [Batch("s", a_saga("s")), Batch("s", None, [an_event("s", 0)]), Batch("t", None, [an_event("t", 0)])]
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {schema_of(postgres_url)}.sagas")
            with pytest.raises(StoreUnavailableError):
                await slow.write_many(batches)
        found = [[event.seq async for event in storage.read_events(saga_id)] for saga_id in ("s", "t")]
        assert await storage.write_many(batches) == [None] * 3
        await connection.close()
        for store in (storage, slow):
            await store.close()
        return found

    assert asyncio.run(main()) == [[], [0]]


def test_one_that_is_refused_keeps_no_other_saga_from_being_written(postgres_url):
    """What begins, goes on and ends comes in one statement, and without it when one of them is there and differs."""
    step = {name: Batch(name, None, [an_event(name, 0)], [a_snapshot(name, 0)]) for name in ("short", "taken")}
    batches = [
        Batch("begun", a_saga("begun"), [an_event("begun", 0)], [a_snapshot("begun", 0)], a_summary("begun")),
        step["short"],
        step["taken"]._replace(snapshots=[a_snapshot("taken", 0, data=b"another")]),
        Batch("long", None, [an_event("long", LONG)], [a_snapshot("long", LONG)]),
        Batch("short", None, [an_event("short", 1)]),
        Batch("ended", None, [an_event("ended", 1)], [], a_summary("ended", 1)),
    ]

    async def main():
        storage = open_storage(postgres_url)
        await storage.write_many([*(Batch(name, a_saga(name)) for name in ("long", "ended")), step["taken"]])
        results = await storage.write_many(batches)
        events = {
            name: [event.seq async for event in storage.read_events(name)]
            for name in ("begun", "short", "taken", "long", "ended")
        }
        again = await storage.write_many(batches)
        await storage.close()
        return [type(result) for result in results], events, [type(result) for result in again]

    results, events, again = asyncio.run(main())
    assert results == again == [type(None), type(None), DuplicateSagaError, *[type(None)] * 3]
    assert events == {"begun": [0], "short": [0, 1], "taken": [0], "long": [LONG], "ended": [1]}


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("what", ["events", "snapshots"])
def test_a_clock_that_goes_back_in_a_saga_that_is_long_when_it_is_first_written(postgres_url, what, others):
    later = T0 + timedelta(seconds=2)
    batches = [
        Batch("s", record, *(([an_event("s", seq, at)], ()) if what == "events" else ((), [a_snapshot("s", seq, at)])))
        for record, seq, at in ((a_saga("s"), LONG, later), (None, LONG + 1, T0))
    ]

    async def main():
        storage = open_storage(postgres_url)
        for batch in batches:
            assert not any(await storage.write_many([batch, *[Batch("other", None, [an_event("other", 0)])] * others]))
        latest = await storage.latest_snapshot("s", until=later)
        found = [event.seq async for event in storage.read_events("s", until=later)]
        await storage.close()
        return found if what == "events" else latest.seq

    assert asyncio.run(main()) == ([LONG, LONG + 1] if what == "events" else LONG + 1)


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("what", ["events", "snapshots"])
def test_in_the_hour_that_clocks_show_twice_the_earliest_is_the_earliest(postgres_url, what, others):
    """Two times of one timezone are compared by what its clocks show."""
    berlin = ZoneInfo("Europe/Berlin")
    first, again = datetime(2026, 10, 25, 2, 40, tzinfo=berlin), datetime(2026, 10, 25, 2, 30, tzinfo=berlin, fold=1)
    between = datetime(2026, 10, 25, 1, tzinfo=UTC)
    courses = [[(LONG, between)], [(LONG + 1, again), (LONG + 2, first)]]

    async def main():
        storage = open_storage(postgres_url)
        for course in courses:
            events = [an_event("s", seq, at) for seq, at in course] if what == "events" else []
            snapshots = [a_snapshot("s", seq, at) for seq, at in course] if what == "snapshots" else []
            batch = Batch("s", None, events, snapshots)
            assert not any(await storage.write_many([batch, *[Batch("other", None, [an_event("other", 0)])] * others]))
        latest = await storage.latest_snapshot("s", until=between)
        found = [event.seq async for event in storage.read_events("s", until=between)]
        await storage.close()
        return found if what == "events" else latest.seq

    assert asyncio.run(main()) == ([LONG, LONG + 1, LONG + 2] if what == "events" else LONG + 2)


BEFORE_ALL = datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    "said",
    [
        {"saga": a_saga("s", started_at=BEFORE_ALL)},
        {"events": [an_event("s", 0, BEFORE_ALL)]},
        {"events": [an_event("s", seq, BEFORE_ALL) for seq in range(20)]},
        {"events": [an_event("s", LONG, BEFORE_ALL)]},
        {"snapshots": [a_snapshot("s", 0, BEFORE_ALL)]},
        {"snapshots": [a_snapshot("s", 0, retention_until=BEFORE_ALL)]},
        {"summary": a_summary("s", failed_at=BEFORE_ALL)},
    ],
    ids=["record", "event", "events", "long event", "snapshot", "end", "summary"],
)
def test_a_time_that_cannot_be_stored_is_refused_before_a_server_is_asked(said):
    batch = Batch("s", **said)

    async def main():
        nobody = open_storage("postgresql://127.0.0.1:1/none?timeout=0.1")
        with pytest.raises(UsageError, match="not in the years 1 to 9999"):
            await nobody.write(batch)
        return await nobody.write_many([batch, batch])

    assert [type(one) for one in asyncio.run(main())] == [UsageError] * 2


def test_events_up_to_the_highest_number_are_read_at_a_time(postgres_url):
    async def main():
        storage, seqs = open_storage(postgres_url), [0, LONG, 2**63 - 1]
        for seq in seqs:
            await storage.write(Batch("s", None, [an_event("s", seq, T0)]))
        found = [event.seq async for event in storage.read_events("s", until=T0)]
        await storage.close()
        return found, seqs

    found, seqs = asyncio.run(main())
    assert found == seqs


def test_of_the_summaries_that_come_together_with_others_the_latest_stays(postgres_url):
    async def main():
        storage = open_storage(postgres_url)
        for seq in (0, 5, 3):
            batches = [Batch(name, None, [an_event(name, seq)], [], a_summary(name, seq)) for name in ("s", "t")]
            assert await storage.write_many(batches) == [None, None]
        found = [summary.seq for summary in (await storage.find_sagas()).items]
        await storage.close()
        return found

    assert asyncio.run(main()) == [5, 5]


def test_a_bound_store_may_write_again_what_is_there(postgres_url, postgres_database):
    """That the keys are taken ends the statement that finds it, and not the caller's transaction."""
    batches = [Batch(saga_id, None, [an_event(saga_id, 0)], [a_snapshot(saga_id, 0)]) for saga_id in ("s", "t")]

    async def main():
        storage = open_storage(postgres_url)
        await storage.upgrade()
        connection = await asyncpg.connect(postgres_database)
        async with connection.transaction():
            bound = storage.bind(connection)
            for _ in range(2):
                await bound.write(batches[0])
                assert await bound.write_many(batches) == [None, None]
        await connection.close()
        found = [await storage.count_snapshots(saga_id) for saga_id in ("s", "t")]
        await storage.close()
        return found

    assert asyncio.run(main()) == [1, 1]


async def until_waits(connection):
    """Wait until somebody waits for a lock."""
    while not await connection.fetchval("SELECT 1 FROM pg_locks WHERE NOT granted LIMIT 1"):  # noqa: ASYNC110 - the server does it
        await asyncio.sleep(0)


def test_a_batch_that_comes_while_its_saga_is_deleted_is_there_or_is_not(postgres_url, postgres_database):
    """Never a part of it."""
    schema = schema_of(postgres_url)

    async def main():
        storage = open_storage(postgres_url)
        await storage.write(Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)]))
        connection, other = [await asyncpg.connect(postgres_database) for _ in range(2)]
        async with connection.transaction():
            await connection.execute(f"SELECT 1 FROM {schema}.saga_snapshots FOR UPDATE")
            task = asyncio.create_task(storage.delete_saga("s"))
            await until_waits(other)
            await storage.write(Batch("s", None, [an_event("s", 1)], [a_snapshot("s", 1)]))
        assert await task
        found = [event.seq async for event in storage.read_events("s")], await storage.count_snapshots("s")
        for one in (connection, other, storage):
            await one.close()
        return found

    assert asyncio.run(main()) == ([1], 1)


@pytest.mark.parametrize("what", ["events", "snapshots"])
def test_what_is_deleted_while_it_is_written_again_is_added_anew(postgres_url, postgres_database, what):
    """It is no other record that has its key."""
    events, snapshots = [an_event("s", seq) for seq in range(2)], [a_snapshot("s", seq) for seq in range(2)]

    def batch(first, end):
        of_both = Batch("s", None, events[first:end], snapshots[first:end])
        return of_both._replace(events=()) if what == "snapshots" else of_both._replace(snapshots=())

    async def main():
        storage = open_storage(postgres_url)
        await storage.write(batch(0, 1))
        connection, other = [await asyncpg.connect(postgres_database) for _ in range(2)]
        transaction = connection.transaction()
        await transaction.start()
        await storage.bind(connection).write(batch(1, 2))
        task = asyncio.create_task(storage.write(batch(0, 2)))
        await until_waits(other)  # the first was found to be there, and the other is on its way
        assert await storage.delete_saga("s")
        await transaction.rollback()
        await task
        found = [event.seq async for event in storage.read_events("s")], await storage.count_snapshots("s")
        for one in (connection, other, storage):
            await one.close()
        return found

    assert asyncio.run(main()) == (([0, 1], 0) if what == "events" else ([], 2))


@pytest.mark.parametrize("first", [None, "1.0"])
def test_what_cannot_be_stored_takes_nothing_else_with_it_on_a_bound_connection(postgres_url, postgres_database, first):
    record = first and a_saga("a", version=first)
    batches = [Batch("a", record, [an_event("a", 0)]), Batch("b", None, [an_event("b", 2**63, T0)])]

    async def main():
        storage = open_storage(postgres_url)
        await storage.upgrade()
        connection = await asyncpg.connect(postgres_database)
        async with connection.transaction():
            results = await storage.bind(connection).write_many(batches)
        assert [type(result) for result in results] == [type(None), UsageError]
        found = [event.seq async for event in storage.read_events("a")], await storage.get_saga("a")
        await connection.close()
        await storage.close()
        return found

    assert asyncio.run(main()) == ([0], record)


def test_those_who_write_the_same_at_the_same_time_do_not_wait_for_each_other_for_ever(postgres_url):
    """In groups in any order, and one by one."""
    chance = random.Random(1)

    async def main():
        stores = [open_storage(postgres_url) for _ in range(4)]
        await stores[0].upgrade()
        for turn in range(5):
            sagas = [(f"s{turn}-{number}", LONG if number % 3 == 0 else number) for number in range(60)]
            some = [Batch(name, None, [an_event(name, seq)], [a_snapshot(name, seq)]) for name, seq in sagas]
            works = [store.write_many(chance.sample(some, len(some))) for store in stores[:3]]
            works.append(asyncio.gather(*(stores[3].write(batch) for batch in some)))
            for results in await asyncio.gather(*works):
                assert results == [None] * len(some)
        info = await stores[0].info()
        for store in stores:
            await store.close()
        return info.events, info.snapshots

    assert asyncio.run(main()) == (300, 300)


def test_a_schema_may_have_letters_of_any_alphabet(postgres_database):
    separator = "&" if "?" in postgres_database else "?"

    async def main():
        storage = open_storage(f"{postgres_database}{separator}schema=Größe_数")
        await storage.write(Batch("s", a_saga("s")))
        assert await storage.upgrade() == SCHEMA_VERSION
        await storage.close()
        storage = open_storage(f"{postgres_database}{separator}schema=Gr%C3%B6%C3%9Fe_%E6%95%B0")
        info = await storage.info()
        await storage.close()
        return info.sagas

    try:
        assert asyncio.run(main()) == 1
    finally:
        execute(postgres_database, 'DROP SCHEMA IF EXISTS "Größe_数" CASCADE')


def test_a_url_may_name_several_servers(postgres_url):
    parts = urlsplit(postgres_url)
    user, at, server = parts.netloc.rpartition("@")
    url = parts._replace(netloc=f"{user}{at}127.0.0.1:1,{server}").geturl()  # nobody listens there

    async def main():
        storage = open_storage(url)
        await storage.write(Batch("s", a_saga("s")))
        found = await storage.get_saga("s")
        await storage.close()
        return found

    assert asyncio.run(main()) == a_saga("s")


def test_an_option_that_the_driver_cannot_use_is_told_at_once(postgres_url):
    tried = []

    async def main():
        storage = open_storage(f"{postgres_url}&ssl_min_protocol_version=SSLv9")
        translated = storage._connections.translated
        storage._connections.translated = lambda error: tried.append(error) or translated(error)
        with pytest.raises(UsageError, match="TLS version: SSLv9"):
            await storage.info()

    asyncio.run(main())
    assert len(tried) == 1


def test_a_pooler_that_shares_connections_is_used_without_prepared_statements(postgres_url):
    async def main():
        storage = open_storage(f"{postgres_url}&prepared=no&pool_size=1")
        await storage.write(Batch("s", a_saga("s"), [an_event("s", 0)]))
        pool = storage._connections._pools.get()
        connection = await pool.take()
        prepared = await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''")
        pool.give_back(connection)
        await storage.close()
        return prepared

    assert asyncio.run(main()) == 0


async def make_old(connection, schema, version):
    """Make the tables as an earlier release did."""
    await connection.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.saga_schema (version INTEGER)")
    for number in range(1, version + 1):
        for statement in MIGRATIONS[number]:
            await connection.execute(statement.replace("{s}", f"{schema}."))
    await connection.execute(f"INSERT INTO {schema}.saga_schema VALUES ({version})")


def test_a_store_of_an_earlier_release_is_brought_up_to_date(postgres_url, postgres_database):
    """What is in it is read as it was, and gone on with."""
    schema = schema_of(postgres_url)
    old, snapshot = a_saga("s"), FrameWriter().frame(a_snapshot("s", 1), b"state")
    replay, summary = a_replay("r", "s"), a_summary("s", 1, tags={"x": "é"})

    async def main():
        connection = await asyncpg.connect(postgres_database)
        await make_old(connection, schema, 1)
        written = (
            ("sagas", (*saga_row(old)[:9], *summary_row(summary)[:6], 0, T0, 1, snapshot.snapshot_id, T0)),
            ("saga_events", ("s", 0, T0, T0, "StepStarted", "step0", b"data")),
            ("saga_snapshots", (*snapshot[:9], snapshot.created_at, None, None, snapshot.data)),
            ("saga_replay_log", replay_row(replay)[:11]),
        )
        for table, row in written:
            places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
            await connection.execute(f"INSERT INTO {schema}.{table} VALUES ({places})", *row)
        await connection.close()

        storage = open_storage(postgres_url)
        assert await storage.get_saga("s") == old
        assert (await storage.info()).schema_version == NEEDED_VERSION  # what takes long is left
        await storage.write(Batch("s", old, [an_event("s", 0, T0)], [snapshot]))
        new = a_snapshot("s", 2, completed_steps=("reserve",), tags=(("x", "y"),))
        await storage.write(Batch("s", None, [an_event("s", 1)], [new]))
        for _ in range(2):
            found = await storage.list_snapshots("s")
            assert [(one.seq, one.completed_steps, one.tags) for one in found.items] == [(1, (), ()), (2, *new[-2:])]
            assert state_bytes(found.items[0]) == b"state"
            assert [event.seq async for event in storage.read_events("s")] == [0, 1]
            assert await storage.list_replays("s") == [replay]
            assert (await storage.find_sagas(tags={"x": "é"})).items == [summary]
            assert await storage.latest_snapshot("s", step=new.step_name, until=new.created_at) == new
            assert await storage.upgrade() == (await storage.info()).schema_version == SCHEMA_VERSION
        await storage.close()

    asyncio.run(main())


@pytest.mark.parametrize("prepared", ["yes", "no"])
def test_an_upgrade_goes_on_while_others_write_and_upgrade(postgres_url, postgres_database, prepared):
    schema = schema_of(postgres_url)

    async def main():
        connection = await asyncpg.connect(postgres_database)
        await make_old(connection, schema, NEEDED_VERSION)
        fresh = f"{schema}_fresh"
        stores = [open_storage(f"{postgres_url}&prepared={prepared}") for _ in range(8)]
        writer, new = open_storage(postgres_url), open_storage(f"{postgres_database}?schema={fresh}")
        await new.upgrade()
        await writer.write(Batch("s", a_saga("s")))
        upgraded = asyncio.gather(*(store.upgrade() for store in stores))
        seq = 0
        while not upgraded.done() or seq < 200:
            await writer.write(Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq)]))
            seq += 1
        assert await upgraded == [SCHEMA_VERSION] * 8
        assert await writer.count_snapshots("s") == seq
        assert await writer.latest_snapshot("s", step=a_snapshot("s", 150).step_name, max_seq=150)
        indices = "SELECT indexdef FROM pg_indexes WHERE schemaname = $1 ORDER BY indexname"
        found = [
            [row[0].replace(f"{name}.", "") for row in await connection.fetch(indices, name)]
            for name in (schema, fresh)
        ]
        assert found[0] == found[1]
        assert sum("WHERE (seq >= 128)" in text for text in found[0]) == len(LONG_INDICES)
        assert await connection.fetch(f"SELECT version FROM {schema}.saga_schema ORDER BY 1") == [
            (NEEDED_VERSION,),
            (SCHEMA_VERSION,),
        ]
        await connection.close()
        for store in (*stores, writer, new):
            await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("prepared", ["yes", "no"])
def test_an_upgrade_that_was_broken_off_is_gone_on_with(postgres_url, postgres_database, prepared):
    schema, index = schema_of(postgres_url), LONG_INDICES[1]
    ready = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"

    async def main():
        connection, other = [await asyncpg.connect(postgres_database) for _ in range(2)]
        await make_old(connection, schema, NEEDED_VERSION)
        storage = open_storage(postgres_url)
        async with other.transaction():  # to make an index waits for its end
            await other.execute(f"LOCK TABLE {schema}.saga_snapshots IN ROW EXCLUSIVE MODE")
            task = asyncio.create_task(storage.upgrade())
            while await connection.fetchval(ready, f"{schema}.{LONG_INDICES[0].name}") is None:  # noqa: ASYNC110 - the server does it
                await asyncio.sleep(0)
            running = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' AND pid <> $1"
            pid = await connection.fetchval(running, connection.get_server_pid())
            assert await connection.fetchval("SELECT pg_terminate_backend($1)", pid)
            with pytest.raises(StoreUnavailableError, match=r"was broken off .*: do it again"):
                await task
        assert await connection.fetchval(ready, f"{schema}.{LONG_INDICES[0].name}") is False
        assert await connection.fetchval(ready, f"{schema}.{index.replaced}")
        await storage.write(Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 1)]))
        await connection.execute(f"DROP INDEX {schema}.{LONG_INDICES[0].replaced}")  # as if it had come farther
        again = open_storage(f"{postgres_url}&prepared={prepared}")
        assert await again.upgrade() == SCHEMA_VERSION
        await again.close()
        assert [await connection.fetchval(ready, f"{schema}.{one.name}") for one in LONG_INDICES] == [True] * 5
        assert await connection.fetchval(ready, f"{schema}.{index.replaced}") is None
        await storage.close()
        await connection.close()
        await other.close()

    asyncio.run(main())


def test_completed_steps_and_tags_can_be_asked_for_in_sql(postgres_url, postgres_database):
    async def main():
        storage = open_storage(postgres_url)
        snapshots = [
            a_snapshot("s", seq, completed_steps=("reserve", "charge")[:seq], tags=(("n", str(seq)),))
            for seq in range(3)
        ]
        await storage.write(Batch("s", a_saga("s"), (), snapshots))
        await storage.close()
        connection = await asyncpg.connect(postgres_database)
        query = f"SELECT array_agg(seq) FROM {schema_of(postgres_url)}.saga_snapshots WHERE"
        found = [await connection.fetchval(f"{query} completed_steps ? 'charge'")]
        found.append(await connection.fetchval(f"""{query} tags @> '{{"n": "1"}}'"""))
        await connection.close()
        return found

    assert asyncio.run(main()) == [[2], [1]]


@pytest.mark.parametrize("seed", range(6))
def test_a_saga_that_becomes_long_answers_as_before(postgres_url, postgres_database, seed):
    """From `LONG` on other indices are asked; some of it is written late, and the clock goes back on both sides."""
    rng = random.Random(seed)
    seqs = range(LONG - 12, LONG + 12)
    seconds = [max(0, seq - seqs[0] - rng.choice((0, 0, 0, 0, 3, 15))) for seq in seqs]
    moments = [T0 + timedelta(seconds=part / 2) for part in range(-1, 2 * max(seconds) + 2)]
    written = [
        (
            an_event("s", seq, T0 + timedelta(seconds=second)),
            a_snapshot(
                "s",
                seq,
                step_name=rng.choice(("early", "charge") if seq < LONG else ("late", "charge")),
                phase=rng.choice(("before", "after")),
                created_at=T0 + timedelta(seconds=second),
            ),
        )
        for seq, second in zip(seqs, seconds, strict=True)
    ]
    one_by_one = sorted(written[6:], key=lambda one: one[0].seq + rng.choice((0, 0, 3)))
    parts = [written[:6]]
    while one_by_one:
        size = rng.choice((1, 1, 4))
        parts.append(one_by_one[:size])
        del one_by_one[:size]
    questions = [
        {"step": step, "phase": phase, "max_seq": max_seq}
        for step in (None, "early", "charge", "late")
        for phase in (None, "before")
        for max_seq in (None, LONG - 1, LONG)
    ]

    async def main():
        theirs, ours = open_storage(postgres_url), InMemorySnapshotStorage()
        for store in (theirs, ours):
            await store.write(Batch("s", a_saga("s")))
            for events, snapshots in (zip(*part, strict=True) for part in parts):
                other = Batch("other", None, [event._replace(saga_id="other") for event in events])
                both = Batch("s", None, events, snapshots)
                apart = Batch("s", None, events), Batch("s", None, (), snapshots)
                for batch in (both,) if seed % 3 else apart:
                    some = [batch, other] if seed % 2 else [batch]
                    assert await store.write_many(some) == [None] * len(some)
        for until in (None, *moments):
            for question in questions:
                found = [await store.latest_snapshot("s", until=until, **question) for store in (theirs, ours)]
                assert found[0] == found[1], (until, question)
            for after in (-1, LONG - 1):
                read = [
                    [event async for event in store.read_events("s", after_seq=after, until=until)]
                    for store in (theirs, ours)
                ]
                assert read[0] == read[1], (until, after)
        for step in ("early", "charge", "late"):
            (checkpoint,) = await theirs.read_checkpoints([("s", step)])
            before = await ours.latest_snapshot("s", step=step, phase="before")
            assert (checkpoint.before, checkpoint.last_seq) == (before, seqs[-1])
        await theirs.close()
        connection = await asyncpg.connect(postgres_database)
        for table, time in (("saga_events", "at"), ("saga_snapshots", "created_at")):
            floors = f"SELECT floor, min({time}) OVER (PARTITION BY saga_id ORDER BY seq DESC)"
            long = await connection.fetch(f"{floors} FROM {schema_of(postgres_url)}.{table} WHERE seq >= {LONG}")
            assert len(long) in (12, 24)
            assert [row for row in long if row[0] != row[1]] == []
        await connection.close()

    asyncio.run(main())
