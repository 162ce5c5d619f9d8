"""The store in a folder: what is in its files, and what becomes of it when they are cut, damaged or lost."""

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import drive
import pytest

from sagaz_core.errors import (
    CorruptDataError,
    DuplicateSagaError,
    SchemaError,
    StorageError,
    StoreUnavailableError,
    UsageError,
)
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import HOSTILE, T0, TICK, a_replay, a_saga, a_snapshot, an_event

HERE = Path(__file__).parent


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def storage(folder):
    storage = open_storage(f"file://{folder}?fsync=never")
    yield storage
    drive.now(storage.close())


def fresh(folder, options="fsync=never"):
    return open_storage(f"file://{folder}?{options}")


def files(folder):
    return sorted(path for path in (folder / "sagas").rglob("*") if path.is_file())


def write(storage, saga_id="s", seqs=range(4), data=b"state"):
    drive.now(storage.write(Batch(saga_id, a_saga(saga_id))))
    for seq in seqs:
        batch = Batch(saga_id, None, [an_event(saga_id, seq)], [a_snapshot(saga_id, seq, data=data)])
        drive.now(storage.write(batch))


# ---- what is in the folder


def test_a_saga_is_one_file_whose_name_is_made_of_no_id(folder, storage):
    for number, text in enumerate(HOSTILE):
        drive.now(storage.write(Batch(text, a_saga(text), (), [a_snapshot(text, 0, snapshot_id=str(number))])))
    assert len(files(folder)) == len(HOSTILE)
    for path in folder.rglob("*"):
        assert all(part.isascii() and part.replace(".", "").isalnum() for part in path.relative_to(folder).parts)
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_reading_makes_no_folder(folder, storage):
    assert drive.now(storage.get_saga("s")) is None
    assert drive.now(storage.list_sagas()).items == []
    assert not folder.exists()


def test_the_folder_is_for_its_owner_alone(folder, storage):
    write(storage)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert files(folder)[0].stat().st_mode & 0o777 == 0o600


def test_a_folder_of_something_else_is_refused(folder, storage):
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"x")
    with pytest.raises(StorageError, match="is not empty and no store"):
        write(storage)
    with pytest.raises(StorageError, match="is not empty and no store"):
        drive.now(storage.info())
    assert [path.name for path in folder.iterdir()] == ["photo.jpg"]


def test_a_file_is_no_folder(folder, storage):
    folder.write_bytes(b"x")
    with pytest.raises(StoreUnavailableError, match="Not a directory"):
        drive.now(storage.list_sagas())


def test_a_file_that_goes_while_the_folder_is_measured_is_not_counted(folder, storage):
    write(storage)
    before = drive.now(storage.info())
    (folder / "index" / "gone").symlink_to(folder / "nowhere")  # is listed, and not there
    assert drive.now(storage.info()) == before


@pytest.mark.parametrize("asked", ["get_saga", "write"])
def test_a_folder_of_a_newer_release_is_refused(folder, storage, asked):
    write(storage)
    (folder / "sagaz").write_text("2\n")
    other = fresh(folder)
    with pytest.raises(SchemaError, match="has format 2, this release reads up to 1: upgrade pytest-sagaz"):
        drive.now(other.get_saga("s") if asked == "get_saga" else other.write(Batch("s", a_saga("s"))))


# ---- the ends of files


def test_a_write_that_was_cut_short_is_cut_off_wherever_it_was_cut(folder, storage):
    write(storage, seqs=range(3))
    (path,) = files(folder)
    whole = path.read_bytes()
    drive.now(storage.write(Batch("s", None, [an_event("s", 3)], [a_snapshot("s", 3, data=b"last")])))
    longer = path.read_bytes()
    assert longer.startswith(whole)
    drive.now(storage.close())
    for end in range(len(whole), len(longer)):
        path.write_bytes(longer[:end])
        other = fresh(folder)
        assert [s.seq for s in drive.now(other.list_snapshots("s")).items] == [0, 1, 2]
        assert drive.now(other.get_snapshot("s/3")) is None
        drive.now(other.write(Batch("s", None, [an_event("s", 3)], [a_snapshot("s", 3, data=b"last")])))
        assert path.read_bytes() == longer
        drive.now(other.close())


def test_zeros_at_the_end_that_a_power_cut_left_are_cut_off(folder, storage):
    write(storage)
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(5000))
    other = fresh(folder)
    assert len(drive.now(other.list_snapshots("s")).items) == 4
    write(other, seqs=[4])
    assert path.read_bytes().startswith(whole)
    assert bytes(100) not in path.read_bytes()
    drive.now(other.close())


def test_every_flipped_bit_is_an_error_that_names_the_snapshot(folder, storage):
    """Ten thousand of them, anywhere in a saga's file."""
    drive.now(storage.write(Batch("s", a_saga("s"))))
    for seq in range(4):
        drive.now(storage.write(Batch("s", None, (), [a_snapshot("s", seq, data=os.urandom(300))])))
    drive.now(storage.close())
    (path,) = files(folder)
    whole, chosen = path.read_bytes(), random.Random(4)
    found = {}
    for _ in range(10_000 // 8):
        at = chosen.randrange(len(whole))
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            other = fresh(folder)
            messages = []
            for seq in range(4):
                try:
                    drive.now(other.get_snapshot(f"s/{seq}"))
                except CorruptDataError as error:
                    messages.append(str(error))
            drive.now(other.close())
            assert messages, (at, bit)
            assert all("'s/" in message or "in its first one" in message for message in messages)
            found[len(messages)] = found.get(len(messages), 0) + 1
    assert sum(found.values()) == 10_000


def test_what_is_before_and_beside_the_damage_can_still_be_read(folder, storage):
    write(storage, seqs=range(4), data=b"0123456789" * 10)
    (path,) = files(folder)
    damaged = path.read_bytes()
    place = damaged.rindex(b"0123456789")
    path.write_bytes(damaged[:place] + b"X" + damaged[place + 1 :])
    other = fresh(folder)
    assert drive.now(other.get_snapshot("s/2")).data == b"0123456789" * 10
    assert len(drive.events(other, "s")) == 4
    for asked in (other.get_snapshot("s/3"), other.latest_snapshot("s"), other.list_snapshots("s")):
        with pytest.raises(CorruptDataError, match="snapshot 's/3' of saga 's' is damaged in"):
            drive.now(asked)
    drive.now(other.close())


def test_nothing_is_written_behind_damage(folder, storage):
    write(storage)
    (path,) = files(folder)
    damaged = b"X" + path.read_bytes()[1:]
    path.write_bytes(damaged)
    other = fresh(folder)
    with pytest.raises(CorruptDataError, match="of saga 's' is damaged at byte 0"):
        write(other, seqs=[9])
    for ask in (other.get_saga("s"), other.latest_snapshot("s"), other.list_snapshots("s"), other.list_sagas()):
        with pytest.raises(CorruptDataError, match="of saga 's' is damaged at byte 0"):
            drive.now(ask)
    with pytest.raises(CorruptDataError, match=r"snapshot 's/1' cannot be read: .* is damaged at byte 0"):
        drive.now(fresh(folder).get_snapshot("s/1"))
    assert path.read_bytes() == damaged
    drive.now(other.close())


def test_damage_while_a_store_is_open_is_an_error_too(folder, storage):
    """What it knows of the file it read before: each of the file's bytes is looked at again by who asks for them."""
    write(storage, seqs=range(3), data=b"0123456789" * 10)
    (path,) = files(folder)
    whole = path.read_bytes()
    found = []
    for at in range(len(whole)):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([whole[at] ^ 4]))
            file.flush()
            for seq in range(3):
                try:
                    assert drive.now(storage.get_snapshot(f"s/{seq}")).data == b"0123456789" * 10
                    assert drive.now(storage.latest_snapshot("s", max_seq=seq)).snapshot_id == f"s/{seq}"
                except CorruptDataError as error:
                    found.append((f"snapshot 's/{seq}'", str(error)))
            file.seek(at)
            file.write(whole[at : at + 1])
    assert len(found) > 450
    assert all(name in message for name, message in found)


# ---- the index


def everything(storage):
    found = [record.saga_id for record in drive.now(storage.list_sagas()).items]
    return [
        found,
        [drive.now(storage.list_snapshots(saga_id)).items for saga_id in found],
        [drive.now(storage.get_snapshot(f"{saga_id}/1")) for saga_id in found],
    ]


@pytest.mark.parametrize("lost", ["all of it", "catalog", "ids.0", "state", "lock"])
def test_an_index_that_is_lost_is_made_anew(folder, storage, lost):
    for saga_id in "abc":
        write(storage, saga_id)
    right = everything(storage)
    drive.now(storage.close())
    for path in (folder / "index").iterdir():
        if lost in ("all of it", path.name):
            path.unlink()
    if lost != "all of it" and lost != "state":
        (folder / "index" / "state").unlink()
    other = fresh(folder)
    assert everything(other) == right
    with pytest.raises(DuplicateSagaError):
        drive.now(other.write(Batch("d", None, (), [a_snapshot("d", 0, snapshot_id="a/1")])))
    drive.now(other.close())


def test_an_index_of_before_the_machine_was_started_again_is_made_anew(folder, storage):
    write(storage, "a")
    drive.now(storage.close())
    (folder / "index" / "state").write_text("another boot")
    for path in folder.glob("index/ids.*"):
        path.write_bytes(b"")
    (folder / "index" / "catalog").write_bytes(b"")
    other = fresh(folder)
    assert drive.now(other.get_snapshot("a/1")) is not None
    assert len(drive.now(other.list_sagas()).items) == 1
    drive.now(other.close())


@pytest.mark.parametrize("name", ["catalog", "ids.0"])
def test_a_damaged_index_never_gives_a_wrong_answer(folder, storage, name):
    write(storage, "a")
    right = everything(storage)
    drive.now(storage.close())
    path = folder / "index" / name
    whole = path.read_bytes()
    for at in [at for at, byte in enumerate(whole) if byte]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        other = fresh(folder)
        assert everything(other) == right, at
        write(other, "a")
        drive.now(other.close())


def test_finding_sagas_opens_only_those_that_are_found(folder, storage, monkeypatch):
    from sagaz_core.storage import SagaSummary

    for number in range(30):
        saga_id = f"s{number:02}"
        status = "failed" if number % 10 == 0 else "completed"
        write(storage, saga_id, seqs=[1])
        drive.now(storage.write(Batch(saga_id, summary=SagaSummary(saga_id, "order", 1, status))))
    other, opened = fresh(folder), []
    segment_of = other._segment_of
    monkeypatch.setattr(other, "_segment_of", lambda key: opened.append(key) or segment_of(key))
    found = drive.now(other.find_sagas(status="failed")).items
    assert [summary.saga_id for summary in found] == ["s00", "s10", "s20"]
    assert len(opened) == 3
    drive.now(other.close())


def test_deleted_snapshots_give_their_space_back(folder, storage):
    for seq in range(400):
        drive.now(storage.write(Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq, data=os.urandom(1000))])))
        drive.now(storage.delete_snapshots("s", below_seq=seq - 3))
    (path,) = files(folder)
    assert path.stat().st_size < 200_000
    assert [s.seq for s in drive.now(storage.list_snapshots("s")).items] == [396, 397, 398, 399]
    assert [event.seq for event in drive.events(storage, "s")] == list(range(400))
    other = fresh(folder)
    assert drive.now(other.list_snapshots("s")) == drive.now(storage.list_snapshots("s"))
    drive.now(other.close())


def test_two_stores_see_what_each_other_writes_deletes_and_compacts(folder, storage):
    other = fresh(folder)
    for seq in range(300):
        writer, reader = (storage, other) if seq % 2 else (other, storage)
        snapshot = a_snapshot("s", seq, data=os.urandom(1000))
        drive.now(writer.write(Batch("s", None, [an_event("s", seq)], [snapshot])))
        assert drive.now(reader.latest_snapshot("s")) == snapshot
        drive.now(reader.delete_snapshots("s", below_seq=seq - 2))
        assert drive.now(writer.count_snapshots("s")) == min(seq + 1, 3)
    assert drive.now(storage.delete_saga("s"))
    assert drive.now(other.get_snapshot("s/299")) is None
    drive.now(other.write(Batch("s", a_saga("s"))))
    assert drive.now(storage.get_saga("s")) == a_saga("s")
    drive.now(other.close())


def test_a_table_of_ids_that_grows_finds_them_all(folder, storage):
    snapshots = [a_snapshot("s", seq) for seq in range(9000)]
    drive.now(storage.write(Batch("s", None, (), snapshots)))
    assert (folder / "index" / "ids.1").exists()
    assert all(drive.now(storage.get_snapshot(s.snapshot_id)) == s for s in snapshots[::37])
    other = fresh(folder)
    with pytest.raises(DuplicateSagaError):
        drive.now(other.write(Batch("t", None, (), [a_snapshot("t", 1, snapshot_id="s/8999")])))
    assert drive.now(storage.delete_snapshots("s", below_seq=9000)) == 9000
    assert drive.now(other.get_snapshot("s/8999")) is None
    drive.now(other.write(Batch("t", None, (), [a_snapshot("t", 1, snapshot_id="s/8999")])))
    drive.now(other.close())


# ---- faults

UNABLE = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
from drive import now
from sagaz_core.errors import StoreUnavailableError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_saga, a_snapshot

storage = open_storage(sys.argv[1])
"""

FULL = """
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for seq in range(1000):
    try:
        now(storage.write(Batch("s", None, (), [a_snapshot("s", seq, data=bytes(10_000))])))
    except StoreUnavailableError as error:
        print(seq, error)
        break
assert now(storage.count_snapshots("s")) == seq
"""

READ_ONLY = """
import encodings.ascii  # which is needed later, when it may not be read any more

os.seteuid(65534)
for batch in (Batch("t", a_saga("t")), Batch("s", None, (), [a_snapshot("s", 9)])):
    try:
        now(storage.write(batch))
    except StoreUnavailableError as error:
        print(error)
try:
    now(storage.delete_saga("s"))
except StoreUnavailableError as error:
    print(error)
assert len(now(storage.list_snapshots("s")).items) == 4
assert now(storage.get_snapshot("s/1")).seq == 1
assert len(now(storage.list_sagas()).items) == 1
"""


def in_a_process(code, url, **how):
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", UNABLE + code, url, str(HERE)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **how)


def test_a_full_disk_is_told_and_loses_nothing(folder, storage):
    done = in_a_process(FULL, f"file://{folder}?fsync=never")
    assert done.returncode == 0, done.stderr
    seq, _, message = done.stdout.partition(" ")
    assert "cannot be used: the file would be larger than is allowed" in message
    assert message.count("\n") == 1
    assert [s.seq for s in drive.now(storage.list_snapshots("s")).items] == list(range(int(seq)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_folder_that_cannot_be_written_is_told_and_can_be_read():
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "store"
        storage = fresh(folder)
        write(storage)
        drive.now(storage.close())
        for path in [Path(parent), folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        done = in_a_process(READ_ONLY, f"file://{folder}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("cannot be used: access is not permitted") == 3


def test_a_lock_that_is_held_too_long_is_told(folder, storage):
    write(storage)
    other = fresh(folder, "lock_timeout=0.01")
    segment = storage._segment("s")
    assert storage._begin_change(segment, create=False)
    with pytest.raises(StoreUnavailableError, match=r"was locked by another process for more than 0\.01 s"):
        write(other, seqs=[9])
    assert len(drive.now(other.list_snapshots("s")).items) == 4
    from sagaz_core.storage._file_log import unlock

    unlock(segment.fd)
    write(other, seqs=[9])
    drive.now(other.close())


def test_a_claim_of_a_writer_that_died_does_not_keep_the_id(folder, storage):
    write(storage, "a")
    with storage._index.changing():
        storage._index.ids.claim("x", storage._segment("a").key)
        storage._index.catalog.put(storage._segment("dead").key, "dead", None)
    assert drive.now(storage.get_snapshot("x")) is None
    assert [record.saga_id for record in drive.now(storage.list_sagas()).items] == ["a"]
    drive.now(storage.write(Batch("b", None, (), [a_snapshot("b", 0, snapshot_id="x")])))
    assert drive.now(storage.get_snapshot("x")).saga_id == "b"


def test_the_replay_log_is_cut_off_and_checked_like_the_rest(folder, storage):
    for number in range(3):
        drive.now(storage.log_replay(a_replay(str(number), "s", created_at=T0 + number * TICK)))
    drive.now(storage.close())
    path = folder / "replays"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    other = fresh(folder)
    assert [r.replay_id for r in drive.now(other.list_replays("s"))] == ["0", "1"]
    drive.now(other.log_replay(a_replay("2", "s", created_at=T0 + 2 * TICK)))
    assert path.read_bytes() == whole
    drive.now(other.close())
    path.write_bytes(whole[:40] + b"X" + whole[41:])
    other = fresh(folder)
    with pytest.raises(CorruptDataError, match="replays is damaged at byte 0"):
        drive.now(other.list_replays("s"))
    drive.now(other.close())


# ---- URLs


@pytest.mark.parametrize(
    ("url", "path"),
    [("file:///tmp/a%20b", "/tmp/a b"), ("file://localhost/tmp/a", "/tmp/a"), ("FILE:///tmp/a/", "/tmp/a")],
)
def test_an_absolute_folder(url, path):
    assert open_storage(url).path == path
    assert open_storage(open_storage(url).url).path == path


def test_a_relative_folder_is_below_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_storage("file://./a/b").path == str(tmp_path / "a" / "b")
    assert open_storage("file://../b").path == str(tmp_path.parent / "b")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://", "names no folder"),
        ("file:///", "names no folder"),
        ("file://host/x", "names a host: write file:///absolute/folder or file://./relative/folder"),
        ("file:///x?fsyc=never", "unknown option 'fsyc' (did you mean 'fsync'?)"),
        ("file:///x?fsync=sometimes", "give always or never"),
        ("file:///x?lock_timeout=soon", "gives lock_timeout as 'soon'"),
        ("file:///x?lock_timeout=-1", "is not a time"),
        ("file:///a%00b", "has a NUL"),
    ],
)
def test_a_url_that_names_no_folder(url, message):
    with pytest.raises(UsageError) as caught:
        open_storage(url)
    assert message in str(caught.value)


def test_a_file_that_another_process_makes_meanwhile_can_be_written(storage, monkeypatch):
    really_open, made = os.open, []

    def one_that_loses_the_race(path, *args, **kwargs):
        try:
            return really_open(path, *args, **kwargs)
        except FileNotFoundError:  # and at this moment it is made
            if "sagas" in Path(path).parts:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).touch()
                made.append(path)
            raise

    monkeypatch.setattr(os, "open", one_that_loses_the_race)
    write(storage)
    assert made
    assert drive.now(storage.count_snapshots("s")) == 4


def test_a_system_without_file_locks_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UsageError, match="needs file locks, which this system has not: use sqlite:///"):
        open_storage("file:///x")


def test_an_id_of_another_saga_is_refused_as_often_as_it_is_tried(storage):
    write(storage, "a")
    for _ in range(3):
        with pytest.raises(DuplicateSagaError):
            drive.now(storage.write(Batch("b", None, (), [a_snapshot("b", 0, snapshot_id="a/1")])))
