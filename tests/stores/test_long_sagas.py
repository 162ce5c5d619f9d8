"""Long sagas in a folder, whose index is on the disk: whatever becomes of them, they answer as those in memory do."""

import os
import random
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import drive
import pytest
from small_room import have_small_room

from sagaz_core.errors import DuplicateSagaError
from sagaz_core.storage import Batch, _file_segment, _room, open_storage
from sagaz_core.storage._room import Room
from sagaz_core.storage.contract import T0, TICK, a_saga, a_snapshot, an_event

HERE = Path(__file__).parent
LONG = 256


@pytest.fixture(autouse=True)
def _shorter_sagas_are_long(monkeypatch):
    """So that a test takes less time. Other processes have the limit that is there."""
    monkeypatch.setattr(_file_segment, "LONG", LONG)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def storage(folder):
    storage = opened(folder)
    yield storage
    drive.now(storage.close())


def opened(folder):
    return open_storage(f"file://{folder}?fsync=never")


def in_memory(folder):
    """A store that has no room on a disk."""
    storage = opened(folder)
    storage._room._folders = ()
    return storage


def batch(seqs, *, at=None, **fields):
    """A batch with an event and a snapshot at each of these."""
    at = at or (lambda seq: T0 + seq * TICK)
    return Batch(
        *("s", None, [an_event("s", seq, at(seq)) for seq in seqs]),
        [a_snapshot("s", seq, at(seq), step_name=f"step_{seq % 7}", base_seq=seq // 16 * 16, **fields) for seq in seqs],
    )


def write(storage, seqs, **fields):
    seqs = list(seqs)
    for start in range(0, len(seqs), 100):
        drive.now(storage.write(batch(seqs[start : start + 100], **fields)))


def is_long(storage):
    """Whether the index of the saga is on the disk."""
    index = storage._segment("s").index
    return bool(index.events.rows) and bool(index.snapshots.rows)


def listed(storage, limit=100):
    found, cursor = [], None
    while True:
        page = drive.now(storage.list_snapshots("s", limit=limit, cursor=cursor))
        found, cursor = found + page.items, page.cursor
        if cursor is None:
            return found


def everything(storage):
    """All snapshots and events, and answers to questions of each kind."""
    snapshots = listed(storage)
    answers = [drive.now(storage.count_snapshots("s")), drive.now(storage.latest_snapshot("s"))]
    moments = sorted({snapshot.created_at for snapshot in snapshots})
    for until in [T0 - TICK, *moments[::97], None]:
        for step in (None, "step_3", "none"):
            for phase in (None, "before", "none"):
                for max_seq in (None, 3, 10**9):
                    asked = {"step": step, "phase": phase, "until": until, "max_seq": max_seq}
                    answers.append(drive.now(storage.latest_snapshot("s", **asked)))
        answers.append([event.seq for event in drive.events(storage, "s", until=until)])
    answers += [drive.now(storage.get_snapshot(snapshot.snapshot_id)) for snapshot in snapshots[::53]]
    return snapshots, answers, drive.events(storage, "s")


def check(storage, folder, *, long=True):
    """Check that the store answers as one whose index is in memory does, and as one that is opened now.

    The saga is long for both of its kinds of records, or for none, or for one where `long` is `None`.
    """
    others = [in_memory(folder), opened(folder)]
    found = everything(storage)
    assert all(everything(other) == found for other in others)
    assert long is None or [is_long(storage), *map(is_long, others)] == [long, False, long]
    for other in others:
        drive.now(other.close())


# ---- becoming long


def test_a_saga_that_becomes_long_stays_what_it_was(folder, storage):
    for seq in range(LONG - 1):
        drive.now(storage.write(batch([seq])))
    assert not is_long(storage)
    for seq in range(LONG - 1, LONG + 60):
        drive.now(storage.write(batch([seq])))
        assert is_long(storage) == (seq >= LONG - 1)
        assert drive.now(storage.latest_snapshot("s")).seq == seq
        assert drive.now(storage.get_snapshot(f"s/{seq}")).seq == seq
    drive.now(storage.write(batch([5, LONG, LONG + 59])))  # which are there already
    with pytest.raises(DuplicateSagaError):
        drive.now(storage.write(batch([5], data=b"another")))
    with pytest.raises(DuplicateSagaError):
        drive.now(storage.write(batch([LONG + 59], data=b"another")))
    check(storage, folder)


def test_a_saga_becomes_long_while_two_stores_write_it_in_turn(folder, storage):
    other = opened(folder)
    for start in range(0, 2 * LONG, 50):
        writer, reader = (storage, other) if start % 100 else (other, storage)
        write(writer, range(start, start + 50))
        assert drive.now(reader.latest_snapshot("s")).seq == start + 49
        assert drive.now(reader.count_snapshots("s")) == start + 50
    check(other, folder)
    check(storage, folder)
    drive.now(other.close())


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
import drive
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_snapshot, an_event

storage = open_storage(sys.argv[1])
for seq in range(1, 1800, 2):
    drive.now(storage.write(Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq)])))
drive.now(storage.close())
"""


def in_a_process(code, folder, *arguments):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, f"file://{folder}?fsync=never&lock_timeout=60"]
    return subprocess.Popen([*command, str(HERE), *arguments], stderr=subprocess.PIPE, text=True)


def test_a_saga_becomes_long_while_two_processes_write_it_at_once(folder, storage):
    """What the other one writes comes between, and late."""
    storage._timeout = 60
    drive.now(storage.write(Batch("s", a_saga("s"))))
    process = in_a_process(WRITER, folder)
    for seq in range(0, 1800, 2):
        drive.now(storage.write(Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq)])))
        assert drive.now(storage.get_snapshot(f"s/{seq}")).seq == seq
    assert process.communicate()[1] == ""
    assert [snapshot.seq for snapshot in listed(storage)] == list(range(1800))
    assert [event.seq for event in drive.events(storage, "s")] == list(range(1800))
    check(storage, folder)


@pytest.mark.parametrize("late", [3, 10**9])
def test_late_records_are_where_they_belong(folder, storage, late):
    chance = random.Random(1)
    seqs = sorted(range(6 * LONG), key=lambda seq: seq + chance.randint(0, late))
    write(storage, seqs)
    assert [snapshot.seq for snapshot in listed(storage)] == list(range(6 * LONG))
    drive.now(storage.delete_snapshots("s", below_seq=LONG))
    check(storage, folder)
    drive.now(storage.delete_snapshots("s", below_seq=5 * LONG))
    check(storage, folder, long=None)


def test_many_snapshots_of_one_moment_are_in_the_order_of_their_ids(storage):
    names = [f"s/{number:04}" for number in range(2 * LONG)]
    random.Random(2).shuffle(names)
    for start in range(0, len(names), 128):
        some = [a_snapshot("s", 3, snapshot_id=name) for name in names[start : start + 128]]
        drive.now(storage.write(Batch("s", None, (), some)))
    assert [snapshot.snapshot_id for snapshot in listed(storage)] == sorted(names)
    assert storage._segment("s").index.snapshots.rows


def test_time_travel_under_a_clock_that_went_back(folder, storage):
    chance = random.Random(3)
    moments = [T0 + (seq - 150 * (seq % 250 > 120) + chance.randint(-5, 5)) * TICK for seq in range(2 * LONG)]
    write(storage, range(2 * LONG), at=moments.__getitem__)
    for _ in range(300):
        until = T0 + chance.randint(-20, 2 * LONG) * TICK
        right = [seq for seq, at in enumerate(moments) if at <= until]
        found = drive.now(storage.latest_snapshot("s", until=until))
        assert (found and found.seq) == (right[-1] if right else None)
        of_step = [seq for seq in right if seq % 7 == 3]
        found = drive.now(storage.latest_snapshot("s", step="step_3", until=until))
        assert (found and found.seq) == (of_step[-1] if of_step else None)
    check(storage, folder)


# ---- deleting


def test_snapshots_of_a_long_saga_are_deleted_until_few_are_left(folder, storage):
    write(storage, range(2 * LONG))
    for below in (100, 300, 301, 2 * LONG - 100, 2 * LONG - 3):
        drive.now(storage.delete_snapshots("s", below_seq=below))
        assert [snapshot.seq for snapshot in listed(storage)] == list(range(below, 2 * LONG))
        check(storage, folder, long=None)
    drive.now(storage.delete_snapshots("s", below_seq=10**9))
    assert listed(storage) == []
    write(storage, range(2 * LONG, 2 * LONG + 5))
    assert [snapshot.seq for snapshot in listed(storage)] == list(range(2 * LONG, 2 * LONG + 5))
    assert len(drive.events(storage, "s")) == 2 * LONG + 5


def test_a_saga_that_was_long_and_is_compacted_becomes_long_again(folder, storage):
    write(storage, range(LONG + 100), data=os.urandom(400))
    (path,) = (path for path in (folder / "sagas").rglob("*") if path.is_file())
    before = path.stat().st_ino, path.stat().st_size
    drive.now(storage.delete_snapshots("s", below_seq=LONG))
    assert path.stat().st_ino != before[0]
    assert path.stat().st_size < before[1] // 2
    check(storage, folder, long=None)
    write(storage, range(LONG + 100, 3 * LONG))
    check(storage, folder)


def test_snapshots_in_the_middle_of_a_long_saga_expire(folder, storage):
    moment = T0 + timedelta(days=1)
    for start in range(0, 2 * LONG, 64):
        ends = None if start % 3 == 0 else T0 if start % 3 == 1 else moment + start * TICK
        write(storage, range(start, start + 64), retention_until=ends)
    for now in (T0, moment, moment + LONG * TICK, moment + 3 * LONG * TICK):
        storage.clock = lambda now=now: now
        served = drive.now(storage.count_snapshots("s"))
        assert len(listed(storage)) == served
        drive.now(storage.prune(now, batch=100))
        assert drive.now(storage.count_snapshots("s")) == served
        others = [in_memory(folder), opened(folder)]
        for other in others:
            other.clock = storage.clock
            assert everything(other) == everything(storage)
            drive.now(other.close())
    write(storage, range(2 * LONG, 4 * LONG))
    assert drive.now(storage.latest_snapshot("s")).seq == 4 * LONG - 1


def test_a_long_saga_of_which_a_number_of_snapshots_are_kept(folder, storage, monkeypatch):
    """Its columns are moved together again and again, and take no more of the disk for it."""
    have_small_room(monkeypatch)
    for seq in range(1200):
        drive.now(storage.write(batch([seq])))
        drive.now(storage.delete_snapshots("s", below_seq=seq - 40))
    assert [snapshot.seq for snapshot in listed(storage)] == list(range(1159, 1200))
    size = os.fstat(storage._room.file().fd).st_size
    for seq in range(1200, 1300):
        drive.now(storage.write(batch([seq])))
        drive.now(storage.delete_snapshots("s", below_seq=seq - 40))
    assert os.fstat(storage._room.file().fd).st_size < size + (1 << 20)
    check(storage, folder)


def test_a_long_saga_that_is_deleted_begins_anew(folder, storage):
    other = opened(folder)
    write(storage, range(2 * LONG))
    assert len(listed(other)) == 2 * LONG
    assert drive.now(storage.delete_saga("s"))
    assert listed(other) == []
    write(other, range(5))
    assert [snapshot.seq for snapshot in listed(storage)] == list(range(5))
    assert drive.now(storage.get_snapshot("s/9")) is None
    check(storage, folder, long=False)
    drive.now(other.close())


# ---- files


def descriptors():
    return len(os.listdir("/proc/self/fd"))


linux_only = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="where one can count open files")


@linux_only
def test_a_store_that_was_closed_has_no_open_files_and_may_be_used_again(folder):
    before = descriptors()
    storage = opened(folder)
    for _ in range(3):
        write(storage, range(2 * LONG))
        assert is_long(storage)
        assert descriptors() > before
        drive.now(storage.close())
        assert descriptors() == before
        assert len(listed(storage)) == 2 * LONG
    drive.now(storage.close())
    assert descriptors() == before
    assert {path.name for path in (folder / "index").iterdir()} == {"catalog", "ids.0", "lock", "state"}


@linux_only
def test_all_long_sagas_have_one_file(folder, storage, monkeypatch):
    """Also when they are more than are held at a time."""
    have_small_room(monkeypatch)
    few = 10
    for number in range(few + 130):
        drive.now(storage.write(Batch(str(number), None, [an_event(str(number), seq) for seq in range(20)])))
        if number == few:
            before = descriptors()
    assert descriptors() == before + 128 - few - 1
    assert all(len(drive.events(storage, str(number))) == 20 for number in range(few + 130))
    assert os.fstat(storage._room.file().fd).st_size <= 128 * 2 << 16  # a chunk is of 16 pages


@linux_only
def test_a_saga_that_is_no_longer_held_gives_its_room_back(folder, storage):
    before = descriptors()
    write(storage, range(2 * LONG))
    for number in range(128):
        drive.now(storage.write(Batch(str(number), a_saga(str(number)))))
    assert storage._room._file() is None
    assert descriptors() <= before + 128 + 4
    check(storage, folder)


FORK = """
import os, sys
sys.path.insert(0, sys.argv[2])
import drive
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_snapshot, an_event

def write(seqs):
    for seq in seqs:
        drive.now(storage.write(Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq)])))

def check(count):
    found, cursor = [], None
    while not found or cursor:
        page = drive.now(storage.list_snapshots("s", cursor=cursor))
        found, cursor = found + [one.seq for one in page.items], page.cursor
    assert found == list(range(count)), len(found)
    assert [event.seq for event in drive.events(storage, "s")] == found
    assert all(drive.now(storage.get_snapshot(f"s/{seq}")).seq == seq for seq in found[::71])
    assert storage._segment("s").index.snapshots.rows

storage = open_storage(sys.argv[1])
write(range(1500))
check(1500)
read, told = os.pipe()
child = os.fork()
if not child:
    check(1500)
    write(range(1500, 2600))
    check(2600)
    os.write(told, b"x")
    drive.now(storage.close())
    os._exit(0)
os.read(read, 1)
check(2600)
write(range(2600, 3000))
assert os.waitpid(child, 0)[1] == 0
check(3000)
drive.now(storage.close())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_parent_and_child_read_and_write_a_long_saga_after_a_fork(folder, storage):
    assert in_a_process(FORK, folder).communicate()[1] == ""
    check(storage, folder)


READ_ONLY = """
import encodings.ascii, os, sys, tempfile
sys.path.insert(0, sys.argv[2])
import drive
from sagaz_core.storage import open_storage

storage = open_storage(sys.argv[1])
os.seteuid(65534)
tempfile.tempdir = sys.argv[3]
for _ in range(2):
    assert drive.now(storage.count_snapshots("s")) == 2048
    assert drive.now(storage.get_snapshot("s/2000")).seq == 2000
    assert drive.now(storage.latest_snapshot("s", step="step_3")).seq == 2047
    assert len(drive.events(storage, "s")) == 2048
    assert bool(storage._segment("s").index.snapshots.rows) == (sys.argv[4] == "there")
    drive.now(storage.close())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("temporary", ["there", "missing"])
def test_a_long_saga_in_a_folder_that_cannot_be_written_is_read(temporary):
    with tempfile.TemporaryDirectory() as parent, tempfile.TemporaryDirectory() as other:
        folder = Path(parent) / "store"
        storage = opened(folder)
        write(storage, range(2048))
        drive.now(storage.close())
        for path in [Path(parent), folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        if temporary == "there":
            os.chmod(other, 0o777)
        process = in_a_process(READ_ONLY, folder, other, temporary)
        message = process.communicate()[1]
        assert not os.listdir(other)
    assert process.returncode == 0, message
    assert message.count("there is no room on a disk for the index") == (2 if temporary == "missing" else 0)


# ---- a full disk


@pytest.mark.parametrize("after", [*range(12), *range(20, 200, 7)])
def test_where_there_is_no_room_any_more_the_index_stays_in_memory(folder, storage, monkeypatch, after):
    """Whenever that is: nothing is lost, and no call fails."""
    have_small_room(monkeypatch)
    write_page, left = _room.Pages.write, [after]

    def write_some(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise _room.OutOfRoom
        write_page(*arguments)

    monkeypatch.setattr(_room.Pages, "write", write_some)
    other = opened(folder)
    for seq in range(60):
        drive.now((other if seq % 7 == 6 else storage).write(batch([seq ^ 1])))
        drive.now(storage.delete_snapshots("s", below_seq=seq // 20 * 10))
    assert left[0] < 0
    assert [event.seq for event in drive.events(storage, "s")] == list(range(60))
    assert [snapshot.seq for snapshot in listed(storage)] == list(range(20, 60))
    assert everything(storage) == everything(other) == everything(opened(folder))
    drive.now(other.close())


FULL = """
import logging, resource, sys
sys.path.insert(0, sys.argv[2])
import drive
from sagaz_core.errors import StoreUnavailableError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_snapshot

storage = open_storage(sys.argv[1])
from sagaz_core.storage._file_segment import LONG

resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))
for seq in range(3000):
    try:
        drive.now(storage.write(Batch("s", None, (), [a_snapshot("s", seq, data=b"")])))
    except StoreUnavailableError as error:
        break
assert LONG < seq < 2999, seq
assert drive.now(storage.count_snapshots("s")) == seq
assert drive.now(storage.get_snapshot(f"s/{seq - 1}")).seq == seq - 1
assert storage._segment("s").in_memory
drive.now(storage.close())
"""


def test_a_full_disk_is_no_error_for_the_index(folder, storage):
    process = in_a_process(FULL, folder)
    message = process.communicate()[1]
    assert (process.returncode, message.count("\n")) == (0, 1), message
    assert "there is no room on a disk for the index" in message
    assert len(listed(storage)) > LONG


def test_a_store_without_room_answers_all_the_same(folder, storage):
    storage._room = Room(())
    write(storage, range(2 * LONG))
    check(storage, folder, long=None)
    assert len(listed(storage)) == 2 * LONG
    assert not is_long(storage)
