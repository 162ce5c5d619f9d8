"""What a store behind a network costs, next to its bare driver doing the same: `python benchmarks/network_stores.py`.

On a Valkey, a PostgreSQL and an S3 server of its own, as the tests have them. Every figure is the best of several
rounds in this one run, so only the ratios mean something elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import obstore.store
import redis.asyncio

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "stores"))

from sagaz_core import ReplayConfig, Saga, SagaReplay, action
from sagaz_core.storage import Batch, SagaSnapshot, SnapshotStorage, open_storage
from sagaz_core.storage.contract import T0, a_saga, a_snapshot
from sagaz_core.storage.durability import GroupWriter
from sagaz_core.storage.snapshot_ids import snapshot_name
from tests.servers import execute, own_postgres, own_valkey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TESTS = Path(__file__).parents[1] / "tests" / "stores"
ROUNDS = 9
SAVES = 200
S3_SAVES = 20  # of a saga of ten steps
S3_DELAY = 0.02
RUN = "01a20553-cf0b-741f-a7d6-31c1f113170e"
S3_LENGTHS = 100, 1_000, 10_000
MANY = 100_000
REPLAYS, AT_ONCE = 1_500, 50
TOGETHER, ROWS = 100, 30
COMMIT_MILLISECONDS = 0, 1, 2, 5
DATA = os.urandom(1000)
_ids = count()


async def best(number: int, **works: Callable[[], Awaitable[Callable[[], Awaitable[object]]]]) -> dict[str, float]:
    """Return for each work the least microseconds that one of its `number` operations took; a work prepares a round.

    The rounds of all works alternate, so that what else the machine does meets them alike.
    """
    found = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for name, work in works.items():
            run = await work()
            start = time.perf_counter()
            await run()
            found[name] = min(found[name], (time.perf_counter() - start) / number * 1e6)
    return found


def saving(storage: SnapshotStorage) -> Callable[[], Awaitable[Callable[[], Awaitable[object]]]]:
    """Prepare rounds in which a saga's snapshots of 1 KB are saved, one after the other."""

    async def prepare() -> Callable[[], Awaitable[object]]:
        saga_id = f"saga-{next(_ids)}"
        await storage.write(Batch(saga_id, a_saga(saga_id)))
        batches = [
            Batch(saga_id, None, (), [a_snapshot(saga_id, seq, step_name=f"step_{seq % 10}", data=DATA)])
            for seq in range(SAVES)
        ]

        async def run() -> None:
            for batch in batches:
                await storage.write(batch)

        return run

    return prepare


def show(store: str, took: dict[str, float], bare: str, others: dict[str, str]) -> None:
    print(f"save: 1 snapshot of 1 KB, {store}")
    print(f"  {bare:46}{took['bare']:8.1f} µs")
    for name, title in others.items():
        print(f"  {title:46}{took[name]:8.1f} µs   {took[name] / took['bare']:.2f}x")
    print(f"  {store:46}{took['ours']:8.1f} µs   {took['ours'] / took['bare']:.2f}x")
    print(f"    the limit, 1.25x + 60 µs                    {1.25 * took['bare'] + 60:8.1f} µs")


async def of_redis(url: str) -> None:
    client = redis.asyncio.Redis.from_url(url)
    storage = open_storage(f"{url}?prefix=bench")

    async def set_bare() -> Callable[[], Awaitable[object]]:
        name = f"bare-{next(_ids)}"

        async def run() -> None:
            for seq in range(SAVES):
                await client.set(f"{name}:{seq}", DATA)

        return run

    async def set_and_index() -> Callable[[], Awaitable[object]]:
        name = f"indexed-{next(_ids)}"

        async def run() -> None:
            for seq in range(SAVES):
                async with client.pipeline(transaction=True) as pipeline:
                    pipeline.set(f"{name}:{seq}", DATA)
                    pipeline.zadd(name, {f"{name}:{seq}": seq})
                    await pipeline.execute()

        return run

    took = await best(SAVES, bare=set_bare, indexed=set_and_index, ours=saving(storage))
    show("redis", took, "bare redis-py, SET", {"indexed": "bare redis-py, SET and ZADD in a transaction"})
    await storage.close()
    await client.aclose()


async def of_postgres(url: str) -> None:
    pool = await asyncpg.create_pool(url, min_size=1, max_size=10)
    storage = open_storage(f"{url}?schema=bench")
    await storage.upgrade()
    await pool.execute("CREATE TABLE bare (snapshot_id TEXT PRIMARY KEY, data BYTEA)")
    await pool.execute("CREATE TABLE indexed (LIKE bench.saga_snapshots INCLUDING ALL)")
    row = (
        "INSERT INTO indexed (snapshot_id, saga_id, saga_name, step_name, step_index, seq, phase, status, created_at, "
        "floor, data) VALUES ($1, $2, 'order', $3, 1, $4, 'before', 'executing', $5, $5, $6)"
    )

    def inserting(statement: str, values: Callable[[str, int], tuple[Any, ...]]) -> Any:
        async def prepare() -> Callable[[], Awaitable[object]]:
            name = f"bare-{next(_ids)}"

            async def run() -> None:
                async with pool.acquire() as connection:
                    for seq in range(SAVES):
                        await connection.execute(statement, *values(name, seq))

            return run

        return prepare

    took = await best(
        SAVES,
        bare=inserting("INSERT INTO bare VALUES ($1, $2)", lambda name, seq: (f"{name}:{seq}", DATA)),
        indexed=inserting(row, lambda name, seq: (f"{name}:{seq}", name, f"step_{seq % 10}", seq, T0, DATA)),
        ours=saving(storage),
    )
    show("postgresql", took, "bare asyncpg, INSERT, primary key alone", {"indexed": "bare asyncpg, our table"})
    await of_groups(url, "in memory", COMMIT_MILLISECONDS)
    await of_time(storage, pool)
    await storage.close()
    await pool.close()


async def of_s3() -> None:
    """Against moto in this process, which takes most of the time; and with the delay of a real bucket's answers."""
    import s3_server  # with moto, whose many objects the garbage collector would go through for the others too

    server = s3_server.running()
    server.app = server.moto  # as it comes
    bucket = server.bucket()
    storage = open_storage(server.url(bucket))
    options = {**s3_server.CREDENTIALS, "endpoint": server.endpoint}
    bare = obstore.store.S3Store(bucket, config=options, client_options={"allow_http": True})
    last = ""

    async def put_bare() -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            for _ in range(S3_SAVES):
                await bare.put_async(f"bare-{next(_ids)}", DATA)

        return run

    async def get_bare() -> Callable[[], Awaitable[object]]:
        await bare.put_async("bare", DATA)

        async def run() -> None:
            for _ in range(S3_SAVES):
                await (await bare.get_async("bare")).bytes_async()

        return run

    async def save() -> Callable[[], Awaitable[object]]:
        nonlocal last
        last = saga_id = f"{RUN}-{next(_ids)}"
        await storage.write(Batch(saga_id, a_saga(saga_id)))
        snapshots = [
            a_snapshot(saga_id, seq, snapshot_id=snapshot_name(saga_id, seq), data=DATA) for seq in range(S3_SAVES)
        ]

        async def run() -> None:
            for snapshot in snapshots:
                await storage.write(Batch(saga_id, None, (), [snapshot]))

        return run

    async def ask() -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            for _ in range(S3_SAVES):
                await storage.latest_snapshot(last)

        return run

    for delay in (0.0, S3_DELAY):
        server.delay = delay
        took = await best(S3_SAVES, bare=put_bare, ours=save, get=get_bare, latest=ask)
        print(f"save: 1 snapshot of 1 KB, and the latest one, s3 (moto), {delay * 1000:g} ms more for each request")
        for title, name, bare_name in (("save", "ours", "bare"), ("latest, of a saga that runs", "latest", "get")):
            print(f"  bare obstore, one request                     {took[bare_name]:8.1f} µs")
            print(f"  s3, {title:40}  {took[name]:8.1f} µs   {took[name] / took[bare_name]:.2f}x")
    server.delay = 0.0
    await storage.close()
    await long_on_s3(server)
    server.stop()


async def long_on_s3(server: Any) -> None:
    """What is sent for a long saga, and what a listing of it takes in a new process: counts, and no times."""
    url = server.url(server.bucket())
    storage = open_storage(url)
    await storage.write(Batch("s", a_saga("s")))
    written = 0
    print("a long saga, snapshots of 110 bytes in chains of 16, s3")
    for length in S3_LENGTHS:
        while written < length:
            snapshots = [_link(seq) for seq in range(written, min(written + 100, length))]
            await storage.write(Batch("s", None, (), snapshots))
            written += len(snapshots)
        server.sent = 0
        for seq in range(written, written + S3_SAVES):
            await storage.write(Batch("s", None, (), [_link(seq)]))
        written += S3_SAVES
        sent = server.sent / S3_SAVES
        server.asked.clear()
        command = [sys.executable, str(TESTS / "list_all.py"), url]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
        listed, peak = map(int, done.stdout.split())
        figures = f"a save sends {sent / 1000:4.1f} KB, a listing takes {len(server.asked):3} requests"
        print(f"  {listed:6,} snapshots: {figures} and {peak / 1e6:.2f} MB of memory")
    await storage.close()


def _link(seq: int) -> SagaSnapshot:
    base_seq = seq - seq % 16 if seq % 16 else None
    return a_snapshot(
        "s", seq, snapshot_id=f"s@{seq}", step_name=f"step_{seq // 2}", data=DATA[:110], base_seq=base_seq
    )


async def of_groups(url: str, disk: str, delays: tuple[int, ...] = (0,)) -> None:
    """Rows a second that sagas write at the same time, where a commit waits so many milliseconds besides."""
    print(f"rows a second of 1 KB, {TOGETHER} sagas at the same time, postgresql with its data {disk}")
    for delay in delays:
        name = urlsplit(url).path[1:]
        delayed = f"ALTER DATABASE {name} SET commit_delay = {delay * 1000}"
        await asyncio.to_thread(execute, url, delayed, f"ALTER DATABASE {name} SET commit_siblings = 0")
        storage = open_storage(f"{url}?schema=groups")
        await storage.upgrade()
        took = await in_groups(storage)
        await storage.close()
        sync, group = 1e6 / took["sync"], 1e6 / took["group"]
        print(f"  {delay} ms more a commit: sync {sync:8,.0f}     group {group:8,.0f}   {group / sync:.2f}x")


def of_a_disk() -> None:
    """The same on a disk, which a commit waits for."""
    parent = Path(tempfile.gettempdir())
    took = []
    with tempfile.NamedTemporaryFile(dir=parent) as file:
        for _ in range(100):
            file.write(bytes(8192))
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - start)
    with own_postgres(parent) as server:
        disk = f"on the disk here, whose fsync of 8 KB takes {sorted(took)[50] * 1000:.2f} ms"
        asyncio.run(of_groups(server.url(), disk))


async def in_groups(storage: SnapshotStorage) -> dict[str, float]:
    """Return the microseconds that a row takes."""

    def writing(write: Callable[[Batch], Awaitable[object]]) -> Any:
        async def prepare() -> Callable[[], Awaitable[object]]:
            ids = [f"group-{next(_ids)}" for _ in range(TOGETHER)]
            for saga_id in ids:
                await storage.write(Batch(saga_id, a_saga(saga_id)))

            batches = [
                [Batch(saga_id, None, (), [a_snapshot(saga_id, seq, data=DATA)]) for seq in range(ROWS)]
                for saga_id in ids
            ]

            async def one(of_saga: list[Batch]) -> None:
                for batch in of_saga:
                    await write(batch)

            async def run() -> None:
                await asyncio.gather(*map(one, batches))

            return run

        return prepare

    return await best(TOGETHER * ROWS, sync=writing(storage.write), group=writing(GroupWriter(storage).write))


async def of_time(storage: SnapshotStorage, pool: asyncpg.Pool) -> None:
    snapshots = [a_snapshot("s", seq, data=DATA[:100], snapshot_id=f"s/{seq:08}") for seq in range(MANY)]
    await storage.write(Batch("s", a_saga("s")))
    for start in range(0, MANY, 5_000):
        await storage.write(Batch("s", None, (), snapshots[start : start + 5_000]))
    await pool.execute("CREATE TABLE timed AS SELECT * FROM bench.saga_snapshots WHERE saga_id = 's'")
    await pool.execute("CREATE INDEX timed_by_time ON timed (saga_id, floor, seq)")
    await pool.execute("ANALYZE timed, bench.saga_snapshots")
    moments = [T0 + timedelta(seconds=MANY * part // 50) for part in range(50)]
    right = 0
    for part, moment in enumerate(moments):
        right += await storage.latest_snapshot("s", until=moment) == snapshots[MANY * part // 50]
    plain = "SELECT * FROM timed WHERE saga_id = 's' AND floor <= $1 ORDER BY floor DESC, seq DESC LIMIT 1"

    async def select() -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            async with pool.acquire() as connection:
                for moment in moments:
                    await connection.fetchrow(plain, moment)

        return run

    async def ask() -> Callable[[], Awaitable[object]]:
        async def run() -> None:
            for moment in moments:
                await storage.latest_snapshot("s", until=moment)

        return run

    took = await best(50, select=select, ours=ask)
    print(f"latest snapshot at a time, among {MANY:,} of one saga ({right} of 50 right), postgresql")
    print(f"  bare asyncpg, one indexed select              {took['select']:8.1f} µs")
    print(
        f"  postgresql                                    {took['ours']:8.1f} µs   {took['ours'] / took['select']:.2f}x"
    )


class Order(Saga):
    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx: Any) -> dict[str, Any]:
        return {"reserved": ctx["qty"]}

    @action("charge")
    async def charge(self, ctx: Any) -> dict[str, Any]:
        return {"charged": True}

    @action("ship")
    async def ship(self, ctx: Any) -> dict[str, Any]:
        return {"shipped": True}


async def replaying(url: str) -> None:
    storage = open_storage(url)
    ids = [f"ORDER-{number}" for number in range(REPLAYS)]
    turns = asyncio.Semaphore(AT_ONCE)
    saga = Order(snapshot_storage=storage, replay_config=ReplayConfig(durability="group"))

    async def record(saga_id: str) -> None:
        async with turns:
            await saga.run({"qty": 1}, saga_id=saga_id)

    async def replay(saga_id: str) -> None:
        async with turns:
            result = await SagaReplay(saga_id, storage, saga_factory=Order).from_checkpoint("charge", {"token": "new"})
            assert result.replay_status.value == "success"

    for title, work in (("recorded", record), ("replayed", replay)):
        start = time.perf_counter()
        await asyncio.gather(*map(work, ids))
        took = time.perf_counter() - start
        print(f"{REPLAYS:,} sagas of 3 steps {title} on postgresql, {AT_ONCE} at a time: {took:.2f} s")
    await storage.close()


if __name__ == "__main__":
    with own_valkey() as valkey:
        asyncio.run(of_redis(valkey.url))
    with own_postgres() as postgres:
        asyncio.run(of_postgres(postgres.url()))
        execute(postgres.url(), "CREATE DATABASE replays")
        asyncio.run(replaying(postgres.url("replays")))
    of_a_disk()
    asyncio.run(of_s3())
