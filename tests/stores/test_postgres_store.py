"""The PostgreSQL store, on a real server."""

import pytest

from sagaz_core.storage import open_storage
from sagaz_core.storage.contract import SnapshotStorageContract


class TestPostgres(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, postgres_url):
        storage = open_storage(postgres_url)
        yield storage
        self.do(storage.close())
