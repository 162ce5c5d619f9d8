"""Over random operations every store gives what the plainest one gives."""

import shutil
import tempfile

import pytest
from buckets import a_bucket_in_memory, have_small_pages
from hypothesis import settings
from naive_store import NaiveStore
from small_room import have_small_room

from sagaz_core.storage import InMemorySnapshotStorage, contract_machine, open_storage
from sagaz_core.storage.contract import T0, a_snapshot
from sagaz_core.storage.contract_machine import StoreMachine, store_machine
from sagaz_core.storage.snapshot_ids import snapshot_name

TestMemoryAgrees = store_machine(InMemorySnapshotStorage, NaiveStore).TestCase


class FolderMachine(StoreMachine):
    """A machine whose store is in a new folder."""

    url = ""

    def make(self):
        self.folder = tempfile.mkdtemp()
        return open_storage(self.url.format(self.folder))

    def teardown(self):
        super().teardown()
        shutil.rmtree(self.folder)


class SqliteMachine(FolderMachine):
    url = "sqlite:///{}/sagaz.db"


class FileMachine(FolderMachine):
    url = "file://{}/files?fsync=never"


class S3Machine(StoreMachine):
    def make(self):
        from s3_server import running

        return open_storage(running().url(running().bucket()))


class BucketMachine(StoreMachine):
    """A bucket in memory, behind the same driver: so there can be many more operations than over HTTP."""

    def make(self):
        return a_bucket_in_memory()

    def make_right(self):
        return NaiveStore()


class TestS3InSmallPagesAgrees(BucketMachine.TestCase):
    """Where a few records are a long saga already, a few bytes large data, and a few pages a very long saga."""

    settings = settings(TestMemoryAgrees.settings, max_examples=60)

    @pytest.fixture(autouse=True)
    def _small_pages(self, monkeypatch):
        have_small_pages(monkeypatch, lines=150, small=2)


class TestS3WithIdsThatNameTheirSagaAgrees(BucketMachine.TestCase):
    """Where most snapshots are in no object but the head, or a page, and some are of the same id and `seq`."""

    settings = settings(TestMemoryAgrees.settings, max_examples=60)

    @pytest.fixture(autouse=True)
    def _own_names(self, monkeypatch):
        def a_named_snapshot(saga_id, seq, at=T0, *, snapshot_id, **fields):
            number = snapshot_id.removeprefix(saga_id).strip("/")
            if number != snapshot_id:  # the others are of no saga, and may be of two
                snapshot_id = snapshot_name(saga_id, seq, int(number) % 4)
            return a_snapshot(saga_id, seq, at, snapshot_id=snapshot_id, **fields)

        monkeypatch.setattr(contract_machine, "a_snapshot", a_named_snapshot)
        have_small_pages(monkeypatch, lines=150, small=2)


class TestFilesWithTheirIndexOnTheDiskAgree(FileMachine.TestCase):
    """Where a few records are a long saga already."""

    settings = TestMemoryAgrees.settings

    @pytest.fixture(autouse=True)
    def _small_room(self, monkeypatch):
        have_small_room(monkeypatch)


TestSqliteAgrees = SqliteMachine.TestCase
TestSqliteAgrees.settings = TestMemoryAgrees.settings
TestFilesAgree = FileMachine.TestCase
TestFilesAgree.settings = TestMemoryAgrees.settings
TestS3Agrees = pytest.mark.usefixtures("s3")(S3Machine.TestCase)
TestS3Agrees.settings = settings(TestMemoryAgrees.settings, max_examples=8, stateful_step_count=20)
