"""What only the memory store has: names, and counts of what a query looks at."""

import subprocess
import sys
import threading
from datetime import timedelta

import drive

from sagaz_core.storage import Batch, InMemorySnapshotStorage, open_storage
from sagaz_core.storage._timeline import Timeline
from sagaz_core.storage.contract import T0, a_saga, a_snapshot, an_event


def test_a_name_is_one_store_in_a_process():
    first, second = open_storage("memory://test-a-name"), open_storage("memory://test-a-name")
    assert first is second
    assert first.url == "memory://test-a-name"
    assert open_storage("memory://test-another") is not first


def test_without_a_name_each_store_is_new():
    first, second = open_storage("memory://"), open_storage("memory://")
    drive.now(first.write(Batch("s", a_saga("s"))))
    assert drive.now(second.get_saga("s")) is None


def test_a_named_store_keeps_what_it_has_when_it_is_closed():
    storage = open_storage("memory://test-closed")
    drive.now(storage.write(Batch("s", a_saga("s"))))
    drive.now(storage.close())
    assert drive.now(open_storage("memory://test-closed").get_saga("s")) == a_saga("s")


def test_several_threads_write_one_store():
    storage = InMemorySnapshotStorage()

    def work(name):
        for seq in range(200):
            batch = Batch(name, None, [an_event(name, seq)], [a_snapshot(name, seq)])
            drive.now(storage.write(batch))
            assert drive.now(storage.latest_snapshot(name, step="reserve")).seq == seq
            drive.now(storage.write(Batch("shared", events=[an_event("shared", seq)])))

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [drive.now(storage.count_snapshots(name)) for name in "abcd"] == [200] * 4
    assert len(drive.events(storage, "shared")) == 200


def test_a_query_looks_at_few_of_many_snapshots():
    looks = 0

    def moment(snapshot):
        nonlocal looks
        looks += 1
        return snapshot.created_at

    timeline = Timeline(lambda snapshot: snapshot.seq, moment)
    timeline.add([a_snapshot("s", seq) for seq in range(10_000)])
    timeline.latest(T0, None)
    looks = 0
    for second in (0, 17, 5000, 9999, 20_000):
        assert timeline.latest(T0 + timedelta(seconds=second), None).seq == min(second, 9999)
        assert timeline.latest(T0 + timedelta(seconds=second), 4000).seq == min(second, 4000)
    assert looks == 10


def test_stores_are_imported_without_what_they_do_not_need():
    code = """
import sys
import sagaz_core.storage
before = set(sys.modules)
sagaz_core.storage.open_storage("memory://")
print(sorted({"asyncio", "sqlite3", "pydantic", "pytest", "pluggy", "ormsgpack", "zstandard"} & before))
print(sorted({"asyncio", "sqlite3", "pydantic", "pytest", "ormsgpack", "zstandard"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"
