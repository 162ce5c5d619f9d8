"""Our stores beside those of the `sagaz` package, in one process: `python benchmarks/sagaz_stores.py`.

A saga of 10 steps with a context of some 1 KB: each of its snapshots is saved, from the context as it is to what the
store acknowledges, and the state at 10 moments is asked for, from the store to a context. Best of several rounds.
Theirs keep JSON, which knows few of the types that a context may have; in memory they keep the objects themselves.

The package has no snapshots in SQLite, so ours stand alone there. Its S3 needs `aioboto3`: without it that row is left
out, with the reason. S3 is moto's, in this process.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "stores"))

import s3_server
from sagaz.core.replay import SagaSnapshot as TheirSnapshot
from sagaz.core.storage.backends.filesystem_snapshot import FilesystemSnapshotStorage
from sagaz.core.storage.backends.memory_snapshot import InMemorySnapshotStorage as TheirMemory
from sagaz.core.storage.backends.postgresql.snapshot import PostgreSQLSnapshotStorage
from sagaz.core.storage.backends.redis.snapshot import RedisSnapshotStorage
from sagaz.core.storage.backends.s3.snapshot import S3SnapshotStorage

from sagaz_core.storage import Batch, SagaSnapshot, open_storage
from sagaz_core.storage.codec import decode, encode
from sagaz_core.storage.contract import a_saga
from sagaz_core.storage.frames import FrameWriter, state_bytes
from tests.servers import own_postgres, own_valkey

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS, STEPS, SAGAS = 7, 10, 20
START = datetime(2026, 1, 1, tzinfo=UTC)
STEP_NAMES = [f"step_{number}" for number in range(STEPS)]
_numbers = count(1)


def contexts() -> list[dict[str, Any]]:
    base = {f"key_{number:02}": "x" * 40 for number in range(19)} | {"order": 1, "total": 99.5, "items": [1, 2, 3]}
    return [{**base, **{f"id_{n}": f"{n:032}" for n in range(step)}} for step in range(STEPS)]


class Ours:
    def __init__(self, url: str) -> None:
        self.store = open_storage(url)

    async def save(self, saga: UUID) -> None:
        name = str(saga)
        frames = None if getattr(self.store, "in_memory", False) else FrameWriter()  # as a run's capture does
        for step, context in enumerate(contexts()):
            record = None if step else a_saga(name)
            at, done = START + timedelta(seconds=step), tuple(STEP_NAMES[:step])
            snapshot = SagaSnapshot(
                *(f"{name}.{step:06}", name, "order", STEP_NAMES[step], step, step, "before", "executing", at, b""),
                completed_steps=done,
            )
            state = encode(context)
            made = snapshot._replace(data=state) if frames is None else frames.frame(snapshot, state)
            await self.store.write(Batch(name, record, (), [made]))

    async def ask(self, saga: UUID) -> None:
        for step, context in enumerate(contexts()):
            found = await self.store.latest_snapshot(str(saga), until=START + timedelta(seconds=step, milliseconds=1))
            assert found is not None
            assert decode(state_bytes(found)) == context

    async def close(self) -> None:
        await self.store.close()


class Theirs:
    def __init__(self, store: Any) -> None:
        self.store = store

    async def save(self, saga: UUID) -> None:
        for step, context in enumerate(contexts()):
            at, done = START + timedelta(seconds=step), STEP_NAMES[:step]
            identity = UUID(int=next(_numbers) << 64)
            await self.store.save_snapshot(
                TheirSnapshot(identity, saga, "order", STEP_NAMES[step], step, "executing", context, done, at)
            )

    async def ask(self, saga: UUID) -> None:
        for step, context in enumerate(contexts()):
            at = START + timedelta(seconds=step, milliseconds=1)
            found = await self.store.get_snapshot_at_time(saga, at)
            assert found is not None
            assert found.context == context

    async def close(self) -> None:
        close = getattr(self.store, "close", None)
        if close is not None:
            await close()


async def compare(name: str, ours: Ours, theirs: Callable[[], Any] | None, why: str = "") -> None:
    stores: dict[str, Ours | Theirs] = {"ours": ours}
    if theirs is not None:
        try:
            stores["sagaz"] = Theirs(theirs())
        except Exception as error:  # whatever it raises when something is missing
            why = " ".join(str(error).split())[:80]
    took = {(who, what): float("inf") for who in stores for what in ("save", "ask")}
    for _ in range(ROUNDS):
        for who, store in stores.items():
            sagas = [UUID(int=next(_numbers)) for _ in range(SAGAS)]
            for what in ("save", "ask"):
                start = time.perf_counter()
                for saga in sagas:
                    await getattr(store, what)(saga)
                took[who, what] = min(took[who, what], (time.perf_counter() - start) / SAGAS / STEPS * 1e6)
    for what, title in (("save", "save a snapshot"), ("ask", "state at a time")):
        line = f"  {name:<12}{title:<18}{took['ours', what]:9.1f} µs"
        if "sagaz" in stores:
            factor = took["sagaz", what] / took["ours", what]
            line += f"   sagaz {took['sagaz', what]:9.1f} µs   {factor:5.2f} times ours"
        print(line + (f"   sagaz: {why}" if "sagaz" not in stores and what == "save" else ""))
    for store in stores.values():
        await store.close()


async def main(valkey: str, postgres: str, folder: str) -> None:
    print(f"µs a snapshot, of {STEPS} of a saga, context of some 1 KB")
    await compare("memory", Ours("memory://"), TheirMemory)
    await compare("files", Ours(f"file://{folder}/ours?fsync=never"), lambda: FilesystemSnapshotStorage(f"{folder}/t"))
    await compare("sqlite", Ours(f"sqlite:///{folder}/ours.db"), None, "it keeps no snapshots in SQLite")
    await compare("redis", Ours(f"{valkey}?prefix=ours"), lambda: RedisSnapshotStorage(valkey))
    await compare("postgresql", Ours(f"{postgres}?schema=ours"), lambda: PostgreSQLSnapshotStorage(postgres))
    server = s3_server.running()
    await compare("s3", Ours(server.url(server.bucket())), lambda: S3SnapshotStorage(server.bucket()))
    server.stop()


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)  # the package logs each call
    with own_valkey() as valkey, own_postgres() as postgres, tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(valkey.url, postgres.url(), folder))
