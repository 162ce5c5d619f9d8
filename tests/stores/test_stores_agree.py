"""Over random operations every store gives what the plainest one gives."""

import shutil
import tempfile

import pytest
from hypothesis import settings
from naive_store import NaiveStore

from sagaz_core.storage import InMemorySnapshotStorage, open_storage
from sagaz_core.storage.contract_machine import StoreMachine, store_machine

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


TestSqliteAgrees = SqliteMachine.TestCase
TestSqliteAgrees.settings = TestMemoryAgrees.settings
TestFilesAgree = FileMachine.TestCase
TestFilesAgree.settings = TestMemoryAgrees.settings
TestS3Agrees = pytest.mark.usefixtures("s3")(S3Machine.TestCase)
TestS3Agrees.settings = settings(TestMemoryAgrees.settings, max_examples=8, stateful_step_count=20)
