"""What it takes in memory to list a long saga, in a new process: bytes that Python allocated, a count and no time."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_saga, a_snapshot, an_event
from sagaz_core.storage.snapshot_ids import snapshot_name

FEW, MANY = 2000, 6000  # with few, Python's own free lists are not full yet
PART = 100
MOST = {"file": 8, "s3": 50, "sqlite": 40, "redis": 80, "postgres": 80}
"""How many bytes a snapshot and its event may take: in a bucket what is said of their page; elsewhere none, but for
what drivers keep or not, and for how full pages of a folder's index are before they are written."""


async def fill(url, count):
    storage = open_storage(url)
    await storage.write(Batch("s", a_saga("s")))
    for start in range(0, count, PART):
        batches = [
            Batch(
                *("s", None, [an_event("s", seq)]),
                [
                    a_snapshot(
                        *("s", seq),
                        step_name=f"step_{seq % 10}",
                        snapshot_id=snapshot_name("s", seq),
                        data=b"%200d" % seq,
                        base_seq=seq // 16 * 16,
                    )
                ],
            )
            for seq in range(start, start + PART)
        ]
        if url.startswith("s3"):  # where one saga's batches go one after the other
            batches = [Batch("s", None, *([one for b in batches for one in b[field]] for field in (2, 3)))]
        assert not any(await storage.write_many(batches))
    await storage.close()


def peak(url, count, *what):
    """Return how many bytes reading that many snapshots, or events, takes at most."""
    asyncio.run(fill(url, count))
    command = [sys.executable, str(Path(__file__).parent / "list_all.py"), url, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    listed, found = map(int, done.stdout.split())
    assert listed == count
    return found


@pytest.fixture
def two_stores(request, tmp_path):
    """The URLs of two empty stores of one kind."""

    def made(kind):
        if kind == "s3":
            s3 = request.getfixturevalue("s3")
            return [s3.url(s3.bucket()) for _ in range(2)]
        if kind in ("file", "sqlite"):
            return [f"{kind}:///{tmp_path}/{number}{'?fsync=never' * (kind == 'file')}" for number in range(2)]
        url = request.getfixturevalue(f"{kind}_url")
        return [url, f"{url}_2"]

    return made


@pytest.mark.parametrize("kind", MOST)
def test_a_snapshot_of_a_long_saga_takes_a_few_bytes_or_nothing(two_stores, kind):
    part = 2 if kind == "s3" else 1  # the server is a slow one
    one, other = two_stores(kind)
    assert peak(other, MANY // part) - peak(one, FEW // part) < MOST[kind] * (MANY - FEW) // part


def test_an_event_of_a_long_saga_in_a_folder_takes_nothing(two_stores):
    one, other = two_stores("file")
    assert peak(other, MANY, "events") - peak(one, FEW, "events") < MOST["file"] * (MANY - FEW)
