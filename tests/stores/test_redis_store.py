"""The Redis store, on a real server."""

import pytest

from sagaz_core.storage import open_storage
from sagaz_core.storage.contract import SnapshotStorageContract


class TestRedis(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, redis_url):
        storage = open_storage(redis_url)
        yield storage
        self.do(storage.close())
