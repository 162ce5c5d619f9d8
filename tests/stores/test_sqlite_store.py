"""The SQLite store's file: when it is made, whose it is, and what is said when it cannot be used."""

import gc
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path

import drive
import pytest

from sagaz_core.errors import CorruptDataError, SchemaError, StorageError, StoreUnavailableError, UsageError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage._rows import micros
from sagaz_core.storage._sqlite_rows import saga_row
from sagaz_core.storage._sqlite_statements import MIGRATIONS, SCHEMA_VERSION
from sagaz_core.storage.contract import T0, a_replay, a_saga, a_snapshot, a_summary, an_event
from sagaz_core.storage.frames import FrameWriter, state_bytes
from sagaz_core.storage.sqlite import SqliteSnapshotStorage

HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sagaz.db"


@pytest.fixture
def storage(path):
    storage = SqliteSnapshotStorage(path, busy_timeout=0.05)
    yield storage
    drive.now(storage.close())


def write(storage, saga_id="s"):
    drive.now(storage.write(Batch(saga_id, a_saga(saga_id), [an_event(saga_id, 0)], [a_snapshot(saga_id, 0)])))


def read(storage, saga_id="s"):
    return drive.now(storage.get_saga(saga_id))


def error_of(kind, act, *arguments):
    """Return the message of the error, which is one line."""
    with pytest.raises(kind) as caught:
        act(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the file and its folder


def test_reading_a_store_that_does_not_exist_makes_nothing(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/a/b/sagaz.db")
    assert read(storage) is None
    assert drive.events(storage, "s") == []
    assert drive.now(storage.delete_saga("s")) is False
    assert drive.now(storage.prune(T0)) == 0
    drive.now(storage.write(Batch("s")))
    drive.now(storage.close())
    assert list(tmp_path.iterdir()) == []


def test_the_first_write_makes_folders_and_file_for_the_owner_alone(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/a/b/sagaz.db")
    before = os.umask(0o022)
    try:
        write(storage)
    finally:
        os.umask(before)
    for folder in ("a", "a/b"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700
    files = list((tmp_path / "a" / "b").iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    drive.now(storage.close())
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["sagaz.db"]


def test_logging_a_replay_is_a_write(path, storage):
    drive.now(storage.log_replay(a_replay("r", "s")))
    assert path.exists()


def test_a_relative_path_stays_where_it_was_meant(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = open_storage("sqlite:///folder/sagaz.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    write(storage)
    drive.now(storage.close())
    assert (tmp_path / "folder" / "sagaz.db").is_file()
    assert open_storage(storage.url).path == storage.path


def test_a_closed_store_opens_again(storage):
    write(storage)
    drive.now(storage.close())
    assert read(storage) == a_saga("s")
    write(storage, "t")
    assert read(storage, "t") == a_saga("t")


def test_an_empty_file_is_an_empty_store(path, storage):
    path.touch()
    assert read(storage) is None
    assert path.stat().st_size == 0
    write(storage)
    assert read(storage) == a_saga("s")


def test_what_is_written_after_the_file_was_deleted_goes_into_a_new_one(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/a/sagaz.db")
    write(storage, "old")
    shutil.rmtree(tmp_path / "a")
    write(storage, "new")
    drive.now(storage.close())
    assert [record.saga_id for record in drive.now(storage.list_sagas()).items] == ["new"]
    drive.now(storage.close())


def test_the_write_ahead_log_is_on(path, storage):
    write(storage)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_file_says_what_it_is(path, storage):
    write(storage)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"SAGA", "big"),)


def test_to_upgrade_what_is_up_to_date_writes_nothing(path, storage):
    assert drive.now(storage.upgrade()) == SCHEMA_VERSION
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # nobody else may write
        assert drive.now(storage.upgrade()) == SCHEMA_VERSION


# ---- what is wrong with the file


def test_a_newer_schema_is_refused(path, storage):
    write(storage)
    drive.now(storage.close())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    for act in (read, write):
        message = error_of(SchemaError, act, storage)
        assert str(path) in message
        assert "upgrade pytest-sagaz" in message


def test_a_database_of_another_application_is_refused_and_not_changed(path, storage):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE users (name)")
    before = path.read_bytes()
    for act in (read, write):
        assert f"{path} is a database of another application" in error_of(StorageError, act, storage)
    drive.now(storage.close())
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"not a database at all, " * 100, b"x", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_not_changed(path, storage, content):
    path.write_bytes(content)
    for act in (read, write):
        assert str(path) in error_of(StorageError, act, storage)
    assert path.read_bytes() == content


def test_a_damaged_database_is_named(path, storage):
    for number in range(50):
        write(storage, f"s{number}")
    drive.now(storage.close())
    content = path.read_bytes()
    path.write_bytes(content[:4096] + os.urandom(1) * (len(content) - 4096))
    message = error_of(StorageError, lambda: [read(storage, f"s{number}") for number in range(50)])
    assert str(path) in message
    assert "damaged" in message


def test_a_truncated_database_is_named(path, storage):
    for number in range(50):
        write(storage, f"s{number}")
    drive.now(storage.close())
    os.truncate(path, 8192)
    assert str(path) in error_of(StorageError, lambda: [read(storage, f"s{number}") for number in range(50)])


def test_a_folder_is_no_store(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}")
    for act in (read, write):
        assert f"{tmp_path} is a folder" in error_of(StorageError, act, storage)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "a").write_text("")
    storage = open_storage(f"sqlite:///{tmp_path}/a/b/sagaz.db")
    assert read(storage) is None
    assert str(tmp_path / "a" / "b") in error_of(StoreUnavailableError, write, storage)


def test_a_locked_file_is_unavailable_and_nothing_is_written(path, storage):
    write(storage)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        message = error_of(StoreUnavailableError, write, storage, "t")
        assert f"{path} was locked by another process for more than 0.05 s" in message
        assert read(storage) == a_saga("s")
        other.execute("ROLLBACK")
    assert read(storage, "t") is None
    write(storage, "t")
    assert read(storage, "t") == a_saga("t")


def test_a_file_that_is_locked_while_it_is_made(path, storage):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "locked" in error_of(StoreUnavailableError, write, storage)
        assert "locked" in error_of(StoreUnavailableError, read, storage)
    write(storage)


def test_a_full_database_is_unavailable_and_nothing_is_half_written(storage):
    write(storage)
    connection = storage._connections._idle.take()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages + 2}")
    storage._connections._idle.put(connection)
    big = Batch("t", a_saga("t"), [an_event("t", 0, data=b"x" * 100_000)], [a_snapshot("t", 0)])
    assert "the disk is full" in error_of(StoreUnavailableError, lambda: drive.now(storage.write(big)))
    assert read(storage, "t") is None
    assert drive.events(storage, "t") == []
    drive.now(storage.write(big))
    assert read(storage, "t") == a_saga("t")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = sys.platform == "linux" and shutil.which("mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not mounted or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(small_disk):
    storage = SqliteSnapshotStorage(small_disk / "sagaz.db")
    sagas = [f"s{number}" for number in range(1000)]
    written = []

    def fill():
        for saga_id in sagas:
            drive.now(storage.write(Batch(saga_id, snapshots=[a_snapshot(saga_id, 0, data=b"x" * 20_000)])))
            written.append(saga_id)

    assert "sagaz.db cannot be used: the disk" in error_of(StoreUnavailableError, fill)
    assert 5 < len(written) < 50
    assert [saga_id for saga_id in sagas if drive.now(storage.count_snapshots(saga_id))] == written
    drive.now(storage.close())


READING_ONLY = """
import os, sys
sys.path.insert(0, sys.argv[2])
import drive
from test_sqlite_store import *
if os.getuid() == 0:
    os.setuid(65534)
storage = SqliteSnapshotStorage(sys.argv[1] + "/sagaz.db")
assert read(storage) == a_saga("s")
assert len(drive.events(storage, "s")) == 1
print(error_of(StoreUnavailableError, write, storage, "t"))
assert read(storage) == a_saga("s")
drive.now(storage.close())
assert os.listdir(sys.argv[1]) == ["sagaz.db"]
print(error_of(StoreUnavailableError, write, SqliteSnapshotStorage(sys.argv[1] + "/another.db")))
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="there are no such permissions here")
def test_a_file_that_may_not_be_written_to_is_read():
    """For root there is no such file, so it is read by a process of another user, which cannot reach `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        storage = SqliteSnapshotStorage(f"{name}/sagaz.db")
        write(storage)
        drive.now(storage.close())
        os.chmod(f"{name}/sagaz.db", 0o444)
        os.chmod(name, 0o555)
        command = [sys.executable, "-c", READING_ONLY, name, str(HERE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        os.chmod(name, 0o755)
    assert done.stderr == ""
    assert [line.partition(" cannot be used")[1] for line in done.stdout.splitlines()] == [" cannot be used"] * 2


def test_text_that_cannot_be_stored_is_refused(storage):
    for batch in (
        Batch("\ud800", a_saga("\ud800")),
        Batch("s", a_saga("s", plan="\ud800")),
        Batch("s", events=[an_event("s", 2**63, T0)]),
    ):
        error_of(UsageError, lambda batch=batch: drive.now(storage.write(batch)))
    write(storage)
    assert read(storage) == a_saga("s")


# ---- connections


def test_several_threads_use_a_store(storage):
    problems = []

    def work(name):
        try:
            for number in range(30):
                write(storage, f"{name}{number}")
                assert read(storage, f"{name}{number}") is not None
        except Exception as error:
            problems.append(error)

    storage._connections._busy_timeout = 30
    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(drive.now(storage.list_sagas(limit=1000)).items) == 120


def test_one_loop_has_one_connection(storage):
    write(storage)

    async def read_and_write():
        async for _ in storage.read_events("s"):
            await storage.write(Batch("t", a_saga("t")))
            await storage.latest_snapshot("s")

    drive.now(read_and_write())
    assert len(storage._connections._idle._connections) == 1


def test_a_store_that_is_dropped_closes_its_connections(path):
    """A connection that is not closed is a warning from Python 3.13 on, and here a warning is an error."""
    storage = SqliteSnapshotStorage(path)
    write(storage)
    assert len(list(path.parent.iterdir())) == 3
    del storage
    gc.collect()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_process_that_ends_closes_its_connections(path):
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from test_sqlite_store import *
storage = SqliteSnapshotStorage(sys.argv[1])
write(storage)
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, str(path), str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_interrupted_write_is_rolled_back(storage, monkeypatch):
    write(storage)

    def interrupted(snapshot):
        raise KeyboardInterrupt

    monkeypatch.setattr("sagaz_core.storage._sqlite_batches._add_snapshots", lambda *arguments: interrupted(arguments))
    with pytest.raises(KeyboardInterrupt):
        write(storage, "t")
    monkeypatch.undo()
    assert read(storage, "t") is None
    write(storage, "t")
    assert read(storage, "t") == a_saga("t")


def test_a_store_of_an_earlier_release_is_brought_up_to_date(path, storage):
    """What is in it is read as it was, and gone on with."""
    old, snapshot = a_saga("s"), FrameWriter().frame(a_snapshot("s", 1, T0), b"state")
    at = micros(T0)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for version in (1, 2):
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
        connection.execute("PRAGMA user_version=2")
        connection.execute(f"PRAGMA application_id={int.from_bytes(b'SAGA', 'big')}")
        saga = (1, *saga_row(old)[:9], "order", 1, "executing", "", None, '{"x": "y"}')
        row = (None, snapshot.snapshot_id, 1, *snapshot[2:8], at, at, None, snapshot.data, None)
        replay = ("r", "s", "new", "charge", "an operator", "started", at, b"", "", None, "")
        written = (
            ("sagas", saga),
            ("saga_tags", ("x", "y", "s")),
            ("saga_events", (1 << 32, at, at, "StepStarted", "step0", b"data")),
            ("saga_snapshots", row),
            ("saga_replay_log", replay),
        )
        for table, values in written:
            connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)
    assert read(storage) == old
    assert drive.now(storage.upgrade()) == SCHEMA_VERSION
    drive.now(storage.write(Batch("s", old, [an_event("s", 0, T0)], [snapshot])))
    new = a_snapshot("s", 2, completed_steps=("reserve",), tags=(("x", "y"),))
    drive.now(storage.write(Batch("s", None, (), [new])))
    found = drive.now(storage.list_snapshots("s")).items
    assert [(one.seq, one.completed_steps, one.tags) for one in found] == [(1, (), ()), (2, *new[-2:])]
    assert state_bytes(found[0]) == b"state"
    assert drive.now(storage.list_replays("s")) == [a_replay("r", "s")]
    assert drive.now(storage.find_sagas(tags={"x": "y"})).items == [a_summary("s", 1, tags={"x": "y"})]


def test_a_damaged_row_does_not_keep_the_store_from_seeing_what_is_written_then(path, storage):
    snapshots = [a_snapshot("s", seq, base_seq=0) for seq in range(3)]
    drive.now(storage.write(Batch("s", a_saga("s"), (), snapshots)))
    errors = []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for seq in range(3):
            update = "UPDATE saga_snapshots SET created_at = ? WHERE seq = ?"
            connection.execute(update, (2**62, seq))
            with pytest.raises(CorruptDataError, match=f"a stored time of 's/{seq}' is damaged") as caught:
                drive.now(storage.list_snapshots("s"))
            errors.append(caught.value)  # with all that its frames hold
            connection.execute(update, (micros(snapshots[seq].created_at), seq))
            assert [one.seq for one in drive.now(storage.list_snapshots("s")).items] == [0, 1, 2]
    assert len(errors) == 3


def test_a_damaged_schema_that_is_no_text_any_more_is_told(path, storage):
    drive.now(storage.write(Batch("s", a_saga("s"))))
    drive.now(storage.close())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes().replace(b"PRIMARY KEY", b"PR\xc9MARY KEY"))
    with pytest.raises(StorageError, match="cannot be read: it is damaged: restore it"):
        drive.now(open_storage(f"sqlite:///{path}").get_saga("s"))
