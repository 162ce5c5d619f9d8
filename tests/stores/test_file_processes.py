"""Many processes write one folder of files at once, and some of them die."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import drive
import pytest

from sagaz_core.storage import open_storage
from sagaz_core.storage.contract import a_saga

HERE = Path(__file__).parent


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/new/store?fsync=never&lock_timeout=60"


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


def check_index(url, tmp_path):
    """Check that the index says what one says that is made anew."""
    right = everything(url)
    shutil.rmtree(tmp_path / "new" / "store" / "index")
    assert everything(url) == right


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


def test_ten_processes_lose_nothing(url, start, tmp_path):
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
    check_index(url, tmp_path)


def test_twenty_first_starts_at_once(url, start, tmp_path):
    processes = [start(f"p{number:02}", 1, 1) for number in range(20)]
    assert not (tmp_path / "new").exists()
    go(processes)
    assert [process.communicate()[0] != "" and process.returncode for process in processes] == [0] * 20
    storage = open_storage(url)
    assert len(drive.now(storage.list_sagas()).items) == 20
    drive.now(storage.close())
    check_index(url, tmp_path)


def test_a_killed_writer_leaves_nothing_half_written_and_the_others_go_on(url, start, tmp_path):
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
    check_index(url, tmp_path)


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


def test_parent_and_child_use_a_store_after_a_fork(url, tmp_path):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", FORKING, url, str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check_index(url, tmp_path)
