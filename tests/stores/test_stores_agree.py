"""Over random operations every store gives what the plainest one gives."""

import shutil
import tempfile

from naive_store import NaiveStore

from sagaz_core.storage import InMemorySnapshotStorage, open_storage
from sagaz_core.storage.contract_machine import StoreMachine, store_machine

TestMemoryAgrees = store_machine(InMemorySnapshotStorage, NaiveStore).TestCase


class SqliteMachine(StoreMachine):
    def make(self):
        self.folder = tempfile.mkdtemp()
        return open_storage(f"sqlite:///{self.folder}/sagaz.db")

    def teardown(self):
        super().teardown()
        shutil.rmtree(self.folder)


TestSqliteAgrees = SqliteMachine.TestCase
TestSqliteAgrees.settings = TestMemoryAgrees.settings
