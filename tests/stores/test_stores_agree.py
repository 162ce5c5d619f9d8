"""Over random operations every store gives what the plainest one gives."""

import shutil
import tempfile
from datetime import timedelta

import drive
import naive_store
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sagaz_core.errors import DuplicateSagaError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import T0, a_replay, a_saga, a_snapshot, an_event

saga_ids = st.sampled_from(["a", "ab", "a\0", "b%", "é"])
times = st.integers(0, 9).map(lambda seconds: T0 + timedelta(seconds=seconds))
seqs = st.integers(0, 12)
steps = st.sampled_from(["", "x", "y"])
phases = st.sampled_from(["before", "after"])
limits = st.integers(1, 5)


@st.composite
def batches(draw):
    saga_id = draw(saga_ids)
    version = draw(st.sampled_from([None, None, "1.0", "1.0", "2.0"]))
    saga = None if version is None else a_saga(saga_id, version=version)
    events = [
        an_event(saga_id, seq, at, data)
        for seq, at, data in draw(st.lists(st.tuples(seqs, times, st.sampled_from([b"", b"x"])), max_size=4))
    ]
    snapshots = [
        a_snapshot(
            saga_id,
            seq,
            at,
            snapshot_id=f"{number}" if shared else f"{saga_id}{number}",
            step_name=step,
            phase=phase,
            retention_until=end,
        )
        for number, shared, seq, at, step, phase, end in draw(
            st.lists(
                st.tuples(st.integers(0, 99), st.booleans(), seqs, times, steps, phases, st.none() | times), max_size=4
            )
        )
    ]
    return Batch(saga_id, saga, events, snapshots)


def pages(get, limit):
    found, cursor = [], None
    while True:
        page = drive.now(get(limit=limit, cursor=cursor))
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


class StoresAgree(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.right = naive_store.NaiveStore()
        self.stores = [
            open_storage("memory://"),
            open_storage(f"sqlite:///{self.folder}/sagaz.db"),
            open_storage(f"file://{self.folder}/files?fsync=never"),
        ]
        for store in self.stores:
            store.clock = lambda: T0

    def teardown(self):
        for store in self.stores:
            drive.now(store.close())
        shutil.rmtree(self.folder)

    def same(self, right, ask):
        for store in self.stores:
            assert ask(store) == right, store.url

    @rule(batch=batches())
    def write(self, batch):
        try:
            self.right.write(batch)
        except DuplicateSagaError:
            for store in self.stores:
                try:
                    drive.now(store.write(batch))
                except DuplicateSagaError:
                    pass
                else:
                    raise AssertionError(f"{store.url} took another record under the same id")
        else:
            for store in self.stores:
                drive.now(store.write(batch))

    @rule(saga_id=saga_ids, at=times, step=steps, phase=phases)
    def append(self, saga_id, at, step, phase):
        """What an engine does: the next event and a snapshot of it."""
        seq = max((seq for owner, seq in self.right.events if owner == saga_id), default=-1) + 1
        snapshot = a_snapshot(saga_id, seq, at, snapshot_id=f"{saga_id}/{seq}/{at}", step_name=step, phase=phase)
        self.write(Batch(saga_id, None, [an_event(saga_id, seq, at)], [snapshot]))

    @rule(
        saga_id=saga_ids,
        step=st.none() | steps,
        phase=st.none() | phases,
        until=st.none() | times,
        max_seq=st.none() | st.integers(-1, 13),
    )
    def latest_snapshot(self, saga_id, **asked):
        right = self.right.latest_snapshot(saga_id, **asked)
        self.same(right, lambda store: drive.now(store.latest_snapshot(saga_id, **asked)))

    @rule(saga_id=saga_ids, after_seq=st.integers(-1, 13), until=st.none() | times)
    def read_events(self, saga_id, **asked):
        self.same(self.right.read_events(saga_id, **asked), lambda store: drive.events(store, saga_id, **asked))

    @rule(prefix=st.sampled_from(["", "a", "ab", "b%", "b_", "é"]), limit=limits)
    def list_sagas(self, prefix, limit):
        self.same(
            self.right.list_sagas(prefix),
            lambda store: pages(lambda **page: store.list_sagas(prefix=prefix, **page), limit),
        )

    @rule(saga_id=saga_ids, limit=limits)
    def list_snapshots(self, saga_id, limit):
        right = self.right.list_snapshots(saga_id)
        self.same(right, lambda store: pages(lambda **page: store.list_snapshots(saga_id, **page), limit))
        self.same(len(right), lambda store: drive.now(store.count_snapshots(saga_id)))
        for snapshot in right:
            self.same(snapshot, lambda store, key=snapshot.snapshot_id: drive.now(store.get_snapshot(key)))

    @rule(saga_id=saga_ids, below_seq=st.integers(-1, 13))
    def delete_snapshots(self, saga_id, below_seq):
        right = self.right.delete_snapshots(saga_id, below_seq)
        self.same(right, lambda store: drive.now(store.delete_snapshots(saga_id, below_seq=below_seq)))

    @rule(saga_id=saga_ids)
    def delete_saga(self, saga_id):
        self.same(self.right.delete_saga(saga_id), lambda store: drive.now(store.delete_saga(saga_id)))

    @rule(now=times)
    def prune(self, now):
        self.same(self.right.prune(now), lambda store: drive.now(store.prune(now)))

    @rule(
        replay_id=st.sampled_from("123"), saga_id=saga_ids, at=times, status=st.sampled_from(["started", "completed"])
    )
    def log_replay(self, replay_id, saga_id, at, status):
        record = a_replay(replay_id, saga_id, created_at=at, status=status)
        self.right.log_replay(record)
        for store in self.stores:
            drive.now(store.log_replay(record))

    @rule(saga_id=saga_ids)
    def list_replays(self, saga_id):
        self.same(self.right.list_replays(saga_id), lambda store: list(drive.now(store.list_replays(saga_id))))

    @rule()
    def close(self):
        for store in self.stores:
            drive.now(store.close())

    @invariant()
    def the_sagas_are_the_same(self):
        for saga_id in ("a", "a\0"):
            self.same(self.right.get_saga(saga_id), lambda store, key=saga_id: drive.now(store.get_saga(key)))


TestStoresAgree = StoresAgree.TestCase
TestStoresAgree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
