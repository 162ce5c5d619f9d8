"""What a store costs, next to its bare driver doing the same: `python benchmarks/stores.py`.

Every figure is the best of several rounds in this one run, so only the ratios mean something elsewhere.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sagaz_core.storage import Batch, InMemorySnapshotStorage, SnapshotStorage
from sagaz_core.storage._sqlite_statements import LATEST, MIGRATIONS
from sagaz_core.storage.contract import T0, a_saga, a_snapshot, an_event
from sagaz_core.storage.sqlite import SqliteSnapshotStorage

ROUNDS = 7
SAGAS, STEPS = 60, 10
MANY = 100_000
DATA = os.urandom(1000)

BARE_TABLES = (
    "CREATE TABLE events (saga_id TEXT, seq INT, at INT, kind TEXT, step TEXT, data BLOB, PRIMARY KEY (saga_id, seq))",
    """CREATE TABLE snapshots (
        snapshot_id TEXT PRIMARY KEY, saga_id TEXT, saga_name TEXT, step TEXT, step_index INT, seq INT, phase TEXT,
        status TEXT, at INT, data BLOB, retention_until INT
    )""",
)
BARE_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)"
BARE_SNAPSHOT = "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
OUR_EVENT = "INSERT INTO saga_events VALUES (?, ?, ?, ?, ?, ?, ?)"
OUR_SNAPSHOT = "INSERT INTO saga_snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


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
            fields = {"step_name": f"step_{step}", "data": DATA, "snapshot_id": f"{saga_id[:23]}-{saga:06}{step:06}"}
            record = None if step else a_saga(saga_id)
            made.append(Batch(saga_id, record, events, [a_snapshot(saga_id, seq + 1, **fields)]))
    return made


def best(work: Callable[[], Callable[[], object]], count: int) -> float:
    """Return the least microseconds that one of `count` operations took; `work` prepares a round."""
    found = float("inf")
    for _ in range(ROUNDS):
        run = work()
        start = time.perf_counter()
        run()
        found = min(found, (time.perf_counter() - start) / count * 1e6)
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


def write_bare(made: list[Batch], tables: tuple[str, ...], ours: bool) -> float:
    def round_() -> Callable[[], object]:
        rows = []
        for number, batch in enumerate(made):
            saga = number // STEPS
            snapshot = batch.snapshots[0]
            keys = saga if ours else batch.saga_id
            floor = (number,) if ours else ()
            events = [(keys, e.seq, number, *floor, e.kind, e.step, e.data) for e in batch.events]
            names = (snapshot.snapshot_id, keys, "order", snapshot.step_name, 1, snapshot.seq, "before", "executing")
            rows.append((events, (*names, number, *floor, *((None, DATA) if ours else (DATA, None)))))
        event, snapshot_ = (OUR_EVENT, OUR_SNAPSHOT) if ours else (BARE_EVENT, BARE_SNAPSHOT)

        def run() -> None:
            with new_file() as path:
                pass
            for events, row in rows:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(event, events)
                connection.execute(snapshot_, row)
                connection.execute("COMMIT")

        folder = tempfile.mkdtemp()
        connection = bare(f"{folder}/bench.db", tables)
        open_.append(connection)
        return run

    open_: list[sqlite3.Connection] = []
    try:
        return best(round_, len(made))
    finally:
        for connection in open_:
            path = connection.execute("PRAGMA database_list").fetchone()[2]
            connection.close()
            os.unlink(path)
            os.rmdir(os.path.dirname(path))


def write_sqlite(made: list[Batch]) -> float:
    stores: list[SqliteSnapshotStorage] = []
    with tempfile.TemporaryDirectory() as folder:

        def round_() -> Callable[[], object]:
            storage = SqliteSnapshotStorage(f"{folder}/{len(stores)}.db")
            stores.append(storage)
            now(storage.write(Batch("first", a_saga("first"))))
            return lambda: write_all(storage, made)

        found = best(round_, len(made))
        for storage in stores:
            now(storage.close())
    return found


def writing() -> None:
    made = batches()
    memory = best(lambda: lambda storage=InMemorySnapshotStorage(): write_all(storage, made), len(made))
    naive = write_bare(made, BARE_TABLES, ours=False)
    same = write_bare(made, MIGRATIONS[1], ours=True)
    sqlite = write_sqlite(made)
    print("write: 1 snapshot and 2 events of 1 KB each, in one transaction")
    print(f"  memory                                {memory:8.1f} µs")
    print(f"  bare sqlite3, primary keys alone      {naive:8.1f} µs")
    print(f"  bare sqlite3, our tables and indices  {same:8.1f} µs")
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
        select = best(lambda: lambda: [connection.execute(plain, time_).fetchall() for time_ in times], 50)
        asked = [
            {"saga_id": "s", "until": time_[0], "max_seq": 2**63 - 1, "step": None, "phase": None} for time_ in times
        ]
        statement = LATEST[False, False, True]
        ours = best(lambda: lambda: [connection.execute(statement, values).fetchall() for values in asked], 50)
        right = [now(storage.latest_snapshot("s", until=moment)) == snapshots[MANY * part // 50]
                 for part, moment in enumerate(moments)]
        in_memory, in_sqlite = best(ask(memory), 50), best(ask(storage), 50)
        by_step, by_step_sqlite = best(ask(memory, "step_0"), 50), best(ask(storage, "step_0"), 50)
        connection.close()
        now(storage.close())
    print(f"latest snapshot at a time, among {MANY:,} of one saga ({sum(right)} of 50 right)")
    print(f"  memory                                {in_memory:8.1f} µs   of a step {by_step:.1f} µs")
    print(f"  bare sqlite3, one indexed select      {select:8.1f} µs")
    print(f"  bare sqlite3, our statement           {ours:8.1f} µs   {ours / select:.2f}x")
    print(f"  sqlite                                {in_sqlite:8.1f} µs   {in_sqlite / select:.2f}x, ", end="")
    print(f"of a step {by_step_sqlite:.1f} µs")


def offset(path: str) -> int:
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT min(created_at) FROM saga_snapshots").fetchone()[0]
    connection.close()
    return int(found)


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}")
    writing()
    reading()
