"""What a store costs, next to its bare driver doing the same: `python benchmarks/stores.py`.

Every figure is the best of several rounds in this one run, so only the ratios mean something elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagaz_core import Saga
from sagaz_core.storage import Batch, InMemorySnapshotStorage, SagaSnapshot, SnapshotStorage, open_storage
from sagaz_core.storage._sqlite_statements import LATEST_SNAPSHOT_OF_ALL_UNTIL, MIGRATIONS
from sagaz_core.storage.contract import T0, a_saga, a_snapshot, an_event
from sagaz_core.storage.file import FileSnapshotStorage
from sagaz_core.storage.frames import FrameWriter, state_bytes
from sagaz_core.storage.sqlite import SqliteSnapshotStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 15
SAGAS, STEPS = 60, 10
MANY = 100_000
DATA = os.urandom(1000)
LIST_ALL = Path(__file__).parents[1] / "tests" / "stores" / "list_all.py"

BARE_TABLES = (
    "CREATE TABLE events (saga_id TEXT, seq INT, at INT, kind TEXT, step TEXT, data BLOB, PRIMARY KEY (saga_id, seq))",
    """CREATE TABLE snapshots (
        snapshot_id TEXT PRIMARY KEY, saga_id TEXT, saga_name TEXT, step TEXT, step_index INT, seq INT, phase TEXT,
        status TEXT, at INT, data BLOB, retention_until INT
    )""",
)
BARE_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)"
BARE_SNAPSHOT = "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
OUR_EVENT = "INSERT INTO saga_events VALUES (?, ?, ?, ?, ?, ?)"
OUR_SNAPSHOT = "INSERT INTO saga_snapshots VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL)"
OUR_TABLES = tuple(statement for version in MIGRATIONS.values() for statement in version)


def now(work: Any) -> Any:
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("an embedded store waited")


def batches() -> list[Batch]:
    made = []
    for saga in range(SAGAS):
        saga_id = f"0190a000-0000-7000-8000-{saga:012}"
        for step in range(STEPS):
            seq = 2 * step
            events = [an_event(saga_id, seq, data=DATA), an_event(saga_id, seq + 1, data=DATA)]
            fields: dict[str, Any] = {
                "step_name": f"step_{step}",
                "data": DATA,
                "snapshot_id": f"{saga_id[:23]}-{saga:06}{step:06}",
            }
            record = None if step else a_saga(saga_id)
            made.append(Batch(saga_id, record, events, [a_snapshot(saga_id, seq + 1, **fields)]))
    return made


def best(count: int, **works: Callable[[], Callable[[], object]]) -> dict[str, float]:
    """Return for each work the least microseconds that one of its `count` operations took; a work prepares a round.

    The rounds of all works alternate, so that what else the machine does meets them alike.
    """
    found = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for name, work in works.items():
            run = work()
            start = time.perf_counter()
            run()
            found[name] = min(found[name], (time.perf_counter() - start) / count * 1e6)
    return found


@contextmanager
def new_file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "bench.db")


def bare(path: str, tables: tuple[str, ...]) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    for table in tables:
        connection.execute(table)
    return connection


def write_all(storage: SnapshotStorage, made: list[Batch]) -> None:
    for batch in made:
        now(storage.write(batch))


def bare_rows(made: list[Batch], ours: bool) -> list[tuple[list[tuple[object, ...]], tuple[object, ...]]]:
    rows = []
    for number, batch in enumerate(made):
        saga, snapshot = number // STEPS, batch.snapshots[0]
        key = saga if ours else batch.saga_id
        floor = (number,) if ours else ()
        places = [(saga << 32 | e.seq,) if ours else (batch.saga_id, e.seq) for e in batch.events]
        events: list[tuple[object, ...]] = [
            (*place, number, *floor, e.kind, e.step, e.data) for place, e in zip(places, batch.events, strict=True)
        ]
        names = (snapshot.snapshot_id, key, "order", snapshot.step_name, 1, snapshot.seq, "before", "executing")
        rows.append((events, (*names, number, *floor, *((None, DATA) if ours else (DATA, None)))))
    return rows


def writing() -> None:
    made = batches()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        paths = (f"{folder}/{number}.db" for number in count())

        def write_bare(ours: bool) -> Callable[[], object]:
            connection = stack.enter_context(closing(bare(next(paths), OUR_TABLES if ours else BARE_TABLES)))
            rows = bare_rows(made, ours)
            event, snapshot = (OUR_EVENT, OUR_SNAPSHOT) if ours else (BARE_EVENT, BARE_SNAPSHOT)

            def run() -> None:
                for events, row in rows:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(event, events)
                    connection.execute(snapshot, row)
                    connection.execute("COMMIT")

            return run

        def write_sqlite() -> Callable[[], object]:
            storage = SqliteSnapshotStorage(next(paths))
            stack.callback(lambda: now(storage.close()))
            now(storage.write(Batch("first", a_saga("first"))))
            return partial(write_all, storage, made)

        took = best(
            len(made),
            memory=lambda: partial(write_all, InMemorySnapshotStorage(), made),
            naive=partial(write_bare, False),
            same=partial(write_bare, True),
            sqlite=write_sqlite,
        )
    naive, same, sqlite = took["naive"], took["same"], took["sqlite"]
    print("write: 1 snapshot and 2 events of 1 KB each, in one transaction")
    print(f"  memory                                {took['memory']:8.1f} µs")
    print(f"  bare sqlite3, primary keys alone      {naive:8.1f} µs")
    print(f"  bare sqlite3, our tables and indices  {same:8.1f} µs   {same / naive:.2f}x")
    print(f"  sqlite                                {sqlite:8.1f} µs   {sqlite / naive:.2f}x and {sqlite / same:.2f}x")
    print(f"    the limit, 1.25x + 60 µs            {1.25 * naive + 60:8.1f} µs")


def reading() -> None:
    moments = [T0 + timedelta(seconds=MANY * part // 50) for part in range(50)]
    snapshots = [
        a_snapshot("s", seq, step_name=f"step_{seq % 10}", data=DATA, snapshot_id=f"s/{seq:08}") for seq in range(MANY)
    ]
    memory = InMemorySnapshotStorage()
    now(memory.write(Batch("s", a_saga("s"), (), snapshots)))

    def ask(storage: SnapshotStorage, step: str | None = None) -> Callable[[], Callable[[], None]]:
        def run() -> None:
            for moment in moments:
                assert now(storage.latest_snapshot("s", step=step, until=moment)) is not None

        return lambda: run

    with new_file() as path:
        storage = SqliteSnapshotStorage(path)
        now(storage.write(Batch("s", a_saga("s"), (), snapshots)))
        connection = bare(path, ())
        times = [(int((moment - T0).total_seconds() * 1e6) + offset(path),) for moment in moments]
        plain = "SELECT * FROM saga_snapshots WHERE saga = 2 AND floor <= ? ORDER BY floor DESC, seq DESC LIMIT 1"
        plain = plain.replace("saga = 2", f"saga = {connection.execute('SELECT id FROM sagas').fetchone()[0]}")
        asked = [("s", time_[0]) for time_ in times]
        right = sum(
            now(storage.latest_snapshot("s", until=moment)) == snapshots[MANY * part // 50]
            for part, moment in enumerate(moments)
        )
        took = best(
            50,
            select=lambda: lambda: [connection.execute(plain, time_).fetchall() for time_ in times],
            statement=lambda: lambda: [connection.execute(LATEST_SNAPSHOT_OF_ALL_UNTIL, a).fetchall() for a in asked],
            memory=ask(memory),
            memory_step=ask(memory, "step_0"),
            sqlite=ask(storage),
            sqlite_step=ask(storage, "step_0"),
        )
        connection.close()
        now(storage.close())
    select = took["select"]
    print(f"latest snapshot at a time, among {MANY:,} of one saga ({right} of 50 right)")
    print(f"  memory                                {took['memory']:8.1f} µs   of a step {took['memory_step']:.1f} µs")
    print(f"  bare sqlite3, one indexed select      {select:8.1f} µs")
    print(f"  bare sqlite3, our statement           {took['statement']:8.1f} µs   {took['statement'] / select:.2f}x")
    print(
        f"  sqlite                                {took['sqlite']:8.1f} µs   {took['sqlite'] / select:.2f}x, ", end=""
    )
    print(f"of a step {took['sqlite_step']:.1f} µs")


def files() -> None:
    """One snapshot of 1 KB through the whole path, and the same bytes appended to one file."""
    made = [
        Batch(
            f"s{number % SAGAS}",
            None,
            (),
            [a_snapshot(f"s{number % SAGAS}", number, data=DATA, snapshot_id=f"{number}")],
        )
        for number in range(SAGAS * STEPS)
    ]
    for fsync in ("never", "always"):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            paths = (f"{folder}/{number}" for number in count())

            def ours(
                fsync: str = fsync, paths: Iterator[str] = paths, stack: ExitStack = stack
            ) -> Callable[[], object]:
                storage = FileSnapshotStorage(next(paths), fsync=fsync)
                stack.callback(lambda: now(storage.close()))
                for number in range(SAGAS):
                    now(storage.write(Batch(f"s{number}", a_saga(f"s{number}"))))
                return partial(write_all, storage, made)

            def appended(
                fsync: str = fsync, paths: Iterator[str] = paths, stack: ExitStack = stack
            ) -> Callable[[], object]:
                opened = [os.open(next(paths), os.O_CREAT | os.O_WRONLY | os.O_APPEND) for _ in range(SAGAS)]
                for file in opened:
                    stack.callback(os.close, file)

                def run() -> None:
                    for number in range(len(made)):
                        file = opened[number % SAGAS]
                        os.write(file, DATA)
                        if fsync == "always":
                            os.fdatasync(file)

                return run

            took = best(len(made), files=ours, bare=appended)
        print(f"save a snapshot of 1 KB, files, fsync={fsync}")
        print(f"  bare write                            {took['bare']:8.1f} µs")
        print(f"  file                                  {took['files']:8.1f} µs   {took['files'] / took['bare']:.2f}x")
        print(f"    the limit, 1.25x + 60 µs            {1.25 * took['bare'] + 60:8.1f} µs")


def listing() -> None:
    """What a new process holds in memory at most while it lists all of a saga, page by page."""
    with tempfile.TemporaryDirectory() as folder:
        for kind, end in (("sqlite", ".db"), ("file", "?fsync=never")):
            peaks = []
            for many in (1_000, 10_000):
                url = f"{kind}:///{folder}/{many}{end}"
                storage = open_storage(url)
                for seq in range(many):
                    now(storage.write(Batch("s", None, (), [a_snapshot("s", seq, data=DATA)])))
                now(storage.close())
                command = [sys.executable, str(LIST_ALL), url]
                listed, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                assert int(listed) == many
                peaks.append(int(peak))
            each = (peaks[1] - peaks[0]) / 9_000
            print(f"list snapshots, {kind:8} 1,000: {peaks[0]:>9,} bytes at most; 10,000: {peaks[1]:>9,}", end="")
            print(f"   {each:.0f} a snapshot")


def offset(path: str) -> int:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT min(created_at) FROM saga_snapshots").fetchone()[0]
    connection.close()
    return int(found)


def order(size: int) -> dict[str, Any]:
    """Return the context of an order whose JSON is of about that size."""
    chance = random.Random(1)
    made: dict[str, Any] = {"order_id": f"{chance.getrandbits(128):032x}", "email": "ada@example.org", "lines": []}
    long = len(json.dumps(made))
    while long < size:
        line = {"sku": f"W{chance.randrange(500):06}", "quantity": chance.randint(1, 9), "price": "19.90"}
        line["note"] = chance.choice(["", "gift wrapping, please", "leave it at the door"])
        long += len(json.dumps(line)) + (2 if made["lines"] else 0)
        made["lines"].append(line)
    return made


def ten_steps(context: dict[str, Any]) -> list[SagaSnapshot]:
    """Return the snapshots of a saga as a file has them: in memory they are not compressed."""
    chance = random.Random(2)
    with new_file() as path:
        storage = SqliteSnapshotStorage(path)
        saga = Saga[Any]("order", snapshot_storage=storage)
        for step in range(10):
            saga.add_step(f"step_{step}", lambda ctx, step=step: {f"id_{step}": f"{chance.getrandbits(128):032x}"})
        asyncio.run(saga.run(context, saga_id="s"))
        found = list(now(storage.list_snapshots("s")).items)
        now(storage.close())
    return found


def sizes() -> None:
    print("bytes a snapshot, on average over a saga of 10 steps that each give a random id (the first; the others)")
    for size, limit in ((1_000, 200), (10_000, None), (100_000, 2_000), (1_000_000, None), (10_000_000, None)):
        snapshots = ten_steps(order(size))
        data = [len(snapshot.data) for snapshot in snapshots]
        states = [len(state_bytes(snapshot)) for snapshot in snapshots]
        average = sum(data) / len(data)
        aim = f"   the limit: {limit:,}" if limit else ""
        others = f"{min(data[1:])} to {max(data[1:])}"
        print(f"  context of {size:>10,} bytes  {average:8.0f}   ({data[0]:,}; {others}) of {max(states):,}{aim}")


def framing() -> None:
    print("a frame: what compression and checksums add to a save, and to a read of one with 15 bases")
    for size in (1_000, 100_000):
        states = [state_bytes(snapshot) for snapshot in ten_steps(order(size))]
        states += [states[-1] + bytes([number]) * 40 for number in range(5)]

        def write(states: list[bytes] = states) -> Callable[[], object]:
            frames = FrameWriter()
            return lambda: [frames.frame(a_snapshot("s", seq), state) for seq, state in enumerate(states)]

        fresh = InMemorySnapshotStorage()
        frames = FrameWriter()
        made = [frames.frame(a_snapshot("s", seq), state) for seq, state in enumerate(states)]
        now(fresh.write(Batch("s", snapshots=made)))
        last = now(fresh.latest_snapshot("s"))
        wrote = best(len(states), write=write)["write"]
        read = best(1, read=lambda last=last: partial(state_bytes, last))["read"]
        print(f"  context of {size:>7,} bytes  write {wrote:7.1f} µs   read {read:8.1f} µs")


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}")
    writing()
    reading()
    files()
    listing()
    sizes()
    framing()
