"""Many processes write one SQLite file, or one folder of files, at once, and some of them die."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import drive
import pytest

from sagaz_core.storage import open_storage
from sagaz_core.storage.contract import a_saga

HERE = Path(__file__).parent


@dataclass
class SqliteFile:
    folder: Path

    @property
    def url(self):
        return f"sqlite:///{self.folder}/sagaz.db?busy_timeout=60"

    def check(self):
        with closing(sqlite3.connect(self.folder / "sagaz.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@dataclass
class Folder:
    folder: Path

    @property
    def url(self):
        return f"file://{self.folder}/store?fsync=never&lock_timeout=60"

    def check(self):
        """Check that the index says what one says that is made anew."""
        right = everything(self.url)
        shutil.rmtree(self.folder / "store" / "index")
        assert everything(self.url) == right


@pytest.fixture(params=[SqliteFile, Folder])
def place(request, tmp_path):
    """Where a store will be: nothing is there yet."""
    return request.param(tmp_path / "new")


@pytest.fixture
def url(place):
    return place.url


@pytest.fixture
def start(url):
    """Start a writer, and kill it at the end if it still runs."""
    with ExitStack() as stack:

        def start(name, sagas, steps):
            command = [sys.executable, str(HERE / "write_sagas.py"), url, name, str(sagas), str(steps)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def go(processes):
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def everything(url):
    storage = open_storage(url)
    found = [record.saga_id for record in drive.now(storage.list_sagas(limit=1000)).items]
    snapshots = {
        snapshot.snapshot_id: drive.now(storage.get_snapshot(snapshot.snapshot_id))
        for saga_id in found
        for snapshot in drive.now(storage.list_snapshots(saga_id)).items
    }
    drive.now(storage.close())
    assert None not in snapshots.values()
    return found, snapshots


def check_whole(storage, saga_id):
    """Check that each step is there with both events and its snapshot, and return how many there are."""
    seqs = [event.seq for event in drive.events(storage, saga_id)]
    snapshots = [snapshot.seq for snapshot in drive.now(storage.list_snapshots(saga_id)).items]
    assert seqs == list(range(len(seqs)))
    assert snapshots == seqs[1::2]
    return len(snapshots)


def test_ten_processes_lose_nothing(url, start, place):
    processes = [start(f"p{number}", 5, 8) for number in range(10)]
    go(processes)
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    storage = open_storage(url)
    listed = drive.now(storage.list_sagas()).items
    assert listed == [a_saga(f"p{number}-{saga:06}") for number in range(10) for saga in range(5)]
    for record in listed:
        assert check_whole(storage, record.saga_id) == 8
    drive.now(storage.close())
    place.check()


def test_twenty_first_starts_at_once(url, start, place):
    processes = [start(f"p{number:02}", 1, 1) for number in range(20)]
    assert not place.folder.exists()
    go(processes)
    assert [process.communicate()[0] != "" and process.returncode for process in processes] == [0] * 20
    storage = open_storage(url)
    assert len(drive.now(storage.list_sagas()).items) == 20
    drive.now(storage.close())
    place.check()


def test_a_killed_writer_leaves_nothing_half_written_and_the_others_go_on(url, start, place):
    victim, other = start("victim", 0, 5), start("other", 40, 5)
    go([victim, other])
    told = [victim.stdout.readline().split() for _ in range(57)]
    os.kill(victim.pid, signal.SIGKILL)
    told += [line.split() for line in victim.stdout.read().splitlines() if line.count(" ") == 1]
    other.communicate()
    assert other.returncode == 0
    storage = open_storage(url)
    for number in range(40):
        assert check_whole(storage, f"other-{number:06}") == 5
    last = {saga_id: int(step) for saga_id, step in told}
    for saga_id, step in last.items():
        # What was told is there; one more may have been written when the end came.
        assert check_whole(storage, saga_id) in (step + 1, step + 2)
    drive.now(storage.close())
    place.check()


FORKING = """
import os, sys
sys.path.insert(0, sys.argv[2])
from drive import now
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_saga

storage = open_storage(sys.argv[1])
now(storage.write(Batch("before", a_saga("before"))))
child = os.fork()
name = "parent" if child else "child"
for number in range(20):
    now(storage.write(Batch(f"{name}{number}", a_saga(f"{name}{number}"))))
    assert now(storage.get_saga("before")) is not None
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert len(now(storage.list_sagas()).items) == 41
now(storage.close())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("closed_before", [True, False], ids=["by Python", "below Python"])
def test_parent_and_child_use_a_store_after_a_fork(url, place, closed_before):
    code = FORKING
    if not closed_before:
        # A fork in C code does not call Python's hooks: then a connection is carried into the child.
        code = "import os\nos.register_at_fork = lambda **hooks: None\n" + code
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, url, str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    if closed_before:
        assert done.stderr == ""
    place.check()
