"""Our stores do what every store must."""

import shutil
import sqlite3

import pytest
from buckets import a_bucket_in_memory, have_own_names, have_small_pages
from small_room import have_small_room

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


class TestFiles(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, tmp_path):
        storage = open_storage(f"file://{tmp_path}/a/folder?fsync=never")
        yield storage
        self.do(storage.close())
        left = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
        assert ".new" not in left


class TestFilesThatAreReadAnewForEachCall(SnapshotStorageContract):
    """Nothing depends on what is held in memory, nor on the index."""

    @pytest.fixture
    def storage(self, tmp_path, monkeypatch):
        storage = open_storage(f"file://{tmp_path}/folder?fsync=never")
        index, using = tmp_path / "folder" / "index", storage._using

        def using_anew(**asked):
            for segment in storage._segments.values():
                segment.close()
            storage._segments.clear()
            storage._index.close()
            if index.exists():
                shutil.rmtree(index)
            return using(**asked)

        monkeypatch.setattr(storage, "_using", using_anew)
        yield storage
        self.do(storage.close())


class TestFilesWithTheirIndexOnTheDisk(TestFiles):
    """The same where a few records are a long saga already."""

    @pytest.fixture(autouse=True)
    def _small_room(self, monkeypatch):
        have_small_room(monkeypatch)


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


class TestS3(SnapshotStorageContract):
    @pytest.fixture
    def storage(self, s3):
        self.url = s3.url(s3.bucket())
        storage = open_storage(self.url)
        yield storage
        self.do(storage.close())

    def address(self, storage):
        return self.url  # the store's own has no credentials


class InBucketInMemory(SnapshotStorageContract):
    """A bucket in this process, behind the same driver: what is above the protocol needs no server."""

    shared = False

    @pytest.fixture
    def storage(self):
        storage = a_bucket_in_memory()
        yield storage
        self.do(storage.close())


class TestS3InSmallPages(InBucketInMemory):
    """The store in a bucket, where a few records are a long saga already."""

    @pytest.fixture(autouse=True)
    def _small_pages(self, monkeypatch):
        have_small_pages(monkeypatch)


class TestS3WithIdsThatNameTheirSaga(InBucketInMemory):
    """The same where most snapshots are in no object but the head, or a page."""

    @pytest.fixture(autouse=True)
    def _own_names(self, monkeypatch):
        have_own_names(monkeypatch)
        have_small_pages(monkeypatch)
