"""Our stores do what every store must."""

import sqlite3

import pytest

from sagaz_core.storage import InMemorySnapshotStorage, open_storage
from sagaz_core.storage.contract import SnapshotStorageContract


class TestMemory(SnapshotStorageContract):
    shared = False

    @pytest.fixture
    def storage(self):
        storage = open_storage("memory://")
        assert isinstance(storage, InMemorySnapshotStorage)
        yield storage
        self.do(storage.close())


class TestSqlite(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, tmp_path):
        storage = open_storage(f"sqlite:///{tmp_path}/a/folder/sagaz.db")
        yield storage
        self.do(storage.close())
        path = tmp_path / "a" / "folder" / "sagaz.db"
        if path.exists():
            assert [entry.name for entry in path.parent.iterdir()] == [path.name]
            connection = sqlite3.connect(path)
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            connection.close()


class TestSqliteThatIsOpenedForEachCall(SnapshotStorageContract):
    """Nothing depends on what a connection remembers."""

    @pytest.fixture
    def storage(self, tmp_path, monkeypatch):
        storage = open_storage(f"sqlite:///{tmp_path}/sagaz.db")
        connections = storage._connections
        use = connections._use

        def use_once(*arguments):
            try:
                return use(*arguments)
            finally:
                connections.close()

        monkeypatch.setattr(connections, "_use", use_once)
        yield storage
        self.do(storage.close())
