"""Over random operations the network stores give what the plainest store gives."""

import asyncio
import uuid

import pytest
from hypothesis import settings
from test_stores_agree import StoresAgree

from sagaz_core.storage import open_storage
from sagaz_core.storage.contract import T0
from tests import servers


class Inline:
    """A store behind a network as if it were an embedded one: its calls are done on an event loop of its own."""

    def __init__(self, store):
        self._store = store
        self._runner = asyncio.Runner()

    def __getattr__(self, name):
        method = getattr(self._store, name)

        async def call(*arguments, **named):
            return self._run(method(*arguments, **named))

        return call if callable(method) else method

    async def read_events(self, *arguments, **named):
        async def collected():
            return [event async for event in self._store.read_events(*arguments, **named)]

        for event in self._run(collected()):
            yield event

    def _run(self, work):
        async def main():
            return await work

        return self._runner.run(main())

    def end(self):
        self._run(self._store.close())
        self._runner.close()


class NetworkStoresAgree(StoresAgree):
    urls = ()

    def __init__(self):
        super().__init__()
        self.name = f"agree_{uuid.uuid4().hex}"
        redis, postgres = self.urls
        self.stores = [
            Inline(open_storage(f"{redis}?prefix={self.name}")),
            Inline(open_storage(f"{postgres}?schema={self.name}")),
        ]
        for store in self.stores:
            store._store.clock = lambda: T0

    def teardown(self):
        super().teardown()
        for store in self.stores:
            store.end()
        servers.delete_keys(self.urls[0], self.name)
        servers.execute(self.urls[1], f'DROP SCHEMA IF EXISTS "{self.name}" CASCADE')


class TestNetworkStoresAgree(NetworkStoresAgree.TestCase):
    settings = settings(max_examples=15, stateful_step_count=40, deadline=None)

    @pytest.fixture(autouse=True)
    def servers(self, redis_server_url, postgres_database, monkeypatch):
        monkeypatch.setattr(NetworkStoresAgree, "urls", (redis_server_url, postgres_database))
