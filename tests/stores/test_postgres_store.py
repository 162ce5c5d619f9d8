"""The PostgreSQL store, on a real server."""

import asyncio
import subprocess
import sys

import asyncpg
import pytest

from sagaz_core.errors import DuplicateSagaError, SchemaError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import SnapshotStorageContract, a_saga, a_snapshot, an_event


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

    assert asyncio.run(main()) == (20, 20, 1)


def test_a_newer_schema_is_refused(postgres_url, postgres_database):
    async def main():
        storage = open_storage(postgres_url)
        assert await storage.upgrade() == 1
        await storage.close()
        connection = await asyncpg.connect(postgres_database)
        await connection.execute(f"INSERT INTO {schema_of(postgres_url)}.saga_schema VALUES (99)")
        await connection.close()
        for work in (
            lambda: storage.write(Batch("s", a_saga("s"))),
            lambda: storage.get_saga("s"),
            storage.upgrade,
        ):
            with pytest.raises(SchemaError, match="has schema 99, this release reads up to 1: upgrade pytest-sagaz"):
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
