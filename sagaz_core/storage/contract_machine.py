"""Random operations on a store and on one that is known to be right: what they answer must be the same.

    from sagaz_core.storage.contract_machine import store_machine

    TestMyStore = store_machine(lambda: open_storage("mystore://…")).TestCase     # an empty store at each call

It needs Hypothesis (`pip install 'pytest-sagaz[hypothesis]'`). Set `TestMyStore.settings` for more or fewer examples.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sagaz_core.errors import DuplicateSagaError
from sagaz_core.storage.base import Batch
from sagaz_core.storage.contract import T0, a_replay, a_saga, a_snapshot, a_summary, an_event
from sagaz_core.storage.memory import InMemorySnapshotStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import datetime

    from sagaz_core.storage.base import Page, SnapshotStorage

saga_ids = st.sampled_from(["a", "ab", "a\0", "b%", "é"])
times = st.integers(0, 9).map(lambda seconds: T0 + timedelta(seconds=seconds))
seqs = st.integers(0, 12)
steps = st.sampled_from(["", "x", "y"])
phases = st.sampled_from(["before", "after"])
limits = st.integers(1, 5)
statuses = st.sampled_from(["executing", "failed"])
tag_sets = st.dictionaries(st.sampled_from(["k", "é\0"]), st.sampled_from(["1", "%"]), max_size=2)


@st.composite
def batches(draw: Any) -> Batch:
    """Return a batch, which may be of what is stored already, or something else under its id."""
    saga_id = draw(saga_ids)
    version = draw(st.sampled_from([None, None, "1.0", "1.0", "2.0"]))
    some = st.sampled_from([b"", b"x"])
    places = st.tuples(st.integers(0, 99), st.booleans(), seqs, times, steps, phases, st.none() | times)
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
        for number, shared, seq, at, step, phase, end in draw(st.lists(places, max_size=4))
    ]
    return Batch(
        saga_id,
        None if version is None else a_saga(saga_id, version=version),
        [
            an_event(saga_id, seq, at, data)
            for seq, at, data in draw(st.lists(st.tuples(seqs, times, some), max_size=4))
        ],
        snapshots,
        draw(st.none() | summaries(saga_id)),
    )


def summaries(saga_id: str) -> st.SearchStrategy[Any]:
    """Return summaries of this saga."""
    fields = st.fixed_dictionaries(
        {"status": statuses, "step_name": steps, "failed_at": st.none() | times, "tags": tag_sets}
    )
    return st.tuples(seqs, fields).map(lambda drawn: a_summary(saga_id, drawn[0], **_as_it_can_be(drawn[1])))


def _as_it_can_be(fields: dict[str, Any]) -> dict[str, Any]:
    """A step that failed did so at some time."""
    return fields if fields["failed_at"] is not None else {**fields, "step_name": ""}


class StoreMachine(RuleBasedStateMachine):
    """Asks two stores the same. A subclass says which."""

    def make(self) -> SnapshotStorage:
        """Return an empty store."""
        raise NotImplementedError(f"{type(self).__name__} needs a method make(self) that returns an empty store")

    def make_right(self) -> SnapshotStorage:
        """Return an empty store that is right."""
        return InMemorySnapshotStorage()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = T0
        self.number = 0
        self.gone: set[str] = set()
        self.right, self.store = self.make_right(), self.make()
        for store in (self.right, self.store):
            store.clock = lambda: self.now

    def teardown(self) -> None:
        """Close what was opened."""
        try:
            self.do(self.store.close())
        finally:
            self.runner.close()

    def do(self, work: Awaitable[Any]) -> Any:
        """Run the coroutine."""

        async def main() -> Any:
            return await work

        return self.runner.run(main())

    def same(self, ask: Callable[[SnapshotStorage], Coroutine[Any, Any, Any]]) -> Any:
        """Check that both answer the same, and return it."""
        answers = []
        for store in (self.right, self.store):
            try:
                answers.append(self.do(ask(store)))
            except DuplicateSagaError:
                answers.append(DuplicateSagaError)
        assert answers[1] == answers[0], self.store.url
        return answers[0]

    @rule(batch=batches())
    def write(self, batch: Batch) -> None:
        """Write it, or be refused."""
        kept = self.without_gone(batch)
        self.same(lambda store: store.write(kept))

    def without_gone(self, batch: Batch) -> Batch:
        """Return the batch without deleted snapshots: some may be there as bases still, and it is left open what then.

        An engine never writes one again.
        """
        return batch._replace(snapshots=[one for one in batch.snapshots if one.snapshot_id not in self.gone])

    @rule(some=st.lists(batches(), max_size=3))
    def write_many(self, some: list[Batch]) -> None:
        """Write several."""
        kept = list(map(self.without_gone, some))
        self.same(lambda store: _kinds(store.write_many(kept)))

    @rule(
        saga_id=st.sampled_from(["a", "ab"]),
        keeps=st.lists(st.none() | st.integers(0, 4), min_size=1, max_size=5),
        step=steps,
        phase=phases,
        alone=st.booleans(),
    )
    def append(self, saga_id: str, keeps: list[int | None], step: str, phase: str, alone: bool) -> None:
        """Do what an engine does: write the next events, and snapshots that are based on those before them."""
        for keep in keeps:
            self.append_one(saga_id, keep, step, phase, alone)
            alone = False

    def append_one(self, saga_id: str, keep: int | None, step: str, phase: str, alone: bool) -> None:
        """Write one event and its snapshot, which is kept for some seconds."""
        events = self.do(_events(self.right, saga_id))
        last = self.do(self.right.latest_snapshot(saga_id))
        seq = max(events[-1].seq + 1 if events else 0, last.seq if last is not None else 0)
        self.number += 1
        snapshot = a_snapshot(
            saga_id,
            seq,
            self.now,
            snapshot_id=f"{saga_id}/{self.number:03}",
            step_name=step,
            phase=phase,
            data=b"%d" % self.number,
            base_seq=None if alone or last is None else last.seq if last.base_seq is None else last.base_seq,
            retention_until=None if keep is None else self.now + timedelta(seconds=keep),
        )
        self.same(lambda store: store.write(Batch(saga_id, None, [an_event(saga_id, seq, self.now)], [snapshot])))

    @rule(seconds=st.integers(-2, 5))
    def wait(self, seconds: int) -> None:
        """Let the clock go on, or back."""
        self.now += timedelta(seconds=seconds)

    @rule(
        saga_id=saga_ids,
        step=st.none() | steps,
        phase=st.none() | phases,
        until=st.none() | times,
        max_seq=st.none() | st.integers(-1, 13),
    )
    def latest_snapshot(self, saga_id: str, **asked: Any) -> None:
        """Ask for one."""
        self.same(lambda store: store.latest_snapshot(saga_id, **asked))

    @rule(saga_id=saga_ids, after_seq=st.integers(-1, 13), until=st.none() | times)
    def read_events(self, saga_id: str, **asked: Any) -> None:
        """Read them."""
        self.same(lambda store: _events(store, saga_id, **asked))

    @rule(prefix=st.sampled_from(["", "a", "ab", "b%", "b_", "é"]), limit=limits)
    def list_sagas(self, prefix: str, limit: int) -> None:
        """List them."""
        self.same(lambda store: _pages(store.list_sagas, limit, prefix=prefix))

    @rule(
        status=st.none() | statuses,
        step_name=st.none() | steps,
        saga_name=st.sampled_from([None, None, "order", "other"]),
        failed_between=st.none() | st.tuples(times, times),
        tags=st.none() | tag_sets,
        limit=limits,
    )
    def find_sagas(self, limit: int, **asked: Any) -> None:
        """Find some."""
        self.same(lambda store: _pages(store.find_sagas, limit, **asked))

    @rule(saga_id=saga_ids, limit=limits)
    def list_snapshots(self, saga_id: str, limit: int) -> None:
        """List them, and get each."""

        def asked(store: SnapshotStorage) -> Any:
            return _pages(lambda **page: store.list_snapshots(saga_id, **page), limit)

        found = self.same(asked)
        assert self.same(lambda store: store.count_snapshots(saga_id)) == len(found)
        for snapshot in found:
            assert self.same(lambda store, key=snapshot.snapshot_id: store.get_snapshot(key)) == snapshot  # type: ignore[misc] # a bound default

    @rule(saga_id=saga_ids, below_seq=st.integers(-1, 13))
    def delete_snapshots(self, saga_id: str, below_seq: int) -> None:
        """Delete old ones."""
        served = self.do(_pages(lambda **page: self.right.list_snapshots(saga_id, **page), 100))
        self.gone.update(one.snapshot_id for one in served if one.seq < below_seq)
        self.same(lambda store: store.delete_snapshots(saga_id, below_seq=below_seq))

    @rule(saga_id=saga_ids)
    def delete_saga(self, saga_id: str) -> None:
        """Delete all of it. Whether it was there is left open for one that had snapshots alone, which are all gone."""

        async def left(store: SnapshotStorage) -> bool:
            there = await store.get_saga(saga_id) is not None or await store.count_snapshots(saga_id) > 0
            there = there or bool(await _events(store, saga_id, after_seq=-1, until=None))
            return there or saga_id in [one.saga_id for one in (await store.find_sagas(limit=1000)).items]

        there = self.same(left)
        was_there, told = self.do(self.right.delete_saga(saga_id)), self.do(self.store.delete_saga(saga_id))
        assert told == was_there or (was_there and not there), self.store.url

    @rule(seconds=st.integers(0, 3), batch=st.integers(1, 5))
    def prune(self, seconds: int, batch: int) -> None:
        """Delete what has expired, and look at what is left."""
        self.now += timedelta(seconds=seconds)
        self.same(lambda store: store.prune(self.now, batch=batch))
        for saga_id in ("a", "ab"):
            self.same(lambda store, key=saga_id: store.list_snapshots(key))  # type: ignore[misc] # a bound default

    @rule(
        replay_id=st.sampled_from("123"), saga_id=saga_ids, at=times, status=st.sampled_from(["started", "completed"])
    )
    def log_replay(self, replay_id: str, saga_id: str, at: datetime, status: str) -> None:
        """Log one, perhaps again."""
        record = a_replay(replay_id, saga_id, created_at=at, status=status)
        self.same(lambda store: store.log_replay(record))

    @rule(saga_id=saga_ids)
    def list_replays(self, saga_id: str) -> None:
        """List them."""
        self.same(lambda store: _list(store.list_replays(saga_id)))

    @rule()
    def info(self) -> None:
        """Count all of it."""
        self.same(_counts)

    @invariant()
    def the_sagas_are_the_same(self) -> None:
        """Ask who two of them are."""
        for saga_id in ("a", "a\0"):
            self.same(lambda store, key=saga_id: store.get_saga(key))  # type: ignore[misc] # a bound default


def store_machine(
    make: Callable[[], SnapshotStorage], right: Callable[[], SnapshotStorage] = InMemorySnapshotStorage
) -> type[StoreMachine]:
    """Return a machine that compares the stores that `make` gives, an empty one at each call, with those of `right`."""

    class Machine(StoreMachine):
        def make(self) -> SnapshotStorage:
            return make()

        def make_right(self) -> SnapshotStorage:
            return right()

    Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
    return Machine


async def _kinds(work: Awaitable[Any]) -> list[type[Any]]:
    return [type(result) for result in await work]


async def _list(work: Awaitable[Any]) -> list[Any]:
    return list(await work)


async def _events(store: SnapshotStorage, saga_id: str, **asked: Any) -> list[Any]:
    return [event async for event in store.read_events(saga_id, **asked)]


async def _counts(store: SnapshotStorage) -> tuple[int, ...]:
    info = await store.info()
    return info.sagas, info.events, info.snapshots, info.replays


async def _pages(get: Callable[..., Awaitable[Page]], limit: int, **asked: Any) -> list[Any]:
    found: list[Any] = []
    cursor: str | None = None
    while True:
        page = await get(limit=limit, cursor=cursor, **asked)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found
