"""How often the network stores cross the network: a proxy counts."""

import asyncio
from datetime import datetime, timedelta, timezone

import pytest
from proxy import Proxy

from sagaz_core import ReplayConfig, Saga, SagaReplay, action
from sagaz_core.errors import DuplicateSagaError, UsageError
from sagaz_core.storage import Batch, SagaSummary, open_storage
from sagaz_core.storage.contract import T0, a_replay, a_saga, a_snapshot, an_event


@pytest.fixture(params=["redis", "postgres"])
def proxy(request):
    proxy = Proxy(request.getfixturevalue(f"{request.param}_url"))
    yield proxy
    proxy.close()


def a_batch(saga_id, seq):
    snapshot = a_snapshot(saga_id, seq, base_seq=max(0, seq - 2) if seq else None)
    summary = SagaSummary(saga_id, "order", seq, "executing", tags={"customer": "c-1"})
    return Batch(saga_id, None if seq else a_saga(saga_id), [an_event(saga_id, seq)], [snapshot], summary)


def a_step(saga_id, seq):
    return Batch(saga_id, None, [an_event(saga_id, seq)], [a_snapshot(saga_id, seq)])


def test_each_call_is_one_round_trip(proxy):
    async def main():
        storage = open_storage(f"{proxy.url}&pool_size=1")
        at = T0 + timedelta(seconds=3)
        calls = {
            "begin": lambda saga_id: storage.write(a_batch(saga_id, 0)),
            "save": lambda saga_id: storage.write(a_batch(saga_id, 1)),
            "save again": lambda saga_id: storage.write(a_batch(saga_id, 2)),
            "save a step": lambda saga_id: storage.write(a_step(saga_id, 4)),
            "save the next": lambda saga_id: storage.write(a_step(saga_id, 5)),
            "who": storage.get_saga,
            "get": lambda saga_id: storage.get_snapshot(f"{saga_id}/2"),
            "latest": storage.latest_snapshot,
            "latest of a step": lambda saga_id: storage.latest_snapshot(saga_id, step="reserve", phase="before"),
            "state at T": lambda saga_id: storage.latest_snapshot(saga_id, until=at),
            "state at T below": lambda saga_id: storage.latest_snapshot(saga_id, until=at, max_seq=1),
            "snapshots": storage.list_snapshots,
            "count": storage.count_snapshots,
            "sagas": lambda saga_id: storage.list_sagas(prefix=saga_id),
            "find": lambda saga_id: storage.find_sagas(status="executing", tags={"customer": "c-1"}),
            "replays": storage.list_replays,
            "log": lambda saga_id: storage.log_replay(a_replay(saga_id, saga_id)),
            "many": lambda saga_id: storage.write_many([a_batch(f"{saga_id}-{n}", 0) for n in range(20)]),
            "many more": lambda saga_id: storage.write_many([a_batch(f"{saga_id}-{n}", 1) for n in range(20)]),
            "many steps": lambda saga_id: storage.write_many([a_step(f"{saga_id}-{n}", 2) for n in range(20)]),
            "some of each": lambda saga_id: storage.write_many(
                [
                    *(a_batch(f"{saga_id}-{n}", 0) for n in range(20, 25)),
                    *(a_batch(f"{saga_id}-{n}", 3) for n in range(5)),
                    *(a_step(f"{saga_id}-{n}", 3) for n in range(5, 10)),
                    *(a_step(f"{saga_id}-{n}", 130) for n in range(10, 15)),
                ]
            ),
        }
        found = {}
        for saga_id in ("warm", "counted"):  # the first time, connections are made and statements prepared
            for name, call in calls.items():
                before = proxy.trips
                assert await call(saga_id) is not False
                found[name] = proxy.trips - before
            before = proxy.trips
            assert [event.seq async for event in storage.read_events(saga_id, until=at)] == [0, 1, 2]
            found["events"] = proxy.trips - before
        await storage.close()
        return found

    found = asyncio.run(main())
    assert found == dict.fromkeys(found, 1)


def test_a_duplicate_costs_a_look_at_what_is_there(proxy):
    async def main():
        storage = open_storage(proxy.url)
        for _ in range(2):
            before = proxy.trips
            await storage.write(a_batch("s", 0))
        await storage.close()
        return proxy.trips - before

    assert asyncio.run(main()) > 1


@pytest.mark.parametrize("again", ["event", "snapshot", "another event"])
def test_what_is_there_already_leaves_the_others_of_its_group_together(postgres_url, again):
    proxy = Proxy(postgres_url)

    async def main():
        storage = open_storage(f"{proxy.url}&pool_size=1")
        await storage.write(Batch("s0", a_saga("s0"), [an_event("s0", 0)], [a_snapshot("s0", 0)]))
        repeated = {
            "event": Batch("s0", None, [an_event("s0", 0)]),
            "snapshot": Batch("s0", None, (), [a_snapshot("s0", 0)]),
            "another event": Batch("s0", None, [an_event("s0", 0, data=b"another")]),
        }
        found = []
        for seq, many in enumerate((5, 5, 50)):  # the first time, statements are prepared
            others = [Batch(f"s{n}", None, [an_event(f"s{n}", seq)]) for n in range(1, many)]
            before = proxy.trips
            results = await storage.write_many([*others, repeated[again]])
            found.append(proxy.trips - before)
            assert [type(one) for one in results if one] == [DuplicateSagaError] * (again == "another event")
        await storage.close()
        proxy.close()
        return found[1:]

    few, many = asyncio.run(main())
    assert few == many


def test_a_time_that_cannot_be_stored_leaves_the_others_of_its_group_together(postgres_url):
    proxy, before_all = Proxy(postgres_url), datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))

    async def main():
        storage = open_storage(f"{proxy.url}&pool_size=1")
        for seq in range(2):  # the first time, statements are prepared
            others = [Batch(f"s{n}", None, [an_event(f"s{n}", seq)]) for n in range(20)]
            before = proxy.trips
            results = await storage.write_many([*others, Batch("s", None, [an_event("s", seq, before_all)])])
            trips = proxy.trips - before
            assert [type(one) for one in results] == [*[type(None)] * 20, UsageError]
        await storage.close()
        proxy.close()
        return trips

    assert asyncio.run(main()) == 1


class Order(Saga):
    saga_name = "order"

    @action("reserve")
    async def reserve(self, ctx):
        return {"reserved": ctx["qty"]}

    @action("charge")
    async def charge(self, ctx):
        return {"charged": True}

    @action("ship")
    async def ship(self, ctx):
        return {"shipped": True}


def test_replays_that_run_at_the_same_time_go_together(proxy):
    """What they ask for, the log before and after them, and a write a boundary: before two steps, and at the end."""
    # Redis begins to answer while what is longer than its buffer is still being sent: then turns say nothing of trips.
    ids = [f"ORDER-{number}" for number in range(10 if proxy.url.startswith("redis") else 50)]

    async def main():
        storage = open_storage(f"{proxy.url}&pool_size=1")
        saga = Order(snapshot_storage=storage, replay_config=ReplayConfig(durability="group"))
        await asyncio.gather(*(saga.run({"qty": 1}, saga_id=saga_id) for saga_id in ids))

        async def replay(saga_id):
            return await SagaReplay(saga_id, storage, saga_factory=Order).from_checkpoint("charge", {"qty": 2})

        found = []
        for _ in ("warm", "counted"):
            before = proxy.trips
            results = await asyncio.gather(*map(replay, ids))
            found.append(proxy.trips - before)
            assert {(result.replay_status.value, result.context["qty"]) for result in results} == {("success", 2)}
        await storage.close()
        return found[-1]

    assert asyncio.run(main()) == 6


def test_a_text_that_cannot_be_stored_does_not_concern_the_other_batches(proxy):
    async def main():
        storage = open_storage(proxy.url)
        batches = [Batch(name, a_saga(name), [an_event(name, 0)]) for name in "abc"]
        batches[1] = batches[1]._replace(events=[an_event("b", 0)._replace(step="\ud800")])
        results = await storage.write_many(batches)
        found = [record.saga_id for record in (await storage.list_sagas()).items]
        await storage.close()
        return [type(result) for result in results], found

    assert asyncio.run(main()) == ([type(None), UsageError, type(None)], ["a", "c"])
