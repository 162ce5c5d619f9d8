"""The store in Google's and in Azure's buckets, by the real driver against stand-ins: see `cloud_servers.py`."""

import asyncio

import cloud_servers
import pytest
from proxy import Proxy

from sagaz_core.errors import StoreUnavailableError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import SnapshotStorageContract, a_saga, a_snapshot, an_event

SERVERS = {"google": cloud_servers.google, "azure": cloud_servers.azure}


class InBuckets(SnapshotStorageContract):
    """The contract on a server of the kind that `server` starts."""

    @pytest.fixture
    def storage(self):
        server = SERVERS[self.server]()
        self.url = server.url(server.bucket())
        storage = open_storage(self.url)
        yield storage
        self.do(storage.close())

    def address(self, storage):
        return self.url  # the store's own has no options


class TestGoogle(InBuckets):
    server = "google"


class TestAzure(InBuckets):
    server = "azure"


@pytest.fixture(params=sorted(SERVERS))
def server(request):
    return SERVERS[request.param]()


def run(work):
    return asyncio.run(work())


def test_a_write_takes_two_requests_and_a_question_one_or_two_trips(server):
    async def main():
        storage = open_storage(server.url(server.bucket()))
        await storage.write(Batch("s", a_saga("s")))
        found = {}
        calls = {
            "save": lambda: storage.write(Batch("s", None, [an_event("s", 0)], [a_snapshot("s", 0)])),
            "latest": lambda: storage.latest_snapshot("s"),
            "get": lambda: storage.get_snapshot("s/0"),
            "who": lambda: storage.get_saga("s"),
        }
        for name, call in calls.items():
            server.asked.clear()
            assert await call() is not False
            found[name] = len(server.asked)
        await storage.close()
        return found

    assert run(main) == {"save": 2, "latest": 1, "get": 3, "who": 1}  # its head, and the page in which it might be


def test_of_two_writers_of_one_saga_each_sees_what_the_other_wrote(server):
    async def main():
        url = server.url(server.bucket())
        one, other = open_storage(url), open_storage(url)
        await one.write(Batch("s", a_saga("s"), [an_event("s", 0)]))
        await other.write(Batch("s", None, [an_event("s", 1)]))
        await asyncio.gather(
            *(storage.write(Batch("s", None, [an_event("s", seq)])) for seq, storage in enumerate([one, other] * 5, 2))
        )
        seqs = [event.seq async for event in one.read_events("s")]
        await one.close()
        await other.close()
        return seqs

    assert run(main) == list(range(12))


def test_a_bucket_that_is_not_there_is_told(server):
    async def main():
        storage = open_storage(server.url("nothing"))
        for call in (lambda: storage.get_saga("s"), lambda: storage.write(Batch("s", a_saga("s"))), storage.list_sagas):
            with pytest.raises(StoreUnavailableError, match="there is no such bucket"):
                await call()
        await storage.close()

    run(main)


def test_a_server_that_refuses_or_does_not_answer_is_told(server):
    proxy = Proxy(server.endpoint)

    async def main():
        there = server.url(server.bucket(), timeout="0.5", retries="1")
        storage = open_storage(there.replace(str(server.server_address[1]), str(proxy.port)))
        await storage.write(Batch("s", a_saga("s")))
        proxy.stalled = True
        with pytest.raises(StoreUnavailableError, match="did not answer within"):
            await storage.get_saga("s")
        proxy.stalled = False
        assert await storage.get_saga("s") == a_saga("s")
        proxy.close()
        with pytest.raises(StoreUnavailableError, match="cannot be reached: look at the endpoint and the network"):
            await storage.get_saga("s")
        await storage.close()

    run(main)
