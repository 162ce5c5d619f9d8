"""The store in a bucket, against an S3 server over HTTP: how often it asks, who wins a race, what failures become."""

import asyncio
import gc
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import ormsgpack
import pytest
from buckets import have_small_pages
from s3_server import CREDENTIALS, Trips

from sagaz_core import Saga, action
from sagaz_core.errors import (
    CorruptDataError,
    DuplicateSagaError,
    MissingExtraError,
    SchemaError,
    StoreUnavailableError,
    UsageError,
)
from sagaz_core.storage import Batch, SagaSummary, open_storage
from sagaz_core.storage import _s3_core as store_module
from sagaz_core.storage._rows import digest
from sagaz_core.storage._s3_keys import ordered, saga_key, saga_of_key, snapshot_key
from sagaz_core.storage.contract import HOSTILE, T0, TICK, a_replay, a_saga, a_snapshot, an_event
from sagaz_core.storage.snapshot_ids import snapshot_name

HERE = Path(__file__).parent
KB = bytes(range(250)) * 4


@pytest.fixture
def storage(s3, bucket):
    return open_storage(s3.url(bucket))


def step(saga_id, seq, data=KB, **fields):
    return Batch(saga_id, None, [an_event(saga_id, seq, data=data)], [a_snapshot(saga_id, seq, data=data, **fields)])


def of_a_run(saga_id, seq, **fields):
    """Return the batch of a step whose snapshot has the id that the engine gives."""
    return step(saga_id, seq, **{"snapshot_id": snapshot_name(saga_id, seq), **fields})


async def events(storage, saga_id):
    return [event async for event in storage.read_events(saga_id)]


def asked(s3, do, work):
    """Return what the work gives, and the requests that it took."""
    s3.asked.clear()
    result = do(work)
    return result, [method for method, _ in s3.asked]


# ---- how often it asks


def test_a_small_snapshot_is_saved_in_one_request(s3, storage, do, bucket):
    do(storage.write(Batch("s", a_saga("s"))))
    for seq in range(6):
        assert asked(s3, do, storage.write(of_a_run("s", seq)))[1] == ["PUT"]
    other = open_storage(s3.url(bucket))
    for seq, found in enumerate(do(other.list_snapshots("s")).items):
        assert found == of_a_run("s", seq).snapshots[0]
        assert Trips(other).of(do, other.get_snapshot(found.snapshot_id)) == (found, 1, 2)


class Order(Saga):
    saga_name = "order"

    @action("a")
    async def a(self, ctx): ...

    @action("b")
    async def b(self, ctx): ...


@pytest.mark.parametrize(
    "saga_id", [None, "order-42", "a@1", "a@1@2-000003", "@", "é" * 255, "two\nlines"], ids=lambda text: repr(text)[:20]
)
def test_a_saga_that_is_recorded_is_one_object_and_each_of_its_writes_one_request(s3, storage, do, bucket, saga_id):
    taken, write = [], storage.write

    async def counted(batch):
        before = trips.count, trips.requests
        await write(batch)
        taken.append((trips.count - before[0], trips.requests - before[1]))

    trips = Trips(storage)
    storage.write = counted
    result = do(Order(snapshot_storage=storage).run({}, saga_id=saga_id))
    assert taken == [(1, 1)] * 3
    (head,) = s3.client.list_objects_v2(Bucket=bucket)["Contents"]
    assert head["Key"] == f"a/prefix/{saga_key(result.saga_id)}"
    other = open_storage(s3.url(bucket))
    trips = Trips(other)
    found = do(other.list_snapshots(result.saga_id)).items
    assert [one.snapshot_id for one in found] == [f"{result.saga_id}@{one.seq}" for one in found]
    for one in found:
        assert trips.of(do, other.get_snapshot(one.snapshot_id)) == (one, 1, 2)
        assert trips.of(do, other.latest_snapshot(result.saga_id, until=one.created_at, max_seq=one.seq))[1:] == (1, 1)
    assert trips.of(do, other.latest_snapshot(result.saga_id)) == (found[-1], 1, 1)
    assert trips.of(do, other.get_snapshot(f"{result.saga_id}@99")) == (None, 1, 2)
    assert do(other.delete_saga(result.saga_id))
    assert "Contents" not in s3.client.list_objects_v2(Bucket=bucket)


@pytest.mark.parametrize("size", [100, 1_000, 100_000], ids=["100 B", "1 KB", "100 KB"])
@pytest.mark.parametrize("of_a_run", [False, True], ids=["ids of one's own", "ids of a run"])
def test_no_question_and_no_snapshot_takes_more_than_two_round_trips(s3, storage, do, bucket, size, of_a_run):
    data = bytes(size)
    names = [snapshot_name("s", seq) if of_a_run else f"s/{seq}" for seq in range(12)]
    trips = Trips(storage)
    do(storage.write(Batch("s", a_saga("s"))))
    for seq in range(12):
        place = {"step_name": f"step{seq % 3}", "phase": ("before", "after")[seq % 2], "snapshot_id": names[seq]}
        batch = Batch("s", None, [an_event("s", seq)], [a_snapshot("s", seq, data=data, **place)])
        _, took, requests = trips.of(do, storage.write(batch))
        if of_a_run and size <= 4096:
            assert (took, requests) == (1, 1)
        else:
            assert (took, requests) == (2, 3 if (seq, size) == (10, 100_000) else 2)  # then with a page
    other = open_storage(s3.url(bucket))
    trips = Trips(other)
    for work, right in (
        (other.latest_snapshot("s"), 11),
        (other.latest_snapshot("s", step="step1"), 10),
        (other.latest_snapshot("s", step="step1", phase="before"), 10),
        (other.latest_snapshot("s", until=T0 + timedelta(seconds=7)), 7),
    ):
        found, took, requests = trips.of(do, work)
        assert (found.seq, found.data) == (right, data)
        assert took == requests == (1 if size <= 4096 else 2)
    found, took, requests = trips.of(do, other.get_snapshot(names[5]))
    assert (found.seq, found.data) == (5, data)
    if of_a_run:
        assert (took, requests) == ((1, 2) if size <= 4096 else (2, 4))  # of large ones there is a page
    else:
        assert took == 2
    _, took, requests = trips.of(do, other.get_saga("s"))
    assert took == requests == 1


def test_a_snapshot_with_its_bases_takes_no_more_requests(s3, storage, do, bucket):
    do(storage.write(Batch("s", a_saga("s"), (), [a_snapshot("s", 0, data=bytes(50_000))])))
    for seq in range(1, 16):
        _, took = asked(s3, do, storage.write(Batch("s", None, (), [a_snapshot("s", seq, data=b"delta", base_seq=0)])))
        assert took == ["PUT", "PUT"]
    other = open_storage(s3.url(bucket))
    found, took = asked(s3, do, other.latest_snapshot("s"))
    assert (found.data, len(found.bases), len(found.bases[0].data)) == (b"delta", 15, 50_000)
    assert took == ["GET", "GET"]


def test_a_difference_from_a_large_snapshot_is_had_by_its_id_in_two_round_trips(s3, storage, do, bucket):
    do(storage.write(Batch("s", a_saga("s"), (), [a_snapshot("s", 0, data=bytes(50_000))])))
    do(storage.write(Batch("s", None, (), [a_snapshot("s", 1, data=b"delta", base_seq=0)])))
    other = open_storage(s3.url(bucket))
    found, trips, _ = Trips(other).of(do, other.get_snapshot("s/1"))
    assert (found.data, len(found.bases[0].data)) == (b"delta", 50_000)
    assert trips == 2


def test_the_first_write_of_a_saga_reads_nothing(s3, storage, do, bucket):
    _, took = asked(s3, do, storage.write(Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)])))
    assert took == ["PUT", "PUT"]


def test_a_long_saga_grows_out_of_its_head_and_stays_whole(s3, storage, do, bucket):
    batches = [step("s", seq, data=os.urandom(3000)) for seq in range(100)]
    for batch in batches:
        do(storage.write(batch))
    other = open_storage(s3.url(bucket))
    assert do(events(other, "s")) == [batch.events[0] for batch in batches]
    assert do(other.list_snapshots("s", limit=100)).items == [batch.snapshots[0] for batch in batches]
    heads = s3.client.list_objects_v2(Bucket=bucket, Prefix="a/prefix/sagas/")["Contents"]
    assert [head["Size"] < 160_000 for head in heads] == [True]


def test_listing_goes_on_behind_the_cursor_and_reads_only_its_page(s3, storage, do, bucket):
    for number in range(40):
        do(storage.write(Batch(f"s{number:02}", a_saga(f"s{number:02}"))))
    page, took = asked(s3, do, storage.list_sagas(limit=5))
    assert took.count("GET") == 1 + 6
    page, took = asked(s3, do, storage.list_sagas(limit=5, cursor=page.cursor))
    assert [record.saga_id for record in page.items] == [f"s{number:02}" for number in range(5, 10)]
    page, took = asked(s3, do, storage.list_sagas(prefix="s3", limit=5))
    assert [record.saga_id for record in page.items] == [f"s{number:02}" for number in range(30, 35)]
    assert took.count("GET") == 1 + 6


def test_more_sagas_than_one_listing_holds(s3, storage, do, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    for number in range(35):
        do(storage.write(Batch(f"s{number:02}", a_saga(f"s{number:02}"))))
    page, took = asked(s3, do, storage.list_sagas(limit=100))
    assert [record.saga_id for record in page.items] == [f"s{number:02}" for number in range(35)]
    assert took.count("GET") == 4 + 35


# ---- keys


def test_keys_are_in_the_order_of_ids_and_give_them_back():
    ids = sorted({*HOSTILE, *(text * n for text in ("a", "é", "🦄", "\0") for n in (1, 2, 100, 255)), "🦄" * 120})
    keys = [saga_key(saga_id) for saga_id in ids]
    assert len(set(keys)) == len(ids)
    for saga_id, key in zip(ids, keys, strict=True):
        assert saga_of_key(key) in (saga_id, None)
        assert len(key) <= 700
        assert all(
            part.isascii() and part.replace("-", "a").replace("_", "a").replace(".", "a").isalnum()
            for part in key.split("/")
        )
    short = [saga_id for saga_id in ids if len(saga_id.encode()) <= 480]
    assert [saga_key(saga_id) for saga_id in short] == sorted(saga_key(saga_id) for saga_id in short)
    assert [ordered(saga_id) for saga_id in ids] == sorted(ordered(saga_id) for saga_id in ids)


def test_long_ids_that_begin_alike_are_listed_in_order(storage, do):
    ids = sorted([*(f"{'é' * 240}{end}" for end in ("", "a", "b", "é", "z")), "é" * 239, "ê"])
    for saga_id in reversed(ids):
        do(storage.write(Batch(saga_id, a_saga(saga_id))))
    found, cursor = [], None
    while cursor is not None or not found:
        page = do(storage.list_sagas(limit=2, cursor=cursor))
        found += [record.saga_id for record in page.items]
        cursor = page.cursor
        if cursor is None:
            break
    assert found == ids
    assert [r.saga_id for r in do(storage.list_sagas(prefix="é" * 240 + "é")).items] == ["é" * 241]


# ---- races and losses


def test_of_two_writers_of_one_saga_each_sees_what_the_other_wrote(s3, do, bucket):
    stores = [open_storage(s3.url(bucket)) for _ in range(2)]
    do(stores[0].write(Batch("s", a_saga("s"))))

    async def both():
        await asyncio.gather(*(stores[seq % 2].write(step("s", seq)) for seq in range(12)))

    do(both())
    assert [event.seq for event in do(events(stores[0], "s"))] == list(range(12))
    assert do(stores[1].count_snapshots("s")) == 12


def test_two_runs_under_one_id_are_found_out_by_the_second_write(s3, do, bucket):
    first, second = (open_storage(s3.url(bucket)) for _ in range(2))
    do(first.write(Batch("s", a_saga("s"), [an_event("s", 0)])))
    do(second.write(Batch("s", None, [an_event("s", 1)])))
    with pytest.raises(DuplicateSagaError, match="has another event 1 already"):
        do(first.write(Batch("s", None, [an_event("s", 1, T0 + TICK)], [a_snapshot("s", 1)])))
    with pytest.raises(DuplicateSagaError, match="is stored already"):
        do(second.write(Batch("s", a_saga("s", plan="other"))))
    assert do(first.get_snapshot("s/1")) is None
    assert [event.at for event in do(events(first, "s"))] == [an_event("s", 0).at, an_event("s", 1).at]


def test_a_snapshot_id_that_two_sagas_want_goes_to_one(s3, do, bucket):
    stores = [open_storage(s3.url(bucket)) for _ in range(6)]

    async def all_want_it():
        batches = [
            Batch(f"s{n}", a_saga(f"s{n}"), (), [a_snapshot(f"s{n}", 0, snapshot_id="x")]) for n in range(len(stores))
        ]
        works = [store.write(batch) for store, batch in zip(stores, batches, strict=True)]
        return await asyncio.gather(*works, return_exceptions=True)

    results = do(all_want_it())
    assert all(result is None or isinstance(result, DuplicateSagaError) for result in results)
    owners = [n for n in range(6) if do(stores[0].count_snapshots(f"s{n}"))]
    assert [results[n] for n in owners] == [None]
    assert do(stores[0].get_snapshot("x")).saga_id == f"s{owners[0]}"


def test_a_refused_batch_leaves_the_ids_of_its_snapshots_to_others(s3, do, bucket):
    first, second = (open_storage(s3.url(bucket)) for _ in range(2))
    do(first.write(Batch("s", a_saga("s"), [an_event("s", 0)])))
    for batch in (  # the second one thinks at first that it begins the saga
        Batch("s", a_saga("s"), [an_event("s", 0, T0 + TICK)], [a_snapshot("s", 0, snapshot_id="x")]),
        Batch("s", None, [an_event("s", 0, T0 + TICK)], [a_snapshot("s", 0, snapshot_id="x")]),
    ):
        with pytest.raises(DuplicateSagaError):
            do(second.write(batch))
    do(first.write(Batch("t", a_saga("t"), (), [a_snapshot("t", 0, snapshot_id="x")])))
    assert do(second.get_snapshot("x")).saga_id == "t"


def test_a_claim_of_a_writer_that_died_does_not_keep_the_id_for_ever(s3, storage, do, monkeypatch):
    s3.fail("403 Forbidden", part="/sagas/", method="PUT")
    with pytest.raises(StoreUnavailableError, match="access is not permitted"):
        do(storage.write(Batch("dead", a_saga("dead"), (), [a_snapshot("dead", 0, snapshot_id="x", data=bytes(9000))])))
    assert do(storage.get_snapshot("x")) is None
    with pytest.raises(DuplicateSagaError):
        do(storage.write(Batch("s", a_saga("s"), (), [a_snapshot("s", 0, snapshot_id="x")])))
    monkeypatch.setattr("sagaz_core.storage._s3_claiming._ABANDONED", timedelta(0))
    do(storage.write(Batch("s", a_saga("s"), (), [a_snapshot("s", 0, snapshot_id="x")])))
    assert do(storage.get_snapshot("x")).saga_id == "s"
    assert [record.saga_id for record in do(storage.list_sagas()).items] == ["s"]


# ---- ids that name their saga


def objects(s3, bucket):
    """Return the keys in the bucket, without its prefix."""
    found = s3.client.list_objects_v2(Bucket=bucket).get("Contents", ())
    return {one["Key"].removeprefix("a/prefix/") for one in found}


@pytest.mark.parametrize("size", [100, 9000])
def test_of_two_writers_of_one_saga_the_second_is_told_at_once(s3, do, bucket, size):
    stores = [open_storage(s3.url(bucket)) for _ in range(4)]
    do(stores[0].write(Batch("s", a_saga("s"))))
    snapshots = [a_snapshot("s", 3, snapshot_id="s@3", data=os.urandom(size)) for _ in stores]

    async def all_want_it():
        works = [store.write(Batch("s", None, (), [one])) for store, one in zip(stores, snapshots, strict=True)]
        return await asyncio.gather(*works, return_exceptions=True)

    results = do(all_want_it())
    (first,) = (n for n, result in enumerate(results) if result is None)
    assert sum(isinstance(result, DuplicateSagaError) for result in results) == 3
    for store in stores:
        assert do(store.get_snapshot("s@3")) == do(store.latest_snapshot("s")) == snapshots[first]
        assert (
            asked(s3, do, store.write(Batch("s", None, (), [snapshots[first]])))[1][0] == "GET"
        )  # and changes nothing
    assert do(stores[0].delete_saga("s"))
    assert objects(s3, bucket) == set()


@pytest.mark.parametrize("size", [100, 9000])
@pytest.mark.parametrize("done", [False, True], ids=["not written", "written"])
def test_of_a_writer_that_died_the_snapshot_is_there_or_not_and_nobody_waits_for_it(
    s3, storage, do, bucket, size, done
):
    do(storage.write(Batch("s", a_saga("s"))))
    first, second = (of_a_run("s", 3, data=os.urandom(size)) for _ in range(2))
    s3.fail("403 Forbidden", part="/sagas/", method="PUT", done=done)
    with pytest.raises(StoreUnavailableError):
        do(storage.write(first))
    other = open_storage(s3.url(bucket))
    assert do(other.get_snapshot("s@3")) == (first.snapshots[0] if done else None)
    assert do(other.count_snapshots("s")) == len(do(events(other, "s"))) == done
    if done:
        with pytest.raises(DuplicateSagaError):
            do(other.write(second))
    else:
        do(other.write(second))
        assert do(other.get_snapshot("s@3")) == do(other.latest_snapshot("s")) == second.snapshots[0]
    assert do(other.delete_saga("s"))
    assert objects(s3, bucket) == set()


def test_a_saga_cannot_have_the_id_of_anothers_snapshot(s3, storage, do, bucket, monkeypatch):
    have_small_pages(monkeypatch)
    for seq in range(9):
        do(storage.write(of_a_run("s", seq, data=bytes(9000 if seq == 4 else 9))))
    do(storage.write(Batch("t", a_saga("t"), [an_event("t", 0)])))
    for seq in (0, 4, 8):
        for size in (9, 9000):
            with pytest.raises(DuplicateSagaError, match=f"there is another snapshot 's@{seq}' already"):
                do(storage.write(step("t", 1, snapshot_id=f"s@{seq}", data=bytes(size))))
        with pytest.raises(DuplicateSagaError):  # nor the saga itself, for another one
            do(storage.write(of_a_run("s", 10, snapshot_id=f"s@{seq}", data=bytes(9))))
    for store in (storage, open_storage(s3.url(bucket))):
        assert [event.seq for event in do(events(store, "t"))] == [0]
        assert do(store.list_snapshots("t")).items == []
        assert [do(store.get_snapshot(f"s@{seq}")).saga_id for seq in (0, 4, 8)] == ["s"] * 3
    assert not any(key.startswith("snapshots/") for key in objects(s3, bucket))
    do(storage.write(of_a_run("t", 1)))
    assert do(storage.get_snapshot("t@1")).saga_id == "t"


@pytest.mark.parametrize("size", [100, 9000])
def test_an_id_that_names_another_saga_is_that_ones_as_soon_as_it_has_it(s3, storage, do, bucket, size):
    do(storage.write(Batch("t", a_saga("t"), (), [a_snapshot("t", 0, snapshot_id="s@3", data=bytes(size))])))
    other = open_storage(s3.url(bucket))
    taken = do(other.latest_snapshot("t"))
    assert Trips(other).of(do, other.get_snapshot("s@3")) == (
        taken,
        2,
        4,
    )  # with the page in which it would be if it were an old one
    do(storage.write(Batch("s", a_saga("s"))))
    do(storage.write(of_a_run("s", 3, data=b"mine")))
    assert do(other.get_snapshot("s@3")).data == b"mine"
    assert do(other.list_snapshots("t")).items == [taken]
    assert do(storage.delete_snapshots("s", below_seq=9)) == 1
    assert do(other.get_snapshot("s@3")) == taken
    assert do(storage.delete_saga("t"))
    assert do(storage.delete_saga("s"))
    assert objects(s3, bucket) == set()


@pytest.mark.parametrize(
    "name", ["s@03", "s@3-", "s@-3", "s@3 ", "s@³", "s@3.000001", "@3", "s@", "s@99999999999999999999"]
)
def test_an_id_that_only_looks_like_one_of_the_engine_is_the_first_ones(storage, do, name):
    do(storage.write(Batch("s", a_saga("s"))))
    do(storage.write(step("t", 3, snapshot_id=name)))
    with pytest.raises(DuplicateSagaError):
        do(storage.write(step("s", 3, snapshot_id=name)))
    assert do(storage.get_snapshot(name)).saga_id == "t"
    assert do(storage.delete_saga("t"))
    do(storage.write(step("s", 3, snapshot_id=name)))
    assert do(storage.get_snapshot(name)).saga_id == "s"


def test_a_snapshot_is_had_by_its_id_whatever_is_wrong_with_the_claim_of_another_one(s3, storage, do, bucket):
    do(storage.write(of_a_run("s", 0)))
    s3.client.put_object(Bucket=bucket, Key=f"a/prefix/{snapshot_key('s@0')}", Body=b"damaged")
    s3.client.put_object(Bucket=bucket, Key=f"a/prefix/{snapshot_key('s@1')}", Body=b"damaged")
    assert do(storage.get_snapshot("s@0")) == of_a_run("s", 0).snapshots[0]
    with pytest.raises(CorruptDataError, match="snapshot 's@1' cannot be read"):
        do(storage.get_snapshot("s@1"))


def test_a_snapshot_whose_claim_is_damaged_is_not_written(s3, storage, do, bucket):
    do(storage.write(Batch("s", a_saga("s"))))
    s3.client.put_object(Bucket=bucket, Key=f"a/prefix/{snapshot_key('s/0')}", Body=b"damaged")
    with pytest.raises(CorruptDataError, match="is damaged"):
        do(storage.write(step("s", 0)))
    assert do(events(storage, "s")) == []
    assert do(storage.count_snapshots("s")) == 0


def test_snapshots_go_without_a_request_for_each(s3, storage, do, bucket):
    snapshots = [a_snapshot("s", seq, snapshot_id=f"s@{seq}", retention_until=T0) for seq in range(40)]
    snapshots[7] = snapshots[7]._replace(data=bytes(9000))
    storage.clock = lambda: T0
    do(storage.write(Batch("s", a_saga("s"), (), snapshots)))
    assert len(objects(s3, bucket)) == 2
    assert asked(s3, do, storage.delete_snapshots("s", below_seq=5)) == (5, ["GET", "PUT"])
    assert asked(s3, do, storage.delete_snapshots("s", below_seq=10)) == (5, ["GET", "PUT", "POST"])
    assert len(objects(s3, bucket)) == 1
    assert do(storage.prune(T0 + TICK)) == 30
    assert do(storage.list_snapshots("s")).items == []


@pytest.mark.parametrize("of_a_run", [False, True], ids=["ids of one's own", "ids of a run"])
def test_a_write_that_is_cancelled_can_be_done_again(s3, storage, do, bucket, of_a_run):
    """It has more to write than is written at once."""
    names = [snapshot_name("s", seq) if of_a_run else f"s/{seq}" for seq in range(50)]
    batch = Batch(
        "s", None, [an_event("s", 0)], [a_snapshot("s", seq, snapshot_id=name) for seq, name in enumerate(names)]
    )

    async def cancelled(turns):
        task = asyncio.create_task(storage.write(batch))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    do(storage.write(Batch("s", a_saga("s"))))
    for turns in range(1, 5):
        do(cancelled(turns))
    gc.collect()  # what was begun by nobody would be told of
    do(storage.write(batch))
    other = open_storage(s3.url(bucket))
    assert [one.snapshot_id for one in do(other.list_snapshots("s")).items] == names
    assert all(do(other.get_snapshot(name)) for name in names)


@pytest.mark.parametrize("form", [1, 2])
def test_a_saga_of_an_earlier_release_is_read_and_gone_on_with(s3, storage, do, bucket, form):
    """There each snapshot's id was claimed, in format 2 beside the head, which then had a list of those ids."""
    key = f"a/prefix/{saga_key('s')}"
    do(storage.write(Batch("s", a_saga("s"), (), step("s", 0).snapshots)))
    stored = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
    assert stored[:4] == b"SgS3"
    parts = ormsgpack.unpackb(stored[12:])
    parts[6] += [["s/0"], [0]]
    data = ormsgpack.packb(parts if form == 2 else parts[:6])
    s3.client.put_object(Bucket=bucket, Key=key, Body=b"SgS%d" % form + digest(data) + data)
    other = open_storage(s3.url(bucket))
    assert do(other.get_snapshot("s/0")) == do(other.latest_snapshot("s")) == step("s", 0).snapshots[0]
    do(other.write(of_a_run("s", 1)))
    assert s3.client.get_object(Bucket=bucket, Key=key)["Body"].read(4) == b"SgS3"
    assert do(storage.list_snapshots("s")).items == [*step("s", 0).snapshots, *of_a_run("s", 1).snapshots]
    assert do(storage.delete_saga("s"))
    assert objects(s3, bucket) == set()


@pytest.mark.parametrize("part", ["/snapshots/", "/sagas/"])
def test_a_write_whose_answer_was_lost_is_not_done_twice(s3, storage, do, part):
    do(storage.write(Batch("s", a_saga("s"))))
    s3.fail("500 Internal Server Error", part=part, method="PUT", done=True)
    do(storage.write(step("s", 0)))
    do(storage.write(step("s", 1)))
    assert [event.seq for event in do(events(storage, "s"))] == [0, 1]
    assert do(storage.list_snapshots("s")).items == [step("s", seq).snapshots[0] for seq in range(2)]


WRITER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_saga, a_snapshot, an_event

async def main():
    storage, name = open_storage(sys.argv[2]), sys.argv[3]
    sys.stdin.readline()
    for seq in range(3):
        own = f"{name}-own"
        await storage.write(Batch(own, None if seq else a_saga(own), [an_event(own, seq)], [a_snapshot(own, seq)]))
        await storage.write(Batch("shared", None, (), [a_snapshot("shared", seq, snapshot_id=f"{name}.{seq}")]))
    await storage.close()

asyncio.run(main())
"""


def test_ten_processes_lose_nothing(s3, storage, do, bucket):
    command = [sys.executable, "-c", WRITER, str(HERE), s3.url(bucket)]
    processes = [subprocess.Popen([*command, f"p{n}"], stdin=subprocess.PIPE, text=True) for n in range(10)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 10
    assert do(storage.count_snapshots("shared")) == 30
    for number in range(10):
        assert [event.seq for event in do(events(storage, f"p{number}-own"))] == [0, 1, 2]
        assert do(storage.get_snapshot(f"p{number}.2")).saga_id == "shared"


# ---- faults


@pytest.mark.parametrize("status", ["503 Slow Down", "500 Internal Server Error", "429 Too Many Requests"])
def test_what_passes_is_tried_again(s3, storage, do, status):
    s3.fail(status, times=2)
    do(storage.write(Batch("s", a_saga("s"), [an_event("s", 0)], [a_snapshot("s", 0)])))
    s3.fail(status, times=2)
    assert do(storage.latest_snapshot("s")) == a_snapshot("s", 0)


def test_what_does_not_pass_is_told_without_a_secret(s3, do, bucket):
    storage = open_storage(s3.url(bucket, retries=1, timeout=2))
    s3.fail("503 Slow Down", times=50)
    with pytest.raises(StoreUnavailableError) as caught:
        do(storage.get_saga("s"))
    s3.forget_faults()
    assert str(caught.value).startswith(f"the store s3://{bucket}/a/prefix cannot be used: it answered 503")
    assert_discreet(caught.value)


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ("401 Unauthorized", "access is not permitted: look at the credentials and the bucket's policy"),
        ("403 Forbidden", "access is not permitted: look at the credentials and the bucket's policy"),
        ("301 Moved Permanently", "the bucket is in another region: look at the options region and endpoint"),
        ("409 Conflict", "it answered 409 Conflict"),
        ("412 Precondition Failed", "it answered 412 Precondition Failed"),
    ],
)
def test_what_will_not_pass_is_told_alike_by_every_question(s3, do, bucket, status, why):
    storage = open_storage(s3.url(bucket, retries=0, timeout=2))
    said = set()
    for ask in (storage.get_saga, storage.get_snapshot, storage.latest_snapshot, lambda _: storage.list_sagas()):
        s3.fail(status, times=50)
        with pytest.raises(StoreUnavailableError) as caught:
            do(ask("s"))
        s3.forget_faults()
        assert_discreet(caught.value)
        said.add(str(caught.value).partition("cannot be used: ")[2])
    assert said == {why}


def test_an_endpoint_without_tls_has_to_be_permitted(s3, do, bucket):
    storage = open_storage(s3.url(bucket, allow_http="false"))
    with pytest.raises(
        StoreUnavailableError, match="its endpoint is without TLS: say allow_http=true if that is meant"
    ):
        do(storage.get_saga("s"))


def assert_discreet(error):
    text = "".join(
        [
            str(error),
            repr(error),
            str(error.__cause__),
            str(error.__context__ if not error.__suppress_context__ else ""),
        ]
    )
    assert CREDENTIALS["secret_access_key"] not in text
    assert CREDENTIALS["access_key_id"] not in text
    assert "\n" not in str(error)


def test_a_server_that_is_not_there_is_told(do):
    options = (
        "endpoint=http://127.0.0.1:9&allow_http=true&retries=0&region=x&access_key_id=AKIDTEST&secret_access_key=PSSWD"
    )
    storage = open_storage(f"s3://bucket/x?{options}")
    with pytest.raises(StoreUnavailableError, match="cannot be reached: look at the endpoint") as caught:
        do(storage.get_saga("s"))
    assert_discreet(caught.value)


def test_a_bucket_that_is_not_there_is_told(s3, do):
    storage = open_storage(s3.url("no-such-bucket"))
    for work in (storage.get_saga("s"), storage.write(Batch("s", a_saga("s"))), storage.list_sagas()):
        with pytest.raises(StoreUnavailableError, match="there is no such bucket"):
            do(work)


def test_every_damaged_object_is_an_error_that_names_what(s3, storage, do, bucket):
    do(storage.write(step("s", 0, data=bytes(10_000))))
    do(storage.write(step("s", 1)))
    do(storage.log_replay(a_replay("r", "s", override=KB)))
    names = [found["Key"] for found in s3.client.list_objects_v2(Bucket=bucket)["Contents"]]
    for key in [name for name in names if "/replays-of/" not in name]:  # nothing is in those, nor read
        whole = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        flipped = [
            whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
            for at in (0, 5, 11, 12, len(whole) // 2, len(whole) - 1)
        ]
        for at, damaged in enumerate([*flipped, b"", whole[:12], whole[:-1], whole + b"\0", whole + whole]):
            s3.client.put_object(Bucket=bucket, Key=key, Body=damaged)
            other = open_storage(s3.url(bucket))
            told = []
            reads = other.get_snapshot("s/0"), other.get_snapshot("s/1"), events(other, "s"), other.list_replays("s")
            for work in reads:
                try:
                    do(work)
                except CorruptDataError as error:
                    told.append(str(error))
            assert told, (key, at)
            assert all("is damaged" in message for message in told)
            if "/replays/" not in key:
                assert all("'s'" in message or "'s/" in message for message in told)
        s3.client.put_object(Bucket=bucket, Key=key, Body=whole)


def test_what_a_newer_release_wrote_is_refused(s3, storage, do, bucket):
    do(storage.write(Batch("s", a_saga("s"))))
    key = f"a/prefix/{saga_key('s')}"
    whole = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
    s3.client.put_object(Bucket=bucket, Key=key, Body=b"SgS4" + whole[4:])
    with pytest.raises(SchemaError, match="written by a newer release: upgrade pytest-sagaz"):
        do(open_storage(s3.url(bucket)).get_saga("s"))


def test_many_parts_are_pruned_one_after_the_other(s3, storage, do, bucket):
    snapshots = [a_snapshot("s", seq, retention_until=T0) for seq in range(60)]
    do(storage.write(Batch("s", a_saga("s"), (), snapshots)))
    assert do(storage.prune(T0 + TICK, batch=1)) == 60


def test_deleting_leaves_no_object(s3, storage, do, bucket):
    do(storage.write(Batch("s", a_saga("s"), (), [a_snapshot("s", n, data=bytes(n * 3000)) for n in range(60)])))
    do(storage.write(Batch("s", None, [an_event("s", n, data=bytes(9000)) for n in range(5)])))
    do(storage.write(Batch("s", summary=SagaSummary("s", "order", 1, "failed"))))
    assert do(storage.delete_snapshots("s", below_seq=50)) == 50
    names = [found["Key"] for found in s3.client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert sum("/snapshots/" in name for name in names) == 10
    assert do(storage.delete_saga("s"))
    assert "Contents" not in s3.client.list_objects_v2(Bucket=bucket)


# ---- URLs


def test_the_url_that_a_store_shows_has_no_secret_and_opens_it(s3, bucket, monkeypatch, do):
    storage = open_storage(s3.url(bucket, timeout=3))
    assert "PSSWD" not in storage.url
    assert "AKIDTEST" not in storage.url
    do(storage.write(Batch("s", a_saga("s"))))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS["secret_access_key"])
    assert do(open_storage(storage.url).get_saga("s")) == a_saga("s")


def test_a_prefix_may_have_any_character(s3, bucket, do):
    for prefix in ("a%23b", "ü x/*", "%C3%BC%20%25+x&y=z", 'it\'s "q"', "日本"):
        do(open_storage(s3.url(bucket).replace("a/prefix", prefix)).write(Batch("s", a_saga("s"))))
    found = s3.client.list_objects_v2(Bucket=bucket)["Contents"]
    prefixes = {one["Key"].removesuffix(f"/{saga_key('s')}") for one in found}
    assert prefixes == {"a#b", "ü x/*", "ü %+x&y=z", 'it\'s "q"', "日本"}


@pytest.mark.parametrize(
    "url", ["gs://bucket/prefix?skip_signature=true", "az://container/prefix?account_name=a&skip_signature=true"]
)
def test_other_clouds_are_opened_by_url(url):
    assert open_storage(url).url.startswith(url.partition("?")[0])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "names no bucket: write s3://bucket/prefix"),
        ("s3:///prefix", "names no bucket"),
        ("s3://bucket/a//b", "no path of at most 256 characters"),
        ("s3://bucket/../b", "no path of at most 256 characters"),
        ("s3://bucket/" + "x" * 300, "no path of at most 256 characters"),
        ("s3://bucket/a#b", "has a # in the bucket or the prefix: write it as %23"),
        ("s3://bucket/x?timeout=soon", "gives timeout as 'soon'"),
        ("s3://bucket/x?timeout=0", "gives timeout as '0': give seconds"),
        ("s3://bucket/x?timeout=1e30", "gives timeout as '1e30': give seconds"),
        ("s3://bucket/x?retries=-1", "gives retries as '-1': give a number from 0 on"),
        ("s3://bucket/x?retries=1e400", "gives retries as '1e400': give a number from 0 on"),
        ("s3://bucket/x?endpoint=http://no+host", "gives endpoint as what is no address: give http://host:port"),
        ("s3://bucket/x?endpoint=ftp://host", "'s3://bucket/x' gives endpoint as what is no address"),
        ("s3://bucket/x?aws_endpoint=http://user:password@host", "gives aws_endpoint as what is no address"),
        ("s3://bucket/x?allow_http=yes", "gives allow_http as 'yes': give true or false"),
        ("s3://bucket/x?colour=red&secret_access_key=PSSWD", "'s3://bucket/x' cannot be opened"),
        ("gs://", "names no bucket: write gs://bucket/prefix"),
        ("gs://bucket/x?colour=red", "'gs://bucket/x' cannot be opened: Configuration key: 'colour' is not valid"),
        ("gs://bucket/x?service_account=/no/such.json", "Unable to open service account file from /no/such.json"),
        ("gs://bucket/x?service_account_key=PSSWD", "'gs://bucket/x' cannot be opened"),
        ("az://", "names no bucket: write az://bucket/prefix"),
        ("az://container/x?skip_signature=true", "'az://container/x' cannot be opened"),
        ("az://container/x?account_name=a&access_key=PSSWD", "Invalid Access Key"),
    ],
)
def test_a_url_that_names_no_bucket(url, message):
    with pytest.raises(UsageError) as caught:
        open_storage(url)
    assert message in str(caught.value)
    assert_discreet(caught.value)


def test_a_missing_driver_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"need the s3 extra: pip install 'pytest-sagaz\[s3\]'"):
        open_storage("s3://bucket/prefix")


def test_no_other_store_imports_a_driver():
    code = (
        "import sys, json, sagaz_core; from sagaz_core import open_storage\n"
        "for url in ('sqlite:///x.db', 'file:///x', 'memory://'): open_storage(url)\n"
        "print(json.dumps([name for name in sys.modules if name.partition('.')[0] in ('obstore', 'boto3', 'moto')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_store_that_was_opened_before_a_fork_is_refused_in_the_child(s3, bucket):
    code = (
        "import asyncio, os, sys; from sagaz_core import open_storage\n"
        "storage = open_storage(sys.argv[1])\n"
        "asyncio.run(storage.get_saga('s'))\n"
        "child = os.fork()\n"
        "if child: sys.exit(os.waitpid(child, 0)[1])\n"
        "try: asyncio.run(storage.get_saga('s'))\n"
        "except OSError as error: os._exit(0 if 'was opened before a fork' in str(error) else 1)\n"
        "os._exit(2)"
    )
    assert subprocess.run([sys.executable, "-c", code, s3.url(bucket)], check=False).returncode == 0


def test_a_further_page_of_snapshots_is_not_sent_the_head_again(s3, storage, do, bucket, monkeypatch):
    snapshots = [a_snapshot("s", seq, data=b"%04d" % seq) for seq in range(250)]
    do(storage.write(Batch("s", a_saga("s"), (), snapshots)))
    read = []
    unpacked = store_module.unpacked_head
    monkeypatch.setattr(store_module, "unpacked_head", lambda *given: read.append(given[0]) or unpacked(*given))
    found, cursor = [], None
    for number in range(3):
        page, took = asked(s3, do, storage.list_snapshots("s", cursor=cursor))
        assert len(took) <= 4  # what has changed of the head, which is nothing, and the pages
        assert len(read) == (0 if number == 1 else 1)
        read.clear()
        found += page.items
        cursor = page.cursor
        if number == 1:  # somebody else writes
            other = open_storage(s3.url(bucket))
            do(other.write(Batch("s", None, (), [a_snapshot("s", 250, data=b"0250")])))
            do(other.close())
            read.clear()
    assert [one.data for one in found] == [b"%04d" % seq for seq in range(251)]
    assert do(storage.list_snapshots("s", limit=300)).items[-1].seq == 250
    assert len(read) == 1
