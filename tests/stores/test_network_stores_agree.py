"""Over random operations the network stores give what the plainest store gives."""

import re
import uuid

import pytest
from hypothesis import settings
from naive_store import NaiveStore
from test_redis_store import in_small_parts

from sagaz_core.storage import _postgres_batch, open_storage
from sagaz_core.storage._postgres_connections import Connections
from sagaz_core.storage._postgres_schema import LONG
from sagaz_core.storage.contract_machine import StoreMachine
from tests import servers

FEW = settings(max_examples=15, stateful_step_count=30, deadline=None)


class RedisMachine(StoreMachine):
    url = ""

    def make(self):
        self.name = f"agree-{uuid.uuid4().hex}"
        return open_storage(f"{self.url}?prefix={self.name}")

    def make_right(self):
        return NaiveStore()

    def teardown(self):
        super().teardown()
        servers.delete_keys(self.url, self.name)


class PostgresMachine(StoreMachine):
    url = ""

    def make(self):
        self.name = f"agree_{uuid.uuid4().hex}"
        return open_storage(f"{self.url}?schema={self.name}")

    def make_right(self):
        return NaiveStore()

    def teardown(self):
        super().teardown()
        servers.execute(self.url, f'DROP SCHEMA IF EXISTS "{self.name}" CASCADE')


class TestRedisAgrees(RedisMachine.TestCase):
    settings = FEW

    @pytest.fixture(autouse=True)
    def server(self, redis_server_url, monkeypatch):
        monkeypatch.setattr(RedisMachine, "url", redis_server_url)


class TestRedisInSmallPartsAgrees(TestRedisAgrees):
    """The same where a few entries are a long saga already."""

    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch):
        in_small_parts(monkeypatch)


class TestPostgresAgrees(PostgresMachine.TestCase):
    settings = FEW

    @pytest.fixture(autouse=True)
    def server(self, postgres_database, monkeypatch):
        monkeypatch.setattr(PostgresMachine, "url", postgres_database)


class TestPostgresOfLongSagasAgrees(TestPostgresAgrees):
    """The same where the rows from the fifth on are those of a long saga already."""

    @pytest.fixture(autouse=True)
    def _soon_long(self, monkeypatch):
        text, changed = Connections.text, []

        def with_few(self, statement):
            few, count = re.subn(rf"\bseq (<|>=) {LONG}\b", r"seq \1 5", text(self, statement))
            changed.append(count)
            return few

        monkeypatch.setattr(Connections, "text", with_few)
        monkeypatch.setattr(_postgres_batch, "LONG", 5)
        yield
        assert any(changed)
