"""Long sagas in a bucket: what a write sends and a question takes however long they are, and who wins a race."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import ormsgpack
import pytest
from buckets import a_bucket_in_memory, have_small_pages
from obstore.store import MemoryStore
from s3_server import Trips

from sagaz_core.errors import CorruptDataError, DuplicateSagaError, StoreUnavailableError
from sagaz_core.storage import Batch, _s3_asking, open_storage
from sagaz_core.storage._rows import digest, event_entry, event_row, saga_row, snapshot_entry, snapshot_row
from sagaz_core.storage._s3_keys import data_folder, saga_key, snapshot_key
from sagaz_core.storage.contract import T0, a_saga, a_snapshot, an_event, chain
from sagaz_core.storage.snapshot_ids import snapshot_name

HERE = Path(__file__).parent
FOLDER = f"a/prefix/{data_folder('s')}/"


@pytest.fixture
def opened(request):
    """What opens a store in the test's bucket: the server's if the test looks at that, else one in this process."""
    if "s3" in request.fixturenames:
        url = request.getfixturevalue("s3").url(request.getfixturevalue("bucket"))
        return lambda: open_storage(url)
    objects = MemoryStore()
    return lambda: a_bucket_in_memory(objects)


@pytest.fixture
def storage(opened):
    return opened()


@pytest.fixture
def other(opened):
    return opened()


@pytest.fixture
def small_pages(monkeypatch):
    have_small_pages(monkeypatch, lines=100_000)


def a_batch(snapshot):
    return Batch("s", None, [an_event("s", snapshot.seq)], [snapshot])


def fill(storage, do, snapshots, at_once=10):
    """Write the saga's snapshots, and an event for each."""
    do(storage.write(Batch("s", a_saga("s"))))
    for start in range(0, len(snapshots), at_once):
        part = snapshots[start : start + at_once]
        do(storage.write(Batch("s", None, [an_event("s", one.seq) for one in part], part)))


def steps(count, *, key=110, every=16):
    """Return snapshots as an engine makes them: before and after steps, each based on those before it."""
    chance = random.Random(count)
    return [
        a_snapshot(
            *("s", seq),
            step_name=f"step {seq // 2}",
            phase=("before", "after")[seq % 2],
            data=chance.randbytes(110 if seq % every else key),
            base_seq=seq - seq % every if seq % every else None,
        )
        for seq in range(count)
    ]


def named(snapshots):
    """Return the same with the ids that the engine gives."""
    return [one._replace(snapshot_id=snapshot_name("s", one.seq)) for one in snapshots]


async def pages(ask, **asked):
    found, cursor = [], None
    while True:
        page = await ask(cursor=cursor, **asked)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


async def seqs(storage, **asked):
    return [event.seq async for event in storage.read_events("s", **asked)]


def listed(storage, do):
    return [one.seq for one in do(pages(lambda **asked: storage.list_snapshots("s", **asked)))]


def names(s3, bucket, prefix=FOLDER):
    found = s3.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
    return [one["Key"].removeprefix(prefix) for one in found]


# ---- what is sent, and how often


def test_a_save_into_a_long_saga_sends_about_what_one_into_a_short_saga_does(s3, storage, do):
    snapshots, sent = steps(850), {}
    fill(storage, do, snapshots[:50])
    for first, last in ((50, 130), (770, 850)):
        for start in range(len(listed(storage, do)), first, 10):
            part = snapshots[start : start + 10]
            do(storage.write(Batch("s", None, [an_event("s", one.seq) for one in part], part)))
        s3.sent = 0
        for snapshot in snapshots[first:last]:
            do(storage.write(a_batch(snapshot)))
        sent[first] = s3.sent / (last - first)
    assert sent[770] < 1.5 * sent[50]
    assert sent[770] < 30_000


def test_no_save_into_a_long_saga_takes_more_than_two_round_trips(storage, do, small_pages):
    trips = Trips(storage)
    do(storage.write(Batch("s", a_saga("s"))))
    took = [trips.of(do, storage.write(a_batch(snapshot)))[1:] for snapshot in steps(20, every=4, key=5000)]
    assert {count for count, _ in took} == {2}
    assert {requests for _, requests in took} == {2, 3, 4}  # a page of events, and one of snapshots


def test_no_save_into_a_long_saga_takes_more_than_one_round_trip_but_where_there_is_a_page(storage, do, small_pages):
    trips = Trips(storage)
    do(storage.write(Batch("s", a_saga("s"))))
    took = [trips.of(do, storage.write(a_batch(snapshot)))[1:] for snapshot in named(steps(40, every=4))]
    assert set(took) == {(1, 1), (2, 2), (2, 3)}  # a page of events, and one of snapshots
    assert took.count((1, 1)) > 10


def test_differences_that_are_large_come_in_two_round_trips(storage, other, do):
    chance = random.Random(0)
    snapshots = named([one._replace(data=chance.randbytes(6000)) for one in steps(60, every=6)])
    fill(storage, do, snapshots, at_once=1)
    trips = Trips(other)
    for snapshot in snapshots:
        for work in (other.get_snapshot(snapshot.snapshot_id), other.latest_snapshot("s", max_seq=snapshot.seq)):
            found, took, _ = trips.of(do, work)
            assert (found.data, len(found.bases)) == (snapshot.data, snapshot.seq % 6)
            assert took <= 2


@pytest.mark.parametrize("own", [False, True], ids=["ids of one's own", "ids of a run"])
@pytest.mark.parametrize("key", [110, 100_000], ids=["1 KB", "100 KB"])
def test_no_question_about_a_long_saga_takes_more_than_two_round_trips(storage, other, do, key, own):
    snapshots = steps(300, key=key)
    if own:
        snapshots = named(snapshots)
    fill(storage, do, snapshots, at_once=1 if key < 4096 else 4)
    trips, requests = Trips(other), 0
    for seq in random.Random(0).sample(range(300), 30):
        right = snapshots[seq]
        last = snapshots[seq | 1]
        bases = [one.data for one in snapshots[seq - seq % 16 : seq]]
        for work, one in (
            (other.get_snapshot(right.snapshot_id), right),
            (other.latest_snapshot("s", step=right.step_name), last),
            (other.latest_snapshot("s", step=right.step_name, phase=right.phase), right),
            (other.latest_snapshot("s", until=right.created_at), right),
            (other.latest_snapshot("s", max_seq=seq), right),
            (other.latest_snapshot("s", until=T0 + timedelta(days=1), max_seq=seq), right),
            (other.latest_snapshot("s", until=right.created_at, step=right.step_name), right),
        ):
            found, took, asked = trips.of(do, work)
            assert found == one._replace(bases=found.bases)
            assert one is last or [base.data for base in found.bases] == bases
            assert took <= 2
            requests = max(requests, asked)
    assert requests <= (4 if key < 4096 else 6)
    assert trips.of(do, other.latest_snapshot("s"))[0].seq == 299
    assert trips.count == (1 if key < 4096 else 2)
    assert trips.of(do, other.latest_snapshot("s", step="nothing"))[:2] == (None, 1)
    assert trips.of(do, other.count_snapshots("s"))[:2] == (300, 1)


@pytest.mark.parametrize("own", [False, True], ids=["ids of one's own", "ids of a run"])
def test_snapshots_that_share_a_seq_are_found_in_two_round_trips(storage, other, do, monkeypatch, own):
    """What is after a step and before the next one: there a keyframe is based on none, and its successors on both."""
    have_small_pages(monkeypatch, snapshots=16, large=9, size=9000, lines=100_000)
    snapshots = [
        one._replace(seq=(one.seq + 1) // 2, base_seq=None if one.base_seq is None else (one.base_seq + 1) // 2)
        for one in steps(80, every=8)
    ]
    ids = [snapshot_name("s", one.seq, (number + 1) % 2 if number else 0) for number, one in enumerate(snapshots)]
    snapshots = [
        one._replace(snapshot_id=ids[number] if own else f"s/{number:04}") for number, one in enumerate(snapshots)
    ]
    do(storage.write(Batch("s", a_saga("s"))))
    for snapshot in snapshots:
        do(storage.write(Batch("s", None, (), [snapshot])))
    trips = Trips(other)
    for snapshot in snapshots:
        for asked in ({"step": snapshot.step_name, "phase": snapshot.phase}, {"max_seq": snapshot.seq}):
            found, took, _ = trips.of(do, other.latest_snapshot("s", **asked))
            assert found.seq == snapshot.seq
            assert took <= 2
    took = [trips.of(do, other.get_snapshot(snapshot.snapshot_id))[1] for snapshot in snapshots]
    if own:  # by the id it is known in which page they are
        assert max(took) == 2
    else:
        assert took.count(2) >= 72
        assert max(took) == 3  # of those that were moved to the next page, with what is based on them


@pytest.mark.parametrize("own", [False, True], ids=["ids of one's own", "ids of a run"])
def test_a_very_long_saga_takes_one_round_trip_more_for_what_is_old(s3, storage, other, do, bucket, monkeypatch, own):
    have_small_pages(monkeypatch, snapshots=4, events=4, large=2, lines=1000)
    snapshots = named(steps(200, every=4)) if own else steps(200, every=4)
    fill(storage, do, snapshots, at_once=1)
    (head,) = s3.client.list_objects_v2(Bucket=bucket, Prefix="a/prefix/sagas/")["Contents"]
    assert head["Size"] < 4500
    trips = Trips(other)
    for seq in range(0, 200, 9):
        right = snapshots[seq]
        for work in (
            other.get_snapshot(right.snapshot_id),
            other.latest_snapshot("s", step=right.step_name, phase=right.phase),
            other.latest_snapshot("s", until=right.created_at),
        ):
            found, took, _ = trips.of(do, work)
            assert found.data == right.data
            assert took <= (3 if seq < 180 else 2)
    assert trips.of(do, other.count_snapshots("s"))[:2] == (200, 1)
    assert do(seqs(other)) == listed(other, do) == list(range(200))
    assert do(storage.delete_snapshots("s", below_seq=100)) == 100
    do(storage.write(a_batch(a_snapshot("s", 3, snapshot_id="late"))))
    assert listed(other, do) == [3, *range(100, 200)]
    assert do(storage.delete_saga("s"))
    assert names(s3, bucket, "") == []


# ---- streaming


def test_a_listing_holds_two_pages_at_most_and_reads_each_once(s3, storage, do, monkeypatch):
    fill(storage, do, steps(900), at_once=100)
    parsed, most = [], 0
    rows = _s3_asking.snapshot_rows
    monkeypatch.setattr(_s3_asking, "snapshot_rows", lambda data: parsed.append(len(data)) or rows(data))
    s3.asked.clear()
    cursor, found = None, 0
    while cursor is not None or not found:
        before = len(parsed)
        page = do(storage.list_snapshots("s", limit=40, cursor=cursor))
        found, cursor = found + len(page.items), page.cursor
        most = max(most, len(parsed) - before)
        assert len(storage._listed.rows) <= 3  # the pages where the next one begins, and the head
    assert found == 900
    assert most <= 2
    read = [path for method, path in s3.asked if method == "GET" and "/data/" in path]
    assert len(read) == len(set(read)) == len(parsed)


def test_events_are_read_page_by_page(s3, storage, do, monkeypatch):
    fill(storage, do, steps(600), at_once=50)
    s3.asked.clear()
    asked = []

    async def first_events():
        events = storage.read_events("s")
        asked.extend([len(s3.asked) async for event in events if event.seq % 100 == 0])
        return [event.seq async for event in storage.read_events("s", after_seq=590)]

    assert do(first_events()) == list(range(591, 600))
    assert asked == sorted(asked)
    assert asked[0] == 2  # the head and one page
    assert asked[-1] == len([path for _, path in s3.asked if "/data/" in path]) + 1
    until = T0 + timedelta(seconds=130)
    assert do(seqs(storage, after_seq=100, until=until)) == list(range(101, 131))


def test_questions_about_all_sagas_read_heads_alone(s3, storage, other, do, small_pages):
    fill(storage, do, steps(40))
    for work in (other.list_sagas(), other.find_sagas(), other.info(), other.prune(T0)):
        s3.asked.clear()
        do(work)
        assert not [path for method, path in s3.asked if "/data/" in path and "list-type" not in path]
    assert do(other.info()).snapshots == do(other.info()).events == 40


# ---- races and losses


def test_two_writers_at_once_where_pages_are_made(s3, do, storage, other, bucket, small_pages):
    snapshots = steps(60, every=4)
    do(storage.write(Batch("s", a_saga("s"))))

    async def write(store, some):
        for snapshot in some:
            await store.write(a_batch(snapshot))

    async def both():
        await asyncio.gather(write(storage, snapshots[::2]), write(other, snapshots[1::2]))

    do(both())
    third = open_storage(s3.url(bucket))
    assert listed(third, do) == do(seqs(third)) == list(range(60))
    for snapshot in snapshots:
        found = do(third.get_snapshot(snapshot.snapshot_id))
        assert found.data == snapshot.data
        assert [base.data for base in found.bases] == [
            one.data for one in snapshots[snapshot.seq - snapshot.seq % 4 : snapshot.seq]
        ]


@pytest.mark.parametrize("again", [True, False], ids=["the same batch", "another one"])
def test_a_page_of_a_writer_that_died_is_in_nobodys_way(s3, storage, other, do, bucket, small_pages, again):
    snapshots = steps(12, every=20)
    written = 0
    do(storage.write(Batch("s", a_saga("s"))))
    while not names(s3, bucket):  # until a page is made, the head of which cannot be written
        s3.forget_faults()
        do(storage.write(a_batch(snapshots[written])))
        written += 1
        s3.fail("403 Forbidden", part="/sagas/", method="PUT")
        with pytest.raises(StoreUnavailableError):
            do(storage.write(a_batch(snapshots[written])))
    left = names(s3, bucket)
    assert listed(other, do) == list(range(written))
    if not again:
        more = [a_snapshot("s", 1, snapshot_id=f"late {number}") for number in range(2)]
        do(other.write(Batch("s", None, [an_event("s", 100)], more)))
    for snapshot in snapshots[written:]:
        do(other.write(a_batch(snapshot)))
    right = sorted([*range(12), *([] if again else [1, 1])])
    assert listed(other, do) == right
    assert (set(left) <= set(names(s3, bucket))) == again


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[1])
from sagaz_core.storage import _s3_cutting, open_storage
from sagaz_core.storage._s3_core import S3Core
from sagaz_core.storage._s3_head import unpacked_head
from test_s3_pages import a_batch, steps

_s3_cutting.MOST.update(e=3, s=2)
put_head, (url, when) = S3Core._put_head, sys.argv[2:]

async def put_and_die(self, head, body):
    with_page = bool(unpacked_head("s", memoryview(body), None).event_pages.number)
    if when == "before" and with_page:
        os.kill(os.getpid(), signal.SIGKILL)
    version = await put_head(self, head, body)
    if with_page:
        os.kill(os.getpid(), signal.SIGKILL)
    return version

S3Core._put_head = put_and_die

async def main():
    storage = open_storage(url)
    for snapshot in steps(9, every=3):
        await storage.write(a_batch(snapshot))
        print(snapshot.seq, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_that_is_killed_where_a_page_is_made_leaves_whole_batches(s3, other, do, bucket, small_pages, when):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(HERE), s3.url(bucket), when],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.returncode == -signal.SIGKILL
    told = list(map(int, done.stdout.split()))
    there = listed(other, do)
    assert names(s3, bucket)
    assert there == do(seqs(other)) == [*told, *([len(told)] if when == "after" else [])]
    snapshots = steps(9, every=3)
    for snapshot in snapshots[len(told) :]:
        do(other.write(a_batch(snapshot)))
    assert listed(other, do) == do(seqs(other)) == list(range(9))
    assert [do(other.get_snapshot(one.snapshot_id)).data for one in snapshots] == [one.data for one in snapshots]


def test_who_holds_an_old_head_reads_the_new_one_where_its_pages_are_gone(storage, other, do, small_pages, monkeypatch):
    fill(storage, do, steps(20, every=4))
    read = other._head
    late = iter(range(100))

    async def read_and_lose(saga_id, known=None):
        head = await read(saga_id, known)
        number = next(late)
        if number < 4:  # all pages are made anew meanwhile
            more = [a_snapshot("s", seq, snapshot_id=f"late {number} {seq}") for seq in range(20)]
            events = [an_event("s", 1000 + number)]
            await storage.write(Batch("s", None, events, more))
        return head

    monkeypatch.setattr(other, "_head", read_and_lose)
    assert [one.seq for one in do(other.list_snapshots("s", limit=1000)).items] == sorted([*range(20)] * 5)
    late = iter(range(3, 100))
    assert do(other.get_snapshot("s/5")).seq == 5
    late = iter(range(3, 100))
    assert do(other.latest_snapshot("s", max_seq=7)).seq == 7


def test_a_page_that_is_lost_is_told_and_all_else_can_be_read(s3, storage, other, do, bucket, small_pages):
    fill(storage, do, steps(20, every=4))
    s3.client.delete_object(Bucket=bucket, Key=f"{FOLDER}s2")
    s3.client.delete_object(Bucket=bucket, Key=f"{FOLDER}e2")
    lost = [seq for seq in range(20) if not readable(other, do, seq)]
    assert 1 <= len(lost) <= 4
    assert do(other.latest_snapshot("s")).seq == 19
    assert do(other.get_saga("s")) == a_saga("s")
    with pytest.raises(CorruptDataError, match=r"snapshots of saga 's' from \d+ on cannot be read, the others can: .*"):
        listed(other, do)
    with pytest.raises(CorruptDataError, match=r"events of saga 's' from \d+ on cannot be read, the others can: .*"):
        do(seqs(other))
    assert do(seqs(other, after_seq=15)) == [16, 17, 18, 19]
    found = []
    with pytest.raises(CorruptDataError):
        do(collect(other, found))
    assert found == [0, 1, 2, 3, 4, 5]
    do(storage.write(a_batch(a_snapshot("s", 20))))
    assert do(storage.delete_saga("s"))
    assert names(s3, bucket, "") == []


async def collect(storage, found):
    async for event in storage.read_events("s"):
        found.append(event.seq)


def readable(storage, do, seq):
    try:
        return do(storage.get_snapshot(f"s/{seq}")) is not None
    except CorruptDataError as error:
        return "saga 's'" not in str(error)


def test_every_damaged_page_is_an_error_that_names_the_saga(s3, storage, do, bucket, monkeypatch):
    have_small_pages(monkeypatch, lines=300)
    snapshots = steps(17, every=4, key=5000)  # the last one stands alone
    fill(storage, do, snapshots)
    chance = random.Random(7)
    for name in names(s3, bucket):
        whole = s3.client.get_object(Bucket=bucket, Key=FOLDER + name)["Body"].read()
        at = chance.randrange(len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
        for damaged in (flipped, b"", whole[:-1]):
            s3.client.put_object(Bucket=bucket, Key=FOLDER + name, Body=damaged)
            other = open_storage(s3.url(bucket))
            with pytest.raises(CorruptDataError, match="saga 's'") as caught:
                assert do(seqs(other)) == listed(other, do) == list(range(17))
            assert "\n" not in str(caught.value)
            assert do(other.latest_snapshot("s")).data == snapshots[-1].data
            do(other.close())
        s3.client.put_object(Bucket=bucket, Key=FOLDER + name, Body=whole)


def test_large_data_that_are_damaged_are_told_to_who_needs_them(s3, storage, other, do, bucket, small_pages):
    snapshots = steps(16, every=4, key=5000)
    fill(storage, do, snapshots, at_once=1)
    key = f"a/prefix/{snapshot_key('s/4')}"
    whole = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
    s3.client.put_object(Bucket=bucket, Key=key, Body=whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    for seq, snapshot in enumerate(snapshots):
        for work in (
            other.get_snapshot(snapshot.snapshot_id),
            other.latest_snapshot("s", step=snapshot.step_name, phase=snapshot.phase),
            other.latest_snapshot("s", step=snapshot.step_name, until=snapshot.created_at),
        ):
            if 4 <= seq < 8:
                with pytest.raises(CorruptDataError, match=r"snapshot 's/4' cannot be read: the object .* is damaged"):
                    do(work)
            else:
                assert do(work).data == snapshot.data


# ---- what comes late or again, and what goes


def test_what_is_written_again_is_told_from_what_is_new(storage, other, do, small_pages):
    snapshots = steps(20, every=4)
    fill(storage, do, snapshots)
    do(other.write(Batch("s", a_saga("s"), [an_event("s", seq) for seq in range(20)], snapshots)))
    for batch in (
        Batch("s", None, [an_event("s", 3, data=b"other")]),
        Batch("s", None, [an_event("s", 30)], [snapshots[3]._replace(data=b"other")]),
        Batch("s", None, [an_event("s", 30)], [snapshots[3]._replace(seq=19)]),
        Batch("s", None, [an_event("s", 30)], [snapshots[3]._replace(seq=7, data=b"other")]),
        Batch("t", None, [an_event("t", 30)], [snapshots[3]._replace(saga_id="t")]),
    ):
        with pytest.raises(DuplicateSagaError):
            do(other.write(batch))
    assert do(seqs(other)) == listed(other, do) == list(range(20))
    do(other.write(Batch("s", None, [an_event("s", seq) for seq in (-7, 40)], [a_snapshot("s", 2, snapshot_id="s/!")])))
    assert do(seqs(storage, after_seq=-9)) == [-7, *range(20), 40]
    assert listed(storage, do) == [0, 1, 2, *range(2, 20)]


def test_pages_go_with_their_snapshots(s3, storage, other, do, bucket, small_pages):
    fill(storage, do, chain("s", 40, every=4))
    before = [name for name in names(s3, bucket) if name.startswith("s")]
    assert do(other.delete_snapshots("s", below_seq=30)) == 30
    assert listed(storage, do) == list(range(30, 40))
    found = do(storage.get_snapshot("s/31"))
    assert [base.snapshot_id for base in found.bases] == ["s/28", "s/29", "s/30"]
    assert do(storage.info()).snapshots == 12  # two are there as bases
    after = [name for name in names(s3, bucket) if not name.startswith("e")]
    assert len(after) <= len(before) // 4 + 2
    assert len(names(s3, bucket, "a/prefix/snapshots/")) == 12
    assert do(storage.delete_snapshots("s", below_seq=99)) == 10
    assert [name for name in names(s3, bucket) if not name.startswith("e")] == []
    do(other.write(Batch("s", None, (), [a_snapshot("s", seq, snapshot_id=f"new/{seq}") for seq in range(9)])))
    assert listed(storage, do) == list(range(9))


def test_what_expired_goes_from_pages(s3, storage, do, bucket, small_pages):
    ends = [None if seq % 5 == 0 else T0 + timedelta(seconds=seq) for seq in range(40)]
    snapshots = [a_snapshot("s", seq, retention_until=end) for seq, end in enumerate(ends)]
    storage.clock = lambda: T0
    fill(storage, do, snapshots)
    storage.clock = lambda: T0 + timedelta(seconds=20.5)
    left = [seq for seq in range(40) if seq % 5 == 0 or seq > 20]
    assert listed(storage, do) == left
    assert do(storage.count_snapshots("s")) == len(left)
    assert do(storage.prune(T0 + timedelta(seconds=20.5), batch=7)) == 40 - len(left)
    storage.clock = lambda: T0
    assert listed(storage, do) == left
    assert len(names(s3, bucket, "a/prefix/snapshots/")) == len(left)


# ---- other releases


def put(s3, bucket, key, value):
    """Write an object of format 1."""
    data = ormsgpack.packb(value)
    s3.client.put_object(Bucket=bucket, Key=f"a/prefix/{key}", Body=b"SgS1" + digest(data) + data)


def test_pages_of_an_earlier_release_are_read_and_gone_on_with(s3, storage, other, do, bucket, small_pages):
    """There each snapshot had a claim, and less was said of the parts of a page; the head is of format 2."""
    snapshots, key = steps(60, every=6, key=5000), f"a/prefix/{saga_key('s')}"
    fill(storage, do, snapshots, at_once=1)
    stored = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
    head = ormsgpack.unpackb(stored[12:])
    for line in head[6][1][1]:
        line[-1] = [part[:4] for part in line[-1]]
    head[6] += [[], []]
    data = ormsgpack.packb(head)
    s3.client.put_object(Bucket=bucket, Key=key, Body=b"SgS2" + digest(data) + data)
    new = named(steps(80, every=6, key=5000))[60:]
    do(other.write(Batch("s", None, (), new[:1])))
    for snapshot in new[1:]:
        do(storage.write(a_batch(snapshot)))
    third = open_storage(s3.url(bucket))
    for one in [*snapshots, *new]:
        found = do(third.get_snapshot(one.snapshot_id))
        assert found.data == one.data
        assert len(found.bases) == one.seq % 6
        assert do(third.latest_snapshot("s", max_seq=one.seq)) == found
    assert listed(third, do) == list(range(80))
    assert do(third.delete_snapshots("s", below_seq=30)) == 30
    assert [do(storage.get_snapshot(one.snapshot_id)).data for one in new] == [one.data for one in new]
    assert do(third.delete_saga("s"))
    assert names(s3, bucket, "") == []


def test_a_long_saga_of_an_earlier_release_is_read_and_gone_on_with(s3, storage, other, do, bucket):
    """There all rows are in the head, and data that it had no room for in an object of their own."""
    snapshots = steps(300, every=20, key=5000)
    events = [an_event("s", seq, data=b"%06d" % seq) for seq in range(300)]
    held = b"".join(event.data for event in events)
    moved = b"".join(one.data for one in snapshots[:200] if len(one.data) < 5000)
    places, at = [], 0
    for number, one in enumerate(snapshots):
        if len(one.data) == 5000:
            places.append(-1)
        elif number < 200:
            places.append(["moved", at])
            at += 110
        else:
            places.append(len(held))
            held += one.data
        large = [f"s/{one.base_seq}"] if one.base_seq is not None else []
        own = one.data if len(one.data) == 5000 else None
        put(s3, bucket, snapshot_key(one.snapshot_id), [one.snapshot_id, "s", digest(one.data), own, large])
    rows = [snapshot_row(snapshot_entry(one)._replace(place=at)) for one, at in zip(snapshots, places, strict=True)]
    event_rows = [event_row(event_entry(event)._replace(place=6 * event.seq)) for event in events]
    s3.client.put_object(Bucket=bucket, Key=f"{FOLDER}moved", Body=b"SgS1" + digest(moved) + moved)
    put(s3, bucket, saga_key("s"), ["s", saga_row(a_saga("s")), None, event_rows, rows, held])

    def check(store, more):
        assert do(store.get_saga("s")) == a_saga("s")
        assert do(seqs(store)) == listed(store, do) == list(range(300 + more))
        for seq in (0, 1, 19, 20, 150, 199, 200, 299):
            found = do(store.get_snapshot(f"s/{seq}"))
            assert found.data == snapshots[seq].data
            assert [base.data for base in found.bases] == [one.data for one in snapshots[seq - seq % 20 : seq]]
            assert do(store.latest_snapshot("s", until=found.created_at)) == found

    check(other, 0)
    do(storage.write(Batch("s", None, [an_event("s", 3, data=b"000003")], [snapshots[7]])))  # again
    do(storage.write(a_batch(a_snapshot("s", 300))))
    check(other, 1)
    do(storage.write(Batch("s", None, [an_event("s", 3, data=b"000003")], [snapshots[7]])))
    with pytest.raises(DuplicateSagaError):
        do(storage.write(Batch("s", None, (), [snapshots[7]._replace(seq=299)])))
    check(other, 1)
    (head,) = s3.client.list_objects_v2(Bucket=bucket, Prefix="a/prefix/sagas/")["Contents"]
    assert head["Size"] < 50_000
    assert do(other.delete_saga("s"))
    assert names(s3, bucket, "") == []
